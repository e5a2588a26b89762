import json
import os
import signal
import subprocess
import sys
import time
import warnings
from pathlib import Path

import pytest
import torch

import tdquant as tdq
from tdquant.clock import clock_of
from tdquant.errors import DataError, StorageError, TrainingError
from tdquant.layers.correction import BiasTable, OutputCorrection, correction_of
from tdquant.quantizers import activation_quantizers
from tdquant.scales import PendingScale, TableScale
from tdquant.training.callbacks import Callback
from tests.denoisers import Mixed, calls
from tests.training.runs import Noise, model, run

ROOT = Path(__file__).parents[2]


def equal(a, b):
    a, b = a.state_dict(), b.state_dict()
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def launch(*arguments, **options):
    return subprocess.Popen(
        [sys.executable, "-m", "tests.training.runs", *map(str, arguments), json.dumps(options)],
        cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        start_new_session=True,
    )  # fmt: skip


@pytest.fixture(scope="module")
def uninterrupted():
    return run()


@pytest.mark.parametrize("scale", ["temporal", "static", "dynamic", "table"])
def test_the_loss_falls_under_every_law(scale):
    net = model(scale=scale)
    with torch.no_grad():
        net.conv_out.bias.add_(1.0)
    done = run(steps=50, net=net, schedule="cosine")
    assert done.finished
    assert done.step == 50
    assert sum(done.losses[-5:]) < 0.8 * sum(done.losses[:5])


@pytest.mark.parametrize("scale", ["temporal", "static", "static-log", "table"])
def test_a_step_rate_of_zero_leaves_activation_scales_as_they_are(scale):
    before, done = model(scale=scale), run(steps=4, net=model(scale=scale), step_rate=0)
    for after in (done.model, done.average):
        now = dict(after.named_parameters())
        changed = {n for n, p in before.named_parameters() if not torch.equal(p, now[n])}
        assert not any(".scale." in name for name in changed)
        assert {"conv_out.weight", "linear.weight_quantizer.step"} <= changed


def test_a_step_rate_of_one_is_the_networks_rate(uninterrupted):
    same, faster = run(step_rate=1), run(step_rate=30, rates="published")
    assert equal(same.model, uninterrupted.model)
    assert same.losses == uninterrupted.losses
    assert faster.losses != uninterrupted.losses


def test_a_float_model_trains_too():
    from tests.denoisers import Mixed

    done = run(net=Mixed())
    assert done.finished
    assert len(done.losses) == 12


def test_trained_models_freeze(uninterrupted, x):
    frozen = tdq.freeze(uninterrupted.average)
    with torch.no_grad():
        live = uninterrupted.average(x, torch.tensor(17))
        assert torch.equal(frozen(x, torch.tensor(17)), live)


def test_training_drops_the_correction_of_the_untrained_model():
    net, plain = model(), model()
    knots = torch.tensor([0.0, 999.0])
    correction = OutputCorrection(
        TableScale(knots, torch.full((2,), 1.5)),
        clock_of(net),
        bias=BiasTable(knots, torch.ones(2, 6)),
    )
    correction.attach(net)
    done, exact = run(steps=3, net=net), run(steps=3, net=plain)
    assert done.losses == exact.losses
    assert equal(done.model, exact.model)
    assert correction_of(net) is None
    assert {"step": "drop correction", "before": "train"} in net.tdq.history


def test_stopped_and_resumed_is_bit_equal(tmp_path, uninterrupted):
    tmp_path = tmp_path / "not" / "there"
    half = run(tmp_path, steps=7)
    assert half.finished
    assert [p.name for p in sorted((tmp_path / "checkpoints").iterdir())] == [
        "step-00000006",
        "step-00000007",
    ]
    fresh = model(calibrated=False)
    whole = run(tmp_path, steps=12, net=fresh)
    assert len(whole.losses) == 5
    assert whole.losses == uninterrupted.losses[7:]
    assert equal(whole.model, uninterrupted.model)
    assert equal(whole.average, uninterrupted.average)
    assert not any(isinstance(q.scale, PendingScale) for _, q in activation_quantizers(fresh))


def test_killed_at_any_moment_and_resumed_is_bit_equal(tmp_path, uninterrupted):
    process = launch(tmp_path, 100_000)
    deadline = time.time() + 120
    while not list(tmp_path.glob("checkpoints/step-*")) and time.time() < deadline:
        time.sleep(0.02)
    process.kill()
    process.wait()
    at = max(int(p.name[5:]) for p in tmp_path.glob("checkpoints/step-*"))
    steps = at + 4
    resumed = run(tmp_path, steps=steps, net=model(calibrated=False))
    assert resumed.step == steps
    reference = run(steps=steps)
    assert equal(resumed.model, reference.model)
    assert equal(resumed.average, reference.average)


def test_sigterm_saves_and_stops(tmp_path):
    process = launch(tmp_path, 100_000, every=10**6)
    log = tmp_path / "log.jsonl"
    deadline = time.time() + 120
    while not log.exists() and time.time() < deadline:
        time.sleep(0.02)
    process.send_signal(signal.SIGTERM)
    output, errors = process.communicate(timeout=120)
    assert process.returncode == 0, errors
    assert json.loads(output)["finished"] is False
    done = len(json.loads(output)["losses"])
    assert [p.name for p in tmp_path.glob("checkpoints/*")] == [f"step-{done:08d}"]


def test_ctrl_c_reaches_the_workers_that_read_too(tmp_path):
    # Slow workers: the run waits for one of them when the signal comes.
    process = launch(tmp_path, 100_000, every=10**6, workers=2, slow=0.05)
    log = tmp_path / "log.jsonl"
    deadline = time.time() + 120
    while not log.exists() and time.time() < deadline:
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGINT)
    output, errors = process.communicate(timeout=120)
    assert process.returncode == 0, errors
    done = len(json.loads(output)["losses"])
    assert [p.name for p in tmp_path.glob("checkpoints/*")] == [f"step-{done:08d}"]


def test_without_resume_it_starts_anew(tmp_path):
    run(tmp_path, steps=3)
    again = run(tmp_path, steps=3, resume=False)
    assert len(again.losses) == 3


def test_the_log_has_no_step_twice(tmp_path):
    run(tmp_path, steps=20)
    (tmp_path / "log.jsonl").open("a").write('{"step": 99, "loss": 1}\n{"step": 10')
    run(tmp_path, steps=30)
    steps = [json.loads(line)["step"] for line in (tmp_path / "log.jsonl").open()]
    assert steps == [10, 20, 30]


def test_equal_parts_give_equal_bits_however_they_are_made():
    one, other = run(accumulate=2), run(accumulate=2, workers=2)
    assert one.losses == other.losses
    assert equal(one.model, other.model)


@pytest.mark.parametrize("option", [{"recompute": True}, {"precision": "bf16"}])
def test_options_train(option):
    from diffusers import UNet2DModel

    torch.manual_seed(0)
    net = UNet2DModel(
        sample_size=8, in_channels=6, out_channels=6, layers_per_block=1,
        block_out_channels=(8,), down_block_types=["DownBlock2D"],
        up_block_types=["UpBlock2D"], norm_num_groups=4, attention_head_dim=8,
    )  # fmt: skip
    tdq.quantize(net, tdq.Recipe(weights=8, activations=8, scale="temporal"))
    tdq.calibrate(net, calls(3), progress=False)
    done = run(net=net, steps=2, **option)
    assert all(loss < float("inf") for loss in done.losses)
    scales = [q.scale for _, q in activation_quantizers(net) if q.scale.timed]
    assert all(p.dtype == torch.float32 for s in scales for p in s.parameters())


def test_fewer_items_than_the_batch():
    with pytest.raises(DataError, match="fewer than a batch"):
        run(batch=64)


def test_every_mistake_is_listed():
    for options, words in (
        ({"schedule": "square", "precision": "int4"}, ("square", "int4")),
        ({"ema": 1.0, "clip": -1, "decay": -0.1}, ("ema=1", "clip=-1", "decay=-0.1")),
        ({"warmup": -3}, ("warmup=-3",)),
        ({"every": 0, "keep": 0}, ("every=0", "keep=0")),
        ({"steps": 0, "accumulate": 3}, ("steps=0", "batch=8")),
    ):
        with pytest.raises(TrainingError) as raised:
            run(**options)
        assert all(word in str(raised.value) for word in words)


def test_an_uncalibrated_model_says_so():
    with pytest.raises(tdq.TDQError, match="not calibrated"):
        run(net=model(calibrated=False))


def test_nan_stops_names_the_layer_and_keeps_the_checkpoint(tmp_path):
    class Poison(Callback):
        def after_step(self, run, record):
            if run.step == 5:
                with torch.no_grad():
                    run.model.linear.bias[0] = float("nan")

    with pytest.raises(TrainingError, match=r"step 6(?s:.*)linear\.bias"):
        run(tmp_path, callbacks=[Poison()])
    assert [p.name for p in tmp_path.glob("checkpoints/*")] == ["step-00000003"]
    resumed = run(tmp_path, steps=6, net=model(calibrated=False))
    assert all(loss < float("inf") for loss in resumed.losses)


def test_a_layer_that_overflows_is_named():
    class Huge(Callback):
        def after_step(self, run, record):
            with torch.no_grad():
                run.model.conv_in.weight.fill_(3e38)

    with pytest.raises(TrainingError, match="conv_in gave them first"):
        run(float_model=True, callbacks=[Huge()])


def test_another_model_s_checkpoint_is_refused(tmp_path):
    run(tmp_path, steps=3)
    with pytest.raises(StorageError, match="one side only"):
        run(tmp_path, net=model(exclude=("linear",)))


def test_a_calibrated_model_is_needed_only_when_nothing_is_resumed(tmp_path):
    assert Noise()[0].shape == (6, 8, 8)
    run(tmp_path, steps=3)
    assert run(tmp_path, steps=3, net=model(calibrated=False)).losses == []


def test_a_layer_in_two_places_trains_and_resumes(tmp_path):
    from tests.storage.test_storage import Twice

    def fresh():
        net = tdq.quantize(Twice(), tdq.Recipe(4, 4))
        tdq.calibrate(net, calls(), progress=False)
        return net

    whole = run(tmp_path / "a", steps=6, net=fresh())
    run(tmp_path / "b", steps=3, net=fresh())
    again = run(tmp_path / "b", steps=6, net=fresh())
    assert whole.losses[3:] == again.losses


def test_beginning_anew_forgets_the_checkpoints_of_before(tmp_path):
    run(tmp_path, steps=6)
    run(tmp_path, steps=2, resume=False)
    assert [p.name for p in (tmp_path / "checkpoints").glob("step-*")] == ["step-00000002"]
    assert run(tmp_path, steps=4).step == 4


def test_another_recipe_is_not_gone_on_with(tmp_path):
    run(tmp_path, steps=3)
    other = tdq.quantize(Mixed(), tdq.Recipe(8, 8))
    tdq.calibrate(other, calls(), progress=False)
    with pytest.raises(StorageError, match=r"another recipe:(?s:.)*activations: 4, now 8"):
        run(tmp_path, steps=6, net=other)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"every": 0}, "every=0"),
        ({"schedule": "linear"}, "schedule='linear': one of constant, cosine"),
        ({"precision": "int8", "rates": "own"}, "(?s)rates='own'.*precision='int8'"),
        ({"step_rate": -1.0}, "(?s)the optimization.*step_rate=-1.0: it is a multiple.*from 0"),
        ({"step_rate": "high"}, "step_rate='high': it is a multiple"),
        ({"accumulate": 0}, "accumulate=0"),
        ({"accumulate": 3}, r"batch=8: a multiple of 1 processes times 3 parts"),
        ({"steps": 100_000_000}, "steps=100000000"),
        ({"net": "frozen"}, "there is nothing to train"),
        ({"net": "wide"}, r"a prediction of \(8, 18, 8, 8\)"),
    ],
)
def test_what_cannot_be_trained_is_told(options, words):
    if "net" in options:
        net = tdq.freeze(model())
        if options["net"] == "wide":
            net = Mixed()
            net.conv_out = torch.nn.Conv2d(12, 18, 1)
        options = options | {"net": net}
    with pytest.raises(TrainingError, match=words):
        run(**{"steps": 1, **options})


def test_no_scheduler():
    with pytest.raises(TrainingError, match="no scheduler but NoneType"):
        tdq.train(model(), Noise(), None, steps=1, batch=8, progress=False)


def test_predicted_variances_are_left_out_of_the_loss():
    wide, plain = Mixed(), Mixed()
    wide.conv_out = torch.nn.Conv2d(12, 12, 1)
    with torch.no_grad():
        wide.conv_out.weight[:6] = plain.conv_out.weight
        wide.conv_out.bias[:6] = plain.conv_out.bias
    losses = [run(steps=2, net=net).losses[0] for net in (wide, plain)]
    assert losses[0] == pytest.approx(losses[1])


def test_noise_belongs_to_the_part_of_a_batch():
    """As on several processes: each has the draws of its part."""
    whole, parts = (run(steps=1, net=model(scale="nipq"), accumulate=n).losses[0] for n in (1, 2))
    assert whole != parts
    assert parts == run(steps=1, net=model(scale="nipq"), accumulate=2).losses[0]


def test_the_filters_of_warnings_are_those_of_before():
    before = list(warnings.filters)
    run(steps=1)
    assert warnings.filters == before


def test_fewer_steps_than_were_done_are_told(tmp_path):
    done = run(tmp_path, steps=4)
    net = model()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    with pytest.raises(TrainingError, match="has done 4 steps, and 2 are asked for"):
        run(tmp_path, steps=2, net=net)
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    assert run(tmp_path, steps=4).step == done.step
