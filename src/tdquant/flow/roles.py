"""Roles of layers by their data flow: the time path, and the first and last layers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from torch import nn

from tdquant.families.roles import Roles, named_roles, quantizable_layers
from tdquant.flow.trace import LayerFlow


def roles_of(model: nn.Module, flows: Mapping[str, LayerFlow]) -> Roles:
    """The roles of all quantizable layers: of those that a traced call reached by its data flow,
    of others by name.
    """
    by_name, layers = named_roles(model), set(quantizable_layers(model))
    firsts = {path for path, f in flows.items() if f.first}
    lasts = {path for path, f in flows.items() if f.last}
    unknown = layers - set(flows)
    found = Roles(
        # No layer at an edge: sources were lost on the way, as in kernels outside of torch.
        frozenset(firsts & layers if firsts else by_name.first),
        frozenset(lasts & layers if lasts else by_name.last),
        frozenset(time_path(flows) & layers | by_name.time_path & unknown),
        batch={path: f.batch for path, f in flows.items()},
        constant=frozenset(path for path, f in flows.items() if f.constant),
    )
    changed = {
        path: f"{found.role(path)}, not {by_name.role(path)}"
        for path in sorted(layers - unknown)
        if found.role(path) != by_name.role(path)
    }
    return replace(found, changed=changed)


def time_path(flows: Mapping[str, LayerFlow]) -> set[str]:
    """Layers that take one vector for each time, which the sample does not change, or always the
    same vector; and layers that feed nothing but these: embeddings of a class, a size or a pooled
    text that are added.
    """
    found = {
        path for path, f in flows.items() if f.vector and (f.constant or (f.time and not f.sample))
    }
    waiting = {path for path, f in flows.items() if not f.sample and not f.time and f.feeds}
    while more := {path for path in waiting if flows[path].feeds <= found}:
        found |= more
        waiting -= more
    return found
