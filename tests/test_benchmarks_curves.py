"""Figures against time: both convolutions, growing or not, all resolutions of one generator."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from pgsr import draws
from pgsr.benchmarks.cli import main
from pgsr.benchmarks.curves import convolutions, growing, quality, quality_report, scales
from pgsr.benchmarks.report import trainings
from pgsr.errors import PgsrError
from pgsr.export.source import read_source
from pgsr.images import to_uint8
from pgsr.trainer.data.cache import load_photographs
from pgsr.trainer.metrics.swd import distance_between
from pgsr.trainer.run_folder.plot import Curve, curve_of
from pgsr.trainer.step.schedule import Phase
from pgsr.trainer.step.schedule import build as build_schedule

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
    assert_shown_as_growing(report)
    before = (tmp_path / "ladder-b" / "distances.jsonl").read_text()
    assert command(main, *arguments).exit_code == 0  # finished runs are not trained again
    assert (tmp_path / "ladder-b" / "distances.jsonl").read_text() == before


def assert_shown_as_growing(report: dict[str, Any]) -> None:
    """The report's part: separable steps here half as dear as vanilla ones."""
    slow = report["throughput"]
    fast = {
        **slow,
        "seconds_an_image": {side: seconds / 2 for side, seconds in slow["seconds_an_image"].items()},
        "phases": [{**row, "hours": row["hours"] / 2} for row in slow["phases"]],
        "speedup": [{**row, "grown": row["grown"] / 2} for row in slow["speedup"]],
    }
    shown = trainings.growing({**report, "separable_throughput": fast})
    assert "with growing separable is 2.0× as fast as vanilla" in shown.answers[1]
    distances, images, ratios = shown.figures[0].panels
    assert distances.body.count("<path") == 2
    assert images.body.count("<path") == 2
    assert images.body.count('class="vanilla dashed"') == 1
    assert ratios.body.count(">2.0×<") == len(slow["seconds_an_image"])


def test_the_report_shows_both_convolutions_by_resolution(drawn: Path):
    result = json.loads((drawn / "convolutions.json").read_text())
    result["seconds_an_image"] = {"vanilla": {"4": 1.0, "8": 6.0}, "separable": {"4": 2.0, "8": 2.0}}
    shown = trainings.convolutions(result)
    assert shown.answers[1] == "The gain is largest at 8² (3.0×); separable is slower at 4²."
    assert len(shown.figures[0].panels) == 2


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


# ----------------------------------------------------------------------------
# What separable costs in quality.


IMAGES = 320  # of a run: 20 steps


def quality_settings(data: Path, out: Path, **changes: Any) -> quality.Settings:
    sizes = {"resolution": 16, "images": IMAGES, "maps": 4, "seeds": 2, "looks": 4, "scored": 16, "rounds": 1}
    overrides = ("generator.latent_size=8",)
    return quality.Settings(data, out, data, overrides=overrides, device="cpu", **{**sizes, **changes})


@pytest.fixture(scope="module")
def scored(pictures: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """`pgsr-bench quality-curves`, tiny."""
    out = tmp_path_factory.mktemp("quality-curves")
    return out, quality.run(quality_settings(pictures, out), lambda line: None)


def test_the_wide_network_has_the_parameters_of_the_vanilla_one(tmp_path: Path):
    vanilla, narrow, wide = quality.kinds_of(quality_settings(tmp_path, tmp_path, maps=32))
    assert (vanilla.maps, narrow.maps) == (32, 32)
    assert narrow.parameters < 0.6 * vanilla.parameters
    assert wide.maps > 32
    assert wide.parameters == pytest.approx(vanilla.parameters, rel=0.1)
    recipe = quality.recipe_of(quality_settings(tmp_path, tmp_path), "separable", wide.maps, 3, 2000)
    assert (recipe.seed, recipe.generator["convolution"]) == (3, "separable")
    assert build_schedule(recipe.schedule, 1).total_images == 2000


def test_hours_are_images_times_their_seconds(tmp_path: Path):
    settings = quality_settings(tmp_path, tmp_path, images=1600)
    recipe = quality.recipe_of(settings, "vanilla", 4, 0, 1600)  # 160 at 4, 320 at 8, the rest at 16
    seconds = {"4": {"median": 1.0}, "8": {"median": 2.0}, "16": {"median": 4.0}}
    assert 3600 * quality.hours_at(160, recipe, seconds) == pytest.approx(160)
    assert 3600 * quality.hours_at(1600, recipe, seconds) == pytest.approx(160 + 640 + 4 * 1120)
    kind = quality.Kind(quality.SEPARABLE, "separable", 4, 1)
    hours = quality.hours_at(1600, recipe, seconds)
    half = {side: {"median": row["median"] / 2} for side, row in seconds.items()}
    assert quality.images_for(hours, settings, kind, half) == 1600 + 16 * round(
        (160 + 640 + 4 * 1120) / 4 / 16
    )
    assert quality.images_for(hours / 2, settings, kind, seconds) == 1600  # never fewer than all


def test_all_see_as_many_images_and_a_cheap_one_takes_as_much_time(scored: tuple[Path, dict[str, Any]]):
    result = scored[1]
    seconds = result["seconds_an_image"]
    for row in result["runs"]:
        last = row["looks"][-1]
        assert last["images"] == row["images"] >= IMAGES
        if row["kind"] == quality.VANILLA:
            assert (row["images"], last["hours"]) == (IMAGES, pytest.approx(result["hours"]))
        else:
            step = 16 * seconds[row["kind"]]["16"]["median"] / 3600
            assert last["hours"] >= result["hours"] - step or row["images"] == quality.LONGEST * IMAGES
    assert {(row["kind"], row["seed"]) for row in result["runs"]} == {
        (kind, seed) for kind in (quality.VANILLA, quality.SEPARABLE, quality.WIDE) for seed in (0, 1)
    }


def test_quality_curves_go_on_and_are_written(scored: tuple[Path, dict[str, Any]], pictures: Path):
    out, first = scored
    again = quality.run(quality_settings(pictures, out), lambda line: None)
    told = {"noise", "date"}
    assert {k: v for k, v in again.items() if k not in told} == {
        k: v for k, v in first.items() if k not in told
    }
    quality_report.write_report(first, out)
    assert json.loads((out / "quality-curves.json").read_text())["runs"] == first["runs"]
    assert "| SWD | time, parameters |" in (out / "quality-curves.md").read_text()
    svg = (out / "quality-curves.svg").read_text()
    assert svg.count('<path d="M') == 6  # three curves over images and over time
    with pytest.raises(PgsrError, match="other settings"):
        quality.run(quality_settings(pictures, out, maps=8), lambda line: None)


def curve(*points: tuple[float, float]) -> list[dict[str, float]]:
    return [{"images": x, "hours": x, "SWD": y, "recall": -y} for x, y in points]


def test_where_curves_cross_last():
    theirs = curve((0, 10), (10, 5), (20, 4))
    ours = curve((0, 12), (10, 7), (20, 2))
    for name in ("SWD", "recall"):  # one is better the lower, the other the higher
        assert quality.last_crossing(ours, theirs, name, "images") == (pytest.approx(15.0), True)
        assert quality.last_crossing(theirs, ours, name, "images") == (pytest.approx(15.0), False)
    worse = curve((0, 20), (30, 20))
    assert quality.last_crossing(worse, theirs, "SWD", "images") == (None, False)
    assert quality.at_point(ours, "SWD", "images", 15) == pytest.approx(4.5)


def test_better_is_by_more_than_two_standard_errors():
    def better(ours: list[float], theirs: list[float], score: str = "SWD") -> str:
        found = quality.difference(score, {quality.SEPARABLE: ours, quality.VANILLA: theirs}, "separable")
        return str(found["better"])

    assert better([10, 11, 12], [20, 21, 22]) == "separable"
    assert better([10, 11, 12], [20, 21, 22], "recall") == "vanilla"
    assert better([10, 20, 30], [15, 25, 35]) == "unclear"
    assert better([10], [20]) == "unclear"  # one seed tells nothing


@pytest.mark.parametrize(
    "change", [{"resolution": 8}, {"images": 100}, {"maps": 1}, {"seeds": 0}, {"looks": 1}]
)
def test_quality_curves_refuse_in_a_line(change: dict[str, int], tmp_path: Path):
    with pytest.raises(PgsrError, match=f"--{next(iter(change))}"):
        quality_settings(tmp_path, tmp_path, **change)
