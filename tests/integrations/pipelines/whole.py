"""Tiny pipelines with text encoders, quantized, and the folders that they are exported to."""

import functools
import tempfile
from pathlib import Path

import tdquant as tdq
from tdquant.calls.from_pipeline import denoisers
from tests.pipelines import PIPELINES, sample
from tests.pipelines.texts import WHOLE

_FOLDERS = tempfile.TemporaryDirectory()


def quantized(name):
    """A pipeline with frozen denoisers at W8A8, arguments of a run of it, and what it drew in
    float.
    """
    pipe, call = (WHOLE.get(name) or PIPELINES[name])()
    exact = sample(pipe, call)
    calls = tdq.trajectories(pipe, [call], progress=False)
    for part, model in denoisers(pipe).items():
        recipe = tdq.Recipe(weights=8, activations=8, scale="table")
        tdq.quantize(model, recipe)
        tdq.calibrate(model, list(calls[part]), estimator="minmax", progress=False)
        setattr(pipe, part, tdq.freeze(model))
    return pipe, call, exact


@functools.cache
def exported(name):
    """What ``quantized`` gives, and the folder of it."""
    pipe, call, exact = quantized(name)
    out = Path(_FOLDERS.name, name)
    tdq.export_pipeline(pipe, out, example=call, progress=False)
    return pipe, call, exact, out


def assert_close(pictures, expected, exact):
    """The same pictures but for values on the other side of a rounding boundary, which do less
    than quantization does.

    Arguments:
        pictures: Of a folder.
        expected: Of the frozen pipeline.
        exact: Of the float pipeline.
    """
    assert pictures.shape == expected.shape == exact.shape
    quantization = (expected - exact).abs().mean()
    assert (pictures - expected).abs().mean() <= 0.9 * quantization
    assert (pictures - exact).abs().mean() <= 1.5 * quantization
