"""In which precision networks compute, and training in float16: its scale, steps left out, exact resuming."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from pgsr.errors import PgsrError
from pgsr.networks.interfaces import Images
from pgsr.trainer import start
from pgsr.trainer.data.cache import Noise
from pgsr.trainer.run_folder.watch import averaged, check_losses
from pgsr.trainer.step import precision as precisions
from pgsr.trainer.step import recipe as config
from pgsr.trainer.step.batches import batches_for
from pgsr.trainer.step.objectives import gradient_penalty, squared_gradient
from pgsr.trainer.step.parallel import ALONE, Ranks
from pgsr.trainer.step.precision import LossScale, chosen_precision, gpu_multiplies_bfloat16
from pgsr.trainer.step.schedule import build
from pgsr.trainer.step.state import restore, state_tensors
from pgsr.trainer.step.trainer import Trainer

CPU, GPU = torch.device("cpu"), torch.device("cuda", 1)

# ----------------------------------------------------------------------------
# The choice.


@pytest.mark.parametrize(
    ("name", "bfloat16", "half_times_as_fast", "expected"),
    [
        ("H100", True, None, torch.bfloat16),
        ("T4", False, 4.0, torch.float16),
        ("V100", False, 6.0, torch.float16),
        ("GTX 1080", False, 0.9, torch.float32),
        ("about the same", False, 1.2, torch.float32),
    ],
)
def test_the_choice_on_a_gpu(
    name: str,
    bfloat16: bool,
    half_times_as_fast: float | None,
    expected: torch.dtype,
    monkeypatch: pytest.MonkeyPatch,
):
    """bfloat16 only in hardware; elsewhere what is measured. None: nothing may be measured."""
    monkeypatch.delenv("PGSR_PRECISION")
    monkeypatch.setattr(precisions, "gpu_multiplies_bfloat16", lambda device: bfloat16)

    def seconds(device: torch.device, dtype: torch.dtype) -> float:
        assert device == GPU
        assert half_times_as_fast is not None
        return 1.0 if dtype == torch.float32 else 1.0 / half_times_as_fast

    monkeypatch.setattr(precisions, "seconds_of_convolutions", seconds)
    assert chosen_precision("auto", GPU) == expected


@pytest.mark.parametrize("emulated_only", [True, False])
def test_emulated_bfloat16_does_not_count(emulated_only: bool, monkeypatch: pytest.MonkeyPatch):
    """And it is the GPU at hand that is asked, not the first one."""
    current = []

    @contextlib.contextmanager
    def device(wanted: torch.device) -> Iterator[None]:
        current.append(wanted)
        yield
        current.pop()

    def supported(including_emulation: bool = True) -> bool:
        assert current == [GPU]
        return including_emulation or not emulated_only

    monkeypatch.setattr(torch.cuda, "device", device)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", supported)
    assert gpu_multiplies_bfloat16(GPU) is not emulated_only


def test_what_is_measured_runs():
    assert 0 < precisions.seconds_of_convolutions(CPU, torch.float32, maps=4, side=4) < 10


@pytest.mark.parametrize(("before", "expected"), [("float16", torch.float16), ("float32", torch.float32)])
def test_a_run_goes_on_in_the_precision_that_was_measured(
    before: str, expected: torch.dtype, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """On such a GPU; on another it is measured anew."""
    monkeypatch.delenv("PGSR_PRECISION")
    monkeypatch.setattr(precisions, "gpu_multiplies_bfloat16", lambda device: False)
    monkeypatch.setattr(start, "device_name", lambda device: "Tesla T4")
    monkeypatch.setattr(start, "measured_worthwhile", lambda device: before == "float32")
    recipe = config.load("tiny")
    written = recipe.as_dict() | {"chosen": {"device": "Tesla T4", "precision": before}}
    (tmp_path / "config.json").write_text(json.dumps(written))
    assert start._precision(recipe, tmp_path, GPU, ALONE) == expected
    (tmp_path / "config.json").write_text(json.dumps(written).replace("Tesla T4", "Tesla P40"))
    assert start._precision(recipe, tmp_path, GPU, ALONE) != expected


@pytest.mark.parametrize(
    ("votes", "expected"),
    [
        ([torch.bfloat16, torch.bfloat16], torch.bfloat16),
        ([torch.bfloat16, torch.float16], torch.float16),
        ([torch.float16, torch.float32, torch.bfloat16], torch.float32),
    ],
)
def test_ranks_compute_in_one_precision(votes: list[torch.dtype], expected: torch.dtype):
    class Asked(Ranks):
        def meet(self, flag: bool = False, waiting_for: str = "") -> bool:
            return any(vote == self_asks for vote in votes) if (self_asks := next(asked)) else flag

    for vote in votes:
        asked = iter((torch.float64, torch.float32, torch.float16))
        assert Asked().agreed(vote) == expected


# ----------------------------------------------------------------------------
# Training in float16, on the CPU: the same arithmetic, slowly.

RECIPE = (
    *("schedule.batch=4", "schedule.fade_images=16", "schedule.stable_images=8", "schedule.resolution=8"),
    *("generator.resolution=8", "generator.feature_max=4", "generator.latent_size=4"),
    *("discriminator.resolution=8", "discriminator.feature_max=4"),
)


def trainer_of(precision: str, *settings: str) -> Trainer:
    """A trainer whose scale, if it has one, is small enough from the first step."""
    recipe = config.load("tiny", (*RECIPE, f"run.precision={precision}", *settings))
    batches = batches_for(recipe, Noise(20), CPU, ALONE)
    trainer = Trainer(recipe, build(recipe.schedule), batches, CPU, ALONE)
    begin_with_scale(trainer, 2.0**10)
    return trainer


def numbers(trainer: Trainer) -> dict[str, float]:
    """What is logged of one more step."""
    stage = trainer.stage()
    return averaged(trainer, trainer.step(watch=True), stage)


@pytest.mark.parametrize("updates", ["alternating", "simultaneous"])
def test_losses_and_gradients_are_those_of_float32(updates: str):
    """The scale is out of everything that is logged, and out of the optimizers' steps."""
    settings = (f"objective.updates={updates}",)
    wide, half = trainer_of("float32", *settings), trainer_of("float16", *settings)
    for tolerance in (
        0.02,
        0.3,
        0.3,
    ):  # Adam's first steps are of one size, whatever is rounded in a gradient
        expected, found = numbers(wide), numbers(half)
        assert found.keys() == expected.keys()
        for name in expected:
            assert found[name] == pytest.approx(expected[name], rel=tolerance, abs=0.02), name
    assert half.precision == torch.float16
    moved = [a - b for a, b in zip(weights(half), weights(wide), strict=True)]
    assert 0 < max(m.abs().max().item() for m in moved) < 0.02


def weights(trainer: Trainer) -> list[Tensor]:
    return [p.detach() for p in trainer.state.generator.parameters()]


def begin_with_scale(trainer: Trainer, scale: float) -> None:
    trainer.state.loss_scale.restore({"scale": torch.tensor(scale), "steps": torch.tensor(0)})


def scale_of(trainer: Trainer) -> tuple[float, float]:
    tensors = trainer.state.loss_scale.tensors()
    return tensors["scale"].item(), tensors["steps"].item()


def test_a_step_with_infinite_gradients_is_left_out_and_the_scale_halved():
    trainer = trainer_of("float16")
    begin_with_scale(trainer, 2.0**40)
    before = [w.clone() for w in weights(trainer)]
    found = numbers(trainer)
    assert all(map(torch.equal, weights(trainer), before))
    assert scale_of(trainer) == (2.0**38, 0)  # the critic's step and the generator's
    assert found["watch/gradient norm generator"] == 0
    assert all(torch.isfinite(v).all() for v in state_tensors(trainer.state).values())
    for _ in range(20):
        numbers(trainer)
    assert scale_of(trainer)[0] < 2.0**24
    assert not all(map(torch.equal, weights(trainer), before))


@pytest.mark.parametrize("scale", [2.0**10, 2.0**26], ids=["usual", "too large at first"])
@pytest.mark.parametrize("stop", [1, 5, 9])
def test_resuming_is_exact(scale: float, stop: int):
    """In the middle of a fade, and while steps are being left out: scale, counter and all."""

    def trained(steps: int, trainer: Trainer) -> Trainer:
        for _ in range(steps):
            trainer.step()
        return trainer

    first = trainer_of("float16")
    begin_with_scale(first, scale)
    trained(stop, first)
    saved = {k: v.clone() for k, v in state_tensors(first.state).items()}
    assert {"loss_scale.scale", "loss_scale.steps"} <= saved.keys()
    second = trainer_of("float16")
    restore(second.state, saved, first.state.images_shown)
    whole, resumed = (state_tensors(trained(6, t).state) for t in (first, second))
    assert whole.keys() == resumed.keys()
    assert all(torch.equal(whole[k], resumed[k]) for k in whole)


@pytest.mark.parametrize("precision", ["float32", "bfloat16", "float64"])
def test_other_precisions_have_no_scale_and_one_may_go_on_from_the_other(precision: str):
    trainer, half = trainer_of(precision), trainer_of("float16")
    trainer.step()
    half.step()
    saved = state_tensors(trainer.state)
    assert not [name for name in saved if name.startswith("loss_scale")]
    restore(half.state, saved, trainer.state.images_shown)
    half.step()
    assert scale_of(half) == (2.0**10, 4)  # its own: two steps of each network
    restore(trainer.state, state_tensors(half.state), half.state.images_shown)
    trainer.step()


def test_gradients_that_no_scale_makes_finite_are_divergence():
    trainer = trainer_of("float16")
    begin_with_scale(trainer, precisions.SMALLEST / 4)
    with torch.no_grad():
        for parameter in trainer.state.generator.parameters():
            parameter.fill_(float("inf"))
    stage = trainer.stage()
    values = averaged(trainer, trainer.step(watch=True), stage)
    with pytest.raises(PgsrError, match=r"is (nan|inf) at step 0"):
        check_losses(values, stage, 0.0)


def test_rmsprop_steps_too():
    trainer = trainer_of("float16", "generator_optimizer.kind=rmsprop", "critic_optimizer.kind=rmsprop")
    before = [w.clone() for w in weights(trainer)]
    begin_with_scale(trainer, 2.0**40)
    trainer.step()
    assert all(map(torch.equal, weights(trainer), before))
    begin_with_scale(trainer, 2.0**10)
    trainer.step()
    assert not all(map(torch.equal, weights(trainer), before))


# ----------------------------------------------------------------------------
# Gradients at images.


def score(images: Images) -> Tensor:
    """A critic whose gradient at an image of side 64 has a norm of about 4e-4: each pixel's is about 4e-6,
    where float16 has few digits."""
    assert isinstance(images, Tensor)
    weight = torch.ones(1, 3, 1, 1) * 1e-3
    return torch.nn.functional.conv2d(images, weight).mean(dim=(1, 2, 3)) * 16.0


@pytest.mark.parametrize("penalty", ["r1", "gradient penalty"])
def test_gradients_at_images_keep_their_digits(penalty: str):
    images = torch.zeros(2, 3, 64, 64)

    def found() -> Tensor:
        x = images.clone().requires_grad_()
        if penalty == "r1":
            return squared_gradient(score(x), x).mean()
        return gradient_penalty(score, images, images, torch.zeros(2), target=1e-4)

    expected = found()
    with torch.autocast("cpu", dtype=torch.float16):
        half = found()
    assert half.item() == pytest.approx(expected.item(), rel=2e-3)


def test_other_precisions_are_not_scaled(monkeypatch: pytest.MonkeyPatch):
    """Their gradients are those of the plain call, to the bit."""
    x = torch.linspace(-1, 1, 2 * 3 * 64 * 64).view(2, 3, 64, 64).requires_grad_()
    values = score(x.square()).sum()
    (plain,) = torch.autograd.grad(values, x, retain_graph=True)
    found = squared_gradient(score(x.square()), x)
    assert torch.equal(found, plain.square().sum(dim=(1, 2, 3)))


def test_a_scale_without_float16_changes_nothing():
    class Optimizer:
        stepped = 0

        def step(self) -> None:
            self.stepped += 1

    optimizer: Any = Optimizer()
    scale = LossScale(CPU, torch.bfloat16)
    scale.step(optimizer)
    assert optimizer.stepped == 1
    assert scale.tensors() == {}
    assert scale.watched(torch.tensor(float("inf"))).isinf()
