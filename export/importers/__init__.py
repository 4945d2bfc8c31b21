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
from .bilinear import odegeasslbc
from .contents import contents, is_ours
from .imported import Hints, Imported
from .nvidia import nvidia
from .plain import Record
from .ports import genforce, mmgeneration
from .progan import akanimax, gan_zoo, rosinality
from .spandrel import spandrel
from .srgans import eriklindernoren, leftthomas, sgrvinod
from .taking import candidates, shortened_list
from .upscalers import basicsr, lornatang

# Each takes what a file holds, or may hold as a network's tensors, and gives None if the layout is not its
# own. spandrel, which may have to be installed, comes last.
IMPORTERS: dict[str, Callable[[Any, Hints], Imported | None]] = {
    "pro_gan_pytorch and BMSG-GAN": akanimax,
    "progressive-gan-pytorch": rosinality,
    "pytorch_GAN_zoo": gan_zoo,
    "progressive_growing_of_gans": nvidia,
    "genforce": genforce,
    "mmgeneration": mmgeneration,
    "Progressive-GAN-pytorch": odegeasslbc,
    "SRGAN-PyTorch": lornatang,
    "MSRResNet": basicsr,
    "leftthomas's SRGAN": leftthomas,
    "a-PyTorch-Tutorial-to-Super-Resolution": sgrvinod,
    "PyTorch-GAN": eriklindernoren,
    "spandrel": spandrel,
}


def import_file(path: Path, label: int | None = None, equalized: bool | None = None) -> Imported:
    """A file's network, converted. `equalized` says whether its layers have equalized learning rate, where
    the file does not. Raises PgsrError, which names the file, if no importer can.
    """
    if is_ours(path):
        raise PgsrError(f"{path} is a checkpoint of pgsr: pgsr-export takes it as it is, without --from")
    tree = contents(path)
    try:
        names = _names(tree)
        if not names:
            raise PgsrError("it holds no tensors that have names")
        result = _recognised(tree, Hints(label, equalized))
        if result is None:
            raise PgsrError(
                f"its {len(names)} tensors are of no layout that is known: {shortened_list(names)}; known "
                f"are those of {', '.join(IMPORTERS)} (docs/importers.md)"
            )
        if equalized is not None and not result.takes_equalized:
            raise PgsrError(f"of {result.peer}'s layers it is known: leave --equalized out")
        return result
    except PgsrError as error:
        raise PgsrError(f"{path} cannot be imported: {error}") from error
    except (TypeError, ValueError, LookupError, AttributeError, OverflowError, RuntimeError) as error:
        raise PgsrError(
            f"{path} cannot be imported: its values are not what they should be ({error})"
        ) from error


def _recognised(tree: Any, hints: Hints) -> Imported | None:
    """Returns what the first importer that knows it makes of the tree or of something that it holds."""
    found = list(candidates(tree))
    for importer in IMPORTERS.values():
        for candidate in found:
            result = importer(candidate, hints)
            if result is not None:
                return result
    return None


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


def read_foreign(path: Path, label: int | None = None, equalized: bool | None = None) -> Source:
    """A file of another project as a source.

    `label` is for a generator conditioned on labels: the one it shall draw. `equalized` is as in
    `import_file`.
    Raises PgsrError if the file cannot be read as data alone, is of no known layout, or does not fit it.
    """
    result = import_file(path, label, equalized)
    try:
        network = result.network()
        draws_faces = result.latent_size > 0
        if draws_faces and not result.takes_label:
            assert isinstance(network, Generator)
            network = with_one_label(network, result.labels, label, path)
    except PgsrError as error:
        raise PgsrError(f"{path} cannot be imported: {error}") from error
    except RuntimeError as error:
        raise PgsrError(f"{path} cannot be imported: its weights are no numbers ({error})") from error
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
            **({"notes": list(result.notes)} if result.notes else {}),
        },
        multiple=result.multiple,
        least=result.least,
        notes=tuple(f"{path.name}: {note}" for note in result.notes),
    )
