"""Statistics of a reference set's features from a file."""

from __future__ import annotations

import zipfile
from pathlib import Path

import numpy as np
import torch

from tdquant.errors import DataError
from tdquant.metrics.features import FeatureNetwork
from tdquant.metrics.frechet import Statistics

UNKNOWN = 0
"""Number of images of a file that does not tell."""


def read_statistics(path: Path, network: FeatureNetwork) -> Statistics:
    """Mean and covariance of pooled features, as FID implementations exchange them (``mu``,
    ``sigma`` in an ``.npz``) or as ``Statistics.to_bytes`` writes them.

    Which network they are of the file does not tell; that its features are as many is checked.

    Raises:
        DataError: The file cannot be read, or has another number of features.
    """
    if not path.is_file():
        raise DataError("no such file", where=str(path))
    found = _npz(path) if path.suffix == ".npz" else Statistics.from_bytes(path.read_bytes())
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
    except (OSError, EOFError, ValueError, KeyError, zipfile.BadZipFile) as error:
        raise DataError(
            "no feature statistics",
            where=str(path),
            why=str(error),
            fix="an .npz with mu (D,) and sigma (D, D)",
        ) from error
    if mean.ndim != 1 or covariance.shape != (len(mean), len(mean)):
        raise DataError(
            f"mu of shape {tuple(mean.shape)} and sigma of shape {tuple(covariance.shape)}",
            where=str(path),
            fix="an .npz with mu (D,) and sigma (D, D)",
        )
    if not (mean.isfinite().all() and covariance.isfinite().all()):
        raise DataError("mu or sigma is not finite", where=str(path), fix="compute them again")
    return Statistics(mean, covariance, count)
