"""Sampling as the published implementation starts it; ``tdquant sample --help`` has the flags."""

import sys

from tdquant.cli import published_main

if __name__ == "__main__":
    sys.exit(published_main("sample"))
