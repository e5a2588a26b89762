"""``evaluate_images``: judges images that were made elsewhere."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

from tdquant.errors import DataError, StorageError
from tdquant.lab.evaluation.folder import awaited, check_out, close, retire, under_way
from tdquant.lab.evaluation.judges import make_judges
from tdquant.lab.evaluation.picture_sets import HELDOUT
from tdquant.lab.evaluation.progress import Progress, now
from tdquant.lab.evaluation.reading import check_pictures, picture_files, preparation
from tdquant.lab.evaluation.record import Record
from tdquant.lab.evaluation.subject import default_device, digest_of_json
from tdquant.lab.metrics import FeatureNetwork
from tdquant.support.machine import machine, version


def evaluate_images(
    folder: str | Path,
    out: str | Path,
    *,
    reference: str | Path | None = HELDOUT,
    metrics: Sequence[str] | None = None,
    network: str | FeatureNetwork = "efficientnet-lite0",
    weights: str | Path | None = None,
    resamples: int = 100,
    images: int | None = None,
    resize: int | None = None,
    prompts: Sequence[str] | None = None,
    clip: str | Path | None = None,
    rank: int = 0,
    world: int = 1,
    device: str | None = None,
    command: str = "",
    progress: bool = True,
) -> Record:
    """Judges images that were made elsewhere.

    Arguments:
        folder: The images, with all folders inside; sorted by path.
        out: Folder of the run.
        images: How many of them, the first ones; None takes all.
        resize: Side to resize them to, and reference images in a folder too; without it all must
            be square and of one size.
        prompts: The prompt of each image, for a CLIP score.

    The other arguments, what is returned and what is raised are those of ``evaluate``.
    """
    out, began = Path(out), time.perf_counter()
    check_out(out)
    if (out / "images" / "samples.json").exists():
        raise StorageError(
            "the folder is the run of a model", where=str(out), fix="another folder for --out"
        )
    files = picture_files(folder)
    if images is not None and not 0 < images <= len(files):
        raise DataError(f"{images} images of {len(files)}", where=str(folder))
    files = files[:images]
    if prompts is not None and len(prompts) < len(files):
        raise DataError(
            f"{len(prompts)} prompts for {len(files)} images", fix="one a line, in the order of "
            "the images"
        )  # fmt: skip
    size = check_pictures(files, resize)
    place = device or default_device()
    judges = make_judges(
        network,
        weights,
        place,
        metrics,
        reference,
        len(files),
        resamples,
        resize,
        clip,
        None if prompts is None else list(prompts[: len(files)]),
    )
    where = str(Path(folder).resolve())
    asked = digest_of_json({"folder": where, "images": len(files), **judges.asked()})
    resumed = under_way(out)
    state = Progress(out, writes=rank == 0)
    opened = None
    if rank == 0:
        found = judges.find(size)  # what is wrong with it is told before a record makes room
        retire(out, state)  # what lies in a foreign folder may have changed since
        opened = judges.open(found, state, progress)
    measured = judges.judge(files, out, opened, state, rank, world, progress)
    if measured is None:
        return awaited(out, asked)
    texts = None if prompts is None else digest_of_json(list(prompts[: len(files)]))
    record = Record(
        tdquant=version(),
        created=now(),
        model={
            "name": Path(where).name, "source": where, "digest": None, "recipe": None,
            "bits": "", "scale": "", "history": [],
        },
        sampling={
            "images": len(files), "seed": None, "batch": None, "steps": None, "eta": None,
            "scheduler": {"name": "unknown", "digest": None}, "backend": "", "device": None,
            "shape": [3, *size], "size": list(size), "preprocessing": preparation(size, resize),
            "prompts": texts, "call": None,
        },
        reference=None if opened is None else opened.to_dict(),
        network=judges.described(),
        metrics=measured,
        cost={
            "seconds": round(time.perf_counter() - began, 3), "resumed": resumed,
            "sampling_seconds": None, "images_per_second": None, "milliseconds_a_call": None,
            "megabytes": None,
        },
        machine=machine(place),
        command=command,
        asked=asked,
    )  # fmt: skip
    return close(record, out, files, state, resize)
