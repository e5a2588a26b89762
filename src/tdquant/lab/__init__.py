"""Everything that judges or shows: data, metrics, evaluation, reports, benchmarks, whole jobs.

The core never imports it.
"""

import lazy_loader  # type: ignore[import-untyped]

# ``tdquant.data`` and ``tdquant.metrics`` are attributes of this package.
__getattr__, __dir__, __all__ = lazy_loader.attach(__name__, submodules=["data", "metrics"])
