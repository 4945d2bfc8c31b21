"""odegeasslbc/Progressive-GAN-pytorch: ProGAN that enlarges bilinearly, which is a network of its own here.

A transposed convolution makes 4 x 4 of the latent, which is not normalised. Normalisation stands between
convolution and activation, and is left out of all but the first layer where the training program was not told
otherwise; slopes are 0.1. There is no RGB layer at 4 x 4. Whether a tanh follows is not in the file.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from itertools import pairwise
from typing import Any

from torch import Tensor, nn

from pgsr.networks.interfaces import Generator

from ..lowering import PixelNorm
from .imported import NO_HINTS, Hints, Imported
from .progan import he
from .taking import Taker, unwrapped

ODEGEASSLBC = "odegeasslbc/Progressive-GAN-pytorch"
SLOPE = 0.1
NO_TANH = "it ends without tanh, as its training program does unless it is told --tanh"


class BilinearGenerator(Generator):
    """Latents [N, latent_size] -> images [N, 3, resolution, resolution] around [-1, 1]."""

    def __init__(
        self,
        latent_size: int,
        maps: Sequence[int],  # at 4, 8, ...
        normalized: bool,  # behind the convolutions of every block
    ) -> None:
        super().__init__()
        self.resolutions = [8 << i for i in range(len(maps) - 1)]
        convolution = nn.ConvTranspose2d(latent_size, maps[0], 4)
        self.first = nn.Sequential(nn.Unflatten(1, (latent_size, 1, 1)), convolution, *_after(True))
        self.blocks = nn.ModuleList(_block(a, b, normalized) for a, b in pairwise([maps[0], *maps]))
        self.to_rgb = nn.ModuleList(nn.Conv2d(m, 3, 1) for m in maps[1:])

    def forward(self, z: Tensor, resolution: int | None = None) -> Tensor:
        level = self.resolutions.index(resolution or self.resolutions[-1])
        x = self.blocks[0](self.first(z))
        for block in self.blocks[1 : level + 2]:
            larger = nn.functional.interpolate(x, scale_factor=2.0, mode="bilinear", align_corners=False)
            x = block(larger)
        image: Tensor = self.to_rgb[level](x)
        return image

    def at(self, resolution: int, alpha: float) -> Callable[[Tensor], Tensor]:
        """The generator at one resolution; it is exported only where that is fully grown."""
        assert alpha == 1.0
        return partial(self, resolution=resolution)


def _after(normalized: bool) -> list[nn.Module]:
    return [*([PixelNorm()] if normalized else []), nn.LeakyReLU(SLOPE)]


def _block(inputs: int, outputs: int, normalized: bool) -> nn.Sequential:
    layers = [nn.Conv2d(inputs, outputs, 3, padding=1), *_after(normalized)]
    return nn.Sequential(*layers, nn.Conv2d(outputs, outputs, 3, padding=1), *_after(normalized))


def odegeasslbc(tree: Any, hints: Hints = NO_HINTS) -> Imported | None:
    """Imports the generator; None if the tree holds none."""
    tensors = unwrapped(tree)
    if not {"input_layer.0.conv.weight_orig", "progression_4.conv.0.conv.weight_orig"} <= set(tensors):
        return None
    taker = Taker(ODEGEASSLBC, tensors)
    state: dict[str, Tensor] = {}

    def layer(there: str, here: str, *shape: int | None) -> Tensor:
        weight = taker.take(f"{there}.conv.weight_orig", *shape)
        state[f"{here}.weight"] = weight * he(weight, True)
        state[f"{here}.bias"] = taker.take(f"{there}.conv.bias", None)
        return weight

    weight = layer("input_layer.0", "first.1", None, None, 4, 4)  # [in, out, 4, 4]
    latent_size, maps = weight.shape[0], [weight.shape[1]]
    second = 3 if "progression_4.conv.3.conv.weight_orig" in taker else 2  # behind a norm, or not
    side = 4
    while f"progression_{side}.conv.0.conv.weight_orig" in taker:
        at = side.bit_length() - 3
        wide = layer(f"progression_{side}.conv.0", f"blocks.{at}.0", None, maps[-1], 3, 3).shape[0]
        layer(f"progression_{side}.conv.{second}", f"blocks.{at}.{second}", wide, wide, 3, 3)
        if side > 4:
            layer(f"to_rgb_{side}", f"to_rgb.{at - 1}", 3, wide, 1, 1)
        maps, side = [*maps, wide], 2 * side
    taker.finish()
    options = {"latent_size": latent_size, "maps": maps[1:], "normalized": second == 3}
    return Imported(
        peer=ODEGEASSLBC,
        make=lambda: BilinearGenerator(latent_size, maps[1:], second == 3),
        state=state,
        options={"kind": "bilinear-progan", **options},
        latent_size=latent_size,
        grown_resolution=side // 2,
        notes=(NO_TANH,),
    )
