"""Figures against time: both convolutions, growing or not, all resolutions of one generator."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from pgsr import draws
from pgsr.benchmarks.cli import main
from pgsr.benchmarks.curves import convolutions, growing, scales
from pgsr.errors import PgsrError
from pgsr.export.source import read_source
from pgsr.images import to_uint8
from pgsr.trainer.data.cache import load_photographs
from pgsr.trainer.metrics.swd import distance_between
from pgsr.trainer.run_folder.plot import Curve, curve_of
from pgsr.trainer.step.schedule import Phase

SMALL = ("--device", "cpu", "--set", "generator.latent_size=8")


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pictures")
    random = np.random.default_rng(0)
    for i in range(24):
        Image.fromarray(random.integers(0, 256, (16, 16, 3), dtype=np.uint8)).save(folder / f"{i}.png")
    return folder


@pytest.fixture(scope="module")
def drawn(pictures: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The report of `pgsr-bench convolutions`, of two short runs to 8 x 8."""
    out = tmp_path_factory.mktemp("convolutions")
    result = convolutions.run(settings_of(pictures, out), lambda line: None)
    convolutions.write_report(result, settings_of(pictures, out))
    return out


def settings_of(data: Path, out: Path) -> convolutions.Settings:
    overrides = ("schedule.batch=4", "generator.latent_size=8")
    return convolutions.Settings(data, out, 8, images=16, maps=4, overrides=overrides, device="cpu")


def test_both_convolutions_train_what_the_recipes_do(pictures: Path, tmp_path: Path):
    for name in ("separable", "vanilla"):
        recipe = convolutions.reduced(name, settings_of(pictures, tmp_path))
        assert recipe.generator["convolution"] == recipe.discriminator["convolution"] == name
        assert (recipe.schedule.fade_images, recipe.schedule.stable_images) == (16, 16)
        assert recipe.objective.gradient_penalty == 10.0


def test_the_figure_of_both_convolutions_is_drawn_from_their_clocks(drawn: Path):
    result = json.loads((drawn / "convolutions.json").read_text())
    for name in ("separable", "vanilla"):
        curve = curve_of(drawn / name)
        spent = sum(result["seconds_an_image"][name][side] * n for side, n in (("4", 16), ("8", 32)))
        assert spent == pytest.approx(3600 * curve.hours[-1])
        hours = result["paper_hours"][name]
        costs = result["seconds_an_image"][name]
        assert hours["4"] == pytest.approx(800_000 * costs["4"] / 3600)
        assert hours["8"] - hours["4"] == pytest.approx(1_600_000 * costs["8"] / 3600)
    clock, cost, _ = convolutions.picture(result, {k: curve_of(drawn / k) for k in convolutions.COLOURS}).axes
    assert {line.get_label(): line.get_color() for line in clock.get_lines()[:2]} == convolutions.COLOURS
    assert [text.get_text() for text in clock.texts] == [" 4²", " 8²"]
    assert np.asarray(cost.get_lines()[0].get_xdata()).tolist() == [4, 8]
    assert "| 8 x 8 |" in (drawn / "convolutions.md").read_text()
    assert (drawn / "convolutions.png").read_bytes().startswith(b"\x89PNG")


def test_an_image_costs_what_the_clock_says():
    lines = [
        {"images_shown": n, "step": n, "resolution": side, "alpha": 1.0, "batch": 4}
        for n, side in ((10, 4), (20, 4), (40, 8))
    ]
    curve = Curve(Path("run"), "recipe", lines, [1.0, 2.0, 7.0])
    assert convolutions.seconds_an_image(curve) == {4: 360.0, 8: 900.0}


def test_growing_is_drawn_against_time(
    command, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setitem(growing.QUICK, "final", 8)
    monkeypatch.setitem(growing.QUICK, "images", 1280)
    monkeypatch.setitem(growing.QUICK, "swd_images", 20)
    monkeypatch.setitem(growing.QUICK, "evaluations", 2)
    arguments = ("growing", "--data", pictures, "--out", tmp_path, "--quick", *SMALL)
    result = command(main, *arguments)
    assert result.exit_code == 0, result.output
    report = json.loads((tmp_path / "growing.json").read_text())
    assert [len(report["runs"][rung]["looks"]) for rung in "ab"] == [2, 2]
    for rung in "ab":
        looks = report["runs"][rung]["looks"]
        assert looks[0]["seconds"] < looks[1]["seconds"]
        assert looks[1]["images_shown"] == curve_of(tmp_path / f"ladder-{rung}").lines[-1]["images_shown"]
        assert looks[1]["seconds"] == pytest.approx(3600 * curve_of(tmp_path / f"ladder-{rung}").hours[-1])
    source = read_source(tmp_path / "ladder-a")
    latents = torch.from_numpy(draws.normals(0, "evaluation", range(20), 8))
    with torch.no_grad():
        fakes = to_uint8(source.generator.at(16, 1.0)(latents).numpy())
    reals = load_photographs(pictures, 16).pixels[:20]
    expected = distance_between([reals], [fakes], 16, 0).average
    assert report["runs"]["a"]["looks"][-1]["swd/average"] == pytest.approx(expected, rel=1e-3)
    assert (tmp_path / "growing.png").read_bytes().startswith(b"\x89PNG")
    before = (tmp_path / "ladder-b" / "distances.jsonl").read_text()
    assert command(main, *arguments).exit_code == 0  # finished runs are not trained again
    assert (tmp_path / "ladder-b" / "distances.jsonl").read_text() == before


def test_what_growing_gains_is_arithmetic():
    phases = [
        Phase(4, False, 4, 0, 100, 0, 0),
        Phase(8, True, 4, 100, 100, 25, 100),
        Phase(8, False, 4, 200, 100, 50, 100),
    ]
    cost = {4: 36.0, 8: 72.0}
    assert growing.hours_at_ends(phases, cost) == [1.0, 3.0, 5.0]
    found = growing.speedup(150, phases, cost)
    assert (found["grown"], found["plain"], found["ratio"]) == (2.0, 3.0, 1.5)
    assert found["phase"] == "fade 8"
    assert growing.speedup(300, phases, cost)["ratio"] == pytest.approx(6.0 / 5.0)


def test_all_resolutions_of_one_generator(command, drawn: Path, tmp_path: Path):
    result = command(main, "scales", drawn / "vanilla", "--count", 3, "--out", tmp_path)
    assert result.exit_code == 0, result.output
    report = json.loads((tmp_path / "scales.json").read_text())
    assert [row["resolution"] for row in report["resolutions"]] == [8, 4]
    assert report["resolutions"][0]["difference"] == 0.0
    source = read_source(drawn / "vanilla")
    with torch.no_grad():
        latents = torch.from_numpy(draws.latents(0, range(3), 8))
        small, large = (source.generator.at(side, 1.0)(latents) for side in (4, 8))
    reduced = large.clamp(-1, 1).reshape(3, 3, 4, 2, 4, 2).mean((3, 5))
    gap = (small.clamp(-1, 1) - reduced) * 127.5
    assert report["resolutions"][1]["difference"] == pytest.approx(
        gap.square().mean().sqrt().item(), rel=1e-3
    )
    sheet = np.asarray(Image.open(tmp_path / "scales.png"))
    assert sheet.shape == (2 * 64 + 6, 3 * 64 + 8, 3)  # with gaps of 2 pixels
    first = to_uint8(small.numpy())[0]
    assert np.array_equal(sheet[68:132, 2:66], first.repeat(16, axis=0).repeat(16, axis=1))


@pytest.mark.parametrize(
    ("make", "told"),
    [
        (lambda: convolutions.Settings(Path(), Path(), resolution=128), "not 8, 16, 32 or 64"),
        (lambda: convolutions.Settings(Path(), Path(), images=1), "below 16"),
        (lambda: growing.Settings(Path(), Path(), final=4), "--final 4"),
        (lambda: growing.Settings(Path(), Path(), evaluations=0), "--evaluations"),
        (lambda: growing.Settings(Path(), Path(), resolution=8), "--resolution 8"),
        (lambda: scales.Settings(Path(), count=0), "0"),
    ],
)
def test_sizes_out_of_range(make, told: str):
    with pytest.raises(PgsrError, match=told):
        make()
