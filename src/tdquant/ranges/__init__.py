"""Range estimators: from the histogram of a tensor to the step of its grid."""

from tdquant.ranges.estimators import ESTIMATORS, best_zero, estimate
from tdquant.ranges.histogram import Histogram, pooled, squared_error

__all__ = ["ESTIMATORS", "Histogram", "best_zero", "estimate", "pooled", "squared_error"]
