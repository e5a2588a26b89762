"""The clock: the one object that knows the current timestep of one denoiser."""

from tdquant.clock.clock import Clock, clock_of, is_quantized, remove_clock
from tdquant.clock.moment import Moment, identity
from tdquant.clock.timestep import TIMESTEP_NAMES, find_timestep, outside_message, time_tensor

__all__ = [
    "TIMESTEP_NAMES",
    "Clock",
    "Moment",
    "clock_of",
    "find_timestep",
    "identity",
    "is_quantized",
    "outside_message",
    "remove_clock",
    "time_tensor",
]
