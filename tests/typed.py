"""What a type checker sees of the verbs, checked by ``make lint`` and never run: each gives the
class of model that it was given.
"""

from collections.abc import Iterable
from typing import Any

from torch import Tensor, nn

import tdquant as tdq


class Net(nn.Module):
    width: int = 4

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        return x


def uses(calls: Iterable[tuple[Tensor, Tensor]], data: Any, scheduler: Any) -> list[int]:
    recipe = tdq.Recipe(8, 8)
    balanced = tdq.balance(Net(), calls)
    model = tdq.calibrate(tdq.quantize(balanced, recipe), calls)
    trained = tdq.train(tdq.reconstruct(model, calls), data, scheduler)
    frozen = tdq.correct(tdq.freeze(trained), Net(), calls)
    loaded = tdq.load("folder", model=Net())
    return [balanced.width, model.width, trained.width, frozen.width, loaded.width]
