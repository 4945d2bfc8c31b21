"""A tiny real bundle, made with onnx, and the same network in numpy.

folder = write_bundle(tmp_path / "bundle")
faces = expected_pixels(latents)   # what the bundle's chain makes of them, computed without onnx
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from pgsr import bundle as bundles
from pgsr.bundle import Bundle, Graph, Port
from pgsr.files import sha256

LATENT = 8
MAPS = 6
SIZE = 8  # pixels a side
SLOPE = 0.2
OPSET = 20


def weights(seed: int = 0) -> dict[str, NDArray[np.float32]]:
    """All parameters, seeded; small enough that few pixels clip."""
    draw = np.random.default_rng(seed)
    shapes = {
        "dense_weight": (LATENT, MAPS * 16),
        "dense_bias": (MAPS * 16,),
        "conv_weight": (MAPS, MAPS, 3, 3),
        "conv_bias": (MAPS,),
        "rgb_weight": (3, MAPS, 1, 1),
        "rgb_bias": (3,),
    }
    return {name: (draw.standard_normal(shape) * 0.2).astype(np.float32) for name, shape in shapes.items()}


def chain_model(seed: int = 0) -> onnx.ModelProto:
    """Latents [N, 8] -> pixels uint8 [N, 8, 8, 3], with the nodes a real chain has."""
    constants = {
        **weights(seed),
        "shape": np.array([-1, MAPS, 4, 4], dtype=np.int64),
        "scales": np.array([1, 1, 2, 2], dtype=np.float32),
        "one": np.array(1, dtype=np.float32),
        "half_range": np.array(127.5, dtype=np.float32),
        "low": np.array(0, dtype=np.float32),
        "high": np.array(255, dtype=np.float32),
    }
    node = helper.make_node
    nearest = {"mode": "nearest", "coordinate_transformation_mode": "asymmetric", "nearest_mode": "floor"}
    nodes = [
        node("Gemm", ["latents", "dense_weight", "dense_bias"], ["dense"]),
        node("Reshape", ["dense", "shape"], ["maps"]),
        node("Resize", ["maps", "", "scales"], ["larger"], **nearest),
        node("Conv", ["larger", "conv_weight", "conv_bias"], ["conv"], pads=[1, 1, 1, 1]),
        node("LeakyRelu", ["conv"], ["active"], alpha=SLOPE),
        node("Conv", ["active", "rgb_weight", "rgb_bias"], ["rgb"]),
        node("Add", ["rgb", "one"], ["raised"]),
        node("Mul", ["raised", "half_range"], ["scaled"]),
        node("Round", ["scaled"], ["rounded"]),
        node("Clip", ["rounded", "low", "high"], ["clipped"]),
        node("Transpose", ["clipped"], ["last"], perm=[0, 2, 3, 1]),
        node("Cast", ["last"], ["pixels"], to=TensorProto.UINT8),
    ]
    graph = helper.make_graph(
        nodes,
        "chain",
        [helper.make_tensor_value_info("latents", TensorProto.FLOAT, ["N", LATENT])],
        [helper.make_tensor_value_info("pixels", TensorProto.UINT8, ["N", SIZE, SIZE, 3])],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],  # type: ignore[arg-type]
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=10)
    onnx.checker.check_model(model, full_check=True)
    return model


def write_bundle(folder: Path, seed: int = 0) -> Path:
    """A bundle with the chain alone, in fp32; gives back its folder."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "chain.onnx"
    onnx.save(chain_model(seed), path)
    chain = Graph(
        name="chain",
        precision="fp32",
        file=path.name,
        sha256=sha256(path),
        opset=OPSET,
        inputs=(Port("latents", ("N", LATENT), "float32", "standard normal"),),
        outputs=(Port("pixels", ("N", SIZE, SIZE, 3), "uint8", "[0, 255]"),),
        rewrites=(),
        multiply_adds=LATENT * MAPS * 16 + SIZE * SIZE * MAPS * (MAPS * 9 + 3),
        parity={},
    )
    bundles.write(
        Bundle(
            folder=folder,
            name="tiny",
            version="0",
            latent_size=LATENT,
            resolution=SIZE,
            scale=1,
            graphs=(chain,),
            licence="MIT",
        )
    )
    return folder


def add_generator(folder: Path, seed: int = 0) -> Path:
    """Puts the generator graph into a bundle that `write_bundle` wrote: the chain up to its float image."""
    model = chain_model(seed)
    names = [node.output[0] for node in model.graph.node]
    del model.graph.node[names.index("rgb") + 1 :]
    del model.graph.output[:]
    image = helper.make_tensor_value_info("rgb", TensorProto.FLOAT, ["N", 3, SIZE, SIZE])
    model.graph.output.append(image)
    path = folder / "generator.onnx"
    onnx.save(model, path)
    bundle = bundles.read(folder)
    port = Port("rgb", ("N", 3, SIZE, SIZE), "float32", "[-1, 1]")
    chain = bundle.graphs[0]
    generator = replace(chain, name="generator", file=path.name, sha256=sha256(path), outputs=(port,))
    bundles.write(replace(bundle, graphs=(generator, chain)))
    return folder


def add_upscaler(folder: Path) -> Path:
    """Puts an upscaler of scale 1 into a bundle: the mean of each pixel and its right neighbour."""
    weight = np.zeros((3, 3, 1, 2), dtype=np.float32)
    weight[range(3), range(3)] = 0.5
    shape: list[str | int | None] = ["N", 3, "height", "width"]
    graph = helper.make_graph(
        [helper.make_node("Conv", ["images", "weight"], ["upscaled"], auto_pad="SAME_UPPER")],
        "upscaler",
        [helper.make_tensor_value_info("images", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("upscaled", TensorProto.FLOAT, shape)],
        [numpy_helper.from_array(weight, "weight")],
    )
    path = folder / "upscaler.onnx"
    opset = helper.make_opsetid("", OPSET)
    onnx.save(helper.make_model(graph, opset_imports=[opset], ir_version=10), path)
    bundle = bundles.read(folder)
    ports = (Port(name, ("N", 3, "height", "width"), "float32", "[-1, 1]") for name in ("images", "upscaled"))
    source, result = ports
    upscaler = replace(
        bundle.graphs[0],
        name="upscaler",
        file=path.name,
        sha256=sha256(path),
        inputs=(source,),
        outputs=(result,),
    )
    bundles.write(replace(bundle, graphs=(*bundle.graphs, upscaler)))
    return folder


def expected_pixels(latents: NDArray[np.float32], seed: int = 0) -> NDArray[np.float64]:
    """The chain in float64, up to the rounding: [N, 8] -> [N, 8, 8, 3] in [0, 255]."""
    w = {name: value.astype(np.float64) for name, value in weights(seed).items()}
    maps = (latents.astype(np.float64) @ w["dense_weight"] + w["dense_bias"]).reshape(-1, MAPS, 4, 4)
    larger = maps.repeat(2, axis=2).repeat(2, axis=3)
    padded = np.pad(larger, ((0, 0), (0, 0), (1, 1), (1, 1)))
    conv = np.zeros_like(larger)
    for dy in range(3):
        for dx in range(3):
            seen = padded[:, :, dy : dy + SIZE, dx : dx + SIZE]
            conv += np.einsum("oi,nihw->nohw", w["conv_weight"][:, :, dy, dx], seen)
    conv += w["conv_bias"][:, None, None]
    active = np.where(conv > 0, conv, SLOPE * conv)
    rgb = np.einsum("oi,nihw->nhwo", w["rgb_weight"][:, :, 0, 0], active) + w["rgb_bias"]
    return np.clip((rgb + 1.0) * 127.5, 0.0, 255.0)
