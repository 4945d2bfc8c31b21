"""The networks, and the tables by which recipes name them.

To add one: write its module in a file here, with keyword arguments that have defaults, and enter it.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any, TypeVar

import torch
from torch import nn

from pgsr.errors import PgsrError, check_choice
from pgsr.schema import shortened

from .began import BEGANDiscriminator, BEGANGenerator
from .interfaces import Discriminator, Generator
from .metz import GrowingMetzDiscriminator, GrowingMetzGenerator, MetzDiscriminator, MetzGenerator
from .msggan import MSGGANDiscriminator, MSGGANGenerator
from .progan import ProGANDiscriminator, ProGANGenerator
from .projected import ProjectedDiscriminator
from .rednet import REDNet
from .sr_variants import (
    CNNDiscriminator,
    DCGANGenerator,
    DCGANUpscaler,
    MLPDiscriminator,
    MLPUpscaler,
    ResNetUpscaler,
)
from .srgan import CompactUpscaler, SRGANDiscriminator, SRResNet

GENERATORS: dict[str, type[Generator]] = {
    "progan": ProGANGenerator,  # latents -> images
    "srresnet": SRResNet,  # low-resolution images -> high
    "compact": CompactUpscaler,
    "rednet": REDNet,  # images made worse -> as they were
    "msggan": MSGGANGenerator,  # latents -> images of every resolution at once
    "began": BEGANGenerator,  # latents -> images of one size
    "metz": MetzGenerator,  # latents -> images of 28 x 28
    "metz-growing": GrowingMetzGenerator,
    "resnet-sr": ResNetUpscaler,
    "dcgan-sr": DCGANUpscaler,  # of images of one size
    "mlp-sr": MLPUpscaler,  # likewise
    "dcgan": DCGANGenerator,  # latents -> images of one size
}

DISCRIMINATORS: dict[str, type[Discriminator]] = {
    "progan": ProGANDiscriminator,
    "metz": MetzDiscriminator,
    "metz-growing": GrowingMetzDiscriminator,
    "srgan": SRGANDiscriminator,
    "msggan": MSGGANDiscriminator,
    "began": BEGANDiscriminator,
    "cnn": CNNDiscriminator,
    "mlp": MLPDiscriminator,
    "projected": ProjectedDiscriminator,  # on frozen pretrained features
}


Network = TypeVar("Network", bound=nn.Module)


LARGEST_OPTION = 2**20  # of channels or pixels
MOST_LAYERS = 2**10  # each of which takes time to make


def resolved(table: Mapping[str, type[nn.Module]], options: Mapping[str, Any]) -> dict[str, Any]:
    """`options` with every default filled in, `kind` first. Raises PgsrError for what is unknown."""
    values = dict(options)
    kind = values.pop("kind", None)
    if kind is None:
        raise PgsrError(f"a network needs a kind: one of {', '.join(map(repr, table))}")
    check_choice("kind", kind, table)
    parameters = inspect.signature(table[kind]).parameters
    for name, value in values.items():
        if name not in parameters:
            raise PgsrError(f"unknown option {name!r} of {kind!r}; it has {', '.join(parameters)}")
        expected = type(parameters[name].default)
        if expected is tuple and type(value) in (list, tuple) and all(type(v) is int for v in value):
            continue
        if type(value) is not expected:
            description = "a list of integers" if expected is tuple else expected.__name__
            found = shortened(repr(value))
            raise PgsrError(f"option {name} of {kind!r} is {found}, but must be {description}")
        if expected is int:
            least = min(1, parameters[name].default)  # 0 where it means that there are none
            most = MOST_LAYERS if name in ("blocks", "layers") else LARGEST_OPTION
            if not least <= value <= most:
                raise PgsrError(f"option {name} of {kind!r} is {value}, but must be from {least} to {most}")
    return {"kind": kind, **{name: _plain(values.get(name, p.default)) for name, p in parameters.items()}}


def _plain(value: Any) -> Any:
    """An option as JSON gives it back: a tuple is a list there."""
    return list(value) if isinstance(value, tuple) else value


def build(table: Mapping[str, type[Network]], options: Mapping[str, Any], seed: int = 0) -> Network:
    """A network with initial weights that are a function of `seed` alone."""
    arguments = resolved(table, options)
    kind = arguments.pop("kind")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return table[kind](**arguments)
