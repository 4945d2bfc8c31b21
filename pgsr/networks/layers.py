"""The layers of Progressive GAN (paper 2) and the separable convolution of paper 1."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .kernels import elementwise
from .kernels.convolution import convolve
from .precision import at_least_float32

LRELU_SLOPE = 0.2  # paper 2, section A.1
LRELU_GAIN = math.sqrt(2.0)  # He's gain, kept at sqrt(2) for the leaky ReLU as in the original code


# ----------------------------------------------------------------------------
# Equalized learning rate (paper 2, section 4.1): weights start from N(0, 1) and are multiplied at run
# time by He's constant gain / sqrt(fan_in), so that Adam moves every layer at the same relative speed.


class EqualizedWeight(nn.Module):
    """A weight with its runtime constant; `scaled()` is what the layer computes with."""

    def __init__(
        self,
        *shape: int,
        fan_in: int,  # inputs that one output value sums over
        gain: float,  # He's gain: sqrt(2) before a leaky ReLU, 1 where the layer is linear
    ) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(*shape))
        self.scale = gain / math.sqrt(fan_in)

    def scaled(self) -> Tensor:
        return self.weight if self.scale == 1.0 else self.weight * self.scale

    def fold(self) -> None:
        """Puts the constant into the weight, for inference (exact: the same product, taken once)."""
        self.weight.data.mul_(self.scale)
        self.scale = 1.0


def fold_equalized(network: nn.Module) -> bool:
    """Folds every layer of a network; False if there is none. Before training, that takes the equalized
    learning rate away: the weights then start as He et al. (2015) initialise them."""
    layers = [m for m in network.modules() if isinstance(m, EqualizedWeight)]
    for layer in layers:
        layer.fold()
    return bool(layers)


class EqualizedLinear(EqualizedWeight):
    """Fully connected layer: [N, in] -> [N, out]."""

    def __init__(self, inputs: int, outputs: int, gain: float = LRELU_GAIN) -> None:
        super().__init__(outputs, inputs, fan_in=inputs, gain=gain)
        self.bias = nn.Parameter(torch.zeros(outputs))

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.scaled(), self.bias)


class EqualizedConv2d(EqualizedWeight):
    """k x k convolution, stride 1: [N, in, H, W] -> [N, out, H', W']."""

    def __init__(
        self,
        inputs: int,
        outputs: int,
        kernel_size: int,
        padding: int | None = None,  # None keeps the size (odd kernels)
        gain: float = LRELU_GAIN,
    ) -> None:
        super().__init__(outputs, inputs, kernel_size, kernel_size, fan_in=inputs * kernel_size**2, gain=gain)
        self.bias = nn.Parameter(torch.zeros(outputs))
        self.padding = kernel_size // 2 if padding is None else padding

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            return convolve(x, self.scaled(), self.bias, self.padding)
        return F.conv2d(x, self.scaled(), self.bias, padding=self.padding)


class EqualizedDepthwise(EqualizedWeight):
    """k x k convolution of each map by itself, no bias: [N, C, H, W] -> [N, C, H', W'].

    Linear and summing over k*k values only, so its constant is 1 / k.
    """

    def __init__(self, maps: int, kernel_size: int, padding: int) -> None:
        super().__init__(maps, 1, kernel_size, kernel_size, fan_in=kernel_size**2, gain=1.0)
        self.padding = padding

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            return convolve(x, self.scaled(), None, self.padding)
        return F.conv2d(x, self.scaled(), padding=self.padding, groups=x.shape[1])


class SeparableConv2d(nn.Module):
    """Depthwise k x k, then pointwise 1 x 1 (paper 1, section IV): the multiplications of a vanilla
    convolution times 1/N + 1/k**2 (its equation 3).

    Each half has the equalized constant of its own fan-in. The gain of the activation that follows
    belongs to the pointwise half; between the two is no activation, so the depthwise half has gain 1.
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        kernel_size: int,
        padding: int | None = None,
        gain: float = LRELU_GAIN,
    ) -> None:
        super().__init__()
        self.depthwise = EqualizedDepthwise(
            inputs, kernel_size, kernel_size // 2 if padding is None else padding
        )
        self.pointwise = EqualizedConv2d(inputs, outputs, 1, gain=gain)

    def forward(self, x: Tensor) -> Tensor:
        return self.pointwise(self.depthwise(x))


# What stands for "a k x k convolution" in every network of this package.
CONVOLUTIONS: dict[str, Callable[..., nn.Module]] = {
    "vanilla": EqualizedConv2d,
    "separable": SeparableConv2d,
}


# ----------------------------------------------------------------------------
# The generator's first layer: a 4 x 4 convolution of a 1 x 1 latent (paper 2, Table 2).
# The original code writes it as a dense layer with gain sqrt(2)/4, which is the constant of a
# convolution whose fan-in is 16 * inputs.


class VanillaFirstLayer(EqualizedWeight):
    """[N, L] -> [N, C, 4, 4] with one bias a map: 16 L C + C parameters."""

    def __init__(self, latent_size: int, maps: int) -> None:
        super().__init__(maps * 16, latent_size, fan_in=latent_size, gain=LRELU_GAIN / 4)
        self.bias = nn.Parameter(torch.zeros(maps))

    def forward(self, z: Tensor) -> Tensor:
        x = F.linear(z, self.scaled()).view(z.shape[0], -1, 4, 4)
        return x + self.bias.view(1, -1, 1, 1)


class PlacedBiasFirstLayer(VanillaFirstLayer):
    """A vanilla first layer with a bias for each of the 4 x 4 places: 16 L C + 16 C parameters."""

    def __init__(self, latent_size: int, maps: int) -> None:
        super().__init__(latent_size, maps)
        self.bias = nn.Parameter(torch.zeros(maps * 16))

    def forward(self, z: Tensor) -> Tensor:
        return F.linear(z, self.scaled(), self.bias).view(z.shape[0], -1, 4, 4)


class SeparableFirstLayer(nn.Module):
    """[N, L] -> [N, C, 4, 4]: each latent value spread over 4 x 4 by its own kernel, then pointwise."""

    def __init__(self, latent_size: int, maps: int) -> None:
        super().__init__()
        self.depthwise = EqualizedWeight(latent_size, 4, 4, fan_in=1, gain=1.0)
        self.pointwise = EqualizedConv2d(latent_size, maps, 1, gain=LRELU_GAIN / 4)

    def forward(self, z: Tensor) -> Tensor:
        spread = z[:, :, None, None] * self.depthwise.scaled()  # [N, L, 4, 4]
        return self.pointwise(spread)


FIRST_LAYERS: dict[str, Callable[[int, int], nn.Module]] = {
    "vanilla": VanillaFirstLayer,
    "separable": SeparableFirstLayer,
    "placed": PlacedBiasFirstLayer,
}


# ----------------------------------------------------------------------------
# Pixelwise feature vector normalisation (paper 2, section 4.2), eps 1e-8.
# The mean of squares is taken in float32 whatever the precision around it: in half, 300**2 is already
# infinite and 1e-8 is zero, which turns pixels black without a NaN to show for it.


EPSILON = 1e-8


def pixel_norm(x: Tensor, eps: float = EPSILON) -> Tensor:
    """Unit mean square over dimension 1: [N, C, ...] -> [N, C, ...]."""
    wide = at_least_float32(x)
    if wide.requires_grad and torch.is_grad_enabled():
        return elementwise.pixel_norm(wide, eps).to(x.dtype)
    return (wide * torch.rsqrt(wide.square().mean(dim=1, keepdim=True) + eps)).to(x.dtype)


# ----------------------------------------------------------------------------
# What follows a convolution. Batch and layer normalisation are those of the baseline in paper 2's Table 1:
# they have weights and stand before the activation; pixelwise normalisation stands behind it.


def leaky_relu(x: Tensor) -> Tensor:
    """Computes the leaky ReLU of paper 2 (slope 0.2), by the faster kernel where gradients are taken."""
    if x.requires_grad and torch.is_grad_enabled():
        return elementwise.leaky_relu(x, LRELU_SLOPE)
    return F.leaky_relu(x, LRELU_SLOPE)


ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {"leaky": leaky_relu, "relu": F.relu}

NORMS: dict[str, Callable[[int], nn.Module]] = {
    "batch": nn.BatchNorm2d,
    "layer": partial(nn.GroupNorm, 1),  # over all of an image's maps, with a gain and an offset a map
}


class Activation(nn.Module):
    """Normalisation and activation: [N, C, H, W] -> [N, C, H, W]."""

    def __init__(
        self,
        maps: int,
        normalization: str,  # "pixel", "pixel-before" (the activation), a name in NORMS, or "none"
        activation: str = "leaky",
        epsilon: float = EPSILON,  # of pixelwise normalisation
    ) -> None:
        super().__init__()
        self.norm = NORMS[normalization](maps) if normalization in NORMS else None
        self.epsilon = epsilon
        self.activation = ACTIVATIONS[activation]
        self.pixel = normalization == "pixel"
        self.pixel_before = normalization == "pixel-before"

    def forward(self, x: Tensor) -> Tensor:
        if self.norm is not None:
            x = self.norm(x)
        if self.pixel_before:
            x = pixel_norm(x, self.epsilon)
        x = self.activation(x)
        return pixel_norm(x, self.epsilon) if self.pixel else x


# ----------------------------------------------------------------------------
# Minibatch standard deviation (paper 2, section 3): biased variance, 1e-8 inside the root, as in the original
# code. It is taken over the whole batch there; later code takes it over groups of 4.


@dataclass(frozen=True)
class Share:
    """The images rank, rank + count, ... of a batch: what one of several processes has of it."""

    rank: int
    count: int  # of processes
    batch: int  # images of all
    sum: Callable[[Tensor], Tensor]  # over the processes, of which gradients are sums too


def minibatch_stddev(x: Tensor, group: int = 4, share: Share | None = None) -> Tensor:
    """Adds one constant map a group: [N, C, H, W] -> [N, C + 1, H, W].

    A batch has as many groups as find `group` images each (16 by 4: 4 groups; 14: 3, of 5, 5 and 4), one if
    `group` is larger; of M groups image i is in group i mod M. So the statistic is there for every batch, and
    constant for a single image alone. With a `share` the groups are those of the whole batch; processes
    exchange sums where a group lies in several.
    """
    n = x.shape[0]
    batch, first, step = (n, 0, 1) if share is None else (share.batch, share.rank, share.count)
    groups, over_processes = max(1, batch // group), share.sum if share is not None else _itself
    if groups % step == 0:  # every group lies in one process
        groups, batch, first, step, over_processes = groups // step, n, 0, 1, _itself
    if step == 1 and n % groups == 0:
        statistic = _deviations(x, n // groups).repeat(n // groups)
    else:
        members = torch.arange(first, first + step * n, step, device=x.device) % groups
        statistic = _uneven_deviations(x, members, groups, batch, over_processes)[members]
    return torch.cat([x, statistic.view(n, 1, 1, 1).expand(n, 1, *x.shape[2:])], dim=1)


def _itself(sums: Tensor) -> Tensor:
    return sums


def _deviations(x: Tensor, size: int) -> Tensor:
    """The mean deviation of each of M groups of `size` images: [size * M, C, H, W] -> [M]."""
    grouped = at_least_float32(x.view(size, len(x) // size, *x.shape[1:]))
    deviation = (grouped.var(dim=0, unbiased=False) + 1e-8).sqrt()  # [M, C, H, W]
    return deviation.mean(dim=(1, 2, 3)).to(x.dtype)


def _uneven_deviations(
    x: Tensor, members: Tensor, groups: int, batch: int, over_processes: Callable[[Tensor], Tensor]
) -> Tensor:
    """The same of groups of any sizes, `members` [N] the group of each image: [N, C, H, W] -> [groups]."""
    wide = at_least_float32(x)
    counts = [len(range(m, batch, groups)) for m in range(groups)]
    sizes = torch.tensor(counts, dtype=wide.dtype, device=x.device).view(-1, 1, 1, 1)

    def mean(values: Tensor) -> Tensor:
        empty = values.new_zeros(groups, *values.shape[1:])
        return over_processes(empty.index_add(0, members, values)) / sizes

    deviation = (mean((wide - mean(wide)[members]).square()) + 1e-8).sqrt()  # [groups, C, H, W]
    return deviation.mean(dim=(1, 2, 3)).to(x.dtype)


class MinibatchStddev(nn.Module):
    """The statistic as a layer: [N, C, H, W] -> [N, C + 1, H, W]."""

    def __init__(self, group: int) -> None:
        super().__init__()
        self.group = group
        self.share: Share | None = None  # of the batch at hand, where several processes train

    def forward(self, x: Tensor) -> Tensor:
        return minibatch_stddev(x, self.group, self.share)


# ----------------------------------------------------------------------------
# Multiplicative Gaussian noise (paper 2, appendix B). One draw an image and map, its deviation the text's
# magnitude times the root of the number of maps, which the text leaves out and the original code has (its
# layer's mode "prop"): without either a sum over the maps averages it away.


def multiplicative_noise(x: Tensor, magnitude: Tensor) -> Tensor:
    """Multiplies x by numbers around 1; `magnitude` is a scalar: [N, C, H, W] -> [N, C, H, W]."""
    n, c = x.shape[:2]
    draws = torch.randn(n, c, 1, 1, device=x.device, dtype=x.dtype)
    return x * (1 + magnitude.to(x.dtype) * math.sqrt(c) * draws)


# ----------------------------------------------------------------------------
# Minibatch discrimination (Salimans et al. 2016, section 3.2), which paper 2 compares with its own layer.


class MinibatchDiscrimination(EqualizedWeight):
    """Adds how close each image is to its batch: [N, A] -> [N, A + kernels].

    M = f(x) T is `kernels` rows for each image, and o(x_i)_b the sum over j of exp(-|M_ib - M_jb|), of the
    1-norm. T starts with columns of about unit length, as the original code's normalised ones do.
    """

    def __init__(self, inputs: int, kernels: int = 100, size: int = 5) -> None:
        super().__init__(kernels * size, inputs, fan_in=inputs, gain=1.0)
        self.kernels = kernels

    def forward(self, x: Tensor) -> Tensor:
        rows = at_least_float32(F.linear(x, self.scaled()))
        rows = rows.view(len(x), self.kernels, -1)
        distances = (rows[:, None] - rows[None]).abs().sum(3)  # [N, N, kernels]
        return torch.cat([x, torch.exp(-distances).sum(1).to(x.dtype)], dim=1)


# ----------------------------------------------------------------------------
# Resizing by two: replication and average pooling (paper 2, section A.1).


def upsample(x: Tensor) -> Tensor:
    """2 x 2 element replication: [N, C, H, W] -> [N, C, 2H, 2W]."""
    return F.interpolate(x, scale_factor=2.0, mode="nearest")


def downsample(x: Tensor) -> Tensor:
    """2 x 2 average: [N, C, H, W] -> [N, C, H/2, W/2]."""
    return F.avg_pool2d(x, 2)


def fade(old: Tensor, new: Tensor, alpha: float) -> Tensor:
    """Linear blend, alpha 0 = old (paper 2, Figure 2). `new` alone at alpha 1, to the bit."""
    return new if alpha >= 1.0 else old + (new - old) * alpha
