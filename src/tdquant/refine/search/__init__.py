"""Layer sensitivity, and the search for a recipe that gives every layer the bits that it needs."""

from tdquant.refine.search.assign import Search, search
from tdquant.refine.search.measure import sensitivity
from tdquant.refine.search.sensitivity import LayerFacts, Sensitivity

__all__ = ["LayerFacts", "Search", "Sensitivity", "search", "sensitivity"]
