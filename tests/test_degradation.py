"""What super-resolution inputs are made worse by, against slow versions."""

from __future__ import annotations

import io

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from pgsr import draws
from pgsr.trainer.step.degradation import FILTERS, blurred, compressed, degraded, reduced

POSITIONS = range(10, 16)


def images(count: int, side: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(count, 3, side, side, generator=generator, dtype=torch.float64) * 2 - 1


def test_nothing_asked_for_changes_nothing():
    low, high = images(6, 8), images(6, 32, 1)
    assert torch.equal(degraded(low, high, 3, POSITIONS), low)


def pillow(high: Tensor, side: int, resampling: Image.Resampling) -> np.ndarray:
    """By Pillow, in float32, a channel at a time: [3, side, side]."""
    planes = [Image.fromarray(plane.numpy().astype(np.float32)) for plane in high]
    return np.stack([np.asarray(p.resize((side, side), resampling)) for p in planes])


@pytest.mark.parametrize(
    ("name", "resampling"),
    [
        ("area", Image.Resampling.BOX),
        ("bilinear", Image.Resampling.BILINEAR),
        ("bicubic", Image.Resampling.BICUBIC),
    ],
)
def test_filters_are_those_of_pillow(name: str, resampling: Image.Resampling):
    low, high = images(2, 8), images(2, 32, 1)
    made = reduced(low, high, [name, "stored"])
    assert torch.equal(made[1], low[1])
    np.testing.assert_allclose(made[0].numpy(), pillow(high[0], 8, resampling), atol=2e-6)


def test_every_filter_is_chosen():
    low, high = images(40, 8), images(40, 16, 1)
    made = degraded(low, high, 0, range(40), filters=FILTERS)
    ways = torch.stack([reduced(low, high, [name] * 40) for name in FILTERS])  # [filters, N, ...]
    which = (ways == made).flatten(2).all(2)  # [filters, N]
    assert (which.sum(0) == 1).all()
    assert (which.sum(1) >= 3).all()


def slow_blur(image: np.ndarray, sigma: float, radius: int) -> np.ndarray:
    """[3, h, w], as the definition says, in two dimensions."""
    weights = np.array(
        [
            [np.exp(-(y**2 + x**2) / (2 * sigma**2)) for x in range(-radius, radius + 1)]
            for y in range(-radius, radius + 1)
        ]
    )
    weights /= weights.sum()
    padded = np.pad(image, ((0, 0), (radius, radius), (radius, radius)), mode="edge")
    result = np.zeros_like(image)
    for y in range(image.shape[1]):
        for x in range(image.shape[2]):
            window = padded[:, y : y + 2 * radius + 1, x : x + 2 * radius + 1]
            result[:, y, x] = (window * weights).sum((1, 2))
    return result


def test_blur_is_a_gaussian_of_its_own_for_each():
    low, sigmas = images(3, 7), np.array([0.5, 1.2, 0.0])
    made = blurred(low, sigmas, 1.2)
    for i in (0, 1):
        np.testing.assert_allclose(made[i].numpy(), slow_blur(low[i].numpy(), sigmas[i], 4), atol=1e-12)
    assert torch.equal(made[2], low[2])


def test_coarse_noise_is_of_blocks_and_each_strength_its_own():
    low = torch.zeros(200, 3, 9, 9, dtype=torch.float64)
    made = degraded(low, low, 5, range(200), coarse_noise=0.3)
    assert torch.equal(made[..., 0:8:2, 0:8:2], made[..., 1:9:2, 1:9:2])
    spread = made.flatten(1).std(1)
    assert spread.max() == pytest.approx(0.3, abs=0.06)
    assert spread.min() < 0.03
    assert made.mean().abs() < 0.01


def test_noise_of_pixels_is_as_strong_as_asked():
    low = torch.zeros(200, 3, 16, 16, dtype=torch.float64)
    spread = degraded(low, low, 5, range(200), noise=0.1).flatten(1).std(1)
    assert spread.max() == pytest.approx(0.1, abs=0.01)
    assert spread.mean() == pytest.approx(0.05, abs=0.005)


def test_jpeg_is_pillows_at_a_quality_and_a_place_of_the_grid_that_each_draws():
    low = images(6, 20)
    made = degraded(low, low, 3, POSITIONS, jpeg=(30, 60))
    levels = ((low + 1) * 127.5).round().byte().permute(0, 2, 3, 1).numpy()
    for image, pixels, position in zip(made, levels, POSITIONS, strict=True):
        quality, top, left = draws.uniforms(3, "degradation", position, 7)[4:] * (31, 16, 16) // 1
        rows, columns = np.arange(20 + int(top)) - int(top), np.arange(20 + int(left)) - int(left)
        buffer = io.BytesIO()
        whole = pixels[rows.clip(0)][:, columns.clip(0)]
        Image.fromarray(whole).save(buffer, "JPEG", quality=int(30 + quality))
        wanted = np.asarray(Image.open(buffer))[-20:, -20:] / 127.5 - 1
        np.testing.assert_allclose(image.permute(1, 2, 0).numpy(), wanted, atol=1e-6)


def test_jpeg_costs_more_at_less_quality_and_comes_last():
    low = images(40, 16)
    losses = [(compressed(low, 0, range(40), (q, q)) - low).square().mean() for q in (10, 50, 90)]
    assert losses[0] > losses[1] > losses[2] > 0
    noisy = degraded(low, low, 0, range(40), noise=0.1)
    assert torch.equal(
        degraded(low, low, 0, range(40), noise=0.1, jpeg=(10, 90)), compressed(noisy, 0, range(40), (10, 90))
    )


def test_a_crop_is_made_worse_in_the_same_way_in_any_batch():
    low, high = images(6, 8), images(6, 32, 1)
    ways = {"filters": FILTERS, "blur": 1.0, "noise": 0.1, "coarse_noise": 0.1, "jpeg": (20, 80)}
    whole = degraded(low, high, 7, POSITIONS, **ways)
    parts = [degraded(low[i : i + 1], high[i : i + 1], 7, POSITIONS[i : i + 1], **ways) for i in range(6)]
    torch.testing.assert_close(torch.cat(parts), whole, atol=1e-12, rtol=0)
    assert not torch.equal(degraded(low, high, 8, POSITIONS, **ways), whole)
