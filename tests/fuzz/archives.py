"""Targets that hold others: archives and data sets, and archives of faces that were begun before."""

from __future__ import annotations

import functools
import gzip
import io
import json
import os
import signal
import struct
import tarfile
import zipfile
import zlib
from pathlib import Path
from typing import Any, NoReturn

import lmdb
import numpy as np
from hypothesis import strategies as st
from hypothesis.strategies import SearchStrategy

from pgsr.errors import PgsrError
from pgsr.runtime.generate.latents import Stored
from pgsr.runtime.output.archives import members, tar_end, tar_entry
from pgsr.trainer.data import lmdbs
from pgsr.trainer.data.listing import UNREADABLE
from pgsr.trainer.data.mnist_cifar import open_native
from pgsr.trainer.data.pixel_file import open_pixels, writing_pixels
from pgsr.trainer.data.sources import of_size, open_pictures, reading

from .harness import Target, folder, put, work
from .pictures import examples, read_for_training
from .strategies import as_json, bytes_near, changed, numbers, values

MANIFEST = {"fingerprint": "ab", "sizes": [8, 4], "filter": "lanczos", "labels": ["a", "b"]}
LABELS = {"names": ["a", "b"], "labels": [0, 1]}
NAMES = [
    *("8/0.png", "8/1.png", "4/0.png", "0.png", "a/b.jpg", "x.cls", "0.cls", "a.8.png", "manifest.json"),
    *("labels.json", "../../x.png", "/etc/x.png", "", ".", "a\0b.png", "²/٣.png", "9" * 5000 + ".png"),
    *("__MACOSX/._a.png", "x.dng", "data.mdb", "data_batch_1.bin", "batches.meta.txt", "data_batch_1"),
]


def read_pictures(path: Path) -> None:
    """Lists a source and reads its pictures, as pgsr-train does."""
    pictures = open_pictures(path)
    for size in (4, 64):
        of_size(pictures, size)
    assert pictures.fingerprint
    with reading(pictures) as read:
        for name in pictures.names[:5]:
            try:
                data = read(name)
                read_for_training(data)
            except (*UNREADABLE, PgsrError):  # which leave a picture out
                continue


def read_zip(data: bytes) -> None:
    read_pictures(put("pictures.zip", data))


def read_tar(data: bytes) -> None:
    read_pictures(put("pictures.tar", data))


def read_lmdb(data: bytes) -> None:
    """What the process of its own does, which a damaged database may end: here, too, it is another."""
    source = folder("lsun")
    (source / lmdbs.DATA).write_bytes(data)
    reader, writer = os.pipe()
    process = os.fork()
    if process == 0:
        _walk_apart(source, writer)
    os.close(writer)
    with open(reader, "rb") as pipe:
        said = pipe.read().decode()
    _, status = os.waitpid(process, 0)
    if said or os.WIFSIGNALED(status):
        assert not said.startswith("!"), said
        raise PgsrError(said or "reading it ended the process")


def _walk_apart(source: Path, writer: int) -> NoReturn:
    for number in (signal.SIGSEGV, signal.SIGBUS, signal.SIGABRT, signal.SIGFPE):
        signal.signal(number, signal.SIG_DFL)  # libFuzzer's would tell of a crash
    try:
        found = lmdbs._walk(source)
        os.write(writer, found.encode() if isinstance(found, str) else b"")
    except BaseException as error:
        os.write(writer, f"!{type(error).__name__}: {error}".encode())
    os._exit(0)


def read_native(name: str, data: bytes) -> None:
    found = open_native(put(name, data))
    if found is not None:
        found.picture(len(found) - 1)
        assert found.labels is None or found.labels.max() < len(found.names)


def read_idx(data: bytes) -> None:
    read_native("train-images-idx3-ubyte", data)


def read_idx_labels(data: bytes) -> None:
    put("t10k-labels-idx1-ubyte", data)
    read_native("t10k-images-idx3-ubyte", idx(2, 4))


def read_cifar(data: bytes) -> None:
    read_native("data_batch_1.bin", data)


def read_cifar_tar(data: bytes) -> None:
    read_native("cifar.tar", data)


def read_pixels(data: bytes) -> None:
    """A cache of decoded pictures."""
    found = open_pixels(put("pixels.npy", data), "content", 4)
    assert found is None or found.pixels.shape[1:] == (4, 4, 3)


def read_latents(data: bytes) -> None:
    stored = Stored(put("z.npy", data))
    stored.check(8)
    assert np.isfinite(stored.latents([0, len(stored) - 1], 8)).all()


def read_faces_tar(data: bytes) -> None:
    for member, part in members(put("faces.tar", data)):
        assert len(part) <= member.size


def read_faces_zip(data: bytes) -> None:
    for member, part in members(put("faces.zip", data)):
        assert len(part) <= member.size


# ----------------------------------------------------------------------------
# Small valid ones.


def zipped(files: dict[str, bytes], compression: int = zipfile.ZIP_STORED) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", compression) as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return out.getvalue()


def tarred(files: dict[str, bytes], format: int = tarfile.USTAR_FORMAT) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=format) as archive:
        for name, data in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return out.getvalue()


def png() -> bytes:
    return examples()[1]


def zips() -> list[bytes]:
    prepared = {"8/0.png": png(), "8/1.png": png(), "4/0.png": png()}
    described = {"manifest.json": as_json(MANIFEST), "labels.json": as_json({**LABELS, "labels": [0, 1]})}
    plain = {"a.jpg": examples()[6], "b/c": png(), "d.txt": b"x"}
    return [zipped(prepared | described), zipped(plain, zipfile.ZIP_DEFLATED)]


def tars() -> list[bytes]:
    sample = {"0.png": png(), "0.cls": b"1", "0.json": b"{}"}
    long = {"a/" * 60 + "1.png": png()}
    return [tarred(sample), tarred(long, tarfile.PAX_FORMAT), tarred(long, tarfile.GNU_FORMAT)]


@functools.cache
def databases() -> list[bytes]:
    source = folder("made")
    with (
        lmdb.open(str(source), map_size=2**20, lock=False) as database,
        database.begin(write=True) as writing,
    ):
        for i in range(3):
            writing.put(b"%d" % i, png())
        writing.put(b"large", bytes(9000))
    return [(source / lmdbs.DATA).read_bytes()]


def idx(count: int, side: int) -> bytes:
    return struct.pack(">4B3I", 0, 0, 8, 3, count, side, side) + bytes(count * side * side)


def idx_labels() -> list[bytes]:
    return [struct.pack(">4BI", 0, 0, 8, 1, 2) + b"\1\2"]


def npy(array: Any) -> bytes:
    out = io.BytesIO()
    np.save(out, array)
    return out.getvalue()


def pixel_files() -> list[bytes]:
    path = work() / "made.npy"
    with writing_pixels(path, "content", 4) as file:
        file.add(0, np.zeros((4, 4, 3), np.uint8), True)
    return [path.read_bytes()]


def cifar(labels: int = 2) -> bytes:
    return b"".join(bytes([i]) + bytes(3072) for i in range(labels))


# ----------------------------------------------------------------------------
# Sound outside, odd inside.


def bodies() -> SearchStrategy[bytes]:
    label = st.sampled_from([b"1", b"-1", b"9" * 40, b"\xc2\xb2", b" 2 ", b"", b"1.5"])
    documents = st.one_of(changed(MANIFEST), changed(LABELS), values()).map(as_json)
    pickle = st.just(b"\x80\x04cos\nsystem\n.")
    return st.one_of(st.sampled_from(examples()), label, documents, pickle, st.binary(max_size=40))


def contents() -> SearchStrategy[list[tuple[str, bytes]]]:
    names = st.one_of(st.sampled_from(NAMES), st.text(st.characters(exclude_categories=["Cs"]), max_size=12))
    return st.lists(st.tuples(names, bodies()), max_size=5)


def built_zips() -> SearchStrategy[bytes]:
    """Local headers, directory and end that agree, but for what is drawn to differ."""
    method = st.sampled_from([0, 8, 12, 14, 93, 0xFFFF])
    flags = st.sampled_from([0, 0, 0, 1, 8, 0x800, 0xFFFF])
    said = st.sampled_from([None, None, 0, 1, 2**31, 2**32 - 1])
    mode = st.sampled_from([0, 0o100644 << 16, 0o120777 << 16, 0xFFFFFFFF])
    member = st.tuples(st.sampled_from(NAMES), bodies(), method, flags, said, mode)
    return st.lists(member, max_size=5).map(_zip_of)


def _zip_of(drawn: list[tuple[str, bytes, int, int, int | None, int]]) -> bytes:
    out, directory = b"", b""
    for name, body, method, flags, said, mode in drawn:
        text, crc = name.encode("utf-8", "surrogatepass"), zlib.crc32(body)
        packed = zlib.compress(body)[2:-4] if method == 8 else body
        size = len(body) if said is None else said
        sizes = struct.pack("<4H3L2H", flags, method, 0, 33, crc, len(packed), size, len(text), 0)
        directory += (
            b"PK\1\2" + struct.pack("<2H", 0x314, 20) + sizes + struct.pack("<3H2L", 0, 0, 0, mode, len(out))
        )
        directory += text
        out += b"PK\3\4" + struct.pack("<H", 20) + sizes + text + packed
    end = struct.pack("<4s4H2LH", b"PK\5\6", 0, 0, len(drawn), len(drawn), len(directory), len(out), 0)
    return out + directory + end


def built_tars() -> SearchStrategy[bytes]:
    """Headers whose sums are right, and that say odd things."""
    kind = st.sampled_from(
        [b"0", b"0", b"0", b"1", b"2", b"3", b"5", b"6", b"L", b"K", b"x", b"g", b"S", b"\0", b"7"]
    )
    said = st.sampled_from(
        [None, None, None, 0, 1, 511, 2**20 + 1, 2**33 - 1, -1, -512, -1024, -(2**40), 2**80]
    )
    said_again = [
        "size=x",
        "size=-5",
        "size=99999999999999999999999",
        "path=a/0.png",
        "path=",
        "linkpath=../x",
    ]
    sparse = [
        "GNU.sparse.major=1",
        "GNU.sparse.map=0,x",
        "GNU.sparse.size=-1",
        "GNU.sparse.realsize=9e9",
        "mtime=nan",
    ]
    record = st.sampled_from([*said_again, *sparse, "hdrcharset=BINARY", "size=999"]).map(_pax)
    pax = st.one_of(
        st.lists(record, max_size=3).map(b"".join), st.sampled_from([b"", b"5\n", b"-1 a=b\n", b"99 a=b\n"])
    )
    body = st.one_of(bodies(), pax, pax)
    member = st.tuples(st.sampled_from(NAMES), body, kind, said, st.sampled_from(NAMES))
    return st.tuples(st.lists(member, max_size=5), st.booleans()).map(lambda d: _tar_of(*d))


def _pax(text: str) -> bytes:
    """A record of an extended header, which begins with its own length."""
    length = len(text) + 3
    while len(f"{length} {text}\n") != length:
        length += 1
    return f"{length} {text}\n".encode()


def _size(size: int) -> bytes:
    """In octal digits, or in GNU's form for what they cannot tell."""
    return (
        b"%011o\0" % size
        if 0 <= size < 8**11
        else b"%c" % (0x80 if size >= 0 else 0xFF) + (size % 256**11).to_bytes(11, "big")
    )


def _tar_of(drawn: list[tuple[str, bytes, bytes, int | None, str]], ended: bool) -> bytes:
    out = b""
    for name, body, kind, said, link in drawn:
        size = len(body) if said is None else said
        header = bytearray(512)
        header[:100] = name.encode("utf-8", "surrogatepass")[:100].ljust(100, b"\0")
        header[100:136] = b"0000644\0" + b"0000000\0" * 2 + _size(size)
        header[136:148], header[148:156], header[156:157] = b"0" * 11 + b"\0", b" " * 8, kind
        header[157:257] = link.encode("utf-8", "surrogatepass")[:100].ljust(100, b"\0")
        header[257:265] = b"ustar\x0000"
        header[148:156] = b"%06o\0 " % sum(header)
        out += bytes(header) + body + bytes(-len(body) % 512)
    return out + bytes(1024 * ended)


def built_npys() -> SearchStrategy[bytes]:
    """.npy files whose header is a literal of Python."""
    descr = st.sampled_from(
        ["'<f4'", "'>f8'", "'<f2'", "'|O'", "'<U4'", "[('a', '<f4')]", "'<i4'", "'<c8'", "'V4'"]
    )
    shape = st.one_of(st.tuples(st.integers(-2, 9), st.integers(-1, 9)).map(repr), values().map(repr))
    order = st.one_of(st.sampled_from(["True", "False", "2", "'x'"]), values().map(repr))
    header = st.tuples(descr, order, shape).map(
        lambda d: f"{{'descr': {d[0]}, 'fortran_order': {d[1]}, 'shape': {d[2]}, }}".encode(
            "utf-8", "replace"
        )
    )
    version = st.sampled_from([b"\1\0", b"\2\0", b"\3\0", b"\4\0"])
    data = st.one_of(st.binary(max_size=64), st.integers(0, 400).map(lambda n: b"\0\0\x80\x3f" * n))
    return st.tuples(version, header, data).map(_npy_of)


def _npy_of(drawn: tuple[bytes, bytes, bytes]) -> bytes:
    version, header, data = drawn
    header = (header + bytes(32 * (-len(header) % 64 > 0)).replace(b"\0", b" "))[: 2**15] + b"\n"
    length = struct.pack("<H" if version == b"\1\0" else "<I", len(header))
    return b"\x93NUMPY" + version + length + header + data


def built_pixel_files() -> SearchStrategy[bytes]:
    """Caches whose digest is right."""
    about = {"content": "content", "size": 4, "as stored": 1, "left out": [["a", "b"]]}
    count = st.one_of(st.just(1), st.sampled_from([0, 2, 2**32, 2**63]))
    line = changed(about).map(as_json)
    return st.tuples(count, line, st.integers(0, 60)).map(lambda d: _pixel_file_of(*d))


def _pixel_file_of(count: int, line: bytes, pixels: int) -> bytes:
    import hashlib

    (valid,) = pixel_files()
    arrays = struct.pack("<Iq", zlib.crc32(bytes(48)), 0)
    digest = hashlib.sha256(arrays + line).digest()
    head = valid[: 128 + min(48, pixels + 40)]
    return head + arrays + line + struct.pack("<QQ32s8s", count, len(line), digest, b"pgsrpix1")


def built_idx() -> SearchStrategy[bytes]:
    return st.tuples(st.lists(numbers(), max_size=5).map(b"".join), st.binary(max_size=50)).map(
        lambda d: b"\0\0\x08\x03" + d[0] + d[1]
    )


def packed(strategy: SearchStrategy[bytes]) -> SearchStrategy[bytes]:
    return st.one_of(strategy, strategy.map(lambda data: gzip.compress(data, 1)))


def near(examples: Any) -> Any:
    return lambda: bytes_near(examples())


def faces_tar() -> list[bytes]:
    data = tar_entry("000000.png", png()) + tar_entry("000000.json", json.dumps({"seed": 0}).encode())
    return [data, data + tar_end(len(data))]


TARGETS = [
    Target("zip", read_zip, zips, built_zips),
    Target("tar", read_tar, tars, built_tars),
    Target("lmdb", read_lmdb, databases, near(databases)),
    Target("idx", read_idx, lambda: [idx(2, 4), gzip.compress(idx(1, 2))], lambda: packed(built_idx())),
    Target("idx-labels", read_idx_labels, idx_labels, near(idx_labels)),
    Target("cifar", read_cifar, lambda: [cifar(1)], near(lambda: [cifar(1)])),
    Target(
        "cifar-tar",
        read_cifar_tar,
        lambda: [tarred({"c/data_batch_1.bin": cifar(1)})],
        lambda: packed(built_tars()),
    ),
    Target("pixel-cache", read_pixels, pixel_files, built_pixel_files),
    Target(
        "latents",
        read_latents,
        lambda: [npy(np.ones((3, 8), "<f4")), npy(np.ones((2, 8), ">f2"))],
        built_npys,
    ),
    Target("faces-tar", read_faces_tar, faces_tar, built_tars),
    Target("faces-zip", read_faces_zip, lambda: zips()[:1], built_zips),
]
