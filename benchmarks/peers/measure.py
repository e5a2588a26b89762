"""One row: a quantizer at one setting on one model."""

from __future__ import annotations

import gc
import time
from functools import partial
from typing import Any

from benchmarks.interleaved import interleaved
from benchmarks.peers.peer import Peer
from benchmarks.peers.world import World

PARTS = ("error", "time")


def measured(
    kind: type[Peer], setting: str, world: World, parts: list[str], rounds: int
) -> dict[str, Any]:
    """What a row has of the ``parts``, or why it has nothing."""
    row: dict[str, Any] = {"note": kind.note}
    if not kind.installed():
        return row | {"missing": kind.pip()}
    try:
        return row | {"version": kind.version()} | _measured(kind, setting, world, parts, rounds)
    except Exception as error:  # of whatever a package raises the table tells
        return row | {"failed": f"{type(error).__name__}: {error}".splitlines()[0][:200]}
    finally:
        gc.collect()


def _measured(
    kind: type[Peer], setting: str, world: World, parts: list[str], rounds: int
) -> dict[str, Any]:
    peer, calls = kind(setting, world.generate), world.calls
    started = time.perf_counter()
    model = peer.quantize(world.fresh(), calls)
    row: dict[str, Any] = {"seconds": time.perf_counter() - started}
    if "error" in parts:
        call = world.call(world.batch)
        run = peer.sampled(model, call)
        row |= world.error(run)
        row["bytes"] = peer.bytes(model)
        row["weights"], row["inputs"] = peer.share(model, world.pipe.unet, world.call(1))
        row["integer"], row["products"] = peer.products(model, run, call)
    if "time" in parts:
        call = world.call(1)
        functions = {
            "row": partial(peer.timed(model, call), *call),
            "float": partial(world.pipe.unet, *call),
        }
        seconds = interleaved(functions, rounds)
        row |= {"ms": 1e3 * seconds["row"], "float_ms": 1e3 * seconds["float"]}
    return row
