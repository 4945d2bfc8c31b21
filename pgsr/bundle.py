"""Bundles (contract 2): a folder with manifest.json and the graphs it describes. No torch, no onnx.

bundle = bundle.read(folder)
path = bundle.path(bundle.graph("chain", "fp32"))   # checked against its sha256
"""

from __future__ import annotations

import dataclasses
import json
import math
import mmap
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pgsr.errors import PgsrError
from pgsr.files import open_regular, sha256, write_text
from pgsr.schema import (
    Mismatch,
    check,
    document,
    either,
    items,
    one_of,
    parsed_json,
    real,
    record,
    text,
    whole,
)

SCHEMA = 1
CHAINED = 2  # the schema of bundles with several upscalers, of which pgsr 0.1 knows nothing
MANIFEST = "manifest.json"


MOST_UPSCALERS = 8


def upscaler_name(place: int) -> str:
    """The graph of the upscaler at a place of the chain, from 0: upscaler, upscaler-2, upscaler-3."""
    return "upscaler" if place == 0 else f"upscaler-{place + 1}"


# The graphs a bundle may hold.
#   generator: latents float32 [N, L] -> images float32 [N, 3, R, R] in [-1, 1]
#   upscaler:  images float32 [N, 3, H, W] in [-1, 1] -> the same, as many times as large as its scale says
#   chain:     latents float32 [N, L] -> pixels uint8 [N, S, S, 3]
UPSCALERS = tuple(map(upscaler_name, range(MOST_UPSCALERS)))
GRAPHS = ("generator", *UPSCALERS, "chain")
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
    activation_bytes: int = 0  # of one image, at most, that the arithmetic has to hold; 0 if nobody counted


@dataclass(frozen=True)
class Bundle:
    """A read manifest and where it lies."""

    folder: Path
    name: str
    version: str  # of the pgsr that wrote it
    latent_size: int  # 0 in a bundle that holds an upscaler alone
    resolution: int  # of the generator's images
    scale: int  # of all upscalers together; 1 without one
    graphs: tuple[Graph, ...]
    licence: str
    provenance: Mapping[str, Any] = field(default_factory=dict)
    scales: tuple[int, ...] = ()  # of each upscaler in its order, where there are several
    truncation: float = 1.0  # 0 to 1, unless a user says another: the share of the variety that is kept
    centre: tuple[float, ...] = ()  # [L], where truncation turns latents; empty: runtimes find it

    @property
    def upscaler_scales(self) -> tuple[int, ...]:
        """Returns the scale of each upscaler, in their order."""
        alone = (self.scale,) if any(graph.name == "upscaler" for graph in self.graphs) else ()
        return self.scales or alone

    @property
    def size(self) -> int:
        """Pixels along each side of what the chain makes."""
        return self.resolution * self.scale

    def side_before(self, place: int) -> int:
        """Pixels along each side of the images that come to the upscaler at a place of the chain, from 0."""
        return self.resolution * math.prod(self.upscaler_scales[:place])

    def graph(self, name: str, precision: str = "fp32") -> Graph:
        """Raises PgsrError if the bundle does not hold it."""
        for graph in self.graphs:
            if (graph.name, graph.precision) == (name, precision):
                return graph
        names = ", ".join(f"{g.name} {g.precision}" for g in self.graphs)
        raise PgsrError(f"{self.folder} holds no {name} graph in {precision}; it holds {names}")

    def path(self, graph: Graph) -> Path:
        """The graph's file, checked. Raises PgsrError if it is absent or is not what was exported, or if it
        would read other files, which no hash vouches for."""
        path = self.folder / graph.file
        if not path.is_file():
            raise PgsrError(f"{path} is missing: export the bundle again")
        if sha256(path) != graph.sha256:
            raise PgsrError(f"{path} does not match the hash in its manifest: export the bundle again")
        if _reads_other_files(path):
            raise PgsrError(
                f"{path} keeps weights or engines in other files, for which its hash does not vouch: save it "
                "as one file (onnx.save with save_as_external_data=False) and export the bundle again"
            )
        return path


# A tensor whose weights are in another file holds an entry whose key, field 1 of onnx.proto's
# StringStringEntryProto, is "location"; protobuf lets a field's tag and length be longer than they need be.
KEY = b"location"
FIELD = re.compile(rb"(\x0a|\x8a\x80{0,8}\x00)(\x08|\x88\x80{0,8}\x00)\Z")
LONGEST_FIELD = 20  # bytes of a tag and a length
CONTEXT = b"EPContext"  # a node that may name an engine's file (ONNX Runtime's docs, "EP context cache")


def _reads_other_files(path: Path) -> bool:
    if not path.stat().st_size:
        return False
    with open_regular(path) as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        if data.find(CONTEXT) >= 0:
            return True
        place = data.find(KEY)
        while place >= 0:
            if FIELD.search(data[max(0, place - LONGEST_FIELD) : place]):
                return True
            place = data.find(KEY, place + 1)
    return False


def shipped() -> Path:
    """The folder of the bundle that comes with the package."""
    return Path(__file__).parent / "models" / "faces"


def write(bundle: Bundle) -> None:
    """Writes manifest.json into the bundle's folder; the graphs lie there already.

    Raises PgsrError, and writes nothing, if `read` would not take it: a name with a control character, say.
    """
    data = {"schema": CHAINED if bundle.scales else SCHEMA, **dataclasses.asdict(bundle)}
    del data["folder"]
    for name in [name for name in ("scales", "centre") if not data[name]]:
        del data[name]
    if bundle.truncation == 1.0:
        del data["truncation"]
    manifest = json.dumps(data, indent=1, sort_keys=True) + "\n"
    try:
        check(parsed_json(manifest.encode()), BUNDLE)
        _check(bundle)
    except ValueError as error:
        raise PgsrError(f"no bundle can be written: {error}") from error
    write_text(bundle.folder / MANIFEST, manifest)


def read(folder: Path) -> Bundle:
    """Reads a bundle's manifest, whole and before anything is computed.

    Raises PgsrError if there is none, or it is damaged, of another schema, or contradicts itself.
    """
    path = folder / MANIFEST
    if not path.exists():
        raise PgsrError(f"no bundle in {folder}: {path} is missing")
    data = document(path, BUNDLE, "manifest of a bundle", "export the bundle again")
    graphs = tuple(_graph(entry) for entry in data["graphs"])
    known = {f.name for f in dataclasses.fields(Bundle)} - {"folder", "graphs"}
    values = {name: data[name] for name in known if name in data}
    values["scales"] = tuple(data.get("scales", ())) if data["schema"] == CHAINED else ()
    values["centre"] = tuple(data.get("centre", ()))
    bundle = Bundle(folder=folder, graphs=graphs, **values)
    try:
        _check(bundle)
    except Mismatch as error:
        raise PgsrError(f"{path} contradicts itself ({error}): export the bundle again") from error
    return bundle


def _graph(entry: Mapping[str, Any]) -> Graph:
    ports = {side: tuple(_port(port) for port in entry[side]) for side in ("inputs", "outputs")}
    names = {f.name for f in dataclasses.fields(Graph)}
    values = {name: value for name, value in entry.items() if name in names}
    return Graph(**{**values, **ports, "rewrites": tuple(entry["rewrites"])})


def _port(entry: Mapping[str, Any]) -> Port:
    return Port(entry["name"], tuple(entry["shape"]), entry["dtype"], entry["range"])


# ----------------------------------------------------------------------------
# What a manifest must be. Bounds are far beyond what networks have, and far below what exhausts a machine.

WIDEST = 2**16  # latents' numbers, pictures' pixels a side
WORD = text(255)

PORT = record(
    {
        "name": text(255, r".+"),
        "shape": items(either(whole(1, WIDEST), text(64, r".+")), 2, 4),
        "dtype": one_of("float32", "uint8"),
        "range": WORD,
    }
)
GRAPH = record(
    {
        "name": one_of(*GRAPHS),
        "precision": one_of(*PRECISIONS),
        "file": text(200, r"[A-Za-z0-9][\w.-]*\.onnx"),  # a plain name, beside the manifest
        "sha256": text(64, r"[0-9a-f]{64}"),
        "opset": whole(1, 1000),
        "inputs": items(PORT, 1, 1),
        "outputs": items(PORT, 1, 1),
        "rewrites": items(WORD, 0, 100),
        "multiply_adds": whole(0, 2**63),
        "parity": record({}),
    },
    {"activation_bytes": whole(0, 2**50)},
)
SOURCE = record({}, {"label": either(whole(0, 2**31), one_of(None)), "recipe": record({})})
BUNDLE = record(
    {
        "schema": one_of(SCHEMA, CHAINED),
        "name": WORD,
        "version": WORD,
        "latent_size": whole(0, WIDEST),
        "resolution": whole(0, WIDEST),
        "scale": whole(1, 2**12),
        "graphs": items(GRAPH, 1, len(GRAPHS) * len(PRECISIONS)),
        "licence": text(2**16, lines=True),
        "provenance": record({}, dict.fromkeys(("generator", *UPSCALERS), SOURCE)),
    },
    {
        "scales": items(whole(1, 64), 2, MOST_UPSCALERS),
        "truncation": real(0, 1),
        "centre": items(real(-1e6, 1e6), 1, WIDEST),
    },
)


def _check(bundle: Bundle) -> None:
    """Raises Mismatch unless the graphs are of the sizes that the bundle is said to have, each there once."""
    _check_scales(bundle)
    _check_centre(bundle)
    names = [f"{graph.name} {graph.precision}" for graph in bundle.graphs]
    if len(set(names)) < len(names) or len({graph.file for graph in bundle.graphs}) < len(names):
        raise Mismatch("graphs", names, "each once, in a file of its own")
    for graph, name in zip(bundle.graphs, names, strict=True):
        (source,), (result,) = graph.inputs, graph.outputs
        for port, expected in zip((source, result), _ports_of(bundle, graph), strict=True):
            found = (port.dtype, *(ANY if isinstance(side, str) else side for side in port.shape))
            if found != expected:
                raise Mismatch(
                    f"{port.name} of {name}", list(found), f"{list(expected)}, as the bundle's sizes say"
                )


def _check_scales(bundle: Bundle) -> None:
    """Raises Mismatch unless there are as many upscalers as scales, which together are the bundle's."""
    held = [name for name in UPSCALERS if any(graph.name == name for graph in bundle.graphs)]
    count = len(bundle.upscaler_scales)
    if held != list(UPSCALERS[:count]):
        raise Mismatch("upscalers", held, f"{count} of them, as the scales say")
    if bundle.scales and math.prod(bundle.scales) != bundle.scale:
        raise Mismatch("scale", bundle.scale, f"{math.prod(bundle.scales)}, the product of the scales")
    if bundle.size > WIDEST:
        raise Mismatch("resolution * scale", bundle.size, f"at most {WIDEST}")


def _check_centre(bundle: Bundle) -> None:
    """Raises Mismatch unless the centre is a direction among the latents."""
    if bundle.centre and len(bundle.centre) != bundle.latent_size:
        raise Mismatch("centre", f"{len(bundle.centre)} numbers", f"{bundle.latent_size}, as a latent has")
    if bundle.truncation < 1.0 and not bundle.centre:
        raise Mismatch("centre", "nothing", "a direction, as a truncation needs")
    if bundle.centre and not any(bundle.centre):
        raise Mismatch("centre", "all zero", "a direction")


ANY = "any"  # a dynamic dimension, whatever it is called


def _ports_of(bundle: Bundle, graph: Graph) -> tuple[tuple[str | int, ...], tuple[str | int, ...]]:
    """The types and shapes of a graph's input and output, by the bundle's sizes."""
    latents = ("float32", ANY, bundle.latent_size)
    images = ("float32", ANY, 3, bundle.resolution, bundle.resolution)
    if graph.name == "generator":
        return latents, images
    if graph.name == "chain":
        return latents, ("uint8", ANY, bundle.size, bundle.size, 3)
    scale = bundle.upscaler_scales[UPSCALERS.index(graph.name)]
    sides = graph.inputs[0].shape[2:]
    if len(sides) != 2 or any(isinstance(side, str) for side in sides):
        return ("float32", ANY, 3, ANY, ANY), ("float32", ANY, 3, ANY, ANY)
    larger = (side * scale for side in sides if isinstance(side, int))
    return ("float32", ANY, 3, *sides), ("float32", ANY, 3, *larger)
