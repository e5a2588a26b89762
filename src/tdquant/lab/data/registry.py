"""The data sets by name, and those that a latent-diffusion configuration names by its targets."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from tdquant.errors import DataError, raise_collected
from tdquant.files.config import check_keys
from tdquant.files.looking import is_file
from tdquant.lab.data.base import ImageDataset
from tdquant.lab.data.cats import Cats
from tdquant.lab.data.cifar10 import cifar10
from tdquant.lab.data.fashion_mnist import fashion_mnist
from tdquant.lab.data.folder import folder
from tdquant.lab.data.lsun import LMDB_FILE, lsun
from tdquant.lab.data.robots import Robots

DATASETS: dict[str, Callable[..., ImageDataset]] = {
    "cats": Cats,
    "cifar10": cifar10,
    "fashion-mnist": fashion_mnist,
    "folder": folder,
    "lsun": lsun,
    "robots": Robots,
}
"""Name -> what makes the data set. A new data set is one new file and one line here."""

OWN = "tdquant.data."
TARGETS: dict[str, dict[str, Any]] = {
    f"ldm.data.lsun.LSUN{kind}{split}": {
        "txt_file": f"data/lsun/{names}_{suffix}.txt",
        "data_root": f"data/lsun/{kind.lower()}",
        "flip_p": flip,
    }
    for kind, names in (("Churches", "church_outdoor"), ("Bedrooms", "bedrooms"), ("Cats", "cat"))
    for split, suffix, flip in (("Train", "train", 0.5), ("Validation", "val", 0.0))
}
"""latent-diffusion's LSUN targets -> their defaults."""


def make_dataset(
    name: str, *, flip_p: float = 0.0, where: str = "", **options: Any
) -> ImageDataset:
    """Makes the data set ``name``.

    Arguments:
        name: One of ``DATASETS``.
        flip_p: Probability with which training mirrors an image; kept in ``flip``.
        where: Name of the options in an error; ``name`` if empty.
        options: Options of the data set.

    Raises:
        DataError: The name or an option is unknown, an option is missing, or the data set cannot
            be read; all mistakes are listed.
    """
    where = where or name
    if name not in DATASETS:
        raise DataError(
            f"no data set {name!r}", where=where, fix=f"one of {_nearest(name, list(DATASETS))}"
        )
    known = inspect.signature(DATASETS[name]).parameters
    required = [key for key, found in known.items() if found.default is inspect.Parameter.empty]
    mistakes = check_keys(options, known, required, where)
    if isinstance(flip_p, bool) or not isinstance(flip_p, (int, float)) or not 0 <= flip_p <= 1:
        mistakes.append(f"{where}.flip_p={flip_p!r}: 0 to 1")
    raise_collected(DataError, mistakes, where)
    dataset = DATASETS[name](**options)
    dataset.flip = float(flip_p)
    return dataset


def dataset_from_config(
    node: Mapping[str, Any], where: str = "data.params.train", *, progress: bool = True
) -> ImageDataset:
    """Makes the data set that a node {target, params} of a configuration describes.

    Known targets are ``tdquant.data.NAME`` with a NAME of ``DATASETS``, latent-diffusion's LSUN
    classes with their default files, and any whose name contains ``cifar10``. ``params`` win over
    defaults; ``flip_p`` goes into the attribute ``flip``.

    Arguments:
        node: The node.
        where: Its dotted path, for errors.
        progress: Show a bar where files are checked.

    Raises:
        DataError: The target or an option is unknown, or the data set cannot be read.
    """
    mistakes = check_keys(node, ("target", "params"), ("target",), where)
    params = (node.get("params") or {}) if isinstance(node, Mapping) else {}
    if not isinstance(params, Mapping):
        mistakes += check_keys(params, (), where=f"{where}.params")
    raise_collected(DataError, mistakes, where)
    name, defaults = _known(str(node["target"]), where)
    options = {**defaults, **params}
    root = options.get("data_root")
    if name == "lsun" and "txt_file" not in params and root and is_file(Path(root) / LMDB_FILE):
        options.pop("txt_file", None)
    if "progress" in inspect.signature(DATASETS[name]).parameters:
        options.setdefault("progress", progress)
    return make_dataset(name, where=f"{where}.params", **options)


def _known(target: str, where: str) -> tuple[str, dict[str, Any]]:
    """The name of the data set that ``target`` means, and the defaults of its options."""
    if target in TARGETS:
        return "lsun", TARGETS[target]
    own = target.removeprefix(OWN).replace("_", "-")
    if target.startswith(OWN) and own in DATASETS:
        return own, {}
    kind = target.rsplit(".", 1)[-1].lower()
    if "cifar10" in target.lower():
        held_out = "val" in kind or "test" in kind
        return "cifar10", {"split": "test" if held_out else "train"}
    targets = [*TARGETS, *(OWN + name for name in DATASETS)]
    raise DataError(
        f"no data set for the target {target!r}",
        where=f"{where}.target",
        fix=f"one of {_nearest(target, targets)}, or {OWN}folder with root: FOLDER",
    )


def _nearest(name: str, known: list[str]) -> str:
    return ", ".join(get_close_matches(name, known, cutoff=0.4) or known)
