"""Checkpoints (contract 1): what is saved comes back to the bit, or not at all."""

from __future__ import annotations

import gc
import hashlib
import json
import struct
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from pgsr import checkpoint
from pgsr.checkpoint import FORMAT, Checkpoint, files_of, load, load_description, newest, save
from pgsr.errors import PgsrError
from pictures import flipped


def example() -> Checkpoint:
    """Every kind of tensor a state holds, and then some."""
    g = torch.Generator().manual_seed(0)
    tensors = {
        "generator.weight": torch.randn(3, 4, 3, 3, generator=g),
        "generator.special": torch.tensor([0.0, -0.0, float("inf"), float("-inf"), float("nan"), 1e-45]),
        "generator_ema.half": torch.randn(5, generator=g).bfloat16(),
        "generator_ema.fp16": torch.randn(2, 3, generator=g).half(),
        "discriminator.double": torch.randn(4, generator=g).double(),
        "discriminator.num_batches_tracked": torch.tensor(7),
        "discriminator.mask": torch.tensor([True, False, True]),
        "discriminator.empty": torch.empty(0, 4),
        "optimizer.generator.weight/step": torch.tensor(12.0),
    }
    return Checkpoint(
        tensors,
        config={"name": "é", "seed": 3, "schedule": {"batch": 16, "at": {"4": {"batch": None}}}},
        progress={"images_shown": 1600},
        provenance={"version": "0.1.0", "data": {"fingerprint": "abc"}},
    )


def same_bits(a: torch.Tensor, b: torch.Tensor) -> bool:
    if (a.dtype, a.shape) != (b.dtype, b.shape):
        return False
    return a.reshape(-1).view(torch.uint8).equal(b.reshape(-1).view(torch.uint8))


def same(a: Checkpoint, b: Checkpoint) -> bool:
    if (a.config, a.progress, a.provenance) != (b.config, b.progress, b.provenance):
        return False
    return a.tensors.keys() == b.tensors.keys() and all(
        same_bits(a.tensors[k], b.tensors[k]) for k in a.tensors
    )


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "000001600.safetensors"


def test_everything_comes_back_to_the_bit(path: Path):
    save(path, example())
    assert same(load(path), example())


def digest(path: Path) -> str:
    with safe_open(path, framework="pt") as file:
        return file.metadata()["digest"]


def test_the_same_state_has_the_same_digest(path: Path, tmp_path: Path):
    """The files themselves may differ: the format keeps its metadata in no order."""
    for name in ("one", "two"):
        save(tmp_path / name, example())
    changed = example()
    changed.tensors["generator.weight"][0, 0, 0, 0] += 1
    save(path, changed)
    assert digest(tmp_path / "one") == digest(tmp_path / "two") != digest(path)


def test_memory_layout_does_not_matter(path: Path):
    weight = torch.randn(3, 4, 5, 5)
    odd = {
        "a": weight.to(memory_format=torch.channels_last),
        "b": weight.transpose(0, 1),
        "c": weight[:, ::2],
    }
    save(path, Checkpoint(odd, {}, {}, {}))
    loaded = load(path).tensors
    assert all(torch.equal(loaded[k], odd[k]) for k in odd)


def test_parameters_are_saved_without_their_graph(path: Path):
    save(path, Checkpoint({"w": torch.nn.Parameter(torch.ones(2))}, {}, {}, {}))
    assert not load(path).tensors["w"].requires_grad


def test_under_strips_the_prefix_and_nothing_else():
    assert set(example().under("generator.")) == {"weight", "special"}
    assert set(example().under("generator_ema.")) == {"half", "fp16"}


def loaded_or_none(path: Path) -> Checkpoint | None:
    try:
        return load(path)
    except PgsrError:
        return None


def test_no_flipped_bit_is_read_silently(path: Path):
    """One bit at 600 places, all of the header's bytes first: an error, or still the same content."""
    save(path, example())
    good, reference = path.read_bytes(), load(path)
    header = 8 + struct.unpack("<Q", good[:8])[0]
    positions = [
        *range(0, header, max(1, header // 400)),
        *range(header, len(good), max(1, (len(good) - header) // 200)),
    ]
    for n, position in enumerate(positions):
        path.write_bytes(flipped(good, position, n % 8))
        content = loaded_or_none(path)
        if position >= header:
            assert content is None, f"byte {position} of the tensors changed and was read"
        assert content is None or same(content, reference), f"byte {position} changed unnoticed"


def test_every_truncated_file_is_refused(path: Path):
    save(path, example())
    good = path.read_bytes()
    for length in (0, 1, 7, 8, 9, 100, len(good) // 2, len(good) - 1):
        path.write_bytes(good[:length])
        with pytest.raises(PgsrError, match="damaged or not a checkpoint"):
            load(path)


def test_a_longer_file_is_refused(path: Path):
    save(path, example())
    path.write_bytes(path.read_bytes() + b"\0")
    with pytest.raises(PgsrError, match="damaged"):
        load(path)


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 a zip", b"\x80\x04 a pickle", b"{}" * 50])
def test_other_files_are_refused(path: Path, content: bytes):
    path.write_bytes(content)
    with pytest.raises(PgsrError, match="damaged or not a checkpoint"):
        load(path)


@pytest.mark.parametrize("metadata", [None, {"format": "pt"}, {"format": "pgsr-checkpoint-0"}])
def test_other_safetensors_files_are_refused(path: Path, metadata: dict[str, str] | None):
    save_file({"weight": torch.ones(3)}, path, metadata=metadata)
    with pytest.raises(PgsrError, match=f"not a checkpoint of this version of pgsr \\({FORMAT}\\)"):
        load(path)


def test_exchanged_metadata_are_noticed(path: Path):
    """Well-formed, all tensors right, but another learning rate than was trained with."""
    save(path, example())
    raw = path.read_bytes()
    size = struct.unpack("<Q", raw[:8])[0]
    header = json.loads(raw[8 : 8 + size])
    header["__metadata__"]["config"] = header["__metadata__"]["config"].replace('"seed": 3', '"seed": 4')
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + raw[8 + size :])
    with pytest.raises(PgsrError, match="do not match its digest"):
        load(path)


@pytest.mark.parametrize(("kind", "shape", "size"), [("F4", [2], 1), ("F8_E8M0", [2], 2), ("F9", [2], 2)])
def test_types_that_are_not_pytorchs_are_refused(path: Path, kind: str, shape: list[int], size: int):
    text = json.dumps({"a": {"dtype": kind, "shape": shape, "data_offsets": [0, size]}}).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + bytes(size))
    with pytest.raises(PgsrError, match="damaged or not a checkpoint"):
        load(path)


def test_what_was_read_does_not_lie_in_the_file(path: Path):
    """A process whose tensors lie in a mapped file ends with SIGBUS when that is cut."""
    save(path, example())
    held = load(path)
    assert str(path) not in Path("/proc/self/maps").read_text()
    assert same(held, example())


def test_reading_leaves_nothing_behind(path: Path):
    """safe_open loses two numbers with each tensor."""
    tensors = {f"generator.{i}": torch.zeros(40, 3) for i in range(100)}
    save(path, Checkpoint(tensors, {}, {}, {}))
    load(path)
    gc.collect()
    before = sys.getallocatedblocks()
    for _ in range(10):
        load(path)
    gc.collect()
    assert sys.getallocatedblocks() - before < len(tensors)


def test_an_absent_file_is_named(path: Path):
    with pytest.raises(PgsrError, match=f"no checkpoint at {path}"):
        load(path)


def test_a_failed_save_leaves_the_old_file(path: Path):
    save(path, example())
    good = path.read_bytes()
    broken = Checkpoint({"a": torch.ones(1)}, {"not json": object()}, {}, {})
    with pytest.raises(TypeError):
        save(path, broken)
    assert path.read_bytes() == good
    assert list(path.parent.iterdir()) == [path]


def test_a_folder_that_is_not_there_is_an_error(tmp_path: Path):
    with pytest.raises(PgsrError, match="cannot write"):
        save(tmp_path / "absent" / "x.safetensors", example())


# ----------------------------------------------------------------------------
# Descriptions, and the files of a run.


def with_metadata(path: Path, **changes: str | None) -> None:
    """The example with some of its texts replaced, or left out, under a digest that is right."""
    texts = {name: json.dumps(getattr(example(), name)) for name in ("config", "progress", "provenance")}
    texts = {name: text for name, text in (texts | changes).items() if text is not None}
    metadata = {"format": FORMAT, "digest": checkpoint._digest(example().tensors, texts), **texts}
    save_file(example().tensors, path, metadata=metadata)


def test_a_description_is_everything_but_the_tensors(path: Path):
    save(path, example())
    found = load_description(path)
    assert found.tensors == {}
    assert (found.config, found.progress) == (example().config, example().progress)
    assert found.provenance == example().provenance
    path.write_bytes(flipped(path.read_bytes(), path.stat().st_size - 1))
    assert load_description(path) == found  # nothing but its header is looked at


@pytest.mark.parametrize("name", ["config", "progress", "provenance"])
@pytest.mark.parametrize("read", [load, load_description])
def test_damaged_texts_are_named(path: Path, name: str, read: Callable[[Path], Checkpoint]):
    for text in (None, "", "{", "[" * 100_000):
        with_metadata(path, **{name: text})
        with pytest.raises(PgsrError, match=f"{path} is damaged: its {name} cannot be read"):
            read(path)
    for text in ("[]", "null", "3", '"text"'):
        with_metadata(path, **{name: text})
        with pytest.raises(PgsrError, match=f"{path} is damaged: its {name} is no table"):
            read(path)


def test_the_digest_is_over_everything():
    """sha256 by hand of one tensor and one text."""
    tensor = torch.tensor([[1.0, 2.0]])
    expected = hashlib.sha256(b"w torch.float32 [1, 2]\n" + tensor.numpy().tobytes() + b"config {}\n")
    assert checkpoint._digest({"w": tensor}, {"config": "{}"}) == expected.hexdigest()


def test_the_order_of_keys_does_not_matter(tmp_path: Path):
    other = example()
    backwards = Checkpoint(
        other.tensors, dict(reversed(other.config.items())), other.progress, other.provenance
    )
    save(tmp_path / "one", example())
    save(tmp_path / "two", backwards)
    assert digest(tmp_path / "one") == digest(tmp_path / "two")


def test_the_format_keeps_its_name():
    """Files of earlier versions have it."""
    assert FORMAT == "pgsr-checkpoint-1"


def test_a_runs_checkpoints_are_those_named_by_images(tmp_path: Path):
    folder = tmp_path / "checkpoints"
    folder.mkdir()
    own = ["000000064", "000001600", "123456789012345"]
    others = ["00000064", "1234567890123456", "best", "000000064-copy", "00000006x"]
    for name in [*own, *others]:
        (folder / f"{name}.safetensors").touch()
    (folder / "000009999.safetensors").mkdir()
    (folder / "000009998.tmp").touch()
    assert [path.stem for path in files_of(tmp_path)] == own
    assert newest(tmp_path) == folder / "123456789012345.safetensors"
    assert newest(folder / "best.safetensors") == folder / "best.safetensors"


def test_a_folder_without_checkpoints_is_named(tmp_path: Path):
    for path in (tmp_path, tmp_path / "absent"):
        with pytest.raises(PgsrError, match=f"{path} holds no checkpoint: train it first"):
            newest(path)
