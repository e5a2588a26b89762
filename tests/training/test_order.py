from itertools import islice

import pytest
import torch
from torch.utils.data import Dataset

from tdquant.errors import DataError
from tdquant.training.order import BatchOrder, loader


class Numbers(Dataset):
    """Item i is the number i, and what its process drew at random."""

    def __init__(self, count, draws=False):
        self.count, self.draws = count, draws

    def __len__(self):
        return self.count

    def __getitem__(self, index):
        return torch.rand(()) if self.draws else torch.tensor(float(index))


def steps(count=10, batch=4, take=12, **options):
    return list(islice(BatchOrder(count, batch, **options), take))


@pytest.mark.parametrize(("count", "batch"), [(10, 4), (12, 4), (7, 7), (5, 1), (9, 8)])
def test_every_epoch_holds_every_image_once(count, batch):
    flat = [i for indices in steps(count, batch, take=5 * count) for i in indices]
    for epoch in range(5):
        part = flat[epoch * count : (epoch + 1) * count]
        assert sorted(part) == list(range(count))
        assert part == BatchOrder(count, batch).permutation(epoch).tolist()
    assert flat[:count] != flat[count : 2 * count]


@pytest.mark.parametrize("start", [1, 2, 3, 5, 11])
def test_resuming_goes_on_as_if_nothing_happened(start):
    assert steps(start=start, take=9) == steps(take=start + 9)[start:]


@pytest.mark.parametrize("world", [1, 2, 4])
def test_processes_share_out_the_same_order(world):
    shares = [steps(count=10, batch=4, rank=r, world=world, start=3) for r in range(world)]
    joined = [[i for share in step for i in share] for step in zip(*shares, strict=True)]
    assert joined == steps(count=10, batch=4, start=3)


def test_the_seed_decides():
    assert steps(seed=1) == steps(seed=1)
    assert steps(seed=1) != steps(seed=2)


def test_iterating_again_begins_again():
    order = BatchOrder(10, 4, start=2)
    assert list(islice(order, 3)) == list(islice(order, 3))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"count": 3, "batch": 4}, "fewer than a batch"),
        ({"count": 0, "batch": 1}, "fewer than a batch"),
        ({"count": 3, "batch": 0}, "at least 1"),
        ({"count": 8, "batch": 4, "world": 3}, "not divisible"),
        ({"count": 8, "batch": 4, "world": 2, "rank": 2}, "rank is 0 to"),
        ({"count": 8, "batch": 4, "world": 0}, "rank is 0 to"),
        ({"count": 8, "batch": 4, "start": -1}, "0 or more"),
        ({"count": 8, "batch": 4, "seed": -1}, "0 or more"),
    ],
)
def test_numbers_out_of_range(options, message):
    with pytest.raises(DataError, match=message):
        BatchOrder(**options)


def test_all_mistakes_are_listed():
    with pytest.raises(DataError, match=r"fewer than a batch.*start=-1.*not divisible"):
        BatchOrder(3, 5, start=-1, world=2)


@pytest.mark.parametrize("workers", [0, 2])
def test_loader_follows_the_order(workers):
    batches = list(islice(loader(Numbers(10), 4, seed=3, start=2, workers=workers), 5))
    assert [b.int().tolist() for b in batches] == steps(seed=3, start=2, take=5)


def test_workers_draw_the_same_in_every_run_and_not_in_every_process():
    def draws(**options):
        numbers = Numbers(8, draws=True)
        return torch.stack(list(islice(loader(numbers, 4, workers=1, **options), 3)))

    assert torch.equal(draws(seed=1), draws(seed=1))
    assert not torch.equal(draws(seed=1), draws(seed=2))
    share = [draws(seed=1, world=2, rank=r) for r in range(2)]
    assert not torch.equal(*share)


def test_a_loader_over_too_few_images():
    with pytest.raises(DataError, match="fewer than a batch"):
        loader(Numbers(3), 4)
    with pytest.raises(DataError, match="workers=-1"):
        loader(Numbers(3), 1, workers=-1)
