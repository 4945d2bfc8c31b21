"""SSIM and MS-SSIM: against loops in float64, against torchmetrics, and over pairs in any batches."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from torch.nn import functional as F
from torchmetrics.functional.image import structural_similarity_index_measure

from pgsr.errors import PgsrError
from pgsr.trainer.data import procedural
from pgsr.trainer.metrics.similarity import PairSimilarity, lags, ms_ssim, ssim


def faces(count: int, size: int) -> np.ndarray:
    return np.stack([np.asarray(procedural.draw(i, size)) for i in range(count)])


def tensors(pixels: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(pixels).permute(0, 3, 1, 2).double()


# ----------------------------------------------------------------------------
# Slow and obvious: one window at a time.


def slow_ssim(a: np.ndarray, b: np.ndarray) -> tuple[float, float]:
    """SSIM and its contrast-structure factor of two pictures [H, W, 3]."""
    size = min(11, *a.shape[:2])
    sigma = 1.5 * size / 11
    line = [math.exp(-((i - (size - 1) / 2) ** 2) / (2 * sigma**2)) for i in range(size)]
    window = np.outer(line, line) / sum(line) ** 2
    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    whole, contrasts = [], []
    for top, left, colour in itertools.product(
        range(a.shape[0] - size + 1), range(a.shape[1] - size + 1), range(3)
    ):
        x, y = (p[top : top + size, left : left + size, colour] for p in (a, b))
        mx, my = (window * x).sum(), (window * y).sum()
        vx, vy = (window * (x - mx) ** 2).sum(), (window * (y - my) ** 2).sum()
        cov = (window * (x - mx) * (y - my)).sum()
        contrast = (2 * cov + c2) / (vx + vy + c2)
        contrasts.append(contrast)
        whole.append(contrast * (2 * mx * my + c1) / (mx**2 + my**2 + c1))
    return float(np.mean(whole)), float(np.mean(contrasts))


def slow_ms_ssim(a: np.ndarray, b: np.ndarray) -> float:
    product = 1.0
    for k, weight in enumerate((0.0448, 0.2856, 0.3001, 0.2363, 0.1333)):
        whole, contrast = slow_ssim(a, b)
        product *= max(0.0, whole if k == 4 else contrast) ** weight
        a, b = ((p[0::2, 0::2] + p[1::2, 0::2] + p[0::2, 1::2] + p[1::2, 1::2]) / 4 for p in (a, b))
    return product


@pytest.mark.parametrize("size", [16, 32, 64])
def test_against_one_window_at_a_time(size: int):
    pixels = faces(3, size)
    noisy = np.random.default_rng(0).integers(0, 256, pixels.shape).astype(np.uint8)
    for others in (pixels[[1, 2, 0]], noisy, pixels // 2):
        a, b = pixels[:2].astype(np.float64), others[:2].astype(np.float64)
        expected = [slow_ms_ssim(x, y) for x, y in zip(a, b, strict=True)]
        found = ms_ssim(tensors(pixels[:2]), tensors(others[:2]))
        print(f"MS-SSIM at {size}: {abs(found.numpy() - expected).max():.1e} from the slow version")
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-12)
        narrow = ms_ssim(tensors(pixels[:2]).float(), tensors(others[:2]).float())
        np.testing.assert_allclose(narrow, expected, rtol=0, atol=1e-5)
    expected_ssim = slow_ssim(pixels[0].astype(np.float64), pixels[1].astype(np.float64))[0]
    assert float(ssim(tensors(pixels[:1]), tensors(pixels[1:2]))) == pytest.approx(expected_ssim, abs=1e-12)


def test_ssim_against_torchmetrics():
    """It sees a mirrored border of 5 pixels; given the same border, ours is the same."""
    a, b = tensors(faces(2, 48)), tensors(faces(4, 48)[2:])
    expected = structural_similarity_index_measure(a, b, data_range=255.0, reduction="none")
    wide = [F.pad(x, (5, 5, 5, 5), mode="reflect") for x in (a, b)]
    torch.testing.assert_close(ssim(*wide), expected, rtol=0, atol=1e-9)


def test_bounds():
    a = tensors(faces(2, 32))
    assert ms_ssim(a, a).tolist() == pytest.approx([1.0, 1.0], abs=1e-12)
    assert ms_ssim(a, 255 - a).tolist() == [0.0, 0.0]
    grey = torch.full_like(a, 80.0)
    assert ms_ssim(grey, grey).tolist() == pytest.approx([1.0, 1.0], abs=1e-12)
    with pytest.raises(PgsrError, match="at least 16x16, not 8x8"):
        ms_ssim(a[:, :, :8, :8], a[:, :, :8, :8])


def test_it_falls_with_blur_and_with_noise():
    a = tensors(faces(4, 64))
    rng = torch.Generator().manual_seed(0)
    noise = torch.randn(a.shape, generator=rng, dtype=a.dtype)
    noisy = [float(ms_ssim(a, a + s * noise).mean()) for s in (0, 5, 20, 60)]
    blurred = [
        float(ms_ssim(a, F.avg_pool2d(F.pad(a, [k // 2] * 4, mode="reflect"), k, 1)).mean())
        for k in (1, 3, 7, 15)
    ]
    for values in (noisy, blurred):
        assert values == sorted(values, reverse=True)
        assert values[0] - values[-1] > 0.1


# ----------------------------------------------------------------------------
# Pairs.


def added(pixels: np.ndarray, pairs: int, batch: int) -> PairSimilarity:
    found = PairSimilarity(len(pixels), pairs)
    for start in range(0, len(pixels), batch):
        found.add(pixels[start : start + batch])
    return found


@pytest.mark.parametrize("pairs", [1, 9, 11, 30, 66, 10_000])
def test_pairs_in_any_batches_are_those_of_the_definition(pairs: int):
    pixels = faces(12, 16)
    every = [(i, lag) for lag in range(1, 12) for i in range(lag, 12)][:pairs]
    expected = np.mean([float(ms_ssim(tensors(pixels[[i]]), tensors(pixels[[i - lag]]))) for i, lag in every])
    for batch in (1, 5, 12):
        found = added(pixels, pairs, batch)
        assert found.pairs == len(every)
        assert found.mean == pytest.approx(expected, abs=1e-6)


def test_lags():
    assert lags(5, 3) == [3]
    assert lags(5, 4) == [4]
    assert lags(5, 6) == [4, 2]
    assert lags(5, 10) == [4, 3, 2, 1]


def test_only_a_few_pictures_are_kept():
    found = added(faces(40, 16), 100, 7)
    assert len(found.lags) == 3
    assert len(found._recent[0].mean) == 3


def test_a_set_of_one_mode_is_less_varied():
    pixels = faces(20, 32)
    one = pixels[:1].repeat(20, axis=0)
    assert added(one, 50, 8).mean == pytest.approx(1.0, abs=1e-5)
    few = pixels[[i % 2 for i in range(20)]]
    assert added(pixels, 190, 8).mean < added(few, 190, 8).mean < 1.0


def test_the_number_of_pictures_is_kept_to():
    with pytest.raises(PgsrError, match="it needs a pair"):
        PairSimilarity(1)
    with pytest.raises(PgsrError, match="it needs a pair"):
        PairSimilarity(10, 0)
    found = PairSimilarity(3, 2)
    found.add(faces(2, 16))
    with pytest.raises(PgsrError, match="of 3 images, and got 2"):
        _ = found.mean
    with pytest.raises(PgsrError, match="got more"):
        found.add(faces(2, 16))


@pytest.mark.gpu
def test_a_gpu_finds_the_same():
    pixels = faces(20, 64)
    found = PairSimilarity(20, 50, "cuda")
    found.add(pixels)
    assert found.mean == pytest.approx(added(pixels, 50, 8).mean, abs=1e-4)  # TF32 may round products
