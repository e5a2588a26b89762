"""Computes the feature statistics of the held-out cats that ship with the package.

python scripts/heldout_statistics.py
"""

from pathlib import Path

import tdquant
from tdquant.lab.metrics.frechet import CATS_HELDOUT, compute_heldout_cats


def main() -> None:
    package = Path(tdquant.__file__).parent
    target = package / "lab" / "metrics" / "reference" / f"cats-heldout-{CATS_HELDOUT}.safetensors"
    target.parent.mkdir(exist_ok=True)
    target.write_bytes(compute_heldout_cats().to_bytes())
    print(f"wrote {target}")


if __name__ == "__main__":
    main()
