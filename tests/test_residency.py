"""Where a data set's pixels lie while a GPU trains: the choice, and that it changes no bit of any batch."""

from __future__ import annotations

import threading
from pathlib import Path

import numpy as np
import pytest
import torch

from pgsr.errors import PgsrError
from pgsr.trainer.data.cache import Noise, Source
from pgsr.trainer.step import batches as sources
from pgsr.trainer.step import recipe as config
from pgsr.trainer.step import residency
from pgsr.trainer.step.parallel import ALONE
from pgsr.trainer.step.residency import Cuts, HostPixels, Pixels, chosen_residency, whole
from pgsr.trainer.step.schedule import build
from pgsr.trainer.step.trainer import Trainer

CPU, GPU = torch.device("cpu"), torch.device("cuda", 0)
GIB = 2**30
CELEBA_HQ = 30_000 * 1024**2 * 3  # bytes: 88 GiB

RECIPES = {
    "latents": ("tiny", ("schedule.batch=6", "schedule.at.8.batch=5")),
    "boxes of latents": ("tiny", ("schedule.batch=6", "data.resolution=16", "data.box=16")),
    "stacked": ("mnist-modes-gan-k4", ("schedule.batch=6",)),
    "critic steps": ("tiny", ("schedule.batch=6", "objective.critic_steps=3")),
    "crops": (
        "upscale-4x-pixel",
        (
            *("schedule.batch=6", "schedule.resolution=8", "schedule.start_resolution=8"),
            *("data.resolution=16", "generator.scale=2"),
        ),
    ),
    "boxes": (
        "sr-gan",
        (
            *("schedule.batch=6", "schedule.resolution=4", "schedule.start_resolution=4", "data.box=8"),
            *("data.resolution=16", "data.width=0", "discriminator.kind=mlp", "discriminator.crop=4"),
            *("generator.features=1", "discriminator.features=1"),
        ),
    ),
}  # a recipe and settings for each way that batches are made


def host_pixels(pixels: np.ndarray, choice: residency.Residency, device: torch.device) -> Pixels:
    return HostPixels(torch.from_numpy(np.array(pixels)), device)


@pytest.mark.parametrize(
    ("wish", "pixel_bytes", "free_bytes", "place"),
    [
        ("auto", CELEBA_HQ, 79 * GIB, "host"),  # the papers' own recipe on an 80 GB card
        ("auto", CELEBA_HQ, 180 * GIB, "device"),
        ("auto", 39 * GIB, 79 * GIB, "device"),
        ("auto", 40 * GIB, 79 * GIB, "host"),  # more than half of it
        ("device", 40 * GIB, 79 * GIB, "device"),
        ("host", 1, 79 * GIB, "host"),
    ],
)
def test_the_choice(
    wish: str, pixel_bytes: int, free_bytes: int, place: str, monkeypatch: pytest.MonkeyPatch
):
    asked = []
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda d: asked.append(d) or (free_bytes, 80 * GIB))
    found = chosen_residency(wish, pixel_bytes, GPU)
    assert found.place == place
    assert asked == [GPU]
    assert f"{free_bytes / GIB:.2f} GiB of the GPU free" in str(found)
    assert chosen_residency(wish, pixel_bytes, CPU).place == "host"


def test_pixels_that_do_not_fit_are_named(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda d: (79 * GIB, 80 * GIB))
    with pytest.raises(PgsrError, match=r"take 87\.9 GiB and 79\.0 GiB of cuda:0 are free: set run\.resid"):
        chosen_residency("device", CELEBA_HQ, GPU)
    with pytest.raises(PgsrError, match=r"run\.residency = 'disk' is not one of"):
        config.load("tiny", ["run.residency=disk"])


def batches_of(name: str, source: Source) -> list[torch.Tensor]:
    """All that eight steps in a row see, over the end of a phase and of an epoch, and a preview."""
    recipe = config.load(RECIPES[name][0], RECIPES[name][1])
    batches = sources.batches_for(recipe, source, CPU, ALONE)
    schedule = build(recipe.schedule, recipe.objective.critic_steps, batches.count)
    shown, seen = max(0, schedule.phases[0].end - 24), [batches.preview(3)]
    for _ in range(8):
        stage = schedule.at(shown)
        for _ in range(recipe.objective.critic_steps):
            batch = batches.for_critic(stage, shown)
            shown += stage.batch
            seen += [batch.inputs, batch.reals]
        seen.append(batches.generator_inputs(stage, shown - stage.batch, batch).inputs)
    return seen


@pytest.mark.parametrize("name", RECIPES)
def test_where_pixels_lie_changes_no_bit(name: str, toy: Path, monkeypatch: pytest.MonkeyPatch):
    source: Source = Noise(23, labels=0) if name == "stacked" else toy
    expected = batches_of(name, source)
    monkeypatch.setattr(sources, "placed", host_pixels)
    found = batches_of(name, source)
    assert len(found) == len(expected)
    for a, b in zip(found, expected, strict=True):
        assert torch.equal(a, b)
        assert a.stride() == b.stride()  # convolutions choose their algorithm by it


def test_a_training_is_the_same_to_the_bit(toy: Path, monkeypatch: pytest.MonkeyPatch):
    recipe = config.load("tiny", ("schedule.batch=6", "schedule.fade_images=12", "schedule.stable_images=12"))

    def weights() -> list[torch.Tensor]:
        batches = sources.batches_for(recipe, toy, CPU, ALONE)
        trainer = Trainer(recipe, build(recipe.schedule), batches, CPU, ALONE)
        for _ in range(7):
            trainer.step()
        return [p.detach().clone() for p in trainer.state.generator.parameters()]

    expected = weights()
    monkeypatch.setattr(sources, "placed", host_pixels)
    assert all(map(torch.equal, weights(), expected))


def pictures(count: int = 5, side: int = 4) -> torch.Tensor:
    return torch.arange(count * side * side * 3, dtype=torch.uint8).view(count, side, side, 3)


class Watched(HostPixels):
    """Tells in which thread what was fetched."""

    def __init__(self) -> None:
        super().__init__(pictures(), CPU)
        self.fetched: list[tuple[Cuts, str]] = []

    def _fetch(self, cuts: Cuts) -> residency.Arrival:
        self.fetched.append((cuts, threading.current_thread().name))
        return super()._fetch(cuts)


def test_what_is_expected_is_fetched_once_and_in_another_thread():
    pixels = Watched()
    cuts = whole([3, 1], 4)
    pixels.expect(lambda: cuts)
    pixels.expect(lambda: cuts)
    assert torch.equal(pixels.cut(cuts), pictures()[[3, 1]])
    assert [c for c, _ in pixels.fetched] == [cuts]
    assert pixels.fetched[0][1].startswith("pixels")


def test_what_was_not_expected_is_right_all_the_same():
    pixels = Watched()
    pixels.expect(lambda: whole([0], 4))
    square = Cuts(((2, 1, 1), (4, 0, 2)), 2)
    expected = torch.stack([pictures()[2, 1:3, 1:3], pictures()[4, 0:2, 2:4]])
    assert torch.equal(pixels.cut(square), expected)
    assert torch.equal(pixels.cut(whole([0], 4)), pictures()[:1])  # and what was expected is still there
    assert len(pixels.fetched) == 2


def test_a_cpu_does_not_ask_what_comes_next():
    Pixels(pictures(), CPU).expect(lambda: pytest.fail("nothing is fetched ahead on a CPU"))
