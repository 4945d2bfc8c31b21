"""pgsr-upscale's files: metadata that is kept where it can be, what is found and left alone, bad pictures
among good ones, hidden colours, and memory that does not grow with the result."""

from __future__ import annotations

import io
import os
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from pgsr.errors import PgsrError
from pgsr.runtime.upscale.hidden import fill_hidden
from pgsr.runtime.upscale.metadata import read_metadata
from pgsr.runtime.upscale.notes import held_note, is_own
from pgsr.runtime.upscale.row_encoders import MOST_SIDE, open_encoder
from pgsr.runtime.upscale.tasks import find, targets
from upscaling import SCALE, command, file_of, made_by, opened, picture, pixels, upscaled, write_upscaler

ROOT = Path(__file__).resolve().parent.parent
WIDTH, HEIGHT = 30 * SCALE, 40 * SCALE
XMP = (
    b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:Description tiff:Orientation="6" exif:PixelXDimension="30">'
    b"<exif:PixelYDimension>40</exif:PixelYDimension><dc:title>at the sea</dc:title></rdf:Description>"
    b"</x:xmpmeta>"
)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_upscaler(tmp_path_factory.mktemp("model"))


def still() -> Image.Image:
    return Image.fromarray(picture())


def camera_exif(makers_note: bytes = b"maker's") -> bytes:
    """As cameras write it, sizes included."""
    exif = Image.Exif()
    exif[0x0100], exif[0x0101], exif[0x010F] = 30, 40, "A camera"
    exif[0x8769] = {0x9003: "2020:01:01 00:00:00", 0xA002: 30, 0xA003: 40, 0x927C: makers_note}
    exif[0x8825] = {1: "N", 2: (48.0, 8.0, 30.0)}
    return exif.tobytes()


def started(program: str, *arguments: Any) -> subprocess.CompletedProcess[str]:
    """What a Python program of its own says."""
    line = [sys.executable, "-c", program, *map(str, arguments)]
    return subprocess.run(line, cwd=ROOT, capture_output=True, text=True)


# ----------------------------------------------------------------------------
# Metadata.


@pytest.mark.parametrize("source", ["JPEG", "PNG", "WEBP", "TIFF", "MPO"])
@pytest.mark.parametrize("format", ["png", "jpeg", "webp"])
def test_exif_is_kept_with_the_new_sizes(model: Path, source: str, format: str, tmp_path: Path) -> None:
    data = file_of(still(), source, exif=camera_exif())
    found = upscaled(model, tmp_path, data, f"a.{source.lower()}", "--format", format)
    exif = found.getexif()
    own = exif.get_ifd(0x8769)
    assert exif[0x010F] == "A camera"
    assert own[0x9003] == "2020:01:01 00:00:00"
    assert own[0x927C] == b"maker's"
    assert exif.get_ifd(0x8825)[1] == "N"
    assert (own[0xA002], own[0xA003]) == (WIDTH, HEIGHT) == found.size
    if source != "TIFF":  # of which these are the pixels' own
        assert (exif[0x0100], exif[0x0101]) == (WIDTH, HEIGHT)
    assert not {0x0111, 0x0117, 0x0106} & set(exif)  # where a TIFF's pixels were


@pytest.mark.parametrize("format", ["png", "jpeg", "webp"])
@pytest.mark.parametrize("source", ["JPEG", "PNG", "WEBP", "TIFF"])
def test_xmp_is_kept(model: Path, source: str, format: str, tmp_path: Path) -> None:
    """Its sizes are the new ones, and its orientation is that of a picture that stands upright."""
    text = PngInfo()
    text.add_itxt("XML:com.adobe.xmp", XMP.decode())
    segment = b"http://ns.adobe.com/xap/1.0/\0" + XMP
    every: dict[str, dict[str, Any]] = {
        "JPEG": {"extra": b"\xff\xe1" + struct.pack(">H", len(segment) + 2) + segment},
        "PNG": {"pnginfo": text},
        "WEBP": {"xmp": XMP},
        "TIFF": {"tiffinfo": {700: XMP}},
    }
    data = file_of(still(), source, **every[source])
    found = upscaled(model, tmp_path, data, f"a.{source.lower()}", "--format", format)
    kept = read_metadata(found, None).xmp
    width, height = found.size
    assert b"at the sea" in kept
    assert f'exif:PixelXDimension="{width}"'.encode() in kept
    assert f"<exif:PixelYDimension>{height}</exif:PixelYDimension>".encode() in kept
    assert b'tiff:Orientation="1"' in kept


def test_text_of_a_png(model: Path, tmp_path: Path) -> None:
    text = PngInfo()
    text.add_text("parameters", "a portrait, seed 7")
    text.add_text("Title", "Bäume é 木")
    data = file_of(still(), "PNG", pnginfo=text)
    found = upscaled(model, tmp_path, data, "a.png")
    assert found.text["parameters"] == "a portrait, seed 7"  # type: ignore[attr-defined]
    assert found.text["Title"] == "Bäume é 木"  # type: ignore[attr-defined]
    result = command(model, tmp_path / "a.png", "--format", "webp", "--out", tmp_path / "other")
    assert (result.exit_code, result.stderr) == (
        0,
        f"note: {tmp_path / 'a.png'}: left out, text 'parameters', text 'Title'\n",
    )


def test_a_comment(model: Path, tmp_path: Path) -> None:
    data = file_of(still(), "JPEG", comment=b"by the sea")
    assert upscaled(model, tmp_path, data, "a.jpg").info["comment"] == b"by the sea"
    made_by(model, tmp_path / "a.jpg", "--format", "png", "--out", tmp_path / "b.png")
    with Image.open(tmp_path / "b.png") as found:
        assert found.info["Comment"] == "by the sea"


ODD_DPI = [(0.0, 0.0), (70000.0, 70000.0), (float("nan"), 1.0), (float("inf"), 72.0), (-1.0, 72.0)]


@pytest.mark.parametrize("dpi", ODD_DPI)
@pytest.mark.parametrize("format", ["png", "jpeg", "webp"])
def test_a_silly_resolution_is_dropped(
    model: Path, dpi: tuple[float, float], format: str, tmp_path: Path
) -> None:
    """TIFF: as rationals of 0/0, 1/0 and beyond."""
    parts = {"nan": (0, 0), "inf": (1, 0), "-1.0": (0, 5), "0.0": (0, 1)}
    data = bytearray(file_of(still(), "TIFF", dpi=(72, 72)))
    place = data.index(struct.pack("<II", 72, 1))
    for offset, value in zip((place, place + 8), dpi, strict=True):
        numerator, denominator = parts.get(str(value), (int(value) if np.isfinite(value) else 1, 1))
        data[offset : offset + 8] = struct.pack("<II", numerator, denominator)
    found = upscaled(model, tmp_path, bytes(data), "a.tif", "--format", format)
    assert found.size == (WIDTH, HEIGHT)
    assert found.info.get("dpi", (72, 72))[0] < 100


@pytest.mark.parametrize("name", ["xres", "unit", "width", "srational", "self", "garbage"])
@pytest.mark.parametrize("format", ["png", "jpeg", "webp"])
def test_damaged_exif_is_no_reason_to_stop(model: Path, name: str, format: str, tmp_path: Path) -> None:
    """What can be carried over is: here the camera's name, which stands beside the damaged tag."""
    make = (0x10F, 2, 4, b"abc\0")
    entries: dict[str, list[tuple[int, int, int, bytes]]] = {
        "xres": [make, (0x11A, 2, 4, b"300\0")],
        "unit": [make, (0x128, 5, 1, struct.pack("<I", 38))],
        "width": [(0x100, 2, 4, b"abc\0"), make],
        "srational": [make, (0x9204, 10, 1, struct.pack("<I", 38))],
        "self": [make, (0x8769, 4, 1, struct.pack("<I", 8))],
    }
    rows = entries.get(name, [])
    body = b"".join(struct.pack("<HHI", *row[:3]) + row[3] for row in rows)
    exif = b"II*\0" + struct.pack("<IH", 8, len(rows)) + body + bytes(4) + struct.pack("<ii", -1, 0)
    data = file_of(still(), "JPEG", exif=b"Exif\0\0" + (b"garbage" if name == "garbage" else exif))
    found = upscaled(model, tmp_path, data, "a.jpg", "--format", format)
    assert found.size == (WIDTH, HEIGHT)
    assert name == "garbage" or found.getexif()[0x10F] == "abc"


def test_what_is_left_out_is_named(model: Path, tmp_path: Path) -> None:
    exif = b"II*\0" + struct.pack("<IHHHI4sI", 8, 1, 0x11A, 2, 4, b"300\0", 0)
    (tmp_path / "a.jpg").write_bytes(file_of(still(), "JPEG", exif=b"Exif\0\0" + exif))
    result = command(model, tmp_path / "a.jpg", "--out", tmp_path / "out")
    assert result.exit_code == 0
    assert result.stderr == f"note: {tmp_path / 'a.jpg'}: left out, EXIF XResolution\n"


def test_exif_that_is_too_long_for_a_jpeg(model: Path, tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(file_of(still(), "PNG", exif=camera_exif(bytes(70_000))))
    result = command(model, tmp_path / "a.png", "--out", tmp_path / "a.jpg")
    assert result.exit_code == 0, result.stderr
    assert result.stderr == f"note: {tmp_path / 'a.png'}: left out, EXIF\n"
    assert held_note(tmp_path / "a.jpg") is not None
    assert made_by(model, tmp_path / "a.png", "--out", tmp_path / "a.jpg")["present"] == 1


# ----------------------------------------------------------------------------
# Bad pictures among good ones.


def bad_webp(folder: Path) -> str:
    Image.new("RGB", (MOST_SIDE["webp"] // SCALE + 1, 2)).save(folder / "bad.png")
    return "would be 16384x4, and webp ends at 16,383 pixels a side: use --format png"


def bad_jpeg(folder: Path) -> str:
    Image.new("RGB", (1, MOST_SIDE["jpeg"] // SCALE + 1)).save(folder / "bad.png")
    return "would be 2x65502, and jpeg ends at 65,500 pixels a side: use --format png"


def bad_moving(folder: Path) -> str:
    still().save(folder / "bad.gif", save_all=True, append_images=[Image.new("RGB", (30, 40))])
    return "only still pictures are upscaled"


def bad_bytes(folder: Path) -> str:
    (folder / "bad.png").write_bytes(file_of(still())[:-100])
    return "cannot be read as a picture"


def bad_format(folder: Path) -> str:
    (folder / "bad.jpg").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 64 64\nshowpage\n%%EOF\n")
    return "of no format that is read"


def bad_numbers(folder: Path) -> str:
    Image.fromarray(np.arange(64, dtype=np.int32).reshape(8, 8)).save(folder / "bad.tif")
    return "holds signed integers"


def bad_link(folder: Path) -> str:
    (folder / "bad.png").symlink_to(folder / "gone.png")
    return "is a link to nothing"


def bad_clear(folder: Path) -> str:
    Image.new("RGBA", (8, 8), (0, 0, 0, 100)).save(folder / "bad.png")
    return "has transparency, which a JPEG has not"


@pytest.mark.parametrize(
    ("spoil", "format"),
    [
        (bad_webp, "webp"),
        (bad_jpeg, "jpeg"),
        (bad_moving, "png"),
        (bad_bytes, "png"),
        (bad_format, "png"),
        (bad_numbers, "png"),
        (bad_link, "png"),
        (bad_clear, "jpeg"),
    ],
)
def test_one_bad_picture_is_named_and_the_others_are_made(
    model: Path, spoil: Callable[[Path], str], format: str, tmp_path: Path
) -> None:
    photos = tmp_path / "photos"
    photos.mkdir()
    for name in ("a.png", "z.png"):
        still().save(photos / name)
    words = spoil(photos)
    result = command(model, photos, "--out", tmp_path / "out", "--format", format)
    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr.startswith(f"error: 1 of 3 are not made: {photos / 'bad'}")
    assert words in result.stderr
    assert result.stderr.count("\n") == 1
    assert [p.stem for p in sorted((tmp_path / "out").iterdir())] == ["a", "z"]


def test_a_name_that_is_too_long_is_of_one_picture(model: Path, tmp_path: Path) -> None:
    photos = tmp_path / "photos"
    photos.mkdir()
    for name in ("b" * 251 + ".tif", "b" * 251 + ".bmp", "c.png"):  # b.tif.png is longer than a name may be
        still().save(photos / name)
    result = command(model, photos, "--out", tmp_path / "out")
    assert result.exit_code == 1
    assert "2 of 3 are not made" in result.stderr
    assert [p.name for p in (tmp_path / "out").iterdir()] == ["c.png"]


def test_a_full_disk_stops_all(model: Path, tmp_path: Path) -> None:
    """It is not of one picture. A real one: a file system of 64 kB would need root, a limit does not."""
    program = (
        "import resource, signal; signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))\n"
        "from pgsr.runtime.upscale.cli import main; main()"
    )
    photos = tmp_path / "photos"
    photos.mkdir()
    for name in ("a.png", "b.png"):
        Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)).save(photos / name)
    arguments = [
        photos,
        "--out",
        tmp_path / "out",
        "--model",
        model,
        "--backend",
        "onnxruntime",
        "--device",
        "cpu",
    ]
    done = subprocess.run(
        [sys.executable, "-c", program, *map(str, arguments)], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1
    assert done.stderr.startswith("error: cannot write")
    assert list((tmp_path / "out").iterdir()) == []


# ----------------------------------------------------------------------------
# What is found.


def test_its_own_results_are_left_alone(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("a.png", "b.jpg", "c.webp"):
        still().save(name)
    (tmp_path / "notes.txt").write_text("no picture")
    first = made_by(model, ".")
    assert first["made"] == 3
    assert first["left_alone"] == {"no pictures by their names": 1}
    again = made_by(model, ".")
    assert (again["made"], again["present"]) == (0, 3)
    assert again["left_alone"]["results of pgsr-upscale"] == 3
    assert sorted(p.name for p in tmp_path.rglob("*.png")) == ["a.png", "a.png"]
    assert made_by(model, "**/*.png")["left_alone"] == {"results of pgsr-upscale": 1}
    assert command(model, "upscaled").stderr.endswith("holds no pictures but results of pgsr-upscale\n")
    assert made_by(model, "upscaled/a.png", "--out", "twice.png")["made"] == 1  # named, so it is wanted
    assert pixels(tmp_path / "twice.png").shape == (40 * SCALE**2, 30 * SCALE**2, 3)


def test_notes_are_read_without_the_picture(model: Path, tmp_path: Path) -> None:
    """In the three formats, from files that end; of anything else there is none."""
    for name in ("a.png", "a.jpg", "a.webp"):
        still().save(tmp_path / "source.png")
        made_by(model, tmp_path / "source.png", "--out", tmp_path / name)
        data = (tmp_path / name).read_bytes()
        assert is_own(tmp_path / name)
        (tmp_path / "cut").write_bytes(data[:-10])
        assert held_note(tmp_path / "cut") is None
    random = np.random.default_rng(0)
    for trial in range(100):
        changed = bytearray(data if trial % 2 else file_of(still()))
        changed[int(random.integers(len(changed)))] = int(random.integers(256))
        (tmp_path / "cut").write_bytes(changed)
        held_note(tmp_path / "cut")
    for data in (b"", b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff\xd9", b"RIFF\0\0\0\0WEBP", file_of(still())):
        (tmp_path / "cut").write_bytes(data)
        assert held_note(tmp_path / "cut") is None
    assert held_note(tmp_path) is None


def test_names_that_would_become_one(model: Path, tmp_path: Path) -> None:
    photos = tmp_path / "photos"
    photos.mkdir()
    for name in ("a.jpg", "a.jpeg", "b.tif", "b.bmp", "c.jpeg"):
        still().save(photos / name)
    (photos / "link.png").symlink_to(photos / "c.jpeg")
    found = find([str(photos), str(photos / "a.jpg")])
    places = targets(found.tasks, Path("out"), None)
    assert sorted(place.name for place in places) == [
        "a.jpeg.jpg",
        "a.jpg",
        "b.bmp.png",
        "b.tif.png",
        "c.jpg",
    ]
    assert made_by(model, photos, "--out", tmp_path / "out")["made"] == 5
    assert made_by(model, photos, "--out", tmp_path / "out")["present"] == 5


def test_one_name_in_two_folders(model: Path, tmp_path: Path) -> None:
    """One is made, the other named."""
    for folder in ("x", "y"):
        (tmp_path / folder).mkdir()
        still().save(tmp_path / folder / "a.png")
    result = command(model, tmp_path / "x", tmp_path / "y", "--out", tmp_path / "out")
    assert result.exit_code == 1
    assert "1 of 2 are not made" in result.stderr
    assert f"both be {tmp_path / 'out' / 'a.png'}" in result.stderr
    assert (tmp_path / "out" / "a.png").exists()


def test_links_and_folders_that_cannot_be_opened(tmp_path: Path) -> None:
    photos = tmp_path / "photos"
    (tmp_path / "elsewhere").mkdir()
    photos.mkdir()
    still().save(tmp_path / "elsewhere" / "b.png")
    (photos / "linked").symlink_to(tmp_path / "elsewhere")
    (photos / "loop").symlink_to(photos)
    os.mkfifo(photos / "pipe.png")
    (photos / "closed").mkdir(mode=0o000)
    found = find([str(photos)])
    assert [task.place.as_posix() for task in found.tasks] == ["linked/b.png"]
    assert found.left_alone == {"no regular files": 1}
    assert len(found.refused) == (os.geteuid() != 0)  # root opens all
    with pytest.raises(PgsrError, match="neither a file nor a folder"):
        find([str(photos / "pipe.png")])


# ----------------------------------------------------------------------------
# Hidden colours.


def test_hidden_colours_are_not_seen(model: Path, tmp_path: Path) -> None:
    """What stands under alpha 0 changes nothing that is visible."""
    alpha = np.full((40, 30), 255, np.uint8)
    alpha[10:31, 7:23] = 0
    alpha[20, 15] = 1
    results = []
    for index, hidden in enumerate([(255, 0, 255), (0, 255, 0)]):
        colours = picture()
        colours[alpha == 0] = hidden
        Image.fromarray(np.dstack([colours, alpha])).save(tmp_path / f"{index}.png")
        made_by(model, tmp_path / f"{index}.png", "--out", tmp_path / "out")
        results.append(pixels(tmp_path / "out" / f"{index}.png"))
    assert np.array_equal(results[0], results[1])
    flat = Image.new("RGB", (30, 40), (10, 20, 30))
    flat.paste((255, 0, 255), (7, 10, 23, 31))
    flat.putpixel((15, 20), (10, 20, 30))
    filled = np.asarray(fill_hidden(flat, Image.fromarray(alpha)))
    assert (filled == (10, 20, 30)).all()


@pytest.mark.parametrize("size", [(1, 1), (1, 7), (33, 2)])
@pytest.mark.parametrize("mode", ["L", "RGB"])
def test_hidden_colours_of_odd_sizes(size: tuple[int, int], mode: str) -> None:
    colours = Image.new(mode, size, 9 if mode == "L" else (9, 9, 9))
    for visible in (0, 255):
        assert fill_hidden(colours, Image.new("L", size, visible)) is colours
    alpha = Image.new("L", size)
    alpha.putpixel((size[0] - 1, size[1] - 1), 255)
    assert np.asarray(fill_hidden(colours, alpha)).min() == 9


def test_alpha_of_strips_is_that_of_the_whole(model: Path, tmp_path: Path) -> None:
    """Rows of tiles are enlarged by themselves, alpha with them."""
    alpha = Image.fromarray(picture(97, 41)[..., 2])
    given = Image.fromarray(picture(97, 41))
    given.putalpha(alpha)
    found = upscaled(model, tmp_path, file_of(given), "a.png", "--tile", 32)
    whole = alpha.resize((41, 194), Image.Resampling.BICUBIC).resize((82, 194), Image.Resampling.BICUBIC)
    assert np.array_equal(np.asarray(found)[..., 3], np.asarray(whole))


# ----------------------------------------------------------------------------
# Row by row.


def in_strips(format: str, made: Image.Image, heights: list[int], **options: Any) -> bytes:
    buffer, top, levels = io.BytesIO(), 0, np.asarray(made)
    encoder = open_encoder(format, buffer, made.size, made.mode, 90, options)
    while top < made.height:
        height = heights[top % len(heights)]
        encoder.write(levels[top : top + height])
        top += height
    encoder.close()
    return buffer.getvalue()


@pytest.mark.parametrize("mode", ["L", "RGB"])
@pytest.mark.parametrize("size", [(40, 300), (33, 128), (17, 129), (1, 1), (100, 256)])
def test_a_jpeg_in_strips_is_the_whole_to_the_byte(mode: str, size: tuple[int, int]) -> None:
    made = Image.fromarray(picture(size[1], size[0])).convert(mode)
    whole = file_of(made, "JPEG", quality=90, subsampling="4:2:0", restart_marker_rows=1)
    assert in_strips("jpeg", made, [7, 150, 1]) == whole


@pytest.mark.parametrize("format", ["png", "webp"])
@pytest.mark.parametrize("mode", ["L", "LA", "RGB", "RGBA"])
def test_rows_in_any_portions_make_one_picture(format: str, mode: str) -> None:
    made = Image.fromarray(np.dstack([picture(70, 33), picture(70, 33)[..., 0]])).convert(mode)
    data = in_strips(format, made, [7, 50, 1])
    assert data == in_strips(format, made, [made.height]) or format == "png"
    with Image.open(io.BytesIO(data)) as found:
        found.load()
        if format == "png":
            assert np.array_equal(np.asarray(found), np.asarray(made))
            Image.open(io.BytesIO(data)).verify()


MEASURE = """
import resource, sys
from pgsr.runtime.upscale.cli import main
out, *options = sys.argv[1:]
for name in ("small", "large"):
    main([f"{name}.png", "--out", f"{name}-larger.{out}", *options], standalone_mode=False)
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)
"""


@pytest.mark.parametrize(("format", "most"), [("png", 8), ("jpg", 8), ("webp", 90)])
def test_memory_does_not_grow_with_the_result(
    format: str, most: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A pixel of the source takes 4 bytes. Those of the result, 12 bytes at twice the size, take nothing in
    PNG and JPEG; WebP is encoded as a whole."""
    model = write_upscaler(tmp_path / "model", layers=0)
    width, small, large = 256, 500, 5000
    for name, height in (("small", small), ("large", large)):
        Image.new("RGB", (width, height), (90, 120, 60)).save(tmp_path / f"{name}.png")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    options = ["--model", model, "--tile", 128, "--backend", "onnxruntime", "--device", "cpu", "--threads", 1]
    line = [sys.executable, "-c", MEASURE, format, *map(str, options)]
    done = subprocess.run(line, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    first, second = (int(line) for line in done.stdout.splitlines() if line.isdigit())
    assert (second - first) / (width * (large - small)) < most


# ----------------------------------------------------------------------------
# In Python.


@pytest.mark.parametrize(
    "array",
    [
        picture().astype(np.float32) / 255,
        picture().astype(np.uint16) * 257,
        picture().astype(np.int64),
        picture()[..., 0],
        np.dstack([picture(), picture()]),
        picture()[:0],
        picture().tolist(),
        None,
    ],
    ids=["floats", "uint16", "int64", "grey", "six channels", "empty", "a list", "nothing"],
)
def test_an_array_of_another_kind_is_not_taken_for_levels(model: Path, array: Any) -> None:
    with opened(model) as upscaler, pytest.raises(PgsrError, match=r"uint8 \[height, width, 3\] of levels"):
        upscaler.upscale(array)
