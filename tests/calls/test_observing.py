import torch
from torch import nn

from tdquant.calls.observing import watching


class Twice(nn.Module):
    def __init__(self):
        super().__init__()
        self.a = nn.Linear(2, 2)

    def forward(self, x):
        return self.a(input=self.a(x))


def test_layers_are_watched_by_position_and_keyword_and_their_outputs_replaced():
    model, x, seen = Twice(), torch.ones(1, 2), []

    def see(path, layer, given, y):
        seen.append((path, layer, given, y))
        return torch.full_like(y, len(seen))

    with watching({"a": model.a}, see):
        y = model(x)
    assert [path for path, *_ in seen] == ["a", "a"]
    assert seen[0][1] is model.a
    assert torch.equal(seen[0][2], x)
    assert seen[1][2].tolist() == [[1, 1]]
    assert y.tolist() == [[2, 2]]
    model(x)
    assert len(seen) == 2  # no hook stays
