"""The choice among remedies: ``calibrate``, which gives every layer what helps most at the output
within a budget.
"""

from tdquant.choice.budget import Budget
from tdquant.choice.calibrating import calibrate

__all__ = ["Budget", "calibrate"]
