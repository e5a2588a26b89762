"""Settles the roles of a quantized model's layers by the first call that it is calibrated with."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import replace
from itertools import islice

from torch import nn

from tdquant.calls.call import Call
from tdquant.calls.observing import observing
from tdquant.clock import clock_of, find_timestep
from tdquant.errors import CalibrationError
from tdquant.families.roles import Roles, named_roles
from tdquant.flow.roles import roles_of
from tdquant.flow.trace import trace
from tdquant.layers.base import INPUT
from tdquant.quantization import change_roles, leave_float
from tdquant.quantizers import activation_quantizers
from tdquant.state import state_of
from tdquant.support.hooks import without_user_hooks

_log = logging.getLogger(__name__)


def settle_roles(model: nn.Module, batches: Iterator[Call]) -> list[Call]:
    """Follows the data flow of the first call, unless that was done before, and changes the
    quantized layers where it gives them other roles than their names.

    Arguments:
        model: A quantized model.
        batches: Its calls.

    Returns:
        The call that was taken from them, or nothing.

    Raises:
        CalibrationError: A layer takes NaN or infinite numbers in it.
    """
    if state_of(model).roles is not None:
        return []
    quantizers = dict(activation_quantizers(model))
    with observing(model, quantizers):
        taken = list(islice(batches, 1))
        if not taken:
            return []
        others = [name for name in quantizers if not name.endswith(INPUT)]
        clock = clock_of(model)
        last = clock.last
        try:
            with without_user_hooks(model):
                flows = trace(model, taken[0], find_timestep(model, clock.argument), others)
            roles = roles_of(model, flows)
        except CalibrationError:
            raise
        except Exception as error:  # whatever a model may raise for a call that nobody made
            _log.debug("data flow of %s", type(model).__name__, exc_info=True)
            why = f"its data flow could not be followed ({type(error).__name__}: {error})"
            roles = replace(named_roles(model), why=why.splitlines()[0])
        finally:
            clock.last = last
    apply_roles(model, roles)
    return taken


def apply_roles(model: nn.Module, roles: Roles) -> None:
    """Gives the layers of a quantized model these roles, and its quantizers their batch axes."""
    change_roles(model, roles)
    for name, quantizer in list(activation_quantizers(model)):
        if name in roles.left_out:
            leave_float(model, name)
        quantizer.batch = roles.batch.get(name.removesuffix(INPUT))
