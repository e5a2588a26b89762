"""Remedies beyond scales: learned rounding, balancing, bit widths, output correction."""
