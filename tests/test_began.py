"""BEGAN against a slow, obvious version in float64, and through the training loop."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from pgsr.errors import PgsrError
from pgsr.networks import DISCRIMINATORS, GENERATORS, build
from pgsr.networks.began import BEGANDiscriminator, BEGANGenerator, uniform
from pgsr.trainer.step import recipe as config
from pgsr.trainer.step import schedule
from pgsr.trainer.step import trainer as loop

SMALL = {"kind": "began", "resolution": 16, "features": 4}


def generator(**options: Any) -> BEGANGenerator:
    network = build(GENERATORS, {**SMALL, "latent_size": 6, **options}, 1)
    assert isinstance(network, BEGANGenerator)
    return network.double()


def critic(**options: Any) -> BEGANDiscriminator:
    network = build(DISCRIMINATORS, {**SMALL, "code_size": 5, **options}, 2)
    assert isinstance(network, BEGANDiscriminator)
    return network.double()


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def elu(x: Tensor) -> Tensor:
    return torch.where(x > 0, x, x.exp() - 1)


class Weights:
    """The weights and biases of a network in the order it names them, taken two at a time."""

    def __init__(self, network: torch.nn.Module) -> None:
        self.left = [p.detach() for p in network.parameters()]

    def convolved(self, x: Tensor, stride: int = 1) -> Tensor:
        weight, bias = self.left.pop(0), self.left.pop(0)
        return F.conv2d(x, weight, bias, stride=stride, padding=1)

    def dense(self, x: Tensor) -> Tensor:
        weight, bias = self.left.pop(0), self.left.pop(0)
        return x @ weight.T + bias


def decoded(codes: Tensor, weights: Weights) -> Tensor:
    """8 x 8, then 16 x 16: two convolutions at each, pixels replicated between."""
    x = weights.dense(codes).view(-1, 4, 8, 8)
    x = elu(weights.convolved(elu(weights.convolved(x))))
    x = x.repeat_interleave(2, dim=2).repeat_interleave(2, dim=3)
    x = elu(weights.convolved(elu(weights.convolved(x))))
    return weights.convolved(x)


def encoded(images: Tensor, weights: Weights) -> Tensor:
    """16 x 16 with 4 maps, 8 x 8 with 8; the layers come before the dense one."""
    x = elu(weights.convolved(images))
    x = elu(weights.convolved(elu(weights.convolved(x))))
    x = elu(weights.convolved(x, stride=2))
    x = elu(weights.convolved(elu(weights.convolved(x))))
    return weights.dense(x.flatten(1))


@pytest.mark.parametrize(("norm", "power"), [("l1", 1), ("l2", 2)])
def test_the_critic_gives_errors_of_reconstruction(norm: str, power: int):
    network, images = critic(norm=norm), randn(3, 3, 16, 16)
    weights = Weights(network)
    made = decoded(encoded(images, weights), weights)
    assert not weights.left
    pairs = zip(images, made, strict=True)
    expected = [((a - b).abs() ** power).sum().item() / (3 * 16 * 16) for a, b in pairs]
    assert network(images).tolist() == pytest.approx(expected, rel=1e-10)


def test_the_generator_is_a_decoder_of_uniform_codes():
    network, z = generator(), randn(3, 6)
    codes = torch.tensor(
        [[2 * 0.5 * (1 + math.erf(v / math.sqrt(2))) - 1 for v in row] for row in z.tolist()]
    )
    expected = decoded(codes.double(), Weights(network))
    torch.testing.assert_close(network(z), expected, rtol=1e-6, atol=1e-6)


def test_latents_become_uniform():
    """The share of normal draws below a value is the uniform distribution's."""
    codes = uniform(randn(100_000)).sort().values
    even = torch.linspace(-1, 1, 100_000, dtype=torch.float64)
    assert (codes - even).abs().max() < 0.02  # twice Kolmogorov's bound at p = 1e-5


@pytest.mark.parametrize("convolution", ["vanilla", "separable"])
@pytest.mark.parametrize("resolution", [8, 32])
def test_sizes_and_convolutions(convolution: str, resolution: int):
    images = generator(convolution=convolution, resolution=resolution)(randn(2, 6))
    assert images.shape == (2, 3, resolution, resolution)
    network = critic(convolution=convolution, resolution=resolution)
    assert network.reconstructed(images).shape == images.shape
    network(images).sum().backward()
    assert all(p.grad is not None and p.grad.any() for p in network.parameters())


def test_filters_grow_linearly_in_the_encoder():
    network = critic(resolution=64, features=6)
    shapes = [m.out_channels for m in network.encoder.layers if isinstance(m, torch.nn.Conv2d)]
    assert shapes == [6, *[6] * 2, *[12] * 3, *[18] * 3, *[24] * 3]


def test_signals_keep_their_size_through_a_new_network():
    """ELU loses a little at each layer; a default initialisation would lose everything."""
    network = critic(resolution=64, features=16)
    codes = network.encoder(randn(8, 3, 64, 64))
    assert 0.1 < codes.std() < 3


@pytest.mark.parametrize("resolution", [4, 12, 24])
def test_other_sizes_are_refused(resolution: int):
    with pytest.raises(PgsrError, match=f"resolution {resolution} is not 8, 16, 32"):
        generator(resolution=resolution)


def test_a_growing_schedule_is_refused():
    with pytest.raises(PgsrError, match=r"schedule\.start_resolution to 16"):
        generator().at(8, 1.0)


# ----------------------------------------------------------------------------
# In the loop.


def trainer_of(toy: Path) -> loop.Trainer:
    recipe = config.from_dict(
        {
            "name": "tiny",
            "about": "for tests",
            "generator": {**SMALL, "latent_size": 6},
            "discriminator": {**SMALL, "code_size": 5},
            "schedule": {"resolution": 16, "start_resolution": 16, "batch": 8, "stable_images": 4000},
            "objective": {"adversarial": "began", "balance": 0.7, "balance_rate": 0.1},
        }
    )
    return loop.make_trainer(recipe, schedule.build(recipe.schedule), toy, torch.device("cpu"))


def test_k_and_m_are_carried_and_watched(toy: Path):
    """From step to step as paper 5 says, and the critic's loss uses the k of before the step."""
    trainer = trainer_of(toy)
    k = 0.0
    for _ in range(3):
        terms = {name: value.item() for name, value in trainer.step(watch=True).items()}
        real, fake, made = (terms[f"watch/score {name}"] for name in ("real", "fake", "made"))
        assert terms["critic"] == pytest.approx(real - k * fake, rel=1e-5)
        assert terms["generator"] == pytest.approx(made, rel=1e-6)
        gap = 0.7 * real - made
        k = min(1.0, max(0.0, k + 0.1 * gap))
        assert terms["watch/k"] == pytest.approx(k, rel=1e-5)
        assert terms["watch/M"] == pytest.approx(real + abs(gap), rel=1e-5)


def test_the_autoencoder_learns_the_photographs(toy: Path):
    trainer = trainer_of(toy)
    errors = [trainer.step(watch=True)["watch/score real"].item() for _ in range(60)]
    assert sum(errors[-10:]) < 0.7 * sum(errors[:10])
