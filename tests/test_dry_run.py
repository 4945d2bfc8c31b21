"""pgsr-train --dry-run: soon, for every recipe, and its counts held against what PyTorch allocates."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from pgsr.trainer import cli
from pgsr.trainer.data.cache import load_photographs
from pgsr.trainer.run_folder import cost
from pgsr.trainer.step import recipe as config
from pgsr.trainer.step.schedule import build
from pgsr.trainer.step.state import state_tensors

CPU = torch.device("cpu")


def succeeded(result) -> str:
    assert result.exit_code == 0, result.stderr
    return result.stdout


def slowness() -> float:
    """How much slower this machine's Python is than 20 million additions a second, at least 1."""
    began, total = time.process_time(), 0
    for i in range(2_000_000):
        total += i
    return max(1.0, (time.process_time() - began) / 0.1)


def least_seconds(work: Callable[[], object]) -> float:
    """Seconds of the clock or of the processor, whichever are fewer: others use the machine too."""
    clock, processor = time.perf_counter(), time.process_time()
    work()
    return min(time.perf_counter() - clock, time.process_time() - processor)


def told(command, name: str, *arguments: object) -> dict:
    return json.loads(
        succeeded(command(cli.main, name, "--dry-run", "--json", "--device", "cpu", *arguments))
    )


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(n, marks=() if n in ("ladder-a", "jpeg-restore") else pytest.mark.slow)
        for n in config.recipe_names()
    ],
)
def test_it_answers_in_ten_seconds(name: str, command, toy: Path):
    """Wide networks and small ones alike; of one that shows 64 images at once at 128 x 128 two are timed."""
    found: dict = {}
    seconds = least_seconds(lambda: found.update(told(command, name, "--data", toy)))
    assert seconds < 10 * slowness()
    assert all(row["seconds"] > 0 for row in found["phases"])
    assert [row["resolution"] for row in found["memory"]] == sorted(
        {p["resolution"] for p in found["phases"]}
    )
    for row in found["memory"]:
        assert row["step_bytes"] > 1000
        batches = list(row["largest_batch"].values())
        assert batches == sorted(batches)
        assert (batches[0] >= row["batch"]) == (row["step_bytes"] <= 0.9 * 16 * 2**30)


def costs(name: str, *settings: str) -> tuple[config.Recipe, cost.StepCost, int]:
    recipe = config.load(name, ("run.precision=float32", *settings))
    schedule = build(recipe.schedule, recipe.objective.critic_steps, 100)
    last = cost.last_of_each_resolution(schedule)[-1]
    return recipe, cost.step_costs(recipe, schedule)[last.resolution], last.batch


def allocated(recipe: config.Recipe, batch: int) -> int:
    """The most bytes in use at once in a step on the CPU, by PyTorch's allocator, which sees what kernels
    take as well. The gradients of the step before are dropped first, since it does not see those go."""
    schedule = build(recipe.schedule, recipe.objective.critic_steps, 100)
    trainer = cost.noise_trainer(recipe, schedule, CPU)
    for _ in range(2):
        cost.stand_at(trainer, recipe.schedule.resolution, batch, True)
        live = peak = sum(t.numel() * t.element_size() for t in state_tensors(trainer.state).values())
        optimizers = [trainer.state.generator_optimizer, *(c.optimizer for c in trainer.state.critics)]
        for optimizer in optimizers:
            optimizer.zero_grad(set_to_none=True)
        with torch.profiler.profile(
            activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True
        ) as seen:
            trainer.step()
    events = [e for e in seen.profiler.kineto_results.events() if e.name() == "[memory]"]
    for event in sorted(events, key=lambda e: e.start_ns()):
        live += event.nbytes()
        peak = max(peak, live)
    return peak


@pytest.mark.parametrize(
    ("name", "settings", "bound"),
    [
        ("faces-64", (), 0.1),
        ("msg-64", (), 0.1),
        ("began-64", ("schedule.batch=8",), 0.1),
        ("tiny", (), 0.1),
        # Small images, large weights, of which kernels make copies:
        ("dcgan-64-wgan-gp", ("generator.features=16", "discriminator.features=16"), 0.35),
    ],
)
def test_memory_is_what_pytorch_allocates(name: str, settings: tuple[str, ...], bound: float):
    recipe, counted, batch = costs(name, *settings)
    assert allocated(recipe, batch) == pytest.approx(counted.memory.bytes_at(batch), rel=bound)


def test_one_batch_tells_of_all(monkeypatch: pytest.MonkeyPatch):
    """Steps of 13 images and of 29 give the same line; by groups of 4 they have 3 and 7 of them."""
    one_group = "discriminator.stddev_group=64"
    _, by_13, _ = costs("tiny", one_group)
    monkeypatch.setattr(cost, "TRACED_BATCH", 29)
    _, by_29, _ = costs("tiny", one_group)
    for batch in (1, 16, 300):
        assert by_29.memory.bytes_at(batch) == pytest.approx(by_13.memory.bytes_at(batch), rel=1e-3)
        assert by_29.multiply_adds(batch, 3) == by_13.multiply_adds(batch, 3)


def test_the_largest_batch_is_the_last_that_fits():
    memory = cost.Memory(((1000, 10.0), (500, 60.0)))
    assert memory.bytes_at(1) == 1010
    assert memory.bytes_at(20) == 1700
    assert memory.largest_batch(1700) == 20
    assert memory.largest_batch(1699) == 19
    assert memory.largest_batch(999) == 0


def test_the_data_are_as_large_as_their_file(command, toy: Path, own_cache: Path):
    """Counted without decoding, then decoded."""
    size = told(command, "tiny", "--data", toy)["data"]
    assert not list(own_cache.rglob("*.npy"))
    photographs = load_photographs(toy, 16)
    (file,) = own_cache.rglob("*.npy")
    assert (size["sides"], size["pictures"]) == ([16], len(photographs))
    assert size["memory_bytes"] == photographs.pixels.nbytes
    assert size["disk_bytes"] == pytest.approx(file.stat().st_size, abs=1000)
    text = succeeded(command(cli.main, "tiny", "--dry-run", "--device", "cpu"))
    assert "Data: each 100,000 pictures at 16 x 16 take 73.2 MiB of memory" in text


def test_super_resolution_stores_two_sizes(command):
    assert told(command, "upscale-4x-pixel")["data"]["sides"] == [256, 64]


def test_data_that_are_not_there_are_a_line(command, tmp_path: Path):
    result = command(cli.main, "tiny", "--dry-run", "--data", tmp_path / "absent")
    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr.startswith(f"error: no folder or zip of pictures at {tmp_path / 'absent'}")
    assert result.stderr.count("\n") == 1
