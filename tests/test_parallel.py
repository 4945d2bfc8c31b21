"""Several processes train what one trains, and notice when one of them is gone."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

from pgsr.checkpoint import load
from pgsr.errors import PgsrError
from pgsr.networks.layers import Share, minibatch_stddev
from pgsr.trainer.data.cache import load_photographs
from pgsr.trainer.start import chosen_device
from pgsr.trainer.step.parallel import Ranks, local_device

ROOT = Path(__file__).parents[1]

RECIPE = """
about = "for tests"
[generator]
kind = "progan"
resolution = 8
latent_size = 8
feature_base = 128
feature_max = 8
convolution = "separable"
[discriminator]
kind = "progan"
resolution = 8
feature_base = 128
feature_max = 8
stddev_group = 4
[schedule]
resolution = 8
batch = 8
fade_images = 64
stable_images = 32
[schedule.at.8]
batch = 9
[objective]
gradient_penalty = 10.0
drift = 0.001
[run]
precision = "float64"
log_images = 16
sample_images = 1000
checkpoint_images = 1000
sample_grid = 4
"""
EVEN = ("--set", "schedule.at.8.batch=8")


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("parallel") / "recipe.toml"
    path.write_text(RECIPE)
    return path


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def start(
    count: int,
    recipe: Path,
    toy: Path,
    out: Path,
    *arguments: str,
    program: tuple[str, ...] = ("-m", "pgsr.trainer"),
    device: str = "cpu",
) -> list[subprocess.Popen[str]]:
    """As torchrun would start them."""
    port = str(free_port())
    processes = []
    for rank in range(count):
        environment = os.environ | {"OMP_NUM_THREADS": "1"}
        if count > 1:
            environment |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(count)}
            environment |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        command = [sys.executable, *program, str(recipe), "--data", str(toy), "--out", str(out)]
        processes.append(
            subprocess.Popen(
                [*command, "--device", device, *arguments],
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
                cwd=ROOT,
                env=environment,
            )
        )
    return processes


def finish(processes: list[subprocess.Popen[str]]) -> list[str]:
    """Waits for all; what each wrote to stdout."""
    outputs = []
    for process in processes:
        stdout, stderr = process.communicate(timeout=600)
        assert process.returncode == 0, stderr
        outputs.append(stdout)
    return outputs


def final(out: Path) -> dict[str, torch.Tensor]:
    return load(max((out / "checkpoints").glob("*.safetensors"))).tensors


def difference(one: Path, other: Path) -> float:
    a, b = final(one), final(other)
    assert a.keys() == b.keys()
    return max((a[name].double() - b[name].double()).abs().max().item() for name in a)


@pytest.fixture(scope="module")
def alone(recipe: Path, toy: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("alone") / "run"
    finish(start(1, recipe, toy, out, *EVEN))
    return out


def test_two_ranks_train_what_one_does_and_one_goes_on_from_two(
    alone: Path, recipe: Path, toy: Path, tmp_path: Path
):
    """Fades and minibatch statistics included: a share of 4 holds whole groups of 4."""
    out = tmp_path / "two"
    outputs = finish(start(2, recipe, toy, out, *EVEN))
    assert outputs[0].startswith(f"{out}: ")
    assert outputs[1] == ""  # only one speaks, and only one writes
    assert len(list(out.glob("tensorboard/*"))) == 1
    assert difference(alone, out) < 1e-9
    for path in sorted((out / "checkpoints").iterdir())[1:]:
        path.unlink()
    finish(start(1, recipe, toy, out, *EVEN, "--resume"))
    assert difference(alone, out) < 1e-9


@pytest.mark.parametrize("group", [4, 16])
def test_uneven_shares_count_by_their_images(group: int, recipe: Path, toy: Path, tmp_path: Path):
    """A batch of 9 on two ranks, whose means are of 5 and of 4 images, as are the groups by 4. That of the
    whole batch lies in both, and so do its gradients, the penalty's second ones among them."""
    arguments = ("--set", f"discriminator.stddev_group={group}")
    finish(start(1, recipe, toy, tmp_path / "one", *arguments))
    finish(start(2, recipe, toy, tmp_path / "two", *arguments))
    assert difference(tmp_path / "one", tmp_path / "two") < 1e-9


def test_simultaneous_updates_are_shared_too(recipe: Path, toy: Path, tmp_path: Path):
    arguments = ("--set", "objective.updates=simultaneous", "--set", "discriminator.stddev_group=16")
    finish(start(1, recipe, toy, tmp_path / "one", *arguments))
    finish(start(2, recipe, toy, tmp_path / "two", *arguments))
    assert difference(tmp_path / "one", tmp_path / "two") < 1e-9


def test_torchrun_starts_it(alone: Path, recipe: Path, toy: Path, tmp_path: Path):
    """The command as the README has it; here two ranks go on where one stopped."""
    out = tmp_path / "run"
    shutil.copytree(alone, out)
    for path in sorted((out / "checkpoints").iterdir())[1:]:
        path.unlink()
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-port"]
    command += [str(free_port()), "-m", "pgsr.trainer", str(recipe), "--data", str(toy), "--out", str(out)]
    command += ["--device", "cpu", *EVEN, "--resume"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"{out}: 128 images shown\n"
    assert difference(alone, out) < 1e-9


def test_a_rank_that_dies_stops_the_others_and_the_run_goes_on(
    recipe: Path, toy: Path, tmp_path: Path, alone: Path
):
    out = tmp_path / "run"
    checkpoints = out / "checkpoints"
    longer = (*EVEN, "--set", "schedule.stable_images=1000000", "--set", "run.checkpoint_images=16")
    first, second = start(2, recipe, toy, out, *longer)
    deadline = time.monotonic() + 6000
    while not list(checkpoints.glob("*.safetensors")) and time.monotonic() < deadline:
        assert first.poll() is None
        time.sleep(0.02)
    second.send_signal(signal.SIGKILL)
    died = time.monotonic()
    stdout, stderr = first.communicate(timeout=600)
    second.communicate()
    assert time.monotonic() - died < 300
    assert (first.returncode, stdout) == (1, "")
    lines = [line for line in stderr.splitlines() if "another process of this run is gone" in line]
    assert len(lines) == 1
    assert "Traceback" not in stderr
    shown = load(max(checkpoints.glob("*.safetensors"))).progress["images_shown"]
    (going_on,) = start(1, recipe, toy, out, *longer, "--resume", "--minutes", "0.02")
    (text,) = finish([going_on])
    assert int(text.split(": ")[1].split()[0]) >= shown


# ----------------------------------------------------------------------------
# One process works for all.

# Ranks that lose patience after four seconds, where each picture takes so long to decode and each checkpoint
# to write. The rest is the command as it is.
SLOW = """
import sys, threading, time
from datetime import timedelta
from pgsr.trainer.cli import main
from pgsr.trainer.data import cache
from pgsr.trainer.run_folder import run
from pgsr.trainer.step import parallel

parallel.PATIENCE, parallel.SAID_AFTER = timedelta(seconds=4), 0.5
one_at_a_time = threading.Lock()

def slower(function, seconds):
    def slowly(*arguments, **options):
        with one_at_a_time:
            time.sleep(seconds)
        return function(*arguments, **options)
    return slowly

cache.decode = slower(cache.decode, DECODING)
run.save = slower(run.save, WRITING)
main()
"""


def slow(decoding: float, writing: float = 0.0) -> tuple[str, ...]:
    """The command that takes so many seconds for each picture and each checkpoint."""
    return "-c", SLOW.replace("DECODING", str(decoding)).replace("WRITING", str(writing))


def cached(folder: Path) -> list[str]:
    return sorted(path.name for path in (folder / "data").glob("*")) if folder.exists() else []


def test_decoding_and_writing_may_take_longer_than_ranks_have_patience(
    alone: Path, recipe: Path, toy: Path, tmp_path: Path, own_cache: Path
):
    """Decoding 40 pictures takes 6 s here and a checkpoint 5 s, and ranks wait for 4 in a step."""
    out = tmp_path / "run"
    first, second = start(2, recipe, toy, out, *EVEN, program=slow(0.15, writing=5.0))
    assert first.communicate(timeout=600)[0] == f"{out}: 128 images shown\n"
    _, stderr = second.communicate(timeout=600)
    assert (first.returncode, second.returncode) == (0, 0), stderr
    assert "rank 1 waits for the photographs of 8x8, which another process reads (" in stderr
    assert "rank 1 waits for the process that writes the run's folder (" in stderr
    assert difference(alone, out) < 1e-9
    assert "Grad strides" not in stderr
    (name,) = cached(own_cache)
    assert name.endswith(".npy")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL], ids=lambda n: n.name)
def test_decoding_that_is_killed_leaves_nothing_behind(
    number: signal.Signals, recipe: Path, toy: Path, tmp_path: Path, own_cache: Path
):
    """torchrun sends SIGTERM. What nothing can answer to is cleared away as the next process decodes."""
    first, second = start(2, recipe, toy, tmp_path / "run", program=slow(1.0))
    deadline = time.monotonic() + 600
    while not cached(own_cache) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert [name[-4:] for name in cached(own_cache)] == [".tmp"]
    first.send_signal(number)
    first.communicate(timeout=600)
    _, stderr = second.communicate(timeout=600)
    assert second.returncode == 1
    lines = [line for line in stderr.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1
    assert "another process of this run is gone" in lines[0]
    assert "Traceback" not in stderr
    if number == signal.SIGTERM:
        assert first.returncode == 128 + signal.SIGTERM
        assert cached(own_cache) == []
    load_photographs(toy, 8)
    (name,) = cached(own_cache)
    assert name.endswith(".npy")


def test_what_is_wrong_with_photographs_is_said_by_one_process(recipe: Path, tmp_path: Path):
    first, second = start(2, recipe, tmp_path, tmp_path / "run")
    errors = [process.communicate(timeout=600)[1] for process in (first, second)]
    assert (first.returncode, second.returncode) == (1, 1)
    assert errors[0].startswith(f"error: {tmp_path} holds no pictures")
    assert errors[1].startswith(
        "error: rank 1 waited for the photographs of 8x8, which another process reads"
    )
    assert [error.count("\n") for error in errors] == [1, 1]


@pytest.mark.parametrize(
    ("device", "environment", "message"),
    [
        ("cuda:1", {"WORLD_SIZE": "2", "LOCAL_RANK": "1"}, "--device cuda:1: each process of a run takes"),
        ("cuda", {"WORLD_SIZE": "4", "LOCAL_RANK": "3"}, "there is no GPU 3: this machine has 2, numbered"),
    ],
)
def test_every_rank_has_a_gpu_of_its_own(
    device: str, environment: dict[str, str], message: str, monkeypatch: pytest.MonkeyPatch
):
    current: list[torch.device] = []
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "set_device", current.append)
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert local_device(torch.device("cuda")) == torch.device("cuda", 1) == current[-1]
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(PgsrError, match=message):
        local_device(torch.device(device))


def test_a_gpu_that_is_named_becomes_the_current_one(monkeypatch: pytest.MonkeyPatch):
    """Events and streams that name none are made on the current one."""
    current: list[torch.device] = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "set_device", current.append)
    assert chosen_device("cuda:1") == torch.device("cuda", 1)
    assert chosen_device("auto") == torch.device("cuda")
    assert current == [torch.device("cuda", 1)]
    with pytest.raises(PgsrError, match="there is no GPU 2: this machine has 2, numbered from 0"):
        chosen_device("cuda:2")


def test_shares_are_all_images_once():
    for count in (1, 2, 3, 5):
        shares = [list(Ranks(rank, count).share(100, 14)) for rank in range(count)]
        assert sorted(image for share in shares for image in share) == list(range(100, 114))
        weights = [Ranks(rank, count).weight(len(share), 14) for rank, share in enumerate(shares)]
        assert sum(weights) == pytest.approx(count)


def test_a_batch_that_cannot_be_shared_is_named():
    with pytest.raises(PgsrError, match="a batch of 3 cannot be shared by 4 processes"):
        Ranks(0, 4).share(0, 3)


@pytest.mark.parametrize("batch", [3, 5, 7, 11, 14, 16])
@pytest.mark.parametrize("count", [2, 3])
@pytest.mark.parametrize("group", [2, 4, 64])
def test_statistics_of_shares_are_those_of_the_batch(batch: int, count: int, group: int):
    """Ranks are threads here, which meet wherever they add up."""
    x = torch.randn(batch, 3, 4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    whole = minibatch_stddev(x, group)[:, -1]
    barrier, sums = threading.Barrier(count), [torch.empty(0)] * count

    def statistic_of(rank: int) -> torch.Tensor:
        def added(values: torch.Tensor) -> torch.Tensor:
            sums[rank] = values
            barrier.wait(600)
            total = torch.stack(sums).sum(0)
            barrier.wait(600)
            return total

        own = list(Ranks(rank, count).share(0, batch))
        return minibatch_stddev(x[own], group, Share(rank, count, batch, added))[:, -1]

    with ThreadPoolExecutor(count) as pool:
        statistics = list(pool.map(statistic_of, range(count)))
    for rank, statistic in enumerate(statistics):
        torch.testing.assert_close(statistic, whole[rank::count], rtol=1e-13, atol=0)
