import json
import sys
import time

import pytest
import torch

from tdquant.training import SampleGrid, TensorBoard
from tdquant.training.callbacks import Callback, JsonLog
from tdquant.training.callbacks import Run as Progress
from tests.training.runs import run


def test_callbacks_see_every_step_in_order():
    seen = []

    class Watch(Callback):
        def start(self, run):
            seen.append("start")

        def after_step(self, run, record):
            seen.append(run.step)
            assert {"loss", "norm", "rate"} <= set(record)

        def end(self, run):
            seen.append("end")

    run(steps=3, callbacks=[Watch()])
    assert seen == ["start", 1, 2, 3, "end"]


def test_pictures_and_events_are_written(tmp_path):
    from PIL import Image
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    board = TensorBoard(tmp_path, every=1)
    given = []

    def draw(net):
        given.append(net)
        return torch.zeros(5, 3, 4, 4)

    grid = SampleGrid(tmp_path, draw, every=2, board=board)
    done = run(tmp_path, steps=3, callbacks=[board, grid])
    pictures = sorted((tmp_path / "samples").iterdir())
    assert [p.name for p in pictures] == ["step-00000002.png", "step-00000003.png"]
    assert Image.open(pictures[0]).size == (3 * 6 + 2, 2 * 6 + 2)
    assert all(net is not done.model and not net.training for net in given)
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert [e.step for e in events.Scalars("train/loss")] == [1, 2, 3]
    assert [round(e.value, 5) for e in events.Scalars("train/loss")] == [
        round(loss, 5) for loss in done.losses
    ]
    assert events.Images("samples")[0].step == 2


def test_training_goes_on_where_a_picture_is_not_finite(tmp_path):
    grid = SampleGrid(tmp_path, lambda net: torch.full((1, 3, 4, 4), torch.nan), every=2)
    with pytest.warns(UserWarning, match="no picture of step 2: 1 of 1 images"):
        assert run(tmp_path, steps=2, callbacks=[grid]).finished
    assert not (tmp_path / "samples").exists()


def test_the_bar_shows_the_loss(capsys, monkeypatch):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)

    class Slow(Callback):
        def after_step(self, run, record):
            time.sleep(0.12)

    run(steps=3, progress=True, callbacks=[Slow()])
    assert "loss" in capsys.readouterr().err


def test_the_log_is_json_whatever_a_norm_is(tmp_path):
    seen = Progress(torch.nn.Identity(), torch.nn.Identity, 1, 1, 0.5, tmp_path)
    JsonLog(tmp_path).after_step(seen, {"loss": 1.0, "norm": float("inf")})
    text = (tmp_path / "log.jsonl").read_text()
    assert json.loads(text, parse_constant=pytest.fail) == {
        "step": 1, "loss": 1.0, "norm": None, "seconds": 0.5
    }  # fmt: skip


class Ending(Callback):
    def __init__(self, events, name, fails=()):
        self.events, self.name, self.fails = events, name, fails

    def _tell(self, what):
        self.events.append(f"{what} {self.name}")
        if what in self.fails:
            raise ValueError(f"{what} of {self.name}")

    def start(self, run):
        self._tell("start")

    def after_step(self, run, record):
        self._tell("step")

    def end(self, run):
        self._tell("end")


def test_callbacks_end_when_the_run_fails_and_its_error_is_seen():
    events = []
    callbacks = [
        Ending(events, "a", ["end"]), Ending(events, "b", ["step"]), Ending(events, "c"),
    ]  # fmt: skip
    with pytest.warns(UserWarning, match="could not end.*end of a"):  # noqa: SIM117
        with pytest.raises(ValueError, match="step of b"):
            run(steps=3, callbacks=callbacks)
    assert events[3:] == ["step a", "step b", "end a", "end b", "end c"]


def test_a_callback_that_did_not_start_is_not_ended():
    events = []
    callbacks = [Ending(events, "a"), Ending(events, "b", ["start"]), Ending(events, "c")]
    with pytest.raises(ValueError, match="start of b"):
        run(steps=3, callbacks=callbacks)
    assert events == ["start a", "start b", "end a"]


def test_a_callback_that_cannot_end_does_not_keep_others_from_it():
    events = []
    with pytest.raises(ValueError, match="end of a"):
        run(steps=1, callbacks=[Ending(events, "a", ["end"]), Ending(events, "b")])
    assert events[-2:] == ["end a", "end b"]
