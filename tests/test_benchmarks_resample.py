"""pgsr-bench resample: energies by slow references and pure waves, PSNR by hand, the report."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pgsr.benchmarks.cli import main
from pgsr.benchmarks.resample import measure as resample
from pgsr.benchmarks.resample.measure import PAPER, aliasing_and_loss, cosines, rank_correlation, split
from pgsr.trainer.data import procedural
from pictures import png, write_zip


def wave(side: int, k: int, j: int = 0) -> np.ndarray:
    """A cosine with k half periods down and j across: one coefficient of the transform."""
    i = np.arange(side) + 0.5
    return np.cos(np.pi * k * i / side)[:, None] * np.cos(np.pi * j * i / side)[None, :]


def test_the_cosine_transform_by_its_definition():
    matrix = cosines(24)
    np.testing.assert_allclose(matrix @ matrix.T, np.eye(24), atol=1e-12)
    for k in (1, 7, 23):
        np.testing.assert_allclose(matrix[k], wave(24, k)[:, 0] * np.sqrt(2 / 24), atol=1e-12)


@pytest.mark.parametrize(("k", "j"), [(3, 0), (11, 5), (0, 11), (12, 0), (5, 20), (47, 47)])
def test_pictures_are_split_at_the_nyquist_frequency(k: int, j: int):
    """48 to 12: a wave of fewer than 12 half periods a side is kept, and seen at the small size as it is."""
    low, ideal = split(wave(48, k, j), 12)
    kept = k < 12 and j < 12
    np.testing.assert_allclose(low, wave(48, k, j) if kept else np.zeros((48, 48)), atol=1e-12)
    np.testing.assert_allclose(ideal, wave(12, k, j) if kept else np.zeros((12, 12)), atol=1e-12)


def test_aliasing_and_loss_of_box_and_nearest_by_slow_sums():
    """A box filter is the mean of 4 x 4; nearest takes one pixel, the third of four."""
    random = np.random.default_rng(0)
    grey = random.normal(0, 30, (48, 48)) + 60 * wave(48, 3, 2)
    low, ideal = split(grey - grey.mean(), 12)
    high = grey - grey.mean() - low
    ways = {
        "box": lambda x: np.array([[x[i : i + 4, j : j + 4].mean() for j in R] for i in R]),
        "nearest": lambda x: np.array([[x[i + 2, j + 2] for j in R] for i in R]),
    }
    found = aliasing_and_loss(grey, 12)
    for name, way in ways.items():
        folded = (way(high) ** 2).sum() / ((high**2).sum() / 16)
        changed = ((way(low) - ideal) ** 2).sum() / (ideal**2).sum()
        assert found[name] == pytest.approx((folded, changed), rel=1e-4)
    assert found["nearest"][0] == pytest.approx(1, abs=0.25)  # it folds everything


R = range(0, 48, 4)


def test_waves_on_either_side_of_the_limit():
    """What is low cannot alias, what is high cannot be lost; long filters do better than short ones."""
    assert all(aliasing == 0 for aliasing, _ in aliasing_and_loss(wave(64, 5), 16).values())
    high = aliasing_and_loss(wave(64, 40), 16)
    assert all(loss == 0 for _, loss in high.values())
    assert high["lanczos"][0] < high["box"][0] < high["nearest"][0]
    slow = aliasing_and_loss(wave(64, 9), 16)
    assert slow["lanczos"][1] < slow["bicubic"][1] < slow["bilinear"][1]


def test_ranks_are_spearmans():
    assert rank_correlation([1, 2, 3], [10, 20, 400]) == pytest.approx(1)
    assert rank_correlation([1, 2, 3], [3, 2, 1]) == pytest.approx(-1)
    assert rank_correlation([1, 2, 2, 4], [1, 3, 2, 4]) == pytest.approx(4.5 / np.sqrt(4.5 * 5))  # by hand


def test_paper_1s_table():
    order = sorted(PAPER, key=lambda name: PAPER[name][0])
    assert order == ["nearest", "box", "bilinear", "hamming", "bicubic", "lanczos"]
    assert [PAPER[name][1] for name in ("lanczos", "bicubic", "box", "nearest")] == [5, 4, 2, 1]


def test_the_report(tmp_path: Path, command):
    result = command(
        main,
        "resample",
        "--from-size",
        96,
        "--to-size",
        24,
        "--pictures",
        2,
        "--rounds",
        1,
        "--out",
        tmp_path,
    )
    assert result.exit_code == 0, result.output
    found = json.loads((tmp_path / "resample.json").read_text())
    assert [row["filter"] for row in found["rows"]] == list(PAPER)
    assert (found["from"], found["to"], found["pictures"]) == (96, 24, 2)
    lines = result.stdout.splitlines()
    for name, line in zip(PAPER, lines[1:], strict=False):
        assert line.startswith(name)
        assert line.endswith(f"{PAPER[name][1]} of 5")
    assert "resample.png" in (tmp_path / "resample.md").read_text()
    with Image.open(tmp_path / "resample.png") as picture:
        assert picture.width > 7 * 200
    rows = {row["filter"]: row for row in found["rows"]}
    assert all(row["seconds"] > 0 for row in rows.values())
    assert rows["nearest"]["aliasing"] > 5 * rows["lanczos"]["aliasing"]


@pytest.mark.parametrize("enlarge", ["bicubic", "same"])
def test_psnr_by_hand(enlarge: str, tmp_path: Path, command):
    """Of Y by BT.601 in studio range, a border of the factor left out."""
    source = write_zip(tmp_path / "in.zip", [("a.png", png(64, 3)), ("bad.png", b"x"), ("tiny.png", png(16))])
    options = ("--data", source, "--to-size", 16, "--rounds", 1, "--enlarge", enlarge, "--json")
    result = command(main, "resample", *options)
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    assert found["pictures"] == 1
    original = procedural.draw(3, 64)
    y = np.array((65.481, 128.553, 24.966)) / 255
    for row in found["rows"]:
        way = resample.FILTERS[row["filter"]]
        back = way if enlarge == "same" else Image.Resampling.BICUBIC
        again = original.resize((16, 16), way).resize((64, 64), back)
        error = (np.asarray(again, float) @ y - np.asarray(original, float) @ y)[4:-4, 4:-4]
        assert row["psnr_db"] == pytest.approx(10 * np.log10(255**2 / (error**2).mean()), abs=1e-6)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--enlarge", "sinc"), "--enlarge = 'sinc' is not one of"),
        (("--to-size", 8), "--to-size 8 is below 16"),
        (("--from-size", 32, "--to-size", 32), "does not reduce pictures of 32x32"),
        (("--data", "absent"), "no folder or zip of pictures at absent"),
        (("--rounds", 0), "must be 1 or more"),
    ],
)
def test_what_a_user_gets_wrong_is_one_line(arguments: tuple, message: str, command):
    result = command(main, "resample", *arguments)
    assert result.exit_code == 1
    assert message in result.stderr
    assert len(result.stderr.splitlines()) == 1


def test_pictures_that_are_too_small(tmp_path: Path, command):
    source = write_zip(tmp_path / "in.zip", [("a.png", png(32))])
    result = command(main, "resample", "--data", source, "--from-size", 64, "--to-size", 16)
    assert result.exit_code == 1
    assert "holds no picture of 64x64 or more" in result.stderr


def test_the_zone_plate_has_every_frequency():
    plate = np.asarray(resample.zone_plate(64))[..., 0].astype(float)
    assert abs(plate - plate[::-1]).max() == 0
    assert plate[31:33, 31:33].min() > 250
