"""pgsr-export --explain: the table tells what the graph is, and the drawing draws it."""

from __future__ import annotations

import json
from pathlib import Path

import onnx
import pytest
import torch
from click.testing import CliRunner
from torch import nn

import bundles as tiny
from pgsr import bundle
from pgsr.errors import PgsrError
from pgsr.export.cli import main
from pgsr.export.explain import explained, read_layers
from pgsr.export.graphs import Chain
from pgsr.export.lowering import Sum
from pgsr.export.onnx_file import to_onnx
from pgsr.files import sha256


@pytest.fixture(scope="module")
def shipped() -> bundle.Bundle:
    return bundle.read(bundle.shipped())


@pytest.mark.parametrize("graph", ["chain", "generator"])
@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_multiply_adds_are_those_that_the_export_counted(shipped: bundle.Bundle, graph: str, precision: str):
    """Two counts of different things: of the graph's nodes, and of the modules in PyTorch."""
    found = explained(shipped, graph, precision)
    assert found["multiply_adds"] == shipped.graph(graph, precision).multiply_adds
    assert sum(layer["share"] for layer in found["layers"]) == pytest.approx(1.0)
    assert sum(found["operations"].values()) == found["nodes"]


def with_chain(folder: Path, data: bytes) -> bundle.Bundle:
    """A bundle whose chain is of these bytes, and hashed as they are."""
    tiny.write_bundle(folder)
    (folder / "chain.onnx").write_bytes(data)
    manifest = json.loads((folder / bundle.MANIFEST).read_text())
    manifest["graphs"][0]["sha256"] = sha256(folder / "chain.onnx")
    (folder / bundle.MANIFEST).write_text(json.dumps(manifest))
    return bundle.read(folder)


def test_a_graph_that_fails_in_inference_is_a_line(tmp_path: Path):
    """A loop without a body, to which onnx's own inference answers with an error of C++'s."""
    model = tiny.chain_model()
    model.graph.node[-1].op_type = "Loop"
    with pytest.raises(PgsrError, match=r"chain\.onnx cannot be read as ONNX: "):
        explained(with_chain(tmp_path / "b", model.SerializeToString()))


def test_names_that_are_not_utf_8_are_a_line(tmp_path: Path):
    """protobuf gives them back as bytes."""
    model = tiny.chain_model()
    model.graph.node[-1].op_type, model.doc_string = "Odd", "note"
    for text in (b"Odd", b"note"):
        damaged = model.SerializeToString().replace(text, b"\xff" * len(text))
        with pytest.raises(PgsrError, match=r"chain\.onnx cannot be read as ONNX: b'\\xff"):
            explained(with_chain(tmp_path / text.decode(), damaged))


def test_precision_is_read_from_the_weights(shipped: bundle.Bundle):
    for precision, name in (("fp32", "float32"), ("fp16", "float16")):
        assert {layer["precision"] for layer in explained(shipped, "chain", precision)["layers"]} == {name}


def test_layers_by_hand():
    """A skip around two convolutions, one of them depthwise, a transposed one, and a crop of sizes."""
    torch.manual_seed(0)
    network = nn.Sequential(
        nn.Conv2d(3, 4, 3, padding=1),
        Sum([], [nn.Conv2d(4, 4, 3, padding=1, groups=4), nn.ReLU(), nn.Conv2d(4, 4, 1)]),
        nn.ConvTranspose2d(4, 2, 4, 2, 1),
    ).eval()
    for parameter in network.parameters():
        parameter.data.normal_()
    example = torch.zeros(2, 3, 6, 8)
    model = onnx.load_from_string(to_onnx(Chain([network], "fp32", False), example, "x", "y", {0: "n"}))
    layers = read_layers(model, 64)
    assert [layer.kind for layer in layers] == [
        "3 x 3, 3 to 4",
        "depthwise 3 x 3, 4 to 4",
        "1 x 1, 4 to 4",
        "transposed 4 x 4, 4 to 2",
    ]
    assert [layer.multiply_adds for layer in layers] == [
        48 * 3 * 4 * 9,
        48 * 4 * 9,
        48 * 4 * 4,
        48 * 4 * 2 * 16,
    ]
    assert [layer.shape for layer in layers] == [(1, 4, 6, 8)] * 3 + [(1, 2, 12, 16)]
    assert [layer.sources for layer in layers] == [(-1,), (0,), (0, 1), (2,)]  # the sum stands with layer 2
    assert [layer.weights for layer in layers] == [108, 36, 16, 128]
    assert layers[1].then == ("Relu",)
    assert layers[2].then == ("Add",)


def test_the_command_prints_and_draws(tmp_path: Path):
    folder = str(bundle.shipped())
    result = CliRunner().invoke(main, ["--explain", folder, "--out", str(tmp_path / "chain.svg")])
    assert result.exit_code == 0, result.output
    assert result.stdout.splitlines()[0].split()[:3] == ["layer", "kind", "result"]
    assert "multiply-adds an image" in result.stdout
    drawing = (tmp_path / "chain.svg").read_text()
    assert "<svg" in drawing
    again = CliRunner().invoke(main, ["--explain", folder, "--out", str(tmp_path / "again.svg"), "--json"])
    assert (tmp_path / "again.svg").read_text() == drawing
    assert json.loads(again.stdout)["graph"] == "chain"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--graph", "critic"], "holds no critic graph"),
        (["--precision", "int4"], "holds no chain graph in int4"),
        (["--out", "chain.txt"], "the drawing is .svg or .png"),
    ],
)
def test_errors_are_one_line(arguments: list[str], said: str):
    result = CliRunner().invoke(main, ["--explain", str(bundle.shipped()), *arguments])
    assert result.exit_code == 1
    assert said in result.stderr
    assert len(result.stderr.splitlines()) == 1
