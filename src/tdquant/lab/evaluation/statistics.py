"""Statistics of a reference set's features from a file."""

from __future__ import annotations

import zipfile
import zlib
from pathlib import Path

import numpy as np
import torch

from tdquant.errors import DataError
from tdquant.lab.metrics.features import FeatureNetwork
from tdquant.lab.metrics.frechet import Statistics

UNKNOWN = 0
"""Number of images of a file that does not tell."""

_FORM = "an .npz with mu (D,) and sigma (D, D)"
# What numpy raises over files that are no archive, or one of other things.
_DAMAGED = (
    OSError, EOFError, ValueError, KeyError, TypeError, AttributeError, OverflowError,
    zipfile.BadZipFile, zlib.error,
)  # fmt: skip


def read_statistics(path: Path, network: FeatureNetwork) -> Statistics:
    """Mean and covariance of pooled features, as FID implementations exchange them (``mu``,
    ``sigma`` in an ``.npz``) or as ``Statistics.to_bytes`` writes them.

    Which network they are of the file does not tell; that its features are as many is checked.

    Raises:
        DataError: The file cannot be read, holds something else or numbers that are not finite,
            or has another number of features.
    """
    if not path.is_file():
        raise DataError("no such file", where=str(path), fix="check the path")
    if path.suffix == ".npz":
        found = _npz(path)
    else:
        found = Statistics.from_bytes(path.read_bytes(), str(path))
    blank = torch.zeros(1, 3, 32, 32, dtype=torch.uint8, device=network.device)
    width = network.extract(blank, ("pooled",))["pooled"].shape[1]
    if len(found.mean) != width:
        raise DataError(
            f"statistics of {len(found.mean)} features for a network with {width}",
            where=str(path),
            why=f"the network is {network.title}",
            fix="the network that they are of, such as --network inception",
        )
    return found


def _npz(path: Path) -> Statistics:
    try:
        with np.load(path, allow_pickle=False) as stored:
            mean = torch.from_numpy(np.asarray(stored["mu"], dtype=np.float64))
            covariance = torch.from_numpy(np.asarray(stored["sigma"], dtype=np.float64))
            count = int(stored["count"]) if "count" in stored else UNKNOWN
    except _DAMAGED as error:
        raise DataError(
            "no feature statistics",
            where=str(path),
            why=str(error),
            fix=_FORM,
        ) from error
    return Statistics(mean, covariance, count).checked(str(path), _FORM)
