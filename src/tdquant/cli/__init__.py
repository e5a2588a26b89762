"""The command ``tdquant``."""

from tdquant.cli.main import main

__all__ = ["main"]
