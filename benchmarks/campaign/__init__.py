"""Tries to break what tdquant promises: see docs/reliability.md.

python -m benchmarks.campaign files --cases 10000
python -m benchmarks.campaign kills disks threads shapes
"""
