"""Training on a GPU: `pytest -m gpu`. What a CPU can do too is done on one in every run of the suite."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from test_parallel import difference, finish, start
from test_parallel import recipe as parallel_recipe  # noqa: F401  # a fixture
from test_residency import RECIPES
from torch import Tensor

from pgsr.benchmarks.gpu import peaks
from pgsr.checkpoint import load, newest
from pgsr.trainer import cli
from pgsr.trainer.data.cache import Noise, Source
from pgsr.trainer.step import recipe as config
from pgsr.trainer.step.batches import batches_for
from pgsr.trainer.step.parallel import ALONE, Ranks, _grouped
from pgsr.trainer.step.precision import (
    PRECISIONS,
    chosen_precision,
    gpu_multiplies_bfloat16,
    seconds_of_convolutions,
)
from pgsr.trainer.step.schedule import build
from pgsr.trainer.step.state import restore, state_tensors
from pgsr.trainer.step.trainer import Trainer

Record = Callable[[str, Any], None]

on_both = pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
TINY = (
    *("schedule.batch=8", "schedule.fade_images=16", "schedule.stable_images=16", "schedule.resolution=8"),
    *("generator.resolution=8", "generator.feature_max=8", "generator.latent_size=8"),
    *("discriminator.resolution=8", "discriminator.feature_max=8"),
)


def trainer_of(
    device: str, *settings: str, name: str = "tiny", source: Source | None = None, ranks: Ranks = ALONE
) -> Trainer:
    recipe = config.load(name, settings)
    where = torch.device(device)
    batches = batches_for(recipe, source or Noise(24), where, ranks)
    schedule = build(recipe.schedule, recipe.objective.critic_steps, batches.count)
    return Trainer(recipe, schedule, batches, where, ranks)


def losses(trainer: Trainer, steps: int) -> list[float]:
    return [sum(term.item() for term in trainer.step().values()) for _ in range(steps)]


def needs(device: str, precision: str) -> None:
    if device == "cuda" and precision == "bfloat16" and not gpu_multiplies_bfloat16(torch.device(device)):
        pytest.skip("this GPU has no bfloat16 in hardware")


# ----------------------------------------------------------------------------
# Precisions.


@on_both
@pytest.mark.parametrize(
    ("precision", "tolerance"), [("float64", 1e-6), ("float32", 5e-2), ("bfloat16", 0.15), ("float16", 5e-2)]
)
def test_each_precision_trains(device: str, precision: str, tolerance: float, record_property: Record):
    """As float64 does on the CPU: fades, the penalty's second derivative and Adam included. float32 may be
    TF32 in a GPU's convolutions."""
    needs(device, precision)
    expected = losses(trainer_of("cpu", *TINY, "run.precision=float64"), 5)
    trainer = trainer_of(device, *TINY, f"run.precision={precision}")
    trainer.state.loss_scale.restore({"scale": torch.tensor(2.0**10), "steps": torch.tensor(0)})
    found = losses(trainer, 5)
    scale = max(map(abs, expected))
    record_property("largest relative difference", max_difference(found, expected) / scale)
    assert max_difference(found, expected) < tolerance * scale
    assert trainer.precision == PRECISIONS[precision]


def max_difference(one: list[float], other: list[float]) -> float:
    return max(abs(a - b) for a, b in zip(one, other, strict=True))


@pytest.mark.gpu
def test_what_auto_chooses_is_the_fastest(monkeypatch: pytest.MonkeyPatch, record_property: Record):
    monkeypatch.delenv("PGSR_PRECISION", raising=False)
    device = torch.device("cuda", 0)
    chosen = chosen_precision("auto", device)
    seconds = {name: seconds_of_convolutions(device, PRECISIONS[name]) for name in ("float32", "float16")}
    if gpu_multiplies_bfloat16(device):
        seconds["bfloat16"] = seconds_of_convolutions(device, torch.bfloat16)
    record_property("chosen", str(chosen))
    record_property("seconds of two convolutions", seconds)
    assert seconds[str(chosen).removeprefix("torch.")] < 1.3 * min(seconds.values())


@pytest.mark.gpu
@pytest.mark.parametrize("precision", ["float32", "bfloat16", "float16"])
def test_speed_at_the_shipped_recipe(precision: str, record_property: Record):
    """Images a second of faces-64 at 64x64 with batches of 64: a figure, and that losses stay finite."""
    needs("cuda", precision)
    settings = ("schedule.batch=64", "schedule.start_resolution=64", f"run.precision={precision}")
    trainer = trainer_of("cuda", *settings, name="faces-64")
    losses(trainer, 3)
    torch.cuda.synchronize()
    began = time.perf_counter()
    for _ in range(20):
        terms = trainer.step()
    torch.cuda.synchronize()
    record_property("images_per_second", 20 * 64 / (time.perf_counter() - began))
    record_property("peak_memory_mib", torch.cuda.max_memory_allocated() / 2**20)
    assert all(torch.isfinite(term) for term in terms.values())


# ----------------------------------------------------------------------------
# Where photographs lie.


@pytest.mark.gpu
@pytest.mark.parametrize("name", RECIPES)
def test_where_pixels_lie_changes_no_bit_on_a_gpu(name: str, toy: Path):
    def seen(place: str) -> list[Tensor]:
        recipe_name, settings = RECIPES[name]
        source: Source = Noise(23) if name == "stacked" else toy
        trainer = trainer_of("cuda", *settings, f"run.residency={place}", name=recipe_name, source=source)
        assert trainer.batches.residency.place == place
        tensors, shown = [trainer.batches.preview(3)], 0
        for _ in range(20):
            stage = trainer.schedule.at(shown)
            batch = trainer.batches.for_critic(stage, shown)
            tensors += [batch.inputs, batch.reals]
            shown += stage.batch
        return tensors

    on_device, on_host = seen("device"), seen("host")
    assert all(t.is_cuda for t in on_device + on_host)
    assert all(map(torch.equal, on_device, on_host))
    assert [t.stride() for t in on_device] == [t.stride() for t in on_host]


@pytest.mark.gpu
def test_copies_hide_behind_the_steps(record_property: Record):
    """Steps of a large network at 64x64, with pixels of 1024x1024 reduced: a figure for each place."""
    settings = (
        "schedule.batch=16",
        "schedule.start_resolution=64",
        "data.resolution=1024",
        "data.mirror=false",
    )
    for place in ("device", "host"):
        trainer = trainer_of(
            "cuda", *settings, f"run.residency={place}", name="progan-64-vanilla", source=Noise(64)
        )
        losses(trainer, 3)
        torch.cuda.synchronize()
        began = time.perf_counter()
        for _ in range(10):
            trainer.step()
        torch.cuda.synchronize()
        record_property(f"images_per_second {place}", 160 / (time.perf_counter() - began))


# ----------------------------------------------------------------------------
# The command, and going on.


@on_both
def test_the_command_says_and_writes_what_it_chose(device: str, toy: Path, tmp_path: Path, command):
    out = tmp_path / "run"
    arguments = ["tiny", "--data", toy, "--out", out, "--device", device]
    settings = [word for setting in TINY for word in ("--set", setting)]
    result = command(cli.main, *arguments, *settings)
    assert result.exit_code == 0, result.stderr
    chosen = config.chosen_by(out)
    place = "device" if device == "cuda" else "host"
    assert chosen["residency"] == place
    assert f"training tiny on {device}" in result.stderr
    assert f" in {chosen['precision']}" in result.stderr
    assert ("photographs in the GPU's memory (" in result.stderr) == (device == "cuda")


@on_both
def test_a_run_goes_on_where_it_stopped(device: str, record_property: Record):
    """To the bit on a CPU. On a GPU some sums have no fixed order, so it is measured how far it is."""

    def trained(*parts: int) -> dict[str, Tensor]:
        trainer = trainer_of(device, *TINY, "run.precision=float32")
        for steps in parts:
            saved, shown = {k: v.clone() for k, v in state_tensors(trainer.state).items()}, trainer.state
            trainer = trainer_of(device, *TINY, "run.precision=float32")
            if shown.images_shown:
                restore(trainer.state, saved, shown.images_shown)
            losses(trainer, steps)
        return state_tensors(trainer.state)

    whole, parts = trained(6), trained(2, 1, 3)
    apart = max((whole[k].double() - parts[k].double()).abs().max().item() for k in whole)
    record_property("largest difference of a number", apart)
    assert apart == 0 if device == "cpu" else apart < 1e-2


# ----------------------------------------------------------------------------
# Several processes.


@contextmanager
def process_group(device: torch.device, folder: Path) -> Iterator[Ranks]:
    """The groups of a run of one process, with DDP all the same."""
    dist.init_process_group("gloo", init_method=f"file://{folder / 'store'}", rank=0, world_size=1)
    try:
        yield _grouped(device)
    finally:
        dist.destroy_process_group()


@on_both
def test_one_device_through_ddp(device: str, tmp_path: Path, record_property: Record):
    """nccl on a GPU, gloo on a CPU: the same weights as without."""
    where = torch.device(device, 0) if device == "cuda" else torch.device(device)
    settings = (*TINY, "run.precision=float64")
    alone = trainer_of(str(where), *settings)
    losses(alone, 4)
    with process_group(where, tmp_path) as ranks:
        assert dist.get_backend(ranks.steps) == ("nccl" if device == "cuda" else "gloo")
        shared = trainer_of(str(where), *settings, ranks=ranks)
        assert type(shared.generator_loss).__name__ == "DistributedDataParallel"
        losses(shared, 4)
        one, other = state_tensors(alone.state), state_tensors(shared.state)
        apart = max((one[k] - other[k]).abs().max().item() for k in one)
    record_property("largest difference of a number", apart)
    assert apart < 1e-9


@pytest.mark.gpu
def test_every_device_through_ddp(
    parallel_recipe: Path,  # noqa: F811
    toy: Path,
    tmp_path: Path,
    record_property: Record,
):
    count = torch.cuda.device_count()
    record_property("devices", count)
    if count < 2:
        pytest.skip("this machine has one GPU")
    even = ("--set", f"schedule.batch={4 * count}", "--set", f"schedule.at.8.batch={4 * count}")
    finish(start(1, parallel_recipe, toy, tmp_path / "one", *even, device="cuda"))
    finish(start(count, parallel_recipe, toy, tmp_path / "all", *even, device="cuda"))
    assert difference(tmp_path / "one", tmp_path / "all") < 1e-9
    assert load(newest(tmp_path / "all")).progress["images_shown"] > 0


# ----------------------------------------------------------------------------
# Measurements on the GPU that was asked for.


class Cuda:
    """Stands in for torch.cuda: which GPU is current as events are made, recorded and waited for."""

    def __init__(self) -> None:
        self.current, self.seen = 0, []
        self.clock = itertools.count()

    @contextmanager
    def device(self, wanted: str) -> Iterator[None]:
        before, self.current = self.current, torch.device(wanted).index
        yield
        self.current = before

    def Event(self, enable_timing: bool = False) -> CudaEvent:
        assert enable_timing
        return CudaEvent(self)


class CudaEvent:
    def __init__(self, cuda: Cuda) -> None:
        self.cuda, self.at = cuda, -1
        cuda.seen.append(cuda.current)

    def record(self) -> None:
        self.cuda.seen.append(self.cuda.current)
        self.at = next(self.cuda.clock)

    def synchronize(self) -> None:
        assert self.at >= 0
        self.cuda.seen.append(self.cuda.current)

    def elapsed_time(self, end: CudaEvent) -> float:
        return 1000.0 * (end.at - self.at)


def test_events_are_of_the_device_that_was_asked_for(monkeypatch: pytest.MonkeyPatch):
    cuda, calls = Cuda(), []
    monkeypatch.setattr(peaks.torch, "cuda", cuda)
    assert peaks._seconds("cuda:1", lambda: calls.append(cuda.current)) == pytest.approx(1 / peaks.CALLS)
    assert calls == [1] * (peaks.CALLS + 1)
    assert cuda.seen == [1] * 5
    assert cuda.current == 0


@pytest.mark.gpu
def test_peaks_of_every_device(record_property: Record):
    for index in range(torch.cuda.device_count()):
        device = f"cuda:{index}"
        gflops = {
            name: peaks.gpu_peak_gflops(device, PRECISIONS[name])
            for name in ("float32", "float16", "bfloat16")
        }
        record_property(device, {"GFLOP/s": gflops, "GB/s": peaks.gpu_bandwidth_gbs(device)})
        assert gflops["float16"] > 0.8 * gflops["float32"]
    assert torch.cuda.current_device() == 0
