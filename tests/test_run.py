"""Runs that meet trouble: full disks, closed folders, signals, divergence; and what is seen from outside."""

from __future__ import annotations

import dataclasses
import json
import math
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from pgsr.benchmarks.gpu import slim
from pgsr.checkpoint import load
from pgsr.trainer import cli
from pgsr.trainer.run_folder import metrics_log, plot
from processes import EVERY_STEP, Process, Server, assert_same_run, finish, metrics

TOTAL = 24 + 40 + 24

Start = Callable[..., Process]


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("recipe") / "every.toml"
    path.write_text(EVERY_STEP)
    return path


@pytest.fixture(scope="module")
def start(server: Server, recipe: Path, toy: Path) -> Start:
    """start(out, "--flag", ..., file_bytes=..., privileged=...): a real process."""

    def process(out: Path, *arguments: Any, **limits: Any) -> Process:
        return server.start(recipe, "--data", toy, "--out", out, "--device", "cpu", *arguments, **limits)

    return process


@pytest.fixture(scope="module")
def whole(start: Start, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "whole"
    finish(start(out))
    return out


def wait_for(process: Process, *paths: Path) -> None:
    while not all(path.exists() for path in paths) and not process.ended():
        time.sleep(0.001)


def checkpoint(run: Path, images_shown: int) -> Path:
    return run / "checkpoints" / f"{images_shown:09d}.safetensors"


def error_of(process: Process) -> str:
    """The one line with which it ended with 1; every checkpoint it left is whole."""
    assert process.wait() == 1, process.stderr
    assert "Traceback" not in process.stderr
    lines = process.stderr.replace("\r", "\n").splitlines()
    (line,) = (x for x in lines if x.startswith("error: "))
    return line


def assert_whole(run: Path) -> None:
    files = list((run / "checkpoints").glob("*.safetensors"))
    assert files
    for path in files:
        load(path)


# ----------------------------------------------------------------------------
# Full disks.


@pytest.mark.parametrize("share", [0.5, 0.7, 0.9])
def test_a_full_disk_stops_the_run_and_the_last_checkpoint_is_whole(
    start: Start, whole: Path, disk: Callable[[str], Path], share: float
):
    """A disk on which a part of the run has room; once there is more, --resume makes it whole."""
    pages = [-(-p.stat().st_size // 4096) for p in whole.rglob("*") if p.is_file()]
    needed = 4096 * sum(pages)  # what a tmpfs gives to files
    run = disk(f"size={int(needed * share / 1024)}k") / "run"
    line = error_of(start(run))
    assert "no space left for" in line
    assert "free some disk space" in line
    assert_whole(run)
    disk("size=100m")
    finish(start(run, "--resume"))
    assert_same_run(run, whole)


def test_a_checkpoint_that_may_not_grow_stops_the_run(start: Start, whole: Path, tmp_path: Path):
    """A limit that the kernel sets (EFBIG), which needs no file system of its own."""
    run, largest = tmp_path / "run", largest_checkpoint(whole)
    line = error_of(start(run, file_bytes=largest - 100))
    assert line.startswith(f"error: cannot write {run / 'checkpoints'}")
    assert line.endswith(": File too large")
    assert_whole(run)
    finish(start(run, "--resume"))
    assert_same_run(run, whole)


def test_a_log_that_may_not_grow_stops_the_run(start: Start, whole: Path, tmp_path: Path):
    """metrics.jsonl or the TensorBoard events, which outgrow checkpoints in a long run."""
    run, long = tmp_path / "run", ("--set", "schedule.at.4.stable_images=4000")
    line = error_of(start(run, *long, file_bytes=largest_checkpoint(whole)))
    assert line.startswith((f"error: cannot write {run}: ", f"error: cannot write {run / 'metrics.jsonl'}: "))
    assert line.endswith(": File too large")
    assert_whole(run)
    before = max((run / "checkpoints").iterdir())
    process = start(run, *long, "--resume")
    wait_for(process, checkpoint(run, int(before.stem) + 8))
    process.send(signal.SIGTERM)
    finish(process)


def largest_checkpoint(run: Path) -> int:
    return max(p.stat().st_size for p in (run / "checkpoints").iterdir())


# ----------------------------------------------------------------------------
# Folders that cannot be written.


def test_a_folder_that_is_closed_while_it_trains(start: Start, whole: Path, tmp_path: Path):
    """By its permissions, for a process that they bind: root's privilege is given up."""
    run = tmp_path / "run"
    process = start(run, privileged=False)
    wait_for(process, checkpoint(run, 24))
    (run / "checkpoints").chmod(0o555)
    line = error_of(process)
    assert f"cannot write {run / 'checkpoints'}" in line
    assert "Permission denied" in line
    assert_whole(run)
    (run / "checkpoints").chmod(0o755)
    finish(start(run, "--resume", privileged=False))
    assert_same_run(run, whole)


def test_a_folder_that_was_closed_before(start: Start, tmp_path: Path):
    (tmp_path / "closed").mkdir(mode=0o555)
    line = error_of(start(tmp_path / "closed" / "run", privileged=False))
    assert line == f"error: cannot write {tmp_path / 'closed' / 'run'}: Permission denied"


def test_a_file_system_that_becomes_read_only(start: Start, whole: Path, disk: Callable[[str], Path]):
    run = disk("size=100m") / "run"
    process = start(run)
    wait_for(process, checkpoint(run, 24))
    for _ in range(100):
        mounted = subprocess.run(["mount", "-o", "remount,ro", str(run.parent)], capture_output=True)
        if mounted.returncode == 0:
            break  # refused as long as a file is open for writing
    line = error_of(process)
    assert "Read-only file system" in line
    assert_whole(run)
    disk("rw")
    finish(start(run, "--resume"))
    assert_same_run(run, whole)


def test_two_processes_do_not_train_in_one_folder(
    start: Start, command, recipe: Path, toy: Path, tmp_path: Path
):
    run = tmp_path / "run"
    process = start(run, "--set", "schedule.stable_images=100000")
    wait_for(process, checkpoint(run, 4))
    again = command(cli.main, recipe, "--data", toy, "--out", run, "--device", "cpu", "--resume")
    assert f"error: another process is training in {run}" in again.stderr
    status = json.loads(command(cli.main, "--status", run, "--json").stdout)
    assert status["state"] == "training"
    process.send(signal.SIGTERM)
    finish(process)
    status = json.loads(command(cli.main, "--status", run, "--json").stdout)
    assert status["state"] == "stopped"


# ----------------------------------------------------------------------------
# Signals, and restarts.


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_leaves_a_checkpoint_and_the_command(
    start: Start, whole: Path, tmp_path: Path, number: signal.Signals
):
    run = tmp_path / "run"
    process = start(run, "--set", "run.checkpoint_images=1000")
    wait_for(process, run / "metrics.jsonl")
    process.send(number)
    finish(process)
    shown = int(max((run / "checkpoints").iterdir()).stem)
    assert f"{run}: {shown} images shown; to go on: pgsr-train " in process.stdout
    assert process.stdout.endswith(" --set run.checkpoint_images=1000 --resume\n")
    finish(start(run, "--resume"))
    assert_same_weights(run, whole)


def test_resume_alone_takes_the_runs_own_recipe(
    start: Start, command, whole: Path, toy: Path, tmp_path: Path
):
    run = tmp_path / "run"
    process = start(run)
    wait_for(process, checkpoint(run, 4))
    process.send(signal.SIGTERM)
    finish(process)
    again = command(cli.main, "--resume", "--data", toy, "--out", run, "--device", "cpu")
    assert again.exit_code == 0, again.stderr
    assert_same_weights(run, whole)
    for wrong, said in (
        (("--resume", "--data", toy), "name a recipe, or the run's folder with --out and --resume"),
        (("--resume", "--data", toy, "--out", tmp_path / "none"), "is not a run's folder: No such file"),
    ):
        failed = command(cli.main, *wrong)
        assert failed.exit_code == 1
        assert said in failed.stderr


def assert_same_weights(run: Path, reference: Path) -> None:
    """Of the last checkpoint."""
    a, b = (load(checkpoint(folder, TOTAL)).tensors for folder in (run, reference))
    assert a.keys() == b.keys()
    assert all(torch.equal(a[k], b[k]) for k in a)


@pytest.mark.parametrize("moments", ["float32", "bfloat16"])
def test_a_slim_checkpoint_goes_on(moments: str, command, start: Start, whole: Path, tmp_path: Path):
    """With its second moments kept exact, to the same bits; what it lacks is never read."""
    run = tmp_path / "run"
    (run / "checkpoints").mkdir(parents=True)
    shutil.copy(whole / "config.json", run)
    source = sorted((whole / "checkpoints").iterdir())[-2]
    small = run / "checkpoints" / source.name
    result = command(slim.main, source, "--out", small, "--moments", moments)
    assert result.exit_code == 0, result.stderr
    assert small.stat().st_size < 0.85 * source.stat().st_size
    assert load(small).tensors.keys() == {k for k in load(source).tensors if not k.endswith("/exp_avg")}
    finish(start(run, "--resume"))
    if moments == "float32":
        assert_same_weights(run, whole)
    else:
        a, b = (load(checkpoint(f, TOTAL)).under("generator.") for f in (run, whole))
        assert all(torch.allclose(a[k], b[k], atol=2e-4) for k in a)
        assert any(not torch.equal(a[k], b[k]) for k in a)


def test_first_moments_that_are_read_are_kept(whole: Path):
    """Adam with beta1 above 0 needs them."""
    found = load(max((whole / "checkpoints").iterdir()))
    for which, network in {"generator_optimizer": "generator", "critic_optimizer": "discriminator"}.items():
        config = {**found.config, which: {**found.config[which], "beta1": 0.5}}
        kept = slim.slimmed(dataclasses.replace(found, config=config), torch.float32).tensors
        first = {k for k in found.tensors if k.endswith("/exp_avg")}
        assert {k for k in kept if k.endswith("/exp_avg")} == {
            k for k in first if k.startswith(f"optimizer.{network}.")
        }


def test_the_users_own_files_in_a_run_folder_stay(command, start: Start, whole: Path, tmp_path: Path):
    """Checkpoints and samples by other names are nobody's business; status and resume go on."""
    run = tmp_path / "run"
    shutil.copytree(whole, run)
    checkpoint(run, TOTAL).rename(run / "checkpoints" / "best-so-far.safetensors")
    own = ["checkpoints/best-so-far.safetensors", "best.safetensors", ".tmp_notes", "samples/7.png"]
    own += ["samples/999999999.txt", "checkpoints/.tmpAbC123", "samples/200.png"]
    for name in own[1:]:
        (run / name).write_text("mine")
    before = {name: (run / name).read_bytes() for name in own}
    assert command(cli.main, "--status", run).exit_code == 0
    finish(start(run, "--resume"))
    assert {name: (run / name).read_bytes() for name in own} == before
    assert_same_weights(run, whole)


def test_resuming_without_a_checkpoint_is_for_the_same_recipe(start: Start, whole: Path, tmp_path: Path):
    run = tmp_path / "run"
    run.mkdir()
    shutil.copy(whole / "config.json", run)
    line = error_of(start(run, "--resume", "--seed", 5))
    assert f"{run} holds another recipe and no checkpoint: begin again without --resume" in line
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "mine.txt").write_text("mine")
    assert "holds no checkpoint to resume from" in error_of(start(tmp_path / "photos", "--resume"))


# ----------------------------------------------------------------------------
# Divergence, made by a learning rate that is far too large.


def too_fast(rate: float, explosion: float) -> list[str]:
    settings = (
        f"generator_optimizer.learning_rate={rate}",
        f"critic_optimizer.learning_rate={rate}",
        f"run.explosion={explosion}",
        "run.checkpoint_images=8",
        "run.precision=float32",  # what diverges when, and what recovers, differs in bfloat16
    )
    return [text for setting in settings for text in ("--set", setting)]


RECOVERS = [*too_fast(1.0, 100.0), "--on-nan", "rollback"]  # from its own losses, twice


def test_divergence_stops_with_term_step_and_resolution(start: Start, tmp_path: Path):
    line = error_of(start(tmp_path / "run", *too_fast(0.3, 100.0)))
    newest = max((tmp_path / "run" / "checkpoints").iterdir())
    assert " loss is " in line
    assert "beyond run.explosion (100) at step " in line
    assert ", fade 8 (" in line
    assert f"the last good checkpoint is {newest}; lower the learning rate and --resume" in line
    assert_whole(tmp_path / "run")


def test_a_loss_that_is_no_number_is_found_without_logging(start: Start, tmp_path: Path):
    """Nothing is logged before the first checkpoint, which is refused."""
    line = error_of(start(tmp_path / "run", *too_fast(1e30, 0), "--set", "run.log_images=100000"))
    assert " loss is nan at step 1, stable 4 (4 images shown), before the first checkpoint" in line
    assert not list((tmp_path / "run" / "checkpoints").iterdir())


@pytest.fixture(scope="module")
def recovered(start: Start, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Process]:
    out = tmp_path_factory.mktemp("recovered") / "run"
    process = start(out, *RECOVERS)
    finish(process)
    return out, process


def test_a_rollback_halves_the_learning_rate(recovered: tuple[Path, Process]):
    run, process = recovered
    lines = metrics(run)
    rollbacks = [line for line in lines if "rollback" in line]
    assert rollbacks
    assert [r["learning_rate_scale"] for r in rollbacks] == [0.5 ** (k + 1) for k in range(len(rollbacks))]
    assert process.stderr.count("rollback: the ") == len(rollbacks)
    scale = 1.0
    for line in lines:
        scale = line.get("learning_rate_scale", scale)
        if "step" in line:
            assert line["learning_rate/generator"] == line["learning_rate/critic"] == scale
            assert all(abs(v) <= 100.0 for k, v in line.items() if k.startswith("loss/"))
    assert load(checkpoint(run, TOTAL)).progress["learning_rate_scale"] == scale
    shown = [line["images_shown"] for line in lines if "step" in line]
    assert shown == sorted(set(shown))


def test_a_run_with_rollbacks_that_is_killed_is_the_same_run(
    start: Start, recovered: tuple[Path, Process], tmp_path: Path
):
    """Killed as soon as each of its checkpoints is seen."""
    reference, _ = recovered
    run = tmp_path / "run"
    for shown in range(0, TOTAL, 16):
        process = start(run, *RECOVERS, *(["--resume"] if run.exists() else []))
        while not any(p.stem.isdigit() and int(p.stem) >= shown for p in run.glob("checkpoints/*")):
            assert not process.ended()
        process.send(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL
    finish(start(run, *RECOVERS, "--resume"))
    assert_same_run(run, reference)


def test_rollbacks_that_do_not_help_end(start: Start, tmp_path: Path):
    process = start(tmp_path / "run", *too_fast(1e30, 1e6), "--on-nan", "rollback")
    assert "and 5 rollbacks did not get past it" in error_of(process)
    assert process.stderr.count("rollback: ") == 5


# ----------------------------------------------------------------------------
# Watching.


def test_every_step_is_watched(whole: Path):
    lines = metrics(whole)
    assert [line["images_shown"] for line in lines] == list(range(4, TOTAL + 1, 4))
    for line in lines:
        difference = line["watch/score real"] - line["watch/score fake"]
        assert line["watch/Wasserstein estimate"] == pytest.approx(difference, abs=1e-5)
        assert line["watch/Wasserstein estimate"] == pytest.approx(-line["loss/critic"], abs=1e-5)
        assert line["watch/gradient norm generator"] > 0
        assert line["watch/gradient norm critic"] > 0


def test_stability_is_logged_where_an_epoch_begins(start: Start, tmp_path: Path):
    """The change of the training generator's 36 samples, at a resolution that was there before."""
    run = tmp_path / "run"
    finish(start(run, "--set", "run.stability_images=12"))
    found = {line["images_shown"]: line for line in metrics(run) if any("stability/" in k for k in line)}
    assert list(found) == [24, 48, 60, 72, 84]  # at 12 and 36 there is nothing to compare with
    assert {k for line in found.values() for k in line if "stability/" in k} == {"stability/4", "stability/8"}
    for line in found.values():  # the paper's distance of the two grids, from the mean over their values
        side = line["resolution"]
        values = 36 * 3 * side**2
        assert line[f"stability L2/{side}"] == pytest.approx(math.sqrt(line[f"stability/{side}"] * values))
    kept = load(checkpoint(run, TOTAL)).tensors["watch.stability"]
    assert kept.shape == (36, 3, 8, 8)
    assert kept.dtype == torch.uint8


def test_without_another_wish_an_epoch_is_the_data_set(whole: Path):
    assert [line["images_shown"] for line in metrics(whole) if "stability/8" in line] == [80]


def test_tensorboard_shows_what_metrics_hold(start: Start, whole: Path, tmp_path: Path):
    """After a kill and --resume as well: what was logged after the checkpoint does not count twice."""
    run = tmp_path / "run"
    process = start(run, "--set", "run.checkpoint_images=16")
    wait_for(process, checkpoint(run, 32), run / "samples" / "000000032.png")
    process.send(signal.SIGKILL)
    process.wait()
    finish(start(run, "--resume"))
    events = EventAccumulator(str(run / "tensorboard"), size_guidance={"scalars": 0, "images": 0})
    events.Reload()
    for tag in ("loss/critic", "watch/gradient norm critic", "run/alpha", "learning_rate/generator"):
        key = tag.removeprefix("run/")
        expected = [(line["images_shown"], pytest.approx(line[key], rel=1e-6)) for line in metrics(whole)]
        assert [(e.step, e.value) for e in events.Scalars(tag)] == expected
    sheets = {int(p.stem) for p in (whole / "samples").iterdir()}
    assert {e.step for e in events.Images("samples")} == sheets


# ----------------------------------------------------------------------------
# From outside.


def test_status_of_a_finished_run(command, whole: Path):
    result = command(cli.main, "--status", whole)
    assert result.exit_code == 0
    rows = dict(line.split(maxsplit=1) for line in result.stdout.splitlines())
    assert rows["run"] == f"{whole}: every"
    assert rows["state"].startswith("finished, last line of metrics.jsonl ")
    assert rows["shown"] == "88 of 88 images (100.0%)"
    assert rows["phase"] == "stable 8, alpha 1.000, batch 4"
    assert "generator" in rows["losses"]
    assert rows["checkpoint"].startswith("000000088.safetensors, ")


def test_status_with_half_a_line_and_fewer_checkpoints(command, whole: Path, tmp_path: Path):
    run = tmp_path / "run"
    shutil.copytree(whole, run)
    for path in (run / "checkpoints").iterdir():
        if int(path.stem) > 24:
            path.unlink()
    text = (run / "metrics.jsonl").read_text().splitlines()
    (run / "metrics.jsonl").write_text("\n".join(text[:9]) + "\n" + text[9][:40])
    found = json.loads(command(cli.main, "--status", run, "--json").stdout)
    assert (found["images_shown"], found["total_images"], found["state"]) == (36, 88, "stopped")
    assert (found["phase"], found["alpha"]) == ("fade 8", pytest.approx(0.3))
    assert found["seconds_left"] == pytest.approx((88 - 36) / found["images_per_second"])
    assert [c["file"] for c in found["checkpoints"]] == ["000000024.safetensors"]


def test_status_of_what_is_no_run(command, tmp_path: Path):
    result = command(cli.main, "--status", tmp_path)
    assert (result.exit_code, result.stderr.count("\n")) == (1, 1)
    assert "is not a run's folder" in result.stderr


def test_plot_draws_the_curves(command, whole: Path, tmp_path: Path):
    run = tmp_path / "run"
    shutil.copytree(whole, run)
    result = command(cli.main, "--plot", run)
    assert (result.exit_code, result.stdout) == (0, f"{run / 'curves.png'}\n")
    assert (run / "curves.png").read_bytes().startswith(b"\x89PNG")
    (run / "metrics.jsonl").unlink()
    assert "nothing logged yet" in command(cli.main, "--plot", run).stderr


def test_the_clock_goes_on_where_a_run_was_stopped(start, whole: Path, tmp_path: Path):
    lines = [json.loads(line) for line in (whole / "metrics.jsonl").read_text().splitlines()]
    clock = [line["seconds"] for line in lines]
    assert clock == sorted(clock)
    assert clock[0] > 0
    run = tmp_path / "run"
    shutil.copytree(whole, run)
    for path in (run / "checkpoints").iterdir():
        if int(path.stem) > 24:
            path.unlink()
    slow = [{**line, "seconds": 1000.0 + line["seconds"]} for line in lines]
    (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in slow))
    finish(start(run, "--resume"))
    again = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    there = [line["images_shown"] for line in lines].index(24)
    assert [line["seconds"] for line in again[: there + 1]] == [line["seconds"] for line in slow[: there + 1]]
    assert all(1000.0 + clock[there] < line["seconds"] < 2000.0 for line in again[there + 1 :])


def test_the_clock_of_what_logged_none():
    lines: list[dict[str, float]] = [
        {"images_shown": 100, "images_per_second": 10.0},
        {"images_shown": 300, "images_per_second": 20.0},
        {"images_shown": 400},
        {"images_shown": 500, "images_per_second": 50.0, "seconds": 99.0},
        {"images_shown": 600, "images_per_second": 100.0},
    ]
    assert metrics_log.seconds_of_training(lines, 650) == [10.0, 20.0, 25.0, 99.0, 100.0, 100.5]
    assert metrics_log.seconds_of_training([], 50) == [0.0]
    wild = [{"images_shown": 10, "images_per_second": n, "seconds": n} for n in (math.nan, -1.0, 10**400, 0)]
    assert metrics_log.seconds_of_training(wild, 20) == [0.0] * 5


def test_several_runs_are_drawn_over_each_other(command, whole: Path, tmp_path: Path):
    old = tmp_path / "old"
    shutil.copytree(whole, old)
    lines = [json.loads(line) for line in (whole / "metrics.jsonl").read_text().splitlines()]
    for line in lines:
        del line["seconds"]
    (old / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    result = command(cli.main, "--plot", whole, old, "--out", tmp_path / "picture")
    assert (result.exit_code, result.stdout) == (0, f"{tmp_path / 'picture' / 'runs.png'}\n")
    curves = [plot.curve_of(run) for run in (whole, old)]
    assert curves[0].points("alpha")[::2] == curves[1].points("alpha")[::2]
    assert curves[0].beginnings()[0][0] == 28  # the first step of the fade to 8 x 8
    figure = plot.over_each_other(curves)
    titles = [axes.get_title() for axes in figure.axes]
    assert titles[:4] == ["hours of training", "real images shown", *["images a second"] * 2]
    for axes in figure.axes[:4]:
        assert [line.get_color() for line in axes.get_lines() if line.get_linestyle() == "-"] == ["C0", "C1"]
    speed = figure.axes[3].get_lines()[0]
    assert np.asarray(speed.get_xdata()) == pytest.approx(curves[0].hours)
    assert np.asarray(speed.get_ydata()).tolist() == [line["images_per_second"] for line in lines]
    result = command(cli.main, "--plot", whole, tmp_path)
    assert (result.exit_code, result.stderr.count("\n")) == (1, 1)


def test_a_recipe_is_needed_to_train(command):
    result = command(cli.main)
    assert result.exit_code == 2
    assert "Missing argument 'RECIPE'" in result.stderr
