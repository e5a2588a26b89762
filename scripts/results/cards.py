"""What is known of the models that come along."""

import math

from safetensors import safe_open
from scripts.results.tables import FOLDERS, markdown, register_number, register_table


@register_number
def million_parameters(_: dict, name: str, prefix: str = "") -> float:
    """Parameters and buffers of an embedded model, or of what is below a prefix."""
    with safe_open(FOLDERS["models"] / f"{name}.safetensors", framework="numpy") as file:
        shapes = [file.get_slice(key).get_shape() for key in file.keys() if key.startswith(prefix)]  # noqa: SIM118
    return sum(math.prod(shape) for shape in shapes) * 1e-6


@register_number
def megabytes(_: dict, name: str) -> float:
    """Size of its file."""
    return (FOLDERS["models"] / f"{name}.safetensors").stat().st_size * 1e-6


@register_table
def small_models(found: dict) -> str:
    """The cards of the models that are trained here."""
    rows = []
    for name, card in found.items():
        training = card["training"]
        rows.append(
            [f"`{name}`", card["role"], card["data"]["name"], f"{card['parameters'] * 1e-6:.1f}M",
             f"{training['steps']:,}", training["batch"], f"{training['minutes']:.0f}",
             f"{training['heldout_loss']:.3f}", card["data"]["licence"]]
        )  # fmt: skip
    head = ["", "role", "data", "parameters", "steps", "batch", "minutes", "held-out loss",
            "licence of the data"]  # fmt: skip
    processors = {card["training"]["processor"] for card in found.values()}
    return f"{markdown(head, rows, slice(3, 8))}\n\nOne core of {', '.join(sorted(processors))}."
