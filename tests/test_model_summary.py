"""The layer table, and how a backend tells in it what it made of a model."""

import torch
from torch import nn

import tdquant as tdq
from tdquant.model_summary import layer_row
from tdquant.quantizers import activation_quantizers
from tdquant.scales.bank import bank_tables
from tests.conftest import quantized


class Lowered(nn.Module):
    """Stands for a layer, and holds a float one inside."""

    def __init__(self, rows):
        super().__init__()
        self.rows, self.inner = rows, nn.Linear(2, 2)


def test_a_frozen_model_shows_no_kernels(frozen):
    table = tdq.summary(frozen)
    assert not any(row.kernel for row in table)
    assert "kernel" not in str(table)


def test_a_backend_tells_by_rows(frozen):
    before = tdq.summary(frozen)
    row = layer_row("reflect", frozen.reflect)
    frozen.reflect = Lowered([row.on("int8", "because")])
    table = tdq.summary(frozen)
    assert [row.path for row in table] == [row.path for row in before]  # no row for what is inside
    by_path = {row.path: row for row in table}
    assert by_path["reflect"].kernel == "int8"
    assert by_path["reflect"].weight_codes == 15
    assert by_path["grouped"].kernel == "simulated"
    assert "because" in str(table)
    assert f"1 float, 1 int8, {len(table) - 2} simulated" in str(table)


def test_a_session_tells_for_the_whole_model(frozen):
    rows = [row.on("engine") for row in tdq.summary(frozen)]
    session = Lowered(rows)
    session.tdq_backend = "engine, as asked"
    table = tdq.summary(session)
    assert table == rows
    assert str(table).endswith("backend: engine, as asked")


def test_foreign_attributes_called_rows_are_nobodys():
    model = quantized(calibrated=False)
    model.rows, model.grouped.rows = 3, []
    assert len(tdq.summary(model)) == 8


def test_banked_scales_keep_their_kinds():
    frozen = tdq.freeze(quantized(scale="auto"))
    with torch.no_grad():
        frozen.reflect.input_quantizer.scale.table.fill_(0.5)
    kinds = [row.scale for row in tdq.summary(frozen)]
    assert "table" in kinds
    bank_tables(q for _, q in activation_quantizers(frozen))
    banked = [row.scale for row in tdq.summary(frozen)]
    assert banked.count("") == kinds.count("")
    assert {row.scale for row in tdq.summary(frozen) if row.path == "reflect"} == {"static"}


class Kinds(nn.Module):
    """Layers with weights that stay in float, beside a small one that does not."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(4, 4)
        self.lstm = nn.LSTM(4, 8)
        self.bilinear = nn.Bilinear(4, 4, 2)
        self.up = nn.ConvTranspose1d(4, 4, 2)
        self.volume = nn.ConvTranspose3d(4, 4, 1)
        self.names = nn.Embedding(10, 4)
        self.attention = nn.MultiheadAttention(4, 1)
        self.normed = nn.utils.parametrizations.weight_norm(nn.Linear(4, 4))
        self.norm = nn.GroupNorm(2, 4)

    def forward(self, x, t):
        return self.linear(x)


def test_every_module_with_weights_has_a_row():
    model = tdq.quantize(Kinds(), tdq.Recipe(edges=8))
    table = tdq.summary(model)
    assert {row.path for row in table} == {
        "linear", "lstm", "bilinear", "up", "volume", "names", "attention", "attention.out_proj",
        "normed",
    }  # fmt: skip
    counts = {row.path: row.weights for row in table}
    assert counts["lstm"] == 4 * 8 * (4 + 8)
    assert counts["linear"] == 16
    total = sum(counts.values())
    assert f"1 of 9 layers quantized, {1600 / total:.1f} % of {total} weights" in str(table)
