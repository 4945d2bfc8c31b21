"""Scores by features against their formulas, and feature networks of files that are made here."""

from __future__ import annotations

import hashlib
import warnings
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from PIL import Image
from torch import Tensor, nn

from pgsr.benchmarks.quality import feature_network
from pgsr.benchmarks.quality.feature_network import Settings, open_lpips, open_network
from pgsr.errors import PgsrError
from pgsr.trainer.metrics import features
from pgsr.trainer.metrics.features import FeatureSet, frechet_distance, precision_recall, scores

D = 6


def normal(count: int, seed: int, size: int = D, shift: float = 0.0, scale: float = 1.0) -> Tensor:
    rng = np.random.default_rng(seed)
    return torch.from_numpy(rng.standard_normal((count, size)) * scale + shift)


def found(rows: Tensor, logits: Tensor | None = None, batch: int = 7) -> FeatureSet:
    result = FeatureSet()
    for i, part in enumerate(rows.split(batch)):
        result.add(part, None if logits is None else logits.split(batch)[i])
    return result


# ----------------------------------------------------------------------------
# Against formulas.


def slow_frechet(a: np.ndarray, b: np.ndarray) -> float:
    """With the symmetric form of the product's square root."""
    first, second = np.cov(a.T), np.cov(b.T)
    values, vectors = np.linalg.eigh(first)
    root = vectors @ np.diag(np.sqrt(values)) @ vectors.T
    cross = np.sqrt(np.linalg.eigvalsh(root @ second @ root).clip(0)).sum()
    return ((a.mean(0) - b.mean(0)) ** 2).sum() + np.trace(first) + np.trace(second) - 2 * cross


def slow_kernel(a: np.ndarray, b: np.ndarray) -> float:
    """The unbiased estimate of MMD squared, pair by pair, of whole sets of one size."""

    def k(x: np.ndarray, y: np.ndarray) -> float:
        return (x @ y / len(x) + 1) ** 3

    n = len(a)
    within = sum(k(s[i], s[j]) for s in (a, b) for i in range(n) for j in range(n) if i != j)
    return within / (n * (n - 1)) - 2 * sum(k(x, y) for x in a for y in b) / n**2


def slow_inception(logits: np.ndarray, order: np.ndarray) -> tuple[float, float]:
    p = np.exp(logits[order])
    p /= p.sum(1, keepdims=True)
    parts = np.split(p, 10)
    values = [np.exp((q * np.log(q / q.mean(0))).sum(1).mean()) for q in parts]
    return float(np.mean(values)), float(np.std(values, ddof=1))


def test_frechet_distance():
    a, b = normal(60, 0), normal(50, 1, shift=0.3, scale=2.0)
    assert frechet_distance(a, b) == pytest.approx(slow_frechet(a.numpy(), b.numpy()), rel=1e-9)
    assert frechet_distance(a, a) == pytest.approx(0.0, abs=1e-9)
    assert frechet_distance(a, a + 2.0) == pytest.approx(4.0 * D, rel=1e-9)  # equal covariances


def test_kernel_distance():
    """Each subset is the whole set, in another order."""
    a, b = normal(40, 0), normal(40, 1, shift=0.5)
    value, deviation = features.kernel_distance(a, b)
    assert value == pytest.approx(slow_kernel(a.numpy(), b.numpy()), rel=1e-9)
    assert deviation == pytest.approx(0.0, abs=1e-9)


def test_inception_score():
    logits = normal(50, 3, size=4, scale=2.0)
    torch.manual_seed(11)
    order = torch.randperm(50).numpy()
    torch.manual_seed(11)
    assert features.inception_score(logits) == pytest.approx(slow_inception(logits.numpy(), order), rel=1e-9)
    sure = torch.nn.functional.one_hot(torch.arange(5000) % 5, 5).double() * 200
    assert features.inception_score(sure)[0] == pytest.approx(5.0, rel=0.01)  # sure of each of five classes


def slow_precision_recall(real: np.ndarray, fake: np.ndarray, k: int) -> tuple[float, float]:
    def share(manifold: np.ndarray, points: np.ndarray) -> float:
        inside = 0
        for point in points:
            for i, centre in enumerate(manifold):
                apart = sorted(np.linalg.norm(other - centre) for j, other in enumerate(manifold) if j != i)
                if np.linalg.norm(point - centre) <= apart[k - 1]:
                    inside += 1
                    break
        return inside / len(points)

    return share(real, fake), share(fake, real)


@pytest.mark.parametrize("k", [1, 3])
@pytest.mark.parametrize("rows", [5, 1024])
def test_precision_and_recall(k: int, rows: int, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(features, "ROWS", rows)
    real, fake = normal(30, 0, size=3), normal(24, 1, size=3, scale=1.6)
    assert precision_recall(real, fake, k) == slow_precision_recall(real.numpy(), fake.numpy(), k)


def test_precision_is_quality_and_recall_variety():
    real = normal(200, 0, size=2)
    near_one_point = normal(200, 1, size=2, scale=0.05)
    wide = normal(200, 2, size=2, scale=10.0)
    assert precision_recall(real, real) == (1.0, 1.0)
    precision, recall = precision_recall(real, near_one_point)
    assert precision > 0.95
    assert recall < 0.1
    precision, recall = precision_recall(real, wide)
    assert precision < 0.4
    assert recall > 0.9
    assert precision_recall(real, real + 100) == (0.0, 0.0)


def test_scores_are_of_all_batches_and_disturb_nobody():
    a, b, logits = normal(40, 0), normal(40, 1, shift=0.5), normal(40, 2, size=5)
    before = torch.random.get_rng_state()
    values = scores(found(a), found(b, logits), seed=4)
    assert torch.equal(before, torch.random.get_rng_state())
    assert values == scores(found(a, batch=40), found(b, logits, batch=3), seed=4)
    assert values["FID"][0] == pytest.approx(slow_frechet(a.numpy(), b.numpy()), rel=1e-9)
    assert list(values) == ["FID", "KID", "IS", "precision", "recall", "density", "coverage"]
    assert "IS" not in scores(found(a), found(b), seed=4)


def test_scores_need_some_images_and_finite_features():
    with pytest.raises(PgsrError, match="need 10 images of either set at least, not 9"):
        scores(found(normal(40, 0)), found(normal(9, 1)), seed=0)
    broken = normal(40, 0)
    broken[3, 2] = float("nan")
    with pytest.raises(PgsrError, match="not finite"):
        scores(found(normal(40, 1)), found(broken), seed=0)


# ----------------------------------------------------------------------------
# Networks.


class Means(nn.Module):
    """Mean colours, and logits of two classes."""

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        rows = x.float().mean((2, 3))
        return rows, rows[:, :2]


class OnlyMeans(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.float().mean((2, 3))


class LikeNvidias(nn.Module):
    """Inception's arguments: features, or probabilities."""

    def forward(self, x: Tensor, return_features: bool = False) -> Tensor:
        rows = x.float().mean((2, 3))
        return rows if return_features else torch.softmax(rows / 10, 1)


def scripted(network: nn.Module, path: Path) -> Path:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # users have such files all the same
        torch.jit.script(network).save(str(path))
    return path


def onnx_network(path: Path, taken: int = TensorProto.FLOAT, outputs: int = 2) -> Path:
    """Means like the others: images [N, 3, 8, 8] -> features [N, 3], logits [N, 2]."""
    node = helper.make_node
    nodes = [
        node("Cast", ["images"], ["wide"], to=TensorProto.FLOAT),
        node("ReduceMean", ["wide", "axes"], ["features"], keepdims=0),
        node("Slice", ["features", "zero", "two", "one"], ["logits"]),
    ]
    constants = {"axes": [2, 3], "zero": [0], "two": [2], "one": [1]}
    values = [numpy_helper.from_array(np.array(v, dtype=np.int64), k) for k, v in constants.items()]
    made = [
        helper.make_tensor_value_info(n, TensorProto.FLOAT, ["N", c])
        for n, c in (("features", 3), ("logits", 2))
    ]
    graph = helper.make_graph(
        nodes,
        "means",
        [helper.make_tensor_value_info("images", taken, ["N", 3, 8, 8])],
        made[:outputs],
        values,
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10), path)
    return path


PIXELS = np.random.default_rng(0).integers(0, 256, (5, 16, 16, 3), dtype=np.uint8)


def reduced(side: int = 8) -> np.ndarray:
    """[N, 3] mean colours of the pictures as Pillow reduces them."""
    small = [Image.fromarray(p).resize((side, side), Image.Resampling.LANCZOS) for p in PIXELS]
    return np.stack([np.asarray(p, dtype=np.float64).mean((0, 1)) for p in small])


@pytest.mark.parametrize(
    ("range_", "scale"),
    [
        ("bytes", lambda v: v),
        ("255", lambda v: v),
        ("unit", lambda v: v / 255),
        ("signed", lambda v: v / 127.5 - 1),
        ("imagenet", lambda v: (v / 255 - feature_network.MEAN) / feature_network.STD),
    ],
)
def test_ranges_of_torchscript_and_onnx(range_: str, scale, tmp_path: Path):
    taken = TensorProto.UINT8 if range_ == "bytes" else TensorProto.FLOAT
    paths = scripted(Means(), tmp_path / "means.pt"), onnx_network(tmp_path / "means.onnx", taken)
    for path in paths:
        network = open_network(Settings(path, side=8, resize="lanczos", range=range_))
        rows, logits = network(PIXELS)
        np.testing.assert_allclose(rows, scale(reduced()), rtol=1e-5, atol=1e-5)
        np.testing.assert_allclose(logits, rows[:, :2])  # type: ignore[arg-type]
        assert network.conditions == {
            "features": hashlib.sha256(path.read_bytes()).hexdigest(),
            "feature resize": "lanczos to 8",
            "feature range": range_,
        }


def test_a_network_like_nvidias_takes_bytes_and_gives_probabilities(tmp_path: Path):
    network = open_network(
        Settings(scripted(LikeNvidias(), tmp_path / "inception.pt"), side=8, resize="lanczos")
    )
    assert network.range == "bytes"
    rows, logits = network(PIXELS)
    np.testing.assert_allclose(rows, reduced(), rtol=1e-5)
    np.testing.assert_allclose(torch.softmax(logits, 1), torch.softmax(rows / 10, 1), rtol=1e-5)  # type: ignore[arg-type]


def test_one_output_is_features(tmp_path: Path):
    for path in (
        scripted(OnlyMeans(), tmp_path / "one.pt"),
        onnx_network(tmp_path / "one.onnx", TensorProto.UINT8, outputs=1),
    ):
        network = open_network(Settings(path, side=0, range="bytes" if path.suffix == ".pt" else "auto"))
        if path.suffix == ".onnx":
            with pytest.raises(PgsrError, match=r"fails on images \[5, 3, 16, 16\] of range bytes"):
                network(PIXELS)
            continue
        rows, logits = network(PIXELS)
        assert logits is None
        np.testing.assert_allclose(rows, PIXELS.mean((1, 2)), rtol=1e-5)
        assert network.conditions["feature resize"] == "none"


def test_files_that_are_no_networks(tmp_path: Path):
    with pytest.raises(PgsrError, match="cannot read"):
        open_network(Settings(tmp_path / "absent.pt"))
    for name, told in (
        ("broken.pt", "is not a TorchScript file"),
        ("broken.onnx", "cannot be opened by ONNX"),
    ):
        (tmp_path / name).write_bytes(b"nothing of the kind")
        with pytest.raises(PgsrError, match=told):
            open_network(Settings(tmp_path / name))
    with pytest.raises(PgsrError, match="does not say what its input means: add --feature-range"):
        open_network(Settings(scripted(Means(), tmp_path / "means.pt")))
    for wrong, told in (({"resize": "soft"}, "filter"), ({"range": "half"}, "range"), ({"side": -1}, "side")):
        with pytest.raises(PgsrError, match=f"--feature-{told}"):
            Settings(Path("x.pt"), **wrong)


class SquaredError(nn.Module):
    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        return (a - b).square().mean((1, 2, 3))


class LikeNvidiasVgg(nn.Module):
    def forward(self, x: Tensor, resize_images: bool = True, return_lpips: bool = False) -> Tensor:
        return x.flatten(1) / 255


def test_lpips_of_both_kinds_of_file(tmp_path: Path):
    a, b = PIXELS[:2], PIXELS[2:4]
    apart = (a.astype(np.float64) - b).reshape(2, -1)
    pair = open_lpips(scripted(SquaredError(), tmp_path / "pair.pt"))
    np.testing.assert_allclose(pair(a, b), (apart**2).mean(1) / 127.5**2, rtol=1e-5)
    vgg = open_lpips(scripted(LikeNvidiasVgg(), tmp_path / "vgg.pt"))
    np.testing.assert_allclose(vgg(a, b), (apart**2).sum(1) / 255**2, rtol=1e-5)
    wrong = open_lpips(scripted(OnlyMeans(), tmp_path / "means.pt"))
    with pytest.raises(PgsrError, match="does not measure LPIPS"):
        wrong(a, b)


# ----------------------------------------------------------------------------
# Density and coverage, and the installable network.


def test_density_and_coverage_are_their_definitions():
    """Naeem et al. (2020), equations 4 and 5, one pair of points at a time."""
    generator = torch.Generator().manual_seed(4)
    real = torch.randn(40, 3, generator=generator, dtype=torch.float64)
    fake = torch.randn(30, 3, generator=generator, dtype=torch.float64) * 0.2 + 0.5
    k, balls = 5, []
    for x in real:
        balls.append(sorted(float((x - other).norm()) for other in real)[k])  # the first is x itself
    hits = [[float((x - y).norm()) <= r for y in fake] for x, r in zip(real, balls, strict=True)]
    density = sum(map(sum, hits)) / (k * len(fake))
    coverage = sum(any(row) for row in hits) / len(real)
    assert features.density_coverage(real, fake) == pytest.approx((density, coverage), rel=1e-12)
    assert 0 < coverage < 1


def test_lite0_scores_are_not_called_inceptions():
    """The network that a wheel brings: features and logits of its own, resized and named as such."""
    from pgsr.benchmarks.quality import feature_network
    from pgsr.networks.efficientnet import SHA256, load_lite0

    settings = feature_network.Settings(feature_network.LITE0, feature_network.LITE0_SIDE)
    network = feature_network.open_network(settings)
    pixels = np.random.default_rng(1).integers(0, 256, (12, 32, 32, 3), dtype=np.uint8)
    found, logits = network(pixels)
    resized = feature_network.resized(pixels, 128, "bicubic")
    images = torch.from_numpy(resized).permute(0, 3, 1, 2).float() / 127.5 - 1
    expected, classes = load_lite0().pooled(images)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(logits, classes, rtol=1e-4, atol=1e-4)
    assert network.conditions["features"] == SHA256
    sets = [features.FeatureSet(), features.FeatureSet()]
    for one in sets:
        one.add(found, logits)
    values = features.scores(*sets, seed=0, distance=network.distance)
    assert "FID" not in values
    assert values["FD"][0] == pytest.approx(0.0, abs=1e-4)
    assert values["coverage"][0] == 1.0
