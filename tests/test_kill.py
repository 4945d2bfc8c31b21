"""Runs that are killed with SIGKILL, again and again, end as one that never was: to the bit.

The log of the kills is printed (pytest -s) and left in the test's folder as kills.txt.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from pgsr.checkpoint import load
from pgsr.trainer.step import recipe as config
from pgsr.trainer.step import schedule
from processes import EVERY_STEP, Process, Server, assert_same_run, finish

SEED = 20240607  # of the instants


Start = Callable[[Path], Process]


@pytest.fixture(scope="module")
def start(server: Server, toy: Path, tmp_path_factory: pytest.TempPathFactory) -> Start:
    """start(out): the run in a folder, from its newest checkpoint or its beginning."""
    recipe = tmp_path_factory.mktemp("recipe") / "killed.toml"
    recipe.write_text(EVERY_STEP)

    def process(out: Path) -> Process:
        again = ["--resume"] if out.exists() else []
        return server.start(recipe, "--data", toy, "--out", out, "--device", "cpu", *again)

    return process


class Reference:
    """The run that nothing interrupts."""

    def __init__(self, folder: Path, start: Start) -> None:
        self.folder = folder
        began = time.monotonic()
        assert finish(start(folder)) == 0
        self.seconds = time.monotonic() - began
        recipe = config.from_dict(json.loads((folder / "config.json").read_text()))
        self.schedule = schedule.build(recipe.schedule)


@pytest.fixture(scope="module")
def whole(start: Start, tmp_path_factory: pytest.TempPathFactory) -> Reference:
    return Reference(tmp_path_factory.mktemp("runs") / "whole", start)


def half_written(run: Path) -> list[str]:
    """The temporary files in a run's folder, those that safetensors makes among them."""
    folders = {"": run, "checkpoints/": run / "checkpoints", "samples/": run / "samples"}
    return [
        prefix + name
        for prefix, folder in folders.items()
        if folder.is_dir()
        for name in os.listdir(folder)
        if name.startswith(".")
    ]


def found_at_the_kill(run: Path, reference: Reference) -> str:
    """Where a process was when it was killed, by what it left."""
    left = half_written(run)
    newest = max((p.stem for p in (run / "checkpoints").glob("*.safetensors")), default=None)
    if newest is None:
        return "before the first checkpoint" + (f", writing {left[0]}" if left else "")
    stage = reference.schedule.at(int(newest))
    doing = f"writing {left[0]}" if left else "starting, in a step, or between two files"
    return f"{int(newest):>4} images in the newest checkpoint, {stage.phase.name:<9} {doing}"


class Kills:
    """Kills processes and writes down where."""

    def __init__(self, reference: Reference, log: Path) -> None:
        self.reference, self.log, self.count = reference, log, 0

    def kill(self, process: Process, run: Path, why: str) -> bool:
        """Whether it was still running."""
        process.send(signal.SIGKILL)
        code = process.wait()
        assert code in (0, -signal.SIGKILL), process.stderr
        if code == 0:
            return False
        self.count += 1
        line = f"kill {self.count:>3}, {why}: {found_at_the_kill(run, self.reference)}"
        print(line)
        with open(self.log, "a") as file:
            file.write(line + "\n")
        for path in (run / "checkpoints").glob("*.safetensors"):
            load(path)  # whole, whatever was going on
        return True


# ----------------------------------------------------------------------------
# At random instants.


def kill_at_random(count: int, start: Start, whole: Reference, folder: Path) -> None:
    """Runs that are killed at random instants, some soon after they began and some late, until so many
    kills are done; every run then goes on to its end."""
    instants = random.Random(SEED)
    kills = Kills(whole, folder / "kills.txt")
    while kills.count < count:
        run = folder / f"run-{kills.count}"
        while kills.count < count:
            delay = instants.uniform(0.0, 0.7 * whole.seconds)
            process = start(run)
            if process.ended(delay) or not kills.kill(process, run, f"{delay:.3f} s after a start"):
                break
        else:
            process = start(run)
        finish(process)
        assert_same_run(run, whole.folder)


def test_20_kills_at_random_instants(start: Start, whole: Reference, tmp_path: Path):
    kill_at_random(20, start, whole, tmp_path)


@pytest.mark.slow
def test_200_kills_at_random_instants(start: Start, whole: Reference, tmp_path: Path):
    kill_at_random(200, start, whole, tmp_path)


# ----------------------------------------------------------------------------
# At chosen instants.


def seen(run: Path, images_shown: int) -> bool:
    return (run / "checkpoints" / f"{images_shown:09d}.safetensors").exists()


def writing_a_checkpoint(run: Path) -> bool:
    """Whether the second one or a later one is being written."""
    return seen(run, 4) and any(name.startswith("checkpoints/") for name in half_written(run))


INSTANTS: dict[str, Callable[[Path], bool]] = {
    "in a fade": lambda run: seen(run, 40),
    "at the last step of a fade": lambda run: seen(run, 60),
    "at a change of resolution": lambda run: seen(run, 24),
    "at the last batch": lambda run: seen(run, 84),
    "while a checkpoint is written": writing_a_checkpoint,
}


@pytest.mark.parametrize("instant", INSTANTS)
def test_a_kill_at_a_chosen_instant(start: Start, whole: Reference, tmp_path: Path, instant: str):
    """A file that is half written takes a few attempts."""
    kills, run = Kills(whole, tmp_path / "kills.txt"), tmp_path / "run"
    due = INSTANTS[instant]
    needed = due is writing_a_checkpoint
    for _ in range(20):
        process = start(run)
        while not due(run) and not process.ended():
            pass
        if kills.kill(process, run, instant) and (half_written(run) or not needed):
            break
        if process.code == 0:
            shutil.rmtree(run)
    assert kills.count
    assert half_written(run) or not needed, "no kill left half a checkpoint"
    finish(start(run))
    assert_same_run(run, whole.folder)


def test_a_run_killed_before_its_first_checkpoint_begins_again(
    start: Start, whole: Reference, tmp_path: Path
):
    """What a script does that restarts with --resume, whatever happened."""
    run = tmp_path / "run"
    process = start(run)
    while not (run / "config.json").exists() and not process.ended():
        pass
    process.send(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    assert not list(run.rglob("*.safetensors"))
    process = start(run)
    finish(process)
    assert f"note: {run} holds no checkpoint yet: beginning again" in process.stderr
    assert_same_run(run, whole.folder)
