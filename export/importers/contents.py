"""A file of weights -> what it holds, as dicts, lists and tensors. No code of the file runs.

.safetensors by its library; PyTorch's files (the zip of today and the stream before 1.6) by
`torch.load(weights_only=True)` and, where they hold classes, by inert.py; bare pickles by inert.py alone.
"""

from __future__ import annotations

import pickle
import re
import struct
import zipfile
import zlib
from pathlib import Path
from typing import IO, Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file

from pgsr.errors import PgsrError

from . import inert
from .plain import MOST_REPEATED, STORED, Plain, Record, Storages, state_dict

DAMAGE = (
    *(OSError, EOFError, struct.error, zipfile.BadZipFile, zlib.error, NotImplementedError, SafetensorError),
    *(
        TypeError,
        ValueError,
        LookupError,
        OverflowError,
        MemoryError,
        RuntimeError,
        AttributeError,
        AssertionError,
    ),
)
LEGACY_MAGIC = 0x1950A86A20F9469CFC6C  # the first number in PyTorch's files before 1.6


# What is often found under a name of weights, by how it begins, and what to do.
DOWNLOADED = "the server sent this in place of the file: fetch it again, in a browser if need be"
OTHERS = {
    rb"\s*<(!doctype|html|head|\?xml)": f"it is a web page: {DOWNLOADED}",
    rb"\s*\{\s*\"(error|message|detail)": f"it is a server's error message: {DOWNLOADED}",
    rb"version https://git-lfs": "it is a pointer of Git LFS, not the file: 'git lfs pull' fetches that",
    rb"\x1f\x8b|BZh|\xfd7zXZ|7z\xbc\xaf|Rar!": "it is a compressed archive: unpack it first",
    rb"\x89HDF": "it holds weights of Keras, whose networks are not imported",
    rb"7767517\s": "it is a network of ncnn's: take the .pth or .safetensors that it was made from",
    rb"\x08[\x01-\x20]\x12": "it is an ONNX graph: take the .pth or .safetensors that it was made from",
    rb"\x89PNG|\xff\xd8\xff|GIF8|RIFF": "it is a picture",
}


def contents(path: Path) -> Any:
    """Raises PgsrError, which names the file, if it cannot be read as data alone."""
    if path.is_dir():
        raise PgsrError(f"{path} is a folder: name a file of weights in it")
    if not path.is_file():
        raise PgsrError(f"no file at {path}")
    try:
        return _contents(path)
    except PgsrError as error:
        raise PgsrError(f"{path} cannot be imported: {error}") from error
    except DAMAGE as error:
        raise PgsrError(
            f"{path} cannot be imported: it is damaged or no file of weights ({error})"
        ) from error


def is_ours(path: Path) -> bool:
    """Whether a file is one of this package's checkpoints."""
    try:
        with open(path, "rb") as start, safe_open(path, framework="pt") as file:
            return start.read(9)[8:] == b"{" and "pgsr" in (file.metadata() or {}).get("format", "")
    except DAMAGE:
        return False


def _contents(path: Path) -> Any:
    with open(path, "rb") as file:
        start = file.read(64)
    if not start:
        raise PgsrError("it is empty: fetch or copy it again")
    for pattern, words in OTHERS.items():
        if re.match(pattern, start, re.IGNORECASE):
            raise PgsrError(words)
    if start[8:9] == b"{":
        return load_file(path)
    if start[:4] == b"PK\x03\x04":
        return _zipped(path)
    return _stream(path)


def _only_weights(path: Path) -> Any:
    """Returns what PyTorch's own restricted reader makes of a file; None if it holds classes."""
    try:
        tree = torch.load(path, map_location="cpu", weights_only=True)
        _check_sizes(tree)
        return tree
    except pickle.UnpicklingError:
        return None
    except DAMAGE as error:
        text = " ".join(str(error).split())[:200] or type(error).__name__
        raise PgsrError(f"it is damaged ({text})") from error


def _check_sizes(tree: Any) -> None:
    """Raises PgsrError for a tensor that stands for more numbers than the file holds."""
    for value in _walk(tree):
        if not isinstance(value, torch.Tensor):
            continue
        if value.device.type != "cpu":
            raise PgsrError(f"its tensors are on the device {value.device}: save them from the CPU")
        if value.layout != torch.strided or value.numel() <= MOST_REPEATED:
            continue
        if value.numel() * value.element_size() > value.untyped_storage().nbytes():
            raise PgsrError("it is damaged (a tensor larger than its storage)")


def _zipped(path: Path) -> Any:
    if not zipfile.is_zipfile(path):
        raise PgsrError("it is cut short: fetch or copy it again")
    with zipfile.ZipFile(path) as archive:
        names = archive.namelist()
        if any(n.endswith("/constants.pkl") or "/code/" in n for n in names):
            raise PgsrError("it is a TorchScript archive, which is code: save the state_dict instead")
        if any(info.compress_type != zipfile.ZIP_STORED for info in archive.infolist()):
            raise PgsrError("it is a compressed archive, which PyTorch's files are not: unpack it first")
        if sum(info.file_size for info in archive.infolist()) > path.stat().st_size:
            raise PgsrError("it is damaged (its parts are larger than the file)")
        tops = [n.removesuffix("data.pkl") for n in names if n.endswith("/data.pkl")]
        if len(tops) != 1:
            raise PgsrError("it is an archive of something else than PyTorch's weights")
        with archive.open(f"{tops[0]}data.pkl") as file:
            inert.read(file, guarded=False)  # so that PyTorch's reader meets no key that takes for ever
        weights = _only_weights(path)
        if weights is not None:
            return weights
        order = archive.read(f"{tops[0]}byteorder") if f"{tops[0]}byteorder" in names else b"little"
        if order != b"little":
            raise PgsrError("it was written on a big-endian machine: save it again as .safetensors")
        with archive.open(f"{tops[0]}data.pkl") as file:
            tree = inert.read(file)
        return _modules(Plain(Storages(lambda key: archive.read(f"{tops[0]}data/{key}"))).of(tree))


def _stream(path: Path) -> Any:
    """PyTorch's files before 1.6, or one pickle."""
    with open(path, "rb") as file:
        first = inert.read(file)
        if first != LEGACY_MAGIC:
            return Plain().of(first)
        place = file.tell()
        for _ in range(3):
            inert.read(file, guarded=False)  # so that PyTorch's reader meets no key that takes for ever
        weights = _only_weights(path)
        if weights is not None:
            return weights
        file.seek(place)
        inert.read(file)  # version
        machine = inert.read(file)
        if not isinstance(machine, dict) or not machine.get("little_endian", True):
            raise PgsrError("it was written on a big-endian machine: save it again as .safetensors")
        tree = inert.read(file)
        return _modules(Plain(Storages(_stored(file, _widths(tree)).__getitem__)).of(tree))


def _stored(file: IO[bytes], widths: dict[str, int]) -> dict[str, bytes]:
    """The storages behind the last pickle: for each of its keys a count and as many numbers."""
    files: dict[str, bytes] = {}
    for key in inert.read(file):
        (count,) = struct.unpack("<q", file.read(8))
        size = count * widths.get(str(key), 0)
        files[str(key)] = data = file.read(max(0, size))
        if len(data) != size:
            raise EOFError("it is cut short")
    return files


def _walk(tree: Any) -> list[Any]:
    """Every value in a pickle once."""
    visits: dict[int, Any] = {}
    waiting = [tree]
    while waiting:
        value = waiting.pop()
        if id(value) in visits or isinstance(value, (str, bytes, int, float, bool, type(None))):
            continue
        visits[id(value)] = value
        if isinstance(value, dict):
            waiting += value.values()
        elif isinstance(value, (list, tuple, set, frozenset)):
            waiting += value
        elif isinstance(value, inert.Inert):
            waiting += [value.args, value.state, value.items, [v for _, v in value.pairs]]
        elif isinstance(value, inert.Persistent):
            waiting.append(value.key)
    return list(visits.values())


def _widths(tree: Any) -> dict[str, int]:
    """Bytes a number of each storage."""
    widths = {}
    for value in _walk(tree):
        key = value.key if isinstance(value, inert.Persistent) else None
        if isinstance(key, tuple) and len(key) > 2 and isinstance(key[1], inert.Name):
            dtype = STORED.get(key[1].name)
            if dtype is None:
                raise PgsrError(f"it holds numbers of an unknown type, {key[1]}")
            widths[str(key[2])] = dtype.itemsize
    return widths


def _modules(tree: Any) -> Any:
    """A module that was saved whole becomes its state dict; so do those in a dict."""
    if isinstance(tree, Record) and tree.get("_modules") is not None:
        return state_dict(tree)
    if isinstance(tree, dict):
        return {k: _modules(v) if isinstance(v, Record) else v for k, v in tree.items()}
    return tree
