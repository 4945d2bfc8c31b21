"""Bundles (contract 2): a folder with manifest.json and the graphs it describes. No torch, no onnx.

bundle = bundle.read(folder)
path = bundle.path(bundle.graph("chain", "fp32"))   # checked against its sha256
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pgsr.errors import PgsrError
from pgsr.files import sha256, write_text

SCHEMA = 1
MANIFEST = "manifest.json"

# The graphs a bundle may hold.
#   generator: latents float32 [N, L] -> images float32 [N, 3, R, R] in [-1, 1]
#   upscaler:  images float32 [N, 3, H, W] in [-1, 1] -> the same, `scale` times as large
#   chain:     latents float32 [N, L] -> pixels uint8 [N, S, S, 3]
GRAPHS = ("generator", "upscaler", "chain")
PRECISIONS = ("fp32", "fp16", "bf16", "int8")


@dataclass(frozen=True)
class Port:
    """An input or output of a graph."""

    name: str
    shape: tuple[int | str, ...]  # a string is a dynamic dimension
    dtype: str  # numpy's name
    range: str  # what the values mean: "standard normal", "[-1, 1]", "[0, 255]"


@dataclass(frozen=True)
class Graph:
    """One graph file and what is known of it."""

    name: str  # one of GRAPHS
    precision: str  # one of PRECISIONS: of the arithmetic inside; inputs and outputs are the same for all
    file: str  # beside the manifest
    sha256: str
    opset: int
    inputs: tuple[Port, ...]
    outputs: tuple[Port, ...]
    rewrites: tuple[str, ...]  # exact algebra applied, by name
    multiply_adds: int  # of one image
    parity: Mapping[str, Any]  # measured against torch float32: {"samples", "max_abs", ...}


@dataclass(frozen=True)
class Bundle:
    """A read manifest and where it lies."""

    folder: Path
    name: str
    version: str  # of the pgsr that wrote it
    latent_size: int  # 0 in a bundle that holds an upscaler alone
    resolution: int  # of the generator's images
    scale: int  # of the upscaler; 1 without one
    graphs: tuple[Graph, ...]
    licence: str
    provenance: Mapping[str, Any] = field(default_factory=dict)

    def graph(self, name: str, precision: str = "fp32") -> Graph:
        """Raises PgsrError if the bundle does not hold it."""
        for graph in self.graphs:
            if (graph.name, graph.precision) == (name, precision):
                return graph
        names = ", ".join(f"{g.name} {g.precision}" for g in self.graphs)
        raise PgsrError(f"{self.folder} holds no {name} graph in {precision}; it holds {names}")

    def path(self, graph: Graph) -> Path:
        """The graph's file, checked. Raises PgsrError if it is absent or is not what was exported."""
        path = self.folder / graph.file
        if not path.is_file():
            raise PgsrError(f"{path} is missing: export the bundle again")
        if sha256(path) != graph.sha256:
            raise PgsrError(f"{path} does not match the hash in its manifest: export the bundle again")
        return path


def shipped() -> Path:
    """The folder of the bundle that comes with the package."""
    return Path(__file__).parent / "models" / "faces"


def write(bundle: Bundle) -> None:
    """Writes manifest.json into the bundle's folder; the graphs lie there already."""
    data = {"schema": SCHEMA, **dataclasses.asdict(bundle)}
    del data["folder"]
    write_text(bundle.folder / MANIFEST, json.dumps(data, indent=1, sort_keys=True) + "\n")


def read(folder: Path) -> Bundle:
    """Raises PgsrError if there is no manifest, or it is damaged or of another schema."""
    path = folder / MANIFEST
    try:
        data = json.loads(path.read_text())
    except OSError as error:
        raise PgsrError(f"no bundle in {folder}: {path} cannot be read ({error.strerror})") from error
    except ValueError as error:
        raise PgsrError(f"{path} is damaged: {error}") from error
    if not isinstance(data, dict) or data.get("schema") != SCHEMA:
        raise PgsrError(f"{path} is not of bundle schema {SCHEMA}: export the bundle again")
    try:
        graphs = tuple(_graph(entry) for entry in data["graphs"])
        names = {f.name for f in dataclasses.fields(Bundle)} - {"folder", "graphs"}
        return Bundle(folder=folder, graphs=graphs, **{name: data[name] for name in names})
    except (KeyError, TypeError, ValueError) as error:
        raise PgsrError(f"{path} is damaged: {error!r}; export the bundle again") from error


def _graph(entry: Mapping[str, Any]) -> Graph:
    """One graph of the manifest; a file outside the bundle's folder is refused."""
    if Path(entry["file"]).name != entry["file"]:
        raise ValueError(f"graph file {entry['file']!r} is not a plain name")
    ports = {side: tuple(_port(port) for port in entry[side]) for side in ("inputs", "outputs")}
    return Graph(**{**entry, **ports, "rewrites": tuple(entry["rewrites"])})


def _port(entry: Mapping[str, Any]) -> Port:
    return Port(**{**entry, "shape": tuple(entry["shape"])})
