"""``export``: hands a frozen model to the exporter that a file's suffix names."""

from __future__ import annotations

import contextlib
import gc
import os
from importlib import metadata
from pathlib import Path
from typing import Any, Protocol

from torch import nn

from tdquant.clock import clock_of
from tdquant.errors import ExportError, MissingDependencyError
from tdquant.files.looking import entries
from tdquant.files.places import check_file, disk_errors
from tdquant.files.workspace import flush, flush_entry, workspace
from tdquant.lowering.agreement import require_agreement
from tdquant.lowering.calls import Call, Example, read_call
from tdquant.lowering.lowered import float32_copy, require_frozen
from tdquant.lowering.sealing import CONSTANTS
from tdquant.lowering.session import ENGINES, open_session
from tdquant.lowering.slot import described
from tdquant.model_summary import summary
from tdquant.recipe import Recipe
from tdquant.state import recipe_of
from tdquant.support.memory import trim_heap
from tdquant.support.registry import registrar


class Exporter(Protocol):
    """Writes a float32 copy of a frozen model, which it may change, with a description."""

    def __call__(
        self, model: nn.Module, path: Path, call: Call, about: dict[str, Any], portable: bool
    ) -> None: ...


EXPORTERS: dict[str, Exporter] = {}
"""Every exporter by the suffix of its files."""


register_exporter = registrar(EXPORTERS)
"""``@register_exporter(".suffix")`` registers an Exporter."""


def export(
    frozen: nn.Module,
    path: str | os.PathLike[str],
    example: Example,
    *,
    portable: bool = False,
    check: bool = True,
) -> Path:
    """Writes a frozen model as a graph of another engine, the timestep an input of it.

    The scale tables are in the graph, gathered by the timestep: one file serves every scheduler
    and number of steps, and batches that mix timesteps. The graph takes one timestep for each
    sample, ``(B,)``, clamped to the tables' range, and any batch size; height and width are free
    where the model allows it. ``tdq.open_session(path)`` runs it with the call of the model.

    Arguments:
        frozen: What ``freeze`` or ``load`` returned; it stays as it is.
        path: File to write: ``.xml`` for OpenVINO (with a ``.bin`` beside it), ``.onnx``.
        example: Arguments of one call, as a tuple ``(x, t, ...)`` or a dictionary by name. Tensors
            become inputs; anything else is baked into the graph.
        portable: Write the form whose sums of 8-bit products saturate nowhere. An ordinary file
            is right, and fast, on ARM and on x86 with VNNI or AMX. On other x86 it needs a
            session, which adapts it to the machine; a portable one is right there without a
            session, and slower everywhere.
        check: Compare what the file computes of the example with the frozen model's, which costs
            one more call of it, and refuse a file that computes something else.

    Returns:
        The file. It has run the example once, if its engine is installed.

    Raises:
        FreezeError: The model is not frozen.
        ConversionError: The model is not quantized.
        ExportError: An unknown suffix, an example that is no call of the model, a model that
            cannot be traced, or a graph that its engine cannot run or of which it computes
            something else. What was at ``path`` stays.
        StorageError: The disk is full, or the place is read-only.
        MissingDependencyError: The exporter's package is not installed.
    """
    target = Path(path)
    with disk_errors(target):
        check_file(target)
        target.parent.mkdir(parents=True, exist_ok=True)
        with workspace(target) as place:
            file = place / "new" / target.name
            file.parent.mkdir()
            call = write_graph(frozen, file, example, portable=portable)
            if target.suffix in ENGINES:
                with contextlib.suppress(MissingDependencyError):
                    session = open_session(file)
                    output = session(**call.values)
                    if check:
                        engine = f"the engine of {target.suffix} files"
                        require_agreement(
                            session, output, frozen, (), call.values, engine, ExportError
                        )
            flush(file.parent)
            _put(file, target)
            flush_entry(target.parent)
    return target


def _put(source: Path, target: Path) -> None:
    """Moves a file, after all that lies beside it in a folder of its own, to another name of a
    file. Constants of an earlier file there that the new one does not have are removed.
    """
    others = [file for file in entries(source.parent) if file != source]
    for file in (*others, source):
        file.replace(target.with_name(file.name))
    constants = target.with_name(target.name + CONSTANTS)
    if constants.name not in [file.name for file in others]:
        constants.unlink(missing_ok=True)


def check_suffix(path: str | os.PathLike[str]) -> None:
    """Raises ExportError unless the suffix of a file is that of a format."""
    suffix = Path(path).suffix
    if suffix not in EXPORTERS:
        raise ExportError(
            f"no exporter for {suffix or 'a file without suffix'!r}",
            where=Path(path).name,
            fix=f"one of {', '.join(sorted(EXPORTERS))}",
        )


def write_graph(
    frozen: nn.Module, target: Path, example: Example, *, portable: bool = False
) -> Call:
    """Writes the file of ``export`` into a folder of its own, without running it; returns the call
    that was traced.
    """
    check_suffix(target)
    model, call = prepared(frozen, example)
    EXPORTERS[target.suffix](model, target, call, about(model), portable)
    del model
    gc.collect()  # traces are cycles, which hold all codes
    trim_heap()
    return call


def prepared(frozen: nn.Module, example: Example) -> tuple[nn.Module, Call]:
    """A copy of a frozen model that an exporter may change, and an example call of it."""
    require_frozen(frozen, "exported", "tdq.export(tdq.freeze(model), path, ...)")
    model = float32_copy(frozen)
    return model, read_call(model, example)


def about(model: nn.Module) -> dict[str, Any]:
    """What a file says about the frozen model in it, as JSON."""
    recipe = recipe_of(model)
    return {
        "tdquant": metadata.version("tdquant"),
        "model": type(model).__name__,
        "coverage": clock_of(model).coverage,
        "seen": clock_of(model).seen,
        "recipe": recipe.to_dict() if isinstance(recipe, Recipe) else None,
        "summary": str(summary(model)).splitlines()[-1],
        **described(model),
    }
