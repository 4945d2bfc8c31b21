"""Precisions: every graph is what its name says, near float32 PyTorch, clean and readable everywhere."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from click.testing import CliRunner
from onnx import TensorProto, numpy_helper
from onnx.reference import ReferenceEvaluator
from torch import nn

from pgsr import bundle, draws
from pgsr.checkpoint import Checkpoint, save
from pgsr.errors import PgsrError
from pgsr.export import bundle_builder as build
from pgsr.export import int8 as quantize
from pgsr.export import parity
from pgsr.export.cli import main
from pgsr.export.graphs import Chain
from pgsr.export.lowering import DividingNorm, NormBehind, PixelNorm
from pgsr.export.onnx_file import finished, to_onnx
from pgsr.export.rewrites.table import choose_rewrites, rewritten
from pgsr.networks import GENERATORS, resolved
from pgsr.networks import build as build_network
from pgsr.runtime.backends.openvino import one_core

OPTIONS = {"kind": "progan", "resolution": 8, "latent_size": 12, "feature_base": 128, "feature_max": 16}
PRECISIONS = ("fp32", "fp16", "bf16", "int8")


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    network = build_network(GENERATORS, OPTIONS, 3)
    generator = torch.Generator().manual_seed(5)
    for name, tensor in network.state_dict().items():
        if name.endswith("bias"):
            tensor.normal_(0, 0.1, generator=generator)
    path = tmp_path_factory.mktemp("run") / "generator.safetensors"
    tensors = {f"generator_ema.{k}": v for k, v in network.state_dict().items()}
    progress = {"images_shown": 1234, "step": 10, "grown_resolution": 8}
    options = {"generator": resolved(GENERATORS, OPTIONS)}
    save(path, Checkpoint(tensors, options, progress, {"version": "test", "data": {"fingerprint": "f"}}))
    return path


@pytest.fixture(scope="module")
def exported(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> bundle.Bundle:
    """What the command makes in every precision; of the graphs the chain alone, to save time."""
    out = tmp_path_factory.mktemp("bundle") / "small"
    flags = ["--fp16", "--bf16", "--int8", "--samples", "64", "--licence", "for tests", "--json"]
    with pytest.MonkeyPatch.context() as patch:
        only_the_chain(patch)
        result = CliRunner().invoke(main, [str(checkpoint), "--out", str(out), *flags])
    assert result.exit_code == 0, result.output
    assert [g["precision"] for g in json.loads(result.stdout)["graphs"]] == list(PRECISIONS)
    return bundle.read(out)


def test_every_precision_is_the_same_bytes_again(
    checkpoint: Path, exported: bundle.Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """In another process's place: another folder, torch's generator elsewhere."""
    only_the_chain(monkeypatch)
    torch.manual_seed(99)
    flags = [
        "--fp16",
        "--bf16",
        "--int8",
        "--samples",
        "64",
        "--licence",
        "for tests",
        "--name",
        exported.name,
    ]
    result = CliRunner().invoke(main, [str(checkpoint), "--out", str(tmp_path / "other"), *flags])
    assert result.exit_code == 0, result.output
    again = bundle.read(tmp_path / "other")
    for precision in PRECISIONS:
        one, other = (b.path(b.graph("chain", precision)).read_bytes() for b in (exported, again))
        assert one == other, precision


def only_the_chain(patch: pytest.MonkeyPatch) -> None:
    whole = build.plans
    patch.setattr(build, "plans", lambda sources: [p for p in whole(sources) if p.name == "chain"])


def loaded(found: bundle.Bundle, precision: str, name: str = "chain") -> onnx.ModelProto:
    return onnx.load(found.path(found.graph(name, precision)))


# ----------------------------------------------------------------------------
# What is in the graphs.


@pytest.mark.parametrize(
    ("precision", "kind"),
    [
        ("fp32", TensorProto.FLOAT),
        ("fp16", TensorProto.FLOAT16),
        ("bf16", TensorProto.BFLOAT16),
        ("int8", TensorProto.INT8),
    ],
)
def test_weights_are_of_the_precision(exported: bundle.Bundle, precision: str, kind: int):
    """Of every convolution and matrix product; of int8, of those that were not kept."""
    graph = loaded(exported, precision).graph
    weights = {t.name: t for t in graph.initializer}
    made_of = {n.output[0]: n.input[0] for n in graph.node if n.op_type == "DequantizeLinear"}
    layers = [n for n in graph.node if n.op_type in ("Conv", "Gemm")]
    kinds = [weights[made_of.get(n.input[1], n.input[1])].data_type for n in layers]
    kept = len(exported.graph("chain", precision).parity.get("kept_in_fp32", ()))
    assert kinds.count(kind) == len(layers) - kept
    assert len(layers) - kept >= len(layers) // 2


def test_parity_is_measured_on_64_and_within_the_limits(exported: bundle.Bundle):
    for graph in exported.graphs:
        assert graph.parity["samples"] == 64
        assert {"max_steps", "mean_steps"} <= set(graph.parity)
        assert graph.parity["psnr_db"] >= parity.LIMITS_DB[graph.precision]
    found = [exported.graph("chain", p).parity["psnr_db"] for p in PRECISIONS]
    assert found == sorted(found, reverse=True)


@pytest.mark.parametrize("precision", ["fp16", "int8"])
def test_parity_of_the_manifest_is_that_of_the_file(
    exported: bundle.Bundle, checkpoint: Path, precision: str
):
    """By the reference evaluator, on other latents: no better than a few dB and no worse."""
    from pgsr.export.source import read_source

    z = draws.latents(77, range(16), 12)
    with torch.no_grad():
        images = read_source(checkpoint).network(torch.from_numpy(z)).numpy()
    expected = np.rint(np.clip((images + 1) * 127.5, 0, 255)).transpose(0, 2, 3, 1)
    made = ReferenceEvaluator(loaded(exported, precision)).run(None, {"latents": z})[0]
    measured = exported.graph("chain", precision).parity["psnr_db"]
    assert abs(parity.compare(expected, made).psnr_db - measured) < 6


# ----------------------------------------------------------------------------
# The black image of half precision, judged by what really computes in half.


class Loud(nn.Module):
    """Values as they come in, normalised: their squares may be infinite in half."""

    def __init__(self) -> None:
        super().__init__()
        self.tail = nn.Sequential(nn.Unflatten(1, (8, 1, 1)), PixelNorm(), nn.Conv2d(8, 3, 1))
        nn.init.constant_(self.tail[2].get_parameter("weight"), 0.1)

    def forward(self, z: torch.Tensor) -> torch.Tensor:
        return self.tail(z)


def test_exported_half_survives_huge_activations():
    network = Loud().eval()
    z = np.abs(draws.latents(2, range(4), 8)) + 0.5
    made, applied = rewritten(network, choose_rewrites(precision="fp16"))
    assert applied == ("divide-in-norm",)
    half = Chain([made], "fp16", pixels=True)
    model = onnx.load_from_string(to_onnx(half, torch.from_numpy(z), "latents", "pixels", {0: "n"}))
    for size in (1e-2, 1.0, 300.0, 15000.0):
        x = np.float32(size) * z
        reference = parity.torch_function(Chain([network], "fp32", pixels=True))(x).astype(int)
        assert np.ptp(reference) > 0
        for pixels in (
            ReferenceEvaluator(model).run(None, {"latents": x})[0],  # half in half
            parity.torch_function(half)(x),  # PyTorch's own half on the CPU
            parity.stored_function(half, torch.float16)(x),
        ):
            assert np.abs(pixels.astype(int) - reference).max() <= 1


def test_a_norm_of_squares_in_half_draws_one_colour():
    """That the judges above see it: the same network with its squares in half."""

    class Trap(PixelNorm):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x * torch.rsqrt(x.square().mean(dim=1, keepdim=True) + 1e-8)

    network = Loud().eval()
    network.tail[1] = Trap()
    half = Chain([network], "fp16", pixels=True)
    x = 15000 * (np.abs(draws.latents(2, range(4), 8)) + np.float32(0.5))
    for pixels in (parity.torch_function(half)(x), parity.stored_function(half, torch.float16)(x)):
        assert all(np.ptp(pixels[..., i]) == 0 for i in range(3))


def test_a_norm_behind_the_rgb_layer_would_overflow_in_half():
    """Why half leaves that rewrite out: W x is infinite before it is divided."""
    layer = nn.Conv2d(8, 3, 1)
    nn.init.constant_(layer.weight, 1.0)
    x = torch.full((1, 8, 2, 2), 20000.0)
    behind = NormBehind(layer)
    assert torch.isfinite(behind(x)).all()
    with parity.Storage(torch.float16):
        assert not torch.isfinite(behind.half()(x.half())).all()


def test_a_pixel_of_zeros_stays_finite_in_the_graph():
    """The exporter takes a scalar of 1e-8 for 0 and leaves its sum out; then 0 / 0 comes."""
    norms = [PixelNorm(), nn.ReLU(), DividingNorm()]
    network = nn.Sequential(nn.Unflatten(1, (8, 1, 1)), nn.ReLU(), *norms, nn.Conv2d(8, 3, 1))
    z = -np.ones((2, 8), np.float32)
    model = to_onnx(Chain([network], "fp32", False), torch.from_numpy(z), "latents", "images", {0: "n"})
    images = parity.session_of(model)(z)
    assert np.isfinite(images).all()
    assert np.allclose(images[0, :, 0, 0], network[5].bias.detach().numpy())


# ----------------------------------------------------------------------------
# int8.


def test_int8_is_symmetric_by_map_and_keeps_biases(exported: bundle.Bundle):
    graph = loaded(exported, "int8").graph
    values = {t.name: onnx.numpy_helper.to_array(t) for t in graph.initializer}
    made_of = {n.output[0]: n for n in graph.node if n.op_type == "DequantizeLinear"}
    quantized = [n for n in graph.node if n.op_type in ("Conv", "Gemm") and n.input[1] in made_of]
    assert quantized
    for node in quantized:
        weight = made_of[node.input[1]]
        scales = values[weight.input[1]]
        assert len(scales) > 1  # one a map
        if len(node.input) > 2:
            assert len(scales) == len(values[node.input[2]])
            assert values[node.input[2]].dtype == np.float32  # the bias
        assert (values[weight.input[2]] == 0).all()
    for node in graph.node:
        if node.op_type == "QuantizeLinear":
            assert values[node.input[2]] == 0
            assert values[node.input[2]].dtype == np.int8


def separable_model(dtype: type) -> onnx.ModelProto:
    """Depthwise 3 x 3 with maps of very different sizes, then pointwise."""
    draw = np.random.default_rng(1)
    value, kind = onnx.helper.make_tensor_value_info, onnx.helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    sizes = np.geomspace(0.01, 30, 6).reshape(6, 1, 1, 1)
    inits = {
        "deep.w": (draw.standard_normal((6, 1, 3, 3)) * sizes).astype(dtype),
        "deep.b": (draw.standard_normal(6) * sizes.ravel()).astype(dtype),
        "point.w": (draw.standard_normal((5, 6, 1, 1)) / sizes.reshape(1, 6, 1, 1)).astype(dtype),
    }
    nodes = [
        onnx.helper.make_node(
            "Conv", ["latents", "deep.w", "deep.b"], ["a"], name="deep", group=6, pads=[1, 1, 1, 1]
        ),
        onnx.helper.make_node("Conv", ["a", "point.w"], ["images"], name="point"),
    ]
    ports = [[value("latents", kind, ["n", 6, 4, 4])], [value("images", kind, ["n", 5, 4, 4])]]
    tensors = [onnx.numpy_helper.from_array(v, k) for k, v in inits.items()]
    graph = onnx.helper.make_graph(nodes, "g", *ports, tensors)  # type: ignore[arg-type, call-arg]
    return onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 20)], ir_version=10)


def test_balancing_separable_halves_is_exact():
    model = separable_model(np.float64)
    x = np.random.default_rng(0).standard_normal((2, 6, 4, 4))
    factor = np.geomspace(0.03, 7, 6)
    made = ReferenceEvaluator(quantize.divided(model, [factor])).run(None, {"latents": x})[0]
    assert np.abs(made - ReferenceEvaluator(model).run(None, {"latents": x})[0]).max() <= 1e-12


def test_balancing_separable_halves_helps_int8():
    model = separable_model(np.float32)
    x = np.random.default_rng(0).standard_normal((4, 6, 4, 4)).astype(np.float32)
    even, found = quantize.balanced(model, x)
    assert found
    exact = ReferenceEvaluator(model).run(None, {"latents": x})[0]

    def noise(changed: onnx.ModelProto) -> float:
        """Of the pointwise layer's output, with what it reads in int8."""
        scale = quantize.activation_scales(changed, x)["a"]
        middle = quantize._values(changed, ["a"], x)["a"]
        weight = onnx.numpy_helper.to_array(changed.graph.initializer[2])[:, :, 0, 0]
        made = np.einsum("oi,nihw->nohw", weight, quantize.rounded(middle, scale))
        return float(np.square(made - exact).mean())

    assert noise(even) < noise(model) / 4


def test_a_scale_errs_least_and_need_not_reach_the_largest():
    values = np.append(np.random.default_rng(0).standard_normal(20_000), 40).astype(np.float32)
    step = quantize.best_scale(values, 40)

    def error(step: float) -> float:
        return float(np.square(np.clip(np.round(values / step), -127, 127) * step - values).mean())

    assert error(step) < min(error(step * 0.95), error(step * 1.05), error(40 / 127))
    even = np.linspace(-1, 1, 1001, dtype=np.float32)
    assert quantize.best_scale(even, 1.0) == pytest.approx(1 / 127)


def test_layers_by_what_they_cost():
    """Of as many pixels; a layer that halves them comes first whatever its weights."""
    proto = separable_model(np.float32)
    x = np.zeros((1, 6, 4, 4), np.float32)
    assert quantize.smallest_first(proto, x) == ["point", "deep"]  # 5 * 6 and 6 * 9, at 4 x 4
    wide = np.zeros((50, 6, 1, 1), np.float32)  # 300 weights, at 2 x 2
    proto.graph.initializer[2].CopyFrom(onnx.numpy_helper.from_array(wide, "point.w"))
    assert quantize.smallest_first(proto, x) == ["deep", "point"]
    proto.graph.node[1].attribute.append(onnx.helper.make_attribute("strides", [2, 2]))
    assert quantize.smallest_first(proto, x) == ["point", "deep"]


@pytest.mark.parametrize("first", range(8))
def test_the_fewest_that_are_enough(first: int):
    asked: list[int] = []

    def enough(count: int) -> bool:
        asked.append(count)
        return count >= first

    assert quantize.fewest(enough, 6) == min(first, 6)
    assert len(asked) <= 3


def test_as_few_layers_are_kept_as_the_aim_needs(exported: bundle.Bundle):
    model = exported.path(exported.graph("chain")).read_bytes()
    z = draws.latents(10, range(8), 12)
    proto = onnx.load_from_string(model)
    expected = parity.session_of(model)(z)

    def decibels(count: int) -> float:
        scales = quantize.activation_scales(proto, z)
        layers = quantize.smallest_first(proto, z[:1])[:count]
        made = quantize.with_scales(proto, scales, z[:1], layers, "")
        return parity.compare(expected, parity.session_of(made)(z)).psnr_db

    aim = decibels(3)
    assert decibels(2) < aim
    made, _, kept = quantize.quantized(model, z, False, "", aim)
    assert kept == quantize.smallest_first(proto, z[:1])[:3]
    assert parity.compare(expected, parity.session_of(made)(z)).psnr_db == aim


def test_a_graph_of_one_layer_that_reads_the_input():
    """As DCGANs are to the quantizer, which leaves transposed convolutions alone."""
    model = separable_model(np.float32)
    del model.graph.node[1]
    shape = ["n", 6, 4, 4]
    output = onnx.helper.make_tensor_value_info("a", TensorProto.FLOAT, shape)
    model.graph.output[0].CopyFrom(output)
    x = np.random.default_rng(0).standard_normal((4, 6, 4, 4)).astype(np.float32)
    made, _, kept = quantize.quantized(model.SerializeToString(), x, True, "")
    assert kept == []
    types = {n.op_type for n in onnx.load_from_string(made).graph.node}
    assert types == {"QuantizeLinear", "DequantizeLinear", "Conv"}


def test_an_aim_beyond_reach_keeps_all_but_one(exported: bundle.Bundle):
    model = exported.path(exported.graph("chain")).read_bytes()
    kept = quantize.quantized(model, draws.latents(10, range(2), 12), False, "", 1000.0)[2]
    layers = [n for n in onnx.load_from_string(model).graph.node if n.op_type in quantize.OPERATIONS]
    assert len(kept) == len(layers) - 1


@pytest.mark.parametrize("precision", PRECISIONS)
def test_what_is_too_far_off_is_refused(precision: str):
    limit = parity.LIMITS_DB[precision]
    parity.require(parity.Parity(64, 1.0, 0.1, limit), precision, "chain")
    with pytest.raises(PgsrError, match=f"in {precision} does not match its network"):
        parity.require(parity.Parity(64, 1.0, 0.1, limit - 0.1), precision, "chain")


def test_widened_is_the_same_graph_in_float32(exported: bundle.Bundle):
    path = exported.path(exported.graph("chain", "bf16"))
    z = draws.latents(3, range(4), 12)
    wide = parity.session_of(parity.widened(path.read_bytes()))(z)
    exact = parity.session_of(exported.path(exported.graph("chain")).read_bytes())(z)
    assert 35 < parity.compare(exact, wide).psnr_db < 80  # the weights are rounded, the arithmetic is not


# ----------------------------------------------------------------------------
# Hygiene.


@pytest.mark.parametrize("precision", PRECISIONS)
def test_graphs_are_clean(exported: bundle.Bundle, precision: str):
    graph = exported.graph("chain", precision)
    model = loaded(exported, precision)
    onnx.checker.check_model(model, full_check=True)
    assert [(o.domain, o.version) for o in model.opset_import] == [("", graph.opset)]
    assert "for tests" in model.doc_string
    assert "1234 images shown" in model.doc_string
    used = {name for node in model.graph.node for name in node.input} | {v.name for v in model.graph.output}
    for node in model.graph.node:
        assert used.intersection(node.output), f"{node.name} is dead"
        assert node.doc_string == ""
    assert {t.name for t in model.graph.initializer} <= used
    names = [node.name for node in model.graph.node]
    assert names == [f"{node.op_type.lower()}_{i}" for i, node in enumerate(model.graph.node)]


def test_dead_nodes_and_constants_go():
    value = onnx.helper.make_tensor_value_info
    nodes = [
        onnx.helper.make_node("Relu", ["x"], ["y"], name="anything", doc_string="/home/user/code.py"),
        onnx.helper.make_node("Add", ["x", "c"], ["nobody reads this"]),
    ]
    ports = [[value(name, TensorProto.FLOAT, ["n"])] for name in ("x", "y")]
    graph = onnx.helper.make_graph(
        nodes, "g", *ports, [onnx.numpy_helper.from_array(np.ones(1, np.float32), "c")]
    )
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 20)], ir_version=10)
    clean = onnx.load_from_string(finished(model, "note"))
    assert [node.name for node in clean.graph.node] == ["relu_0"]
    assert not clean.graph.initializer
    assert b"/home" not in clean.SerializeToString()


WITHOUT_VNNI = """
import sys
import numpy as np
import openvino
core = openvino.Core()
core.set_property("CPU", {"INFERENCE_NUM_THREADS": 1})
compiled = core.compile_model(core.read_model(sys.argv[1]), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
np.save(sys.argv[3], compiled([np.load(sys.argv[2])])[0])
"""


@pytest.mark.parametrize("precision", PRECISIONS)
def test_openvino_reads_it(exported: bundle.Bundle, precision: str):
    openvino = pytest.importorskip("openvino")
    core = one_core(openvino)
    path = exported.path(exported.graph("chain", precision))
    compiled = core.compile_model(core.read_model(str(path)), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    z = draws.latents(5, range(4), 12)
    exact = parity.session_of(exported.path(exported.graph("chain")).read_bytes())(z)
    assert parity.compare(exact, compiled([z])[0]).psnr_db > 28


def test_int8_needs_no_vnni(exported: bundle.Bundle, tmp_path: Path):
    """Before it, sums of two products ended at 16 bits (Intel, VPMADDUBSW), which random weights reached:
    21.6 dB."""
    pytest.importorskip("openvino")
    z, path = draws.latents(5, range(4), 12), exported.path(exported.graph("chain", "int8"))
    np.save(tmp_path / "z.npy", z)
    line = [
        sys.executable,
        "-c",
        WITHOUT_VNNI,
        *map(str, (path, tmp_path / "z.npy", tmp_path / "images.npy")),
    ]
    subprocess.run(line, check=True, env={**os.environ, "ONEDNN_MAX_CPU_ISA": "AVX2"})
    exact = parity.session_of(exported.path(exported.graph("chain")).read_bytes())(z)
    assert parity.compare(exact, np.load(tmp_path / "images.npy")).psnr_db > 28


def test_no_two_neighbours_overflow_16_bits(exported: bundle.Bundle):
    """Of every convolution in int8: 255 times two weights of one sign, of inputs 2 i and 2 i + 1."""
    model = onnx.load(exported.path(exported.graph("chain", "int8")))
    weights = [numpy_helper.to_array(t) for t in model.graph.initializer if t.data_type == TensorProto.INT8]
    seen = 0
    for values in (w.astype(int) for w in weights if w.ndim == 4):
        for i in range(0, values.shape[1] - 1, 2):
            pair, seen = values[:, i : i + 2], seen + 1
            assert 255 * np.maximum(pair, 0).sum(1).max() < 2**15
            assert 255 * np.minimum(pair, 0).sum(1).min() > -(2**15)
    assert seen > 10


@pytest.mark.parametrize(
    ("weights", "most"),
    [
        ([[1.0, -2.0]], [2.0]),  # of two signs: they cannot add up
        ([[1.0, 2.0]], [3.0]),
        ([[-1.0, -2.0, 3.5]], [3.5]),  # an odd one is alone
        ([[0.0, 1.0, 1.0, 0.0], [5.0, 0.0, 0.0, 6.0]], [1.0, 6.0]),  # 1 and 2 are no neighbours
    ],
)
def test_largest_pairs(weights: list[list[float]], most: list[float]):
    assert quantize.largest_pairs(np.array(weights)).tolist() == most
    taps = np.array(weights)[:, :, None, None] * np.array([0.5, 1.0])  # of another tap, another pair
    assert quantize.largest_pairs(taps).tolist() == most


@pytest.mark.parametrize("precision", PRECISIONS)
def test_tensorrt_rtx_parses_it(exported: bundle.Bundle, precision: str):
    tensorrt = pytest.importorskip("tensorrt_rtx")
    logger = tensorrt.Logger(tensorrt.Logger.ERROR)
    builder = tensorrt.Builder(logger)
    network = builder.create_network(0)
    parser = tensorrt.OnnxParser(network, logger)
    data = exported.path(exported.graph("chain", precision)).read_bytes()
    assert parser.parse(data), [str(parser.get_error(i)) for i in range(parser.num_errors)]
    assert network.num_layers > 0


# ----------------------------------------------------------------------------
# The command.


def test_rewrites_are_switched_by_the_command(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    only_the_chain(monkeypatch)
    arguments = [str(checkpoint), "--out", str(tmp_path / "b"), "--samples", "4", "--target", "openvino"]
    switches = ["--no-rewrite", "upsample-convolution", "--rewrite", "upsample-convolution-four"]
    result = CliRunner().invoke(main, [*arguments, *switches])
    assert result.exit_code == 0, result.output
    rewrites = bundle.read(tmp_path / "b").graph("chain").rewrites
    assert "upsample-convolution-four" in rewrites
    assert "upsample-convolution" not in rewrites
    wrong = CliRunner().invoke(main, [*arguments, "--rewrite", "magic"])
    assert wrong.exit_code == 1
    assert "there is no rewrite 'magic'" in wrong.stderr


def test_limits_are_there_for_every_precision():
    for precision in bundle.PRECISIONS:
        assert precision in parity.LIMITS_DB
        assert precision in parity.LARGEST_STEP
    shipped = bundle.read(bundle.shipped())
    without = replace(shipped, graphs=tuple(g for g in shipped.graphs if g.precision != "bf16"))
    with pytest.raises(PgsrError, match="holds no chain graph in bf16"):
        without.graph("chain", "bf16")
