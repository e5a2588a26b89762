"""``evaluate_images``: judges images that were made elsewhere."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from tdquant.errors import DataError, StorageError
from tdquant.files.looking import exists
from tdquant.lab.data.folder import picture_files
from tdquant.lab.evaluation.config import JudgeConfig
from tdquant.lab.evaluation.folder import check_out, close, retire, wait_for_record
from tdquant.lab.evaluation.image_files import check_pictures, preparation
from tdquant.lab.evaluation.judges import Judges
from tdquant.lab.evaluation.picture_sets import HELDOUT
from tdquant.lab.evaluation.record import Record
from tdquant.lab.evaluation.subject import digest_of_json
from tdquant.lab.metrics import FeatureNetwork


def evaluate_images(
    folder: str | Path,
    out: str | Path,
    *,
    images: int | None = None,
    reference: str | Path | None = HELDOUT,
    metrics: Sequence[str] | None = None,
    network: str | FeatureNetwork = "efficientnet-lite0",
    config: JudgeConfig | None = None,
    **options: Any,
) -> Record:
    """Judges images that were made elsewhere.

    Arguments:
        folder: The images, with those of all folders inside; sorted by path.
        out: Folder of the run.
        images: Number of images, the first ones; None takes all.
        reference: As for ``evaluate``.
        metrics: As for ``evaluate``.
        network: As for ``evaluate``.
        config: Further options.
        options: Fields of ``JudgeConfig``, which replace those of ``config``.

    Returns:
        The record, in every process.

    Raises:
        StorageError: The folder holds something else, or the run of a model.
        DataError: Metrics, reference set, prompts and images do not fit together.
        TypeError: There is no such option.
    """
    config = replace(config or JudgeConfig(), **options)
    out = Path(out)
    check_out(out)
    if exists(out / "images" / "samples.json"):
        raise StorageError(
            "the folder is the run of a model", where=str(out), fix="another folder for --out"
        )
    files = picture_files(folder)
    if images is not None and not 0 < images <= len(files):
        raise DataError(f"{images} images of {len(files)}", where=str(folder))
    files, prompts = files[:images], config.prompts
    if prompts is not None and len(prompts) < len(files):
        raise DataError(
            f"{len(prompts)} prompts for {len(files)} images",
            fix="one a line, in the order of the images",
        )
    size = check_pictures(files, config.resize)
    judges = Judges(out, network, metrics, reference, len(files), config)
    where = str(Path(folder).resolve())
    asked = digest_of_json({"folder": where, "images": len(files), **judges.asked()})
    if config.rank == 0:
        found = judges.find_reference(size)  # its mistakes are raised before a record is moved
        retire(out, judges.state)  # the images may have changed since
        judges.open_reference(found)
    measured = judges.judge(files)
    if measured is None:
        return wait_for_record(out, asked)
    record = judges.record(
        model={
            "name": Path(where).name, "source": where, "digest": None, "recipe": None,
            "bits": "", "scale": "", "history": [],
        },
        sampling={
            "images": len(files), "seed": None, "batch": None, "steps": None, "eta": None,
            "scheduler": {"name": "unknown", "digest": None}, "backend": "", "device": None,
            "shape": [3, *size], "size": list(size),
            "preprocessing": preparation(size, config.resize),
            "prompts": None if prompts is None else digest_of_json(list(prompts[: len(files)])),
            "call": None,
        },
        metrics=measured,
        cost=dict.fromkeys(
            ("sampling_seconds", "images_per_second", "milliseconds_a_call", "megabytes")
        ),
        asked=asked,
    )  # fmt: skip
    return close(record, out, files, judges.state, config.resize)
