"""Every exporter through one contract: the file, in a session, computes what the frozen model
does.
"""

import pytest
import torch
from torch import nn

import tdquant as tdq
from tdquant.lowering import EXPORTERS
from tests.contracts.test_backends import SETTINGS, frozen_by
from tests.rewritten import CASES as REWRITES
from tests.rewritten import FEW, inputs, rewritten

QUICK = {".xml": ("W4A4 corrected", "W8A8 dynamic by row"), ".onnx": ("W4A4 corrected",)}
"""What is not left to the slow tests; the backend of OpenVINO goes through all settings, too."""

CASES = [
    pytest.param(suffix, name, marks=[] if name in QUICK[suffix] else pytest.mark.slow)
    for suffix in EXPORTERS
    for name in SETTINGS
]


@pytest.mark.parametrize(("suffix", "setting"), CASES)
def test_equals_the_frozen_model(suffix, setting, x, tmp_path):
    frozen = frozen_by(setting)
    before = {k: v.clone() for k, v in frozen.state_dict().items()}
    file = tdq.export(frozen, tmp_path / f"model{suffix}", (x, torch.tensor(7)))
    session = tdq.open_session(file)
    with torch.no_grad():
        for t in (0, 500, 999, torch.tensor([0, 431, 999]), torch.tensor(10.5), 4000):
            t = torch.as_tensor(t)
            y = frozen(x, t)
            # As for backends: a value on the other side of a rounding boundary is rare.
            error = (session(x, t) - y).abs()
            assert error.median() <= 1e-6 * y.abs().max()
            assert error.mean() <= 1e-3 * y.abs().max()
    # Another batch and another size than those of the example.
    wide = torch.randn(1, 6, 12, 16, generator=torch.Generator().manual_seed(1))
    y = frozen(wide, 3)
    assert (session(wide, 3) - y).abs().median() <= 1e-6 * y.abs().max()
    assert all(torch.equal(before[k], v) for k, v in frozen.state_dict().items())
    assert {p.name for p in tmp_path.iterdir()} <= {"model.onnx", "model.xml", "model.bin"}
    assert [row.path for row in tdq.summary(session)] == [r.path for r in tdq.summary(frozen)]


REWRITTEN = [
    pytest.param(s, case, marks=[] if s == ".xml" and case in FEW else pytest.mark.slow)
    for s in EXPORTERS
    for case in REWRITES
]


@pytest.mark.parametrize(("suffix", "case"), REWRITTEN)
def test_rewritten_layers(suffix, case, tmp_path):
    frozen, (x,) = tdq.freeze(rewritten(case)), inputs(case, seed=1)
    file = tdq.export(frozen, tmp_path / f"model{suffix}", (x, torch.tensor(7)))
    session = tdq.open_session(file)
    with torch.no_grad():
        for t in (torch.tensor(3), torch.tensor([0, 431, 999])):
            y = frozen(x, t)
            error = (session(x, t) - y).abs() / y.abs().max()
            assert error.median() <= 1e-6
            # Sums of a rotation are rounded in another order, and a value may fall elsewhere.
            assert error.max() <= (1e-3 if "rotation" in case else 1e-6)


class ReadsBatch(nn.Module):
    """A denoiser that reads its batch in Python, in every way that a trace takes for a number."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.time, self.layer = nn.Linear(4, 12), nn.Linear(12, 12)
        self.label = nn.Embedding(1, 12)

    def forward(self, x, timestep):
        t = timestep.expand(len(x)).reshape(int(x.shape[0]), 1) / 1000
        time = self.time(t * torch.ones(len(x), 4))
        h = self.layer(x.reshape(len(x) * 2, -1)).reshape(len(x), 2, -1)
        label = self.label(torch.zeros(len(x), dtype=torch.long)).unsqueeze(1)
        return h + time.unsqueeze(1).expand(-1, 2, 12) - torch.full((len(x), 1, 1), 0.5) + label


@pytest.mark.parametrize("suffix", EXPORTERS)
def test_a_model_that_reads_its_batch_in_python_runs_at_any(suffix, tmp_path):
    model = tdq.quantize(ReadsBatch().eval(), tdq.Recipe(8, 8, scale="static"))
    calls = [(torch.randn(4, 2, 12), torch.tensor(t)) for t in (10, 500, 990)]
    frozen = tdq.freeze(tdq.calibrate(model, calls, progress=False))
    session = tdq.open_session(tdq.export(frozen, tmp_path / f"model{suffix}", calls[0]))
    for batch in (1, 2, 7):
        x, t = torch.randn(batch, 2, 12), torch.full((batch,), 300)
        with torch.no_grad():
            y = frozen(x, t)
        assert (session(x, t) - y).abs().median() <= 1e-6 * y.abs().max()


class ReadsSizes(ReadsBatch):
    """One that takes a number for each sample in a list, and so no other batch once traced."""

    def forward(self, x, timestep, sizes):
        h = super().forward(x, timestep)
        return torch.stack([h[i] * sizes[i] for i in range(len(x))])


@pytest.mark.parametrize("suffix", EXPORTERS)
def test_lists_of_as_many_numbers_as_samples_keep_the_batch(suffix, tmp_path):
    model = tdq.quantize(ReadsSizes().eval(), tdq.Recipe(8, 8, scale="static"))
    given = [
        {"x": torch.randn(2, 2, 12), "timestep": torch.full((2,), t), "sizes": [1.0, 3.0]}
        for t in (10, 500, 990)
    ]
    frozen = tdq.freeze(tdq.calibrate(model, given, progress=False))
    session = tdq.open_session(tdq.export(frozen, tmp_path / f"model{suffix}", given[0]))
    for call in given:
        with torch.no_grad():
            y = frozen(**call)
        assert (session(**call) - y).abs().median() <= 1e-6 * y.abs().max()
    other = {"x": torch.randn(3, 2, 12), "timestep": torch.full((3,), 10), "sizes": [1.0, 3.0]}
    with pytest.raises(tdq.TDQError):
        session(**other)
