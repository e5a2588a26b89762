"""From a float model in a folder to a quantized one in another: everything that a user does by
hand, in one job that can be stopped and started again.

    record calls -> (balance) -> (search bits) -> quantize -> calibrate -> (reconstruct) -> freeze
    -> (correct) -> compare pictures -> save

Recorded calls and unfinished reconstruction stay in a folder beside the output until the job ends.
"""

from __future__ import annotations

import copy
import shutil
import time
from collections.abc import Callable
from typing import Any

from torch import nn

from tdquant.calibration import observe
from tdquant.choice import calibrate
from tdquant.errors import MissingDependencyError
from tdquant.files.job_folder import JobFolder
from tdquant.files.looking import matching
from tdquant.files.writing import replacing_folder
from tdquant.freezing import freeze
from tdquant.lab.jobs.folders import MARK, check_out, job_files, work_folder, write_mark
from tdquant.lab.jobs.options import PICTURE, Outcome, QuantizeOptions
from tdquant.lab.jobs.pictures import compare, draw_comparison
from tdquant.lab.jobs.targets import open_target
from tdquant.model_summary import summary
from tdquant.quantization import quantize
from tdquant.refine.balancing import balance
from tdquant.refine.correction import correct
from tdquant.refine.reconstruction import reconstruct
from tdquant.refine.search import search, sensitivity
from tdquant.state import note, state_of
from tdquant.support.announce import announce
from tdquant.support.memory import resident_bytes

CURVE = "search-{}.png"


def run_job(
    options: QuantizeOptions, report: Callable[[str], object] = lambda text: None
) -> Outcome:
    """Quantizes a model from folder to folder.

    Arguments:
        options: What to do.
        report: Called with the text of each calibration and search when it is done.

    Raises:
        ModelError: The model cannot be opened, or has no such denoiser.
        StorageError: The output folder holds something else.
        TDQError: Any error of a stage. What was recorded stays for the next try.
    """
    check_out(options.out, options.model)  # before hours of work, and not after
    lap = Laps()
    target = open_target(options)
    lap("load")
    with work_folder(options) as work:
        calls = target.record(work.claim("calls"))
        lap("record")
        exact = target.draw() if options.pictures else None
        lap("pictures")
        layers, before = {}, {}
        teachers = {n: copy.deepcopy(m) for n, m in target.denoisers.items() if options.correct}
        for name, model in list(target.denoisers.items()):
            before[name] = resident_bytes(model)
            frozen = freeze(_quantized(model, name, calls[name], options, work, lap, report))
            layers[name] = summary(frozen)
            target.replace(name, frozen)
            lap("freeze")
        for name, teacher in teachers.items():
            # The calls that the quantized model makes, which are not those that were recorded.
            own = target.own_calls(name)
            corrected = correct(target.denoisers[name], teacher, own, progress=options.progress)
            target.replace(name, corrected)
            lap("correct")
        del teachers
        errors, drawn = None, None if exact is None else target.draw()
        if exact is not None and drawn is not None:
            errors = compare(drawn, exact)
            for model in target.denoisers.values():
                note(model, "compare", pictures=len(exact), **errors)
                announce(model)  # its card and configuration show it
            lap("pictures")
        # What was put there during the work is kept.
        earlier = job_files(options.out)
        with replacing_folder(options.out, MARK, earlier.__contains__) as fresh:
            folders = target.save(fresh)
            if exact is not None and drawn is not None:
                draw_comparison(exact, drawn, fresh / PICTURE)
            for curve in matching(work.path, CURVE.format("*")):
                shutil.copy(curve, fresh)
            after = {
                name: sum(file.stat().st_size for file in matching(folder, "*.safetensors"))
                for name, folder in folders.items()
            }
            write_mark(fresh)
        work.remove()
    lap("save")
    sizes = {name: (size, after[name]) for name, size in before.items()}
    return Outcome(options.out, layers, sizes, errors, lap.seconds)


class Laps:
    """Wall time by stage: ``lap(stage)`` ends a stage.

    Attributes:
        seconds: Stage -> seconds.
    """

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._since = time.perf_counter()

    def __call__(self, stage: str) -> None:
        now = time.perf_counter()
        self.seconds[stage] = self.seconds.get(stage, 0.0) + now - self._since
        self._since = now


def _quantized(
    model: nn.Module,
    name: str,
    calls: Any,
    options: QuantizeOptions,
    work: JobFolder,
    lap: Laps,
    report: Callable[[str], object],
) -> nn.Module:
    """One denoiser, quantized and calibrated in place, with whatever else the job asks for."""
    recipe = options.recipe
    common: dict[str, Any] = {"seed": options.seed, "progress": options.progress}
    if options.balance is not None:
        balance(model, calls, alpha=options.balance, progress=options.progress)
        lap("balance")
    seen = None
    if options.target_bits is not None or options.max_error is not None:
        # The measured model is quantized, and the one to be kept must not be yet.
        trial = quantize(copy.deepcopy(model), recipe)
        seen = observe(trial, calls, **common)
        measured = sensitivity(trial, seen, **common)
        del trial
        # Few times near the image have most of the error; others decide what the picture is.
        found = search(
            measured if options.target_bits is None else measured.balanced(),
            target_bits=options.target_bits,
            max_error=options.max_error,
            base=recipe,
        )
        report(str(found))
        recipe = found.recipe
        try:
            found.plot(work.claim(CURVE.format(name)))
        except MissingDependencyError as error:
            report(f"no picture of the search: {error}")
        lap("search")
    quantize(model, recipe)
    calibrate(
        model,
        calls if seen is None else seen,
        budget=options.budget,
        checkpoint=work.claim(f"calibration-{name}.json"),
        **common,
    )
    report(str(state_of(model).calibration))
    lap("calibrate")
    if options.reconstruct:
        reconstruct(
            model,
            calls,
            method=options.reconstruct,
            iterations=options.iterations,
            checkpoint=work.claim(f"reconstruct-{name}"),
            **common,
        )
        lap("reconstruct")
    return model
