"""Paper 3's networks: the layers its section 4 counts, and slow obvious versions of them in float64."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from pgsr.errors import PgsrError
from pgsr.networks import DISCRIMINATORS, GENERATORS, build
from pgsr.networks import sr_variants as variants
from pgsr.networks.sr_variants import CNNDiscriminator, DCGANGenerator, MLPDiscriminator

UPSCALERS = ("resnet-sr", "dcgan-sr", "mlp-sr")


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def lively(network: nn.Module) -> nn.Module:
    """In eval mode and float64, with biases and batch statistics away from their initial values."""
    generator = torch.Generator().manual_seed(5)
    for name, tensor in network.double().state_dict().items():
        if name.endswith(("bias", "running_mean")):
            tensor.normal_(0, 0.2, generator=generator)
        if name.endswith("running_var"):
            tensor.uniform_(0.5, 2.0, generator=generator)
    return network.eval()


def count(network: nn.Module, kind: type[nn.Module]) -> int:
    return sum(isinstance(m, kind) for m in network.modules())


# ----------------------------------------------------------------------------
# What the paper counts.


@pytest.mark.parametrize("kind", UPSCALERS)
@pytest.mark.parametrize("batch_norm", [True, False])
@pytest.mark.parametrize("activation", ["relu", "tanh"])
def test_upscalers_go_from_16_to_64(kind: str, batch_norm: bool, activation: str):
    options = {"kind": kind, "features": 2, "batch_norm": batch_norm, "activation": activation}
    network = build(GENERATORS, options, 1)
    made = network(torch.zeros(2, 3, 16, 16))
    assert made.shape == (2, 3, 64, 64)
    assert made.abs().max() <= 1
    norms = count(network, nn.BatchNorm2d) + count(network, nn.BatchNorm1d)
    assert (norms > 0) == batch_norm
    assert (count(network, nn.ReLU) > 0) == (activation == "relu")


def test_dcgan_halves_twice_and_doubles_four_times():
    network = build(GENERATORS, {"kind": "dcgan-sr", "features": 2}, 1)
    sides = []
    for layer in network.layers:
        if isinstance(layer, (nn.Conv2d, nn.ConvTranspose2d)):
            layer.register_forward_hook(lambda m, args, out: sides.append((type(m).__name__, out.shape[-1])))
    network(torch.zeros(2, 3, 16, 16))
    down, up = "Conv2d", "ConvTranspose2d"
    assert sides == [(down, 8), (down, 4), (up, 8), (up, 16), (up, 32), (up, 64)]


def test_resnet_has_3_blocks_and_3_convolutions():
    network = build(GENERATORS, {"kind": "resnet-sr", "features": 2}, 1)
    assert len(network.blocks) == 3
    assert count(network.tail, nn.Conv2d) == 3
    assert network(torch.zeros(1, 3, 5, 7)).shape == (1, 3, 20, 28)  # of any size


def test_dense_networks_have_4_layers():
    assert count(build(GENERATORS, {"kind": "mlp-sr", "features": 1}), nn.Linear) == 4
    assert count(MLPDiscriminator(features=1), nn.Linear) == 4


def test_critic_has_4_convolutions_and_a_dense_layer():
    critic = CNNDiscriminator(features=2)
    assert (count(critic, nn.Conv2d), count(critic, nn.Linear)) == (4, 1)
    assert critic(torch.zeros(3, 3, 64, 64)).shape == (3,)


def test_noise_becomes_an_image_by_4_deconvolutions():
    network = DCGANGenerator(features=2)
    assert count(network, nn.ConvTranspose2d) == 4
    assert network(torch.zeros(2, 128)).shape == (2, 3, 64, 64)


# ----------------------------------------------------------------------------
# Slow versions.


def slow_normed(x: np.ndarray, norm: nn.Module) -> np.ndarray:
    """Batch normalisation by its formula over axis 1, in eval mode."""
    shape = (1, -1, *[1] * (x.ndim - 2))
    mean, var, weight, bias = (
        t.detach().numpy().reshape(shape)
        for t in (norm.running_mean, norm.running_var, norm.weight, norm.bias)
    )
    return (x - mean) / np.sqrt(var + norm.eps) * weight + bias


def slow_convolution(x: np.ndarray, layer: nn.Conv2d) -> np.ndarray:
    """Every output value as its sum."""
    weight, bias = layer.weight.detach().numpy(), layer.bias.detach().numpy()
    k, stride = weight.shape[-1], layer.stride[0]
    padded = np.pad(x, ((0, 0), (0, 0), (k // 2, k // 2), (k // 2, k // 2)))
    side = x.shape[-1] // stride
    out = np.zeros((len(x), len(bias), side, side))
    for i in range(side):
        for j in range(side):
            window = padded[:, :, stride * i : stride * i + k, stride * j : stride * j + k]
            out[:, :, i, j] = np.einsum("nchw,ochw->no", window, weight) + bias
    return out


def slow_deconvolution(x: np.ndarray, layer: nn.ConvTranspose2d) -> np.ndarray:
    """Every input value spread by the kernel around twice its place, what falls outside lost."""
    weight, bias = layer.weight.detach().numpy(), layer.bias.detach().numpy()
    k, side = weight.shape[-1], 2 * x.shape[-1]
    out = np.tile(bias.reshape(1, -1, 1, 1), (len(x), 1, side, side)).astype(np.float64)
    for i in range(x.shape[-1]):
        for j in range(x.shape[-1]):
            for a in range(k):
                for b in range(k):
                    y, z = 2 * i + a - k // 2, 2 * j + b - k // 2
                    if 0 <= y < side and 0 <= z < side:
                        out[:, :, y, z] += x[:, :, i, j] @ weight[:, :, a, b]
    return out


def slow(layers: nn.Sequential, x: np.ndarray) -> np.ndarray:
    for layer in layers:
        if isinstance(layer, nn.Conv2d):
            x = slow_convolution(x, layer)
        elif isinstance(layer, nn.ConvTranspose2d):
            x = slow_deconvolution(x, layer)
        elif isinstance(layer, nn.Linear):
            x = x @ layer.weight.detach().numpy().T + layer.bias.detach().numpy()
        elif isinstance(layer, (nn.BatchNorm1d, nn.BatchNorm2d)):
            x = slow_normed(x, layer)
        elif isinstance(layer, nn.Unflatten):
            x = x.reshape(len(x), -1, 4, 4)
        else:
            x = np.maximum(x, 0) if isinstance(layer, nn.ReLU) else np.tanh(x)
    return x


def test_dcgan_is_its_layers():
    network = lively(build(GENERATORS, {"kind": "dcgan-sr", "features": 1}, 1))
    x = randn(2, 3, 16, 16)
    np.testing.assert_allclose(network(x).detach().numpy(), slow(network.layers, x.numpy()), atol=1e-12)


def test_noise_dcgan_is_its_layers():
    network = lively(build(GENERATORS, {"kind": "dcgan", "features": 1, "latent_size": 5}, 1))
    z = randn(2, 5)
    np.testing.assert_allclose(network(z).detach().numpy(), slow(network.layers, z.numpy()), atol=1e-12)


def test_uniform_latents_are_on_0_to_1():
    """As torch.rand draws them: each normal number becomes the share of normal numbers below it."""
    options = {"kind": "dcgan", "features": 1, "latent_size": 5}
    network = lively(build(GENERATORS, {**options, "latents": "uniform"}, 1))
    z = randn(2, 5)
    shares = torch.tensor([[0.5 * (1 + math.erf(v / math.sqrt(2))) for v in row] for row in z.tolist()])
    expected = slow(network.layers, shares.double().numpy())
    np.testing.assert_allclose(network(z).detach().numpy(), expected, atol=1e-6)
    with pytest.raises(PgsrError, match="latents = 'even' is not one of 'normal', 'uniform'"):
        build(GENERATORS, {**options, "latents": "even"})


def test_mlp_is_its_layers():
    options = {"kind": "mlp-sr", "features": 1, "input_size": 4, "activation": "tanh"}
    network = lively(build(GENERATORS, options, 1))
    x = randn(3, 3, 4, 4)
    expected = np.tanh(slow(network.layers, x.numpy().reshape(3, -1))).reshape(3, 3, 16, 16)
    np.testing.assert_allclose(network(x).detach().numpy(), expected, atol=1e-12)


def test_resnet_is_its_layers():
    network = lively(build(GENERATORS, {"kind": "resnet-sr", "features": 1}, 1))
    x = randn(1, 3, 4, 4)
    y = x.numpy()
    for i, block in enumerate(network.blocks):
        y = y.repeat(2, axis=2).repeat(2, axis=3) if i else y
        y = slow_convolution(y, block.shortcut) + slow(block.body, y)
    np.testing.assert_allclose(network(x).detach().numpy(), slow(network.tail, y), atol=1e-12)


def test_critic_is_its_layers_and_features_are_on_the_way():
    critic = lively(build(DISCRIMINATORS, {"kind": "cnn", "features": 1, "crop": 16}, 1))
    x = randn(2, 3, 16, 16)
    features = slow(critic.convolutions, x.numpy())
    expected = slow(nn.Sequential(critic.score), features.reshape(2, -1))[:, 0]
    np.testing.assert_allclose(critic(x).detach().numpy(), expected, atol=1e-12)
    np.testing.assert_allclose(critic.features(x).detach().numpy(), features, atol=1e-12)
    second = slow(critic.convolutions[:5], x.numpy())  # conv, relu, conv, norm, relu
    np.testing.assert_allclose(critic.features(x, depth=2).detach().numpy(), second, atol=1e-12)


def test_srgan_critic_has_features_too():
    critic = lively(build(DISCRIMINATORS, {"kind": "srgan", "features": 1, "crop": 16, "dense": 2}, 1))
    x = randn(2, 3, 16, 16)
    assert torch.equal(critic.features(x), critic.convolutions(x))
    assert torch.equal(critic.features(x, depth=1), critic.convolutions[:2](x))  # conv, leaky relu


# ----------------------------------------------------------------------------
# Normalisation in critics.


def test_layer_norm_is_of_one_image():
    x = randn(3, 4, 5, 5)
    layer, norm, _ = variants.normed(variants.convolution(4, 6, 3).double(), "layer", "relu")
    made = norm.double()(layer(x))
    expected = layer(x)
    mean = expected.mean(dim=(1, 2, 3), keepdim=True)
    var = (expected - mean).square().mean(dim=(1, 2, 3), keepdim=True)
    torch.testing.assert_close(made, (expected - mean) / (var + norm.eps).sqrt())


@pytest.mark.parametrize("kind", ["cnn", "mlp"])
@pytest.mark.parametrize(("norm", "alone"), [("layer", True), ("none", True), ("batch", False)])
def test_only_batch_norm_mixes_images(kind: str, norm: str, alone: bool):
    critic = build(DISCRIMINATORS, {"kind": kind, "features": 2, "crop": 16, "norm": norm}, 1).double()
    x = randn(4, 3, 16, 16)
    changed = x.clone()
    changed[1:] += 1
    assert torch.allclose(critic(x)[0], critic(changed)[0], atol=1e-12) == alone


@pytest.mark.parametrize("kind", ["cnn", "mlp"])
def test_nothing_is_normalised_beside_the_image(kind: str):
    critic = build(DISCRIMINATORS, {"kind": kind, "features": 2, "norm": "layer"}, 1)
    layers = critic.convolutions if kind == "cnn" else critic.layers
    assert isinstance(layers[1], nn.ReLU)
    assert count(critic, nn.GroupNorm) == (3 if kind == "cnn" else 2)


# ----------------------------------------------------------------------------
# Weights.


def test_initial_weights_have_hes_deviation():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        convolution = variants.convolution(16, 32, 5, 2, "relu")
        deconvolution = variants.deconvolution(64, 16, 5, "relu")
        dense = variants.dense(100, 200, "tanh")
    assert convolution.weight.std().item() == pytest.approx(math.sqrt(2 / (16 * 25)), rel=0.03)
    assert deconvolution.weight.std().item() == pytest.approx(math.sqrt(2 / (64 * 25 / 4)), rel=0.03)
    assert dense.weight.std().item() == pytest.approx(5 / 3 / 10, rel=0.03)
    assert not convolution.bias.any()


@pytest.mark.parametrize("kind", [*UPSCALERS, "dcgan"])
@pytest.mark.parametrize("batch_norm", [True, False])
def test_generators_begin_near_grey(kind: str, batch_norm: bool):
    network = build(GENERATORS, {"kind": kind, "features": 16, "batch_norm": batch_norm}, 1).double()
    x = randn(8, 128) if kind == "dcgan" else randn(8, 3, 16, 16)
    assert 0.01 < network(x).std() < 0.5


@pytest.mark.parametrize("batch_norm", [True, False])
def test_residual_blocks_begin_near_their_shortcut(batch_norm: bool):
    network = build(GENERATORS, {"kind": "resnet-sr", "features": 16, "batch_norm": batch_norm}, 1).double()
    for block, maps in zip(network.blocks, (3, 64, 32), strict=True):  # type: ignore[arg-type]
        x = randn(4, maps, 8, 8)
        assert 0 < block.body(x).std() < 0.1 * block.shortcut(x).std()


def test_a_deconvolution_keeps_the_variance():
    """Which tells that its fan-in is a quarter of the kernel."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        layer = variants.deconvolution(64, 32, 5)
        made = layer(torch.randn(4, 64, 16, 16))
    assert made[:, :, 4:-4, 4:-4].var().item() == pytest.approx(1, rel=0.1)


@pytest.mark.parametrize("table", [GENERATORS, DISCRIMINATORS])
def test_every_weight_is_used(table: dict):
    for kind in (*UPSCALERS, "dcgan") if table is GENERATORS else ("cnn", "mlp"):
        network = build(table, {"kind": kind, "features": 2, "activation": "tanh"}, 1).double()
        side = 64 if table is DISCRIMINATORS else 16
        x = randn(3, 128) if kind == "dcgan" else randn(3, 3, side, side)
        network(x).square().sum().backward()
        for name, parameter in network.named_parameters():
            assert parameter.grad is not None, f"{kind} {name}"
            assert parameter.grad.abs().sum() > 0, f"{kind} {name}"


@pytest.mark.parametrize(
    ("table", "options", "message"),
    [
        (GENERATORS, {"kind": "resnet-sr", "scale": 2}, "scale 2 is not 4"),
        (GENERATORS, {"kind": "dcgan-sr", "scale": 2}, "scale 2 is not 4"),
        (GENERATORS, {"kind": "dcgan-sr", "input_size": 18}, "input_size 18 is not a multiple of 4"),
        (GENERATORS, {"kind": "dcgan", "resolution": 32}, "resolution 32 is not 64"),
        (
            GENERATORS,
            {"kind": "mlp-sr", "activation": "gelu"},
            "activation = 'gelu' is not one of 'linear', 'relu', 'tanh'",
        ),
        (DISCRIMINATORS, {"kind": "cnn", "crop": 40}, "crop 40 is not a multiple of 16"),
        (
            DISCRIMINATORS,
            {"kind": "mlp", "norm": "group"},
            "norm = 'group' is not one of 'batch', 'layer', 'none'",
        ),
    ],
)
def test_wrong_options_are_named(table: dict, options: dict, message: str):
    with pytest.raises(PgsrError, match=message):
        build(table, options)
