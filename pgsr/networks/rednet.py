"""RED-Net, a convolutional autoencoder with symmetric skip connections (Mao, Shen, Yang 2016).

Images made worse [N, 3, H, W] in [-1, 1] -> as they were, of the same size. Paper 2, appendix C, removes
JPEG's artefacts from CelebA's pictures by "a convolutional autoencoder ... similar in structure" to it.
"""

from __future__ import annotations

from itertools import pairwise

from torch import Tensor, nn
from torch.nn import functional as F

from pgsr.errors import PgsrError

from .interfaces import Generator
from .srgan import convolution_of

SKIP_EVERY = 2  # layers


class REDNet(Generator):
    """An encoder of 3 x 3 layers and its mirror image; every second layer's maps are added in the mirror.

    The input is added at the end, so that the layers only learn what was lost, and the network starts near
    its input. Nothing is strided or pooled (section 3.1 there). A deconvolution of stride 1 is a convolution
    with its kernel turned by 180 degrees, so it is one here.
    """

    def __init__(
        self,
        scale: int = 1,  # super-resolution's option: of the output to the input
        features: int = 64,
        layers: int = 15,  # of the encoder, and of the decoder: RED30's
        convolution: str = "vanilla",
    ) -> None:
        super().__init__()
        if scale != 1:
            raise PgsrError(f"scale {scale} is not 1: rednet gives images of their own size")
        self.scale = scale
        widths = [3] + [features] * layers
        self.encoder = nn.ModuleList(convolution_of(convolution, a, b, 3) for a, b in pairwise(widths))
        self.decoder = nn.ModuleList(convolution_of(convolution, b, a, 3) for a, b in pairwise(widths))[::-1]
        for parameter in self.decoder[-1].parameters():
            nn.init.zeros_(parameter) if parameter.dim() == 1 else parameter.data.mul_(0.1)

    def forward(self, x: Tensor) -> Tensor:
        maps = [x]  # before each layer of the encoder, the input first
        for layer in self.encoder:
            maps.append(F.relu(layer(maps[-1])))
        y = maps.pop()
        for place, layer in zip(reversed(range(len(maps))), self.decoder, strict=True):
            y = layer(y)
            if place % SKIP_EVERY == 0:
                y = y + maps[place]
            if place:
                y = F.relu(y)
        return y
