"""The model card of a quantized model: its layers, how to load it, its history."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

from tdquant.files.looking import exists, matching
from tdquant.files.writing import replacing
from tdquant.integrations.diffusers.config import METHOD
from tdquant.integrations.diffusers.saving import check_saving
from tdquant.integrations.importing import wrap_method
from tdquant.numerics.grid import Grid
from tdquant.storage.description import Description, activations

CARD = "README.md"
OURS = "<!-- tdquant writes this card anew with every save. Without this line it is yours. -->"
GENERATED = "This model card has been automatically generated"
"""What diffusers writes into the card of a model that has none, before it is uploaded."""


def write_card(directory: str | Path, model: Any) -> Path:
    """Writes the model card of a frozen diffusers model into the folder it was saved to.

    A card that somebody wrote is left alone.

    Arguments:
        directory: The folder.
        model: The model; its ``hf_quantizer`` is tdquant's.
    """
    file = Path(directory) / CARD
    before = file.read_text(errors="replace") if exists(file) else OURS
    if OURS not in before and GENERATED not in before:
        return file
    size = sum(f.stat().st_size for f in matching(file.parent, "*.safetensors"))
    with replacing(file) as fresh:
        fresh.write_text(card(type(model).__name__, model.hf_quantizer.quantization_config, size))
    return file


def card(name: str, config: Any, size: int) -> str:
    """The text of a model card.

    Arguments:
        name: Class of the model.
        config: Its TDQConfig, with a description.
        size: Bytes of its tensors on disk.
    """
    found: Description = config.description
    lines = [
        "---",
        "library_name: diffusers",
        "tags: [tdquant, quantized, post-training-quantization]",
        "---",
        OURS,
        "",
        f"# {name}, quantized by tdquant",
        "",
        "Activation scales that follow the diffusion timestep, as tables "
        "([TDQ, NeurIPS 2023](https://arxiv.org/abs/2306.02316)).",
        "",
        "```python",
        "import tdquant  # pip install tdquant[pipelines]",
        f"from diffusers import {name}",
        "",
        f'model = {name}.from_pretrained("this folder")',
        "```",
        "",
        "| | layers |",
        "| --- | --- |",
        *(f"| {what} | {count} |" for what, count in _counts(found).items()),
        "",
        f"Tensors on disk: {size / 1e6:.1f} MB. Timestep argument: `{found['timestep']}`"
        + _coverage(found["coverage"])
        + ".",
        "",
    ]
    for step in found.get("history", ()):
        facts = {k: v for k, v in step.items() if k != "step"}
        lines += [f"## {step['step'].capitalize()}", ""]
        lines += [f"- {key.replace('_', ' ')}: {_shown(value)}" for key, value in facts.items()]
        lines.append("")
    recipe = json.dumps(found["recipe"], indent=1)
    lines += ["<details><summary>Recipe</summary>", "", "```json", recipe, "```", "</details>", ""]
    return "\n".join(lines)


def _counts(found: Description) -> dict[str, int]:
    """Row of the table -> number of layers with such bits and scales."""
    weights = Counter(
        f"weights {spec['weight']['bits']} bits" if "weight" in spec else "weights float"
        for spec in found["layers"].values()
    )
    inputs: Counter[str] = Counter()
    for _, spec in activations(found):
        scale = "input-dynamic"
        if "knots" in spec:
            scale = "static" if spec["knots"] == 1 else f"temporal, a table of {spec['knots']}"
        codes = Grid(spec["bits"], spec["qmin"], spec["qmax"], spec["zero_point"]).codes
        inputs[f"activations {spec['bits']} bits ({codes} codes), {scale}"] += 1
    return dict(sorted(weights.items()) + sorted(inputs.items()))


def _coverage(coverage: Any) -> str:
    return f", tables from {coverage[0]:g} to {coverage[1]:g}" if coverage else ""


def _shown(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{k} {_shown(v)}" for k, v in value.items())
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def give_cards() -> None:
    """Has ``save_pretrained`` and ``push_to_hub`` of diffusers write the cards of tdquant's models
    too.
    """
    from diffusers.models.modeling_utils import ModelMixin

    def save_pretrained(
        save: Any, self: Any, save_directory: Any, *args: Any, **kwargs: Any
    ) -> None:
        if getattr(self, "quantization_method", None) is METHOD:
            check_saving(self)
        save(self, save_directory, *args, **kwargs)
        # Of several processes, is_main_process of save_pretrained says which one writes.
        writes = args[0] if args else kwargs.get("is_main_process", True)
        if getattr(self, "quantization_method", None) is METHOD and writes:
            write_card(save_directory, self)

    def upload_folder(upload: Any, self: Any, working_dir: Any, *args: Any, **kwargs: Any) -> Any:
        # By now diffusers has put the card of the Hub, or one of its own, over that of the save.
        if getattr(self, "quantization_method", None) is METHOD:
            write_card(working_dir, self)
        return upload(self, working_dir, *args, **kwargs)

    wrap_method(ModelMixin, "save_pretrained", save_pretrained)
    wrap_method(ModelMixin, "_upload_folder", upload_folder)
