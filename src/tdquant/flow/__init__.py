"""Data flow of a model: what depends on the timestep alone, what is first and last, and which axis
of an activation is the batch.
"""
