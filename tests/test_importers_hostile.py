"""Files that want to do harm, or are damaged: nothing of them runs, and each is one sentence."""

from __future__ import annotations

import collections
import datetime
import decimal
import enum
import functools
import http
import io
import ipaddress
import logging
import pickle
import random
import re
import struct
import subprocess
import sys
import types
import uuid
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import peers
from pgsr.errors import PgsrError
from pgsr.export.importers import import_file
from pgsr.export.importers.contents import LEGACY_MAGIC, contents
from pgsr.export.importers.inert import Inert, Name, Persistent, read
from pgsr.export.importers.plain import Plain, Storages

ROOT = Path(__file__).parents[1]


class Runs:
    """What runs `function(*arguments)` in every reader that runs pickles."""

    def __init__(self, function: Callable[..., Any], *arguments: Any) -> None:
        self.reduced = function, arguments

    def __reduce__(self) -> tuple[Any, ...]:
        return self.reduced


def written(path: Path) -> Runs:
    return Runs(exec, f"import pathlib; pathlib.Path({str(path)!r}).write_text('ran')")


def in_a_pickle(value: Any) -> bytes:
    return pickle.dumps(value)


def in_a_network(value: Any) -> bytes:
    arrays = peers.nvidia_arrays(peers.Draw(1, torch.float32), 4, [4, 4], True, 0.0)
    with peers.saved_as(tfutil=[peers.Network]):
        return pickle.dumps(peers.nvidia_networks(arrays, arrays, use_wscale=value))


def in_a_zip(value: Any) -> bytes:
    out = io.BytesIO()
    torch.save({"state_dict": {"a": torch.zeros(3)}, "epoch": value}, out)
    return out.getvalue()


def in_a_stream(value: Any) -> bytes:
    out = io.BytesIO()
    torch.save({"a": torch.zeros(3), "b": value}, out, _use_new_zipfile_serialization=False)
    return out.getvalue()


@pytest.mark.parametrize("place", [in_a_pickle, in_a_network, in_a_zip, in_a_stream])
def test_code_in_a_file_does_not_run(place: Callable[[Any], bytes], tmp_path: Path):
    harm, file = tmp_path / "harm", tmp_path / "weights.pth"
    file.write_bytes(place(written(harm)))
    with pytest.raises(PgsrError, match=r"weights.pth cannot be .* names \w+.exec, which .*not trust it"):
        import_file(file)
    assert not harm.exists()
    if place is in_a_pickle:  # it is no harmless file
        pickle.loads(file.read_bytes())
        assert harm.exists()


def program(form: str, module: str, name: str) -> bytes:
    """A pickle that calls module.name("x") in one of the ways a pickle can."""
    short = b"\x8c" + bytes([len(module)]) + module.encode() + b"\x8c" + bytes([len(name)]) + name.encode()
    named = f"{module}\n{name}\n".encode()
    return {
        "global": b"\x80\x02c" + named + b"(X\x01\x00\x00\x00xtR.",
        "stack global": b"\x80\x04" + short + b"\x93(\x8c\x01xtR.",
        "instance": b"(S'x'\ni" + named + b".",
        "object": b"(c" + named + b"S'x'\no.",
        "new object": b"\x80\x02c" + named + b"(X\x01\x00\x00\x00xt\x81.",
        "with keywords": b"\x80\x04" + short + b"\x93(\x8c\x01xt}\x92.",
    }[form]


FORMS = ("global", "stack global", "instance", "object", "new object", "with keywords")
HARMFUL = (
    *("os.system", "posix.system", "nt.system", "subprocess.Popen", "builtins.eval", "builtins.exec"),
    *("builtins.getattr", "builtins.__import__", "__builtin__.execfile", "importlib.import_module"),
    *("runpy.run_path", "pty.spawn", "shutil.rmtree", "code.interact", "operator.attrgetter", "pickle.loads"),
    *("torch.hub.load", "torch.load", "torch.jit.load", "torch.classes.load_library", "numpy.load"),
    *("numpy.testing._private.utils.runstring", "torch.utils.cpp_extension.load", "io.open", "sys.exit"),
)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("called", HARMFUL)
def test_harmful_names_are_refused(form: str, called: str):
    module, _, name = called.rpartition(".")
    with pytest.raises(PgsrError, match=f"names {called}, which weights have no need of"):
        read(io.BytesIO(program(form, module, name)))


@pytest.mark.parametrize("form", FORMS)
def test_unknown_classes_are_neither_imported_nor_made(
    form: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    (tmp_path / "evil_module.py").write_text("raise SystemExit('imported')")
    monkeypatch.syspath_prepend(tmp_path)
    made = read(io.BytesIO(program(form, "evil_module", "Evil")))
    assert isinstance(made, Inert)
    assert (made.name, made.args) == (Name("evil_module", "Evil"), ("x",))
    assert Plain().of(made).name == "evil_module.Evil"
    assert "evil_module" not in sys.modules


def test_what_is_made_cannot_be_called_or_changed():
    """The value of a call as the thing to call, and state for a class, as attacks on readers do."""
    call_of_a_call = b"\x80\x02cmodel\nA\n)R)R."
    state_of_a_class = b"\x80\x02cmodel\nA\n}X\x01\x00\x00\x00aK\x01sb."
    for data in (call_of_a_call, state_of_a_class):
        with pytest.raises(PgsrError, match="damaged"):
            read(io.BytesIO(data))


def test_extensions_are_refused():
    with pytest.raises(PgsrError, match="damaged"):
        read(io.BytesIO(b"\x80\x02\x82\x01."))


# ----------------------------------------------------------------------------
# The machine makes what Python's own makes.

shared = [1, 2]
VALUES = [
    None,
    True,
    -5,
    2**80,
    1.5,
    "text\u00e9",
    b"\x00\xff",
    bytearray(b"ab"),
    (),
    (1,),
    (1, 2, 3, 4),
    [1, [2, (3,)]],
    {"a": {1: [2]}},
    {1, 2},
    frozenset({3}),
    [shared, shared],
    {"k" * 300: list(range(2000))},
]


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_plain_values_are_read_as_python_reads_them(protocol: int):
    for value in VALUES:
        found = Plain().of(read(io.BytesIO(pickle.dumps(value, protocol))))
        assert found == value
        assert type(found) is type(value)
    found = Plain().of(read(io.BytesIO(pickle.dumps([shared, shared], protocol))))
    assert found[0] is found[1]


@pytest.mark.parametrize("protocol", [0, 1, 2, 4, 5])
@pytest.mark.parametrize("code", ["<f4", ">f4", "<f8", "<f2", "<i8", "|u1", "|b1"])
def test_arrays_are_read_as_numpy_reads_them(protocol: int, code: str):
    array = (np.arange(24).reshape(2, 3, 4) % 7).astype(code)
    for value in (array, np.asfortranarray(array), array[:, ::2], array[0, 0, 0], np.zeros((0, 3), code)):
        found = Plain().of(read(io.BytesIO(pickle.dumps(value, protocol))))
        assert np.array_equal(found, value)
        if value.ndim:
            assert found.dtype == value.dtype.newbyteorder("=")


@pytest.mark.parametrize("legacy", [False, True])
def test_tensors_are_read_as_pytorch_reads_them(legacy: bool, tmp_path: Path):
    base = torch.arange(24.0).reshape(2, 3, 4)
    tensors = {
        **{
            "whole": base,
            "turned": base.permute(2, 0, 1),
            "part": base[:, 1:, ::2],
            "empty": torch.zeros(0, 3),
        },
        **{"scalar": torch.tensor(3.5), "expanded": torch.ones(1).expand(4, 2)},
        **{
            str(t): base.to(t)
            for t in (torch.float64, torch.float16, torch.bfloat16, torch.int64, torch.uint8)
        },
        "parameter": torch.nn.Parameter(base[0].clone()),
    }
    path = tmp_path / "t.pth"
    with peers.saved_as(model=[peers.BaseConfig]):  # a class, so that PyTorch's reader gives up
        held = {"config": peers.BaseConfig(), "tensors": OrderedDict(tensors)}
        torch.save(held, path, _use_new_zipfile_serialization=not legacy)
    found = contents(path)["tensors"]
    assert list(found) == list(tensors)
    for name, tensor in tensors.items():
        assert torch.equal(found[name], tensor), name
        assert found[name].dtype == tensor.dtype, name
        assert not found[name].requires_grad


def test_tensors_of_pytorch_0_3():
    """Parameters were variables made of tensors, ordered dicts were made of lists."""
    kind = Name("torch.cuda", "FloatStorage")
    storage = Persistent(("storage", kind, "94", "cuda:0", 6, None))
    tensor = Inert(Name("torch._utils", "_rebuild_tensor"), (storage, 0, (3, 2), (2, 1)))
    variable = Inert(Name("torch.autograd.variable", "Variable"), (tensor,), state=(True, False, None))
    parameter = Inert(Name("torch.nn.parameter", "Parameter"), (tensor,), state=(True, False, None))
    pairs = [["a", variable], ["b", parameter]]
    held = Inert(Name("collections", "OrderedDict"), (pairs,))
    data = np.arange(6, dtype="<f4").tobytes()
    found = Plain(Storages({"94": data}.__getitem__)).of(held)
    assert all(torch.equal(found[k], torch.arange(6.0).reshape(3, 2)) for k in "ab")


# ----------------------------------------------------------------------------
# Damage.


def a_network(tmp_path: Path, kind: str) -> Path:
    path = tmp_path / f"{kind}.pth"
    if kind == "nvidia":
        path.write_bytes(in_a_network(True))
        return path
    t = peers.zoo_tensors(peers.Draw(1, torch.float32), 4, [4, 4])
    with peers.saved_as(models__utils__config=[peers.BaseConfig]):
        torch.save(peers.zoo_file(t, t), path, _use_new_zipfile_serialization=kind == "zip")
    return path


@pytest.mark.filterwarnings("ignore:invalid escape sequence")
@pytest.mark.parametrize("kind", ["nvidia", "zip", "stream"])
def test_damaged_files_are_one_sentence(kind: str, tmp_path: Path):
    """Cut anywhere, or with some bytes changed: an import, or a PgsrError that names the file."""
    path = a_network(tmp_path, kind)
    whole = path.read_bytes()
    assert import_file(path)
    rng = random.Random(0)
    complaints = []
    for trial in range(90):
        data = bytearray(whole)
        if trial % 3 == 0:
            del data[rng.randrange(len(data)) :]
        for _ in range(trial % 3):
            place = rng.randrange(min(len(data), 3000))  # among the names rather than the numbers
            data[place] = rng.randrange(256)
        path.write_bytes(data)
        try:
            import_file(path).network()
        except PgsrError as error:
            complaints.append(str(error))
    assert len(complaints) > 30
    assert all(str(path) in text or "finite" in text for text in complaints)


@pytest.mark.parametrize(
    ("state", "complaint"),
    [
        ((1, (2, 3), "f4", False, b"\0" * 20), "does not fit its bytes"),
        ((1, (2**40, 2**40), "f4", False, b""), "does not fit its bytes"),
        ((1, (-1, -6), "f4", False, b"\0" * 24), "a shape that is none"),
    ],
)
def test_arrays_that_are_not_what_they_say(state: tuple[Any, ...], complaint: str):
    version, shape, code, fortran, data = state
    dtype = Inert(Name("numpy", "dtype"), (code, False, True), state=(3, "<", None, None, None, -1, -1, 0))
    array = Inert(Name("numpy.core.multiarray", "_reconstruct"), (Name("numpy", "ndarray"), (0,), b"b"))
    array.state = (version, shape, dtype, fortran, data)
    with pytest.raises(PgsrError, match=complaint):
        Plain().of(array)


def test_tensors_beyond_their_storage(tmp_path: Path):
    """The storage of a saved file is made shorter than its tensors are."""
    path = a_network(tmp_path, "zip")
    with zipfile.ZipFile(path) as archive:
        parts = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in parts.items():
            archive.writestr(name, data[: len(data) // 8 * 4] if "/data/" in name else data)
    with pytest.raises(PgsrError, match="a tensor larger than its storage"):
        import_file(path)


def test_nests_and_knots_end():
    deep = b"\x80\x02" + b"]" * 100_000 + b"a" * 99_999 + b"."
    assert isinstance(read(io.BytesIO(deep)), list)
    doubling = b"\x80\x02]q\x00" + b"".join(b"(h%ch%clq%c" % (i, i, i + 1) for i in range(60))
    found = Plain().of(read(io.BytesIO(doubling + b".")))
    assert found[0] is found[1]
    itself = Plain().of(read(io.BytesIO(b"\x80\x02]q\x00h\x00a.")))
    assert itself[0] is itself


def test_modules_that_hold_themselves(tmp_path: Path):
    """A module among its own modules."""
    data = b"\x80\x02cmodel\nG\n)\x81q\x00}(X\x08\x00\x00\x00_modules}X\x01\x00\x00\x00mh\x00sub."
    out = tmp_path / "m.pth"
    with zipfile.ZipFile(out, "w") as archive:
        archive.writestr("m/data.pkl", data)
        archive.writestr("m/byteorder", "little")
        archive.writestr("m/version", "3\n")
    with pytest.raises(PgsrError, match=r"m\.pth cannot be imported"):
        import_file(out)


def test_compressed_archives_are_refused(tmp_path: Path):
    """A few bytes that unpack to gigabytes."""
    path = tmp_path / "bomb.pth"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("m/data.pkl", b"\x80\x02]." + bytes(100_000))
    with pytest.raises(PgsrError, match="a compressed archive, which PyTorch's files are not"):
        import_file(path)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_torchscript_is_refused(tmp_path: Path):
    path = tmp_path / "script.pt"
    torch.jit.script(torch.nn.Linear(2, 2)).save(str(path))
    with pytest.raises(PgsrError, match="TorchScript archive, which is code: save the state_dict instead"):
        import_file(path)


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "it is empty: fetch or copy it again"),
        (
            b"\n<!DOCTYPE html><html>Google Drive - Virus scan warning</html>",
            "it is a web page: .* fetch it again",
        ),
        (b"<?xml version='1.0'?><Error><Code>AccessDenied</Code>", "it is a web page"),
        (b'{"error": "not found"}', "it is a server's error message"),
        (
            b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n",
            "it is a pointer of Git LFS, .* 'git lfs pull'",
        ),
        (b"\x1f\x8b\x08\0\0", "it is a compressed archive: unpack it first"),
        (b"7z\xbc\xaf\x27\x1c", "it is a compressed archive: unpack it first"),
        (b"7767517\n999 1006\n", "it is a network of ncnn's: take the .pth"),
        (b"\x08\x07\x12\x07pytorch\x1a\x05", "it is an ONNX graph: take the .pth"),
        (b"\x89HDF\r\n\x1a\n", "it holds weights of Keras"),
        (b"\x89PNG\r\n\x1a\n", "it is a picture"),
        (b"PK\x03\x04nothing", "it is cut short: fetch or copy it again"),
    ],
)
def test_what_is_found_in_the_place_of_weights_is_named(data: bytes, words: str, tmp_path: Path):
    path = tmp_path / "x.pth"
    path.write_bytes(data)
    with pytest.raises(PgsrError, match=rf"x\.pth cannot be imported: {words}"):
        import_file(path)


@pytest.mark.parametrize(
    "reference",
    [
        b"X\x01\x00\x00\x00a",  # text, where PyTorch's reader asserts a tuple
        b"(X\x07\x00\x00\x00storageK\x01t",
        b"(X\x07\x00\x00\x00storagectorch\nFloatStorage\nX\x01\x00\x00\x000X\x03\x00\x00\x00cpuJ"
        b"\xff\xff\xff\xffNt",  # a count below 0
        b"(X\x05\x00\x00\x00otherK\x01K\x01t",
    ],
)
def test_references_of_old_files_that_are_none(reference: bytes, tmp_path: Path):
    path = tmp_path / "old.pth"
    parts = (LEGACY_MAGIC, 1001, {"protocol_version": 1001, "little_endian": True, "type_sizes": {}})
    program = b"\x80\x02}X\x01\x00\x00\x00w" + reference + b"Qs."
    path.write_bytes(b"".join(pickle.dumps(part, 2) for part in parts) + program + pickle.dumps([], 2))
    with pytest.raises(PgsrError, match=r"old\.pth cannot be imported: ") as caught:
        import_file(path)
    assert "\n" not in str(caught.value)


def test_parts_that_share_their_bytes_are_refused(tmp_path: Path):
    """A few bytes that stand for many parts of an archive: entries that point to one place of the file."""
    path = tmp_path / "shared.pth"
    torch.save({"a": torch.zeros(1000)}, path)
    with zipfile.ZipFile(path, "a") as archive:
        data = next(info for info in archive.infolist() if "/data/" in info.filename)
        for i in range(1, 50):
            copy = zipfile.ZipInfo(f"{data.filename}{i}")
            copy.header_offset, copy.file_size = data.header_offset, data.file_size
            copy.compress_size, copy.CRC = data.compress_size, data.CRC
            archive.filelist.append(copy)
        archive._didModify = True  # type: ignore[attr-defined]
    with pytest.raises(PgsrError, match="its parts are larger than the file"):
        import_file(path)


def test_a_folder_is_named_as_one(tmp_path: Path):
    with pytest.raises(PgsrError, match="is a folder: name a file of weights in it"):
        import_file(tmp_path)


@pytest.mark.parametrize(
    "data",
    [
        b"\x80",
        b"PK\x03\x04nothing",
        struct.pack("<Q", 2**60) + b"{" + b" " * 20,
        b"\x80\x04.",
        b"GIF89a" * 9,
    ],
)
def test_other_files(data: bytes, tmp_path: Path):
    path = tmp_path / "x.bin"
    path.write_bytes(data)
    with pytest.raises(PgsrError, match=r"x\.bin cannot be imported: "):
        import_file(path)


# ----------------------------------------------------------------------------
# Small files that would take for ever, fill the memory or overflow the stack: each in a process of its own.

SHARED = b")" + b"2\x86" * 40  # (), then forty times the pair of it and itself
DEEP = b")" + b"\x85" * 300_000  # a tuple in a tuple in a tuple ...


def named(module: str, attribute: str) -> bytes:
    return f"c{module}\n{attribute}\n".encode()


def sharing_modules() -> bytes:
    """Thirty-one records of modules, each of which holds the one before twice."""
    record = named("mine", "Net") + b")\x81}U\x08_modules"
    out = record + b"}sbq\x00"
    for i in range(1, 32):
        out += (
            b"0" + record + b"}(U\x01ah" + bytes([i - 1]) + b"U\x01bh" + bytes([i - 1]) + b"usbq" + bytes([i])
        )
    return out + b"."


COLLIDING = b"".join(b"\x8a\x0a" + (1 + i * (2**61 - 1)).to_bytes(10, "little") + b"N" for i in range(20_000))
EXHAUSTING = {
    "a shared tuple as a key": b"}" + SHARED + b"Ns.",
    "a shared tuple in a set": b"\x80\x04\x8f(" + SHARED + b"\x90.",
    "a shared tuple in a frozen set": b"\x80\x04(" + SHARED + b"\x91.",
    "a deep tuple as a key": b"}" + DEEP + b"Ns.",
    "a deep tuple as a value": b"}K\x00" + DEEP + b"s.",
    "a shared tuple as a data type": named("numpy", "dtype") + SHARED + b"\x85R.",
    "a shared tuple as a coding": named("_codecs", "encode") + b"U\x01a" + SHARED + b"\x86R.",
    "keys that collide": b"}(" + COLLIDING + b"u.",
    "a memo of two thousand million": b"Nr\xff\xff\xff\x7f.",
    "a terabyte of bytes": b"\x80\x04\x8e" + (2**40).to_bytes(8, "little") + b"x.",
    "modules that share": sharing_modules(),
}

IMPORT = """
import resource, sys
from pathlib import Path
resource.setrlimit(resource.RLIMIT_CPU, (40, 40))
import torch
from pgsr.errors import PgsrError
from pgsr.export.importers import import_file
before = resource.getrusage(resource.RUSAGE_SELF)
try:
    import_file(Path(sys.argv[1]))
except PgsrError as error:
    print("refused:", error)
after = resource.getrusage(resource.RUSAGE_SELF)
seconds = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
print(seconds, (after.ru_maxrss - before.ru_maxrss) // 1024)
"""


@pytest.mark.parametrize("form", ["pickle", "zip"])
@pytest.mark.parametrize("what", EXHAUSTING)
def test_small_files_that_exhaust_are_refused_at_once(what: str, form: str, tmp_path: Path):
    file = tmp_path / "weights.pth"
    if form == "zip":
        with zipfile.ZipFile(file, "w") as archive:
            for name, data in {
                "data.pkl": EXHAUSTING[what],
                "version": b"3\n",
                "byteorder": b"little",
            }.items():
                archive.writestr(f"a/{name}", data)
    else:
        file.write_bytes(EXHAUSTING[what])
    done = subprocess.run(
        [sys.executable, "-c", IMPORT, str(file)], cwd=ROOT, capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 0, done.stderr[-500:]
    refusal, numbers = done.stdout.strip().rsplit("\n", 1)
    assert refusal.startswith("refused: ")
    assert "\n" not in refusal
    seconds, mebibytes = numbers.split()
    assert float(seconds) < 8
    assert int(mebibytes) < 500


def test_a_tensor_of_stride_0_is_not_grown(tmp_path: Path):
    """4.6 kB that stand for gigabytes, as a view of one number."""
    file = tmp_path / "weights.pth"
    torch.save({"weight": torch.ones(1).expand(2**31)}, file)
    with pytest.raises(PgsrError, match="larger than its storage"):
        import_file(file)


class Phase(enum.Enum):
    FIRST = 1


HARMLESS = {
    "objects": np.array(["a", "b"], dtype=object),
    "fields": np.zeros(2, dtype=[("a", "f4")]),
    "scalar text": np.str_("x"),
    "masked": np.ma.masked_array([1.0, 2.0], [True, False]),
    "numpy's type": np.float32,
    "range": range(3),
    "pattern": re.compile("x"),
    "status": http.HTTPStatus.OK,
    "enumeration": Phase.FIRST,
    "bytes in memory": io.BytesIO(b"x"),
    "function": torch.nn.functional.gelu,
    "class": torch.nn.GELU,
    "layer": torch.nn.BCEWithLogitsLoss(),
    "optimizer": torch.optim.Adam([torch.zeros(1, requires_grad=True)]),
    "scaler": torch.amp.GradScaler("cpu", enabled=False),
    "distribution": torch.distributions.Normal(0.0, 1.0),
    "error": ValueError("diverged"),
    "logger": logging.getLogger("training"),
    "address": ipaddress.ip_address("127.0.0.1"),
    "any type": collections.namedtuple,
    "complex tensor": torch.zeros(1, dtype=torch.complex64),
    "sparse": torch.eye(3).to_sparse(),
    "deque": collections.deque([1, 2]),
    "namespace": types.SimpleNamespace(width=3),
    "path": Path("here"),
    "date": datetime.date(2020, 1, 1),
    "uuid": uuid.UUID(int=1),
    "partial": functools.partial(dict, width=1),
    "generator": np.random.default_rng(0),
    "decimal": decimal.Decimal("1.5"),
    "version": torch.__version__,
    "text": np.array(["a", "b"]),
}


@pytest.mark.parametrize("what", HARMLESS)
def test_what_stands_beside_weights_is_ignored(what: str, tmp_path: Path):
    """Something harmless beside the tensors does not make a file one that is not to be trusted."""
    file = tmp_path / "weights.pth"
    torch.save({"beside": HARMLESS[what], "weight": torch.ones(2)}, file)
    with pytest.raises(PgsrError) as caught:
        import_file(file)
    assert "do not trust" not in str(caught.value)
    assert "of no layout" in str(caught.value)
