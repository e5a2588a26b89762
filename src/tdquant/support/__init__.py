"""What every room may lean on: the machine, memory, optional packages, progress, hooks."""
