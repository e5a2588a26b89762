import threading

from torch import nn

from tdquant.models.build import without_parameters


def test_other_threads_build_real_parameters_meanwhile():
    made = []
    other = threading.Thread(target=lambda: made.append(nn.Linear(2, 2)))
    with without_parameters():
        own = nn.Linear(2, 2)
        other.start()
        other.join()
    assert own.weight.is_meta
    assert not made[0].weight.is_meta
