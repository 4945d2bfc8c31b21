"""pgsr-upscale: tiles that cannot be seen, and pictures that keep what belongs to them."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

import bundles as tiny
from pgsr.errors import PgsrError
from pgsr.files import sha256
from pgsr.images import to_float, to_uint8
from pgsr.runtime.upscale.upscaler import RAMP, Axis, Upscaler
from upscaling import SCALE, command, file_of, made_by, opened, picture, pixels, upscaled, write_upscaler

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_upscaler(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def upscaler(model: Path) -> Upscaler:
    return opened(model)


def at_once(upscaler: Upscaler, made: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """The whole picture through the network, without tiles."""
    return to_uint8(upscaler._runner.run(np.ascontiguousarray(to_float(made[None]))))[0]


# ----------------------------------------------------------------------------
# Tiles.


def test_the_reach_is_measured(upscaler: Upscaler) -> None:
    assert 4 <= upscaler.reach <= 5 + 2  # five 3 x 3 convolutions, and two to spare


@pytest.mark.parametrize("tile", [32, 33, 48, 64, 100])
@pytest.mark.parametrize("shape", [(40, 30), (97, 41), (64, 64), (33, 200), (1, 1), (5, 70)])
def test_tiles_are_not_seen(model: Path, tile: int, shape: tuple[int, int]) -> None:
    """Not even at the picture's borders, since tiles end where the picture does."""
    tiled, made = opened(model, tile=tile), picture(*shape)
    larger, whole = tiled.upscale(made), at_once(tiled, made)
    assert larger.shape == (shape[0] * SCALE, shape[1] * SCALE, 3)
    assert np.abs(larger.astype(int) - whole).max() <= 1


def test_tiles_of_wide_pictures_are_lower(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """So that a row of them does not take much more memory than it may."""
    tiled, made = opened(model, tile=128), picture(300, 200)
    bands = list(tiled.bands(300, 200, lambda top, bottom: made[top:bottom]))
    monkeypatch.setattr("pgsr.runtime.upscale.upscaler.BAND_BYTES", 200 * SCALE**2 * 3 * 10)
    lower = list(tiled.bands(300, 200, lambda top, bottom: made[top:bottom]))
    assert max(map(len, bands)) > 200 > 110 > max(map(len, lower))
    assert np.abs(np.concatenate(lower).astype(int) - np.concatenate(bands)).max() <= 1


def test_tiles_without_a_margin_would_be_seen(model: Path) -> None:
    """The test above can fail."""
    tiled, made = opened(model, tile=32), picture(97, 80)
    tiled.__dict__["reach"] = 0
    assert np.abs(tiled.upscale(made).astype(int) - at_once(tiled, made)).max() > 1


def test_tiles_of_the_model_that_ships() -> None:
    tiled, made = opened(None, tile=64), picture(100, 90)
    assert tiled.scale == 4
    assert np.abs(tiled.upscale(made).astype(int) - at_once(tiled, made)).max() <= 1


@pytest.mark.parametrize("shape", [(16, 16), (10, 7), (40, 30)])
def test_a_network_for_one_size(shape: tuple[int, int], tmp_path: Path) -> None:
    fixed = opened(write_upscaler(tmp_path / "fixed", side=32))
    larger = fixed.upscale(picture(*shape))
    assert larger.shape == (shape[0] * SCALE, shape[1] * SCALE, 3)
    whole = at_once(opened(write_upscaler(tmp_path / "any")), picture(*shape))
    inner = (
        (slice(12, -12),) * 2
        if min(shape) > 16
        else (slice(0, 2 * shape[0] - 12), slice(0, 2 * shape[1] - 12))
    )
    assert np.abs(larger[inner].astype(int) - whole[inner]).max() <= 1


@pytest.mark.parametrize(
    ("length", "most", "margin"), [(200, 64, 9), (65, 64, 9), (1000, 32, 40), (64, 64, 0)]
)
@pytest.mark.parametrize("fixed", [False, True])
def test_counts_sum_to_one(length: int, most: int, margin: int, fixed: bool) -> None:
    axis = Axis(length, most, margin, 2, fixed)
    total = np.zeros(2 * length)
    for start, weights in zip(axis.starts, axis.weights, strict=True):
        assert weights.min() >= 0
        total[2 * start : 2 * (start + axis.side)] += weights
    assert np.allclose(total, 1, atol=1e-6)
    assert axis.starts[0] == 0
    assert axis.starts[-1] + axis.side == length
    assert axis.side <= most
    if margin == 9:  # what is near a tile's edge does not count
        assert axis.weights[0][-2 * margin :].max() == 0
        assert RAMP > 1


def test_no_upscaler_in_the_bundle(tmp_path: Path) -> None:
    with pytest.raises(PgsrError, match="holds no upscaler graph"):
        opened(tiny.write_bundle(tmp_path / "model"))


# ----------------------------------------------------------------------------
# Pictures.


def test_colours(model: Path, upscaler: Upscaler, tmp_path: Path) -> None:
    found = upscaled(model, tmp_path, file_of(Image.fromarray(picture())), "a.png")
    assert (found.format, found.mode) == ("PNG", "RGB")
    assert np.array_equal(np.asarray(found), upscaler.upscale(picture()))


def test_alpha_is_kept(model: Path, upscaler: Upscaler, tmp_path: Path) -> None:
    alpha = np.zeros((40, 30), np.uint8)
    alpha[:20, :15] = 255
    given = Image.fromarray(np.dstack([picture(), alpha]))
    found = upscaled(model, tmp_path, file_of(given), "a.png")
    assert found.mode == "RGBA"
    larger = np.asarray(found)
    seen = (slice(0, 2 * (20 - 7)), slice(0, 2 * (15 - 7)))  # beyond the network's reach of what is hidden
    assert np.array_equal(larger[seen][..., :3], upscaler.upscale(picture())[seen])
    assert (larger[:34, :24, 3] == 255).all()
    assert (larger[46:, :, 3] == 0).all()
    found = upscaled(
        model, tmp_path, file_of(given, "WEBP", lossless=True), "b.webp", "--out", tmp_path / "w"
    )
    assert pixels(tmp_path / "w" / "b.webp").shape == (80, 60, 4)


@pytest.mark.parametrize("mode", ["L", "LA", "P", "1", "I;16", "CMYK"])
def test_modes(model: Path, mode: str, tmp_path: Path) -> None:
    grey = Image.fromarray(picture()).convert("L")
    given = {
        "LA": lambda: Image.merge("LA", (grey, grey)),
        "I;16": lambda: Image.fromarray(np.asarray(grey).astype(np.uint16) * 257),
    }.get(mode, lambda: Image.fromarray(picture()).convert(mode))()
    kind = "TIFF" if mode == "CMYK" else "PNG"
    found = upscaled(model, tmp_path, file_of(given, kind), f"a.{kind.lower()}")
    expected = {"P": "RGB", "CMYK": "RGB", "LA": "LA"}.get(mode, "L")
    assert (found.mode, found.size) == (expected, (60, 80))
    if mode in ("L", "I;16"):
        assert np.asarray(found).std() > 20


@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientation_is_applied(model: Path, upscaler: Upscaler, orientation: int, tmp_path: Path) -> None:
    """As ImageMagick and browsers do: the pixels are turned, and the tag is gone."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    exif[0x010F] = "A camera"
    data = file_of(Image.fromarray(picture()), "PNG", exif=exif)
    found = upscaled(model, tmp_path, data, "a.png")
    turned = {
        1: lambda p: p,
        2: lambda p: p[:, ::-1],
        3: lambda p: p[::-1, ::-1],
        4: lambda p: p[::-1],
        5: lambda p: p.swapaxes(0, 1),
        6: lambda p: p.swapaxes(0, 1)[:, ::-1],
        7: lambda p: p[::-1, ::-1].swapaxes(0, 1),
        8: lambda p: p.swapaxes(0, 1)[::-1],
    }[orientation](picture())
    assert np.array_equal(np.asarray(found), upscaler.upscale(np.ascontiguousarray(turned)))
    assert found.getexif().get(0x0112, 1) == 1
    assert found.getexif()[0x010F] == "A camera"


def test_what_belongs_to_a_photograph(model: Path, tmp_path: Path) -> None:
    from PIL import ImageCms

    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    exif = Image.Exif()
    exif[0x010E] = "at the sea"
    options = {"icc_profile": profile, "exif": exif, "dpi": (300, 300), "quality": 95}
    found = upscaled(model, tmp_path, file_of(Image.fromarray(picture()), "JPEG", **options), "a.jpg")
    assert found.format == "JPEG"
    assert found.info["icc_profile"] == profile
    assert found.info["dpi"] == (300, 300)
    assert found.getexif()[0x010E] == "at the sea"
    note = json.loads(found.getexif()[0x0131])["pgsr"]
    assert note["model"] == sha256(model / "upscaler.onnx")
    assert note["source"] == sha256(tmp_path / "a.jpg")


# ----------------------------------------------------------------------------
# Files.


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    folder = tmp_path / "photos"
    for name in ("a.png", "sub/b.jpg", ".hidden/c.png"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(picture()).save(folder / name)
    (folder / "notes.txt").write_text("no picture")
    return folder


def files_in(folder: Path) -> list[str]:
    return sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file())


def test_folders_and_going_on(model: Path, photos: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    first = made_by(model, photos, "--out", out)
    assert (first["made"], first["present"], first["scale"]) == (2, 0, SCALE)
    assert files_in(out) == ["a.png", "sub/b.jpg"]
    right = (out / "a.png").read_bytes()
    (out / "a.png").unlink()
    again = made_by(model, photos, "--out", out)
    assert (again["made"], again["present"]) == (1, 1)
    assert (out / "a.png").read_bytes() == right


def test_patterns(model: Path, photos: Path, tmp_path: Path) -> None:
    assert made_by(model, photos / "*.png", "--out", tmp_path / "out")["made"] == 1
    assert made_by(model, photos / "**/*.jpg", "--out", tmp_path / "deep")["made"] == 1
    assert files_in(tmp_path / "deep") == ["b.jpg"]


def test_another_format_and_a_files_name(model: Path, photos: Path, tmp_path: Path) -> None:
    made_by(model, photos, "--out", tmp_path / "w", "--format", "webp")
    assert files_in(tmp_path / "w") == ["a.webp", "sub/b.webp"]
    made_by(model, photos / "a.png", "--out", tmp_path / "one.jpg", "--quality", 80)
    with Image.open(tmp_path / "one.jpg") as found:
        assert (found.format, found.size) == ("JPEG", (60, 80))


def test_stdin_to_stdout(model: Path, upscaler: Upscaler) -> None:
    for format in ("PNG", "JPEG", "BMP"):
        result = command(model, "-", stdin=file_of(Image.fromarray(picture()), format))
        assert result.exit_code == 0, result.stderr
        with Image.open(io.BytesIO(result.stdout_bytes)) as found:
            assert found.format == {"BMP": "PNG"}.get(format, format)
            assert np.array_equal(np.asarray(found), upscaler.upscale(picture())) or format == "JPEG"


def test_stdin_of_a_real_process(model: Path) -> None:
    done = subprocess.run(
        [
            sys.executable,
            "-c",
            "from pgsr.runtime.upscale.cli import main; main()",
            "-",
            "--model",
            str(model),
        ],
        cwd=ROOT,
        input=file_of(Image.fromarray(picture())),
        capture_output=True,
        check=True,
    )
    with Image.open(io.BytesIO(done.stdout)) as found:
        assert found.size == (60, 80)


def test_something_else_is_not_replaced(model: Path, photos: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "a.png").write_bytes(b"mine")
    result = command(model, photos, "--out", out)
    assert result.exit_code == 1
    assert "--overwrite" in result.stderr
    assert (out / "a.png").read_bytes() == b"mine"
    assert (out / "sub" / "b.jpg").exists()  # the others are made
    assert made_by(model, photos, "--out", out, "--overwrite")["made"] == 1
    assert pixels(out / "a.png").shape == (80, 60, 3)


def test_one_bad_picture_does_not_stop_the_others(model: Path, photos: Path, tmp_path: Path) -> None:
    (photos / "a.png").write_bytes(b"\x89PNG\r\n\x1a\nbroken")
    result = command(model, photos, "--out", tmp_path / "out")
    assert result.exit_code == 1
    assert result.stderr.count("\n") == 1
    assert "1 of 2 are not made" in result.stderr
    assert "a.png cannot be read" in result.stderr
    assert files_in(tmp_path / "out") == ["sub/b.jpg"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["absent.png"], "is not there"),
        (["*.absent"], "no file matches"),
        (["{photos}/notes.txt"], "cannot be read as a picture"),
        (["{photos}", "--out", "x.png"], "is one file for 2 pictures"),
        (["{photos}", "--out", "-"], "one picture alone"),
        (["{photos}/a.png", "--out", "{photos}"], "would replace the picture"),
        (["{photos}/a.png", "--format", "gif"], "--format"),
        (["{photos}/a.png", "--tile", "3"], "--tile"),
        (["{photos}/a.png", "*.absent"], "no file matches"),
        (["{photos}/a.png", "--out", "x.tif"], "pictures are written as .png, .jpg, .webp"),
        (["{photos}/a.png", "--out", "{photos}/notes.txt"], "is a file: name a folder"),
        (["{photos}/a.png", "{photos}/sub/../a.png", "--out", "{photos}"], "would replace the picture"),
    ],
)
def test_one_line_for_what_is_wrong(
    model: Path,
    photos: Path,
    arguments: list[str],
    words: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    result = command(model, *[a.format(photos=photos) for a in arguments])
    assert result.exit_code == 1, result.output
    assert result.stdout == ""
    assert result.stderr.startswith("error: ")
    assert result.stderr.count("\n") == 1
    assert words in result.stderr
    assert sorted(p.name for p in tmp_path.iterdir()) == ["photos"]


def test_what_cannot_be_upscaled(model: Path, tmp_path: Path) -> None:
    frames = [Image.fromarray(picture()), Image.fromarray(picture()[::-1].copy())]
    frames[0].save(tmp_path / "moving.gif", save_all=True, append_images=frames[1:])
    result = command(model, tmp_path / "moving.gif", "--out", tmp_path / "out")
    assert "only still pictures" in result.stderr
    clear = Image.fromarray(np.dstack([picture(), picture()[..., 0]]))
    clear.save(tmp_path / "clear.png")
    result = command(model, tmp_path / "clear.png", "--format", "jpeg", "--out", tmp_path / "out")
    assert "transparency" in result.stderr
    assert not (tmp_path / "out").exists()
