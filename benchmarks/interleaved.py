"""Times of functions that a noisy machine disturbs alike."""

import random
import statistics
import time

import torch


def interleaved(functions, rounds):
    """Median seconds of each function. Every round has an order of its own: what one leaves in the
    caches, or threads of its library that still wait for work, meets all alike.
    """
    times = {name: [] for name in functions}
    order, shuffled = list(functions.items()), random.Random(0)
    with torch.no_grad():
        for _ in range(rounds + 2):
            shuffled.shuffle(order)
            for name, function in order:
                started = time.perf_counter()
                function()
                times[name].append(time.perf_counter() - started)
    return {name: statistics.median(t[2:]) for name, t in times.items()}
