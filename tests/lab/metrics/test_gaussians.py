import pytest
import torch
from safetensors.torch import save

from tdquant.errors import DataError
from tdquant.lab.metrics import Statistics
from tdquant.lab.metrics.bootstrap import subsets
from tdquant.lab.metrics.gaussians import frechet_distance, resampled_frechet


def features(count, width=6, seed=0, scale=1.0):
    rng = torch.Generator().manual_seed(seed)
    mix = torch.randn(width, width, generator=torch.Generator().manual_seed(width))
    return (
        scale * torch.randn(count, width, generator=rng, dtype=torch.float64).relu() @ mix.double()
    )


def distance(a, b):
    return frechet_distance(Statistics.of(a), Statistics.of(b))


@pytest.mark.parametrize(("n", "m", "width"), [(200, 300, 16), (20, 300, 32), (15, 10, 32)])
def test_equal_to_torch_fidelity(fidelity, n, m, width):
    a, b = features(n, width), features(m, width, seed=1, scale=1.3)
    fid = fidelity("metric_fid")
    exact = fid.fid_statistics_to_metric(
        fid.fid_features_to_statistics(a), fid.fid_features_to_statistics(b), False
    )
    assert distance(a, b) == pytest.approx(exact[fid.KEY_METRIC_FID], rel=1e-4)


def test_equal_to_torchmetrics():
    from torchmetrics.image.fid import FrechetInceptionDistance

    class Same(torch.nn.Module):
        num_features = 16

        def forward(self, x):
            return x

    a, b = features(200, 16), features(300, 16, seed=1, scale=1.3)
    metric = FrechetInceptionDistance(feature=Same()).set_dtype(torch.float64)
    metric.update(a, real=False)
    metric.update(b, real=True)
    assert distance(a, b) == pytest.approx(float(metric.compute()), rel=1e-4)


def test_known_distances():
    a = features(100)
    assert distance(a, a + 2) == pytest.approx(6 * 4)
    centred = a - a.mean(0)
    assert distance(centred, 3 * centred) == pytest.approx(4 * float(torch.cov(a.T).trace()))


def test_zero_for_itself_symmetric_and_without_order():
    a, b = features(80), features(60, seed=1, scale=2)
    assert distance(a, a) == pytest.approx(0, abs=1e-6)
    assert distance(a, b) == pytest.approx(distance(b, a), rel=1e-9)
    assert distance(a.flip(0), b) == pytest.approx(distance(a, b), rel=1e-9)


def test_constant_features_do_no_harm():
    a, b = features(50), features(50, seed=1)
    a[:, 2], b[:, 2] = 1.0, 3.0
    kept = [0, 1, 3, 4, 5]
    assert distance(a, b) == pytest.approx(4 + distance(a[:, kept], b[:, kept]), rel=1e-6)


@pytest.mark.parametrize(("count", "width"), [(120, 6), (20, 40)])
def test_subsets_have_the_distance_of_their_images(count, width):
    a, b = features(count, width), Statistics.of(features(200, width, seed=1, scale=1.2))
    kept, _ = subsets(count, 8, 0)
    exact = [frechet_distance(Statistics.of(a[row]), b) for row in kept]
    # Products in float32: against the traces, of which the distance is a small difference.
    total = float(b.covariance.trace())
    assert resampled_frechet(a, b, kept).tolist() == pytest.approx(exact, abs=1e-3 * total)


def test_features_of_two_networks():
    with pytest.raises(DataError, match="6 features an image, and 5"):
        distance(features(9), features(9, 5))


def test_one_image_has_no_covariance():
    with pytest.raises(DataError, match="1 images"):
        Statistics.of(features(1))


def test_statistics_round_trip():
    stats = Statistics.of(features(300))
    again = Statistics.from_bytes(stats.to_bytes())
    assert again.count == 300
    assert torch.allclose(again.mean, stats.mean, rtol=1e-6)
    assert torch.allclose(again.covariance, stats.covariance, rtol=1e-5, atol=1e-6)


GOOD = {"mean": torch.zeros(3), "covariance": torch.ones(6), "count": torch.tensor(9)}


def without(name):
    return {k: v for k, v in GOOD.items() if k != name}


@pytest.mark.parametrize(
    ("tensors", "words"),
    [
        (without("count"), "no count in it"),
        (without("mean"), "no mean in it"),
        ({"weight": torch.zeros(2)}, "no mean, covariance, count"),
        (GOOD | {"mean": torch.tensor(1.0)}, r"mean \(\)"),
        (GOOD | {"mean": torch.zeros(3, 1)}, r"mean \(3, 1\)"),
        (GOOD | {"covariance": torch.ones(5)}, r"covariance \(5,\)"),
        (GOOD | {"covariance": torch.ones(3, 3)}, r"covariance \(3, 3\)"),
        (GOOD | {"covariance": torch.ones(1)}, r"covariance \(1,\)"),
        (GOOD | {"count": torch.zeros(2)}, r"count \(2,\)"),
        (GOOD | {"count": torch.tensor(float("nan"))}, "count is not finite"),
        (GOOD | {"count": torch.tensor(-1)}, "-1 images"),
        (GOOD | {"mean": torch.full((3,), float("nan"))}, "not finite"),
        (GOOD | {"covariance": torch.full((6,), float("inf"))}, "not finite"),
        (b"nonsense", "no feature statistics"),
    ],
)
def test_bytes_of_something_else_are_refused_by_their_place(tensors, words):
    data = tensors if isinstance(tensors, bytes) else save(tensors)
    with pytest.raises(DataError, match=words) as caught:
        Statistics.from_bytes(data, "there")
    assert caught.value.where == "there"
    assert caught.value.fix
    assert "delete" not in caught.value.fix


def test_eigenvalues_that_do_not_converge_in_float32(monkeypatch):
    a, reference = features(40), Statistics.of(features(60, seed=1, scale=2))
    kept, _ = subsets(40, 3, 0)
    usual, original = resampled_frechet(a, reference, kept), torch.linalg.eigvalsh

    def fail(matrix):
        if matrix.dtype == torch.float32:
            raise torch.linalg.LinAlgError("the algorithm failed to converge")
        return original(matrix)

    monkeypatch.setattr(torch.linalg, "eigvalsh", fail)
    assert resampled_frechet(a, reference, kept).tolist() == pytest.approx(
        usual.tolist(), rel=1e-4
    )
