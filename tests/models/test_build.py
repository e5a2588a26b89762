import threading

import pytest
from torch import nn

from tdquant.errors import ModelError
from tdquant.models import load_embedded
from tdquant.models.build import description, from_description, without_parameters


def test_other_threads_build_real_parameters_meanwhile():
    made = []
    other = threading.Thread(target=lambda: made.append(nn.Linear(2, 2)))
    with without_parameters():
        own = nn.Linear(2, 2)
        other.start()
        other.join()
    assert own.weight.is_meta
    assert not made[0].weight.is_meta


@pytest.mark.parametrize("change", [{"sample_size": []}, {"down_block_types": [["x"]]}, {"x": {}}])
def test_a_damaged_configuration_is_named(change):
    spec = description(load_embedded("tiny").unet)
    config = spec["config"] | {"unet": spec["config"]["unet"] | change}
    with pytest.raises(ModelError, match="cannot be built from its configuration"):
        from_description(spec | {"config": config | change})
