"""Manifests are held to one table before anything is computed, and graphs to their hashes."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

import bundles as tiny
from pgsr import bundle as bundles
from pgsr.errors import PgsrError
from pgsr.files import sha256
from pgsr.schema import DEEPEST, LONGEST_DOCUMENT, Mismatch, check, read_json


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.add_generator(tiny.write_bundle(tmp_path_factory.mktemp("original")))


@pytest.fixture
def folder(original: Path, tmp_path: Path) -> Path:
    return shutil.copytree(original, tmp_path / "b")


def changed(folder: Path, change: Callable[[Any], Any]) -> None:
    path = folder / bundles.MANIFEST
    data = json.loads(path.read_text())
    change(data)
    path.write_text(json.dumps(data))


def put(*keys: Any, value: Any) -> Callable[[Any], None]:
    def change(data: Any) -> None:
        for key in keys[:-1]:
            data = data[key]
        data[keys[-1]] = value

    return change


def without(*keys: Any) -> Callable[[Any], None]:
    def change(data: Any) -> None:
        for key in keys[:-1]:
            data = data[key]
        del data[keys[-1]]

    return change


# What is wrong, and what the sentence says of it. The graphs are [generator, chain] of 8 x 8 from 8 numbers.
WRONG: dict[str, tuple[Callable[[Any], Any], str]] = {
    "a size as text": (put("resolution", value="8"), "resolution is '8', not a whole number"),
    "a size with a fraction": (put("resolution", value=8.0), "resolution is 8.0, not a whole number"),
    "a truth as size": (put("scale", value=True), "scale is True, not a whole number"),
    "no size": (put("latent_size", value=None), "latent_size is None"),
    "a huge latent": (put("latent_size", value=10**9), "latent_size is 1000000000, not a whole number"),
    "thousands of digits": (put("latent_size", value=10**4000), "latent_size is 1000"),
    "a scale of zero": (put("scale", value=0), "scale is 0"),
    "a negative size": (put("resolution", value=-8), "resolution is -8"),
    "resolution 0": (put("resolution", value=0), "contradicts itself (rgb of generator fp32 is"),
    "another resolution": (put("resolution", value=16), "contradicts itself"),
    "another scale": (put("scale", value=2), "contradicts itself (pixels of chain fp32 is"),
    "another latent": (
        put("latent_size", value=9),
        "contradicts itself (latents of generator fp32 is ['float32', 'any', 8], not ['float32', 'any', 9]",
    ),
    "graphs in an object": (put("graphs", value={}), "graphs is {}, not a list"),
    "no graphs": (put("graphs", value=[]), "graphs is [], not a list of 1 to 40"),
    "ten thousand graphs": (put("graphs", value=[{}] * 10_000), "not a list of 1 to 40"),
    "a graph that is none": (put("graphs", 0, value=7), "graphs[0] is 7, not an object"),
    "a graph twice": (put("graphs", 0, "name", value="chain"), "each once"),
    "two graphs in a file": (put("graphs", 0, "file", value="chain.onnx"), "in a file of its own"),
    "an unknown graph": (put("graphs", 0, "name", value="critic"), "graphs[0].name is 'critic'"),
    "an unknown precision": (put("graphs", 0, "precision", value="fp8"), "graphs[0].precision is 'fp8'"),
    "a file elsewhere": (
        put("graphs", 0, "file", value="../chain.onnx"),
        "graphs[0].file is '../chain.onnx'",
    ),
    "an absolute file": (put("graphs", 0, "file", value="/etc/passwd"), "graphs[0].file"),
    "a null in a file": (put("graphs", 0, "file", value="a\0.onnx"), "graphs[0].file"),
    "a format of its own": (put("graphs", 0, "file", value="chain.ort"), "graphs[0].file"),
    "no file": (without("graphs", 0, "file"), "graphs[0].file is missing"),
    "a short hash": (put("graphs", 1, "sha256", value="00"), "graphs[1].sha256 is '00'"),
    "two inputs": (lambda data: data["graphs"][0]["inputs"].append({}), "inputs is"),
    "no outputs": (put("graphs", 0, "outputs", value=[]), "graphs[0].outputs is []"),
    "a dimension of zero": (
        put("graphs", 0, "inputs", 0, "shape", value=["N", 0]),
        "inputs[0].shape[1] is 0",
    ),
    "a list as dimension": (put("graphs", 0, "inputs", 0, "shape", value=[[]]), "graphs[0].inputs[0].shape"),
    "no rank": (put("graphs", 0, "inputs", 0, "shape", value=[]), "shape is []"),
    "a fixed batch": (put("graphs", 0, "inputs", 0, "shape", value=[1, 8]), "contradicts itself"),
    "other numbers": (put("graphs", 1, "outputs", 0, "dtype", value="float32"), "contradicts itself"),
    "an unknown type": (put("graphs", 1, "outputs", 0, "dtype", value="object"), "dtype is 'object'"),
    "a list of rewrites in text": (put("graphs", 0, "rewrites", value="fold"), "rewrites is 'fold'"),
    "a parity in a list": (put("graphs", 0, "parity", value=[]), "parity is [], not an object"),
    "a provenance in text": (put("provenance", value="x"), "provenance is 'x', not an object"),
    "a generator in a list": (put("provenance", value={"generator": []}), "provenance.generator is []"),
    "a recipe in text": (
        put("provenance", value={"generator": {"recipe": "x"}}),
        "provenance.generator.recipe is 'x', not an object",
    ),
    "a label in text": (
        put("provenance", value={"generator": {"label": "3"}}),
        "label is '3', not a whole number from 0 to 2147483648 or None",
    ),
    "a name with an escape": (put("name", value="\x1b[2Jb"), "name is"),
    "half a letter": (put("name", value="\ud800"), "name is"),
    "a name of a book's length": (put("name", value="n" * 10**6), "name is 'nnn"),
    "too little variety": (put("truncation", value=-0.1), "truncation is -0.1, not a number from 0 to 1"),
    "a truncation in text": (put("truncation", value="0.8"), "truncation is '0.8', not a number"),
    "a truth as truncation": (put("truncation", value=True), "truncation is True, not a number"),
    "a truncation toward nothing": (put("truncation", value=0.8), "centre is 'nothing', not a direction"),
    "a centre elsewhere": (put("centre", value=[1.0] * 9), "centre is '9 numbers', not 8, as a latent has"),
    "a centre nowhere": (put("centre", value=[0.0] * 8), "centre is 'all zero', not a direction"),
    "a centre of texts": (put("centre", value=["1"] * 8), "centre[0] is '1', not a number"),
    "a centre far away": (put("centre", value=[1e300] * 8), "centre[0] is 1e+300, not a number from"),
    "another schema": (put("schema", value=3), "schema is 3, not 1 or 2"),
    "no schema": (without("schema"), "schema is missing"),
    "a number that is none": (put("graphs", 0, "parity", value={"max": float("nan")}), "it holds NaN"),
    "no end": (put("graphs", 0, "parity", value={"max": float("inf")}), "it holds Infinity"),
}


@pytest.mark.parametrize("what", WRONG)
def test_what_is_wrong_is_named(what: str, folder: Path):
    change, words = WRONG[what]
    changed(folder, change)
    with pytest.raises(PgsrError) as refusal:
        bundles.read(folder)
    sentence = str(refusal.value)
    assert words in sentence
    assert str(folder / bundles.MANIFEST) in sentence
    assert "export the bundle again" in sentence
    assert len(sentence) < 600


TEXTS = {
    "nothing": b"",
    "no JSON": b"<html>",
    "no UTF-8": b'{"schema": "\xff"}',
    "a list": b"[]",
    "deep lists": b"[" * 100_000 + b"]" * 100_000,
    "a little too deep": b"[" * (DEEPEST + 1) + b"]" * (DEEPEST + 1),
    "a number of thousands of digits": b'{"schema": ' + b"9" * 5000 + b"}",
    "a number beyond all": b'{"schema": 1e999}',
}


@pytest.mark.parametrize("what", TEXTS)
def test_what_is_no_manifest(what: str, folder: Path):
    (folder / bundles.MANIFEST).write_bytes(TEXTS[what])
    with pytest.raises(PgsrError, match=r"manifest\.json is no manifest of a bundle, or damaged"):
        bundles.read(folder)


def test_documents_have_limits(tmp_path: Path):
    path = tmp_path / "long.json"
    with path.open("wb") as file:
        file.truncate(LONGEST_DOCUMENT + 1)
    with pytest.raises(PgsrError, match="longer than"):
        read_json(path)
    (tmp_path / "deep.json").write_text("[" * DEEPEST + "]" * DEEPEST)
    assert read_json(tmp_path / "deep.json")


def test_pipes_and_folders_are_not_waited_for(folder: Path):
    path = folder / bundles.MANIFEST
    path.unlink()
    with pytest.raises(PgsrError, match="no bundle in"):
        bundles.read(folder)
    os.mkfifo(path)
    with pytest.raises(PgsrError, match="is a pipe or a device"):
        bundles.read(folder)
    path.unlink()
    path.mkdir()
    with pytest.raises(PgsrError, match="is a folder, not a file"):
        bundles.read(folder)


def test_what_newer_versions_add_is_let_through(folder: Path):
    expected = bundles.read(folder)
    changed(folder, put("new", value=1))
    changed(folder, put("graphs", 0, "new", value=[1]))
    changed(folder, put("graphs", 0, "inputs", 0, "new", value={}))
    assert bundles.read(folder) == expected


def test_terms_and_names_of_any_language(folder: Path):
    licence = "\u00a9 2026\tA\u00a0B\r\nnur f\u00fcr \u7814\u7a76\n\U0001f600"
    bundle = dataclasses.replace(bundles.read(folder), licence=licence, name="\u7814\u7a76 \u00a0b")
    bundles.write(bundle)
    assert bundles.read(folder) == bundle


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"name": "a\nb"}, "name is 'a\\nb', not a text without control characters"),
        ({"name": "n" * 256}, "not a text of at most 255 letters"),
        ({"resolution": 16}, "as the bundle's sizes say"),
        ({"graphs": ()}, "graphs is [], not a list of 1 to 40"),
        ({"provenance": {"x": float("nan")}}, "it holds NaN"),
    ],
)
def test_what_would_not_be_read_is_not_written(change: dict[str, Any], words: str, folder: Path):
    before = (folder / bundles.MANIFEST).read_bytes()
    wrong = dataclasses.replace(bundles.read(folder), **change)
    with pytest.raises(PgsrError, match="no bundle can be written") as refusal:
        bundles.write(wrong)
    assert words in str(refusal.value)
    assert (folder / bundles.MANIFEST).read_bytes() == before


def test_the_shipped_bundle_is_within_the_table():
    bundle = bundles.read(bundles.shipped())
    assert [bundle.path(graph) for graph in bundle.graphs]


# ----------------------------------------------------------------------------
# The table's bounds: what is at one is read, what is beyond it is not.

NUMBERS: dict[tuple[Any, ...], tuple[int, int]] = {
    ("latent_size",): (0, 2**16),
    ("resolution",): (0, 2**16),
    ("scale",): (1, 4096),
    ("scales", 0): (1, 64),
    ("graphs", 0, "opset"): (1, 1000),
    ("graphs", 0, "multiply_adds"): (0, 2**63),
    ("graphs", 0, "activation_bytes"): (0, 2**50),
    ("graphs", 0, "inputs", 0, "shape", 1): (1, 2**16),
    ("provenance", "generator", "label"): (0, 2**31),
    ("provenance", "upscaler-8", "label"): (0, 2**31),
}
REALS: dict[tuple[Any, ...], tuple[float, float]] = {
    ("truncation",): (0, 1),
    ("centre", 0): (-1e6, 1e6),
}
LETTERS: dict[tuple[Any, ...], tuple[str, int]] = {  # what a text may end with, and how many letters it has
    ("name",): ("", 255),
    ("version",): ("", 255),
    ("licence",): ("", 2**16),
    ("graphs", 0, "file"): (".onnx", 200),
    ("graphs", 0, "rewrites", 0): ("", 255),
    ("graphs", 0, "inputs", 0, "name"): ("", 255),
    ("graphs", 0, "inputs", 0, "range"): ("", 255),
    ("graphs", 0, "inputs", 0, "shape", 0): ("", 64),
}
LISTS: dict[tuple[Any, ...], tuple[int, int]] = {
    ("graphs",): (1, 40),
    ("centre",): (1, 2**16),
    ("scales",): (2, 8),
    ("graphs", 0, "inputs"): (1, 1),
    ("graphs", 0, "outputs"): (1, 1),
    ("graphs", 0, "inputs", 0, "shape"): (2, 4),
    ("graphs", 0, "rewrites"): (0, 100),
}


def table_takes(folder: Path, keys: tuple[Any, ...], value: Any) -> bool:
    """Whether a manifest with one value changed is within the table, whatever its sizes say together."""
    data = json.loads((folder / bundles.MANIFEST).read_text())
    labels = {"generator": {"label": 0}, "upscaler-8": {"label": None}}
    data |= {"scales": [2, 2], "provenance": labels, "truncation": 0.5, "centre": [1.0]}
    data["graphs"][0] |= {"rewrites": ["x"], "activation_bytes": 1}
    check(data, bundles.BUNDLE)
    put(*keys, value=value)(data)
    try:
        check(data, bundles.BUNDLE)
    except Mismatch:
        return False
    return True


@pytest.mark.parametrize("keys", NUMBERS, ids=lambda keys: ".".join(map(str, keys)))
def test_the_bounds_of_numbers(keys: tuple[Any, ...], original: Path):
    least, most = NUMBERS[keys]
    tried = [table_takes(original, keys, value) for value in (least - 1, least, most, most + 1)]
    assert tried == [False, True, True, False]


@pytest.mark.parametrize("keys", REALS, ids=lambda keys: ".".join(map(str, keys)))
def test_the_bounds_of_real_numbers(keys: tuple[Any, ...], original: Path):
    least, most = REALS[keys]
    tried = [table_takes(original, keys, value) for value in (least - 0.25, least, most, most + 0.25)]
    assert tried == [False, True, True, False]


@pytest.mark.parametrize("keys", LETTERS, ids=lambda keys: ".".join(map(str, keys)))
def test_the_bounds_of_texts(keys: tuple[Any, ...], original: Path):
    end, most = LETTERS[keys]
    assert table_takes(original, keys, "n" * (most - len(end)) + end)
    assert not table_takes(original, keys, "n" * (most + 1 - len(end)) + end)
    assert not table_takes(original, keys, f"n\x07{end}")
    assert table_takes(original, keys, f"n\n{end}") == (keys == ("licence",))
    empty = table_takes(original, keys, "")
    assert empty != (keys[-1] in ("file", 0) or keys[-3:] == ("inputs", 0, "name")) or keys[-2] == "rewrites"


@pytest.mark.parametrize("keys", LISTS, ids=lambda keys: ".".join(map(str, keys)))
def test_the_bounds_of_lists(keys: tuple[Any, ...], original: Path):
    least, most = LISTS[keys]
    data: Any = json.loads((original / bundles.MANIFEST).read_text()) | {"scales": [2, 2], "centre": [1.0]}
    data["graphs"][0]["rewrites"] = ["x"]
    for key in keys:
        data = data[key]
    tried = [table_takes(original, keys, data[:1] * count) for count in (least, most, most + 1)]
    assert tried == [True, True, False]
    assert least == 0 or not table_takes(original, keys, data[:1] * (least - 1))


@pytest.mark.parametrize(
    ("file", "allowed"),
    [
        ("chain-fp16.onnx", True),
        ("9.onnx", True),
        ("_x.onnx", False),
        ("a b.onnx", False),
        ("x.onnx2", False),
    ],
)
def test_names_of_files(file: str, allowed: bool, original: Path):
    assert table_takes(original, ("graphs", 0, "file"), file) == allowed


@pytest.mark.parametrize(
    ("digest", "allowed"), [("0f" * 32, True), ("0F" * 32, False), ("g" * 64, False), ("0" * 63, False)]
)
def test_hashes(digest: str, allowed: bool, original: Path):
    assert table_takes(original, ("graphs", 0, "sha256"), digest) == allowed


def test_names_of_graphs_and_precisions(original: Path):
    names = ["generator", "upscaler", *(f"upscaler-{i}" for i in range(2, 9)), "chain"]
    assert list(bundles.GRAPHS) == names
    for key, values in {"name": names, "precision": ["fp32", "fp16", "bf16", "int8"]}.items():
        assert all(table_takes(original, ("graphs", 0, key), value) for value in values)
    assert not table_takes(original, ("graphs", 0, "name"), "upscaler-9")
    assert not table_takes(original, ("graphs", 0, "name"), "upscaler-1")


# ----------------------------------------------------------------------------
# Sizes, and what a manifest need not say.


def chained(folder: Path, **changes: Any) -> bundles.Bundle:
    """The bundle with two upscalers, by 2 and by 3; its graphs' files need not be there."""
    bundle = bundles.read(folder)
    generator, chain = bundle.graphs
    image = bundles.Port("x", ("n", 3, "h", "w"), "float32", "[-1, 1]")
    upscalers = [
        dataclasses.replace(generator, name=name, file=f"{name}.onnx", inputs=(image,), outputs=(image,))
        for name in ("upscaler", "upscaler-2")
    ]
    pixels = dataclasses.replace(chain.outputs[0], shape=("N", 48, 48, 3))
    graphs = (generator, *upscalers, dataclasses.replace(chain, outputs=(pixels,)))
    values: dict[str, Any] = {"scale": 6, "scales": (2, 3), "graphs": graphs}
    return dataclasses.replace(bundle, **values | changes)


def test_a_bundle_of_two_upscalers(folder: Path):
    before = json.loads((folder / bundles.MANIFEST).read_text())
    assert before["schema"] == 1
    assert not {"scales", "centre", "truncation"} & set(before)
    centre = (1.0, *[0.0] * 7)
    bundle = chained(folder, truncation=0.75, centre=centre)
    bundles.write(bundle)
    data = json.loads((folder / bundles.MANIFEST).read_text())
    assert (data["schema"], data["scales"], data["truncation"]) == (2, [2, 3], 0.75)
    assert (folder / bundles.MANIFEST).read_text() == json.dumps(data, indent=1, sort_keys=True) + "\n"
    assert bundles.read(folder) == bundle
    assert (bundle.upscaler_scales, bundle.size) == ((2, 3), 48)
    assert [bundle.side_before(place) for place in range(3)] == [8, 16, 48]


def test_sizes_of_bundles_with_one_upscaler_and_none(folder: Path):
    plain = bundles.read(folder)
    assert (plain.upscaler_scales, plain.size, plain.side_before(0)) == ((), 8, 8)
    one = chained(folder, scales=())
    assert (one.upscaler_scales, one.size, one.side_before(1)) == ((6,), 48, 48)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"scales": (2, 2)}, "scale is 6, not 4, the product of the scales"),
        ({"scales": (2, 3, 1)}, "upscalers is ['upscaler', 'upscaler-2'], not 3 of them, as the scales say"),
        ({"scales": ()}, "upscalers is ['upscaler', 'upscaler-2'], not 1 of them"),
        ({"resolution": 2**14}, "resolution * scale is 98304, not at most 65536"),
    ],
)
def test_upscalers_that_do_not_fit_their_scales(changes: dict[str, Any], words: str, folder: Path):
    with pytest.raises(PgsrError) as refusal:
        bundles.write(chained(folder, **changes))
    assert words in str(refusal.value)


def test_the_largest_picture(folder: Path):
    """65,536 pixels along each side."""
    bundle = bundles.read(folder)
    generator, chain = bundle.graphs
    image = dataclasses.replace(generator.outputs[0], shape=("N", 3, 2**16, 2**16))
    pixels = dataclasses.replace(chain.outputs[0], shape=("N", 2**16, 2**16, 3))
    graphs = (
        dataclasses.replace(generator, outputs=(image,)),
        dataclasses.replace(chain, outputs=(pixels,)),
    )
    bundles.write(dataclasses.replace(bundle, resolution=2**16, graphs=graphs))
    assert bundles.read(folder).size == 2**16


def test_what_manifests_need_not_say(folder: Path):
    for graph in (0, 1):
        changed(folder, without("graphs", graph, "activation_bytes"))
    bundle = bundles.read(folder)
    assert [graph.activation_bytes for graph in bundle.graphs] == [0, 0]
    assert (bundle.scales, bundle.truncation, bundle.centre) == ((), 1.0, ())
    small = bundles.Bundle(folder, "a", "0", 8, 8, 1, (), "any")
    assert (small.provenance, small.scales, small.truncation, small.centre) == ({}, (), 1.0, ())
    assert bundles.MANIFEST == "manifest.json"


def test_schema_1_knows_no_scales(folder: Path):
    """As pgsr 0.1 reads it: what it does not know is let through."""
    changed(folder, put("scales", value=[2, 2]))
    assert bundles.read(folder).scales == ()


def test_graphs_by_name_and_precision(folder: Path):
    bundle = bundles.read(folder)
    assert bundle.graph("chain") is bundle.graphs[1]
    half = dataclasses.replace(bundle.graphs[0], precision="fp16", file="half.onnx")
    more = dataclasses.replace(bundle, graphs=(*bundle.graphs, half))
    assert more.graph("generator", "fp16") is half
    assert more.graph("generator") is bundle.graphs[0]
    words = "holds no chain graph in fp16; it holds generator fp32, chain fp32"
    with pytest.raises(PgsrError) as refusal:
        bundle.graph("chain", "fp16")
    assert str(refusal.value) == f"{folder} {words}"


def test_an_upscaler_alone_has_no_resolution(folder: Path):
    """And one for pictures of one size says by how much they grow."""
    path = folder / bundles.MANIFEST
    data = json.loads(path.read_text())
    port = {"name": "x", "dtype": "float32", "range": "[-1, 1]"}
    graph = {**data["graphs"][0], "name": "upscaler"}

    def read(small: list[Any], large: list[Any]) -> bundles.Bundle:
        graph.update(inputs=[{**port, "shape": small}], outputs=[{**port, "shape": large}])
        path.write_text(
            json.dumps({**data, "latent_size": 0, "resolution": 0, "scale": 2, "graphs": [graph]})
        )
        return bundles.read(folder)

    assert read(["n", 3, "h", "w"], ["n", 3, "2*h", "2*w"]).scale == 2
    assert read(["n", 3, 24, 24], ["n", 3, 48, 48]).graphs[0].inputs[0].shape == ("n", 3, 24, 24)
    for small, large in (([24, 24], [48, 47]), ([24, 24], ["h", "w"]), (["h", "w"], [48, 48])):
        with pytest.raises(PgsrError, match="contradicts itself"):
            read(["n", 3, *small], ["n", 3, *large])


# ----------------------------------------------------------------------------
# Graph files.


def rehashed(folder: Path, name: str) -> bundles.Graph:
    changed(folder, put("graphs", 1, "sha256", value=sha256(folder / name)))
    return bundles.read(folder).graphs[1]


def external(folder: Path) -> None:
    model = onnx.load(folder / "chain.onnx")
    onnx.save(model, folder / "chain.onnx", save_as_external_data=True, location="weights", size_threshold=0)


def external_in_a_branch(folder: Path) -> None:
    """In a tensor of a node's attribute, whose own data is not there."""
    tensor = TensorProto(name="t", dims=[1], data_type=TensorProto.FLOAT)
    tensor.data_location = TensorProto.EXTERNAL
    entry = tensor.external_data.add()
    entry.key, entry.value = "location", "weights"
    model = onnx.load(folder / "chain.onnx")
    model.graph.node.append(helper.make_node("Constant", [], ["unused"], value=tensor))
    onnx.save(model, folder / "chain.onnx")


def engine(folder: Path) -> None:
    model = onnx.load(folder / "chain.onnx")
    node = helper.make_node("EPContext", [], ["y"], domain="com.microsoft", ep_cache_context="x.engine")
    model.graph.node.append(node)
    onnx.save(model, folder / "chain.onnx")


@pytest.mark.parametrize("change", [external, external_in_a_branch, engine])
def test_graphs_that_read_other_files_are_refused(change: Callable[[Path], None], folder: Path):
    """No hash vouches for what they would read."""
    change(folder)
    bundle = bundles.read(folder)
    graph = rehashed(folder, "chain.onnx")
    with pytest.raises(PgsrError, match="in other files, for which its hash does not vouch"):
        bundle.path(graph)


def test_an_engines_name_is_found_at_the_very_beginning(folder: Path):
    (folder / "chain.onnx").write_bytes(bundles.CONTEXT + b" and more")
    graph = rehashed(folder, "chain.onnx")
    with pytest.raises(PgsrError, match="in other files"):
        bundles.read(folder).path(graph)


@pytest.mark.parametrize("before", [b"", b"location", b"x" * 7, b"x" * 40])
def test_a_files_name_is_found_wherever_it_stands(before: bytes, folder: Path):
    (folder / "chain.onnx").write_bytes(before + b"\x0a\x08location")
    graph = rehashed(folder, "chain.onnx")
    with pytest.raises(PgsrError, match="in other files"):
        bundles.read(folder).path(graph)


@pytest.mark.parametrize("data", [b"", b"location", b"xlocation", b"\x0a\x08allocation"])
def test_what_names_no_file(data: bytes, folder: Path):
    """Whatever it is: no network has been read yet."""
    (folder / "chain.onnx").write_bytes(data)
    graph = rehashed(folder, "chain.onnx")
    assert bundles.read(folder).path(graph) == folder / "chain.onnx"


@pytest.mark.parametrize("field", [b"\x0a\x08", b"\x0a\x88\0", b"\x8a\0\x08", b"\x8a\x80\0\x88\x80\x80\0"])
def test_keys_are_found_however_protobuf_writes_them(field: bytes):
    assert onnx.StringStringEntryProto.FromString(field + b"location").key == "location"
    assert bundles.FIELD.search(b"before" + field)


def test_a_tensor_called_allocation_is_no_file(folder: Path):
    model = onnx.load(folder / "chain.onnx")
    values = onnx.numpy_helper.from_array(np.zeros(1, np.float32), "allocation")
    model.graph.initializer.append(values)
    onnx.save(model, folder / "chain.onnx")
    graph = rehashed(folder, "chain.onnx")
    assert bundles.read(folder).path(graph) == folder / "chain.onnx"


def test_graph_files_that_are_something_else(folder: Path):
    bundle = bundles.read(folder)
    path = folder / "chain.onnx"
    with path.open("ab") as file:
        file.write(b"\0")
    with pytest.raises(PgsrError, match="does not match the hash"):
        bundle.path(bundle.graphs[1])
    path.unlink()
    with pytest.raises(PgsrError, match="is missing"):
        bundle.path(bundle.graphs[1])
    os.mkfifo(path)
    with pytest.raises(PgsrError, match="is missing"):
        bundle.path(bundle.graphs[1])
