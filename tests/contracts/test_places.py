"""A verb that writes refuses a place that cannot be written before the model runs."""

import copy

import pytest
import torch
from diffusers import DDIMScheduler

import tdquant as tdq
from tdquant.errors import StorageError
from tests.denoisers import Mixed, calls

CALLS = list(calls(3))
IMAGES = torch.zeros(4, 6, 8, 8)
SILENT = {"progress": False}
VERBS = {
    "calibrate": lambda m, p: tdq.calibrate(m, CALLS, checkpoint=p, **SILENT),
    "reconstruct": lambda m, p: tdq.reconstruct(m, CALLS, checkpoint=p, iterations=1, **SILENT),
    "train": lambda m, p: tdq.train(m, IMAGES, DDIMScheduler(), steps=1, batch=2, out=p, **SILENT),
    "export": lambda m, p: tdq.export(m, p, CALLS[0]),
    "save": tdq.save,
}


@pytest.fixture(scope="module")
def model():
    recipe = tdq.Recipe(8, 8, scale="static", remedies=())
    return tdq.calibrate(tdq.quantize(Mixed().eval(), recipe), CALLS, **SILENT)


@pytest.mark.parametrize("name", ["mine/below.xml", "/proc/nothing/a.xml", "a\0b.xml"])
@pytest.mark.parametrize("verb", VERBS)
def test_a_place_that_cannot_be_written_is_refused_first(verb, name, model, tmp_path):
    model = tdq.freeze(model) if verb in ("export", "save") else copy.deepcopy(model)
    (tmp_path / "mine").write_text("mine")
    ran = []
    model.register_forward_pre_hook(lambda *_: ran.append(1))
    with pytest.raises(StorageError):
        VERBS[verb](model, tmp_path / name)
    assert not ran
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]


def test_calibrate_replaces_no_file_of_the_user(model, tmp_path):
    file = tmp_path / "weights.safetensors"
    file.write_text("mine")
    with pytest.raises(StorageError, match="something else already"):
        VERBS["calibrate"](copy.deepcopy(model), file)
    with pytest.raises(StorageError, match="a folder is there"):
        VERBS["calibrate"](copy.deepcopy(model), tmp_path)
    assert file.read_text() == "mine"
