"""What the benchmark asks of a quantizer."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping, Sequence
from importlib import metadata, util
from pathlib import Path
from typing import Any, ClassVar

from benchmarks.peers.products import linear_macs, torch_products
from torch import Tensor, nn

Call = tuple[Tensor, Tensor]
Denoiser = Callable[[Tensor, Tensor], Any]
WEIGHTS = (".safetensors", ".bin", ".pt")
"""Endings of files that hold weights and scales; the rest describes the model."""


class Peer:
    """One way to quantize, at one setting.

    Arguments:
        setting: Key of ``settings``, such as ``"W8A8"``.
        generate: From a model to samples of it, for those that judge by samples.

    Attributes:
        name: What the table calls it.
        package: What is imported.
        distribution: What is installed, if it is called otherwise.
        settings: What it offers: its own options, by setting.
        note: What a reader has to know, in few words.
    """

    name: ClassVar[str]
    package: ClassVar[str]
    distribution: ClassVar[str] = ""
    settings: ClassVar[Mapping[str, Any]]
    note: ClassVar[str] = ""

    def __init__(self, setting: str, generate: Callable[[Denoiser], Tensor] | None = None) -> None:
        self.setting, self.options, self.generate = setting, self.settings[setting], generate

    @classmethod
    def installed(cls) -> bool:
        try:
            return util.find_spec(cls.package) is not None
        except ModuleNotFoundError:  # the parent of a package of a namespace
            return False

    @classmethod
    def pip(cls) -> str:
        """The command that installs it."""
        return f"pip install {cls.distribution or cls.package}"

    @classmethod
    def version(cls) -> str:
        name = cls.distribution or cls.package
        return f"{name} {metadata.version(name)}"

    @classmethod
    def applies(cls, model: nn.Module) -> bool:
        """Whether the row says anything about this model that others do not."""
        return True

    def quantize(self, model: nn.Module, calls: Sequence[Call]) -> Any:
        """The quantized model from a float one that is ours to change. ``calls`` are in random
        order.
        """
        raise NotImplementedError

    def sampled(self, model: Any, call: Call) -> Denoiser:
        """What is sampled from, for inputs like those of ``call``."""
        return model

    def timed(self, model: Any, call: Call) -> Denoiser:
        """What is timed: as the project wants to be run."""
        return self.sampled(model, call)

    def write(self, model: Any, folder: Path) -> None:
        """Saves the model as the project does."""
        raise NotImplementedError

    def bytes(self, model: Any) -> int:
        """Bytes of the files of weights, scales included."""
        with tempfile.TemporaryDirectory() as folder:
            self.write(model, Path(folder))
            files = [file for file in Path(folder).rglob("*") if file.suffix in WEIGHTS]
            return sum(file.stat().st_size for file in files)

    def layers(self, model: Any) -> dict[str, tuple[bool, bool]]:
        """Path -> whether a layer's weights, and whether its inputs, have few bits."""
        raise NotImplementedError

    def share(self, model: Any, whole: nn.Module, call: Call) -> tuple[float, float]:
        """Share of the multiplications of linear layers and convolutions of the float model
        ``whole`` with weights, and with inputs, of few bits.
        """
        macs, layers = linear_macs(whole, call), self.layers(model)
        weights = sum(n for path, n in macs.items() if layers.get(path, (False,))[0])
        inputs = sum(n for path, n in macs.items() if layers.get(path, (False, False))[1])
        return weights / sum(macs.values()), inputs / sum(macs.values())

    def products(self, model: Any, run: Denoiser, call: Call) -> tuple[int, int]:
        """How many products of a call run on integer kernels, and how many there are."""
        return torch_products(model, call)
