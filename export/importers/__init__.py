"""Weights of other projects -> sources that the rest of the export takes.

A file is read as data alone (contents.py) and recognised by the names of its tensors; each importer then
carries all of them over, or says which it cannot.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from pgsr.errors import PgsrError
from pgsr.files import sha256
from pgsr.networks.interfaces import Generator

from ..source import Source, with_one_label
from .contents import contents
from .imported import Imported
from .nvidia import nvidia
from .plain import Record
from .progan import akanimax, gan_zoo, rosinality
from .spandrel import spandrel
from .taking import shortened_list
from .upscalers import basicsr, lornatang

# Each takes what a file holds (and --label) and gives None if the layout is not its own. spandrel, which may
# have to be installed, comes last.
IMPORTERS: dict[str, Callable[[Any, int | None], Imported | None]] = {
    "pro_gan_pytorch and BMSG-GAN": lambda tree, label: akanimax(tree),
    "progressive-gan-pytorch": rosinality,
    "pytorch_GAN_zoo": lambda tree, label: gan_zoo(tree),
    "progressive_growing_of_gans": lambda tree, label: nvidia(tree),
    "SRGAN-PyTorch": lambda tree, label: lornatang(tree),
    "MSRResNet": lambda tree, label: basicsr(tree),
    "spandrel": lambda tree, label: spandrel(tree),
}


def import_file(path: Path, label: int | None = None) -> Imported:
    """A file's network, converted. Raises PgsrError, which names the file, if no importer can."""
    tree = contents(path)
    try:
        names = _names(tree)
        if not names:
            raise PgsrError("it holds no tensors that have names")
        if any(name.startswith("generator_ema.") for name in names):
            raise PgsrError("it is a checkpoint of pgsr: name it without --from")
        for importer in IMPORTERS.values():
            result = importer(tree, label)
            if result is not None:
                return result
    except PgsrError as error:
        raise PgsrError(f"{path} cannot be imported: {error}") from error
    except (TypeError, ValueError, LookupError, AttributeError, OverflowError, RuntimeError) as error:
        raise PgsrError(
            f"{path} cannot be imported: its values are not what they should be ({error})"
        ) from error
    raise PgsrError(
        f"{path} cannot be imported: its {len(names)} tensors are of no layout that is known: "
        f"{shortened_list(names)}"
    )


def _names(tree: Any) -> list[str]:
    """Lists the names of the tensors and arrays in what a file holds, for messages."""
    names: list[str] = []
    ids: set[int] = set()

    def walk(value: Any, name: str) -> None:
        if isinstance(value, (Tensor, np.ndarray)):
            names.append(name)
        value = value.state if isinstance(value, Record) else value
        if not isinstance(value, (Mapping, list, tuple)) or id(value) in ids:
            return
        ids.add(id(value))
        pairs = value.items() if isinstance(value, Mapping) else enumerate(value)
        for key, inner in pairs:
            walk(inner, f"{name}.{key}" if name else str(key))

    walk(tree, "")
    return names


def read_foreign(path: Path, label: int | None = None) -> Source:
    """A file of another project as a source.

    `label` is for a generator conditioned on labels: the one it shall draw.
    Raises PgsrError if the file cannot be read as data alone, is of no known layout, or does not fit it.
    """
    result = import_file(path, label)
    try:
        network = result.network()
        draws_faces = result.latent_size > 0
        if draws_faces and not result.takes_label:
            assert isinstance(network, Generator)
            network = with_one_label(network, result.labels, label, path)
    except PgsrError as error:
        raise PgsrError(f"{path} cannot be imported: {error}") from error
    return Source(
        network=network.eval().requires_grad_(False),
        kind="generator" if draws_faces else "upscaler",
        latent_size=result.latent_size,
        resolution=result.grown_resolution,
        scale=result.scale,
        provenance={
            "imported": {"layout": result.peer, "file": path.name, "sha256": sha256(path)},
            "recipe": {"generator": dict(result.options)},
            **({"label": label} if label is not None and draws_faces else {}),
        },
    )
