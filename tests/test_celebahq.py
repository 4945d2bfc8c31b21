"""CelebA-HQ's making: the paper's formulas, every step by a slow reference, whole sets by the command."""

from __future__ import annotations

import cmath
import contextlib
import hashlib
import io
import itertools
import json
import shutil
import subprocess
import sys
import time
import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from PIL import Image

from pgsr import bundle as bundles
from pgsr.bundle import Bundle, Graph, Port
from pgsr.errors import PgsrError
from pgsr.files import sha256
from pgsr.trainer.data import celeba
from pgsr.trainer.data.celebahq import align as facecrop
from pgsr.trainer.data.celebahq import wild
from pgsr.trainer.data.celebahq.align import Crop, Pass, align, oriented_crop
from pgsr.trainer.data.celebahq.cli import main
from pgsr.trainer.data.celebahq.dataset import read_records, run
from pgsr.trainer.data.celebahq.enhance import Enhancer
from pgsr.trainer.data.celebahq.picture import Maker, Settings
from pgsr.trainer.data.celebahq.sources import Drawn, drawn_file
from pgsr.trainer.data.celebahq.spectrum import effective_share, quality
from pgsr.trainer.data.sources import open_pictures

UPRIGHT = np.array([(40, 50), (80, 50), (60, 70), (45, 90), (75, 90)], dtype=np.float64)


def places(seed: int = 0) -> np.ndarray:
    """A face's landmarks, turned, scaled and moved by random amounts: [5, 2]."""
    random = np.random.default_rng(seed)
    points = UPRIGHT + random.normal(0, 3, (5, 2))
    angle, scale = random.uniform(-np.pi, np.pi), random.uniform(0.5, 4)
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    return points @ turn.T * scale + random.uniform(-50, 500, 2)


# ----------------------------------------------------------------------------
# The crop rectangle (paper 2, appendix C).


def slow_crop(landmarks: np.ndarray) -> tuple[complex, float, complex]:
    """Centre, side and x axis in the complex plane, where y is up and Rotate90 is a product with i."""
    e0, e1, _, m0, m1 = (complex(x + 0.5, -(y + 0.5)) for x, y in landmarks)
    x1 = e1 - e0
    y1 = (e0 + e1) / 2 - (m0 + m1) / 2
    c = (e0 + e1) / 2 - 0.1 * y1
    s = max(4.0 * abs(x1), 3.6 * abs(y1))
    x = x1 - 1j * y1
    return c, s, x / abs(x)


@pytest.mark.parametrize("seed", range(20))
def test_the_crop_follows_the_papers_formulas(seed: int):
    found = oriented_crop(places(seed))
    centre, side, right = slow_crop(places(seed))
    np.testing.assert_allclose((found.x, found.y, found.side), (centre.real, -centre.imag, side), rtol=1e-12)
    np.testing.assert_allclose(found.right, (right.real, -right.imag), atol=1e-12)
    half = side / 2 * right
    expected = [
        centre + d for d in (-half + 1j * half, half + 1j * half, half - 1j * half, -half - 1j * half)
    ]
    np.testing.assert_allclose(found.corners(), [(p.real, -p.imag) for p in expected], atol=1e-9)


def test_an_upright_face_by_hand():
    """Eyes 40 apart at 50, mouth 40 below: side 4 * 40, centre 4 below the eyes; half a pixel added."""
    assert oriented_crop(UPRIGHT) == Crop(60.5, 54.5, 160.0, (1.0, 0.0))
    narrow = UPRIGHT.copy()
    narrow[:2, 0] = (55, 65)
    assert oriented_crop(narrow).side == pytest.approx(3.6 * 40)


@pytest.mark.parametrize("landmarks", [np.zeros((5, 2)), UPRIGHT * np.nan, UPRIGHT * 1e-3])
def test_landmarks_that_span_no_face(landmarks: np.ndarray):
    with pytest.raises(ValueError, match="do not span a face"):
        oriented_crop(landmarks)


# ----------------------------------------------------------------------------
# Whole pictures whose landmarks are known because they are drawn here.


def dotted(landmarks: np.ndarray, size: tuple[int, int], width: float) -> Image.Image:
    """A smooth spot at every landmark: red, green, blue in turn, on black."""
    x, y = np.meshgrid(np.arange(size[0]), np.arange(size[1]))
    pixels = np.zeros((size[1], size[0], 3))
    for i, (px, py) in enumerate(landmarks):
        pixels[..., i % 3] += 255 * np.exp(-((x - px) ** 2 + (y - py) ** 2) / (2 * width**2))
    return Image.fromarray(np.uint8(np.rint(pixels.clip(0, 255))))


def spot(pixels: np.ndarray, near: np.ndarray, radius: float) -> np.ndarray:
    """The centre of light within a radius of a place, in pixels whose centres are at halves."""
    y, x = np.mgrid[: pixels.shape[0], : pixels.shape[1]] + 0.5
    light = pixels * (np.hypot(x - near[0], y - near[1]) < radius)
    return np.array(((light * x).sum(), (light * y).sum())) / light.sum()


@pytest.mark.parametrize("degrees", [0, 17, -40, 90, 180])
@pytest.mark.parametrize(
    ("scale", "where"), [(1.3, (0.5, 0.5)), (3.7, (0.5, 0.5)), (5.5, (0.5, 0.5)), (2.1, (0.2, 0.2))]
)
def test_landmarks_arrive_where_the_formulas_say(degrees: float, scale: float, where: tuple[float, float]):
    """To a twentieth of a pixel: magnified, reduced; to a seventh where a border's blur reaches the spots."""
    size = (round(270 * scale), round(266 * scale))
    turn = wild.rotation_matrix(degrees)
    landmarks = (UPRIGHT - (60, 65)) @ turn.T * scale + np.array(size) * where
    made = align(dotted(landmarks, size, 2.5 * scale), landmarks, 128)
    assert made.reduced == {1.3: 1, 3.7: 2, 5.5: 3, 2.1: 1}[scale]
    assert any(made.padded) == (where != (0.5, 0.5))
    centre, side, right = slow_crop(landmarks)
    pixels = np.asarray(made.picture, dtype=np.float64)
    for i, (x, y) in enumerate(landmarks):
        offset = (complex(x + 0.5, -(y + 0.5)) - centre) / right / side  # in the crop's own axes, y up
        expected = np.array((0.5 + offset.real, 0.5 - offset.imag)) * 128
        if (abs(expected - 64) > 56).any():
            continue
        assert np.hypot(*(spot(pixels[..., i % 3], expected, 8) - expected)) < (
            0.15 if any(made.padded) else 0.05
        )
    assert abs(cmath.phase(right) + np.deg2rad(degrees)) % (2 * np.pi) == pytest.approx(0, abs=1e-9)


def test_a_drawn_face_arrives_upright_from_everywhere():
    """Eyes of the same drawn face, turned and scaled, meet in the same places."""
    pictures = []
    for degrees, side, centre in ((0, 300, (250, 250)), (25, 420, (260, 240)), (-160, 260, (200, 260))):
        view = wild.View((500, 500), centre, side, degrees)
        made = align(wild.draw(3, view), wild.landmarks(3, view), 64)
        pictures.append(np.asarray(made.picture, dtype=float)[8:56, 8:56])
    for other in pictures[1:]:
        assert abs(other - pictures[0]).mean() < 2.5


# ----------------------------------------------------------------------------
# The steps.


def test_mirror_padding_by_a_slow_reference():
    pixels = np.random.default_rng(0).integers(0, 256, (5, 7, 3), dtype=np.uint8)
    found = np.asarray(facecrop.mirror_padded(Image.fromarray(pixels), (9, 2, 0, 6)))
    assert found.shape == (13, 16, 3)

    def mirrored(i: int, n: int) -> int:
        while not 0 <= i < n:
            i = -i if i < 0 else 2 * (n - 1) - i
        return i

    for y in range(13):
        for x in range(16):
            assert (found[y, x] == pixels[mirrored(y - 2, 5), mirrored(x - 9, 7)]).all()


def test_the_border_is_blurred_and_the_inside_untouched():
    """Against float64 sums over a Gaussian; Pillow's is three boxes, so a few grey levels are allowed."""
    random = np.random.default_rng(1)
    smooth = Image.fromarray(random.integers(0, 256, (12, 16, 3), dtype=np.uint8)).resize((96, 72))
    pads, deviation = (24, 0, 0, 20), 3.0
    found = np.asarray(facecrop.blurred_border(smooth, pads, deviation), dtype=float)
    pixels = np.asarray(smooth, dtype=float)
    reach = 12
    weights = np.exp(-(np.arange(-reach, reach + 1) ** 2) / (2 * deviation**2))
    weights /= weights.sum()
    wide = np.pad(pixels, ((reach, reach), (reach, reach), (0, 0)), "edge")
    rows = sum(w * wide[:, k : k + 96] for k, w in enumerate(weights))
    blurred = sum(w * rows[k : k + 72] for k, w in enumerate(weights))
    y, x = np.mgrid[:72, :96]
    depth = np.maximum(1 - x / 24, 1 - (71 - y) / 20)[..., None]
    expected = pixels + (blurred - pixels) * np.clip(3 * depth + 1, 0, 1)
    expected += (np.median(expected, axis=(0, 1)) - expected) * np.clip(depth, 0, 1)
    assert abs(found - expected).max() < 4
    assert abs(found - expected).mean() < 0.6
    inside = (x >= 32) & (71 - y >= 80 / 3)
    assert (found[inside] == pixels[inside]).all()
    assert np.ptp(found[:, 0], axis=0).max() == 0  # the median's colour alone


def slow_resampled(pixels: np.ndarray, crop: Crop, size: int, times: int) -> np.ndarray:
    """Bilinear at size * times, the mean of times x times; float64, pixel by pixel."""
    right = np.array(crop.right)
    down = np.array((-right[1], right[0]))
    large = np.zeros((size * times, size * times, 3))
    for v in range(size * times):
        for u in range(size * times):
            across, along = ((i + 0.5) / (size * times) - 0.5 for i in (u, v))
            x, y = np.array((crop.x, crop.y)) + crop.side * (across * right + along * down) - 0.5
            i, j = int(np.floor(x)), int(np.floor(y))
            a, b = x - i, y - j
            upper = (1 - a) * pixels[j, i] + a * pixels[j, i + 1]
            large[v, u] = (1 - b) * upper + b * ((1 - a) * pixels[j + 1, i] + a * pixels[j + 1, i + 1])
    return large.reshape(size, times, size, times, 3).mean(axis=(1, 3))


@pytest.mark.parametrize(("times", "degrees"), [(4, 30), (2, -75), (1, 0)])
def test_resampling_by_a_slow_reference(times: int, degrees: float):
    pixels = np.random.default_rng(2).integers(0, 256, (40, 50, 3), dtype=np.uint8)
    angle = np.deg2rad(degrees)
    crop = Crop(24.3, 20.6, 20.7, (np.cos(angle), np.sin(angle)))
    found = np.asarray(facecrop.resampled(Image.fromarray(pixels), crop, 12, times), dtype=float)
    assert abs(found - slow_resampled(pixels.astype(float), crop, 12, times)).max() <= 1.2  # rounded twice


def test_only_what_the_crop_needs_is_kept():
    """Away from edges the result is that of the whole picture; nothing is padded."""
    picture = wild.draw(0, wild.View((700, 600), (350, 300), 240, 10))
    crop = Crop(350.2, 301.7, 130.0, (0.6, 0.8))
    part, moved = facecrop.restricted(picture, crop)
    assert part.width < 250
    assert part.height < 250
    assert not any(facecrop.padding(moved, part.size))
    assert facecrop.resampled(part, moved, 64).tobytes() == facecrop.resampled(picture, crop, 64).tobytes()


def test_passes_come_in_order_and_are_for_every_picture_small_or_large():
    seen = []

    def named(name: str, scale: int) -> Pass:
        def enhance(picture: Image.Image) -> Image.Image:
            seen.append((name, picture.size))
            return picture.resize((picture.width * scale, picture.height * scale), Image.Resampling.BICUBIC)

        return Pass(name, scale, enhance)

    passes = (named("restorer", 1), named("upscaler", 4))
    view = wild.View((200, 200), (100, 100), 120, 0)
    picture, landmarks = wild.draw(5, view), wild.landmarks(5, view)
    small, large = align(picture, landmarks, 192, passes), align(picture, landmarks, 64, passes)
    assert small.passes == ("restorer", "upscaler")
    assert large.crop.side > 64
    assert large.passes == ("restorer", "upscaler")
    assert large.reduced == int(large.crop.side * 4 // 128) > 1
    cut = small.steps["cut out"].size
    assert seen == [("restorer", cut), ("upscaler", cut)] * 2
    assert small.crop == large.crop == oriented_crop(landmarks)
    plain = np.asarray(align(picture, landmarks, 192).picture, dtype=float)
    assert abs(np.asarray(small.picture, dtype=float) - plain).mean() < 3  # in the same place


@pytest.mark.parametrize(
    ("landmarks", "message"),
    [(UPRIGHT + 1000, "far outside"), (UPRIGHT - (1000, 0), "far outside"), (UPRIGHT * 1e6, "far outside")],
)
def test_faces_elsewhere(landmarks: np.ndarray, message: str):
    with pytest.raises(ValueError, match=message):
        align(Image.new("RGB", (120, 120)), landmarks, 64)


def test_tiny_pictures_with_large_faces():
    """43 x 55, the smallest in CelebA: padded by more than its size, and still made."""
    made = align(
        Image.fromarray(np.random.default_rng(3).integers(0, 256, (55, 43, 3), np.uint8)), UPRIGHT - 40, 64
    )
    assert made.picture.size == (64, 64)
    assert min(made.padded) > 0


# ----------------------------------------------------------------------------
# Quality.


def scene(seed: int = 0, side: int = 128) -> np.ndarray:
    """Noise with the spectrum of nature, amplitude 1 / frequency: [S, S, 3] around 128."""
    random = np.random.default_rng(seed)
    f = np.hypot(*np.meshgrid(np.fft.fftfreq(side), np.fft.fftfreq(side)))
    f[0, 0] = 1
    grey = np.fft.ifft2(np.fft.fft2(random.standard_normal((side, side))) / f).real
    return np.repeat((128 + 40 * grey / grey.std())[..., None], 3, axis=2)


def score(pixels: np.ndarray) -> float:
    return quality(np.rint(pixels.clip(0, 255)).astype(np.uint8)).score


def test_quality_falls_with_blur():
    picture = Image.fromarray(np.uint8(scene().clip(0, 255)))
    scores = [
        score(np.asarray(picture.resize((s, s)).resize((128, 128)), float)) for s in (128, 96, 64, 32, 16)
    ]
    assert all(a > b for a, b in itertools.pairwise(scores))
    assert scores[0] > 0.8
    assert scores[-1] < 0.25


def test_quality_falls_with_direction():
    """A smear to one side, and a halftone's grid, cost symmetry."""
    picture = scene()
    whole = quality(np.uint8(picture.clip(0, 255)))
    smeared = np.mean([np.roll(picture, k, axis=1) for k in range(7)], axis=0)
    y, x = np.mgrid[:128, :128]
    dots = picture + 30 * (np.sin(2 * np.pi * (x + y) / 5) + np.sin(2 * np.pi * (x - y) / 5))[..., None]
    assert whole.symmetry > 0.9
    for worse in (smeared, dots):
        found = quality(np.uint8(np.rint(worse.clip(0, 255))))
        assert found.symmetry < whole.symmetry - 0.15
        assert found.score < 0.75 * whole.score


def test_quality_knows_neither_contrast_nor_turns():
    picture = scene(1)
    assert score(picture) == pytest.approx(score(128 + 0.5 * (picture - 128)), rel=0.03)
    pixels = np.uint8(np.rint(picture.clip(0, 255)))
    for other in (np.rot90(pixels), pixels[::-1], pixels[:, ::-1]):
        assert quality(other).score == pytest.approx(quality(pixels).score, rel=0.02)


def test_quality_by_hand():
    """One colour: 0. White noise: rings weigh as their squared frequency, all sectors the same."""
    assert quality(np.full((64, 64, 3), 77, np.uint8)).score == 0
    noise = np.random.default_rng(0).normal(128, 30, (512, 512, 1)).repeat(3, axis=2)
    found = quality(np.uint8(np.rint(noise.clip(0, 255))))
    rings = (np.arange(32) + 0.5) ** 2
    assert found.breadth == pytest.approx(effective_share(rings), abs=0.01)
    assert found.symmetry == pytest.approx(1, abs=0.01)
    assert effective_share(np.array([1.0, 1.0, 0.0, 0.0])) == pytest.approx(0.5)
    assert effective_share(np.zeros(3)) == 0


# ----------------------------------------------------------------------------
# Exported networks as passes: real bundles, in a program of its own.


def write_upscaler(folder: Path, scale: int, gain: float = 1.0) -> Path:
    """A bundle whose upscaler repeats pixels and averages 3 x 3 neighbours, times `gain`."""
    folder.mkdir(parents=True)
    weight = np.zeros((3, 3, 3, 3), dtype=np.float32)
    weight[range(3), range(3)] = gain / 9
    constants = {"weight": weight, "scales": np.array([1, 1, scale, scale], dtype=np.float32)}
    nearest = {"mode": "nearest", "coordinate_transformation_mode": "asymmetric", "nearest_mode": "floor"}
    nodes = [
        helper.make_node("Conv", ["images", "weight"], ["conv"], pads=[1, 1, 1, 1]),
        helper.make_node("Resize", ["conv", "", "scales"], ["upscaled"], **nearest),
    ]
    graph = helper.make_graph(
        nodes,
        "upscaler",
        [helper.make_tensor_value_info("images", TensorProto.FLOAT, ["n", 3, "h", "w"])],
        [helper.make_tensor_value_info("upscaled", TensorProto.FLOAT, ["n", 3, "H", "W"])],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    path = folder / "upscaler.onnx"
    onnx.save(model, path)
    port = Port("images", ("n", 3, "h", "w"), "float32", "[-1, 1]")
    upscaler = Graph(
        "upscaler",
        "fp32",
        path.name,
        sha256(path),
        20,
        (port,),
        (replace(port, name="upscaled"),),
        (),
        81,
        {},
    )
    bundles.write(Bundle(folder, "tiny", "0", 0, 0, scale, (upscaler,), "MIT"))
    return folder


@pytest.fixture(scope="module")
def networks(tmp_path_factory: pytest.TempPathFactory) -> dict[int, Path]:
    folder = tmp_path_factory.mktemp("networks")
    return {scale: write_upscaler(folder / str(scale), scale) for scale in (1, 2)}


def test_a_picture_through_a_network_in_tiles(networks: dict[int, Path]):
    """Larger than one tile, and smaller; every pixel as in one piece."""
    random = np.random.default_rng(4)
    with Enhancer(networks[2]) as enhancer:
        assert enhancer.scale == 2
        for height, width in ((250, 401), (5, 3)):
            pixels = random.integers(0, 256, (height, width, 3), dtype=np.uint8)
            found = np.asarray(enhancer(Image.fromarray(pixels)), dtype=float)
            wide = np.pad(pixels.astype(float), ((1, 1), (1, 1), (0, 0)), constant_values=127.5)
            mean = sum(wide[i : i + height, j : j + width] for i in range(3) for j in range(3)) / 9
            assert abs(found - mean.repeat(2, axis=0).repeat(2, axis=1)).max() <= 0.51


def test_what_is_wrong_with_a_network_is_one_line(tmp_path: Path, networks: dict[int, Path]):
    with pytest.raises(PgsrError, match="no bundle in"):
        Enhancer(tmp_path)
    damaged = shutil.copytree(networks[1], tmp_path / "damaged")
    (damaged / "upscaler.onnx").write_bytes(b"no graph")
    with pytest.raises(PgsrError, match="does not match the hash"):
        Enhancer(damaged)


# ----------------------------------------------------------------------------
# Whole sets.


def files(out: Path) -> dict[str, bytes]:
    """Everything that must not depend on how it was made."""
    kept = {path.name: path.read_bytes() for path in sorted((out / "pictures").iterdir())}
    return {**kept, "images.jsonl": (out / "images.jsonl").read_bytes()}


SMALL = Settings(size=32, oversampling=2)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The best 4 of 10, made at once in one process."""
    out = tmp_path_factory.mktemp("whole") / "out"
    run(Drawn(10), SMALL, out, keep=4)
    return out


def test_the_best_are_kept_and_their_provenance_is_true(whole: Path):
    records = [json.loads(line) for line in (whole / "images.jsonl").read_text().splitlines()]
    made = {r["name"]: r for r in map(json.loads, (whole / "made.jsonl").read_text().splitlines())}
    order = sorted(made.values(), key=lambda r: (-r["quality"], r["name"]))
    assert [r["name"] for r in records] == [r["name"] for r in order[:4]]
    assert [r["rank"] for r in records] == [1, 2, 3, 4]
    assert {r["file"] for r in records} == {path.name for path in (whole / "pictures").iterdir()}
    for record in records:
        index = int(record["name"].removesuffix(".jpg"))
        file = whole / "pictures" / record["file"]
        source = drawn_file(record["name"])
        assert record["sha256"] == sha256(file)
        assert record["source_sha256"] == hashlib.sha256(source).hexdigest()
        assert record["landmarks"] == wild.landmarks(index, wild.view(index)).round().tolist()
        assert Crop(**{**record["crop"], "right": tuple(record["crop"]["right"])}) == oriented_crop(
            np.array(record["landmarks"])
        )
        again = align(Image.open(io.BytesIO(source)).convert("RGB"), np.array(record["landmarks"]), 32, (), 2)
        assert again.picture.tobytes() == Image.open(file).tobytes()
        assert record["quality"] == quality(np.asarray(again.picture)).score


def test_processes_and_interruptions_change_nothing(whole: Path, tmp_path: Path):
    out = tmp_path / "out"
    run(Drawn(10), SMALL, out, keep=4, processes=2)
    assert files(out) == files(whole)
    log = (out / "made.jsonl").read_bytes().splitlines(keepends=True)
    (out / "made.jsonl").write_bytes(b"".join(log[:6]) + log[6][:20])  # killed while it wrote the seventh
    (out / "images.jsonl").unlink()
    (out / "pictures" / ".000009.png.99999999.tmp").write_bytes(b"half a picture")
    run(Drawn(10), SMALL, out, keep=4)
    assert files(out) == files(whole)


def living() -> dict[int, int]:
    """Processes and their parents, without those that have ended and are only waited for."""
    found = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            state, parent = stat.read_text().rpartition(")")[2].split()[:2]
            if state != "Z":
                found[int(stat.parent.name)] = int(parent)
    return found


def test_a_killed_process_leaves_no_workers_and_a_folder_that_goes_on(whole: Path, tmp_path: Path):
    out = tmp_path / "out"
    command = [
        sys.executable,
        "-m",
        "pgsr.trainer.data.celebahq.cli",
        "--procedural",
        "10",
        "--out",
        str(out),
    ]
    command += ["--size", "32", "--oversampling", "2", "--keep", "4", "--processes", "2"]
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    end = time.monotonic() + 600
    while not (out / "made.jsonl").is_file() or not (out / "made.jsonl").stat().st_size:
        assert time.monotonic() < end
        time.sleep(0.005)
    workers = {pid for pid, parent in living().items() if parent == process.pid}
    assert len(workers) >= 2
    process.kill()
    process.wait()
    while workers & living().keys():
        assert time.monotonic() < end
        time.sleep(0.05)
    (out / f".settings.json.{process.pid}.tmp").touch()  # as a kill while it is written leaves
    run(Drawn(10), SMALL, out, keep=4)
    assert files(out) == files(whole)


def test_finished_pictures_are_not_made_again(whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    out = shutil.copytree(whole, tmp_path / "out")
    removed = next((out / "pictures").iterdir())
    removed.unlink()
    made = []
    real = Maker.make
    monkeypatch.setattr(
        Maker, "make", lambda self, name, *rest: (made.append(name), real(self, name, *rest))[1]
    )
    run(Drawn(10), SMALL, out, keep=4)
    assert made == [removed.stem + ".jpg"]
    assert files(out) == files(whole)


def test_more_or_fewer_may_be_kept_later(whole: Path, tmp_path: Path):
    out = shutil.copytree(whole, tmp_path / "out")
    assert run(Drawn(10), SMALL, out, keep=2)["kept"] == 2
    assert len(files(out)) == 3
    run(Drawn(10), SMALL, out, keep=6)
    made = {r["name"]: r for r in map(json.loads, (whole / "made.jsonl").read_text().splitlines())}
    best = sorted(made.values(), key=lambda r: (-r["quality"], r["name"]))[:6]
    assert {p.name: sha256(p) for p in (out / "pictures").iterdir()} == {
        r["name"].replace("jpg", "png"): r["sha256"] for r in best
    }


def test_hopeless_pictures_are_not_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Beyond the first hundred, only what could be among the best; here the limit is said from the start."""
    (tmp_path / "pictures").mkdir()
    with Maker(None, SMALL, tmp_path) as maker:
        points = Drawn(1).landmarks("000000.jpg")
        found = maker.make("000000.jpg", points, least=1.0)
        assert not list((tmp_path / "pictures").iterdir())
        assert maker.make("000000.jpg", points, least=found["quality"]) == found
        assert [p.name for p in (tmp_path / "pictures").iterdir()] == ["000000.png"]


def test_landmarks_are_of_the_pixels_as_they_lie_in_the_file(tmp_path: Path):
    """CelebA's were found without regard to EXIF's orientation."""
    points = Drawn(1).landmarks("000000.jpg")
    plain = Image.open(io.BytesIO(drawn_file("000000.jpg")))
    exif = Image.Exif()
    exif[0x0112] = 6  # to be shown turned by a quarter
    (tmp_path / "pictures").mkdir()
    for name, tags in (("plain", Image.Exif()), ("turned", exif)):
        plain.save(tmp_path / f"{name}.jpg", quality=90, exif=tags)
    with Maker(open_pictures(tmp_path), SMALL, tmp_path) as maker:
        plain_made, turned = (maker.make(f"{name}.jpg", points, 0.0) for name in ("plain", "turned"))
    assert turned["source_size"] == list(plain.size)
    assert turned["sha256"] == plain_made["sha256"]


def test_another_set_in_the_same_folder_is_refused(whole: Path):
    with pytest.raises(PgsrError, match="begun with another size: name another"):
        run(Drawn(10), replace(SMALL, size=48), whole, keep=4)
    with pytest.raises(PgsrError, match="begun with another procedural"):
        run(Drawn(11), SMALL, whole, keep=4)


# ----------------------------------------------------------------------------
# The command, on files in CelebA's form.


def write_celeba(folder: Path, count: int = 5, first: dict[str, bytes] | None = None) -> Path:
    """In-the-wild pictures and list_landmarks_celeba.txt, one folder above as CelebA's Anno is."""
    pictures = folder / "img_celeba"
    pictures.mkdir(parents=True)
    lines = []
    for i in range(count):
        name = f"{i + 1:06d}.jpg"
        (pictures / name).write_bytes((first or {}).get(name) or drawn_file(f"{i:06d}.jpg"))
        points = wild.landmarks(i, wild.view(i)).round().astype(int).ravel()
        lines.append(f"{name}  {'  '.join(map(str, points))}")
    (folder / "Anno").mkdir()
    text = f"{count}\n{' '.join(celeba.LANDMARK_COLUMNS)} \n" + "\n".join(lines) + "\n"
    (folder / "Anno" / "list_landmarks_celeba.txt").write_text(text)
    return pictures


@pytest.fixture(scope="module")
def five(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_celeba(tmp_path_factory.mktemp("five") / "celeba")


def test_celebas_files_become_faces(tmp_path: Path, command, networks: dict[int, Path]):
    """Folder and zip alike; landmarks found by themselves; networks in front."""
    source = write_celeba(tmp_path / "celeba", 3)
    out = tmp_path / "out"
    options = ("--size", 48, "--keep", 2, "--processes", 1)
    result = command(main, source, "--out", out, *options, "--json")
    assert result.exit_code == 0, result.output
    summary = json.loads(result.stdout)
    assert (summary["judged"], summary["kept"], summary["skipped"]) == (3, 2, 0)
    archive = tmp_path / "celeba" / "img_celeba.zip"
    with zipfile.ZipFile(archive, "w") as packed:
        for path in source.iterdir():
            packed.write(path, f"img_celeba/{path.name}")
    assert command(main, archive, "--out", tmp_path / "zipped", *options).exit_code == 0
    first, second = (
        {n: c for n, c in files(o).items() if n != "images.jsonl"} for o in (out, tmp_path / "zipped")
    )
    assert first == second
    passes = ("--restorer", networks[1], "--upscaler", networks[2])
    result = command(
        main,
        source,
        "--out",
        tmp_path / "enhanced",
        "--size",
        512,
        "--oversampling",
        1,
        "--processes",
        1,
        *passes,
    )
    assert result.exit_code == 0, result.output
    assert "; 3 through the restorer; 3 through the upscaler" in result.stdout
    records = [json.loads(line) for line in (tmp_path / "enhanced" / "images.jsonl").read_text().splitlines()]
    assert all(record["passes"] == ["restorer", "upscaler"] for record in records)
    settings = tmp_path / "enhanced" / "settings.json"
    rule = json.loads(settings.read_text())
    del rule["rule of --upscaler"]  # as pgsr 0.1 wrote it
    settings.write_text(json.dumps(rule))
    result = command(
        main, source, "--out", tmp_path / "enhanced", "--size", 512, "--oversampling", 1, *passes
    )
    assert result.exit_code == 1
    assert "was begun with another rule of --upscaler: name another --out" in result.stderr


def test_networks_in_each_others_place(networks: dict[int, Path]):
    with pytest.raises(
        PgsrError, match=r"--restorer .* makes pictures 2 times as large: is it for --upscaler"
    ):
        Settings(restorer=networks[2])
    with pytest.raises(PgsrError, match=r"--upscaler .* 1 times as large: is it for --restorer"):
        Settings(upscaler=networks[1])


def test_what_cannot_be_used_is_named_up_to_a_limit(tmp_path: Path, command):
    whole = drawn_file("000001.jpg")
    bad = {"000002.jpg": whole[: len(whole) // 2], "000003.jpg": b"no picture"}
    source = write_celeba(tmp_path / "celeba", 4, bad)
    (source / "000009.jpg").write_bytes(whole)  # without landmarks
    options = ("--size", 32, "--processes", 1, "--oversampling", 1)
    result = command(main, source, "--out", tmp_path / "out", *options)
    assert result.exit_code == 0, result.output
    assert "kept the best 2 of 2 faces, 3 pictures skipped" in result.stdout
    for line in ("skipped 000002.jpg: cannot be read", "skipped 000009.jpg: no landmarks"):
        assert line in result.stderr
    result = command(main, source, "--out", tmp_path / "strict", *options, "--max-damaged", 1)
    assert result.exit_code == 1
    assert "error: more than 1 pictures are damaged, the last of them 000003.jpg" in result.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "name the folder or zip of pictures"),
        (("--procedural", 3), "name the folder to write to"),
        (("--procedural", 3, "--out", "o", "--size", 8), "--size 8 is below 16"),
        (("absent", "--out", "o"), "no folder or zip of pictures at absent"),
        (("--procedural", 3, "--out", "o", "--upscaler", "absent"), "no bundle in absent"),
    ],
)
def test_what_a_user_gets_wrong_is_one_line(
    arguments: tuple, message: str, command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    result = command(main, *arguments)
    assert result.exit_code == 1
    assert message in result.stderr
    assert len(result.stderr.splitlines()) == 1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.replace("5\n", "6\n", 1), "says 6 pictures but has 5"),
        (lambda t: t.replace("nose_x", "nase_x"), "has no column 'nose_x'"),
        (lambda t: t.rsplit(" ", 1)[0], "has 9 values for 10 columns"),
        (lambda t: "", "holds no annotations"),
        (lambda t: t.rsplit(" ", 1)[0] + " x\n", "something other than numbers"),
    ],
)
def test_damaged_landmarks(change, message: str, tmp_path: Path, command, five: Path):
    source = five
    table = tmp_path / "landmarks.txt"
    table.write_text(change((five.parent / "Anno" / "list_landmarks_celeba.txt").read_text()))
    result = command(
        main, source, "--out", tmp_path / "out", "--landmarks", table, "--size", 16, "--processes", 1
    )
    assert result.exit_code == 1
    assert message in result.stderr


def test_the_figure_of_the_steps(tmp_path: Path, command):
    result = command(main, "--figure", tmp_path / "steps.png", "--picture", 8, "--size", 64, "--json")
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["picture"] == "000008.jpg"
    with Image.open(tmp_path / "steps.png") as figure:
        pixels = np.asarray(figure.convert("RGB")).astype(int)
    assert figure.width > 5 * 300  # in the wild, cut out, mirrored, filtered, with the rectangle, made
    red = (abs(pixels - (230, 30, 30)).max(axis=2) < 3).sum()
    assert red > 500
    result = command(main, "--figure", tmp_path / "steps.png", "--picture", "absent.jpg")
    assert result.exit_code == 1
    assert "there is no picture absent.jpg" in result.stderr


WITHOUT_PASSES = '{"name": "a", "quality": 1}'
NO_NUMBERS = [f'{{"name": "a", "quality": {quality}, "passes": []}}' for quality in ('"1"', "NaN", "null")]


@pytest.mark.parametrize(
    "line", ["3", "[]", "{}", '{"name": 3}', WITHOUT_PASSES, *NO_NUMBERS, "[" * 100_000], ids=lambda v: v[:40]
)
def test_records_of_anything_are_a_line(line: str, tmp_path: Path):
    path = tmp_path / "records.jsonl"
    good = '{"name": "a.jpg", "skipped": "no landmarks"}\n'
    path.write_text(good)
    assert read_records(path) == [{"name": "a.jpg", "skipped": "no landmarks"}]
    path.write_text(f"{good}{line}\n")
    with pytest.raises(PgsrError, match=r"records\.jsonl is damaged .*: name another --out"):
        read_records(path)


@pytest.mark.parametrize(
    "text",
    [
        "²\npartition\na.jpg 0\na 1\n",
        "9" * 5000 + "\npartition\na.jpg 0\n",
        "id,partition\n" + "a" * 200_000 + ",0\n",
    ],
    ids=["two", "large", "long"],
)
def test_tables_of_odd_numbers_and_names_are_a_line(text: str, tmp_path: Path):
    (tmp_path / "list.txt").write_text(text, encoding="utf-8")
    with pytest.raises(PgsrError, match=r"list\.txt says .* pictures but has|cannot read the annotations in"):
        celeba.read_table(tmp_path / "list.txt")
    (tmp_path / "list.txt").write_text("2\npartition\na.jpg 0\nb.jpg 1\n")
    assert celeba.part_of(celeba.read_table(tmp_path / "list.txt"), "b.jpg") == 1
