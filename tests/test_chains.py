"""Chains of any length: a generator and upscalers one behind the other, from trained checkpoints to files."""

from __future__ import annotations

import json
import logging
import tarfile
import zipfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from click.testing import CliRunner
from onnx import TensorProto, helper
from PIL import Image

import bundles as tiny
from pgsr import batches, bundle, draws
from pgsr.benchmarks.quality.sets import Faces
from pgsr.benchmarks.quality.sets import Settings as QualitySettings
from pgsr.checkpoint import Checkpoint, save
from pgsr.errors import PgsrError
from pgsr.export import bundle_builder as build
from pgsr.export import engines
from pgsr.export.cli import main as export_main
from pgsr.export.shapes import activation_bytes
from pgsr.export.source import read_source
from pgsr.networks import GENERATORS, resolved
from pgsr.networks import build as build_network
from pgsr.runtime import Synthesizer, Upscaler, synthesizer
from pgsr.runtime.generate.cli import main as generate_main
from pgsr.runtime.stages import tile_that_fits
from pgsr.schema import read_json
from pgsr.tensorrt.engines import Profile, usual_profile
from pgsr.trainer.cli import main as train_main
from pgsr.trainer.data.cli import Settings, prepare

SHORT = ["schedule.start_resolution=8", "schedule.fade_images=32", "schedule.stable_images=64"]
SHORT += ["generator.feature_base=128", "discriminator.feature_base=128", "generator.feature_max=16"]
UPSCALER = ["schedule.stable_images=64", "generator.features=8", "generator.layers=2"]
FIRST = [*UPSCALER, "data.resolution=64", "schedule.resolution=32", "schedule.start_resolution=32"]
SECOND = [*FIRST, "generator.scale=2", "generator.base=nearest"]


def run(command: Any, *arguments: object) -> str:
    result = CliRunner().invoke(command, list(map(str, arguments)))
    assert result.exit_code == 0, result.output
    return result.stdout


def trained(recipe: str, settings: list[str], data: Path, out: Path) -> Path:
    changes = [part for setting in settings for part in ("--set", setting)]
    run(train_main, recipe, "--data", data, "--out", out, *changes)
    return out


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Runs of the recipes `tiny` (to 16 x 16) and `upscale-4x-pixel`, times 4 and times 2, in seconds."""
    folder = tmp_path_factory.mktemp("runs")
    prepare([], folder / "data.zip", Settings((16, 64), "bicubic", "png", 95), drawn=40)
    todo = {
        "faces": ("tiny", SHORT),
        "four": ("upscale-4x-pixel", FIRST),
        "two": ("upscale-4x-pixel", SECOND),
    }
    return {name: trained(*what, folder / "data.zip", folder / name) for name, what in todo.items()}


@pytest.fixture(scope="module")
def chain(runs: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bundle 16 -> 64 -> 128."""
    out = tmp_path_factory.mktemp("bundle") / "chain"
    parts = (runs["faces"], runs["four"], runs["two"])
    report = json.loads(run(export_main, *parts, "--out", out, "--fp16", "--samples", 6, "--json"))
    names = ["generator", "upscaler", "upscaler-2", "chain"]
    assert [(g["name"], g["precision"]) for g in report["graphs"]] == [
        (name, precision) for precision in ("fp32", "fp16") for name in names
    ]
    assert all(g["parity"]["psnr_db"] >= 60 for g in report["graphs"] if g["precision"] == "fp32")
    return out


def expected(runs: dict[str, Path], seed: int, indices: range) -> np.ndarray:
    """The pictures by the checkpoints' averaged networks in float64, stage by stage."""
    generator, four, two = (read_source(runs[name]).network.double() for name in ("faces", "four", "two"))
    with torch.no_grad():
        images = generator(torch.from_numpy(draws.latents(seed, indices, 32)).double())
        assert images.shape[2:] == (16, 16)
        middle = four(images)
        assert middle.shape[2:] == (64, 64)
        x = two(middle).numpy()
    return np.rint(np.clip((x + 1) * 127.5, 0, 255)).transpose(0, 2, 3, 1)


# ----------------------------------------------------------------------------
# From recipes to files.


@pytest.mark.parametrize("backend", ["onnxruntime", "openvino"])
def test_pictures_are_those_of_the_networks_stage_by_stage(
    backend: str, runs: dict[str, Path], chain: Path
) -> None:
    pytest.importorskip(backend)
    with Synthesizer(chain, "cpu", backend=backend) as faces:
        assert faces.size == 128
        pixels = faces.images(seed=5, count=6, start=2)
    assert np.abs(pixels - expected(runs, 5, range(2, 8))).max() <= 1


def test_the_same_bytes_in_any_batch_window_and_container(chain: Path, tmp_path: Path) -> None:
    """Folder, tar, zip and stdout; in parts and shards."""
    common = ["--model", chain, "--device", "cpu", "--backend", "onnxruntime", "--seed", 3, "--no-sheet"]
    for name, more in {
        "one": ["--batch", 1, "--count", 5],
        "many": ["--batch", 4, "--count", 5],
        "rest": ["--start", 3, "--count", 2],
        "a.tar": ["--count", 5],
        "a.zip": ["--count", 5, "--shard", "1/2"],
    }.items():
        run(generate_main, *common, *more, "--out", tmp_path / name)
    files = {p.name: p.read_bytes() for p in (tmp_path / "one").glob("0*.png")}
    assert len(files) == 5
    assert Image.open(tmp_path / "one" / "000000.png").size == (128, 128)
    for name, count in {"many": 5, "rest": 2}.items():
        found = {p.name: p.read_bytes() for p in (tmp_path / name).glob("0*.png")}
        assert len(found) == count
        assert found.items() <= files.items()
    with tarfile.open(tmp_path / "a.tar") as tar:
        tar.extractall(tmp_path / "tar", filter="data")
    with zipfile.ZipFile(tmp_path / "a.zip") as archive:
        archive.extractall(tmp_path / "zip")
    for name, numbers in {"tar": range(5), "zip": (1, 3)}.items():
        assert len(list((tmp_path / name).glob("*.png"))) == len(numbers)
        for i in numbers:
            one, other = (Image.open(tmp_path / folder / f"{i:06d}.png") for folder in ("one", name))
            assert np.array_equal(np.asarray(one), np.asarray(other))
    raw = CliRunner().invoke(generate_main, [*map(str, common[:-1]), "--count", "2", "--out", "-"])
    first = np.frombuffer(raw.stdout_bytes, np.uint8).reshape(2, 128, 128, 3)[0]
    assert np.array_equal(first, np.asarray(Image.open(tmp_path / "one" / "000000.png")))


def test_grids_videos_and_truncation(chain: Path, tmp_path: Path) -> None:
    common = ["--model", chain, "--device", "cpu", "--backend", "onnxruntime"]
    run(generate_main, "grid", "3x2", tmp_path / "page.png", *common)
    assert Image.open(tmp_path / "page.png").size[0] > 3 * 128
    run(generate_main, "video", tmp_path / "walk.gif", "--seconds", 0.2, "--fps", 10, *common)
    film = Image.open(tmp_path / "walk.gif")
    assert (film.size, film.n_frames) == ((128, 128), 2)  # type: ignore[attr-defined]
    with Synthesizer(chain, "cpu", backend="onnxruntime", truncation=0.0) as typical:
        assert np.ptp(typical.images(count=3).astype(int), axis=0).max() <= 1


def test_an_upscaler_of_the_chain_alone(runs: dict[str, Path], chain: Path) -> None:
    picture = np.random.default_rng(0).integers(0, 256, (20, 30, 3), np.uint8)
    with Upscaler(chain, "cpu", backend="onnxruntime") as four:
        assert four.upscale(picture).shape == (80, 120, 3)
    with Upscaler(chain, "cpu", backend="onnxruntime", place=1) as two:
        larger = two.upscale(picture)
    x = torch.from_numpy(picture).permute(2, 0, 1)[None].double() / 127.5 - 1
    with torch.no_grad():
        made = read_source(runs["two"]).network.double()(x)[0].permute(1, 2, 0).numpy()
    assert np.abs(larger - np.rint(np.clip((made + 1) * 127.5, 0, 255))).max() <= 1


def test_quality_measures_the_whole_chain(chain: Path) -> None:
    """Its sets: the generator's pictures, the chain's, and any that all upscalers enlarge."""
    settings = QualitySettings(Path("photographs"), model=chain, images=5, device="cpu")
    with Faces(bundle.read(chain), settings) as faces, Synthesizer(chain, "cpu") as synthesizer:
        large = faces.large(range(5))
        assert np.array_equal(large, synthesizer.images(count=5))
        small = faces.small(range(5))
        assert small.shape == (5, 16, 16, 3)
        enlarged = faces.upscaled(small)
    with Faces(bundle.read(chain), replace(settings, upscalers=1)) as first:
        assert (first.chain.size, first.large(range(2)).shape) == (64, (2, 64, 64, 3))
    with pytest.raises(PgsrError, match="--upscalers 3: chain has 2"):
        Faces(bundle.read(chain), replace(settings, upscalers=3))
    assert enlarged.shape == large.shape
    assert np.abs(enlarged.astype(int) - large).mean() < 1  # but for the rounding of what comes in


@pytest.mark.slow
def test_the_same_upscaler_twice_in_all_precisions(runs: dict[str, Path], tmp_path: Path) -> None:
    parts = (runs["faces"], runs["four"], runs["four"])
    run(export_main, *parts, "--out", tmp_path / "b", "--fp16", "--bf16", "--int8", "--samples", 8)
    found = bundle.read(tmp_path / "b")
    assert found.scales == (4, 4)
    assert found.size == 256
    with Synthesizer(found.folder, "cpu") as exact:
        pixels = exact.images(count=2).astype(int)
    for precision in ("fp16", "int8"):
        with Synthesizer(found.folder, "cpu", precision, "onnxruntime") as less:
            assert np.abs(less.images(count=2) - pixels).mean() < 4


# ----------------------------------------------------------------------------
# The manifest.


def test_the_manifest_tells_of_every_part(chain: Path, runs: dict[str, Path]) -> None:
    found = bundle.read(chain)
    manifest = read_json(chain / "manifest.json")
    assert (manifest["schema"], found.resolution, found.scale, found.scales) == (2, 16, 8, (4, 2))
    assert list(found.provenance) == ["generator", "upscaler", "upscaler-2"]
    assert [found.provenance[name]["recipe"]["name"] for name in found.provenance] == [
        *("tiny", "upscale-4x-pixel", "upscale-4x-pixel")
    ]
    graphs = {g.name: g for g in found.graphs if g.precision == "fp32"}
    parts = [graphs[name].multiply_adds for name in ("generator", "upscaler", "upscaler-2")]
    assert graphs["chain"].multiply_adds == sum(parts)
    assert graphs["chain"].activation_bytes >= 3 * 4 * 128**2
    assert graphs["upscaler-2"].outputs[0].shape == ("n", 3, "2*height", "2*width")


def test_bundles_without_a_second_upscaler_are_of_the_first_schema(tmp_path: Path) -> None:
    """So that pgsr 0.1 reads them, and this pgsr reads its."""
    shipped = bundle.read(bundle.shipped())
    manifest = read_json(shipped.folder / "manifest.json")
    assert manifest["schema"] == 1
    assert (shipped.scale, shipped.scales, shipped.upscaler_scales, shipped.size) == (4, (), (4,), 256)
    source = shipped.folder / "upscaler.onnx"
    (tmp_path / "upscaler.onnx").write_bytes(source.read_bytes())
    graph = shipped.graph("upscaler")
    alone = bundle.Bundle(tmp_path, "up", "0", 0, 0, 4, (graph,), "none")
    bundle.write(alone)
    written = read_json(tmp_path / "manifest.json")
    assert written["schema"] == 1
    assert "scales" not in written
    for entry in written["graphs"]:
        del entry["activation_bytes"]  # of which pgsr 0.1 knows nothing
    (tmp_path / "manifest.json").write_text(json.dumps(written))
    assert bundle.read(tmp_path).graph("upscaler").activation_bytes == 0


DAMAGE: dict[str, tuple[dict[str, Any], str | None]] = {
    "another product": ({"scale": 4}, "scale is 4, not 8, the product of the scales"),
    "no scales": ({"scales": None}, "upscalers is"),
    "one too many": ({"scales": [4, 2, 1]}, "3 of them, as the scales say"),
    "of another order": ({"scales": [2, 4]}, None),
    "the first schema": ({"schema": 1}, "upscalers is"),
    "a scale that is none": ({"scales": [4, 0]}, r"scales\[1\] is 0"),
}


@pytest.mark.parametrize("what", DAMAGE)
def test_a_damaged_manifest_is_refused(what: str, chain: Path, tmp_path: Path) -> None:
    changes, words = DAMAGE[what]
    manifest = {**read_json(chain / "manifest.json"), **changes}
    data = {name: value for name, value in manifest.items() if value is not None}
    (tmp_path / "manifest.json").write_text(json.dumps(data))
    if words is None:  # upscalers of any size tell no order; the chain's pixels are the same
        assert bundle.read(tmp_path).scales == (2, 4)
        return
    with pytest.raises(PgsrError, match=words):
        bundle.read(tmp_path)


def test_explaining_a_part(chain: Path) -> None:
    report = json.loads(run(export_main, "explain", chain, "--graph", "upscaler-2", "--json"))
    assert report["multiply_adds"] == bundle.read(chain).graph("upscaler-2").multiply_adds
    assert report["activation_bytes"] == bundle.read(chain).graph("upscaler-2").activation_bytes
    whole = json.loads(run(export_main, "explain", chain, "--json"))
    assert whole["graph"] == "chain"
    assert whole["layers"][-1]["shape"][-3:] == [128, 128, 3]


# ----------------------------------------------------------------------------
# What makes no chain.


def written(path: Path, options: dict[str, Any]) -> Path:
    """A checkpoint with random weights."""
    network = build_network(GENERATORS, options, 1)
    tensors = {f"generator_ema.{name}": value for name, value in network.state_dict().items()}
    progress = {"images_shown": 1, "step": 1, "grown_resolution": 16}
    save(path, Checkpoint(tensors, {"generator": resolved(GENERATORS, options)}, progress, {}))
    return path


FIXED = {"kind": "mlp-sr", "input_size": 16, "scale": 4, "features": 4}


def test_what_makes_no_chain_is_refused_in_one_line(runs: dict[str, Path], tmp_path: Path) -> None:
    fixed = written(tmp_path / "fixed.safetensors", FIXED)
    refusals = {
        (runs["faces"], runs["faces"]): "name at most one generator",
        (runs["four"], runs["two"]): "several upscalers make a chain behind a generator",
        (
            runs["faces"],
            runs["four"],
            fixed,
        ): "upscaler-2 takes images of 16x16, but those that come to it are 64",
        (runs["faces"], *[runs["two"]] * 9): "9 upscalers are too many: a chain has at most 8",
    }
    for parts, words in refusals.items():
        result = CliRunner().invoke(export_main, [*map(str, parts), "--out", str(tmp_path / "out")])
        assert isinstance(result.exception, PgsrError) or result.exit_code == 1
        message = str(result.exception) if isinstance(result.exception, PgsrError) else result.output
        assert words in message
        assert "\n" not in message.strip()
        assert not (tmp_path / "out").exists()


def test_an_upscaler_of_one_size_may_stand_where_that_comes(runs: dict[str, Path], tmp_path: Path) -> None:
    sources = [read_source(runs["faces"]), read_source(written(tmp_path / "f.safetensors", FIXED))]
    names = [plan.name for plan in build.plans(build.named([*sources, read_source(runs["two"])]))]
    assert names == ["generator", "upscaler", "upscaler-2", "chain"]


# ----------------------------------------------------------------------------
# Memory.


def test_the_memory_of_a_graph_is_that_of_values_held_together() -> None:
    """x, a and b together, then b and c: x 4, a 16, b 16, c 1 numbers of 4 bytes."""
    graph = helper.make_graph(
        [
            helper.make_node("Tile", ["x", "four"], ["a"]),
            helper.make_node("Relu", ["a"], ["b"]),
            helper.make_node("ReduceMean", ["b"], ["c"], keepdims=1),
        ],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 4])],
        [helper.make_tensor_value_info("c", TensorProto.FLOAT, ["n", 1])],
        [helper.make_tensor("four", TensorProto.INT64, [2], [1, 4])],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    onnx.checker.check_model(model)
    assert activation_bytes(model, 8) == 4 * (16 + 16)


def opened(chain: Path, free: int, monkeypatch: pytest.MonkeyPatch, **more: Any) -> Synthesizer:
    monkeypatch.setattr(synthesizer, "available_memory", lambda: free)
    return Synthesizer(chain, "cpu", backend="onnxruntime", **more)


def test_the_batch_is_what_memory_has_room_for(
    chain: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    found = bundle.read(chain)
    one = batches.HELD * batches.activation_bytes(found, "chain") + batches.WAITING * 3 * 128**2
    room = int(one / synthesizer.SHARE)
    with opened(chain, 2**40, monkeypatch) as rich:
        assert rich.batch == 16
        pixels = rich.images(count=6)
    with opened(chain, 5 * room + 9, monkeypatch) as poor:
        assert poor.batch == 5
        assert np.array_equal(poor.images(count=6), pixels)
    assert not caplog.records
    with opened(chain, 5 * room + 9, monkeypatch, batch=7) as asked, caplog.at_level(logging.WARNING):
        assert asked.batch == 5
    with opened(chain, 2**40, monkeypatch, batch=99) as asked:
        assert asked.batch == 99


def test_where_memory_is_short_upscalers_run_in_tiles(
    chain: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with opened(chain, 2**40, monkeypatch) as whole:
        pixels = whole.images(count=5)
    with opened(chain, 2**22, monkeypatch) as tiled:
        assert "in tiles of 32 and 32" in tiled.provider
        tiles = tiled.images(count=5)
    assert "upscaling in tiles" in caplog.text
    assert np.abs(tiles.astype(int) - pixels).max() <= 1
    with opened(chain, 2**22, monkeypatch, batch=3) as other:
        assert np.array_equal(other.images(count=5), tiles)


def test_tiles_may_be_asked_for(chain: Path, tmp_path: Path) -> None:
    for name, more in {"whole": [], "tiles": ["--tile", 40]}.items():
        arguments = ["--model", chain, "--device", "cpu", "--backend", "onnxruntime", "--count", 3, *more]
        report = json.loads(run(generate_main, *arguments, "--out", tmp_path / name, "--json"))
        assert ("in tiles of 40 and 40" in report["provider"]) == bool(more)
    for i in range(3):
        whole, tiles = (np.asarray(Image.open(tmp_path / n / f"{i:06d}.png")) for n in ("whole", "tiles"))
        assert np.abs(whole.astype(int) - tiles).max() <= 1


@pytest.mark.parametrize(
    ("tile", "words"), [(8, "--tile 8 is below 32 pixels"), (64, "--tile 64: tiny has no upscaler")]
)
def test_tiles_that_cannot_be(tile: int, words: str, chain: Path, tmp_path: Path) -> None:
    model = tiny.write_bundle(tmp_path / "b") if "no upscaler" in words else chain
    with pytest.raises(PgsrError, match=words):
        Synthesizer(model, "cpu", backend="onnxruntime", tile=tile)


def test_a_tile_is_as_large_as_fits(chain: Path) -> None:
    found = bundle.read(chain)
    whole = int(batches.HELD * batches.activation_bytes(found, "upscaler-2"))
    assert tile_that_fits(found, 1, whole) == 64
    assert tile_that_fits(found, 1, whole // 4) == 32
    assert tile_that_fits(found, 1, 1) == 32


# ----------------------------------------------------------------------------
# Engines.


def test_engines_take_as_many_pictures_as_a_gpu_has_room_for(chain: Path) -> None:
    found = bundle.read(chain)
    graph = found.graph("chain")
    assert usual_profile(found, graph) == Profile(1, 16, 64)
    costly = [replace(g, activation_bytes=300 * 2**20) for g in found.graphs]
    assert usual_profile(replace(found, graphs=tuple(costly)), costly[0]) == Profile(1, 4, 4)
    huge = replace(found, resolution=512)  # 4096 x 4096: a batch of 48 MiB is one picture, or two
    assert usual_profile(huge, graph) == Profile(1, 2, 2)


def test_real_engines_of_a_chain(chain: Path) -> None:
    pytest.importorskip("tensorrt_rtx")
    results = engines.add_engines(bundle.read(chain), "tensorrt-rtx", compute_capabilities=("8.6", "8.9"))
    assert [(r.graph.name, r.graph.precision) for r in results] == [("chain", "fp32"), ("chain", "fp16")]
    assert all(str(r.engine.key.profile) == "1,16,64" for r in results)
    assert results[1].engine.layers["fp16"] > results[1].engine.layers.get("fp32", 0)
