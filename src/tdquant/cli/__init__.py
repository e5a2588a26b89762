"""The command ``tdquant``."""

from tdquant.cli.main import main, published_main

__all__ = ["main", "published_main"]
