"""Exporters: a frozen model as a graph of another engine, the timestep an input of it."""
