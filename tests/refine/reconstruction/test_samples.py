import torch

from tdquant.refine.reconstruction.samples import Batches, Samples


def record(i, rows=3):
    return {"a": torch.full((rows, 2), float(i)), ".0.1": torch.arange(rows) + 10 * i}


def test_rows_come_back_from_memory_and_disk():
    with Samples(budget=100) as samples:
        for i in range(4):
            samples.put(i, record(i))
        assert 0 < samples.spilled < len(samples) == 4
        batch = samples.take([(3, 0), (0, 2), (3, 1)])
        assert batch["a"][:, 0].tolist() == [3, 0, 3]
        assert batch[".0.1"].tolist() == [30, 2, 31]


def test_files_go_when_it_is_closed():
    samples = Samples(budget=0)
    samples.put(0, record(0))
    path = samples._records[0]
    assert path.exists()
    samples.close()
    assert not path.parent.exists()


def test_shares_of_processes_make_up_the_batch():
    sizes = [3, 2, 3, 1]

    def drawn(rank, world):
        samples = Samples(10**6)
        for i, size in enumerate(sizes):
            if i % world == rank:
                samples.put(i, record(i, size))
        return Batches(samples, samples, sizes, 6, seed=4, rank=rank, world=world)

    one, two = drawn(0, 1), [drawn(rank, 2) for rank in range(2)]
    for iteration in range(5):
        whole, _, share = one.draw(iteration)
        assert share == 1
        parts = [p for p in (b.draw(iteration) for b in two) if p is not None]
        assert sum(share for _, _, share in parts) == 1
        rows = torch.cat([inputs[".0.1"] for inputs, _, _ in parts])
        assert sorted(rows.tolist()) == sorted(whole[".0.1"].tolist())
    assert sum(len(i["a"]) for i, _ in one.all()) == sum(sizes)
    assert sum(len(i["a"]) for b in two for i, _ in b.all()) == sum(sizes)


def test_a_process_may_have_no_row_of_a_batch():
    samples = Samples(10**6)
    batches = Batches(samples, samples, [3], 2, rank=1, world=2)
    assert batches.draw(0) is None
    assert list(batches.all()) == []
