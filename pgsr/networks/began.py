"""BEGAN (paper 5; Berthelot et al. 2017): a generator, and a critic that is an autoencoder.

U-shaped without skip connections: 3 x 3 convolutions with ELU, subsampling by stride 2, upsampling by
replication; the encoder's maps grow by n at each subsampling, the decoder has n throughout; between them a
dense layer without an activation. The generator is such a decoder.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pgsr.errors import PgsrError, check_choice

from .interfaces import Discriminator, Generator
from .layers import upsample
from .srgan import convolution_of

ERRORS: dict[str, Callable[..., Tensor]] = {"l1": F.l1_loss, "l2": F.mse_loss}
SMALLEST = 8  # side of the maps next to the dense layers


def levels_of(resolution: int) -> int:
    """Returns how many sizes there are from 8 x 8 up. Raises PgsrError unless `resolution` is one of them."""
    if resolution < SMALLEST or resolution & (resolution - 1):
        raise PgsrError(f"resolution {resolution} is not {SMALLEST}, {2 * SMALLEST}, {4 * SMALLEST}, ...")
    return resolution.bit_length() - SMALLEST.bit_length() + 1


class Encoder(nn.Module):
    """Images [N, 3, r, r] -> codes [N, code_size]."""

    def __init__(self, resolution: int, code_size: int, features: int, convolution: str) -> None:
        super().__init__()
        widths = [features * (i + 1) for i in range(levels_of(resolution))]
        layers = [convolution_of(convolution, 3, features, 3), nn.ELU()]
        for i, maps in enumerate(widths):
            if i > 0:
                layers += [convolution_of(convolution, widths[i - 1], maps, 3, stride=2), nn.ELU()]
            layers += [convolution_of(convolution, maps, maps, 3), nn.ELU()]
            layers += [convolution_of(convolution, maps, maps, 3), nn.ELU()]
        self.layers = nn.Sequential(*layers)
        self.dense = nn.Linear(widths[-1] * SMALLEST**2, code_size)

    def forward(self, images: Tensor) -> Tensor:
        return self.dense(self.layers(images).flatten(1))


class Decoder(nn.Module):
    """Codes [N, code_size] -> images [N, 3, r, r], no tanh."""

    def __init__(self, resolution: int, code_size: int, features: int, convolution: str) -> None:
        super().__init__()
        self.features = features
        self.dense = nn.Linear(code_size, features * SMALLEST**2)
        self.blocks = nn.ModuleList(
            nn.Sequential(
                convolution_of(convolution, features, features, 3),
                nn.ELU(),
                convolution_of(convolution, features, features, 3),
                nn.ELU(),
            )
            for _ in range(levels_of(resolution))
        )
        self.to_rgb = convolution_of(convolution, features, 3, 3)

    def forward(self, codes: Tensor) -> Tensor:
        x = self.dense(codes).view(-1, self.features, SMALLEST, SMALLEST)
        for i, block in enumerate(self.blocks):
            x = block(x if i == 0 else upsample(x))
        return self.to_rgb(x)


def initialise(network: nn.Module) -> None:
    """Weights that keep the variance of what goes through them; ELU is nearly linear about 0."""
    for name, parameter in network.named_parameters():
        if name.endswith("bias"):
            nn.init.zeros_(parameter)
        else:
            nn.init.kaiming_normal_(parameter, nonlinearity="linear")


def uniform(z: Tensor) -> Tensor:
    """Standard normal -> uniform on [-1, 1], by its distribution function. BEGAN draws its latents so, and
    WGAN in paper 5 on [0, 1]."""
    return torch.erf(z / math.sqrt(2.0))


class BEGANGenerator(Generator):
    """Latents [N, latent_size], standard normal -> images [N, 3, resolution, resolution]."""

    def __init__(
        self,
        resolution: int = 128,
        latent_size: int = 64,  # N_z
        features: int = 128,  # n
        convolution: str = "vanilla",  # or "separable" (paper 1)
    ) -> None:
        super().__init__()
        self.resolution, self.latent_size = resolution, latent_size
        self.resolutions = [resolution]
        self.decoder = Decoder(resolution, latent_size, features, convolution)
        initialise(self)

    def forward(self, z: Tensor) -> Tensor:
        return self.decoder(uniform(z))

    def at(self, resolution: int, alpha: float) -> Callable[[Tensor], Tensor]:
        """Gives the network itself, which does not grow. Raises PgsrError for a schedule that does."""
        if resolution != self.resolution:
            raise PgsrError(
                f"began makes images of {self.resolution} alone: set schedule.resolution and "
                f"schedule.start_resolution to {self.resolution}"
            )
        return self


class BEGANDiscriminator(Discriminator):
    """Images [N, 3, resolution, resolution] -> errors of their reconstruction [N]: L(v) = mean |v - D(v)|**p,
    "trained with an L1 or L2 norm" (paper 5)."""

    def __init__(
        self,
        resolution: int = 128,
        code_size: int = 64,  # N_h
        features: int = 128,
        convolution: str = "vanilla",
        norm: str = "l1",  # or "l2": p of the error
    ) -> None:
        super().__init__()
        check_choice("norm", norm, ERRORS)
        self.error = ERRORS[norm]
        self.encoder = Encoder(resolution, code_size, features, convolution)
        self.decoder = Decoder(resolution, code_size, features, convolution)
        initialise(self)

    def reconstructed(self, images: Tensor) -> Tensor:
        return self.decoder(self.encoder(images))

    def forward(self, images: Tensor) -> Tensor:
        reconstruction = self.reconstructed(images)
        if reconstruction.dtype != torch.float64:
            reconstruction = reconstruction.float()
        error = self.error(reconstruction, images.to(reconstruction.dtype), reduction="none")
        return error.mean(dim=(1, 2, 3))
