"""pgsr.runtime's encoders, writers and archives: files that decode, carry their note, and are whole."""

from __future__ import annotations

import fcntl
import io
import json
import os
import resource
import struct
import sys
import tarfile
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from pgsr.errors import PgsrError
from pgsr.runtime.generate import cli
from pgsr.runtime.output import archives, writers
from pgsr.runtime.output.archives import ARCHIVES, ArchiveFile, members, partial
from pgsr.runtime.output.encoders import (
    ENCODERS,
    EXIF_IMAGE_DESCRIPTION,
    NAMES,
    decoded,
    filtered,
    installed,
    open_encoder,
)
from pgsr.runtime.output.writers import FORMATS, Encoding

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
    found = decoded(Encoding(name).encode(picture(), NOTE), name)
    assert (found.shape, found.dtype) == ((SIZE, SIZE, 3), np.uint8)
    error = np.abs(found.astype(int) - picture()).mean()
    assert error == 0 if name in ("png", "jxl") else 0 < error < 4


@pytest.mark.parametrize("name", ["png", "jpeg", "webp"])
def test_a_file_is_of_its_format(name: str) -> None:
    with Image.open(io.BytesIO(Encoding(name).encode(picture(), NOTE))) as found:
        assert (found.format, found.size, found.mode) == (name.upper(), (SIZE, SIZE), "RGB")


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
        assert decoded.text == {"pgsr:seed": "5", "pgsr:index": "7", "pgsr:model": "abc"}  # type: ignore[attr-defined]


@pytest.mark.parametrize(("name", "encoder"), [("jpeg", e) for e in ENCODERS["jpeg"]] + [("webp", "pillow")])
def test_exif_note(name: str, encoder: str) -> None:
    with Image.open(io.BytesIO(opened(name, encoder).encode(picture(), NOTE))) as decoded:
        assert json.loads(decoded.getexif()[EXIF_IMAGE_DESCRIPTION]) == {"pgsr": NOTE}


def test_jpeg_xl_is_boxes_with_the_note_as_exif() -> None:
    """Read by hand, since Pillow reads none: ISO/IEC 18181-2, sections 3 and 9."""
    data, found, start = Encoding("jxl").encode(picture(), NOTE), {}, 0
    while start < len(data):
        size, name = struct.unpack_from(">I4s", data, start)
        found[name] = data[start + 8 : start + size]
        start += size
    assert start == len(data)
    assert list(found) == [b"JXL ", b"ftyp", b"Exif", b"jxlc"]
    assert found[b"ftyp"].startswith(b"jxl ")
    assert found[b"Exif"][:4] == bytes(4)  # where the TIFF header is
    read = Image.Exif()
    read.load(found[b"Exif"][4:])
    assert json.loads(read[EXIF_IMAGE_DESCRIPTION]) == {"pgsr": NOTE}


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
        assert Encoding("png").is_whole(path, SIZE) is False


@pytest.mark.parametrize("name", ["jpeg", "webp"])
def test_the_bounds_of_quality(name: str) -> None:
    assert [Encoding(name, quality).quality for quality in (1, 100)] == [1, 100]
    assert Encoding(name).quality == {"jpeg": 95, "webp": 90}[name]
    for quality in (0, 101):
        with pytest.raises(PgsrError, match=f"--quality {quality} is not between 1 and 100"):
            Encoding(name, quality)


@pytest.mark.parametrize("name", ["png", "jxl"])
def test_lossless_formats_have_no_quality(name: str) -> None:
    assert Encoding(name).quality is None
    with pytest.raises(PgsrError, match=f"--quality is not for {name}"):
        Encoding(name, 90)


def test_an_encoding_is_png_unless_told() -> None:
    assert (Encoding().format, Encoding().encoder) == ("png", "auto")


@pytest.mark.parametrize(
    ("number", "digits"), [(0, 6), (999_999, 6), (1_000_000, 7), (2**64 - 1, writers.MOST_DIGITS)]
)
def test_names_have_as_many_digits_as_the_last(number: int, digits: int) -> None:
    assert writers.digits_of(number) == digits == max(6, len(str(number)))
    name = Encoding("jpeg").name(number, digits)
    assert name == f"{str(number).zfill(digits)}.jpg"
    assert Encoding("jpeg").path(Path("f"), 7, digits) == Path("f", "7".zfill(digits) + ".jpg")


def test_names_without_digits_have_six() -> None:
    assert [Encoding(name).name(42) for name in FORMATS] == [
        f"000042.{x}" for x in ("png", "jpg", "webp", "jxl")
    ]
    assert Encoding().path(Path("f"), 42) == Path("f/000042.png")


# ----------------------------------------------------------------------------
# Sinks.


def faces(digits: int = 6) -> writers.Faces:
    return writers.Faces(lambda position: 10 + position, lambda position: {"z": 1, "index": position}, digits)


def test_a_folder_holds_a_file_for_each_position(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sink = writers.FolderSink(tmp_path, Encoding("png"), faces(8))
    assert not sink.ordered
    monkeypatch.setattr(os, "fsync", lambda handle: pytest.fail("a face is waited for"))
    sink.write(3, sink.encode(3, picture()))
    assert [path.name for path in tmp_path.iterdir()] == ["00000013.png"]
    with Image.open(tmp_path / "00000013.png") as found:
        assert np.array_equal(np.asarray(found), picture())
        assert found.text == {"pgsr:z": "1", "pgsr:index": "3"}  # type: ignore[attr-defined]


@pytest.mark.parametrize("suffix", ARCHIVES)
def test_an_archive_holds_a_picture_and_its_note(suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"a{suffix}"
    with ArchiveFile(path) as archive:
        sink = writers.ArchiveSink(archive, Encoding("png"), faces())
        assert sink.ordered
        for position in (0, 1):
            sink.write(position, sink.encode(position, picture()))
    found = held(path)
    assert list(found) == ["000010.png", "000010.json", "000011.png", "000011.json"]
    assert found["000011.json"] == b'{"index": 1, "z": 1}'
    assert Encoding("png").is_whole_data(found["000011.png"], SIZE)
    assert writers.sample_names(Encoding("webp"), 5, 7) == ("0000005.webp", "0000005.json")


@pytest.mark.parametrize("kind", [writers.FolderSink, writers.ArchiveSink])
def test_an_encoder_that_is_not_here_is_told_at_once(
    kind: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "imagecodecs", None)
    with pytest.raises(PgsrError, match=r"pip install 'pgsr\[jxl\]'"):
        kind(tmp_path, Encoding("jxl"), faces())


class Slow(io.RawIOBase):
    """A stream that takes seven bytes at a time, and now and then none."""

    def __init__(self) -> None:
        self.taken: list[bytes] = []
        self.flushed = 0

    def fileno(self) -> int:
        return 1  # always ready

    def write(self, data: Any) -> int | None:  # type: ignore[override]
        if len(self.taken) % 3 == 2:
            self.taken.append(b"")
            return None
        self.taken.append(bytes(data[:7]))
        return len(self.taken[-1])

    def flush(self) -> None:
        self.flushed += 1


def test_raw_pixels_go_on_where_the_stream_stopped() -> None:
    stream = Slow()
    sink = writers.RawSink(stream)
    assert sink.ordered
    turned = picture().transpose(1, 0, 2)  # not in one piece
    data = sink.encode(0, turned)
    assert (data.nbytes, data.format, data.ndim) == (SIZE * SIZE * 3, "B", 1)
    sink.write(0, data)
    assert b"".join(stream.taken) == turned.tobytes()
    assert stream.flushed == 1


@pytest.mark.parametrize("error", [BrokenPipeError(32, "gone"), OSError(28, "No space left on device")])
def test_a_stream_that_fails(error: OSError) -> None:
    class Failing(Slow):
        def write(self, data: Any) -> int | None:  # type: ignore[override]
            raise error

    expected = BrokenPipeError if isinstance(error, BrokenPipeError) else PgsrError
    sink = writers.RawSink(Failing())
    with pytest.raises(expected, match="gone" if expected is BrokenPipeError else "no space left for -"):
        sink.write(0, sink.encode(0, picture()))


# ----------------------------------------------------------------------------
# Encoders.

EVERY_ENCODER = [(name, encoder) for name in ENCODERS for encoder in ENCODERS[name]]


def opened(name: str, encoder: str) -> Encoding:
    """Skips the test if the encoder is not installed."""
    if encoder not in installed(name):
        pytest.skip(f"{encoder} is not installed")
    return Encoding(name, encoder=encoder)


def noise(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)


@pytest.mark.parametrize("encoder", ENCODERS["png"])
@pytest.mark.parametrize("shape", [(1, 1), (1, 300), (7, 5), (48, 48)])
def test_every_png_gives_back_the_same_pixels(encoder: str, shape: tuple[int, int]) -> None:
    encoding = opened("png", encoder)
    for made in (noise(*shape, 3), np.zeros((*shape, 3), np.uint8), noise(*shape, 4)[..., :3]):
        with Image.open(io.BytesIO(encoding.encode(made, NOTE))) as decoded:
            decoded.load()
            assert np.array_equal(np.asarray(decoded), made)
            assert decoded.text == {"pgsr:seed": "5", "pgsr:index": "7", "pgsr:model": "abc"}  # type: ignore[attr-defined]


@pytest.mark.parametrize(("name", "encoder"), EVERY_ENCODER)
def test_every_encoder(name: str, encoder: str, tmp_path: Path) -> None:
    encoding = opened(name, encoder)
    data = encoding.encode(picture(), NOTE)
    assert data == encoding.encode(picture().copy(), NOTE)  # deterministic
    assert encoding.is_whole_data(data, SIZE)
    assert not encoding.is_whole_data(data[:-1], SIZE)
    error = np.abs(decoded(data, name).astype(int) - picture()).mean()
    assert error == 0 if name in ("png", "jxl") else 0 < error < 4


def test_jpeg_encoders_agree() -> None:
    """Two libraries, the same quality and subsampling: the same picture but for roundings."""
    pictures = []
    for encoder in ENCODERS["jpeg"]:
        with Image.open(io.BytesIO(opened("jpeg", encoder).encode(picture(), NOTE))) as decoded:
            pictures.append(np.asarray(decoded, dtype=int))
    assert np.abs(pictures[0] - pictures[1]).max() <= 8
    assert np.abs(pictures[0] - pictures[1]).mean() < 1.0


def test_filter_against_the_specification() -> None:
    made = noise(6, 5, 3)
    lines = filtered(made)
    raw = made.reshape(6, 15).astype(int)
    for y in range(6):
        assert lines[y, 0] == 3
        for x in range(15):
            left = raw[y, x - 3] if x >= 3 else 0
            above = raw[y - 1, x] if y else 0
            assert lines[y, 1 + x] == (raw[y, x] - (left + above) // 2) % 256


def test_the_fastest_installed_encoder_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    assert open_encoder("png").name == installed("png")[0]
    for package in ("fpng", "isal", "isal.isal_zlib", "simplejpeg"):
        monkeypatch.setitem(sys.modules, package, None)
    assert open_encoder("png").name == "zlib"  # needs nothing
    assert installed("jpeg") == ["pillow"]
    with pytest.raises(PgsrError, match=r"pip install 'pgsr\[fast\]'"):
        open_encoder("png", "fpng")
    monkeypatch.setitem(sys.modules, "imagecodecs", None)
    assert installed("jxl") == []
    with pytest.raises(PgsrError, match=r"pip install 'pgsr\[jxl\]'"):
        open_encoder("jxl")


def test_the_command_names_them_all() -> None:
    assert set(cli.ENCODERS) == set(NAMES)


def test_encoders_that_are_not() -> None:
    with pytest.raises(PgsrError, match="simplejpeg"):
        open_encoder("jpeg", "fpng")


# ----------------------------------------------------------------------------
# Archives, read by Python's own modules.


def fill(path: Path, names: list[str], lengths: list[int]) -> None:
    with ArchiveFile(path) as archive:
        for name, length in zip(names, lengths, strict=True):
            archive.append(name, bytes(i % 251 for i in range(length)))


def held(path: Path) -> dict[str, bytes]:
    if path.suffix == ".zip":
        with zipfile.ZipFile(path) as file:
            assert file.testzip() is None
            return {name: file.read(name) for name in file.namelist()}
    with tarfile.open(path) as file:
        return {m.name: file.extractfile(m).read() for m in file.getmembers()}  # type: ignore[union-attr]


MEMBERS, LENGTHS = [f"{i:06d}.x" for i in range(5)], [0, 1, 511, 512, 70_000]


@pytest.mark.parametrize("suffix", ARCHIVES)
def test_archives_are_read_by_others(suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"a{suffix}"
    fill(path, MEMBERS, LENGTHS)
    assert [(name, len(data)) for name, data in held(path).items()] == list(
        zip(MEMBERS, LENGTHS, strict=True)
    )
    found = list(members(path))
    assert {member.name: data for member, data in found} == held(path)
    assert [p.name for p in tmp_path.iterdir()] == [path.name]
    first = path.read_bytes()
    path.unlink()
    fill(path, MEMBERS, LENGTHS)
    assert path.read_bytes() == first


@pytest.mark.parametrize("suffix", ARCHIVES)
def test_an_archive_goes_on_wherever_it_was_cut(suffix: str, tmp_path: Path) -> None:
    whole, path = tmp_path / f"whole{suffix}", tmp_path / f"a{suffix}"
    names, lengths = MEMBERS, [0, 1, 30, 512, 700]
    fill(whole, names, lengths)
    data = whole.read_bytes()
    for cut in range(0, len(data), 97):
        partial(path).write_bytes(data[:cut])
        there = [member for member, _ in members(partial(path))]
        assert all(member.end <= cut for member in there)
        with ArchiveFile(path) as archive:
            archive.keep(there[-1].end if there else 0)
            for name, length in list(zip(names, lengths, strict=True))[len(there) :]:
                archive.append(name, bytes(i % 251 for i in range(length)))
        assert path.read_bytes() == data
        path.unlink()


@pytest.mark.parametrize("suffix", ARCHIVES)
def test_an_error_leaves_the_beginning_alone(suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"a{suffix}"

    def stopped() -> None:
        with ArchiveFile(path) as archive:
            archive.append("000000.x", b"abc")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        stopped()
    assert not path.exists()
    assert [data for _, data in members(partial(path))] == [b"abc"]


def test_a_member_of_less_than_nothing_ends_a_tar(tmp_path: Path) -> None:
    """Its end would lie before it, and be read again and again."""
    header = bytearray(tarfile.TarInfo("000000.png").tobuf(tarfile.USTAR_FORMAT))
    header[124:136] = b"\xff" * 10 + b"\xfc\x00"  # -1024, in GNU's form
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    whole = archives.tar_entry("000000.png", b"a")
    (tmp_path / "faces.tar").write_bytes(whole + bytes(header) + whole)
    assert [(member.name, data) for member, data in members(tmp_path / "faces.tar")] == [("000000.png", b"a")]


def test_one_writer_at_a_time(tmp_path: Path) -> None:
    with ArchiveFile(tmp_path / "a.tar"), pytest.raises(PgsrError, match="another process is writing"):
        ArchiveFile(tmp_path / "a.tar")


def test_a_zip_beyond_65535_members_and_4_gib(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the limits made small, each 64-bit field is used; zipfile reads what zip's readers must."""
    monkeypatch.setattr(archives, "FULL_16", 2)
    path = tmp_path / "many.zip"
    fill(path, MEMBERS, LENGTHS)
    data = path.read_bytes()
    assert b"PK\6\6" in data
    where = data.rindex(b"PK\5\6") + 10  # a count of 0xFFFF sends readers to the 64-bit one
    path.write_bytes(data[: where - 2] + struct.pack("<2H", 0xFFFF, 0xFFFF) + data[where + 2 :])
    assert list(held(path)) == MEMBERS


def test_a_zip_record_beyond_4_gib() -> None:
    member = archives.Member("000000.png", 2**32 + 5, 2**32 + 45, 3, 2**32 + 48, 7)
    record = archives._zip_record(member)
    info = zipfile.ZipInfo("000000.png")
    info.extra = record[archives.CENTRAL.size + len("000000.png") :]
    info.header_offset = archives.CENTRAL.unpack(record[: archives.CENTRAL.size])[-1]
    info.file_size = info.compress_size = 3
    info._decodeExtra(*([0] if "filename_crc" in zipfile.ZipInfo._decodeExtra.__code__.co_varnames else []))  # type: ignore[attr-defined]
    assert info.header_offset == 2**32 + 5


def test_the_64_bit_end_of_a_zip_by_the_specification(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """APPNOTE.TXT 6.3, sections 4.3.14 to 4.3.16, field by field."""
    monkeypatch.setattr(archives, "FULL_16", 2)
    monkeypatch.setattr(archives, "FULL_32", 600)
    path = tmp_path / "many.zip"
    fill(path, MEMBERS, LENGTHS)
    data = path.read_bytes()
    end = len(data) - archives.END.size
    locator = end - archives.LOCATOR_64.size
    end_64 = locator - archives.END_64.size
    where = sum(archives.LOCAL.size + len(n) + length for n, length in zip(MEMBERS, LENGTHS, strict=True))
    size = end_64 - where
    assert struct.unpack_from("<4s4H2LH", data, end) == (b"PK\5\6", 0, 0, 2, 2, size, 600, 0)
    assert size < 600
    assert struct.unpack_from("<4sLQL", data, locator) == (b"PK\6\7", 0, end_64, 1)
    expected = (b"PK\6\6", 44, 45, 45, 0, 0, 5, 5, size, where)
    assert struct.unpack_from("<4sQ2H2L4Q", data, end_64) == expected


@pytest.mark.parametrize(
    ("full_16", "full_32", "wide"), [(6, 10**9, False), (5, 10**9, True), (6, 400, True)]
)
def test_the_64_bit_end_is_there_from_the_limit_on(
    full_16: int, full_32: int, wide: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(archives, "FULL_16", full_16)
    monkeypatch.setattr(archives, "FULL_32", full_32)
    path = tmp_path / "a.zip"
    fill(path, MEMBERS, [10] * 5)
    assert (b"PK\6\6" in path.read_bytes()) == wide


@pytest.mark.parametrize("start", [2**32 - 2, 2**32 - 1, 2**32])
def test_records_of_a_zip_by_the_specification(start: int) -> None:
    """APPNOTE.TXT 6.3, section 4.3.12 and, from 4 GiB less one on, the field of section 4.5.3."""
    record = archives._zip_record(archives.Member("a.png", start, start + 35, 3, start + 38, 7))
    far = start >= 2**32 - 1
    version, extra = (45, struct.pack("<2HQ", 1, 8, start)) if far else (20, b"")
    fields = (b"PK\1\2", 3 << 8 | version, version, 0, 0, 0, 0x21, 7, 3, 3, 5, len(extra), 0, 0, 0)
    expected = struct.pack("<4s6H3L5H2L", *fields, 0o100644 << 16, min(start, 2**32 - 1))
    assert record == expected + b"a.png" + extra


def test_headers_of_archives_say_what_others_look_at(tmp_path: Path) -> None:
    """Rights, times and versions, by Python's modules."""
    for suffix in ARCHIVES:
        fill(tmp_path / f"a{suffix}", MEMBERS, LENGTHS)
    with zipfile.ZipFile(tmp_path / "a.zip") as packed:
        for info in packed.infolist():
            assert info.date_time == (1980, 1, 1, 0, 0, 0)
            assert info.external_attr >> 16 == 0o100644
            assert (info.create_system, info.create_version, info.extract_version) == (3, 20, 20)
            assert (info.compress_type, info.flag_bits, info.volume, info.internal_attr) == (0, 0, 0, 0)
    local = struct.unpack_from("<4s5H3L2H", (tmp_path / "a.zip").read_bytes(), 0)
    assert local == (b"PK\3\4", 20, 0, 0, 0, 0x21, 0, 0, 0, 8, 0)
    with tarfile.open(tmp_path / "a.tar") as file:
        for member in file.getmembers():
            assert (member.mode, member.mtime, member.uid, member.gid, member.type) == (0o644, 0, 0, 0, b"0")
    assert (tmp_path / "a.tar").stat().st_size % 10_240 == 0


@pytest.mark.parametrize("length", [0, 512, 8_704, 9_216, 9_728, 10_240])
def test_the_end_of_a_tar(length: int) -> None:
    """Two empty blocks at least, up to a whole record."""
    end = archives.tar_end(length)
    assert not any(end)
    assert 1024 <= len(end) < 1024 + 10_240
    assert (length + len(end)) % 10_240 == 0


def test_an_empty_member_at_the_very_end_is_whole(tmp_path: Path) -> None:
    """As a killed process may leave it: nothing follows its header."""
    path = tmp_path / "a.tar"
    path.write_bytes(archives.tar_entry("a.x", b""))
    ((member, data),) = members(path)
    assert member == archives.Member("a.x", 0, 512, 0, 512)
    assert (member.crc, data) == (0, b"")
    path.write_bytes(archives.tar_entry("a.x", b"")[:-1])
    assert list(members(path)) == []


def test_a_members_extra_field_is_stepped_over(tmp_path: Path) -> None:
    """As zips of others have them."""
    extra = struct.pack("<2H4s", 0x5455, 4, b"time")
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as packed:
        for name in ("a.x", "b.x"):
            info = zipfile.ZipInfo(name)
            info.extra = extra
            packed.writestr(info, name * 3)
    assert [data for _, data in members(tmp_path / "a.zip")] == [b"a.xa.xa.x", b"b.xb.xb.x"]


def test_members_that_are_too_large_are_cut(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert archives.LARGEST_MEMBER == 512 * 2**20
    fill(tmp_path / "a.zip", ["a.x"], [100])
    monkeypatch.setattr(archives, "LARGEST_MEMBER", 7)
    ((member, data),) = members(tmp_path / "a.zip")
    assert (member.size, data) == (100, bytes(range(7)))


def test_archives_by_their_names() -> None:
    assert archives.form_of(Path("a.TAR")) is ARCHIVES[".tar"]
    assert archives.form_of(Path("a.b.zip")) is ARCHIVES[".zip"]
    assert archives.form_of(Path("a.tar.gz")) is archives.form_of(Path("zip")) is None


def test_a_name_that_is_no_text_ends_a_tar(tmp_path: Path) -> None:
    """No archive that is written here has one."""
    whole, odd = archives.tar_entry("a.x", b"a"), tarfile.TarInfo("\udcff.x")
    header = odd.tobuf(tarfile.USTAR_FORMAT, "utf-8", "surrogateescape")
    (tmp_path / "a.tar").write_bytes(whole + header + whole)
    assert [member.name for member, _ in members(tmp_path / "a.tar")] == ["a.x"]


def test_a_name_that_is_not_ascii_in_a_zip(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as packed:
        packed.writestr("\u00e9.x", b"a")
    assert [(member.name, data) for member, data in members(tmp_path / "a.zip")] == [("\ufffd\ufffd.x", b"a")]


def test_a_zip_that_ends_with_a_header_or_holds_nothing(tmp_path: Path) -> None:
    path = tmp_path / "a.zip"
    path.write_bytes(archives._zip_entry("", b""))
    ((member, data),) = members(path)
    assert (member, data) == (archives.Member("", 0, 30, 0, 30, 0), b"")
    path.unlink()
    fill(path, [], [])
    assert path.read_bytes() == struct.pack("<4s4H2LH", b"PK\5\6", 0, 0, 0, 0, 0, 0, 0)
    assert held(path) == {}


@pytest.mark.parametrize(("less", "wide"), [(0, True), (-1, False)])
def test_the_64_bit_end_is_there_where_the_directory_ends_at_the_limit(
    less: int, wide: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert (archives.FULL_16, archives.FULL_32) == (0xFFFF, 0xFFFFFFFF)
    path = tmp_path / "a.zip"
    fill(path, MEMBERS, LENGTHS)
    end = path.stat().st_size - archives.END.size
    path.unlink()
    monkeypatch.setattr(archives, "FULL_32", end - less)
    fill(path, MEMBERS, LENGTHS)
    assert (b"PK\6\6" in path.read_bytes()) == wide


# ----------------------------------------------------------------------------
# Archives that cannot be read or written.


def test_archives_that_cannot_be_opened(tmp_path: Path) -> None:
    with pytest.raises(PgsrError, match=f"cannot read {tmp_path / 'a.tar'}"):
        list(members(tmp_path / "a.tar"))
    with pytest.raises(PgsrError, match=f"cannot write {tmp_path / 'b' / 'a.tar'}"):
        ArchiveFile(tmp_path / "b" / "a.tar")


def handles() -> int:
    return len(os.listdir("/proc/self/fd"))


def test_who_is_refused_holds_no_handle(tmp_path: Path) -> None:
    path = tmp_path / "a.tar"
    with ArchiveFile(path):
        before = handles()
        with pytest.raises(PgsrError, match="another process is writing") as refusal:
            ArchiveFile(path)
        assert handles() == before, refusal  # which keeps what was opened


@pytest.mark.parametrize("begun_again", [False, True])
def test_an_archive_that_another_process_ends_while_it_is_waited_for(
    begun_again: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is locked then is its archive, whether it began another one since or not."""
    path, flock = tmp_path / "a.tar", fcntl.flock

    def ended_meanwhile(file: Any, how: int) -> None:
        flock(file, how)
        os.replace(partial(path), path)
        if begun_again:
            partial(path).touch()

    monkeypatch.setattr(fcntl, "flock", ended_meanwhile)
    before = handles()
    with pytest.raises(PgsrError, match=r"another process has just written .*: run the same") as refusal:
        ArchiveFile(path)
    assert handles() == before, refusal
    assert path.read_bytes() == b""


@contextmanager
def files_of_at_most(size: int) -> Iterator[None]:
    """No file of this process gets longer meanwhile."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize("what", ["append", "keep", "end"])
def test_an_archive_that_cannot_get_longer(what: str, tmp_path: Path) -> None:
    path = tmp_path / "a.tar"
    works: dict[str, Callable[[ArchiveFile], object]] = {
        "append": lambda archive: archive.append("a.x", bytes(100_000)),
        "keep": lambda archive: archive.keep(100_000),
        "end": lambda archive: None,
    }

    def write() -> None:
        with ArchiveFile(path) as archive:
            works[what](archive)
            done.append(what)

    done: list[str] = []
    with files_of_at_most(1000), pytest.raises(PgsrError, match=str(path)):
        write()
    assert done == (["end"] if what == "end" else [])
    assert os.listdir(tmp_path) == [partial(path).name]


def test_an_error_is_not_hidden_by_what_could_not_be_written_after_it(tmp_path: Path) -> None:
    def stopped() -> None:
        with ArchiveFile(tmp_path / "a.tar") as archive:
            archive.append("a.x", bytes(3000))  # which waits in memory
            raise KeyboardInterrupt

    with files_of_at_most(1000), pytest.raises(KeyboardInterrupt):
        stopped()


@pytest.mark.parametrize("suffix", ARCHIVES)
def test_all_of_an_archive_reaches_the_disk_before_its_name(
    suffix: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, replace = tmp_path / f"a{suffix}", os.replace
    order: list[int | str] = []
    monkeypatch.setattr(os, "fsync", lambda handle: order.append(os.fstat(handle).st_size))

    def replaced(old: Any, new: Any) -> None:
        order.append("named")
        replace(old, new)

    monkeypatch.setattr(os, "replace", replaced)
    fill(path, MEMBERS, LENGTHS)
    assert order == [path.stat().st_size, "named"]
