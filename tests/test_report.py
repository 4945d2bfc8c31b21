"""pgsr-bench conv and report: single convolutions, layers under the roof, the page, its schema, two
compared."""

from __future__ import annotations

import copy
import json
import re
import shutil
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import pytest
import torch
from click.testing import CliRunner, Result
from PIL import Image

pytest.importorskip("onnxruntime")

from pgsr.benchmarks.cli import main
from pgsr.benchmarks.conv import measure as conv
from pgsr.benchmarks.conv.backends import LIBRARIES, Convolution
from pgsr.benchmarks.conv.cases import Case
from pgsr.benchmarks.conv.graphs import graph
from pgsr.benchmarks.harness import noise, provenance, roof
from pgsr.benchmarks.harness.machine import Machine
from pgsr.benchmarks.harness.resume import Kept
from pgsr.benchmarks.harness.roof import Roof
from pgsr.benchmarks.layers import profile, roofline, waterfall
from pgsr.benchmarks.layers.profile import CONVERSION, LAYER, Operation
from pgsr.benchmarks.quality.feature_network import LITE0
from pgsr.benchmarks.report import build, documents, findings, settings, words
from pgsr.benchmarks.report.page import page
from pgsr.benchmarks.throughput.measure import slow_int8
from pgsr.errors import PgsrError

ROOT = Path(__file__).resolve().parent.parent
COMMITTED = sorted((ROOT / "benchmarks" / "reports").glob("*/report.json"))
SCHEMA = json.loads((ROOT / "benchmarks" / "report" / "report.schema.json").read_text())
VALIDATOR = jsonschema.Draft202012Validator(SCHEMA)
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")

ROOF = Roof({"fp32": 100.0, "int8": 400.0}, {2**16: 100.0, 2**28: 10.0})
MACHINE = Machine("a processor", 1, ("avx2",), 2**30, "Linux", "3.11", {"pgsr": "0"}, 1, 100.0)


@pytest.fixture(autouse=True)
def quick_survey(monkeypatch: pytest.MonkeyPatch):
    """The machine's peaks are not what is tested."""
    for module in (build, conv, roofline):
        monkeypatch.setattr(module, "survey", lambda threads: (MACHINE, ROOF))


# ----------------------------------------------------------------------------
# One convolution.


@pytest.mark.parametrize("convolution", ["vanilla", "separable"])
@pytest.mark.parametrize("form", ["plain", "up"])
def test_multiply_adds_and_bytes_are_those_of_the_module(form: str, convolution: str):
    case = Case(form, 6, 8, 2, outputs=10)
    module = Convolution(case, convolution)
    x = torch.zeros(2, 6, case.input_side, case.input_side)
    operations = profile.profile_pytorch(lambda: module(x), 1)
    layers = [operation for operation in operations if operation.kind == LAYER]
    assert sum(operation.multiply_adds for operation in layers) == 2 * case.multiply_adds(convolution)
    weights = sum(layer.weight.nelement() for layer in module.layers)  # type: ignore[misc, operator]
    maps = x.nelement() + 2 * 10 * 64 + (2 * 2 * 6 * 64 if convolution == "separable" else 0)
    assert case.moved_bytes(convolution, "fp32") == 4 * (maps + weights)
    assert case.moved_bytes(convolution, "int8") == maps + weights


def test_equation_3():
    case = Case("plain", 64, 8, 1, outputs=32)
    counted = case.multiply_adds("vanilla") / case.multiply_adds("separable")
    assert case.predicted_speedup == pytest.approx(counted)
    assert case.predicted_speedup == pytest.approx(1 / (1 / 32 + 1 / 9))


@pytest.mark.parametrize("convolution", ["vanilla", "separable"])
@pytest.mark.parametrize("form", ["plain", "up"])
def test_int8_graphs_compute_what_float32_ones_do(form: str, convolution: str):
    import onnxruntime

    case = Case(form, 8, 8, 2)
    x = np.random.default_rng(0).integers(96, 160, (2, 8, case.input_side, case.input_side), dtype=np.uint8)
    results = []
    for int8, values in ((False, (x.astype(np.float32) - 128) * np.float32(0.05)), (True, x)):
        session = onnxruntime.InferenceSession(
            graph(case, convolution, int8), providers=["CPUExecutionProvider"]
        )
        results.append(session.run(None, {"x": values})[0])
    stored = np.clip(np.round(results[0] / 0.05) + 128, 0, 255)
    assert results[1].shape == (2, 8, 8, 8)
    assert np.abs(stored - results[1]).mean() < 1  # of 255 steps
    assert results[1].std() > 3


@pytest.mark.parametrize(
    ("name", "layout", "precision"),
    [
        (n, y, p)
        for n, library in LIBRARIES.items()
        for y in library.layouts
        for p in ("fp32", "int8")
        if p in library.precisions
    ],
)
def test_every_library_convolves(name: str, layout: str, precision: str):
    pytest.importorskip(LIBRARIES[name].module)
    for convolution in ("vanilla", "separable"):
        LIBRARIES[name].open(Case("up", 8, 8, 2), convolution, layout, precision, 1)()


def speedup(median: float) -> dict[str, float]:
    return {"median": median, "low": median - 0.1, "high": median + 0.1}


def test_the_width_from_which_on_separable_pays():
    def rows(side: int, medians: dict[int, float]) -> list[dict[str, Any]]:
        way = {"backend": "pytorch", "layout": "NCHW", "precision": "fp32", "form": "plain"}
        return [{**way, "resolution": side, "channels": c, "speedup": speedup(m)} for c, m in medians.items()]

    clear, late, never = (
        {16: 0.9, 32: 1.5, 64: 2.0},
        {16: 2.0, 32: 0.8, 64: 1.05},
        {16: 2.0, 32: 2.0, 64: 0.9},
    )
    (answer,) = conv.pays_from(rows(4, clear) + rows(8, {16: 1.2, 32: 1.05, 64: 2.0}))
    assert (answer["by_resolution"], answer["everywhere"]) == ({"4": 32, "8": 16}, 32)
    (answer,) = conv.pays_from(rows(4, late) + rows(8, never))
    assert (answer["by_resolution"], answer["everywhere"]) == ({"4": None, "8": None}, None)


TINY = (
    "--channels",
    "4,8",
    "--resolutions",
    "4,8",
    "--rounds",
    "2",
    "--call-seconds",
    "1e-4",
    "--threads",
    "1",
)
Command = Callable[..., Result]


def command(*words: str | Path) -> Result:
    return CliRunner().invoke(main, [str(word) for word in words])


def test_conv_goes_on_where_it_was_stopped(tmp_path: Path):
    words_ = ("conv", *TINY, "--backend", "pytorch", "--precision", "fp32", "--out", tmp_path)
    first = command(*words_, "--layout", "NCHW", "--json")
    assert first.exit_code == 0, first.output
    kept = tmp_path / "conv.rows.jsonl"
    whole = kept.read_text().splitlines()
    assert len(whole) == 2 + 8  # settings, the roof, 2 widths x 2 resolutions x 2 forms
    kept.write_text("\n".join([*whole[:6], whole[6][:20]]))  # as if killed while it wrote a line
    again = command(*words_)
    assert again.exit_code == 0, again.output
    lines = kept.read_text().splitlines()
    assert lines[:6] == whole[:6]
    assert len(lines) == 2 + 16
    assert "pays" in (tmp_path / "conv.svg").read_text()
    assert "NCHW: 1 of 8" not in again.stderr
    assert "NCHW: 8 of 8" in again.stderr
    other = command(*words_, "--rounds", "3")
    assert other.exit_code == 1
    assert "other settings" in other.stderr


@pytest.mark.parametrize(
    "words_",
    [
        ("--channels", "0"),
        ("--resolutions", "5"),
        ("--backend", "x"),
        ("--rounds", "0"),
        ("--precision", "fp8"),
    ],
)
def test_conv_refuses_in_a_line(words_: tuple[str, str]):
    result = command("conv", *words_)
    assert result.exit_code == 1
    assert len(result.stderr.splitlines()) == 1


def test_calls_that_were_interrupted_do_not_count():
    taken = iter([0.0, 0.001, 0.0, 0.5, 0.0, 0.001, 0.0, 0.002, 0.0, 0.001, 0.0, 0.3, 0.0, 0.001])
    assert conv.steady_seconds(lambda: None, 0.0, lambda: next(taken)) == 0.001  # 5 calls
    assert conv.steady_seconds(lambda: None, 0.1, iter([0.0, 0.03] * 9).__next__) == 0.03


def test_large_cells_are_left_out_and_said():
    chosen = conv.Settings(
        (8,),
        (4, 8),
        most_multiply_adds=20_000,
        backends=("pytorch",),
        rounds=1,
        call_seconds=1e-5,
        layouts=("NCHW",),
        precisions=("fp32",),
        threads=1,
    )
    result = conv.run(chosen, lambda line: None)
    assert {row["resolution"] for row in result["rows"]} == {4}
    assert any("left out" in note for note in result["notes"])


# ----------------------------------------------------------------------------
# The roof, and layers under it.


def test_the_bandwidth_lies_between_the_sizes_measured():
    assert ROOF.bandwidth(2**10) == pytest.approx(100)
    assert ROOF.bandwidth(2**22) == pytest.approx(1000**0.5)
    assert ROOF.bandwidth(2**30) == pytest.approx(10)
    assert ROOF.seconds(50_000_000_000, 2**28, "fp32") == pytest.approx((1.0, 2**28 / 10e9))
    assert roof.roof_of(ROOF.as_dict()) == ROOF


def test_a_roof_is_measured(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(roof, "PRODUCTS", (32,))
    monkeypatch.setattr(roof, "SIZES", (2**12, 2**14))
    measured = roof.measured_roof(MACHINE, 1, rounds=2)
    assert measured.peaks.keys() == {"fp32"}  # a processor with avx2 alone
    assert measured.peak("bf16") == measured.peaks["fp32"] >= MACHINE.peak_gflops
    assert all(speed > 0.01 for speed in measured.bandwidths.values())
    assert roof.product_gflops("int8", 1, 1) > 0


def operation(adds: int, moved: int, seconds: float, kind: str = LAYER, shape=(1, 64, 32, 32)) -> Operation:
    return Operation("x", kind, "convolution 3×3", shape, "fp32", adds, moved, seconds)


@pytest.mark.parametrize(
    ("layer", "converting", "why"),
    [
        (operation(5 * 10**9, 2**20, 0.12), 0, "roof"),  # 0.1 s of arithmetic
        (operation(5 * 10**9, 2**20, 0.30), 0, "kernel"),
        (operation(5 * 10**9, 2**20, 0.30), 0.2, "conversion"),
        (operation(10**6, 2**28, 0.30), 0, "memory"),  # 27 ms of bytes
        (operation(10**5, 2**10, 0.01), 0, "small"),
        (operation(5 * 10**9, 2**20, 0.30, shape=(1, 3, 32, 32)), 0, "small"),
    ],
)
def test_why_a_layer_falls_short(layer: Operation, converting: float, why: str):
    reorder = operation(0, 0, converting, CONVERSION)
    (row,) = roofline.under_the_roof([reorder, layer], ROOF)
    assert row["reason"] == why
    assert row["share_of_roof"] == pytest.approx(row["roof_seconds"] / layer.seconds)


def test_graphs_profiled_have_the_multiply_adds_of_their_networks(tmp_path: Path):
    """ONNX Runtime fills channels up to blocks, so it may have more; 64 maps need no filling."""
    case = Case("up", 64, 16, 2, outputs=32)
    x = np.zeros((2, 64, 8, 8), np.float32)
    for convolution in ("vanilla", "separable"):
        file = tmp_path / f"{convolution}.onnx"
        file.write_bytes(graph(case, convolution, False))
        profiles = {"onnxruntime": profile.profile_onnxruntime(file, x, 1, 2, tmp_path)}
        if LIBRARIES["openvino"].module and pytest.importorskip("openvino"):
            profiles["openvino"] = profile.profile_openvino(file, x, "fp32", 1, 2)
        for operations in profiles.values():
            layers = [o for o in operations if o.kind == LAYER]
            assert sum(o.multiply_adds for o in layers) == 2 * case.multiply_adds(convolution)
            assert len(layers) == (2 if convolution == "separable" else 1)
            assert any("depthwise" in o.what for o in layers) == (convolution == "separable")
            assert all(o.seconds >= 0 for o in operations)


def test_profiled_times_shrink_to_what_the_network_takes():
    seconds = {
        "layer_seconds": 6.0,
        "conversion_seconds": 1.0,
        "with_conversions_seconds": 7.0,
        "all_seconds": 8.0,
    }
    costs = {"roof_seconds": 1.0, **seconds, "network_seconds": 4.0, "files_seconds": 5.0}
    shrunk = waterfall.fitted(costs)
    assert [shrunk[key] for key in costs] == [1.0, 3.0, 0.5, 3.5, 4.0, 4.0, 5.0]
    assert waterfall.fitted({**costs, "network_seconds": 9.0})["layer_seconds"] == 6.0


# ----------------------------------------------------------------------------
# Noise.


def test_a_control_that_is_off_and_others_load_are_said():
    equal = [1.0, 1.01, 0.99, 1.0, 1.005]
    assert not noise.judged(equal, 0.0)["disturbed"]
    off = noise.judged([1.2, 1.21, 1.19, 1.2], 0.0)
    assert off["disturbed"]
    assert "20.0%" in off["why"][0]
    assert "40%" in noise.judged(equal, 0.4)["why"][0]
    wide = noise.judged([0.7, 1.5, 0.8, 1.4], 0.0)  # off by 10%, but so are its rounds
    assert not wide["disturbed"]


def test_the_load_of_others_is_what_is_not_ones_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    file = tmp_path / "stat"
    monkeypatch.setattr(noise.os, "sched_getaffinity", lambda process: {1})
    monkeypatch.setattr(noise.os, "sysconf", lambda name: 100)
    file.write_text("cpu0 900 0 0 0 0 0 0 0\ncpu1 100 0 50 700 30 0 0 0\n")
    with noise.Watch(file) as watch:
        file.write_text("cpu0 990 0 0 0 0 0 0 0\ncpu1 160 0 70 750 60 0 0 20\n")  # 1 s busy, 0.2 of it stolen
    assert watch.busy_seconds == pytest.approx(1.0)
    watch.seconds, watch.own_seconds = 4.0, 0.2
    assert watch.other_load == pytest.approx(0.2)
    assert watch.as_dict()["disturbed"]


def test_rows_are_kept_until_settings_change(tmp_path: Path):
    path = tmp_path / "rows.jsonl"
    Kept(path, {"rounds": 3}).add("a", {"x": 1})
    assert Kept(path, {"rounds": 3}).get("a") == {"x": 1}
    with pytest.raises(PgsrError, match="other settings"):
        Kept(path, {"rounds": 4})


def test_slow_int8_is_said_once_for_a_library():
    def row(way: str, speed: float) -> dict[str, Any]:
        return {"way": way, "system": "vanilla", "stage": "generator", "images_per_second": speed}

    slow = [row("onnxruntime fp32", 10), row("onnxruntime int8", 8)]
    assert slow_int8(slow) == [
        "onnxruntime int8 is slower than its fp32 everywhere here (0.80 to 0.80 times as fast): take fp32 "
        "with it."
    ]
    assert slow_int8([row("openvino fp32", 10), row("openvino int8", 18)]) == []


# ----------------------------------------------------------------------------
# Reports.


def test_a_report_of_one_part_is_written_and_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """The part that is there is not measured again; a report of other settings is refused."""
    chosen = settings.Settings(tmp_path, "tiny", ("conv",), threads=1)
    lines: list[str] = []
    first = build.run(chosen, lines.append)
    assert any("conv: pytorch" in line for line in lines)
    VALIDATOR.validate(first)
    assert json.loads((tmp_path / "report.json").read_text()) == first
    html = (tmp_path / "report.html").read_text()
    assert first["parts"]["conv"]["command"] in html
    assert "One convolution at a time" in (tmp_path / "report.md").read_text()
    lines.clear()
    assert build.run(chosen, lines.append) == first
    assert lines == [f"conv: it is in {tmp_path / 'parts' / 'conv.json'}"]
    with pytest.raises(PgsrError, match="another length: name another --out"):
        build.run(settings.Settings(tmp_path, "quick", ("conv",), threads=1), lines.append)
    (tmp_path / "parts" / "conv.json").write_text("{")
    with pytest.raises(PgsrError, match="is no JSON"):
        build.run(chosen, lines.append)


def test_trainings_are_judged_by_the_network_that_is_named(tmp_path: Path):
    """At its own side; lite0's features are of small images, enlarged. The command says so."""
    plain = settings.Settings(tmp_path, "quick", data=tmp_path, threads=1)
    assert "--features" not in plain.words
    judged = replace(plain, features=Path("a/judge.onnx"))
    assert judged.words.endswith("--features judge.onnx --threads 1")
    network = judged.quality_curves(tmp_path).features
    assert network is not None
    assert (network.path, network.side) == (Path("a/judge.onnx"), None)
    small = replace(plain, features=LITE0).quality_curves(tmp_path).features
    assert small is not None
    assert small.side == settings.FEATURE_SIDE


@pytest.mark.slow
def test_a_tiny_report_is_made_whole(tmp_path: Path):
    for module in ("openvino", "nncf", "cv2"):
        pytest.importorskip(module, reason="pip install 'pgsr[opponent]'")
    (tmp_path / "pictures").mkdir()
    random = np.random.default_rng(0)
    for i in range(80):
        noise_ = random.integers(0, 256, (64, 64, 3), dtype=np.uint8)
        Image.fromarray(noise_).save(tmp_path / "pictures" / f"{i:02d}.png")
    out, pictures = tmp_path / "report", tmp_path / "pictures"
    report = build.run(
        settings.Settings(out, "tiny", data=pictures, held_out=pictures, threads=1), lambda line: None
    )
    VALIDATOR.validate(report)
    assert set(report["parts"]) == set(build.PARTS)
    assert len(findings.sentences(report)) == findings.MOST
    for name in documents.BLOCKS:
        empty = f"<!-- report: {name} -->\n<!-- end -->"
        assert documents.filled(empty, report).count("\n") > 2
    for part, draw in documents.PICTURES.values():
        assert draw(report["parts"][part]["result"])
    assert_page_is_good(out / "report.html")


def test_parts_that_cannot_be_measured_are_left_out_and_said(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(build, "find_spec", lambda name: None)
    chosen = settings.Settings(Path("x"), "tiny", threads=1)
    names = build.wanted(chosen)
    assert "conv" in names
    assert not {"opponent", "growing", "quality-curves"} & set(names)
    assert build.lacking("opponent", chosen).endswith("pip install 'pgsr[opponent]'")
    with pytest.raises(PgsrError, match="--part growing needs photographs"):
        build.wanted(settings.Settings(Path("x"), "tiny", ("growing",), threads=1))


def test_the_findings_say_where_separable_does_not_pay(committed: dict[str, Any]):
    said = findings.sentences(committed)
    assert 3 <= len(said) <= findings.MOST
    conv_part = copy.deepcopy(committed["parts"]["conv"]["result"])
    least = min(conv_part["settings"]["channels"])
    for row in conv_part["pays_from"]:
        row["everywhere"] = least
    assert f"paid at every width measured, from {least} maps on" in findings.does_not_pay(conv_part, None)
    conv_part["pays_from"][0]["everywhere"] = None
    name = findings.way_name(conv_part["pays_from"][0]).replace(", ", " ")
    assert f"at no width at every resolution with {name}" in findings.does_not_pay(conv_part, None)
    slow = {"rows": [{"speedup": {"median": 0.5}, "network": "upscaler", "layer": "9×9", **ROW_OF_A_WAY}]}
    assert "1 of 1 is slower, most the upscaler's 9×9" in findings.does_not_pay(conv_part, slow)
    assert said[1] == findings.does_not_pay(
        committed["parts"]["conv"]["result"], committed["parts"]["predicted"]["result"]
    )


ROW_OF_A_WAY = {"backend": "openvino", "precision": "fp32"}


def test_readme_and_docs_show_what_the_committed_report_says(committed: dict[str, Any]):
    for name in documents.TEXTS:
        text = (ROOT / name).read_text()
        assert "<!-- report: " in text
        assert documents.filled(text, committed) == text
    for name, (part, draw) in documents.PICTURES.items():
        if part in committed["parts"] and name.endswith(".svg"):
            assert (ROOT / name).read_bytes() == draw(committed["parts"][part]["result"])


def test_a_table_of_speeds_has_a_row_a_system_and_a_column_a_way():
    def row(system: str, way: str, speed: float) -> dict[str, Any]:
        return {"system": system, "way": way, "images_per_second": speed, "ratio_to_naive": speed / 2}

    rows = [
        row("vanilla", "naive", 2.0),
        row("vanilla", "onnxruntime fp32", 5.0),
        row("separable", "eager", 4.0),
        row("separable", "openvino int8", 40.0),
        row("faces", "openvino int8", 400.0),
    ]
    assert documents.speeds(rows) == [
        ["images/s", "eager PyTorch", "ONNX Runtime", "OpenVINO, int8", "best to plain eager vanilla"],
        ["vanilla", "2.00", "5.00", "", "2.5×"],
        ["separable", "4.00", "", "40.0", "20×"],
        ["the shipped model (faces)", "", "", "400.0", "200×"],
    ]


def test_blocks_are_wrapped_but_for_tables_and_pictures():
    long = "word " * 60
    assert max(map(len, documents.wrapped(long).splitlines())) <= documents.WIDTH
    assert documents.wrapped(f"12. {long}").splitlines()[1].startswith("    word")
    assert documents.wrapped(f"- {long}").splitlines()[1].startswith("  word")
    assert documents.wrapped(f"| {long} |") == f"| {long} |"


def test_figures_are_drawn_into_a_checkout(committed: dict[str, Any], tmp_path: Path):
    with pytest.raises(PgsrError, match="no checkout of pgsr"):
        documents.write_documents(committed, tmp_path)
    assert not list(tmp_path.iterdir())
    (tmp_path / "docs").mkdir()
    (tmp_path / "README.md").write_text("a\n<!-- report: findings -->\nold\n<!-- end -->\nb\n")
    (tmp_path / "docs" / "benchmarks.md").write_text("<!-- report: end-to-end -->\nkept\n<!-- end -->\n")
    only = {**committed, "parts": {"conv": committed["parts"]["conv"]}}
    written = documents.write_documents(only, tmp_path)
    assert {path.name for path in written} == {"conv.svg", "README.md", "benchmarks.md"}
    text = (tmp_path / "README.md").read_text()
    assert text.startswith("a\n<!-- report: findings -->\n1. ")
    assert text.endswith("\n<!-- end -->\nb\n")
    assert "kept" in (tmp_path / "docs" / "benchmarks.md").read_text()  # of a part that is not there
    with pytest.raises(PgsrError, match="is none of"):
        documents.filled("<!-- report: nothing -->\n<!-- end -->", only)


@pytest.mark.parametrize(
    ("words_", "status", "said"),
    [
        (("--out", "x", "--part", "nothing"), 1, "--part"),
        (("--out", "x", "--part", "quality"), 1, "--data"),
        ((), 2, "--out"),
        (("--compare", "absent.json", "absent.json"), 1, "absent.json"),
    ],
)
def test_report_refuses_in_a_line(
    words_: tuple[str, ...], status: int, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    result = command("report", *words_)
    assert result.exit_code == status
    assert said in result.stderr
    assert not list(tmp_path.iterdir())


@pytest.fixture(scope="module")
def committed() -> dict[str, Any]:
    """A report that comes with the source."""
    assert COMMITTED, "benchmarks/reports holds no report"
    loaded: dict[str, Any] = json.loads(COMMITTED[0].read_text())
    return loaded


@pytest.mark.parametrize("path", COMMITTED, ids=lambda path: path.parent.name)
def test_committed_reports_are_as_the_schema_says(path: Path):
    VALIDATOR.validate(json.loads(path.read_text()))
    assert (path.parent / "report.html").stat().st_size < 4e6


def test_the_schema_refuses_what_is_wrong(committed: dict[str, Any]):
    wrong = copy.deepcopy(committed)
    wrong["parts"]["conv"]["result"]["rows"][0]["vanilla"]["seconds"]["median"] = -1
    del wrong["parts"]["waterfall"]["noise"]
    paths = {tuple(error.absolute_path) for error in VALIDATOR.iter_errors(wrong)}
    assert ("parts", "conv", "result", "rows", 0, "vanilla", "seconds", "median") in paths
    assert ("parts", "waterfall") in paths


def test_every_figure_has_its_command_and_its_numbers(committed: dict[str, Any]):
    html = page(committed)
    figures = re.findall(r"<figure>.*?</figure>", html, re.DOTALL)
    assert len(figures) >= 4
    for figure in figures:
        assert "<code>pgsr-bench report --part" in figure
        (target,) = re.findall(r'href="#([a-z-]+-numbers)"', figure)
        assert f'id="{target}"' in html
        assert "<svg" in figure
    for fetched in ("http://", "https://", "<script", "@import", "url("):
        assert fetched not in html.replace("http://www.w3.org/2000/svg", "")


def test_a_comparison_marks_what_is_larger_than_the_spread(committed: dict[str, Any], tmp_path: Path):
    same = words.compared(committed, committed)
    assert same
    assert not any(row["clear"] for row in same)
    other = copy.deepcopy(committed)
    cell = other["parts"]["conv"]["result"]["rows"][3]["speedup"]
    cell["median"] += 3 * cell["half_width"] + 1
    changed = [row for row in words.compared(committed, other) if row["clear"]]
    assert len(changed) == 1
    assert changed[0]["part"] == "conv"
    paths = tmp_path / "a.json", tmp_path / "b.json"
    for path, report in zip(paths, (committed, other), strict=True):
        path.write_text(json.dumps(report))
    result = command("report", "--compare", *paths)
    assert result.exit_code == 0, result.output
    assert len([line for line in result.stdout.splitlines() if line.startswith("▲")]) == 1
    paths[0].write_text("{}")
    refused = command("report", "--compare", *paths)
    assert refused.exit_code == 1
    assert len(refused.stderr.splitlines()) == 1


# ----------------------------------------------------------------------------
# The page in a browser.


def assert_page_is_good(path: Path) -> None:
    """No error on the console, every figure has a size, nothing sticks out at a phone's width."""
    if CHROMIUM is None:
        pytest.skip("no chromium here: apt-get install chromium")
    playwright = pytest.importorskip("playwright.sync_api", reason="pip install playwright")
    with playwright.sync_playwright() as library:
        browser = library.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        tab = browser.new_page(viewport={"width": 390, "height": 844}, offline=True)
        tab.set_default_timeout(300_000)  # of a machine that is busy
        said: list[str] = []
        tab.on("console", lambda message: said.append(message.text))
        tab.on("pageerror", lambda error: said.append(str(error)))
        tab.on("requestfailed", lambda request: said.append(request.url))
        tab.goto(path.absolute().as_uri())
        for scheme in ("light", "dark"):
            tab.emulate_media(color_scheme=scheme)
            assert tab.evaluate("document.documentElement.scrollWidth") == 390
            sizes = tab.evaluate(
                "[...document.querySelectorAll('svg')].map(s => [s.getBoundingClientRect().width, "
                "s.querySelectorAll('rect, circle, path, polygon').length])"
            )
            assert len(sizes) == path.read_text().count("<svg")
            assert all(width > 300 and marks for width, marks in sizes)
        # Text of figures stays inside them, and does not shrink below what can be read.
        outside = tab.evaluate(
            "[...document.querySelectorAll('svg text')].filter(t => {const b = t.getBoundingClientRect(); "
            "return "
            "b.right > 390 || b.left < 0 || b.height < 9}).map(t => t.textContent)"
        )
        assert outside == []
        assert said == []
        browser.close()


def test_the_page_opens_on_a_phone(committed: dict[str, Any], tmp_path: Path):
    path = tmp_path / "report.html"
    path.write_text(page(committed))
    assert_page_is_good(path)


FOLDER = re.compile(r"(?<![\w.²%)<])/[A-Za-z][\w.-]*/")  # of some machine; not of images/s


def test_commands_name_no_folder_of_the_machine(monkeypatch: pytest.MonkeyPatch):
    words = ["pgsr-bench", "report", "--data", "/home/somebody/faces.zip", "--out", "reports/here"]
    monkeypatch.setattr(sys, "argv", words)
    assert provenance.provenance()["command"] == "pgsr-bench report --data faces.zip --out reports/here"
    assert FOLDER.search('"--data /home/somebody/faces.zip"')
    assert COMMITTED
    for path in COMMITTED:
        assert FOLDER.search(path.read_text()) is None, path
