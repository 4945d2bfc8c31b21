"""The last layers of a separable SRResNet by our kernel: the same pictures, where it fits alone."""

from __future__ import annotations

import sys
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch.nn import functional as F

from pgsr import bundle as contract
from pgsr import draws
from pgsr.benchmarks.throughput.systems import Widths, example
from pgsr.bundle import Bundle
from pgsr.export.bundle_builder import Choice, convert, plans
from pgsr.export.source import Source
from pgsr.networks import GENERATORS, build
from pgsr.runtime.backends import open_runner, tail

openvino = pytest.importorskip("openvino", reason="pip install 'pgsr[openvino]'")
kernel = pytest.importorskip(
    "pgsr.runtime.backends.tail_kernel", reason="pip install 'pgsr[kernels]'", exc_type=ImportError
)
if not kernel.usable(False):
    pytest.skip("this processor has no AVX-512", allow_module_level=True)

PRECISIONS = [
    "fp32",
    pytest.param("bf16", marks=pytest.mark.skipif(not kernel.usable(True), reason="no AVX-512 bf16 here")),
]
OURS = "last layers by our kernel"


def draw(seed: int, *shape: int) -> NDArray[np.float32]:
    return np.random.default_rng(seed).standard_normal(shape, dtype=np.float32)


def weights(maps: int, pixels: bool) -> tail.Weights:
    deep, point = draw(1, maps, 9, 9) / np.float32(9), draw(2, 3, maps) / np.float32(maps**0.5)
    return tail.Weights(0.25, deep, point, draw(3, 3), pixels)


def rounded(values: np.ndarray) -> np.ndarray:
    """To what bfloat16 can hold."""
    return (tail.to_bf16(values).astype(np.uint32) << 16).view(np.float32)


def expected(x: np.ndarray, w: tail.Weights) -> np.ndarray:
    """The same by PyTorch in float64, from maps that lie place by place: [N, H, W, 4 C] -> [N, 3, 2H, 2W]."""
    n, height, width, maps = x.shape
    places = torch.from_numpy(x).double().view(n, height, width, 2, 2, maps // 4)
    large = places.permute(0, 5, 1, 3, 2, 4).reshape(n, maps // 4, 2 * height, 2 * width)
    large = F.prelu(large, torch.tensor([w.slope], dtype=torch.float64))
    deep, point, bias = (torch.from_numpy(a).double() for a in (w.depthwise, w.pointwise, w.bias))
    large = F.conv2d(large, deep[:, None], padding=4, groups=maps // 4)
    return F.conv2d(large, point[:, :, None, None], bias).numpy()


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("pixels", [False, True])
@pytest.mark.parametrize(
    ("maps", "height", "width"),
    [(16, 1, 1), (16, 2, 16), (16, 9, 17), (32, 3, 33), (64, 5, 16)],  # strips are of 16 of these columns
)
def test_the_kernel_computes_the_layers(maps: int, height: int, width: int, pixels: bool, precision: str):
    bf16, w = precision == "bf16", weights(maps, pixels)
    x = draw(4, 2, height, width, 4 * maps)
    if bf16:  # what PReLU makes is rounded: powers of two as slopes keep that exact
        w = tail.Weights(w.slope, rounded(w.depthwise), w.pointwise, w.bias, pixels)
        x = rounded(x)
    last = tail.Tail(w, bf16, kernel.compiled(maps, bf16, pixels))
    made = last.run(tail.to_bf16(x).view(np.float16) if bf16 else x, last.buffers())
    wanted = expected(x, w)
    if not pixels:
        assert made.shape == wanted.shape
        assert np.abs(made - wanted).max() < 1e-5
        return
    scaled = (wanted.transpose(0, 2, 3, 1) + 1) * 127.5
    assert made.dtype == np.uint8
    assert np.abs(made - np.clip(scaled, 0, 255)).max() < 0.5 + 1e-3
    assert {0, 255} <= set(made.ravel().tolist()) or height == 1  # both ends were cut off


# ----------------------------------------------------------------------------
# In a graph.


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """A small chain to 16 x 16 as pgsr-export --target openvino writes it, and its upscaler in float32."""
    widths = Widths(4, latent_size=16, feature_base=64, feature_max=16, sr_blocks=1, sr_features=16)
    networks = {
        "generator": build(GENERATORS, widths.generator("separable"), seed=0),
        "upscaler": build(GENERATORS, widths.upscaler("separable"), seed=1),
    }
    sources = {
        "generator": Source(networks["generator"].eval(), "generator", 16, 4, 1, {}),
        "upscaler": Source(networks["upscaler"].eval(), "upscaler", 0, 0, 4, {}),
    }
    _, upscaler, chain = plans(sources)
    wanted = [(upscaler, "fp32"), (chain, "fp32"), *([(chain, "bf16")] if kernel.usable(True) else [])]
    made = [convert(plan, name, example(widths, plan, 2), Choice("openvino")) for plan, name in wanted]
    folder = tmp_path_factory.mktemp("tail")
    for one in made:
        (folder / one.graph.file).write_bytes(one.model)
    graphs = tuple(one.graph for one in made)
    contract.write(Bundle(folder, "tail", "0", 16, 4, 4, graphs=graphs, licence="random weights"))
    return contract.read(folder)


def made(
    model: Bundle, values: np.ndarray, backend: str = "openvino", **options: Any
) -> tuple[np.ndarray, str]:
    options = {"precision": "fp32", "graph": "chain", "threads": 1, **options}
    with open_runner(model, "cpu", backend=backend, **options) as runner:
        return runner.run(values), runner.provider


@pytest.mark.parametrize("precision", PRECISIONS)
def test_the_chain_ends_with_it(model: Bundle, precision: str):
    latents = draws.latents(5, range(5), 16)
    images, provider = made(model, latents, precision=precision)
    assert OURS in provider
    error = images.astype(int) - made(model, latents, "onnxruntime")[0]
    assert np.abs(error).max() <= (1 if precision == "fp32" else 4)


@pytest.mark.parametrize(("height", "width"), [(8, 8), (6, 23)])
def test_an_upscaler_of_any_size_ends_with_it(model: Bundle, height: int, width: int):
    small = np.tanh(draw(6, 2, 3, height, width))
    large, provider = made(model, small, graph="upscaler")
    assert OURS in provider
    wanted = made(model, small, "onnxruntime", graph="upscaler")[0]
    assert large.shape == wanted.shape == (2, 3, 4 * height, 4 * width)
    assert np.abs(large - wanted).max() < 1e-5


def test_bytes_do_not_depend_on_the_batch(model: Bundle):
    latents = draws.latents(7, range(9), 16)
    whole, _ = made(model, latents)
    for batch in (1, 2, 4):
        assert np.array_equal(made(model, latents, batch=batch)[0], whole)


def test_without_llvmlite_openvino_computes_all(model: Bundle, monkeypatch: pytest.MonkeyPatch):
    latents = draws.latents(8, range(3), 16)
    ours, provider = made(model, latents)
    monkeypatch.delitem(sys.modules, "pgsr.runtime.backends.tail_kernel")
    monkeypatch.delattr("pgsr.runtime.backends.tail_kernel")
    monkeypatch.setitem(sys.modules, "llvmlite", None)
    theirs, other = made(model, latents)
    assert OURS in provider
    assert OURS not in other
    assert np.abs(ours.astype(int) - theirs).max() <= 1


@pytest.mark.parametrize("change", ["maps", "side", "order", "slopes", "none"])
def test_a_graph_that_ends_otherwise_is_left_whole(change: str):
    """Each is what the kernel computes but for one thing."""
    ops = openvino.opset13
    maps = 8 if change == "maps" else 16
    side = 7 if change == "side" else 9
    mode = "depth_first" if change == "order" else "blocks_first"
    x = ops.parameter([1, 4 * maps, 4, 4], np.float32)
    large = ops.depth_to_space(ops.relu(x), mode, 2)
    slopes = draw(1, maps if change == "slopes" else 1)
    deep, point = draw(2, maps, 1, 1, side, side), draw(3, 3, maps, 1, 1)
    around = [side // 2] * 2
    y = ops.group_convolution(ops.prelu(large, slopes), deep, [1, 1], around, around, [1, 1])
    y = ops.add(ops.convolution(y, point, [1, 1], [0, 0], [0, 0], [1, 1]), draw(4, 1, 3, 1, 1))
    cut = tail.split(openvino, openvino.Model([y], [x], "end"), bf16=False)
    assert (cut is not None) == (change == "none")
