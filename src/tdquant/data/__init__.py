"""Data sets."""

from tdquant.data.cats import ATTRIBUTION, Cats

__all__ = ["ATTRIBUTION", "Cats"]
