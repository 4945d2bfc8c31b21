"""MSG-GAN against slow, obvious versions in float64, and through the training loop."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from pgsr.errors import PgsrError
from pgsr.networks import DISCRIMINATORS, GENERATORS, build
from pgsr.networks.msggan import COMBINATIONS, MSGGANDiscriminator, MSGGANGenerator
from pgsr.trainer.run_folder.previews import scale_sheet
from pgsr.trainer.step import recipe as config
from pgsr.trainer.step import schedule
from pgsr.trainer.step import trainer as loop

SMALL = {"feature_base": 64, "feature_max": 8}  # 8, 8, 4 maps at 4, 8, 16


def generator(**options: Any) -> MSGGANGenerator:
    network = build(GENERATORS, {"kind": "msggan", "resolution": 16, "latent_size": 6, **SMALL, **options}, 1)
    assert isinstance(network, MSGGANGenerator)
    return network.double()


def critic(**options: Any) -> MSGGANDiscriminator:
    network = build(DISCRIMINATORS, {"kind": "msggan", "resolution": 16, **SMALL, **options}, 2)
    assert isinstance(network, MSGGANDiscriminator)
    return network.double()


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


# ----------------------------------------------------------------------------
# The generator.


def test_every_scale_is_the_generator_at_that_resolution():
    network, z = generator(), randn(3, 6)
    made = network.training_at(16, 1.0)(z)
    assert [tuple(image.shape) for image in made] == [(3, 3, r, r) for r in (16, 8, 4)]
    for image in made:
        assert torch.equal(image, network.at(image.shape[-1], 1.0)(z))


def test_its_layers_are_progans():
    """Section 4: the exact same structure, so ProGAN's weights fit and make the same image."""
    network = generator()
    options = {"resolution": 16, "latent_size": 6, **SMALL}
    progan = build(GENERATORS, {"kind": "progan", **options}, 1).double()
    progan.load_state_dict(network.state_dict())
    assert torch.equal(progan(randn(2, 6)), network(randn(2, 6)))


def test_the_papers_sizes():
    """CelebA-HQ's generator has the 23.1M parameters of paper 2's Table 2; CIFAR-10's a 4 x 4 and seven 3 x 3
    layers of 512 maps."""
    sizes = {}
    for resolution in (32, 1024):
        with torch.device("meta"):
            network = MSGGANGenerator(resolution)
        sizes[resolution] = sum(p.numel() for p in network.blocks.parameters())
    assert f"{sizes[1024] / 1e6:.1f}M" == "23.1M"
    assert sizes[32] == 512 * (512 * 16 + 1) + 7 * 512 * (512 * 9 + 1)


def test_a_growing_schedule_is_refused():
    with pytest.raises(PgsrError, match=r"schedule\.start_resolution to 16"):
        generator().training_at(8, 1.0)


# ----------------------------------------------------------------------------
# The critic: equations 6 to 9, written out.


def convolved(x: Tensor, layer: Any, padding: int = 0) -> Tensor:
    weight = layer.weight.detach()
    gain = layer.scale  # checked against He's constant in test_networks.py
    return F.conv2d(x, weight * gain, layer.bias.detach(), padding=padding)


def bent(x: Tensor) -> Tensor:
    return torch.where(x > 0, x, 0.2 * x)


def with_deviation(x: Tensor) -> Tensor:
    """One group: the mean over places and maps of the deviation over the batch of four."""
    deviation = (x.var(dim=0, unbiased=False) + 1e-8).sqrt().mean()
    return torch.cat([x, deviation.expand(len(x), 1, *x.shape[2:])], dim=1)


def joined(network: MSGGANDiscriminator, combine: str, level: int, image: Tensor, x: Tensor) -> Tensor:
    module = network.combine[level]
    if combine == "simple":
        return torch.cat([image, x], 1)
    if combine == "linear-cat":
        return torch.cat([convolved(image, module.from_rgb), x], 1)
    return convolved(torch.cat([image, x], 1), module.linear)


@pytest.mark.parametrize("everywhere", [False, True])
@pytest.mark.parametrize("combine", COMBINATIONS)
def test_the_critic_is_its_equations(combine: str, everywhere: bool):
    network = critic(combine=combine, stddev_everywhere=everywhere)
    images = [randn(4, 3, r, r, seed=r) for r in (16, 8, 4)]
    x = bent(convolved(images[0], network.from_rgb))
    for level in (1, 0):
        block = network.blocks[level]
        x = with_deviation(x) if everywhere else x
        x = bent(convolved(bent(convolved(x, block.conv1, 1)), block.conv2, 1))
        x = sum(x[:, :, i::2, j::2] for i in (0, 1) for j in (0, 1)) / 4  # type: ignore[assignment]
        x = joined(network, combine, level, images[2 - level], x)
    last = network.last_block
    x = bent(convolved(with_deviation(x), last.conv, 1))
    x = bent(convolved(x, last.last)).flatten(1)
    expected = x @ (last.dense.weight * last.dense.scale).T + last.dense.bias
    torch.testing.assert_close(network(tuple(images)), expected.squeeze(1), rtol=1e-10, atol=1e-12)


def test_half_of_the_maps_are_the_images():
    """The concatenation of equation 9 keeps ProGAN's widths: no layer takes more than 8 maps and one."""
    network = critic()
    assert [tuple(b.conv1.weight.shape) for b in network.blocks] == [(8, 8, 3, 3), (4, 4, 3, 3)]
    assert [tuple(c.from_rgb.weight.shape) for c in network.combine] == [(4, 3, 1, 1), (4, 3, 1, 1)]
    assert tuple(network.last_block.conv.weight.shape) == (8, 9, 3, 3)


def test_the_pyramid_is_averages():
    images = randn(2, 3, 16, 16)
    scales = critic().views(images)
    assert [s.shape[-1] for s in scales] == [16, 8, 4]
    assert torch.equal(scales[0], images)
    for scale, factor in zip(scales, (1, 2, 4), strict=True):
        blocks = images.unfold(2, factor, factor).unfold(3, factor, factor)
        torch.testing.assert_close(scale, blocks.mean(dim=(4, 5)))


@pytest.mark.parametrize("combine", COMBINATIONS)
def test_gradients_reach_every_scale_and_weight(combine: str):
    """What the method is for (section 2): the score moves with each image, so each block of G does."""
    network, source = critic(combine=combine), generator()
    made = source.images(randn(4, 6))
    score = network(made).sum()
    to_images = torch.autograd.grad(score, made, retain_graph=True)
    assert all(g.any() for g in to_images)
    score.backward()
    for module in (network, source):
        still = [name for name, p in module.named_parameters() if p.grad is None or not p.grad.any()]
        assert not still


@pytest.mark.parametrize("convolution", ["vanilla", "separable"])
def test_convolutions(convolution: str):
    made = generator(convolution=convolution).images(randn(2, 6))
    assert critic(convolution=convolution)(made).shape == (2,)


# ----------------------------------------------------------------------------
# In the loop.


def trainer_of(toy: Path, **objective: Any) -> loop.Trainer:
    small = {"kind": "msggan", "resolution": 16, **SMALL}
    recipe = config.from_dict(
        {
            "name": "tiny",
            "about": "for tests",
            "generator": {**small, "latent_size": 6},
            "discriminator": small,
            "schedule": {"resolution": 16, "start_resolution": 16, "batch": 4, "stable_images": 400},
            "objective": {"adversarial": "ra-hinge", **objective},
        }
    )
    return loop.make_trainer(recipe, schedule.build(recipe.schedule), toy, torch.device("cpu"))


@pytest.mark.parametrize(
    ("objective", "terms"),
    [({}, {"critic"}), ({"gradient_penalty": 10.0, "r1": 1.0}, {"critic", "gradient penalty", "r1"})],
)
def test_it_trains_at_all_scales(toy: Path, objective: dict[str, float], terms: set[str]):
    trainer = trainer_of(toy, **objective)
    before = copy.deepcopy(trainer.state.generator.state_dict())
    losses = trainer.step()
    assert losses.keys() == terms | {"generator"}
    moved = trainer.state.generator.state_dict()
    still = [name for name in before if torch.equal(before[name], moved[name])]
    assert not still  # to_rgb of every resolution among them


def test_the_sheet_has_a_row_a_scale_and_a_column_a_latent(toy: Path):
    trainer = trainer_of(toy)
    trainer.step()
    page = scale_sheet(trainer, columns=3)
    assert page.shape == (3 * 18 + 2, 3 * 18 + 2, 3)
    z = trainer.batches.preview(3)
    for row, resolution in enumerate((16, 8, 4)):
        image = trainer.state.generator_ema(z, resolution=resolution)[1].permute(1, 2, 0)
        expected = np.rint(np.clip((image.numpy() + 1) * 127.5, 0, 255))
        factor = 16 // resolution
        shown = page[2 + 18 * row : 18 + 18 * row, 20:36]
        assert (shown == expected.repeat(factor, 0).repeat(factor, 1)).all()


def test_one_scale_has_no_such_sheet(toy: Path):
    trainer = trainer_of(toy)
    trainer.state.generator_ema = build(GENERATORS, {"kind": "progan", "resolution": 16, **SMALL})
    assert scale_sheet(trainer) is None


@pytest.mark.parametrize(
    ("name", "resolution"), [("msg-cifar10", 32), ("msg-flowers-256", 256), ("msg-1024", 1024)]
)
def test_the_recipes_are_the_papers(name: str, resolution: int):
    """Section 4."""
    recipe = config.load(name)
    assert schedule.build(recipe.schedule).phases[0].resolution == resolution
    assert len(schedule.build(recipe.schedule).phases) == 1
    assert recipe.generator["latent_size"] == 512
    for optimizer in (recipe.generator_optimizer, recipe.critic_optimizer):
        assert (optimizer.learning_rate, optimizer.beta1, optimizer.beta2) == (0.001, 0.0, 0.99)
    assert recipe.averaging.decay == 0.999
    assert recipe.objective.adversarial == "ra-hinge"
