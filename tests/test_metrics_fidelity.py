"""PSNR and SSIM of super-resolution, and scores that say how they were made."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from test_metrics_similarity import slow_ssim

from pgsr.errors import PgsrError
from pgsr.trainer.metrics.fidelity import fidelity, luminance
from pgsr.trainer.metrics.score import Score, difference, from_dict


def pictures(count: int, height: int, width: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (count, height, width, 3), dtype=np.uint8)


def slow_y(pixels: np.ndarray) -> np.ndarray:
    """MATLAB's rgb2ycbcr, not rounded."""
    r, g, b = np.moveaxis(pixels.astype(np.float64) / 255, -1, 0)
    return 65.481 * r + 128.553 * g + 24.966 * b + 16


def test_luminance():
    colours = np.array([[[[0, 0, 0], [255, 255, 255], [255, 0, 0]]]], dtype=np.uint8)
    assert luminance(colours).flatten().tolist() == pytest.approx([16.0, 235.0, 81.481])


def test_against_a_slow_version():
    made, originals = pictures(3, 26, 30), pictures(3, 26, 30, seed=1)
    found = fidelity(made, originals, border=4)
    for i in range(3):
        a, b = (slow_y(p[i])[4:-4, 4:-4] for p in (made, originals))
        assert float(found.psnr_db[i]) == pytest.approx(10 * math.log10(255**2 / ((a - b) ** 2).mean()))
        three = [np.repeat(y[:, :, None], 3, axis=2) for y in (a, b)]
        assert float(found.ssim[i]) == pytest.approx(slow_ssim(*three)[0], abs=1e-12)


def test_the_border_does_not_count():
    originals = pictures(1, 24, 24)
    made = originals.copy()
    made[:, :4], made[:, -4:], made[:, :, :4], made[:, :, -4:] = 0, 0, 255, 255
    found = fidelity(made, originals, border=4)
    assert float(found.psnr_db) == pytest.approx(100.0)  # equal inside
    assert float(found.ssim) == pytest.approx(1.0)
    assert float(fidelity(made, originals, border=3).psnr_db) < 20


def test_a_step_of_grey_is_219_of_255_in_y():
    grey = np.full((1, 16, 16, 3), 100, dtype=np.uint8)
    psnr = float(fidelity(grey + np.uint8(10), grey, border=0).psnr_db)
    assert psnr == pytest.approx(20 * math.log10(255 / (10 * 219 / 255)))


def test_what_cannot_be_compared():
    with pytest.raises(PgsrError, match="PSNR and SSIM of pictures"):
        fidelity(pictures(1, 16, 16), pictures(1, 16, 17), 0)
    with pytest.raises(PgsrError, match="nothing inside a border of 8"):
        fidelity(pictures(1, 16, 16), pictures(1, 16, 16), 8)


# ----------------------------------------------------------------------------
# Scores.

MADE = {"images": 2000, "resolution": 64, "resize": "lanczos", "features": "f58c"}


def test_scores_made_alike_compare():
    assert difference(Score("FID", 3.0, MADE), Score("FID", 1.0, dict(MADE))) == 2.0


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"images": 50_000}, "images 2000 .* images 50000"),
        ({"resize": "bicubic"}, "resize lanczos .* resize bicubic"),
        ({"features": "0123"}, "features f58c .* features 0123"),
        ({"pairs": 7}, "pairs None .* pairs 7"),
    ],
)
def test_scores_made_differently_do_not(change: dict, told: str):
    a, b = Score("FID", 3.0, MADE), Score("FID", 1.0, MADE | change)
    with pytest.raises(PgsrError, match=told):
        difference(a, b)
    with pytest.raises(PgsrError):
        difference(b, a)


def test_scores_of_other_metrics_do_not():
    with pytest.raises(PgsrError, match="FID and KID are different metrics"):
        difference(Score("FID", 3.0, MADE), Score("KID", 1.0, MADE))


def test_a_score_comes_back_from_its_dictionary():
    score = Score("IS", 2.1, MADE, 0.2)
    assert from_dict(score.as_dict()) == score
    for broken in ({}, {"name": "IS", "value": "x", "made": {}}, {"name": "IS", "value": 1.0, "made": 3}):
        with pytest.raises(PgsrError, match="not a score"):
            from_dict(broken)


def test_pixels_are_not_changed():
    made = pictures(1, 16, 16)
    made.setflags(write=False)  # as memory-mapped files are
    fidelity(made, made, 2)
    assert torch.equal(luminance(made), luminance(made.copy()))
