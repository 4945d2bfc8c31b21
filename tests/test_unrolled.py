"""Unrolling (Metz et al. 2017) against Adam's steps in Python numbers, and through the training loop."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from pgsr.errors import PgsrError
from pgsr.networks.interfaces import Discriminator, Images
from pgsr.trainer.data.cache import Noise
from pgsr.trainer.step import recipe as config
from pgsr.trainer.step import trainer as loop
from pgsr.trainer.step.batches import batches_for
from pgsr.trainer.step.objectives import ObjectiveConfig
from pgsr.trainer.step.parallel import ALONE, Ranks
from pgsr.trainer.step.schedule import build
from pgsr.trainer.step.state import Critic, state_tensors
from pgsr.trainer.step.tables import ScheduleConfig
from pgsr.trainer.step.unrolled import unrolled_scores

PIXELS = 5
RATE, BETA1, BETA2, EPSILON = 0.05, 0.5, 0.9, 1e-8


class Linear(Discriminator):
    """Scores are sums of weighted pixels, and of a weight that no image reaches."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.linspace(-0.5, 0.7, PIXELS, dtype=torch.float64))
        self.unused = nn.Parameter(torch.zeros(2, dtype=torch.float64))

    def forward(self, images: Images) -> Tensor:
        assert isinstance(images, Tensor)
        return images.flatten(1) @ self.weight


def images(seed: int, count: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, 1, 1, PIXELS, generator=generator, dtype=torch.float64)


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def slow_step(
    weight: list[float], moments: list[list[float]], t: int, reals: Sequence, fakes: Sequence
) -> tuple[list[float], list[list[float]]]:
    """One step of Adam on the logistic loss, whose gradient is known: the weight and moments after it."""

    def score(x: Sequence[float]) -> float:
        return sum(a * b for a, b in zip(weight, x, strict=True))

    after, new = [], []
    for i in range(PIXELS):
        gradient = -sum(sigmoid(-score(x)) * x[i] for x in reals) / len(reals)
        gradient += sum(sigmoid(score(x)) * x[i] for x in fakes) / len(fakes)
        m = BETA1 * moments[i][0] + (1 - BETA1) * gradient
        v = BETA2 * moments[i][1] + (1 - BETA2) * gradient**2
        new.append([m, v])
        step = RATE * (m / (1 - BETA1**t)) / (math.sqrt(v / (1 - BETA2**t)) + EPSILON)
        after.append(weight[i] - step)
    return after, new


def slow_loss(fakes: list[list[float]], reals: list[list[float]], before: list, steps: int) -> float:
    """The generator's loss after two real steps of the critic on other images, and `steps` unrolled ones."""
    weight = torch.linspace(-0.5, 0.7, PIXELS, dtype=torch.float64).tolist()
    moments, t = [[0.0, 0.0] for _ in range(PIXELS)], 0
    for old_reals, old_fakes in before:
        t += 1
        weight, moments = slow_step(weight, moments, t, old_reals, old_fakes)
    for _ in range(steps):
        t += 1
        weight, moments = slow_step(weight, moments, t, reals, fakes)
    scores = [sum(a * b for a, b in zip(weight, x, strict=True)) for x in fakes]
    return sum(math.log(1 + math.exp(-s)) for s in scores) / len(scores)


@pytest.mark.parametrize("stepped", [0, 2])
@pytest.mark.parametrize("steps", [1, 3])
def test_the_generators_loss_and_gradient_are_those_of_slow_steps(steps: int, stepped: int):
    """Its gradient by differences, so through the critic's steps as well."""
    network = Linear()
    optimizer = torch.optim.Adam(network.parameters(), lr=RATE, betas=(BETA1, BETA2), eps=EPSILON)
    critic = Critic("", network, ObjectiveConfig(adversarial="logistic"), optimizer)
    before = [(images(10 + i, 4), images(20 + i, 3)) for i in range(stepped)]
    for old_reals, old_fakes in before:
        optimizer.zero_grad()
        loss = nn.functional.softplus(-network(old_reals)).mean()
        (loss + nn.functional.softplus(network(old_fakes)).mean()).backward()
        optimizer.step()
    kept = {name: value.clone() for name, value in network.state_dict().items()}
    reals, fakes = images(1, 4), images(2, 3).requires_grad_()
    stage = build(ScheduleConfig(resolution=4, start_resolution=4)).at(0)
    score = unrolled_scores(critic, stage, reals, fakes, torch.zeros(3), None, steps)
    loss = nn.functional.softplus(-score(fakes)).mean()
    (gradient,) = torch.autograd.grad(loss, fakes)

    def plain(x: Tensor) -> list[list[float]]:
        return x.detach().flatten(1).tolist()

    past = [(plain(a), plain(b)) for a, b in before]
    assert loss.item() == pytest.approx(slow_loss(plain(fakes), plain(reals), past, steps), rel=1e-9)
    for n in range(len(fakes)):
        for i in range(PIXELS):
            moved = []
            for sign in (1, -1):
                near = plain(fakes)
                near[n][i] += sign * 1e-5
                moved.append(slow_loss(near, plain(reals), past, steps))
            slope = (moved[0] - moved[1]) / 2e-5
            assert gradient[n, 0, 0, i].item() == pytest.approx(slope, rel=1e-4, abs=1e-8)
    assert all(torch.equal(value, kept[name]) for name, value in network.state_dict().items())


def trainer_of(data: Path, *settings: str) -> loop.Trainer:
    small = ("schedule.batch=4", "data.stacked=false", "run.precision=float64")
    recipe = config.load("tiny", (*small, "objective.adversarial=logistic", "averaging.decay=0.9", *settings))
    return loop.make_trainer(recipe, build(recipe.schedule), data, torch.device("cpu"))


def test_the_first_step_of_the_critic_is_the_same_and_the_generators_is_not(toy: Path):
    trainers = [trainer_of(toy, f"objective.unrolled_steps={steps}") for steps in (0, 2)]
    for trainer in trainers:
        trainer.step()
    plain, ahead = (state_tensors(trainer.state) for trainer in trainers)
    for name, tensor in plain.items():
        if name.startswith("discriminator."):
            assert torch.equal(tensor, ahead[name])
    moved = [
        name for name in plain if name.startswith("generator.") and not torch.equal(plain[name], ahead[name])
    ]
    assert moved


@pytest.mark.parametrize("critic", ["k2", "k4"])
def test_the_recipes_of_table_4(critic: str):
    unrolled, plain = (config.load(f"mnist-modes-{name}-{critic}") for name in ("unrolled", "gan"))
    assert unrolled.objective.unrolled_steps == 10
    assert unrolled.discriminator == plain.discriminator
    assert (unrolled.schedule, unrolled.critic_optimizer) == (plain.schedule, plain.critic_optimizer)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (("objective.unrolled_steps=-1",), r"objective\.unrolled_steps is -1"),
        (("objective.unrolled_steps=101",), r"objective\.unrolled_steps is 101"),
        (("objective.unrolled_steps=2", "critic_optimizer.kind=rmsprop"), "needs one critic, and Adam"),
        (
            ("objective.unrolled_steps=2", "objective.adversarial=wgan-gp", "objective.updates=simultaneous"),
            "nothing unrolled",
        ),
    ],
)
def test_what_does_not_fit_is_named(settings: tuple[str, ...], message: str):
    with pytest.raises(PgsrError, match=message):
        config.load("tiny", settings)


def test_several_processes_are_refused():
    recipe, cpu = config.load("tiny", ("objective.unrolled_steps=1",)), torch.device("cpu")
    batches = batches_for(recipe, Noise(4), cpu, ALONE)
    with pytest.raises(PgsrError, match=r"objective\.unrolled_steps is for one process"):
        loop.Trainer(recipe, build(recipe.schedule), batches, cpu, Ranks(0, 2))
