"""NNCF: static int8 of all layers of an OpenVINO graph, and int4 weights
(https://github.com/openvinotoolkit/nncf).
"""

from __future__ import annotations

import random
from typing import ClassVar

import torch
from benchmarks.graphs import float_graph
from benchmarks.peers.graphs import OnOpenVINO, quantized_share
from benchmarks.peers.peer import Peer

SAMPLES = 300
"""Samples that calibrate, NNCF's default."""


class InGraphs(Peer):
    """A float model as an OpenVINO graph."""

    name = "float, OpenVINO"
    package = "openvino"
    settings: ClassVar = {"float": None}

    def quantize(self, model, calls):
        return graph_of(model, calls)

    def sampled(self, model, call):
        return OnOpenVINO(model, torch.get_num_threads())

    def write(self, model, folder):
        import openvino as ov

        ov.save_model(model, folder / "model.xml", compress_to_fp16=False)

    def share(self, model, whole, call):
        share = quantized_share(model)
        return share, share

    def products(self, model, run, call):
        return run.products(call[0])


class NNCF(InGraphs):
    name = "NNCF, static"
    package = "nncf"
    settings: ClassVar = {"W8A8": False}

    def quantize(self, model, calls):
        import nncf

        graph = graph_of(model, calls)
        options = nncf.AdvancedQuantizationParameters(disable_bias_correction=not self.options)
        data = nncf.Dataset(samples(calls))
        return nncf.quantize(graph, data, subset_size=SAMPLES, advanced_parameters=options)


class NNCFCorrected(NNCF):
    name = "NNCF, static, fast bias correction"
    settings: ClassVar = {"W8A8": True}


def graph_of(model, calls):
    """The graph of a model for any number of samples, each at a time of its own."""
    x, t = calls[0]
    graph = float_graph(model, (x[:1], t.reshape(-1)[:1]))
    # OpenVINO 2026.4 crashes where it compiles the float graph of cats-ldm for a fixed number.
    graph.reshape({0: [-1, *x.shape[1:]], 1: [-1]})
    return graph


def samples(calls):
    """``SAMPLES`` single samples drawn from the calls, as arrays."""
    every = [(i, j) for i, (x, _) in enumerate(calls) for j in range(len(x))]
    chosen = random.Random(0).sample(every, min(SAMPLES, len(every)))
    return [
        [calls[i][0][j : j + 1].numpy(), calls[i][1].reshape(-1)[-1:].numpy()] for i, j in chosen
    ]
