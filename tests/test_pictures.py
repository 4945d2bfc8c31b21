"""Only the formats that are meant are decoded, whatever a file is called."""

from __future__ import annotations

import io
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, UnidentifiedImageError

from pgsr.errors import PgsrError
from pgsr.pictures import FORMATS, open_picture
from pgsr.runtime.upscale.photographs import read_photograph
from pgsr.runtime.upscale.tasks import find
from pgsr.trainer.data import cache
from pgsr.trainer.data.sources import open_pictures

POSTSCRIPT = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 64 64\n(%s) (w) file closefile\n%%EOF\n"
LOSSLESS = ("PNG", "BMP", "DIB", "TIFF", "PPM", "TGA", "WEBP", "JPEG2000")


def picture() -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (20, 24, 3), dtype=np.uint8))


def encoded(format: str) -> bytes:
    buffer = io.BytesIO()
    picture().save(buffer, format, **({"lossless": True} if format == "WEBP" else {}))
    return buffer.getvalue()


@pytest.mark.parametrize("format", LOSSLESS)
def test_formats_that_are_meant(format: str, tmp_path: Path):
    expected = np.asarray(picture())
    with open_picture(encoded(format)) as opened:
        assert np.array_equal(np.asarray(opened.convert("RGB")), expected)
    (tmp_path / "x.dat").write_bytes(encoded(format))
    with open_picture(tmp_path / "x.dat") as opened:
        assert np.array_equal(np.asarray(opened.convert("RGB")), expected)


@pytest.mark.parametrize("format", ["EPS", "ICNS", "ICO", "PCX", "SGI", "SPIDER"])
def test_others_are_not_opened(format: str):
    buffer = io.BytesIO()
    (picture().convert("F") if format == "SPIDER" else picture()).save(buffer, format)
    assert format not in FORMATS
    with pytest.raises(UnidentifiedImageError), open_picture(buffer.getvalue()):
        pass


def test_postscript_in_a_png_runs_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A Ghostscript that notes its calls stands in the path; Pillow alone calls it, and we do not."""
    called = tmp_path / "called"
    ghostscript = tmp_path / "bin" / "gs"
    ghostscript.parent.mkdir()
    ghostscript.write_text(f"#!/bin/sh\necho called >> {called}\n")
    ghostscript.chmod(0o755)
    (tmp_path / "x.png").write_bytes(POSTSCRIPT)
    monkeypatch.setenv("PATH", f"{ghostscript.parent}:/usr/bin:/bin")
    programs = {
        False: "from pgsr.trainer.data.cache import problem; print(problem(open(PATH, 'rb').read(), 4)[1])",
        True: "import PIL.Image; PIL.Image.open(PATH).load()",
    }
    for runs, program in programs.items():
        program = program.replace("PATH", repr(str(tmp_path / "x.png")))
        done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
        assert called.exists() == runs, done.stderr
        assert runs or "of no format that is read" in done.stdout


def test_the_upscaler_and_the_data_name_it(tmp_path: Path):
    with pytest.raises(PgsrError, match=r"x\.png cannot be read as a picture"):
        read_photograph(POSTSCRIPT, "x.png")
    decoded, why = cache.problem(POSTSCRIPT, 4)
    assert decoded is None
    assert "of no format that is read" in why


@pytest.mark.parametrize("suffix", [".PNG", ".jpe", ".jfif", ".pgm", ".jp2", ".tga"])
def test_rarer_names_are_found(suffix: str, tmp_path: Path):
    """By training and by the upscaler alike."""
    file = tmp_path / f"a{suffix}"
    names = {".PNG": "PNG", ".jpe": "JPEG", ".jfif": "JPEG", ".pgm": "PPM", ".jp2": "JPEG2000", ".tga": "TGA"}
    file.write_bytes(encoded(names[suffix]))
    (tmp_path / "notes.txt").write_text("no picture")
    assert list(open_pictures(tmp_path).names) == [file.name]
    assert [task.source for task in find([str(tmp_path)]).tasks] == [file]


def test_training_takes_levels_as_people_see_them(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    """Grey of 16 bits was white in training, floats were black, and hidden colours were seen."""
    level = np.full((16, 16), 100, np.uint8)
    hidden = np.dstack([level, 0 * level, level, np.where(np.arange(16) < 8, 255, 0) * np.ones_like(level)])
    Image.fromarray(level.astype(np.uint16) * 257).save(tmp_path / "a.png")
    Image.fromarray((level / 255).astype(np.float32)).save(tmp_path / "b.tif")
    Image.fromarray(hidden.astype(np.uint8)).save(tmp_path / "c.png")
    Image.fromarray(level.astype(np.int32)).save(tmp_path / "d.tif")
    pixels = cache.load_photographs(tmp_path, 16).pixels
    assert pixels.shape == (3, 16, 16, 3)
    assert (pixels[:2] == 100).all()
    assert (pixels[2, :, :8] == (100, 0, 100)).all()
    assert (pixels[2, :, 8:] == 255).all()
    assert "skipped d.tif: holds signed integers, of which none is surely white" in capsys.readouterr().err
