"""Helpers for every package: machine, memory, optional packages, progress, hooks, tables."""
