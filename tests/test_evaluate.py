"""Quality while training: measured right, the best kept, and nothing disturbed by looking."""

from __future__ import annotations

import json
import signal
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pgsr import draws
from pgsr.checkpoint import load
from pgsr.export.lowering import Grown
from pgsr.export.source import read_source
from pgsr.images import to_uint8
from pgsr.trainer import cli
from pgsr.trainer.data.cache import Noise, load_photographs
from pgsr.trainer.loop import Progress
from pgsr.trainer.metrics.swd import distance_between
from pgsr.trainer.run_folder import evaluate
from pgsr.trainer.run_folder.status import status_of
from pgsr.trainer.step import recipe as config
from pgsr.trainer.step.batches import batches_for
from pgsr.trainer.step.parallel import ALONE
from pgsr.trainer.step.pixels import data_indices, mirrored
from processes import EVERY_STEP, Process, Server, assert_same_run, finish, metrics

TOTAL = 24 + 40 + 24
EVERY, COUNT = 8, 20

Start = Callable[..., Process]


@pytest.fixture(scope="module")
def start(server: Server, toy: Path, tmp_path_factory: pytest.TempPathFactory) -> Start:
    """start(out, "--flag", ...): 8 x 8, a fade, 16 x 16; logged at every step, evaluated if told to."""
    path = tmp_path_factory.mktemp("recipe") / "evaluated.toml"
    grown = EVERY_STEP.replace("resolution = 8", "resolution = 16")
    path.write_text(
        grown.replace("[schedule]", "[schedule]\nstart_resolution = 8").replace(
            "checkpoint_images = 1", f"checkpoint_images = 20\nkeep_checkpoints = 1\nswd_images = {COUNT}"
        )
    )

    def process(out: Path, *arguments: Any) -> Process:
        return server.start(path, "--data", toy, "--out", out, "--device", "cpu", *arguments)

    return process


@pytest.fixture(scope="module")
def whole(start: Start, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "whole"
    finish(start(out, "--eval-every", EVERY))
    return out


def measured(run: Path) -> dict[int, dict[str, float]]:
    """The lines with a distance, by images shown."""
    return {line["images_shown"]: line for line in metrics(run) if evaluate.AVERAGE in line}  # type: ignore[misc]


def checkpoint(run: Path, images_shown: int) -> Path:
    return run / "checkpoints" / f"{images_shown:09d}.safetensors"


def test_lines_come_as_often_as_told_from_16_pixels_on(whole: Path):
    lines = measured(whole)
    assert list(lines) == [*range(32, TOTAL + 1, EVERY)]  # nothing at 8 x 8; phases end at 64 and 88
    assert all({"swd/16", "swd/average"} < line.keys() for line in lines.values())
    assert all(line["swd_images"] == COUNT for line in lines.values())


def test_the_distance_is_that_of_the_averaged_generator(whole: Path, toy: Path):
    """Made again from the last checkpoint, with nothing of pgsr.trainer.run_folder.evaluate."""
    source = read_source(checkpoint(whole, TOTAL))
    latents = draws.normals(0, "evaluation", range(COUNT), source.latent_size)
    with torch.no_grad():
        fakes = to_uint8(Grown(source.generator, 16)(torch.from_numpy(latents)).numpy())
    photographs = load_photographs(toy, 16).pixels
    reals = np.stack(
        [
            photographs[i][:, ::-1] if flip else photographs[i]
            for i, flip in zip(data_indices(0, range(COUNT), 40), mirrored(0, range(COUNT)), strict=True)
        ]
    )
    expected = distance_between([reals], [fakes], 16, 0)
    assert measured(whole)[TOTAL]["swd/16"] == pytest.approx(expected.levels[16], rel=0.01)


def test_weights_are_those_of_a_run_that_never_looked(start: Start, whole: Path, tmp_path: Path):
    blind = tmp_path / "blind"
    finish(start(blind))
    common = [p for p in (blind / "checkpoints").iterdir() if (whole / "checkpoints" / p.name).exists()]
    assert {int(p.stem) for p in common} >= {24, 64, TOTAL}
    for path in common:
        a, b = load(path).tensors, load(whole / "checkpoints" / path.name).tensors
        assert a.keys() == b.keys()
        assert all(torch.equal(a[k], b[k]) for k in a)
    seen = [{k: v for k, v in line.items() if not k.startswith("swd")} for line in metrics(whole)]
    assert seen == metrics(blind)
    assert not (blind / evaluate.BEST).is_symlink()


def test_the_best_is_kept_and_pointed_at(whole: Path):
    lines = {shown: line for shown, line in measured(whole).items() if line["alpha"] == 1}
    shown = min(lines, key=lambda s: lines[s][evaluate.AVERAGE])
    assert (whole / evaluate.BEST).resolve() == checkpoint(whole, shown).resolve()
    assert load(whole / evaluate.BEST).progress["images_shown"] == shown
    kept = sorted(int(p.stem) for p in (whole / "checkpoints").iterdir())
    assert kept == sorted({24, 64, TOTAL, 80, shown})  # ends of phases, the last one, the best


def test_a_killed_run_ends_the_same(start: Start, whole: Path, tmp_path: Path):
    run = tmp_path / "run"
    for shown in (40, 72):
        process = start(run, "--eval-every", EVERY, *(["--resume"] if run.exists() else []))
        while not any(p.stem.isdigit() and int(p.stem) >= shown for p in run.glob("checkpoints/*")):
            assert not process.ended()
            time.sleep(0.001)
        process.send(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL
    finish(start(run, "--eval-every", EVERY, "--resume"))
    assert_same_run(run, whole)
    assert (run / evaluate.BEST).readlink() == (whole / evaluate.BEST).readlink()


def test_status_tells_of_the_best(command, whole: Path):
    told = json.loads(command(cli.main, "--status", whole, "--json").stdout)["best"]
    assert told["images_shown"] == int((whole / evaluate.BEST).resolve().stem)
    assert f"SWD {told['swd']:.2f} at {told['images_shown']} images: best.safetensors" in status_of(whole)[1]


def test_latents_of_labelled_generators_hold_the_labels_of_the_photographs():
    recipe = config.load("progan-cifar10-labels")
    batches = batches_for(recipe, Noise(30, labels=10), torch.device("cpu"), ALONE)
    rows = batches.evaluation(range(5, 9))
    assert rows.shape == (4, batches.latent_size + 10)
    shown = batches.labels[data_indices(recipe.seed, range(5, 9), 30)]
    assert rows[:, batches.latent_size :].argmax(1).tolist() == shown.tolist()
    expected = draws.normals(recipe.seed, "evaluation", range(5, 9), batches.latent_size)
    assert rows[:, : batches.latent_size].tolist() == expected.tolist()


def line(
    shown: int, swd: float, resolution: int = 64, images: int = 2000, alpha: float = 1.0
) -> dict[str, float]:
    made = {"resolution": resolution, "alpha": alpha, "swd_images": images}
    return {"images_shown": shown, "swd/average": swd, **made}


def test_best_compares_only_what_compares():
    assert evaluate.best([]) is None
    assert evaluate.best([{"images_shown": 5}]) is None
    lines = [line(1, 9.0), line(2, 7.0), {"images_shown": 3}, line(4, 8.0), line(5, 7.0)]
    assert evaluate.best(lines)["images_shown"] == 2
    assert evaluate.best([line(1, 2.0, resolution=32), *lines])["images_shown"] == 2
    assert evaluate.best([line(1, 2.0, images=9000), *lines])["images_shown"] == 2
    assert evaluate.best([line(1, 2.0, alpha=0.9), *lines])["images_shown"] == 2
    assert evaluate.best([*lines, line(6, 30.0, resolution=128)])["images_shown"] == 6
    assert evaluate.best([*lines, line(6, 30.0, 128, alpha=0.1), line(7, 20.0, 128)])["images_shown"] == 7


def test_a_link_goes_where_its_checkpoint_went(tmp_path: Path):
    (tmp_path / "checkpoints").mkdir()
    checkpoint(tmp_path, 8).touch()
    evaluate.point_at(tmp_path, 8)
    assert (tmp_path / evaluate.BEST).is_file()
    evaluate.point_at(tmp_path, 16)  # which is not there
    assert not (tmp_path / evaluate.BEST).is_symlink()
    evaluate.point_at(tmp_path, None)


def test_time_of_looking_is_not_time_of_training(monkeypatch: pytest.MonkeyPatch):
    now = [100.0]
    monkeypatch.setattr("pgsr.trainer.loop.time.monotonic", lambda: now[0])
    progress = Progress.__new__(Progress)
    progress.recent = deque([(90.0, 0)], maxlen=20)
    progress.began = 40.0
    with progress.paused():
        now[0] += 1000.0
    assert list(progress.recent) == [(1090.0, 0)]
    assert progress.seconds() == 60.0


def test_what_cannot_be_measured(command, toy: Path, tmp_path: Path):
    small = tmp_path / "small.toml"
    small.write_text(EVERY_STEP)
    arguments = ("--data", toy, "--out", tmp_path / "run", "--device", "cpu", "--eval-every", 8)
    result = command(cli.main, small, *arguments)
    assert result.exit_code == 1
    assert "SWD needs a resolution that is a power of two from 16, not 8" in result.stderr
    sizes = (
        "data.resolution=16",
        "schedule.resolution=8",
        "schedule.start_resolution=8",
        "generator.features=4",
        "generator.blocks=1",
        "generator.scale=2",
    )
    smaller = [part for size in sizes for part in ("--set", size)]
    result = command(cli.main, "srresnet-4x", *arguments, *smaller)
    assert result.exit_code == 1
    assert "is for generators that begin with latents" in result.stderr
    assert not (tmp_path / "run").exists()
    result = command(cli.main, small, *arguments[:-2], "--set", "run.evaluate_images=-1")
    assert "run.evaluate_images is -1, but must be at least 0" in result.stderr
