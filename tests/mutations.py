"""Valid files, changed at random but the same way each time, and commands that are to say one line of each.

    python tests/mutations.py manifests 500 0

A process of its own, since libraries that a file brings down take the process with them. For each case it
prints the case before it begins, and what was wrong with it behind.
"""

from __future__ import annotations

import copy
import faulthandler
import json
import os
import random
import resource
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from click.testing import CliRunner
from PIL import Image

import bundles as tiny
from pgsr.bundle import MANIFEST
from pgsr.files import sha256
from pgsr.runtime.generate.cli import main as generate
from pgsr.runtime.upscale.cli import main as upscale

SECONDS = 60  # that a case may take
MEMORY = 6 * 2**30  # bytes of addresses: who asks for more gets a MemoryError

ODD: list[Any] = [
    *(None, True, False, 0, 1, -1, 2, 3, 7, 64, 10**9, 2**31, 2**63, 2**64, -(2**63), 10**400),
    *(0.5, 1e308, float("nan"), float("inf"), "", "0", "chain", "fp32", "n" * 100_000, "\0", "\ud800"),
    *("../x", "/dev/zero", "a b\nc", [], {}, [None], [[]], {"": 0}, ["n", 8], [0, 0], ["n", 10**9]),
]


def odd(draw: random.Random) -> Any:
    if draw.random() < 0.05:
        value: Any = draw.choice(ODD)
        for _ in range(draw.choice([3, 60, 500])):
            value = [value] if draw.random() < 0.5 else {"x": value}
        return value
    return copy.deepcopy(draw.choice(ODD))


def places(value: Any) -> Iterator[tuple[Any, Any]]:
    """Every list or object in a value with every one of its keys."""
    if isinstance(value, dict | list):
        for key in list(value) if isinstance(value, dict) else range(len(value)):
            yield value, key
            yield from places(value[key])


def changed_json(data: Any, draw: random.Random) -> Any:
    """A value in whose tree something is replaced, removed, doubled, renamed or exchanged."""
    data = copy.deepcopy(data)
    for _ in range(draw.choice([1, 1, 1, 2, 5])):
        every = list(places(data))
        if not every:
            return odd(draw)
        holder, key = draw.choice(every)
        match draw.randrange(6):
            case 0 | 1 | 2:
                holder[key] = odd(draw)
            case 3:
                del holder[key]
            case 4 if isinstance(holder, list):
                holder.insert(draw.randrange(len(holder) + 1), copy.deepcopy(holder[key]))
            case 4:
                holder[draw.choice(["x", "", "name", "shape"])] = holder.pop(key)
            case _:
                other, its = draw.choice(every)
                holder[key] = copy.deepcopy(other[its]) if its in keys(other) else None
    return data


def keys(holder: Any) -> Any:
    return holder if isinstance(holder, dict) else range(len(holder))


def changed_bytes(data: bytes, draw: random.Random, near: int = 0) -> bytes:
    """Bytes of which some are flipped, put in, cut out or repeated; within the first `near`, usually."""
    result = bytearray(data)
    for _ in range(draw.choice([1, 1, 2, 8, 40])):
        end = min(near, len(result)) if near and draw.random() < 0.8 else len(result)
        if not result:
            break
        place = draw.randrange(max(1, end))
        match draw.randrange(6):
            case 0 | 1:
                result[place] = draw.randrange(256)
            case 2:
                result[place] ^= 1 << draw.randrange(8)
            case 3:
                result[place:place] = draw.randbytes(draw.choice([1, 4, 100]))
            case 4:
                del result[place : place + draw.choice([1, 4, 100, 10**6])]
            case _:
                result[place:place] = result[place : place + draw.choice([1, 16, 1000])]
    return bytes(result)


# ----------------------------------------------------------------------------
# Cases: what is changed, and the commands that read it.

Arguments = tuple[Any, list[str]]


class Bench:
    """Valid files, and a copy of them to change."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.valid = tiny.add_upscaler(tiny.add_generator(tiny.write_bundle(folder / "valid")))
        self.work = folder / "work"

    def fresh(self) -> Path:
        """A copy of the bundle in an empty folder, where the case runs."""
        shutil.rmtree(self.work, ignore_errors=True)
        self.work.mkdir()
        os.chdir(self.work)
        return Path(shutil.copytree(self.valid, self.work / "b"))

    def generating(self, draw: random.Random) -> Arguments:
        """One of the commands that read a bundle."""
        ways: list[Arguments] = [
            (generate, ["--count", "3", "--out", "f"]),
            (generate, ["--count", "3", "--out", "f.tar", "--truncation", "0.5"]),
            (generate, ["--count", "3", "--out", "f", "--save-latents", "--precision", "fp16"]),
            (generate, ["--label", "0", "--count", "1", "--out", "f"]),
            (generate, ["grid", "2x2", "p.png"]),
            (generate, ["--count", "3", "--dry-run"]),
            (generate, ["video", "f.webp", "--seconds", "0.1"]),
            (upscale, ["face.png", "--out", "larger.png"]),
        ]
        return self.with_model(*draw.choice(ways))

    def with_model(self, main: Any, arguments: list[str]) -> Arguments:
        if main is upscale:
            Image.new("RGB", (9, 7), (200, 90, 40)).save(self.work / "face.png")
        return main, [*arguments, "--model", "b", "--backend", "onnxruntime", "--threads", "1"]


def manifests(bench: Bench, draw: random.Random) -> Arguments:
    path = bench.fresh() / MANIFEST
    text = path.read_text()
    if draw.random() < 0.75:
        path.write_bytes(json.dumps(changed_json(json.loads(text), draw)).encode("utf-8", "surrogatepass"))
    else:
        path.write_bytes(changed_bytes(text.encode(), draw))
    return bench.generating(draw)


def latents(bench: Bench, draw: random.Random) -> Arguments:
    bench.fresh()
    np.save("z.npy", np.ones((3, tiny.LATENT), draw.choice(["<f4", "<f8", ">f2"])))
    data = Path("z.npy").read_bytes()
    if draw.random() < 0.3:
        shape = repr(draw.choice([odd(draw), (odd(draw), odd(draw)), (3, odd(draw))])).encode(
            "latin1", "replace"
        )
        data = data.replace(b"(3, 8)", shape[:9000])
    Path("z.npy").write_bytes(changed_bytes(data, draw, near=128))
    ways = [["--out", "f"], ["grid", "2x2", "p.png"], ["--out", "f.zip"], ["--out", "f", "--dry-run"]]
    return bench.with_model(generate, [*draw.choice(ways), "--from-latents", "z.npy"])


def graphs(bench: Bench, draw: random.Random, backend: str = "onnxruntime") -> Arguments:
    """Damaged networks whose hash is right."""
    folder = bench.fresh()
    manifest = folder / MANIFEST
    data = json.loads(manifest.read_text())
    entry = next(graph for graph in data["graphs"] if graph["name"] == "chain")
    path = folder / entry["file"]
    if draw.random() < 0.5:
        path.write_bytes(changed_bytes(path.read_bytes(), draw))
    else:
        path.write_bytes(changed_model(onnx.load(path), draw))
    entry["sha256"] = sha256(path)
    manifest.write_text(json.dumps(data))
    return generate, ["--count", "3", "--out", "f", "--model", "b", "--backend", backend, "--threads", "1"]


def graphs_in_openvino(bench: Bench, draw: random.Random) -> Arguments:
    return graphs(bench, draw, "openvino")


def changed_model(model: onnx.ModelProto, draw: random.Random) -> bytes:
    """A network whose nodes, weights or ports are others, in a file that is whole."""
    graph = model.graph
    for _ in range(draw.choice([1, 1, 2])):
        node = draw.choice(graph.node)
        weight = draw.choice(graph.initializer)
        match draw.randrange(8):
            case 0:
                node.op_type = draw.choice(["Conv", "Loop", "Nothing", "Cast", "Gemm", ""])
            case 1:
                graph.node.remove(node)
            case 2 if node.input:
                node.input[draw.randrange(len(node.input))] = draw.choice(["latents", "rgb", "nowhere", ""])
            case 3:
                weight.dims[:] = [draw.choice([0, -1, 1, 3, 2**31, 2**62]) for _ in range(draw.randrange(5))]
            case 4:
                weight.raw_data = weight.raw_data[: draw.randrange(len(weight.raw_data) + 1)]
            case 5:
                weight.data_type = draw.randrange(30)
            case 6:
                port = draw.choice([*graph.input, *graph.output])
                port.name = draw.choice(["x", "", "latents"])
            case _:
                port = draw.choice([*graph.input, *graph.output])
                dims = port.type.tensor_type.shape.dim
                dims[draw.randrange(len(dims))].dim_value = draw.choice([0, -1, 1, 5, 2**40])
    return bytes(model.SerializeToString())


def folders(bench: Bench, draw: random.Random) -> Arguments:
    """Folders and archives of faces that were made before, and damaged since."""
    bench.fresh()
    out = draw.choice(["f", "f.tar", "f.zip"])
    command = bench.with_model(generate, ["--count", "3", "--out", out])
    result = CliRunner().invoke(*command)
    assert result.exit_code == 0, result.output
    path = Path(out) if "." in out else Path(out) / draw.choice(["manifest.json", "000001.png", "sheet.png"])
    data = path.read_bytes()
    if path.name == "manifest.json" and draw.random() < 0.75:
        data = json.dumps(changed_json(json.loads(data), draw)).encode("utf-8", "surrogatepass")
    else:
        data = changed_bytes(data, draw)
    if "." in out and draw.random() < 0.5:
        path.unlink()
        path = path.with_name(f".partial.{path.name}")
    path.write_bytes(data)
    main, arguments = command
    return main, [*arguments, *draw.choice([[], ["--dry-run"]])]


KINDS: dict[str, Callable[[Bench, random.Random], Arguments]] = {
    "manifests": manifests,
    "latents": latents,
    "graphs": graphs,
    "graphs-in-openvino": graphs_in_openvino,
    "folders": folders,
}


# ----------------------------------------------------------------------------
# Running them.


def fault(arguments: Arguments) -> str:
    """What is wrong with how a command answers; "" if it made something or says one line."""
    with tempfile.TemporaryFile() as told:  # by libraries, past Python
        kept = os.dup(2)
        os.dup2(told.fileno(), 2)
        try:
            result = CliRunner().invoke(*arguments)
        finally:
            os.dup2(kept, 2)
            os.close(kept)
        told.seek(0)
        said = told.read().decode(errors="replace")
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        return f"{type(result.exception).__name__}: {str(result.exception)[:300]}"
    if said:
        return f"a library says {said[:300]}"
    if result.exit_code == 0:
        return ""
    if result.exit_code != 1 or not result.stderr.startswith("error: ") or result.stderr.count("\n") != 1:
        return f"exit code {result.exit_code} with {result.stderr[:300]!r}"
    return f"a line of {len(result.stderr)} letters" if len(result.stderr) > 2000 else ""


# OpenVINO itself crashes on some graphs that are damaged though their hashes are right: an input that a node
# lacks is not looked for. It is an error only if many do.
APART = {
    "graphs-in-openvino": 0.05
}  # kinds whose cases have processes of their own; the share that may crash
CRASHED = "the library crashed"


def apart(arguments: Arguments) -> str:
    """`fault` in a process of its own."""
    reader, writer = os.pipe()
    process = os.fork()
    if process == 0:
        os.write(writer, fault(arguments).encode(errors="replace"))
        os._exit(0)
    os.close(writer)
    with open(reader, "rb") as pipe:
        wrong = pipe.read().decode()
    _, status = os.waitpid(process, 0)
    return CRASHED if os.WIFSIGNALED(status) else wrong


def run(kind: str, count: int, seed: int) -> int:
    """Runs so many cases; returns how many were answered wrongly."""
    faults = crashes = 0
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(Path(folder).resolve())
        resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
        for number in range(seed, seed + count):
            print(f"case {kind} {number}", flush=True)
            faulthandler.dump_traceback_later(SECONDS, exit=True)
            arguments = KINDS[kind](bench, random.Random(f"{kind} {number}"))
            wrong = apart(arguments) if kind in APART else fault(arguments)
            faulthandler.cancel_dump_traceback_later()
            crashes += wrong == CRASHED
            faults += wrong not in ("", CRASHED)
            if wrong:
                print(f"  {wrong}", flush=True)
        os.chdir("/")
    return faults + (crashes > count * APART.get(kind, 0))


if __name__ == "__main__":
    sys.exit(min(1, run(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))))
