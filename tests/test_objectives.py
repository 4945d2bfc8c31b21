"""Losses against their formulas in float64, with critics whose gradient is known in closed form."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pgsr.errors import PgsrError
from pgsr.networks import DISCRIMINATORS, build
from pgsr.networks.progan import ProGANDiscriminator
from pgsr.trainer.step import objectives, schedule
from pgsr.trainer.step import recipe as recipes
from pgsr.trainer.step import trainer as loop
from pgsr.trainer.step.objectives import OBJECTIVES, gradient_penalty, squared_gradient
from pgsr.trainer.step.recipe import ObjectiveConfig
from pgsr.trainer.step.state import restore, state_tensors

SHAPE = (5, 3, 4, 4)


def randn(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


REALS, FAKES = randn(*SHAPE, seed=1), randn(*SHAPE, seed=2)
BLEND = torch.rand(5, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
SLOPE = randn(*SHAPE[1:], seed=4)


def critic_terms(*arguments: Any) -> dict[str, Tensor]:
    return objectives.critic_terms(*arguments).losses


def adversarial_terms(*arguments: Any) -> dict[str, Tensor]:
    return objectives.adversarial_terms(*arguments).losses


def linear(x: Tensor) -> Tensor:
    """Its gradient is SLOPE at every image."""
    return (x * SLOPE).sum(dim=(1, 2, 3))


def quadratic(x: Tensor) -> Tensor:
    """|x|**2 / 2; its gradient is x itself."""
    return x.square().sum(dim=(1, 2, 3)) / 2


def terms_of(score=quadratic, step: int = 0, **options: Any) -> dict[str, float]:
    """The terms of one objective as numbers."""
    config = ObjectiveConfig(**options)
    terms = critic_terms(config, score, REALS.clone(), FAKES.clone(), BLEND, step)
    return {name: term.item() for name, term in terms.items()}


def close(expected: float):
    return pytest.approx(expected, rel=1e-12)


def mean(values: list[float]) -> float:
    return sum(values) / len(values)


def softplus(x: float) -> float:
    return math.log1p(math.exp(-abs(x))) + max(x, 0.0)


# ----------------------------------------------------------------------------
# Each term against its formula.


def test_wgan_losses():
    real, fake = quadratic(REALS).tolist(), quadratic(FAKES).tolist()
    assert terms_of(adversarial="wgan-gp") == {"critic": close(mean(fake) - mean(real))}
    terms = adversarial_terms(ObjectiveConfig(adversarial="wgan-gp"), quadratic, FAKES, None)
    assert {k: v.item() for k, v in terms.items()} == {"generator": close(-mean(fake))}


def test_logistic_losses():
    real, fake = linear(REALS).tolist(), linear(FAKES).tolist()
    expected = mean([softplus(-r) for r in real]) + mean([softplus(f) for f in fake])
    assert terms_of(linear, adversarial="logistic") == {"critic": close(expected)}
    terms = adversarial_terms(ObjectiveConfig(adversarial="logistic"), linear, FAKES, None)
    assert terms["generator"].item() == close(mean([softplus(-f) for f in fake]))


def test_logistic_losses_stay_finite_for_sure_critics():
    terms = critic_terms(
        ObjectiveConfig(adversarial="logistic"), lambda x: 1e4 * linear(x), REALS, FAKES, BLEND, 0
    )
    assert torch.isfinite(terms["critic"])


def test_drift_looks_at_real_scores_only():
    real = quadratic(REALS).tolist()
    assert terms_of(drift=0.001)["drift"] == close(0.001 * mean([r * r for r in real]))


@pytest.mark.parametrize("target", [1.0, 750.0])
def test_gradient_penalty_of_a_linear_critic(target: float):
    """(|w| - gamma)**2 / gamma**2, wherever it looks."""
    norm = math.sqrt(sum(w * w for w in SLOPE.flatten().tolist()))
    expected = 10.0 * (norm - target) ** 2 / target**2
    assert terms_of(linear, gradient_penalty=10.0, gradient_target=target)["gradient penalty"] == close(
        expected
    )


@pytest.mark.parametrize("target", [1.0, 750.0])
def test_gradient_penalty_looks_between_real_and_fake(target: float):
    """The quadratic critic's gradient is the point itself: real + blend * (fake - real), image by image."""
    points = [(1 - t) * r + t * f for r, f, t in zip(REALS, FAKES, BLEND.tolist(), strict=True)]
    norms = [math.sqrt(sum(v * v for v in p.flatten().tolist())) for p in points]
    expected = mean([(n - target) ** 2 for n in norms]) / target**2
    assert gradient_penalty(quadratic, REALS, FAKES, BLEND, target).item() == close(expected)  # type: ignore[arg-type]


def test_r1_is_the_squared_gradient_at_real_images():
    squares = [sum(v * v for v in r.flatten().tolist()) for r in REALS]
    assert squared_gradient(quadratic(REALS.requires_grad_()), REALS).tolist() == [close(s) for s in squares]
    assert terms_of(r1=3.0)["r1"] == close(3.0 / 2 * mean(squares))


def test_all_terms_together():
    """The WGAN-GP of paper 2, section A.1."""
    terms = terms_of(gradient_penalty=10.0, drift=0.001, r1=1.0)
    assert set(terms) == {"critic", "gradient penalty", "drift", "r1"}


def hinge(x: float) -> float:
    return max(0.0, x)


SHIFTED = 0.3 * linear(REALS)  # some scores inside the hinges, some outside
MADE = 0.3 * linear(FAKES) - 0.2

# name -> (critic's loss, generator's loss) of lists of real and fake scores, as the papers print them.
FORMULAS = {
    "hinge": (
        lambda real, fake: mean([hinge(1 - r) for r in real]) + mean([hinge(1 + f) for f in fake]),
        lambda real, fake: -mean(fake),
    ),
    "ra-hinge": (
        lambda real, fake: (
            mean([hinge(1 - (r - mean(fake))) for r in real])
            + mean([hinge(1 + (f - mean(real))) for f in fake])
        ),
        lambda real, fake: (
            mean([hinge(1 + (r - mean(fake))) for r in real])
            + mean([hinge(1 - (f - mean(real))) for f in fake])
        ),
    ),
    "lsgan": (
        lambda real, fake: mean([(r - 1) ** 2 / 2 for r in real]) + mean([f**2 / 2 for f in fake]),
        lambda real, fake: mean([(f - 1) ** 2 / 2 for f in fake]),
    ),
    "ra-lsgan": (
        lambda real, fake: (
            mean([(r - mean(fake) - 1) ** 2 for r in real]) + mean([(f - mean(real) + 1) ** 2 for f in fake])
        ),
        lambda real, fake: (
            mean([(f - mean(real) - 1) ** 2 for f in fake]) + mean([(r - mean(fake) + 1) ** 2 for r in real])
        ),
    ),
    "ra-wgan-gp": (
        lambda real, fake: mean([f - mean(real) for f in fake]) - mean([r - mean(fake) for r in real]),
        lambda real, fake: mean([r - mean(fake) for r in real]) - mean([f - mean(real) for f in fake]),
    ),
    "lsgan-adaptive": (
        lambda real, fake: mean([r**2 for r in real]) + 0.1 * mean([(f - 1) ** 2 for f in fake]),
        lambda real, fake: mean([f**2 for f in fake]),
    ),
    "began": (lambda real, fake: mean(real) - 0.25 * mean(fake), lambda real, fake: mean(fake)),
}


@pytest.mark.parametrize("name", FORMULAS)
def test_losses_are_the_papers_formulas(name: str):
    real, fake = SHIFTED.clone().requires_grad_(), MADE.clone().requires_grad_()
    memory = {"k": torch.tensor(0.25, dtype=torch.float64)}
    critic = OBJECTIVES[name].critic(real, fake, memory)
    generator = OBJECTIVES[name].generator(fake, real.detach())
    expected = [formula(SHIFTED.tolist(), MADE.tolist()) for formula in FORMULAS[name]]
    assert [critic.item(), generator.item()] == [close(e) for e in expected]
    assert any(r < 1 for r in SHIFTED.tolist())
    for gradient in (*torch.autograd.grad(critic, (real, fake)), *torch.autograd.grad(generator, fake)):
        assert gradient.any()


RELATIVISTIC = ["ra-hinge", "ra-lsgan", "ra-wgan-gp"]


@pytest.mark.parametrize("name", RELATIVISTIC)
def test_the_generator_of_a_relativistic_loss_is_compared_with_reals(name: str):
    """Through `adversarial_terms`, with a critic of the images."""
    terms = adversarial_terms(ObjectiveConfig(adversarial=name), linear, FAKES, REALS)
    expected = FORMULAS[name][1](linear(REALS).tolist(), linear(FAKES).tolist())
    assert terms["generator"].item() == close(expected)


@pytest.mark.parametrize("name", RELATIVISTIC)
def test_relativistic_losses_look_at_differences_alone(name: str):
    """Adding a constant to all scores changes nothing."""
    objective = OBJECTIVES[name]
    assert objective.critic(SHIFTED + 7, MADE + 7, {}).item() == close(
        objective.critic(SHIFTED, MADE, {}).item()
    )


# ----------------------------------------------------------------------------
# What objectives carry from step to step.


def states_after(name: str, seen: list[tuple[float, float, float]], **options: Any) -> list[dict[str, float]]:
    """The objective's state after each of these mean scores (real, fake, made)."""
    objective, config = OBJECTIVES[name], ObjectiveConfig(adversarial=name, **options)
    state = {k: torch.tensor(v, dtype=torch.float64) for k, v in objective.initial_state.items()}
    result = []
    for scores in seen:
        values = [torch.tensor(v, dtype=torch.float64) for v in scores]
        state = objective.next_state(state, config, *values)
        result.append({k: v.item() for k, v in state.items()})
    return result


def test_lsgan_noise_follows_appendix_b():
    seen = [(0.2, 0.0, 0.0)] + [(1.5, 0.0, 0.0)] * 20 + [(0.0, 0.0, 0.0)] * 20
    d, expected = 0.0, []
    for real, _, _ in seen:
        d = 0.1 * real + 0.9 * d
        expected.append(0.2 * max(0.0, d - 0.5) ** 2)
    found = [m["noise"] for m in states_after("lsgan", seen)]
    assert found == pytest.approx(expected, rel=1e-12)
    assert found[0] == 0 < max(found)
    assert found[-1] == 0


def test_the_noise_of_the_original_code_is_of_fakes_within_0_and_1():
    seen = [(0.0, score, 0.0) for score in [-3.0, 0.4] + [1.7] * 20 + [0.0] * 20]
    d, expected = 0.0, []
    for _, fake, _ in seen:
        d = 0.1 * min(1.0, max(0.0, fake)) + 0.9 * d
        expected.append(0.2 * max(0.0, d - 0.5) ** 2)
    found = [m["noise"] for m in states_after("lsgan-adaptive", seen)]
    assert found == pytest.approx(expected, rel=1e-12)
    assert 0 < max(found) <= 0.2 * 0.5**2
    assert found[0] == found[-1] == 0


def test_began_keeps_its_balance():
    """k rises while fakes are reconstructed too well, and stays within [0, 1]."""
    seen = [(0.4, 0.9, 0.1)] * 3 + [(0.4, 0.1, 0.9)] * 3 + [(9.0, 0.0, 0.0)] * 3
    k, expected = 0.0, []
    for real, _, made in seen:
        gap = 0.7 * real - made
        k = min(1.0, max(0.0, k + 0.2 * gap))
        expected.append({"k": close(k), "M": close(real + abs(gap))})
    assert states_after("began", seen, balance=0.7, balance_rate=0.2) == expected
    assert expected[-1]["k"] == 1.0
    assert expected[5]["k"] == 0.0


def test_a_balance_beyond_1_is_named():
    with pytest.raises(PgsrError, match=r"objective\.balance is 1\.5"):
        ObjectiveConfig(balance=1.5)


# ----------------------------------------------------------------------------
# Noise in the critic, and clipping: what the loop does for an objective.


def tiny_critic(**options: Any) -> ProGANDiscriminator:
    network = build(
        DISCRIMINATORS,
        {"kind": "progan", "resolution": 8, "feature_base": 64, "feature_max": 8, "noise": True, **options},
        seed=1,
    )
    assert isinstance(network, ProGANDiscriminator)
    return network.double()


def test_the_critics_noise_is_as_strong_as_the_objectives_state_says():
    critic, x = tiny_critic(), images(1)
    plain = critic(x)
    assert torch.equal(critic.at(8, 1.0, {"noise": torch.tensor(0.0)})(x), plain)
    spread = []
    for magnitude in (0.01, 0.02):
        noisy = critic.at(8, 1.0, {"noise": torch.tensor(magnitude)})
        torch.manual_seed(0)
        spread.append(torch.stack([noisy(x) - plain for _ in range(50)]).std().item())
    assert spread[1] == pytest.approx(2 * spread[0], rel=0.1)  # small noise is linear
    assert spread[0] > 0


def test_noise_is_at_the_input_of_every_3x3_and_4x4_layer(monkeypatch: pytest.MonkeyPatch):
    """Marked inputs reach those layers and no other, one number an image and map."""
    from pgsr.networks import layers, progan

    noised: list[Tensor] = []

    def noting(x: Tensor, magnitude: Tensor) -> Tensor:
        noised.append(layers.multiplicative_noise(x, magnitude))
        return noised[-1]

    monkeypatch.setattr(progan, "multiplicative_noise", noting)
    critic = tiny_critic()
    taken: dict[str, Tensor] = {}
    for name, module in critic.named_modules():
        if isinstance(module, layers.EqualizedWeight):
            module.register_forward_hook(lambda m, args, out, name=name: taken.update({name: args[0]}))
    critic.at(8, 1.0, {"noise": torch.tensor(0.1)})(images(1))
    with_noise = {name for name, x in taken.items() if any(x is n for n in noised)}
    assert with_noise == {"blocks.0.conv1", "blocks.0.conv2", "last_block.conv", "last_block.last"}
    x = randn(3, 50, 4, 4, seed=1) + 5
    ratio = layers.multiplicative_noise(x, torch.tensor(0.1)) / x
    assert torch.allclose(ratio, ratio[:, :, :1, :1].expand_as(ratio))
    assert (ratio[:, :, 0, 0] - 1).std().item() == pytest.approx(0.1 * math.sqrt(50), rel=0.2)


def test_noise_without_lsgan_is_an_error():
    with pytest.raises(PgsrError, match='adversarial = "lsgan-adaptive"'):
        tiny_critic().at(8, 1.0, {})


def trainer_of(toy: Path, objective: dict[str, Any], critic: dict[str, Any], **more: Any):
    """A trainer at 8 x 8 with networks of a few maps."""
    small = {"kind": "progan", "resolution": 8, "feature_base": 64, "feature_max": 8}
    recipe = recipes.from_dict(
        {
            "name": "tiny",
            "about": "for tests",
            "generator": {**small, "latent_size": 8},
            "discriminator": {**small, **critic},
            "schedule": {"resolution": 8, "start_resolution": 8, "batch": 4, "stable_images": 400},
            "objective": objective,
            **more,
        }
    )
    built = schedule.build(recipe.schedule, recipe.objective.critic_steps)
    return loop.make_trainer(recipe, built, toy, torch.device("cpu"))


@pytest.mark.parametrize(("name", "score"), [("lsgan", "real"), ("lsgan-adaptive", "fake")])
def test_lsgan_trains_with_the_noise_it_measures(toy: Path, name: str, score: str):
    trainer = trainer_of(toy, {"adversarial": name}, {"noise": True})
    terms = [trainer.step(watch=True) for _ in range(3)]
    assert set(trainer.state.critics[0].objective_state) == {"certainty", "noise"}
    average = 0.0
    for term in terms:
        seen = term[f"watch/score {score}"].item()
        average = 0.1 * (seen if name == "lsgan" else min(1.0, max(0.0, seen))) + 0.9 * average
        assert term["watch/certainty"].item() == pytest.approx(average, rel=1e-5)
    assert "watch/noise" in terms[-1]


def test_noise_and_the_objectives_state_go_on_after_a_checkpoint(toy: Path):
    """Two steps, a checkpoint, two more: the weights of four steps, to the bit, noise and all."""

    def started() -> loop.Trainer:
        trainer = trainer_of(toy, {"adversarial": "lsgan"}, {"noise": True})
        trainer.state.critics[0].objective_state["certainty"] += 2.0
        trainer.state.critics[0].objective_state["noise"] += 0.2
        return trainer

    whole, first, second = started(), started(), started()
    for trainer, steps in ((whole, 4), (first, 2)):
        for _ in range(steps):
            trainer.step()
    restore(second.state, state_tensors(first.state), first.state.images_shown)
    for _ in range(2):
        second.step()
    expected, found = state_tensors(whole.state), state_tensors(second.state)
    assert expected.keys() == found.keys()
    assert not [name for name in expected if not torch.equal(expected[name], found[name])]
    assert expected["objective.noise"] > 0


def test_clipped_weights_stay_clipped(toy: Path):
    """WGAN with RMSprop (paper 3, section 3.2): after every step, all of the critic's weights."""
    optimizer = {"kind": "rmsprop", "learning_rate": 0.01}
    trainer = trainer_of(
        toy,
        {"adversarial": "wgan-gp", "clip": 0.05, "critic_steps": 2},
        {},
        critic_optimizer=optimizer,
        generator_optimizer=optimizer,
    )
    assert isinstance(trainer.state.critic_optimizer, torch.optim.RMSprop)
    before = [p.detach().clone() for p in trainer.state.discriminator.parameters()]
    for _ in range(3):
        trainer.step()
        weights = list(trainer.state.discriminator.parameters())
        assert max(p.abs().max().item() for p in weights) == pytest.approx(0.05, rel=1e-6)
    assert any(not torch.equal(a.clamp(-0.05, 0.05), b) for a, b in zip(before, weights, strict=True))
    assert max(p.abs().max().item() for p in trainer.state.generator.parameters()) > 1


def test_the_clipping_recipe_is_the_papers():
    recipe = recipes.load("wgan-clip-64")
    assert (recipe.objective.clip, recipe.objective.critic_steps) == (0.01, 5)
    assert recipe.objective.gradient_penalty == recipe.objective.drift == 0
    for optimizer in (recipe.generator_optimizer, recipe.critic_optimizer):
        assert (optimizer.kind, optimizer.learning_rate) == ("rmsprop", 1e-4)


@pytest.mark.parametrize("every", [1, 4])
def test_rare_penalties_are_as_strong_on_average(every: int):
    options = {"gradient_penalty": 10.0, "r1": 2.0, "drift": 0.5}
    always = terms_of(**options)  # type: ignore[arg-type]
    steps = [terms_of(step=step, penalty_every=every, **options) for step in range(2 * every)]
    for name in ("gradient penalty", "r1"):
        assert [name in s for s in steps] == [step % every == 0 for step in range(2 * every)]
        assert mean([s.get(name, 0.0) for s in steps]) == pytest.approx(always[name], rel=1e-12)
    assert all(s["drift"] == always["drift"] for s in steps)


@pytest.mark.parametrize(("name", "power"), [("l1", 1), ("mse", 2)])
def test_pixel_losses(name: str, power: int):
    differences = (FAKES - REALS).abs().flatten().tolist()
    config = ObjectiveConfig(adversarial="none", pixel=name, pixel_weight=3.0)
    terms = objectives.paired_losses(config, FAKES, REALS)
    assert {k: v.item() for k, v in terms.items()} == {
        "pixel": close(3 * mean([d**power for d in differences]))
    }


def test_adversarial_weight_and_pixel_loss_add_up():
    config = ObjectiveConfig(adversarial="wgan-gp", adversarial_weight=1e-3, pixel="mse")
    terms = adversarial_terms(config, quadratic, FAKES) | objectives.paired_losses(config, FAKES, REALS)
    assert terms["generator"].item() == close(-1e-3 * mean(quadratic(FAKES).tolist()))
    assert terms["pixel"].item() == close(F.mse_loss(FAKES, REALS).item())


def test_unpaired_reals_make_no_pixel_loss(toy: Path):
    """A generator of latents has nothing to be compared with."""
    trainer = trainer_of(toy, {"adversarial": "logistic", "pixel": "l1"}, {})
    assert "pixel" not in trainer.step()


# ----------------------------------------------------------------------------
# Gradients.


def test_a_zero_gradient_has_finite_gradients():
    """sqrt(sum of squares) would give NaN here."""
    weight = torch.zeros((), dtype=torch.float64, requires_grad=True)
    penalty = gradient_penalty(lambda x: weight * linear(x), REALS, FAKES, BLEND, 1.0)
    penalty.backward()
    assert penalty.item() == 1.0
    assert torch.isfinite(weight.grad)


@pytest.fixture(params=["vanilla", "separable"])
def critic(request: pytest.FixtureRequest) -> nn.Module:
    options = {"resolution": 8, "feature_base": 32, "feature_max": 4, "convolution": request.param}
    return build(DISCRIMINATORS, {"kind": "progan", **options}, seed=1).double()


def images(seed: int) -> Tensor:
    return randn(4, 3, 8, 8, seed=seed)


PENALTIES = {
    "gradient penalty": ObjectiveConfig(gradient_penalty=10.0, gradient_target=0.3),
    "r1": ObjectiveConfig(adversarial="logistic", r1=4.0),
}


@pytest.mark.parametrize("name", PENALTIES)
@pytest.mark.parametrize("alpha", [0.4, 1.0])
def test_second_derivatives_are_finite_differences(critic: nn.Module, name: str, alpha: float):
    """d penalty / d weights, itself a derivative of a derivative, along a random direction."""

    def penalty() -> Tensor:
        return critic_terms(
            PENALTIES[name], partial(critic, alpha=alpha), images(1), images(2), BLEND[:4], 0
        )[name]

    weights = list(critic.parameters())
    found = torch.autograd.grad(penalty(), weights, allow_unused=True)
    directions = [randn(*w.shape, seed=i) for i, w in enumerate(weights)]
    analytic = sum((g * d).sum().item() for g, d in zip(found, directions, strict=True) if g is not None)
    h = 1e-6
    sides = []
    for sign in (1, -1):
        shift(weights, directions, sign * h)
        sides.append(penalty().item())
        shift(weights, directions, -sign * h)
    assert analytic != 0
    assert (sides[0] - sides[1]) / (2 * h) == pytest.approx(analytic, rel=1e-5)


@torch.no_grad()
def shift(weights: Sequence[Tensor], directions: list[Tensor], by: float) -> None:
    for weight, direction in zip(weights, directions, strict=True):
        weight.add_(direction, alpha=by)


def test_every_critic_term_moves_every_layer(critic: nn.Module):
    """Weights by all of them; the biases by drift at least (gradients of images hardly know them)."""
    config = ObjectiveConfig(gradient_penalty=10.0, drift=0.001, r1=1.0)
    terms = critic_terms(config, critic, images(1), images(2), BLEND[:4], 0)
    grown = {n: p for n, p in critic.named_parameters() if not n.startswith("from_rgb.0")}
    for name, term in terms.items():
        gradients = torch.autograd.grad(term, list(grown.values()), retain_graph=True, allow_unused=True)
        for parameter, gradient in zip(grown, gradients, strict=True):
            if parameter.endswith("weight") or name == "drift":
                assert gradient is not None, f"{name} does not reach {parameter}"
                assert gradient.abs().sum() > 0, f"{name} does not move {parameter}"


def test_every_generator_term_reaches_the_images():
    config = ObjectiveConfig(adversarial="logistic", adversarial_weight=1e-3, pixel="l1")
    fakes = FAKES.clone().requires_grad_()
    terms = adversarial_terms(config, linear, fakes) | objectives.paired_losses(config, fakes, REALS)
    assert set(terms) == {"generator", "pixel"}
    for term in terms.values():
        (gradient,) = torch.autograd.grad(term, fakes, retain_graph=True)
        assert (gradient != 0).all()


def test_critic_terms_leave_the_given_images_alone():
    reals = REALS.detach().clone()
    critic_terms(ObjectiveConfig(r1=1.0), quadratic, reals, FAKES, BLEND, 0)["r1"]
    assert not reals.requires_grad


def test_losses_of_half_precision_scores_are_float32():
    half = critic_terms(ObjectiveConfig(drift=1.0), lambda x: linear(x).half(), REALS, FAKES, BLEND, 0)
    assert {term.dtype for term in half.values()} == {torch.float32}


def test_what_objectives_need_and_carry():
    """Which compare real with fake, which are zero-sum, and that states keep their form."""
    assert {name for name, one in OBJECTIVES.items() if one.compares} == {
        "ra-hinge",
        "ra-lsgan",
        "ra-wgan-gp",
    }
    assert {name for name, one in OBJECTIVES.items() if one.zero_sum} == {"wgan-gp"}
    carried = {name: set(one.initial_state) for name, one in OBJECTIVES.items() if one.initial_state}
    noise = {"certainty", "noise"}
    assert carried == {"lsgan-adaptive": noise, "lsgan": noise, "began": {"k", "M"}}
    for name, one in OBJECTIVES.items():
        assert set(one.initial_state.values()) <= {0.0}
        state = {key: torch.tensor(value) for key, value in one.initial_state.items()}
        score = torch.tensor(0.75)
        following = one.next_state(state, ObjectiveConfig(adversarial=name), score, score, score)
        assert set(following) == set(one.initial_state)


def test_what_a_recipe_says_nothing_of():
    """Paper 2's loss alone: no penalty, and SRGAN's and BEGAN's numbers for who asks for them."""
    assert dataclasses.asdict(ObjectiveConfig()) == {
        **{"adversarial": "wgan-gp", "adversarial_weight": 1.0, "critic_steps": 1, "unrolled_steps": 0},
        **{
            "updates": "alternating",
            "gradient_penalty": 0.0,
            "gradient_target": 1.0,
            "drift": 0.0,
            "r1": 0.0,
        },
        **{"penalty_every": 1, "clip": 0.0, "pixel": "none", "pixel_at": "reals", "pixel_weight": 1.0},
        **{"grid_weight": 0.0, "balance": 0.5, "balance_rate": 0.001, "label_weight": 1.0},
        **{"content": "none", "content_depth": 0, "content_weight": 0.006},
    }


SIMULTANEOUS = "objective.updates = 'simultaneous' needs a zero-sum objective alone"


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"content": "critic", "adversarial": "none"}, "'critic' needs a critic: set objective.adversarial"),
        ({"content_depth": -1}, "objective.content_depth is -1, but must be at least 0"),
        (
            {"adversarial": "gan"},
            "objective.adversarial = 'gan' is not one of 'wgan-gp', 'logistic', 'hinge'",
        ),
        ({"pixel": "l2"}, "objective.pixel = 'l2' is not one of 'mse', 'l1', 'none'"),
        ({"pixel_at": "x"}, "objective.pixel_at = 'x' is not one of 'reals', 'inputs'"),
        ({"updates": "x"}, "objective.updates = 'x' is not one of 'alternating', 'simultaneous'"),
        ({"critic_steps": 0}, "objective.critic_steps is 0, but must be from 1 to 1000"),
        ({"critic_steps": 1001}, "objective.critic_steps is 1001"),
        ({"penalty_every": 0}, "objective.penalty_every is 0, but must be from 1 to 1000"),
        ({"penalty_every": 1001}, "objective.penalty_every is 1001"),
        ({"unrolled_steps": -1}, "objective.unrolled_steps is -1, but must be from 0 to 100"),
        ({"unrolled_steps": 101}, "objective.unrolled_steps is 101"),
        ({"balance": -0.1}, "objective.balance is -0.1, but must be from 0 to 1"),
        ({"balance": 1.1}, "objective.balance is 1.1"),
        ({"updates": "simultaneous", "adversarial": "none"}, SIMULTANEOUS),
        ({"updates": "simultaneous", "adversarial": "logistic"}, SIMULTANEOUS),
        ({"updates": "simultaneous", "adversarial_weight": 0.5}, SIMULTANEOUS),
        ({"updates": "simultaneous", "critic_steps": 2}, SIMULTANEOUS),
        ({"updates": "simultaneous", "unrolled_steps": 1}, SIMULTANEOUS),
        ({"updates": "simultaneous", "clip": 0.1}, SIMULTANEOUS),
        ({"updates": "simultaneous", "pixel": "l1"}, SIMULTANEOUS),
        ({"updates": "simultaneous", "grid_weight": 1.0}, SIMULTANEOUS),
        ({"updates": "simultaneous", "content": "critic"}, SIMULTANEOUS),
    ],
)
def test_objectives_that_cannot_be(settings: dict[str, Any], words: str):
    with pytest.raises(PgsrError) as refusal:
        ObjectiveConfig(**settings)
    assert words in str(refusal.value)
    assert str(refusal.value).startswith("objective.")


@pytest.mark.parametrize(
    "settings",
    [
        *({"critic_steps": 1}, {"critic_steps": 1000}, {"penalty_every": 1000}, {"unrolled_steps": 100}),
        *({"balance": 0.0}, {"balance": 1.0}, {"adversarial": "none"}, {"pixel_at": "inputs"}),
        {"updates": "simultaneous", "gradient_penalty": 10.0, "drift": 0.001, "penalty_every": 4},
    ],
)
def test_objectives_that_can_be(settings: dict[str, Any]):
    config = ObjectiveConfig(**settings)
    assert {name: getattr(config, name) for name in settings} == settings


# ----------------------------------------------------------------------------
# What is told beside the losses, pairs, and several scales.


def test_scores_are_means_to_watch():
    """And have no graph."""
    config, fakes = ObjectiveConfig(r1=1.0), FAKES.clone().requires_grad_()
    found = objectives.critic_terms(config, linear, REALS, fakes, BLEND, 0).scores
    real, fake = linear(REALS).tolist(), linear(FAKES).tolist()
    signs = [1.0 if score > 0 else -1.0 for score in real]
    expected = {"real": close(mean(real)), "fake": close(mean(fake)), "sign": close(mean(signs))}
    assert {name: score.item() for name, score in found.items()} == expected
    made = objectives.adversarial_terms(config, linear, fakes).scores
    assert {name: score.item() for name, score in made.items()} == {"made": close(mean(fake))}
    assert not any(score.requires_grad for score in (*found.values(), *made.values()))


def test_the_critics_loss_is_told_the_objectives_state():
    state = {"k": torch.tensor(0.25, dtype=torch.float64)}
    config = ObjectiveConfig(adversarial="began")
    found = critic_terms(config, quadratic, REALS, FAKES, BLEND, 0, state)
    expected = mean(quadratic(REALS).tolist()) - 0.25 * mean(quadratic(FAKES).tolist())
    assert found["critic"].item() == close(expected)


def test_reals_have_gradients_only_where_r1_looks():
    seen: list[bool] = []

    def watched(x: Any) -> Tensor:
        seen.append(x.requires_grad)
        return quadratic(x)

    for options in ({}, {"r1": 1.0}, {"r1": 1.0, "penalty_every": 2}):
        critic_terms(ObjectiveConfig(**options), watched, REALS, FAKES, BLEND, 1)  # type: ignore[arg-type]
    assert seen[::2] == [False, True, False]


def test_pixels_are_compared_at_the_inputs_by_reducing():
    """Equation 7 of paper 3: the means of the generated images' boxes against the inputs."""
    made, inputs = randn(5, 3, 4, 6, seed=6), randn(5, 3, 2, 3, seed=7)
    config = ObjectiveConfig(adversarial="none", pixel="mse", pixel_at="inputs", pixel_weight=2.0)
    boxes = made.view(5, 3, 2, 2, 3, 2).mean(dim=(3, 5))
    found = objectives.paired_losses(config, made, REALS, inputs)
    assert found["pixel"].item() == close(2 * (boxes - inputs).square().mean().item())
    assert objectives.paired_losses(config, FAKES, REALS) == {}


def test_what_has_no_real_image_is_compared_with_its_input_coarsely():
    """Rows 0 and 3 are photographs; of the others only means of boxes of 4 x 4 inputs are looked at."""
    made, reals, inputs = randn(5, 3, 8, 16, seed=6), randn(5, 3, 8, 16, seed=7), randn(5, 3, 4, 8, seed=8)
    own = torch.tensor([True, False, False, True, False])
    config = ObjectiveConfig(
        adversarial="none", pixel="l1", pixel_weight=2.0, content="lite0", content_weight=3.0
    )
    fakes = made.clone().requires_grad_()
    found = objectives.paired_losses(config, fakes, reals, inputs, torch.sin, own)
    pixel, content, coarse = 0.0, 0.0, 0.0
    for i in range(5):
        if own[i]:
            pixel += (made[i] - reals[i]).abs().sum().item()
            content += (made[i].sin() - reals[i].sin()).square().sum().item()
            continue
        for channel, box in itertools.product(range(3), range(2)):
            of_image = made[i, channel, :, 8 * box : 8 * box + 8].mean()
            coarse += abs(of_image - inputs[i, channel, :, 4 * box : 4 * box + 4].mean()).item()
    expected = {
        "pixel": 2 * pixel / made.numel(),
        "content": 3 * content / made.numel(),
        "coarse": coarse / 15,
    }
    assert {name: term.item() for name, term in found.items()} == {k: close(v) for k, v in expected.items()}
    (gradient,) = torch.autograd.grad(found["pixel"] + found["content"], fakes, retain_graph=True)
    assert gradient.flatten(1).any(1).tolist() == own.tolist()
    (gradient,) = torch.autograd.grad(found["coarse"], fakes)
    assert gradient.flatten(1).any(1).tolist() == (~own).tolist()


def test_the_grid_is_what_places_of_a_block_differ_by():
    smooth = randn(2, 3, 4, 6, seed=5).repeat_interleave(2, 2).repeat_interleave(2, 3)
    pattern = torch.tensor([[0.5, -0.25], [-0.5, 0.25]], dtype=torch.float64)
    images, inputs = smooth + pattern.repeat(4, 6), randn(2, 3, 4, 6, seed=6)
    found = objectives.grid_of(images, 2)
    assert torch.allclose(found, pattern.expand(2, 3, 2, 2), atol=1e-6)
    config = ObjectiveConfig(adversarial="none", grid_weight=4.0)
    losses = objectives.paired_losses(config, images, images, inputs)
    assert {name: term.item() for name, term in losses.items()} == {"grid": close(4 * (0.25 + 0.0625) / 2)}
    assert objectives.paired_losses(config, smooth, smooth, inputs)["grid"].item() < 1e-12


def test_contents_are_compared_through_features():
    """The reals' features are made without a graph, and both in float32 at least."""
    graphs: list[bool] = []

    def features(x: Tensor) -> Tensor:
        graphs.append(torch.is_grad_enabled())
        return x.square()

    config = ObjectiveConfig(adversarial="none", content="lite0", content_weight=0.25)
    fakes = FAKES.clone().requires_grad_()
    found = objectives.paired_losses(config, fakes, REALS, features=features)
    expected = mean([(f * f - r * r) ** 2 for f, r in zip(*flat(FAKES, REALS), strict=True)])
    assert {name: term.item() for name, term in found.items()} == {"content": close(0.25 * expected)}
    assert graphs == [False, True]
    (gradient,) = torch.autograd.grad(found["content"], fakes)
    assert gradient.any()
    half = objectives.paired_losses(config, FAKES, REALS, features=lambda x: x.half())
    assert half["content"].dtype == torch.float32


def flat(*tensors: Tensor) -> list[list[float]]:
    return [tensor.flatten().tolist() for tensor in tensors]


def of_scales(images: Any) -> Tensor:
    """|x|**2 / 2 of the larger scale, and three times that of the smaller."""
    large, small = images
    return quadratic(large) + 3 * quadratic(small)


def test_penalties_of_several_scales_are_means_over_them():
    """Paper 4, section 3: one critic, whose gradient at every scale is known here."""
    reals, fakes = (REALS, randn(5, 3, 2, 2, seed=8)), (FAKES, randn(5, 3, 2, 2, seed=9))
    points = [r + (f - r) * BLEND.view(-1, 1, 1, 1) for r, f in zip(reals, fakes, strict=True)]
    norms = [by * p.flatten(1).norm(dim=1) for by, p in zip((1, 3), points, strict=True)]
    expected = mean([(norm - 2.0).square().mean().item() for norm in norms]) / 4
    assert gradient_penalty(of_scales, reals, fakes, BLEND, 2.0).item() == close(expected)
    squares = [(by * r).square().sum(dim=(1, 2, 3)) for by, r in zip((1, 3), reals, strict=True)]
    terms = critic_terms(ObjectiveConfig(r1=1.0), of_scales, reals, fakes, BLEND, 0)
    assert terms["r1"].item() == close(0.5 * mean([s.mean().item() for s in squares]))
    assert terms["critic"].item() == close(mean(of_scales(fakes).tolist()) - mean(of_scales(reals).tolist()))


@pytest.mark.parametrize(
    ("device", "on", "kind", "expected"),
    [
        ("cpu", True, torch.float16, True),
        ("cuda", True, torch.float16, True),
        ("cpu", False, torch.float16, False),
        ("cuda", True, torch.bfloat16, False),
        ("meta", True, torch.float16, False),
    ],
)
def test_where_gradients_are_scaled(
    device: str, on: bool, kind: torch.dtype, expected: bool, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(torch, "is_autocast_enabled", lambda asked: on and asked == device)
    monkeypatch.setattr(torch, "get_autocast_dtype", lambda asked: kind if asked == device else None)
    assert objectives._in_float16(device) == expected


def test_gradients_in_float16_are_multiplied_by_the_largest_side(monkeypatch: pytest.MonkeyPatch):
    """What the critic's backward pass is given, and that the result does not have it."""
    monkeypatch.setattr(objectives, "_in_float16", lambda device: True)
    given: list[Tensor] = []

    def scored(images: tuple[Tensor, ...]) -> Tensor:
        scores = of_scales(images)
        scores.register_hook(given.append)
        return scores

    reals = (REALS.clone().requires_grad_(), randn(5, 3, 2, 2, seed=8).requires_grad_())
    found = squared_gradient(scored(reals), reals)
    assert [gradient.tolist() for gradient in given] == [[4.0] * 5]
    assert found.requires_grad  # its own gradient is what the penalty is for
    squares = [(by * r).square().sum(dim=(1, 2, 3)) for by, r in zip((1, 3), reals, strict=True)]
    assert found.tolist() == pytest.approx(((squares[0] + squares[1]) / 2).tolist(), rel=1e-12)


def test_contents_that_can_be():
    assert ObjectiveConfig(content="critic", content_depth=0).content == "critic"
    assert ObjectiveConfig(content="lite0", adversarial="none").content == "lite0"


def test_labels_without_logits_and_logits_without_labels():
    """Only both together are compared."""
    images, labels = torch.ones(2, 3, 4, 4), torch.tensor([0, 1])

    def plain(x: Any) -> Tensor:
        return x.mean(dim=(1, 2, 3))

    def with_logits(x: Any) -> Tensor:
        return plain(x)[:, None].repeat(1, 3)

    found = [
        set(objectives.adversarial_terms(ObjectiveConfig(), score, images, labels=given).losses)
        for score, given in ((plain, labels), (with_logits, None), (with_logits, labels))
    ]
    assert found == [{"generator"}, {"generator"}, {"generator", "labels"}]

    def critics(real: Any, fake: Any, given: Tensor | None) -> set[str]:
        scores = iter((real, fake))
        return set(
            objectives.critic_terms(
                ObjectiveConfig(), lambda x: next(scores)(x), images, images, BLEND[:2], 0, None, given
            ).losses
        )

    assert critics(with_logits, with_logits, labels) == {"critic", "labels"}
    for some in (
        *((plain, with_logits, labels), (with_logits, plain, labels), (plain, plain, labels)),
        (with_logits, with_logits, None),
    ):
        assert critics(*some) == {"critic"}
