"""The networks against the papers' tables and formulas, and against slow obvious versions in float64."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F

from pgsr.errors import PgsrError
from pgsr.networks import DISCRIMINATORS, GENERATORS, build, layers, progan, resolved
from pgsr.networks.progan import ProGANDiscriminator, ProGANGenerator
from pgsr.networks.rednet import REDNet
from pgsr.networks.srgan import CompactUpscaler, SRGANDiscriminator, SRResNet

SMALL = {"feature_base": 64, "feature_max": 8}
CONVOLUTIONS = ("vanilla", "separable")


def randn(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def parameters(module: Any) -> int:
    return sum(p.numel() for p in module.parameters())


@contextmanager
def recorded(network: nn.Module, *kinds: type[nn.Module]) -> Iterator[list[tuple[nn.Module, Tensor, Tensor]]]:
    """(module, input, output) of every call of modules of these kinds, in order."""
    calls: list[tuple[nn.Module, Tensor, Tensor]] = []
    hooks = [
        m.register_forward_hook(lambda module, args, out: calls.append((module, args[0], out)))
        for m in network.modules()
        if isinstance(m, kinds)
    ]
    yield calls
    for hook in hooks:
        hook.remove()


# ----------------------------------------------------------------------------
# Table 2 of paper 2, row by row: (layer, shape, parameters as printed). The critic's second 3 x 3 row at
# 8 x 8 (2.4M) is in the paper; its total of 23.1M holds only with it.

GENERATOR_TABLE = """
Conv 4x4     512 4 4       4.2M
Conv 3x3     512 4 4       2.4M
Conv 3x3     512 8 8       2.4M
Conv 3x3     512 8 8       2.4M
Conv 3x3     512 16 16     2.4M
Conv 3x3     512 16 16     2.4M
Conv 3x3     512 32 32     2.4M
Conv 3x3     512 32 32     2.4M
Conv 3x3     256 64 64     1.2M
Conv 3x3     256 64 64     590k
Conv 3x3     128 128 128   295k
Conv 3x3     128 128 128   148k
Conv 3x3     64 256 256    74k
Conv 3x3     64 256 256    37k
Conv 3x3     32 512 512    18k
Conv 3x3     32 512 512    9.2k
Conv 3x3     16 1024 1024  4.6k
Conv 3x3     16 1024 1024  2.3k
Conv 1x1     3 1024 1024   51
"""

CRITIC_TABLE = """
Conv 1x1     16 1024 1024  64
Conv 3x3     16 1024 1024  2.3k
Conv 3x3     32 1024 1024  4.6k
Conv 3x3     32 512 512    9.2k
Conv 3x3     64 512 512    18k
Conv 3x3     64 256 256    37k
Conv 3x3     128 256 256   74k
Conv 3x3     128 128 128   148k
Conv 3x3     256 128 128   295k
Conv 3x3     256 64 64     590k
Conv 3x3     512 64 64     1.2M
Conv 3x3     512 32 32     2.4M
Conv 3x3     512 32 32     2.4M
Conv 3x3     512 16 16     2.4M
Conv 3x3     512 16 16     2.4M
Conv 3x3     512 8 8       2.4M
Conv 3x3     512 8 8       2.4M
Conv 3x3     512 4 4       2.4M
Conv 4x4     512 1 1       4.2M
Dense        1             513
"""


def printed(count: int) -> str:
    """A parameter count the way the table prints it: 64, 2.3k, 37k, 590k, 1.2M."""
    for unit, size in (("M", 1e6), ("k", 1e3)):
        if count >= size:
            value = count / size
            return f"{value:.1f}{unit}" if value < 9.95 or unit == "M" else f"{value:.0f}{unit}"
    return str(count)


def layer_name(module: nn.Module) -> str:
    if isinstance(module, layers.VanillaFirstLayer):
        return "Conv 4x4"
    if isinstance(module, layers.EqualizedLinear):
        return "Dense"
    return f"Conv {module.weight.shape[2]}x{module.weight.shape[3]}"


def walked(network: nn.Module, x: Tensor) -> list[str]:
    """The rows of Table 2 as the network really is: the layers called, their output and parameters."""
    with recorded(network, layers.EqualizedWeight) as calls, torch.no_grad():
        network(x)
    return [
        f"{layer_name(m):<12} {' '.join(map(str, out.shape[1:])):<13} {printed(parameters(m))}"
        for m, _, out in calls
    ]


def rows(table: str) -> list[list[str]]:
    return [line.split() for line in table.strip().splitlines()]


@pytest.mark.parametrize(
    ("network", "shape", "table"),
    [(ProGANGenerator, (3, 512), GENERATOR_TABLE), (ProGANDiscriminator, (3, 3, 1024, 1024), CRITIC_TABLE)],
)
def test_table_2_layer_by_layer(network: type[nn.Module], shape: tuple[int, ...], table: str):
    with torch.device("meta"):
        grown = network()
        found = walked(grown, torch.empty(shape))
    used = sum(parameters(m) for name, m in grown.named_children() if not name.endswith("_rgb"))
    rgb = grown.to_rgb if network is ProGANGenerator else grown.from_rgb
    total = used + parameters(rgb[-1])  # of to_rgb and from_rgb, only the last is in the grown network
    print(f"\n{network.__name__}\n" + "\n".join(found) + f"\ntotal {total:,} = {printed(total)}")
    assert rows("\n".join(found)) == rows(table)
    assert printed(total) == "23.1M"


def test_table_2_minibatch_stddev_is_the_513th_map():
    with torch.device("meta"):
        critic = ProGANDiscriminator()
        with recorded(critic, layers.EqualizedConv2d) as calls, torch.no_grad():
            critic(torch.empty(2, 3, 1024, 1024))
    assert [tuple(x.shape) for m, x, _ in calls if m is critic.last_block.conv] == [(2, 513, 4, 4)]


# ----------------------------------------------------------------------------
# Every resolution and width.

RESOLUTIONS = (4, 8, 16, 32, 64, 128, 256, 512, 1024)


@pytest.mark.parametrize("convolution", CONVOLUTIONS)
@pytest.mark.parametrize("resolution", RESOLUTIONS)
@torch.no_grad()
def test_every_resolution_has_its_shapes(resolution: int, convolution: str):
    """With numbers up to 128, above that by shapes alone."""
    options = {"resolution": resolution, "convolution": convolution, **SMALL}
    with torch.device("cpu" if resolution <= 128 else "meta"):
        generator = ProGANGenerator(latent_size=6, **options)  # type: ignore[arg-type]
        critic = ProGANDiscriminator(**options)  # type: ignore[arg-type]
        images = generator(torch.ones(1, 6))
        assert images.shape == (1, 3, resolution, resolution)
        assert critic(images).shape == (1,)
        half = max(4, resolution // 2)
        assert generator(torch.ones(2, 6), half, 0.5).shape == (2, 3, half, half)
    assert images.is_meta or (torch.isfinite(images).all() and images.std() > 0)


@pytest.mark.parametrize("resolution", [0, 2, 5, 48, 2048])
def test_other_resolutions_are_errors(resolution: int):
    for network in (ProGANGenerator, ProGANDiscriminator):
        with pytest.raises(PgsrError, match=f"resolution {resolution} is not one of 4, 8, 16"):
            network(resolution=resolution)


def test_widths_follow_base_and_maximum():
    generator = ProGANGenerator(resolution=64, feature_base=512, feature_max=48, latent_size=20)
    assert [rgb.weight.shape[1] for rgb in generator.to_rgb] == [48, 48, 32, 16, 8]
    critic = ProGANDiscriminator(resolution=64, feature_base=512, feature_max=48)
    assert [rgb.weight.shape[0] for rgb in critic.from_rgb] == [48, 48, 32, 16, 8]
    assert generator.blocks[0].first.weight.shape == (48 * 16, 20)


# ----------------------------------------------------------------------------
# Equalized learning rate (paper 2, section 4.1): what a layer computes with has the standard deviation
# gain / sqrt(fan_in), its stored weight 1.


def expected_scales(network: nn.Module) -> dict[str, float]:
    """gain / sqrt(fan_in) of each layer, from its name and shape alone."""
    scales = {}
    for name, module in network.named_modules():
        if not isinstance(module, layers.EqualizedWeight):
            continue
        shape = module.weight.shape
        gain = math.sqrt(2)
        if name.endswith("first"):
            scales[name] = math.sqrt(2) / 4 / math.sqrt(shape[1])
            continue
        if name.endswith("first.depthwise"):
            scales[name] = 1.0
            continue
        if name.startswith("to_rgb") or name.endswith("dense") or name.endswith("depthwise"):
            gain = 1.0
        if name.endswith("first.pointwise"):
            gain = math.sqrt(2) / 4
        scales[name] = gain / math.sqrt(math.prod(shape[1:]))
    return scales


@pytest.mark.parametrize("convolution", CONVOLUTIONS)
@pytest.mark.parametrize("network", [ProGANGenerator, ProGANDiscriminator])
def test_each_layer_has_its_constant(network: type[nn.Module], convolution: str):
    built = network(resolution=32, convolution=convolution, feature_max=64)
    modules = dict(built.named_modules())
    for name, expected in expected_scales(built).items():
        module = modules[name]
        assert module.scale == pytest.approx(expected, rel=1e-12), name
        assert torch.equal(module.scaled(), module.weight * module.scale), name
        n = module.weight.numel()
        assert module.scaled().std().item() == pytest.approx(expected, rel=4 / math.sqrt(2 * n)), name
        if hasattr(module, "bias"):
            assert not module.bias.any(), name


@pytest.mark.parametrize("layer", [layers.EqualizedConv2d, layers.SeparableConv2d])
def test_a_layer_keeps_the_variance_he_promises(layer: Callable[..., nn.Module]):
    """White noise of variance 1 comes out with variance gain**2."""
    torch.manual_seed(0)
    x = torch.randn(8, 128, 16, 16)
    with torch.no_grad():
        inner = layer(128, 256, 3)(x)[:, :, 1:-1, 1:-1]
    assert inner.var().item() == pytest.approx(2.0, rel=0.1)


@pytest.mark.parametrize("layer", layers.FIRST_LAYERS.values())
def test_the_first_layer_keeps_the_variance_of_a_4x4_convolution(layer: Callable[..., nn.Module]):
    """A 4 x 4 convolution of a 1 x 1 latent has fan-in 16 L of which L are not padding: variance 2 / 16."""
    torch.manual_seed(0)
    with torch.no_grad():
        out = layer(256, 256)(torch.randn(64, 256))
    assert out.shape == (64, 256, 4, 4)
    assert out.var().item() == pytest.approx(2 / 16, rel=0.15)


# ----------------------------------------------------------------------------
# Pixelwise normalisation (paper 2, section 4.2).


def test_pixel_norm_is_the_papers_formula():
    x = randn(3, 7, 5, 4)
    b = torch.empty_like(x)
    for n in range(3):
        for i in range(5):
            for j in range(4):
                a = [float(v) for v in x[n, :, i, j]]
                root = math.sqrt(sum(v * v for v in a) / len(a) + 1e-8)
                b[n, :, i, j] = torch.tensor([v / root for v in a], dtype=torch.float64)
    torch.testing.assert_close(layers.pixel_norm(x), b, rtol=1e-14, atol=0)
    torch.testing.assert_close(layers.pixel_norm(x.float()).double(), b, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("value", [300.0, 60000.0, 1e-3, 0.0])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_pixel_norm_survives_half_precision(dtype: torch.dtype, value: float):
    """300**2 is infinite in float16 and 1e-8 is zero there."""
    x = torch.full((2, 16, 3, 3), value, dtype=dtype)
    expected = (x.double() / (x.double().square() + 1e-8).sqrt()).to(dtype)
    out = layers.pixel_norm(x)
    assert out.dtype == dtype
    torch.testing.assert_close(out, expected, rtol=1e-2, atol=0)


def test_the_generator_only_sees_a_latents_direction():
    generator = ProGANGenerator(resolution=8, latent_size=16, **SMALL).double()
    z = randn(2, 16)
    torch.testing.assert_close(generator(z), generator(1000 * z), rtol=1e-6, atol=1e-8)


# ----------------------------------------------------------------------------
# Minibatch standard deviation (paper 2, section 3): interleaved groups, biased.


def slow_minibatch_stddev(x: Tensor, groups: int) -> Tensor:
    """One image at a time, in Python numbers: image i is in group i mod `groups`."""
    n, c, h, w = x.shape
    out = torch.empty(n, 1, h, w, dtype=torch.float64)
    for m in range(groups):
        members = list(range(m, n, groups))
        total = 0.0
        for position in range(c * h * w):
            values = [float(x[i].reshape(-1)[position]) for i in members]
            mean = sum(values) / len(members)
            total += math.sqrt(sum((v - mean) ** 2 for v in values) / len(members) + 1e-8)
        for i in members:
            out[i] = total / (c * h * w)
    return torch.cat([x, out], dim=1)


@pytest.mark.parametrize(
    ("n", "group", "groups"),
    [  # each group has as many images as asked for, or more
        *((16, 4, 4), (8, 4, 2), (4, 4, 1), (3, 4, 1), (1, 4, 1)),
        *((5, 4, 1), (6, 4, 1), (7, 4, 1), (9, 4, 2), (11, 4, 2), (14, 4, 3), (5, 2, 2)),
        *((14, 16, 1), (7, 128, 1), (5, 1, 5)),
    ],
)
def test_minibatch_stddev_is_the_slow_loop(n: int, group: int, groups: int):
    x = randn(n, 3, 2, 2, seed=n)
    found = layers.minibatch_stddev(x, group)
    torch.testing.assert_close(found, slow_minibatch_stddev(x, groups), rtol=1e-12, atol=0)
    if n > 1 and group > 1:
        assert found[:, -1].min() > 0.1  # never the constant of a group of one


@pytest.mark.parametrize(("n", "group"), [(5, 4), (11, 4), (5, 2)])
def test_minibatch_stddev_of_uneven_groups_has_two_gradients(n: int, group: int):
    """The gradient penalty differentiates it twice."""
    x = randn(n, 2, 2, 1, seed=n).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: layers.minibatch_stddev(x, group), x)
    assert torch.autograd.gradgradcheck(lambda x: layers.minibatch_stddev(x, group), x)


def test_minibatch_stddev_takes_channels_last_and_half():
    x = randn(8, 4, 4, 4, seed=1).half().to(memory_format=torch.channels_last)
    expected = slow_minibatch_stddev(x.double(), 2)
    assert layers.minibatch_stddev(x).dtype == torch.float16
    torch.testing.assert_close(layers.minibatch_stddev(x).double(), expected, rtol=2e-3, atol=0)


# ----------------------------------------------------------------------------
# Growing (paper 2, Figure 2): alpha 0 is the old network, alpha 1 the new one, to the bit.

STAGES = [(8, 4), (16, 8), (32, 16)]


@pytest.fixture(params=CONVOLUTIONS)
def pair(request: pytest.FixtureRequest) -> tuple[ProGANGenerator, ProGANDiscriminator]:
    options = {"resolution": 32, "convolution": request.param, **SMALL}
    return (  # type: ignore[return-value]
        build(GENERATORS, {"kind": "progan", "latent_size": 8, **options}, seed=3),
        build(DISCRIMINATORS, {"kind": "progan", **options}, seed=4),
    )


@pytest.mark.parametrize(("new", "old"), STAGES)
@torch.no_grad()
def test_generator_fades_from_the_old_network_to_the_new(pair, new: int, old: int):
    z = randn(4, 8, dtype=torch.float32)
    generator = pair[0]
    before = F.interpolate(generator(z, old, 1.0), scale_factor=2, mode="nearest")
    level = generator.resolutions.index(new)
    x = layers.pixel_norm(z)
    for block in generator.blocks[: level + 1]:
        x = block(x)
    after = generator.to_rgb[level](x)
    assert torch.equal(generator(z, new, 0.0), before)
    assert torch.equal(generator(z, new, 1.0), after)
    torch.testing.assert_close(generator(z, new, 0.3), 0.7 * before + 0.3 * after, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("new", "old"), STAGES)
@torch.no_grad()
def test_critic_fades_from_the_old_network_to_the_new(pair, new: int, old: int):
    critic = pair[1]
    images = randn(4, 3, new, new, dtype=torch.float32)
    assert torch.equal(critic(images, 0.0), critic(F.avg_pool2d(images, 2), 1.0))
    level = critic.resolutions.index(new)
    x = layers.leaky_relu(critic.from_rgb[level](images))
    for block in critic.blocks[:level][::-1]:
        x = block(x)
    assert torch.equal(critic(images, 1.0), critic.last_block(x))
    inside = critic(images, 0.3)
    assert not torch.equal(inside, critic(images, 0.0))
    assert not torch.equal(inside, critic(images, 1.0))


@torch.no_grad()
def test_critic_blends_features_not_scores(pair):
    critic = pair[1]
    images = randn(4, 3, 8, 8, dtype=torch.float32)
    new = critic.blocks[0](layers.leaky_relu(critic.from_rgb[1](images)))
    old = layers.leaky_relu(critic.from_rgb[0](F.avg_pool2d(images, 2)))
    expected = critic.last_block(0.7 * old + 0.3 * new)
    torch.testing.assert_close(critic(images, 0.3), expected, rtol=1e-5, atol=1e-6)


@torch.no_grad()
def test_a_grown_network_does_not_depend_on_the_layers_above(pair):
    generator, critic = pair
    z, images = randn(2, 8, dtype=torch.float32), randn(2, 3, 8, 8, dtype=torch.float32)
    before = generator(z, 8, 0.5), critic(images, 0.5)
    for module in (*generator.blocks[2:], *generator.to_rgb[2:], *critic.blocks[1:], *critic.from_rgb[2:]):
        for p in module.parameters():
            p.fill_(math.nan)
    assert torch.equal(generator(z, 8, 0.5), before[0])
    assert torch.equal(critic(images, 0.5), before[1])


def test_real_images_fade_like_generated_ones():
    images = randn(2, 3, 8, 8)
    blocks = images.reshape(2, 3, 4, 2, 4, 2).mean(dim=(3, 5))
    coarse = blocks.repeat_interleave(2, 2).repeat_interleave(2, 3)
    torch.testing.assert_close(progan.fade_reals(images, 0.0), coarse, rtol=1e-14, atol=1e-15)
    mixed = 0.75 * coarse + 0.25 * images
    torch.testing.assert_close(progan.fade_reals(images, 0.25), mixed, rtol=1e-13, atol=1e-14)
    assert progan.fade_reals(images, 1.0) is images
    assert progan.fade_reals(images[..., :4, :4], 0.3).equal(images[..., :4, :4])


# ----------------------------------------------------------------------------
# The separable convolution of paper 1, section IV.


@pytest.mark.parametrize(("kernel", "padding"), [(3, None), (4, 0), (1, None)])
def test_separable_is_the_vanilla_convolution_with_the_composed_kernel(kernel: int, padding: int | None):
    layer = layers.SeparableConv2d(5, 7, kernel, padding).double()
    nn.init.normal_(layer.pointwise.bias)
    depthwise, pointwise = layer.depthwise.scaled(), layer.pointwise.scaled()
    composed = pointwise[:, :, 0, 0, None, None] * depthwise[None, :, 0]  # [N, M, k, k]
    x = randn(2, 5, 6, 6)
    expected = F.conv2d(
        x, composed, layer.pointwise.bias, padding=kernel // 2 if padding is None else padding
    )
    torch.testing.assert_close(layer(x), expected, rtol=1e-12, atol=1e-12)


def test_separable_first_layer_is_the_vanilla_one_with_the_composed_weight():
    layer = layers.SeparableFirstLayer(6, 5).double()
    nn.init.normal_(layer.pointwise.bias)
    spread, mix = layer.depthwise.scaled(), layer.pointwise.scaled()[:, :, 0, 0]
    z = randn(3, 6)
    expected = torch.einsum("nl,lij,cl->ncij", z, spread, mix) + layer.pointwise.bias.view(1, -1, 1, 1)
    torch.testing.assert_close(layer(z), expected, rtol=1e-12, atol=1e-12)


def multiplications(network: nn.Module, x: Tensor) -> int:
    """Multiplications of all convolutions in one pass, counted from the shapes they really saw."""
    kinds = (layers.EqualizedConv2d, layers.EqualizedDepthwise, nn.Conv2d)
    with recorded(network, *kinds) as calls, torch.no_grad():
        network(x)
    return sum(out.numel() * math.prod(m.weight.shape[1:]) for m, _, out in calls)  # type: ignore[misc]


@pytest.mark.parametrize(
    ("m", "n", "k", "d"), [(512, 512, 3, 4), (64, 32, 3, 16), (8, 24, 5, 9), (3, 1, 1, 8)]
)
def test_equations_1_to_3_of_paper_1(m: int, n: int, k: int, d: int):
    x = torch.zeros(1, m, d, d)
    vanilla = multiplications(layers.EqualizedConv2d(m, n, k), x)
    separable = multiplications(layers.SeparableConv2d(m, n, k), x)
    assert vanilla == n * k * k * d * d * m  # (1)
    assert separable == m * d * d * (k * k + n)  # (2)
    assert separable / vanilla == pytest.approx(1 / n + 1 / k**2, rel=1e-12)  # (3)


def test_equation_3_saves_most_of_a_generators_multiplications():
    with torch.device("meta"):
        networks = [ProGANGenerator(resolution=64, convolution=c) for c in CONVOLUTIONS]
        counts = [multiplications(network, torch.empty(1, 512)) for network in networks]
    assert 1 / 9 < counts[1] / counts[0] < 1 / 8


def test_separable_ends_can_stay_vanilla():
    generator = ProGANGenerator(resolution=8, convolution="separable", separable_ends=False, **SMALL)
    critic = ProGANDiscriminator(resolution=8, convolution="separable", separable_ends=False, **SMALL)
    assert isinstance(generator.blocks[0].first, layers.VanillaFirstLayer)
    assert isinstance(critic.last_block.last, layers.EqualizedConv2d)
    assert isinstance(critic.last_block.conv, layers.SeparableConv2d)


# ----------------------------------------------------------------------------
# SRGAN (Ledig et al. 2017, Figure 4).


def srresnet_parameters(features: int, blocks: int, doublings: int) -> int:
    """By hand: weights, biases, batch norm's two, PReLU's one."""

    def conv(inputs: int, outputs: int, k: int) -> int:
        return inputs * outputs * k * k + outputs

    block = 2 * conv(features, features, 3) + 2 * (2 * features) + 1
    head = conv(3, features, 9) + 1
    trunk = conv(features, features, 3) + 2 * features
    return (
        head
        + blocks * block
        + trunk
        + doublings * (conv(features, 4 * features, 3) + 1)
        + conv(features, 3, 9)
    )


def test_srresnet_has_the_papers_layers():
    network = SRResNet()
    with recorded(network, nn.Conv2d, nn.PixelShuffle) as calls, torch.no_grad():
        network.eval()(torch.zeros(1, 3, 8, 8))
    seen = [
        f"k{m.kernel_size[0]}n{m.out_channels}s{m.stride[0]} @{x.shape[-1]}"
        if isinstance(m, nn.Conv2d)
        else "shuffle"
        for m, x, _ in calls
    ]
    upsampling = ["k3n256s1 @8", "shuffle", "k3n256s1 @16", "shuffle"]
    assert seen == ["k9n64s1 @8", *["k3n64s1 @8"] * 33, *upsampling, "k9n3s1 @32"]
    assert len(network.blocks) == 16
    assert parameters(network) == srresnet_parameters(64, 16, 2)


@pytest.mark.parametrize("scale", [2, 4])
@pytest.mark.parametrize("convolution", CONVOLUTIONS)
def test_srresnet_scales(scale: int, convolution: str):
    network = SRResNet(scale=scale, features=8, blocks=2, convolution=convolution).eval()
    with torch.no_grad():
        assert network(torch.zeros(2, 3, 6, 10)).shape == (2, 3, 6 * scale, 10 * scale)
    if convolution == "vanilla":
        assert parameters(network) == srresnet_parameters(8, 2, scale // 2)


def test_srresnet_separable_multiplies_as_equation_3_says():
    """Per layer: every vanilla k x k convolution became one k x k a map and one 1 x 1."""
    x = torch.zeros(1, 3, 8, 8)
    networks = [SRResNet(features=16, blocks=2, convolution=c).eval() for c in CONVOLUTIONS]
    with recorded(networks[0], nn.Conv2d) as calls, torch.no_grad():
        networks[0](x)
    vanilla = [(out.numel(), m.in_channels, m.out_channels, m.kernel_size[0]) for m, _, out in calls]
    expected = sum(size * i * k * k * (1 / n + 1 / k**2) for size, i, n, k in vanilla)
    assert multiplications(networks[1], x) == pytest.approx(expected, rel=1e-9)


def test_srgan_discriminator_has_the_papers_plan():
    network = SRGANDiscriminator().eval()
    with recorded(network, nn.Conv2d, nn.Linear) as calls, torch.no_grad():
        assert network(torch.zeros(2, 3, 96, 96)).shape == (2,)
    convolutions = [
        (m.out_channels, m.stride[0], out.shape[-1]) for m, _, out in calls if isinstance(m, nn.Conv2d)
    ]
    assert convolutions == [
        (64, 1, 96),
        (64, 2, 48),
        (128, 1, 48),
        (128, 2, 24),
        (256, 1, 24),
        (256, 2, 12),
        (512, 1, 12),
        (512, 2, 6),
    ]
    assert [(m.in_features, m.out_features) for m, _, _ in calls if isinstance(m, nn.Linear)] == [
        (512 * 6 * 6, 1024),
        (1024, 1),
    ]
    assert sum(isinstance(m, nn.BatchNorm2d) for m in network.modules()) == 7  # not behind the first


@pytest.mark.parametrize("convolution", CONVOLUTIONS)
@pytest.mark.parametrize("crop", [16, 48, 128])
def test_srgan_discriminator_takes_any_multiple_of_16(crop: int, convolution: str):
    network = SRGANDiscriminator(crop=crop, features=4, dense=8, convolution=convolution, batch_norm=False)
    assert network(torch.zeros(3, 3, crop, crop)).shape == (3,)
    assert not any(isinstance(m, nn.BatchNorm2d) for m in network.modules())


def test_srgan_discriminator_without_batch_norm_scores_images_alone():
    network = SRGANDiscriminator(crop=16, features=4, dense=8, batch_norm=False).double()
    x = randn(3, 3, 16, 16)
    torch.testing.assert_close(network(x)[1:2], network(x[1:2]), rtol=1e-12, atol=0)


# ----------------------------------------------------------------------------
# The compact upscaler.


@pytest.mark.parametrize("convolution", CONVOLUTIONS)
@pytest.mark.parametrize("scale", [2, 4])
def test_compact_upscaler_computes_at_the_low_resolution(scale: int, convolution: str):
    network = CompactUpscaler(scale=scale, features=6, layers=3, convolution=convolution)
    with recorded(network, nn.Conv2d) as calls, torch.no_grad():
        assert network(torch.zeros(2, 3, 5, 7)).shape == (2, 3, 5 * scale, 7 * scale)
    assert len(calls) == (3 + 2) * (1 if convolution == "vanilla" else 2)
    assert all(x.shape[2:] == out.shape[2:] == (5, 7) for _, x, out in calls)


@pytest.mark.parametrize("convolution", CONVOLUTIONS)
@pytest.mark.parametrize("scale", [2, 4])
def test_compact_upscaler_starts_near_replication(scale: int, convolution: str):
    network = build(GENERATORS, {"kind": "compact", "scale": scale, "convolution": convolution}, seed=1)
    x = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(0)) * 2 - 1
    nearest = x.repeat_interleave(scale, 2).repeat_interleave(scale, 3)
    with torch.no_grad():
        error = (network(x) - nearest).square().mean().sqrt()
    assert 0 < error < 0.05
    for p in network.tail.parameters():
        nn.init.zeros_(p)
    assert torch.equal(network(x), nearest)


def slow_rednet(network: REDNet, x: Tensor) -> Tensor:
    """Mao et al. 2016, figure 1: maps of every second convolution, added behind the mirrored layer."""
    maps = {0: x}
    count = len(network.encoder)
    for i in range(count):
        maps[i + 1] = F.relu(network.encoder[i](maps[i]))
    y = maps[count]
    for i in range(count - 1, -1, -1):
        y = network.decoder[count - 1 - i](y) + (maps[i] if i in (0, 2, 4) else 0)
        y = F.relu(y) if i else y
    return y


@pytest.mark.parametrize("convolution", CONVOLUTIONS)
@pytest.mark.parametrize("layers", [1, 4, 5])
def test_rednet_is_symmetric_with_skips_and_starts_near_its_input(layers: int, convolution: str):
    options = {"kind": "rednet", "features": 6, "layers": layers, "convolution": convolution}
    network = build(GENERATORS, options, seed=1)
    assert isinstance(network, REDNet)
    x = randn(2, 3, 9, 14).float()
    y = network(x)
    assert torch.equal(y, slow_rednet(network, x))
    assert 0 < (y - x).square().mean().sqrt() < 0.1
    y.square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in network.parameters())
    with pytest.raises(PgsrError, match="scale 2 is not 1"):
        REDNet(scale=2)


@pytest.mark.parametrize("scale", [2, 4])
def test_compact_upscaler_can_start_as_pillows_bicubic(scale: int):
    """Away from borders, where Pillow weighs what is left of its kernel and we replicate pixels."""
    network = CompactUpscaler(scale=scale, features=4, layers=1, base="bicubic")
    for p in network.tail.parameters():
        nn.init.zeros_(p)
    x = torch.rand(1, 3, 12, 10, generator=torch.Generator().manual_seed(0))
    wanted = [
        np.asarray(Image.fromarray(plane.numpy()).resize((10 * scale, 12 * scale), Image.Resampling.BICUBIC))
        for plane in x[0]
    ]
    edge = 2 * scale
    with torch.no_grad():
        difference = network(x)[0].numpy() - np.stack(wanted)
    assert np.abs(difference[:, edge:-edge, edge:-edge]).max() < 1e-6
    flat = torch.full((1, 3, 6, 6), 0.25)
    assert torch.equal(network(flat), torch.full((1, 3, 6 * scale, 6 * scale), 0.25))
    assert not any("base" in name for name in network.state_dict())


# ----------------------------------------------------------------------------
# The tables by which recipes name networks.


def test_networks_are_a_function_of_the_seed():
    options = {"kind": "progan", "resolution": 8, **SMALL}
    first, again, other = (build(GENERATORS, options, seed).state_dict() for seed in (5, 5, 6))
    assert all(torch.equal(first[k], again[k]) for k in first)
    assert not torch.equal(first["to_rgb.0.weight"], other["to_rgb.0.weight"])


def test_building_leaves_torchs_own_generator_alone():
    torch.manual_seed(0)
    expected = torch.rand(1)
    torch.manual_seed(0)
    build(GENERATORS, {"kind": "compact"}, seed=9)
    assert torch.rand(1) == expected


def test_defaults_are_filled_in():
    assert resolved(GENERATORS, {"kind": "compact", "scale": 2}) == {
        "kind": "compact",
        "scale": 2,
        "features": 32,
        "layers": 8,
        "convolution": "vanilla",
        "base": "nearest",
    }


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "needs a kind: one of 'progan', 'srresnet', 'compact'"),
        ({"kind": "nonsense"}, "kind = 'nonsense' is not one of 'progan'"),
        ({"kind": ["progan"]}, r"kind = \['progan'\] is not one of"),
        (
            {"kind": "progan", "depth": 3},
            "unknown option 'depth' of 'progan'; it has resolution, latent_size",
        ),
        ({"kind": "progan", "latent_size": "64"}, "option latent_size of 'progan' is '64', but must be int"),
        ({"kind": "progan", "latent_size": True}, "option latent_size of 'progan' is True, but must be int"),
    ],
)
def test_unknown_options_are_named(options: dict[str, Any], message: str):
    with pytest.raises(PgsrError, match=message):
        resolved(GENERATORS, options)


CONVOLVED = [
    network
    for network in (*GENERATORS.values(), *DISCRIMINATORS.values())
    if "convolution" in inspect.signature(network).parameters
]


@pytest.mark.parametrize("network", CONVOLVED)
def test_an_unknown_convolution_is_named(network: type[nn.Module]):
    with pytest.raises(PgsrError, match="convolution = 'dilated' is not one of 'vanilla', 'separable'"):
        network(convolution="dilated")


@pytest.mark.parametrize("network", [SRResNet, CompactUpscaler])
def test_other_scales_are_errors(network: type[nn.Module]):
    with pytest.raises(PgsrError, match="scale 3 is not 2, 4 or 8"):
        network(scale=3)


def test_a_crop_that_does_not_divide_is_an_error():
    with pytest.raises(PgsrError, match="crop 40 is not a multiple of 16"):
        SRGANDiscriminator(crop=40)
