"""What an importer makes of a file."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from pgsr.errors import PgsrError
from pgsr.networks import GENERATORS, build, resolved


@dataclass(frozen=True)
class Hints:
    """What the user says of a file that it may not say itself."""

    label: int | None = None  # the one to draw, of a generator conditioned on labels
    equalized: bool | None = None  # whether its layers have equalized learning rate


NO_HINTS = Hints()


@dataclass(frozen=True)
class Imported:
    """A network of another project, converted but not yet built."""

    peer: str  # whose layout the file has
    make: Callable[[], nn.Module]  # the network with initial weights
    state: Mapping[str, Tensor]  # its weights, in float64
    options: Mapping[str, Any]  # that describe it
    latent_size: int = 0  # 0 of an upscaler
    labels: int = 0  # classes of the condition, one-hot behind the latent
    grown_resolution: int = 0  # of a generator
    scale: int = 1  # of an upscaler
    takes_label: bool = False  # whether --label was used up in the conversion
    takes_equalized: bool = False  # whether --equalized may say what the file does not
    multiple: int = 1  # of an upscaler: what the sides of its images have to be divisible by
    least: int = 1  # and how long they have to be
    notes: tuple[str, ...] = ()  # what was decided that the user may want to decide otherwise

    @staticmethod
    def of_network(
        peer: str,
        options: Mapping[str, Any],
        state: Mapping[str, Tensor],
        grown_resolution: int = 0,
        **others: Any,
    ) -> Imported:
        """A network of this package, by the options that a recipe would give it."""
        full = resolved(GENERATORS, options)
        return Imported(
            peer=peer,
            make=lambda: build(GENERATORS, full),
            state=state,
            options=full,
            latent_size=full.get("latent_size", 0),
            labels=full.get("labels", 0),
            grown_resolution=grown_resolution,
            scale=full.get("scale", 1),
            **others,
        )

    def network(self, dtype: torch.dtype = torch.float32) -> nn.Module:
        """Built, with its weights rounded once to `dtype`, in eval mode.

        Raises PgsrError if weights do not fit, or one is not finite.
        """
        broken = [name for name, tensor in self.state.items() if not torch.isfinite(tensor).all()]
        if broken:
            raise PgsrError(f"{broken[0]} holds numbers that are not finite: the file is damaged")
        network = self.make().to(dtype)
        try:
            network.load_state_dict(dict(self.state))
        except RuntimeError as error:
            raise PgsrError(f"the weights do not make a network: {error}") from error
        return network.eval().requires_grad_(False)
