"""``TDQQuantizer``: how diffusers loads and saves tdquant's models.

A saved model loads into a skeleton of frozen layers, whose weights stay codes and whose scales
stay float32 whatever ``torch_dtype`` is. A float checkpoint is quantized after loading, or with
``frozen_weights`` weight by weight while it loads; its activation scales need ``tdq.calibrate``.
"""

from __future__ import annotations

from typing import Any

import torch
from diffusers.quantizers.base import DiffusersQuantizer
from torch import Tensor

from tdquant.clock import clock_of
from tdquant.errors import FreezeError, StorageError
from tdquant.freezing import is_frozen
from tdquant.integrations.diffusers.adapters import check_fusing
from tdquant.integrations.diffusers.config import TDQConfig, put_config
from tdquant.layers import QuantLayer
from tdquant.quantization import quantize
from tdquant.storage.description import describe
from tdquant.storage.incremental import awaiting, code_weight, complete, quantize_empty
from tdquant.storage.rebuilding import (
    build_skeleton,
    finalize_weights,
    state_names,
    unpack_tensors,
)
from tdquant.storage.stored import pack_tensors
from tdquant.support.memory import page_out

_ZERO_POINT = ".zero_point"
_STEP, _MULTIPLIERS = ".weight_quantizer.step", ".weight_quantizer.multipliers"
_FLOAT32 = (".scale.table", ".scale.knots", ".bias.table", ".bias.knots", _STEP)


class TDQQuantizer(DiffusersQuantizer):
    """Quantizer of one model.

    Arguments:
        quantization_config: A TDQConfig.
        pre_quantized: Whether the checkpoint holds codes and tables, and not float weights.
    """

    required_packages = ("accelerate",)  # type: ignore[assignment]
    quantization_config: TDQConfig

    def __init__(self, quantization_config: TDQConfig, **kwargs: Any) -> None:
        super().__init__(quantization_config, **kwargs)
        self._dtype: torch.dtype | None = None
        self._names: set[str] = set()
        self._awaiting: dict[str, QuantLayer] = {}

    @property
    def _description(self) -> dict[str, Any]:
        found = self.quantization_config.description
        if found is None:
            raise StorageError(
                "the saved configuration does not say what the layers are",
                where="config.json: quantization_config.description",
                fix="save the model again: tdq.freeze(model).save_pretrained(folder)",
            )
        return found

    def update_torch_dtype(self, torch_dtype: Any) -> Any:
        self._dtype = torch_dtype
        return torch_dtype

    # Loading

    def maybe_update_loaded_keys(self, loaded_keys: list[str], checkpoint_files: Any) -> list[str]:
        if not self.pre_quantized:
            return loaded_keys
        self._names = set(state_names(loaded_keys, self._description))
        return sorted(self._names)

    def maybe_update_state_dict(self, state_dict: dict[str, Tensor]) -> dict[str, Tensor]:
        if not self.pre_quantized:
            return state_dict
        return unpack_tensors(state_dict.items(), self._description)

    def _process_model_before_weight_loading(self, model: Any, **kwargs: Any) -> None:
        config = self.quantization_config
        if self.pre_quantized:
            build_skeleton(model, self._description, self._dtype)
        elif config.frozen_weights:
            quantize_empty(model, config.recipe, timestep=config.timestep)
            self._awaiting = awaiting(model)
        put_config(model, self.quantization_config)

    def update_missing_keys(self, model: Any, missing_keys: list[str], prefix: str) -> list[str]:
        # Zero points are part of the description.
        missing = [key for key in missing_keys if not key.endswith(_ZERO_POINT)]
        if not self.pre_quantized:
            return [key for key in missing if not key.endswith((_STEP, _MULTIPLIERS))]
        odd = [f"missing {key}" for key in sorted(missing)]
        odd += [f"unexpected {key}" for key in sorted(self._names - set(model.state_dict()))]
        if odd:
            raise StorageError(
                f"config.json and the tensors disagree on {len(odd)} names: {', '.join(odd[:4])}",
                where=type(model).__name__,
                why="the files are not of one save",
                fix="save the model again, config.json and safetensors together",
            )
        return missing

    def check_if_quantized_param(
        self, model: Any, param_value: Tensor, param_name: str, state_dict: Any, **kwargs: Any
    ) -> bool:
        if self.pre_quantized:
            return param_name.endswith(_FLOAT32)
        return self.quantization_config.frozen_weights

    def create_quantized_param(  # type: ignore[override]
        self,
        model: Any,
        param_value: Tensor,
        param_name: str,
        target_device: Any,
        state_dict: dict[str, Tensor],
        *args: Any,
        **kwargs: Any,
    ) -> None:
        value = state_dict[param_name]
        if param_name in self._awaiting:
            # diffusers has cast param_value to the type of codes.
            layer, path = self._awaiting[param_name], param_name.removesuffix(".weight")
            code_weight(layer, value.to(target_device), path)
            page_out(value)
            return
        # Only quantized models need accelerate.
        from accelerate.utils import (  # type: ignore[import-untyped]
            set_module_tensor_to_device,
        )

        dtype = torch.float32  # a scale, of which param_value has been cast to the model's type
        if not self.pre_quantized:  # a copy, lest a bias keep a whole file mapped
            value, dtype = param_value.clone(), param_value.dtype
        set_module_tensor_to_device(model, param_name, target_device, value=value, dtype=dtype)

    def check_quantized_param_shape(
        self, param_name: str, current_param: Tensor, loaded_param: Tensor
    ) -> bool:
        if current_param.shape != loaded_param.shape:
            raise StorageError(
                f"shape {tuple(loaded_param.shape)} where {tuple(current_param.shape)} is due",
                where=param_name,
                fix="save the model again, config.json and safetensors together",
            )
        return True

    def _process_model_after_weight_loading(self, model: Any, **kwargs: Any) -> Any:
        check_fusing(model)
        config = self.quantization_config
        if self.pre_quantized:
            return finalize_weights(model, config.compact)
        if config.frozen_weights:
            complete(model)
            if is_frozen(model):  # no activation waits for calibration
                self.quantization_config = TDQConfig(
                    config.recipe,
                    timestep=clock_of(model).argument,
                    compact=config.compact,
                    description=describe(model),
                )
                put_config(model, self.quantization_config)
            return model
        quantize(model, config.recipe, timestep=config.timestep)
        return model

    # Saving

    @property
    def is_serializable(self) -> bool:
        """True.

        Raises:
            FreezeError: The model is not frozen.
        """
        if self.quantization_config.description is None:
            raise FreezeError(
                "only a frozen model can be saved",
                where="save_pretrained",
                why="until then its scales can still learn",
                fix="tdq.calibrate if that is not done; pipe.unet = tdq.freeze(pipe.unet); save",
            )
        return True

    @property
    def is_trainable(self) -> bool:
        """Whether scales and weights can learn: the model is not frozen."""
        return self.quantization_config.description is None

    def get_state_dict_and_metadata(
        self, state_dict: dict[str, Tensor], safe_serialization: bool = False
    ) -> tuple[dict[str, Tensor], dict[str, Any]]:
        try:
            return pack_tensors(state_dict, self._description), {}
        except KeyError as error:
            raise StorageError(
                f"the model has no tensor {error}",
                where="save_pretrained",
                why="it was compiled, or changed after freezing",
                fix="save the frozen model, and compile what is loaded",
            ) from error
