"""Grids, rounding and packing: what a code is."""
