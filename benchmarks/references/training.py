"""A training step as one would first write it from paper 2: what pgsr-train's is compared with.

Eager PyTorch, NCHW, float32, ordinary modules. Like plain.py it shares no layer with pgsr.networks, so it
is a second opinion on the loss terms and their gradients.
"""

from __future__ import annotations

import copy
import math
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .inference import EqualConv2d, EqualConvTranspose2d, PlainGenerator

# ----------------------------------------------------------------------------
# Depthwise, then pointwise (paper 1, section IV), each with the equalized constant of its own fan-in.


class EqualDepthwise(nn.Conv2d):
    """k x k convolution of each map by itself: linear, over k * k values."""

    def __init__(self, maps: int, kernel_size: int, padding: int) -> None:
        super().__init__(maps, maps, kernel_size, padding=padding, groups=maps, bias=False)
        self.equalizer = 1 / kernel_size

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(x, self.weight * self.equalizer, padding=self.padding, groups=self.groups)


class EqualSpread(nn.ConvTranspose2d):
    """Each latent value over 4 x 4 by a kernel of its own: [N, L, 1, 1] -> [N, L, 4, 4]; its fan-in is 1."""

    def __init__(self, latent_size: int) -> None:
        super().__init__(latent_size, latent_size, 4, groups=latent_size, bias=False)


def convolution(kind: str, inputs: int, outputs: int, kernel_size: int, padding: int) -> nn.Module:
    """Makes a k x k convolution of either kind, with equalized learning rate."""
    if kind == "separable":
        return nn.Sequential(EqualDepthwise(inputs, kernel_size, padding), EqualConv2d(inputs, outputs, 1))
    layer = EqualConv2d(inputs, outputs, kernel_size)
    layer.padding = (padding, padding)
    return layer


def first_layer(kind: str, latent_size: int, maps: int) -> nn.Module:
    """Makes the generator's first layer of either kind: [N, L] -> [N, C, 4, 4]."""
    if kind == "separable":
        pointwise = EqualConv2d(latent_size, maps, 1, gain=math.sqrt(2.0) / 4)
        return nn.Sequential(EqualSpread(latent_size), pointwise)
    return EqualConvTranspose2d(latent_size, maps)


# ----------------------------------------------------------------------------
# The networks of one resolution (paper 2, Table 2).


class PlainProGenerator(PlainGenerator):
    """PlainGenerator with the convolutions of either kind."""

    def __init__(self, kind: str, resolution: int, latent_size: int, base: int, most: int) -> None:
        super().__init__(resolution, latent_size, base, most)
        maps = widths(resolution, base, most)
        sizes = [(maps[0], maps[0])]
        for inputs, outputs in pairwise(maps):
            sizes += [(inputs, outputs), (outputs, outputs)]
        self.first = first_layer(kind, latent_size, maps[0])
        self.convs = nn.ModuleList([convolution(kind, *size, 3, 1) for size in sizes])


def widths(resolution: int, base: int, most: int) -> list[int]:
    """Maps at 4, 8, ... resolution."""
    return [max(1, min(most, base // 2**k)) for k in range(2, int(math.log2(resolution)) + 1)]


class MinibatchStddev(nn.Module):
    """One more map (paper 2, section 3): the deviation over the images of the batch, averaged."""

    def forward(self, x: Tensor) -> Tensor:
        n, _, h, w = x.shape
        y = x - x.mean(dim=0, keepdim=True)
        deviation = torch.sqrt((y**2).mean(dim=0) + 1e-8).mean()
        return torch.cat([x, deviation.expand(n, 1, h, w)], dim=1)


class EqualLinear(nn.Linear):
    """The linear last layer: gain 1."""

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight / math.sqrt(self.in_features), self.bias)


class PlainCritic(nn.Module):
    """Images [N, 3, resolution, resolution] -> scores [N]."""

    def __init__(self, kind: str, resolution: int, base: int, most: int) -> None:
        super().__init__()
        maps = widths(resolution, base, most)
        self.from_rgb = EqualConv2d(3, maps[-1], 1)
        self.convs = nn.ModuleList()
        for inputs, outputs in pairwise(reversed(maps)):
            self.convs.append(convolution(kind, inputs, inputs, 3, 1))
            self.convs.append(convolution(kind, inputs, outputs, 3, 1))
        self.stddev = MinibatchStddev()
        self.conv = convolution(kind, maps[0] + 1, maps[0], 3, 1)
        self.last = convolution(kind, maps[0], maps[0], 4, 0)
        self.dense = EqualLinear(maps[0], 1)
        self.activation = nn.LeakyReLU(0.2)
        self.downsample = nn.AvgPool2d(2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.activation(self.from_rgb(x))
        for i, conv in enumerate(self.convs):
            x = self.activation(conv(x))
            if i % 2 == 1:
                x = self.downsample(x)
        x = self.activation(self.conv(self.stddev(x)))
        x = self.activation(self.last(x))
        return self.dense(x.flatten(1)).squeeze(1)


def initialise(network: nn.Module) -> None:
    """All weights from N(0, 1), all biases zero (paper 2, section A.1)."""
    for name, parameter in network.named_parameters():
        if name.endswith("bias"):
            nn.init.zeros_(parameter)
        else:
            nn.init.normal_(parameter)


# ----------------------------------------------------------------------------
# The step (paper 2, section A.1): WGAN-GP with drift, one update of the critic, one of the generator.


class PlainTrainer:
    """Networks, their optimizers and the photographs, all at one resolution."""

    def __init__(
        self,
        generator: nn.Module,
        critic: nn.Module,
        pixels: Tensor,  # uint8 [M, H, W, 3]
        latent_size: int,
    ) -> None:
        self.generator, self.critic, self.latent_size = generator, critic, latent_size
        self.average = copy.deepcopy(generator).requires_grad_(False)
        self.device = pixels.device
        self.photographs = pixels.permute(0, 3, 1, 2).contiguous()
        self.generator_optimizer = torch.optim.Adam(generator.parameters(), 0.001, (0.0, 0.99), 1e-8)
        self.critic_optimizer = torch.optim.Adam(critic.parameters(), 0.001, (0.0, 0.99), 1e-8)

    def step(self, batch: int) -> dict[str, Tensor]:
        """Both updates and the running average; the loss terms, detached."""
        blend = torch.rand(batch, device=self.device)
        terms = self.update_critic(self.reals(batch), self.latents(batch), blend)
        terms |= self.update_generator(self.latents(batch))
        self.update_average()
        return {name: term.detach() for name, term in terms.items()}

    def latents(self, batch: int) -> Tensor:
        return torch.randn(batch, self.latent_size, device=self.device)

    def reals(self, batch: int) -> Tensor:
        """Photographs at random, half of them mirrored: [N, 3, H, W] in [-1, 1]."""
        rows = torch.randint(len(self.photographs), (batch,), device=self.device)
        images = self.photographs[rows].float() / 127.5 - 1
        flips = torch.rand(batch, 1, 1, 1, device=self.device) < 0.5
        return torch.where(flips, images.flip(3), images)

    def update_critic(self, reals: Tensor, latents: Tensor, blend: Tensor) -> dict[str, Tensor]:
        with torch.no_grad():
            fakes = self.generator(latents)
        self.critic_optimizer.zero_grad()
        terms = self.critic_terms(reals, fakes, blend)
        sum(terms.values(), torch.zeros((), device=self.device)).backward()
        self.critic_optimizer.step()
        return terms

    def critic_terms(self, reals: Tensor, fakes: Tensor, blend: Tensor) -> dict[str, Tensor]:
        real_scores, fake_scores = self.critic(reals), self.critic(fakes)
        mixed = torch.lerp(reals, fakes, blend[:, None, None, None]).requires_grad_()
        (slope,) = torch.autograd.grad(self.critic(mixed).sum(), mixed, create_graph=True)
        return {
            "critic": fake_scores.mean() - real_scores.mean(),
            "drift": 0.001 * (real_scores**2).mean(),
            "gradient penalty": 10 * ((slope.flatten(1).norm(dim=1) - 1) ** 2).mean(),
        }

    def update_generator(self, latents: Tensor) -> dict[str, Tensor]:
        self.generator_optimizer.zero_grad()
        self.critic.requires_grad_(False)
        loss = -self.critic(self.generator(latents)).mean()
        loss.backward()
        self.critic.requires_grad_(True)
        self.generator_optimizer.step()
        return {"generator": loss}

    @torch.no_grad()
    def update_average(self) -> None:
        for mine, theirs in zip(self.average.parameters(), self.generator.parameters(), strict=True):
            mine.mul_(0.999).add_(theirs, alpha=0.001)
