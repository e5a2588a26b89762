"""``python -m tdquant``."""

import sys

from tdquant.cli import main

sys.exit(main())
