"""Benchmarks of one model on several backends, side by side: time, memory, size and error."""

from tdquant.lab.bench.run import BenchResult, BenchRow, run_bench
from tdquant.lab.bench.subject import Subject, subject_from_embedded, subject_from_folder

__all__ = [
    "BenchResult",
    "BenchRow",
    "Subject",
    "run_bench",
    "subject_from_embedded",
    "subject_from_folder",
]
