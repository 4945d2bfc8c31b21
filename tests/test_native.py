"""MNIST's and CIFAR-10's own files, written here byte by byte, and the labels they leave in an archive."""

from __future__ import annotations

import gzip
import io
import json
import pickle
import struct
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pgsr.errors import PgsrError
from pgsr.trainer.data import cache as data
from pgsr.trainer.data import cli as prepare
from pgsr.trainer.data.listing import LABELS
from pgsr.trainer.data.mnist_cifar import CIFAR_NAMES, Native, open_native
from pictures import flipped, png, write_zip

MNIST = Path(__file__).resolve().parents[2] / "shared" / "data" / "mnist"
OWN = prepare.Settings((), "lanczos", "png", 95)


def pictures_of(source: Native | None) -> int:
    assert source is not None
    return len(source)


def idx(values: np.ndarray) -> bytes:
    """Zero, zero, 8 for uint8, dimensions; each size in 4 bytes, most significant first; the values."""
    return bytes((0, 0, 8, values.ndim)) + struct.pack(f">{values.ndim}I", *values.shape) + values.tobytes()


def noise(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def write_mnist(
    folder: Path, count: int = 7, which: str = "train", packed: bool = True, side: int = 28
) -> Path:
    """A pair of files with digits i % 10, as they are distributed; returns that of the pictures."""
    folder.mkdir(exist_ok=True)
    labels = (np.arange(count) % 10).astype(np.uint8)
    contents = {"images-idx3": noise(count, side, side, seed=count), "labels-idx1": labels}
    for name, values in contents.items():
        path = folder / f"{which}-{name}-ubyte{'.gz' if packed else ''}"
        path.write_bytes(gzip.compress(idx(values)) if packed else idx(values))
    return folder / f"{which}-images-idx3-ubyte{'.gz' if packed else ''}"


def cifar(count: int, seed: int) -> tuple[bytes, np.ndarray, np.ndarray]:
    """A batch's bytes, its pictures [N, 32, 32, 3] and labels."""
    pictures, labels = noise(count, 32, 32, 3, seed=seed), noise(count, seed=seed + 1) % 10
    records = [
        bytes([label]) + picture[..., 0].tobytes() + picture[..., 1].tobytes() + picture[..., 2].tobytes()
        for picture, label in zip(pictures, labels, strict=True)
    ]
    return b"".join(records), pictures, labels


def write_tar(path: Path, members: dict[str, bytes]) -> Path:
    with tarfile.open(path, "w:gz") as archive:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return path


def members(path: Path) -> dict[str, bytes]:
    with zipfile.ZipFile(path) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


# ----------------------------------------------------------------------------
# idx.


@pytest.mark.parametrize("packed", [True, False])
def test_mnist_files_become_an_archive_of_their_own_size(packed: bool, tmp_path: Path, own_cache: Path):
    source = write_mnist(tmp_path / "mnist", 12, packed=packed)
    manifest = prepare.prepare([source], tmp_path / "out.zip", OWN)
    assert (manifest["count"], manifest["sizes"]) == (12, [28])
    assert manifest["labels"] == [str(i) for i in range(10)]
    photographs = data.load_photographs(tmp_path / "out.zip", 28)
    assert (photographs.pixels == noise(12, 28, 28, seed=12)[..., None]).all()
    assert photographs.labels is not None
    assert photographs.labels.dtype == np.int64
    assert photographs.labels.tolist() == [*range(10), 0, 1]
    assert photographs.label_names == tuple("0123456789")


def test_a_folder_gives_its_training_files_and_a_file_itself(tmp_path: Path):
    folder = tmp_path / "mnist"
    write_mnist(folder, 5, "t10k")
    assert pictures_of(open_native(folder)) == 5
    write_mnist(folder, 7, "train")
    assert pictures_of(open_native(folder)) == 7
    assert pictures_of(open_native(folder / "t10k-images-idx3-ubyte.gz")) == 5


def test_digits_without_a_file_of_labels_have_none(tmp_path: Path, own_cache: Path):
    source = write_mnist(tmp_path / "mnist")
    (tmp_path / "mnist" / "train-labels-idx1-ubyte.gz").unlink()
    manifest = prepare.prepare([source], tmp_path / "out.zip", OWN)
    assert manifest["labels"] == []
    assert LABELS not in members(tmp_path / "out.zip")
    assert data.load_photographs(tmp_path / "out.zip", 28).labels is None


@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda b: b[:-1], "is cut short: its header says 7 x 28 x 28"),
        (lambda b: b[:10], "is cut short in its header"),
        (lambda b: b"", "is not an idx file of pictures"),
        (lambda b: b + b"\0", "goes on after its last value: its header says 7 x 28 x 28"),
        (lambda b: b[:2] + b"\x0d" + b[3:], "is not an idx file of pictures"),  # floats
        (lambda b: b[:4] + b"\xff" * 12 + b[16:], "it is damaged"),  # more than any machine holds
        (lambda b: b[:4] + b"\0" * 4 + b[8:16], "it is damaged"),  # none at all
    ],
)
def test_wrong_idx_files_are_one_line(packed: bool, change, message: str, tmp_path: Path):
    source = write_mnist(tmp_path / "mnist", packed=False)
    content = change(source.read_bytes())
    source.write_bytes(gzip.compress(content) if packed else content)
    with pytest.raises(PgsrError, match=message) as caught:
        open_native(source)
    assert str(source) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_damaged_gzip_is_one_line(tmp_path: Path):
    source = write_mnist(tmp_path / "mnist")
    whole = source.read_bytes()
    for content in (whole[: len(whole) // 2], flipped(whole, len(whole) // 2), whole[:9]):
        source.write_bytes(content)
        with pytest.raises(PgsrError, match="is damaged"):
            open_native(source)


def test_labels_must_be_as_many_as_pictures(tmp_path: Path):
    source = write_mnist(tmp_path / "mnist", 7)
    (tmp_path / "mnist" / "train-labels-idx1-ubyte.gz").write_bytes(gzip.compress(idx(noise(6))))
    with pytest.raises(PgsrError, match="has 6 labels for 7 pictures"):
        open_native(source)


def test_labels_in_place_of_pictures_are_noticed(tmp_path: Path):
    source = write_mnist(tmp_path / "mnist")
    source.write_bytes(idx(noise(7)))
    with pytest.raises(PgsrError, match="is not an idx file of pictures"):
        open_native(source)


# ----------------------------------------------------------------------------
# CIFAR-10.


@pytest.mark.parametrize("sort", ["folder", "tar", "file"])
def test_cifars_binary_version(sort: str, tmp_path: Path, own_cache: Path):
    batches = {f"data_batch_{i}.bin": cifar(4, i) for i in (1, 2)}
    test, meta = cifar(3, 9), "\n".join((*CIFAR_NAMES, "\n")).encode()
    source, expected = tmp_path / "cifar-10-batches-bin", [*batches.values()]
    if sort == "tar":
        contents = {f"{source.name}/{n}": b[0] for n, b in batches.items()}
        contents |= {f"{source.name}/test_batch.bin": test[0], f"{source.name}/batches.meta.txt": meta}
        source = write_tar(tmp_path / "cifar-10-binary.tar.gz", contents)
    else:
        source.mkdir()
        for name, batch in {**batches, "test_batch.bin": test}.items():
            (source / name).write_bytes(batch[0])
    if sort == "file":
        source, expected = source / "test_batch.bin", [test]
    manifest = prepare.prepare([source], tmp_path / "out.zip", OWN)
    assert (manifest["sizes"], manifest["labels"]) == ([32], list(CIFAR_NAMES))
    photographs = data.load_photographs(tmp_path / "out.zip", 32)
    assert (photographs.pixels == np.concatenate([pictures for _, pictures, _ in expected])).all()
    assert (photographs.labels == np.concatenate([labels for _, _, labels in expected])).all()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda b: b[:-1], "not a whole number of records of 3073 bytes"),
        (lambda b: b"", "not a whole number of records of 3073 bytes"),
        (lambda b: b"\x0a" + b[1:], "has the label 10: it is damaged"),
    ],
)
def test_wrong_cifar_files_are_one_line(change, message: str, tmp_path: Path):
    (tmp_path / "data_batch_1.bin").write_bytes(change(cifar(2, 0)[0]))
    for source in (tmp_path, tmp_path / "data_batch_1.bin"):
        with pytest.raises(PgsrError, match=message):
            open_native(source)


class Trap:
    """Writes a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


@pytest.mark.parametrize("sort", ["folder", "tar", "file"])
def test_pickles_are_refused_and_not_opened(sort: str, tmp_path: Path):
    content = pickle.dumps(Trap(tmp_path / "sprung"))
    folder = tmp_path / "cifar-10-batches-py"
    folder.mkdir()
    (folder / "data_batch_1").write_bytes(content)
    tar = write_tar(tmp_path / "cifar-10-python.tar.gz", {f"{folder.name}/data_batch_1": content})
    source = {"folder": folder, "tar": tar, "file": folder / "data_batch_1"}[sort]
    with pytest.raises(PgsrError, match=r"pickles can run programs: use its binary version"):
        prepare.prepare([source], tmp_path / "out.zip", OWN)
    assert not (tmp_path / "sprung").exists()
    pickle.loads(content)
    assert (tmp_path / "sprung").exists()  # the trap works


def test_tars_that_are_damaged_or_hold_other_things(tmp_path: Path):
    batch = cifar(40, 1)[0]
    tar = write_tar(tmp_path / "a.tar.gz", {"../../data_batch_1.bin": batch})
    assert pictures_of(open_native(tar)) == 40  # a path that leads out of the archive leads nowhere
    whole = tar.read_bytes()
    for content in (whole[: len(whole) // 2], flipped(whole, len(whole) // 2), b"no tar", b""):
        tar.write_bytes(content)
        with pytest.raises(PgsrError, match="is damaged, or not a tar archive"):
            open_native(tar)
    with pytest.raises(PgsrError, match=r"holds no data_batch_1\.bin"):
        open_native(write_tar(tmp_path / "b.tar.gz", {"notes.txt": b"hello"}))


# ----------------------------------------------------------------------------
# The archive.


def test_pictures_are_still_pictures(tmp_path: Path):
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "a.png").write_bytes(png(32))
    assert open_native(tmp_path / "photos") is None
    assert open_native(write_zip(tmp_path / "photos.zip", [("a.png", png(32))])) is None
    assert open_native(tmp_path / "absent") is None
    prepare.prepare([], tmp_path / "out.zip", OWN, drawn=1)  # without --sizes: 64
    assert "64/000000.png" in members(tmp_path / "out.zip")


def test_labels_are_kept_only_if_every_picture_has_one(tmp_path: Path):
    one, two = write_mnist(tmp_path / "a", 12), write_mnist(tmp_path / "b", 11)
    few = write_mnist(tmp_path / "c", 3)  # of labels 0 to 2
    photos = write_zip(tmp_path / "photos.zip", [("a.png", png(32))])
    for sources, drawn, expected in (
        ([one, two], 0, [*range(10), 0, 1, *range(10), 0]),
        ([one, few], 0, None),
        ([one, photos], 0, None),
        ([one], 1, None),
    ):
        prepare.prepare(sources, tmp_path / "out.zip", prepare.Settings((16,), "box", "png", 95), drawn)
        content = members(tmp_path / "out.zip").get(LABELS)
        assert (None if content is None else json.loads(content)["labels"]) == expected


def test_other_labels_are_other_data(tmp_path: Path):
    source = write_mnist(tmp_path / "mnist", 10)
    first = prepare.prepare([source], tmp_path / "a.zip", OWN)
    labels = tmp_path / "mnist" / "train-labels-idx1-ubyte.gz"
    labels.write_bytes(gzip.compress(idx(np.arange(10, dtype=np.uint8)[::-1].copy())))
    second = prepare.prepare([source], tmp_path / "b.zip", OWN)
    assert first["fingerprint"] != second["fingerprint"]
    a, b = (data.open_pictures(tmp_path / f"{name}.zip").fingerprint for name in "ab")
    assert a != b


@pytest.mark.parametrize(
    "content",
    [
        b"not json",
        b"[]",
        b'{"names": ["a"], "labels": [0, 0]}',  # of 3 pictures
        b'{"names": ["a"], "labels": [0, 0, 1]}',  # no name for 1
        b'{"names": ["a"], "labels": [0, 0, -1]}',
        b'{"names": ["a"], "labels": [0, 0, "b"]}',
    ],
)
def test_labels_that_do_not_fit_are_one_line(content: bytes, tmp_path: Path, own_cache: Path):
    pictures = [(f"32/{i:06d}.png", png(32, i)) for i in range(3)]
    source = write_zip(tmp_path / "in.zip", [*pictures, (LABELS, content)])
    with pytest.raises(PgsrError, match=r"labels\.json of .* does not fit .*: prepare it again"):
        data.load_photographs(source, 32)


def test_a_damaged_picture_does_not_move_the_labels(tmp_path: Path, own_cache: Path):
    pictures = [(f"32/{i:06d}.png", png(32, i) if i != 1 else b"broken") for i in range(4)]
    labels = json.dumps({"names": ["a", "b", "c", "d"], "labels": [0, 1, 2, 3]}).encode()
    source = write_zip(tmp_path / "in.zip", [*pictures, (LABELS, labels)])
    for _ in range(2):  # decoded, then from the cache
        assert data.load_photographs(source, 32).labels.tolist() == [0, 2, 3]


def test_the_command_takes_native_files(command, tmp_path: Path):
    source = write_mnist(tmp_path / "mnist", 10)
    result = command(prepare.main, source, "--out", tmp_path / "out.zip", "--json")
    assert result.exit_code == 0
    assert json.loads(result.stdout)["sizes"] == [28]
    result = command(prepare.main, source, "--out", tmp_path / "big.zip", "--sizes", "32")
    assert result.exit_code == 1
    assert result.stderr.count("\n") == 1
    assert "--sizes 32: the pictures of" in result.stderr
    assert "are 28x28" in result.stderr
    assert not (tmp_path / "big.zip").exists()


@pytest.mark.skipif(not MNIST.is_dir(), reason="no digits in ../shared/data/mnist")
def test_the_real_test_digits():
    native = open_native(MNIST)
    assert native.pixels.shape == (10_000, 28, 28)
    assert np.bincount(native.labels).tolist() == [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009]
    assert native.labels[:10].tolist() == [7, 2, 1, 0, 4, 1, 4, 9, 5, 9]
    ones, zeros = (native.pixels[native.labels == digit].mean(axis=0) for digit in (1, 0))
    assert ones[14, 14] > 150 > 20 > zeros[14, 14]  # a stroke in the middle, and a hole
    assert native.picture(0).mode == "RGB"
    assert isinstance(native.picture(0), Image.Image)
