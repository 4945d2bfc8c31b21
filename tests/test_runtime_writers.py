"""pgsr.runtime.writers: files that decode, carry their note, and errors that come out of the threads."""

from __future__ import annotations

import errno
import io
import json
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from pgsr.errors import PgsrError
from pgsr.runtime import writers
from pgsr.runtime.writers import EXIF_IMAGE_DESCRIPTION, FORMATS, Encoding, FolderWriter

SIZE = 48
NOTE = {"seed": 5, "index": 7, "model": "abc"}


def picture(size: int = SIZE) -> np.ndarray:
    """A smooth picture, as faces are."""
    y, x = np.mgrid[0:size, 0:size] / size
    return (np.stack([x, y, np.sin(6 * x * y) ** 2], axis=-1) * 255).astype(np.uint8)


# ----------------------------------------------------------------------------
# Formats.


@pytest.mark.parametrize("name", FORMATS)
def test_format_decodes(name: str) -> None:
    data = Encoding(name).encode(picture(), NOTE)
    with Image.open(io.BytesIO(data)) as decoded:
        assert (decoded.format, decoded.size, decoded.mode) == (name.upper(), (SIZE, SIZE), "RGB")
        error = np.abs(np.asarray(decoded, dtype=int) - picture()).mean()
    assert error == 0 if name == "png" else 0 < error < 4


@pytest.mark.parametrize("name", FORMATS)
def test_encoding_is_deterministic(name: str) -> None:
    assert Encoding(name).encode(picture(), NOTE) == Encoding(name).encode(picture(), NOTE)


@pytest.mark.parametrize("name", ["jpeg", "webp"])
def test_quality_matters(name: str) -> None:
    sizes = [len(Encoding(name, quality).encode(picture(), NOTE)) for quality in (30, None, 100)]
    assert sizes == sorted(set(sizes))


@pytest.mark.parametrize(
    ("name", "quality"), [("png", 90), ("jpeg", 0), ("jpeg", 101), ("webp", -1), ("gif", None)]
)
def test_encodings_that_are_not(name: str, quality: int | None) -> None:
    with pytest.raises(PgsrError):
        Encoding(name, quality)


def test_png_note() -> None:
    with Image.open(io.BytesIO(Encoding("png").encode(picture(), NOTE))) as decoded:
        decoded.load()
        assert decoded.text == {"pgsr:seed": "5", "pgsr:index": "7", "pgsr:model": "abc"}


@pytest.mark.parametrize("name", ["jpeg", "webp"])
def test_exif_note(name: str) -> None:
    with Image.open(io.BytesIO(Encoding(name).encode(picture(), NOTE))) as decoded:
        assert json.loads(decoded.getexif()[EXIF_IMAGE_DESCRIPTION]) == {"pgsr": NOTE}


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("kept", [0.0, 0.02, 0.3, 0.7, 0.95])
def test_truncated_files_are_not_whole(name: str, kept: float, tmp_path: Path) -> None:
    encoding = Encoding(name)
    path = encoding.path(tmp_path, 0)
    data = encoding.encode(picture(), NOTE)
    path.write_bytes(data)
    assert encoding.is_whole(path, SIZE)
    assert not encoding.is_whole(path, SIZE + 1)
    path.write_bytes(data[: int(kept * len(data))])
    assert not encoding.is_whole(path, SIZE)


@pytest.mark.parametrize("name", FORMATS)
def test_a_file_without_its_last_byte_is_not_whole(name: str, tmp_path: Path) -> None:
    encoding = Encoding(name)
    (tmp_path / "x").write_bytes(encoding.encode(picture(), NOTE)[:-1])
    assert not encoding.is_whole(tmp_path / "x", SIZE)


def test_other_things_are_not_whole(tmp_path: Path) -> None:
    (tmp_path / "text").write_text("no picture")
    (tmp_path / "webp").write_bytes(Encoding("webp").encode(picture(), NOTE))
    for path in (tmp_path / "text", tmp_path / "webp", tmp_path / "absent", tmp_path):
        assert not Encoding("png").is_whole(path, SIZE)


# ----------------------------------------------------------------------------
# The writer.


def test_writer_writes_all(tmp_path: Path) -> None:
    with FolderWriter(tmp_path, Encoding(), {"seed": 0}, threads=2) as writer:
        for index in range(50):
            writer.put(index, picture() // 2 + np.uint8(index))
    assert sorted(path.name for path in tmp_path.iterdir()) == [f"{i:06d}.png" for i in range(50)]
    for index in range(50):
        with Image.open(tmp_path / f"{index:06d}.png") as decoded:
            assert np.array_equal(np.asarray(decoded), picture() // 2 + np.uint8(index))
            assert decoded.text["pgsr:index"] == str(index)


class Gate:
    """An encoder that waits until it is opened, and counts."""

    def __init__(self) -> None:
        self.opened = threading.Event()

    def __call__(self, *values: Any) -> bytes:
        assert self.opened.wait(10)
        return b"x"


def install(monkeypatch: pytest.MonkeyPatch, encode: Any) -> None:
    monkeypatch.setitem(writers.FORMATS, "png", writers.Format(encode, ".png", b"", None))


def test_no_more_than_the_limit_in_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gate = Gate()
    install(monkeypatch, gate)
    taken = []
    with FolderWriter(tmp_path, Encoding(), {}, threads=2, limit=5) as writer:

        def put_all() -> None:
            for index in range(20):
                writer.put(index, picture())
                taken.append(index)

        feeder = threading.Thread(target=put_all)
        feeder.start()
        deadline = time.monotonic() + 10
        while len(taken) < 5 and time.monotonic() < deadline:
            time.sleep(0.01)
        time.sleep(0.1)
        assert len(taken) == 5  # the sixth waits
        gate.opened.set()
        feeder.join(10)
    assert len(taken) == len(list(tmp_path.iterdir())) == 20


def put_many(folder: Path, count: int = 1000, taken: list[int] | None = None) -> None:
    """Puts pictures, and notes in `taken` those that the writer took."""
    with FolderWriter(folder, Encoding(), {}, threads=2, limit=4) as writer:
        for index in range(count):
            writer.put(index, picture())
            if taken is not None:
                taken.append(index)


def test_full_disk_surfaces_promptly(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(path: Path, data: bytes) -> int:
        raise OSError(errno.ENOSPC, "No space left on device", str(path))

    monkeypatch.setattr(Path, "write_bytes", full)
    taken: list[int] = []
    with pytest.raises(PgsrError, match="no space left"):
        put_many(tmp_path, taken=taken)
    assert len(taken) <= 8  # of 1000
    assert list(tmp_path.iterdir()) == []


def test_folder_that_vanishes(tmp_path: Path) -> None:
    with pytest.raises(PgsrError, match="cannot write"):
        put_many(tmp_path / "absent", count=1)  # the error comes at the end of the block


def test_an_encoders_own_error_surfaces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*values: Any) -> bytes:
        raise MemoryError("encoder")

    install(monkeypatch, broken)
    with pytest.raises(MemoryError, match="encoder"):
        put_many(tmp_path)


def test_an_error_outside_drops_what_waits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gate = Gate()
    install(monkeypatch, gate)

    def interrupted() -> None:
        with FolderWriter(tmp_path, Encoding(), {}, threads=1, limit=10) as writer:
            for index in range(10):
                writer.put(index, picture())
            threading.Timer(0.3, gate.opened.set).start()
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert len(list(tmp_path.iterdir())) < 10  # the one that was in work, and the next if the machine is slow
