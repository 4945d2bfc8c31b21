"""What a worker of a cluster opens, and bundles on their way to nodes that do not have them."""

from __future__ import annotations

import contextlib
import secrets
from collections.abc import Callable
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

from pgsr import bundle as bundles
from pgsr.crew import Hiring
from pgsr.errors import PgsrError, check_choice
from pgsr.files import writable_cache

from .backends import BACKENDS, Settings


@dataclass(frozen=True)
class Machinery(Hiring):
    """What a worker opens. Raises PgsrError for what no node could do."""

    precision: str = "fp32"
    backend: str = "auto"
    batch: int = 0
    tile: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_choice("backend", self.backend, ("auto", *BACKENDS))
        Settings(self.device, self.threads, self.batch or 1)


# ----------------------------------------------------------------------------
# A bundle on its way to nodes that do not have it.


def manifest_hash(folder: Path) -> str | None:
    """Returns the hash of a bundle's manifest, which holds those of its graphs; None if there is none."""
    with contextlib.suppress(OSError):
        return sha256((folder / bundles.MANIFEST).read_bytes()).hexdigest()
    return None


@dataclass(frozen=True)
class Model:
    """A bundle by its manifest's hash, and where to find it."""

    hash: str
    folder: Path  # on the driver's machine, and on those that share it
    files: Any = None  # a reference to {name: contents}; None for the bundle that comes with the package

    def here(self, get: Callable[[Any], dict[str, bytes]]) -> Path:
        """Returns its folder on this machine. Raises PgsrError if it is not to be had."""
        for folder in (bundles.shipped(), self.folder):
            if manifest_hash(folder) == self.hash:
                return folder
        kept = writable_cache("bundles") / self.hash[:32]
        if manifest_hash(kept) == self.hash:
            return kept
        if self.files is None:
            raise PgsrError("this node has another version of pgsr, with another model: install the same one")
        beside = kept.with_name(f".{kept.name}.{secrets.token_hex(4)}")
        beside.mkdir()
        for name, data in get(self.files).items():
            (beside / name).write_bytes(data)
        try:
            beside.rename(kept)
        except OSError:  # another worker of this node was faster
            for path in beside.iterdir():
                path.unlink()
            beside.rmdir()
        return kept


def model_of(
    folder: Path | None, graph: str, precision: str, put: Callable[[dict[str, bytes]], Any]
) -> Model:
    """A bundle to be sent. Raises PgsrError if there is none in the folder, or not in that precision."""
    place = bundles.shipped() if folder is None else folder.absolute()
    bundles.read(place).graph(graph, precision)
    digest = manifest_hash(place)
    assert digest is not None
    if folder is None:
        return Model(digest, place)
    files = {path.name: path.read_bytes() for path in sorted(place.iterdir()) if path.is_file()}
    return Model(digest, place, put(files))
