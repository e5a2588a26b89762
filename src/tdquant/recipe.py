"""The recipe: everything that ``quantize`` decides, in one frozen value that is checked when it is
made.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any

from tdquant.errors import RecipeError
from tdquant.numerics.grid import MAX_BITS, MIN_BITS
from tdquant.scales.base import recipe_kinds
from tdquant.scales.temporal_options import TEMPORAL_OPTIONS, check_temporal_option
from tdquant.support.checks import check_choice, is_whole

FLOAT = 32
"""Bits of an operand that stays in float."""

GRANULARITIES = ("channel", "tensor")
GRIDS = ("auto", "symmetric", "published")
REMEDIES = (
    "groups",
    "rotation",
    "factors",
    "dynamic",
    "protection",
    "rounding",
    "correction",
)
"""Remedies beside scales: see ``Recipe.remedies``."""

MAX_GROUPED = 6
"""Most bits of weights that are quantized in groups: multiples of wider codes do not fit int8."""

WIDE_TIME = 8
"""Bits of weights on the time path where nothing chooses fewer."""


@dataclass(frozen=True)
class LayerRecipe:
    """What one layer gets.

    Arguments:
        weights: Bits of the weight, 2 to 16, or 32 for float.
        activations: Bits of the input, 2 to 16, or 32 for float.
        scale: Kind of activation scale.
    """

    weights: int
    activations: int
    scale: str


@dataclass(frozen=True)
class Recipe:
    """How to quantize a model.

    Arguments:
        weights: Bits of the weights, 2 to 16, or 32 for float.
        activations: Bits of the activations, 2 to 16, or 32 for float.
        scale: Kind of the activation scales: ``"temporal"`` (learned function of the timestep),
            ``"static"``, ``"static-log"`` (a static step, learned by its logarithm), ``"dynamic"``
            (each input's extremes), ``"table"`` (a learned step a timestep), ``"pact"`` (a learned
            clipping range), ``"nipq"`` (a static step, with noise in the place of rounding in
            training, of weights too), or ``"auto"``: temporal where
            calibration measures that it helps, static elsewhere.
        edges: Bits of weight and input of the first and last layers. They are a thousandth of the
            work and most of the damage: float by default.
        time_weights: Bits of the weights on the time path; its activations stay in float. None is
            ``time_bits``: 8, or one more than ``weights`` where ``"rounding"`` chooses codes.
        attention: Bits of the operands of QK^T and AV, or 32 to leave the products in float.
        granularity: One weight step for each output ``"channel"``, or for the ``"tensor"``.
        grid: ``"auto"`` lets calibration give one-sided activations (after SiLU, GELU, softmax) a
            zero point; ``"symmetric"`` forces signed symmetric codes; ``"published"`` are the
            grids, starts and scale networks of TDQ's authors: see ``Recipe.published``.
        include: Glob patterns over module paths: which layers may be quantized.
        exclude: Patterns of layers that stay in float.
        overrides: Pattern -> fields of LayerRecipe to replace; later patterns win.
        temporal: Options of TemporalScale: features, hidden, depth, dropout, encoding.
        remedies: What may be used beside scales, by name: ``"groups"`` (weights of up to 6 bits
            have integer multipliers of their step for each group of inputs), and, each where
            calibration measures that it helps, ``"rotation"`` (input channels of linear layers are
            mixed by Hadamard matrices), ``"factors"`` (input channels are divided by factors that
            the weight takes over), ``"dynamic"`` (the step is computed from each sample, in linear
            layers from each token), ``"protection"`` (8 bits for the inputs of a few layers),
            ``"rounding"`` (codes of weights chosen by the layer's output) and ``"correction"`` (a
            bias of the model's output over time). ``"auto"`` is all of them
            with ``scale="auto"``, and none with other kinds.
        group: Inputs that share a multiplier, 16 to 128.

    Raises:
        RecipeError: Anything is out of range or misspelt; all mistakes are listed.
    """

    weights: int = 8
    activations: int = 8
    scale: str = "auto"
    edges: int = FLOAT
    time_weights: int | None = None
    attention: int = FLOAT
    granularity: str = "channel"
    grid: str = "auto"
    include: tuple[str, ...] = ("*",)
    exclude: tuple[str, ...] = ()
    overrides: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    temporal: Mapping[str, Any] = field(default_factory=dict)
    remedies: str | tuple[str, ...] = "auto"
    group: int = 32

    def __post_init__(self) -> None:
        mistakes = self._copy_containers() or self._mistakes()
        if mistakes:
            raise RecipeError(
                f"{len(mistakes)} mistake{'s' * (len(mistakes) > 1)} in the recipe:\n  - "
                + "\n  - ".join(mistakes)
            )

    def _copy_containers(self) -> list[str]:
        """Replaces lists and dictionaries by copies, which nobody else changes; what stands in the
        place of one is a mistake.
        """
        found = []
        for name in ("include", "exclude", "remedies"):
            value: Any = getattr(self, name)
            if name == "remedies" and isinstance(value, str):
                continue
            if not isinstance(value, Iterable) or isinstance(value, str):
                found.append(f"{name}={value!r}: a list")
            else:
                object.__setattr__(self, name, tuple(value))
        for name in ("overrides", "temporal"):
            value = getattr(self, name)
            if isinstance(value, Mapping):
                object.__setattr__(self, name, copy.deepcopy(dict(value)))
            else:
                found.append(f"{name}={value!r}: a dictionary")
        return found

    def _mistakes(self) -> list[str]:
        found = []
        for name in ("weights", "activations", "edges", "time_weights", "attention"):
            if name != "time_weights" or self.time_weights is not None:
                found += _check_bits(name, getattr(self, name))
        kinds = recipe_kinds()
        for name, allowed in (("scale", kinds), ("granularity", GRANULARITIES), ("grid", GRIDS)):
            found += check_choice(name, getattr(self, name), allowed)
        for pattern, changes in self.overrides.items():
            if not isinstance(changes, Mapping):
                found.append(
                    f"overrides[{pattern!r}]={changes!r}: a dictionary, such as {{'weights': 8}}"
                )
                continue
            for key, value in changes.items():
                where = f"overrides[{pattern!r}].{key}"
                if key in ("weights", "activations"):
                    found += _check_bits(where, value)
                elif key == "scale":
                    found += check_choice(where, value, kinds)
                else:
                    found.append(f"{where}: no such field; one of weights, activations, scale")
        if isinstance(self.remedies, str):
            found += check_choice("remedies", self.remedies, ("auto",))
        for name in self.remedies if isinstance(self.remedies, tuple) else ():
            found += check_choice("remedy", name, REMEDIES)
        if not (is_whole(self.group) and 16 <= self.group <= 128):
            found.append(f"group={self.group!r}: 16 to 128 inputs")
        if self.grid == "published":
            found += self._unpublished()
        for key, value in self.temporal.items():
            if key in TEMPORAL_OPTIONS:
                found += check_temporal_option(key, value)
            else:
                found += check_choice("temporal option", key, tuple(TEMPORAL_OPTIONS))
        return found

    def _unpublished(self) -> list[str]:
        """What the published quantizers do not have."""
        fixed = Recipe(grid="auto", time_weights=FLOAT, granularity="tensor")
        names = ("time_weights", "granularity", "edges", "attention", "overrides", "temporal")
        found = [
            f"{name}={getattr(self, name)!r}: {getattr(fixed, name)!r} with grid='published'"
            for name in names
            if getattr(self, name) != getattr(fixed, name)
        ]
        if isinstance(self.remedies, tuple) and self.remedies:
            found.append(f"remedies={self.remedies!r}: none with grid='published'")
        if self.scale not in ("temporal", "static"):
            found.append(f"scale={self.scale!r}: temporal or static with grid='published'")
        for name in ("weights", "activations"):
            if getattr(self, name) == MIN_BITS:
                found.append(f"{name}={MIN_BITS}: 3 bits or more with grid='published'")
        return found

    @classmethod
    def published(cls, weights: int = 4, activations: int = 4, dynamic: bool = True) -> Recipe:
        """What TDQ's authors train: one step for each weight, the time path in float, their grids.

        For latent diffusion's UNet. ``calibrate`` then starts the scales as they do, and a trained
        model can be written in their format (``tdq.models.save_compvis``).

        Arguments:
            weights: Bits of the weights, 3 to 16, or 32 for float.
            activations: Bits of the activations, 3 to 16, or 32 for float.
            dynamic: Scales follow the timestep (TDQ); otherwise they are static (LSQ).
        """
        return cls(
            weights,
            activations,
            "temporal" if dynamic else "static",
            time_weights=FLOAT,
            granularity="tensor",
            grid="published",
        )

    def uses(self, remedy: str) -> bool:
        """Whether the recipe allows a remedy, one of REMEDIES."""
        if isinstance(self.remedies, str):
            automatic = self.scale == "auto" and self.grid != "published"
            return automatic and remedy in REMEDIES
        return remedy in self.remedies

    @property
    def time_bits(self) -> int:
        """Bits of the weights on the time path. The inputs of its layers, functions of t, lie on a
        curve, along which well-chosen codes change the outputs little: with ``"rounding"`` they
        have one bit more than other weights, at least 5, as long as that is at most 6.
        """
        if self.time_weights is not None:
            return self.time_weights
        bits = max(self.weights, 4) + 1
        return bits if self.uses("rounding") and bits <= MAX_GROUPED else WIDE_TIME

    def group_of(self, bits: int, scale: str) -> int:
        """Inputs that share a multiplier in a weight of so many bits, beside an activation scale
        of a kind; 0 if its steps have none.
        """
        grouped = self.uses("groups") and self.granularity == "channel" and bits <= MAX_GROUPED
        return self.group if grouped and scale != "nipq" else 0

    def for_layer(self, overridden: list[str], edge: bool, time_path: bool) -> LayerRecipe:
        """What a layer gets that matches the override patterns ``overridden``, in their order."""
        if time_path:
            layer = LayerRecipe(self.time_bits, FLOAT, self.scale)
        elif edge:
            layer = LayerRecipe(self.edges, self.edges, self.scale)
        else:
            layer = LayerRecipe(self.weights, self.activations, self.scale)
        # An operand that the recipe leaves in float everywhere stays so at the edges and on the
        # time path.
        if self.weights == FLOAT:
            layer = replace(layer, weights=FLOAT)
        if self.activations == FLOAT:
            layer = replace(layer, activations=FLOAT)
        for pattern in overridden:
            layer = replace(layer, **self.overrides[pattern])
        return layer

    def to_dict(self) -> dict[str, Any]:
        """A JSON-safe dictionary that ``from_dict`` reads back."""
        return asdict(self)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Recipe:
        """The recipe written by ``to_dict``.

        Raises:
            RecipeError: A key that this version does not know.
        """
        unknown = set(data) - {f.name for f in fields(cls)}
        if unknown:
            raise RecipeError(
                f"unknown fields {sorted(unknown)}",
                where="Recipe.from_dict",
                fix="update tdquant, or drop them",
            )
        return cls(**data)


def _check_bits(name: str, value: object) -> list[str]:
    if is_whole(value) and (value == FLOAT or MIN_BITS <= value <= MAX_BITS):  # type: ignore[operator]
        return []
    return [f"{name}={value!r}: bits are {MIN_BITS} to {MAX_BITS}, or {FLOAT} for float"]
