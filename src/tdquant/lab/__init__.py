"""Everything that judges or shows: data, metrics, evaluation, reports, benchmarks, whole jobs.

The core never imports it.
"""
