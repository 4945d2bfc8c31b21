"""What the tests of pgsr-upscale share: a small upscaler, pictures, and the command."""

from __future__ import annotations

import io
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from click.testing import CliRunner, Result
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from PIL import Image

import bundles as tiny
from pgsr import bundle as contract
from pgsr.bundle import Port
from pgsr.files import sha256
from pgsr.runtime.upscale.cli import main
from pgsr.runtime.upscale.upscaler import Upscaler

SCALE, MAPS, LAYERS = 2, 5, 4


def write_upscaler(folder: Path, side: int = 0, layers: int = LAYERS) -> Path:
    """A bundle with an upscaler of five convolutions, whose reach is 5; for pictures of one side, if any.
    `layers` are those before the last."""
    tiny.write_bundle(folder)
    draw = np.random.default_rng(0)
    nodes, constants, last = [], {}, "images"
    maps = [3, *[MAPS] * layers, 3 * SCALE**2]
    shapes = list(zip(maps[1:], maps[:-1], strict=True))
    for i, (outputs, inputs) in enumerate(shapes):
        weight = draw.standard_normal((outputs, inputs, 3, 3)) / np.sqrt(4.5 * inputs)
        constants[f"w{i}"] = weight.astype(np.float32)
        nodes.append(helper.make_node("Conv", [last, f"w{i}"], [f"c{i}"], pads=[1, 1, 1, 1]))
        last = f"c{i}"
        if i < layers:
            nodes.append(helper.make_node("LeakyRelu", [last], [f"a{i}"], alpha=0.2))
            last = f"a{i}"
    nodes.append(helper.make_node("DepthToSpace", [last], ["upscaled"], blocksize=SCALE, mode="CRD"))
    sides = [side, side] if side else ["height", "width"]
    larger = [side * SCALE, side * SCALE] if side else ["taller", "wider"]
    graph = helper.make_graph(
        nodes,
        "upscaler",
        [helper.make_tensor_value_info("images", TensorProto.FLOAT, ["n", 3, *sides])],
        [helper.make_tensor_value_info("upscaled", TensorProto.FLOAT, ["n", 3, *larger])],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    onnx.save(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10),
        folder / "upscaler.onnx",
    )
    bundle = contract.read(folder)
    upscaler = replace(
        bundle.graphs[0],
        name="upscaler",
        file="upscaler.onnx",
        sha256=sha256(folder / "upscaler.onnx"),
        inputs=(Port("images", ("n", 3, *sides), "float32", "[-1, 1]"),),
        outputs=(Port("upscaled", ("n", 3, *larger), "float32", "[-1, 1]"),),
    )
    contract.write(replace(bundle, scale=SCALE, graphs=(upscaler,)))
    return folder


def opened(model: Path | None, **options: Any) -> Upscaler:
    return Upscaler(model, **{"device": "cpu", "backend": "onnxruntime", "threads": 1, **options})


def picture(height: int = 40, width: int = 30) -> NDArray[np.uint8]:
    """Something smooth with edges in it."""
    y, x = np.mgrid[0:height, 0:width] / 40
    made = np.stack([x, y, np.sin(9 * x * y) ** 2], axis=-1)
    made[height // 3 : height // 2, width // 4 : width // 2] = 1 - made[0, 0]
    return (np.clip(made, 0, 1) * 255).astype(np.uint8)


def file_of(made: Image.Image, format: str = "PNG", **options: Any) -> bytes:
    buffer = io.BytesIO()
    made.save(buffer, format=format, **options)
    return buffer.getvalue()


def command(model: Path, *arguments: Any, stdin: bytes = b"") -> Result:
    options = ["--model", model, "--device", "cpu", "--backend", "onnxruntime", "--threads", 1]
    return CliRunner().invoke(main, [str(a) for a in (*arguments, *options)], input=stdin)


def made_by(model: Path, *arguments: Any) -> dict[str, Any]:
    result = command(model, *arguments, "--json")
    assert result.exit_code == 0, result.output
    return dict(json.loads(result.stdout))


def upscaled(model: Path, folder: Path, data: bytes, name: str, *options: Any) -> Image.Image:
    """What becomes of a file."""
    (folder / name).write_bytes(data)
    made_by(model, folder / name, "--out", folder / "out", *options)
    (path,) = (folder / "out").iterdir()
    found = Image.open(path)
    found.load()
    return found


def pixels(path: Path) -> NDArray[np.uint8]:
    with Image.open(path) as found:
        return np.asarray(found)
