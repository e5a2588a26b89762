"""``TDQConfig``: the ``quantization_config`` of diffusers, kept in config.json."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from enum import Enum
from typing import Any

from diffusers.quantizers.quantization_config import QuantizationConfigMixin

from tdquant.errors import RecipeError, StorageError
from tdquant.files.documents import check_version
from tdquant.recipe import Recipe
from tdquant.storage.description import Description
from tdquant.storage.files import VERSION


class _Method(str, Enum):
    """diffusers reads ``.value`` of it, and looks it up among strings."""

    TDQUANT = "tdquant"


METHOD = _Method.TDQUANT


class TDQConfig(QuantizationConfigMixin):
    """How to quantize a diffusers model with tdquant, or how a saved one was.

    Arguments:
        recipe: A Recipe, or its dictionary.
        timestep: Name of the timestep argument of the model's forward, if it is unusual.
        compact: Hold loaded weights as codes, a quarter of the memory of float32, and form numbers
            at every use. If False they are formed once, at loading.
        frozen_weights: Turn each weight of a float checkpoint into codes as it is read, in the
            memory of the codes and one float weight. These weights cannot be trained or
            reconstructed; activation scales need ``tdq.calibrate``.
        description: What every layer of a saved model is; written by ``save_pretrained``.
        version: Version of the saved format.
        quant_method: ``"tdquant"``; diffusers passes it.
        **fields: Fields of Recipe, in the place of one: ``TDQConfig(weights=4, activations=8)``.

    Raises:
        RecipeError: Both a recipe and fields of one, or mistakes in them.
        StorageError: The folder was saved by a newer tdquant.
    """

    def __init__(
        self,
        recipe: Recipe | Mapping[str, Any] | None = None,
        *,
        timestep: str | None = None,
        compact: bool = True,
        frozen_weights: bool = False,
        description: Description | None = None,
        version: int = VERSION,
        quant_method: str = METHOD.value,
        **fields: Any,
    ) -> None:
        check_version(version, VERSION, "quantization_config")
        if quant_method != METHOD.value:
            raise StorageError(f"a model quantized by {quant_method!r}", where="TDQConfig")
        if recipe is not None and fields:
            raise RecipeError(
                f"a recipe and fields of one, {sorted(fields)}",
                where="TDQConfig",
                fix="TDQConfig(recipe) or TDQConfig(weights=4, ...)",
            )
        if recipe is None:
            recipe = fields
        self.recipe = recipe if isinstance(recipe, Recipe) else Recipe.from_dict(recipe)
        self.quant_method = METHOD  # type: ignore[assignment]
        self.timestep, self.compact, self.frozen_weights = timestep, compact, frozen_weights
        self.description = None
        if description is not None:
            known = {"recipe": self.recipe.to_dict(), "timestep": timestep}
            self.description = {**description, **known}
        self.version = version

    def to_dict(self) -> dict[str, Any]:
        """A JSON-safe dictionary that ``from_dict`` reads back."""
        # It means nothing for a saved model, and older readers do not know it.
        asked = {"frozen_weights": True} if self.frozen_weights and not self.description else {}
        return {
            "quant_method": self.quant_method.value,
            "version": self.version,
            "recipe": self.recipe.to_dict(),
            "timestep": self.timestep,
            "compact": self.compact,
            "description": self.description
            and {k: v for k, v in self.description.items() if k not in ("recipe", "timestep")},
            **asked,
        }

    def to_diff_dict(self) -> dict[str, Any]:
        """The same."""
        return self.to_dict()

    def __iter__(self) -> Any:
        yield from self.to_dict().items()


def put_config(model: Any, config: TDQConfig) -> None:
    """Enters the configuration into that of a diffusers model. What was set as an attribute alone
    stays: diffusers would build the dictionary anew from its items, and ``load_ip_adapter`` sets
    ``encoder_hid_dim_type`` so.
    """
    items = {k: v for k, v in model.config.items() if k != "quantization_config"}
    attributes = vars(model.config)
    own = {k: attributes[k] for k, v in items.items() if attributes.get(k, v) != v}
    model.register_to_config(quantization_config=config)
    vars(model.config).update(own)


@contextlib.contextmanager
def config_unchanged_on_error(model: Any) -> Iterator[None]:
    """Restores what was set as an attribute of a model's configuration if the context ends by an
    error.
    """
    attributes = vars(model.config)
    before = dict(attributes)
    try:
        yield
    except BaseException:
        attributes.clear()
        attributes.update(before)
        raise
