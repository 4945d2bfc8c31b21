"""Data sets are told apart by what they hold, and cached pixels are what was written."""

from __future__ import annotations

import io
import os
import shutil
import tarfile
import time
import zipfile
from pathlib import Path

import lmdb
import numpy as np
import pytest
import torch
from PIL import Image

from pgsr.errors import PgsrError
from pgsr.trainer.data import contents, pixel_file, procedural
from pgsr.trainer.data.cache import load_photographs
from pgsr.trainer.data.cli import Settings, prepare
from pgsr.trainer.data.listing import fingerprint_of
from pgsr.trainer.data.sources import open_pictures
from pgsr.trainer.step import recipe as config
from pgsr.trainer.step.batches import CropBatches, LatentBatches
from pgsr.trainer.step.schedule import build
from pictures import flipped, png, write_zip

LANCZOS = Image.Resampling.LANCZOS
KINDS = ("folder", "tar", "lmdb", "zip")


def bmp(index: int) -> bytes:
    buffer = io.BytesIO()
    procedural.draw(index, 32).save(buffer, "BMP")  # of one size, whatever it shows
    return buffer.getvalue()


def write(kind: str, place: Path, files: dict[str, bytes]) -> Path:
    """A source of one kind that holds these files."""
    place.mkdir(parents=True, exist_ok=True)
    if kind == "zip":
        return write_zip(place / "x.zip", list(files.items()))
    if kind == "lmdb":
        with lmdb.open(str(place), map_size=2**24) as database, database.begin(write=True) as transaction:
            for name, data in files.items():
                transaction.put(name.encode(), data)
        return place
    for name, data in files.items():
        (place / name).write_bytes(data)
    if kind == "folder":
        return place
    with tarfile.open(place / "x.tar", "w") as archive:
        for name in files:
            archive.add(place / name, name)
            (place / name).unlink()
    return place / "x.tar"


def in_stone(source: Path) -> Path:
    """The same times for whatever lies there."""
    for path in [source, *source.rglob("*")]:
        os.utime(path, (10**9, 10**9))
    return source


# ----------------------------------------------------------------------------
# Fingerprints.


@pytest.mark.parametrize("kind", KINDS)
def test_a_copy_has_the_same_fingerprint_whatever_its_times(kind: str, tmp_path: Path):
    source = write(kind, tmp_path / "one" / "x", {"a.bmp": bmp(0), "b.bmp": bmp(1)})
    shutil.copytree(tmp_path / "one", tmp_path / "two")
    in_stone(tmp_path / "two")
    copy = tmp_path / "two" / source.relative_to(tmp_path / "one")
    first = load_photographs(source, 16)
    assert open_pictures(copy).fingerprint == open_pictures(source).fingerprint == first.fingerprint
    assert (load_photographs(copy, 16).pixels == first.pixels).all()


@pytest.mark.parametrize("kind", KINDS)
def test_other_pictures_of_the_same_names_sizes_and_times_are_other_data(kind: str, tmp_path: Path):
    """Another folder's cached pixels must never be taken for these."""
    sources = []
    for place, pictures in (("one", (0, 1)), ("two", (0, 2))):
        files = {name: bmp(i) for name, i in zip(("a.bmp", "b.bmp"), pictures, strict=True)}
        sources.append(write(kind, tmp_path / place / "x", files))
        in_stone(tmp_path / place)
    first, second = (load_photographs(source, 16) for source in sources)
    assert first.fingerprint != second.fingerprint
    expected = procedural.draw(2, 32).resize((16, 16), LANCZOS)
    assert (second.pixels[1] == np.asarray(expected)).all()


def test_a_picture_that_was_changed_and_given_its_old_time_is_another(tmp_path: Path):
    source = write("folder", tmp_path / "x", {"a.bmp": bmp(0), "b.bmp": bmp(1)})
    in_stone(source)
    first = open_pictures(source).fingerprint
    (source / "b.bmp").write_bytes(bmp(2))
    in_stone(source)
    assert open_pictures(source).fingerprint != first


def test_contents_that_are_known_are_not_read_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    source = write("folder", tmp_path / "x", {"a.bmp": bmp(0), "b.bmp": bmp(1)})
    first = open_pictures(source).fingerprint
    now = time.time_ns()
    monkeypatch.setattr(time, "time_ns", lambda: now + 60 * 10**9)  # when these times have settled
    assert open_pictures(source).fingerprint == first
    monkeypatch.setattr(contents, "_crc32", pytest.fail)
    contents._crc32.__name__ = "_crc32"  # type: ignore[attr-defined]
    assert open_pictures(source).fingerprint == first


def test_times_that_are_too_near_are_not_believed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """On file systems that keep whole seconds, a second write may bear the time of the first."""
    source = write("folder", tmp_path / "x", {"a.bmp": bmp(0), "b.bmp": bmp(1)})
    first = open_pictures(source).fingerprint
    state = contents._state(source / "a.bmp")
    (source / "a.bmp").write_bytes(bmp(2))
    monkeypatch.setattr(contents, "_state", lambda path: state if path.name == "a.bmp" else (0, 1, 0, 0))
    assert open_pictures(source).fingerprint != first


@pytest.mark.parametrize("damage", [b"{", b"[]", b'{"a.bmp": 3}', b'{"a.bmp": [1, 2, 3, 4, "x"]}'])
def test_a_damaged_memory_of_contents_is_made_anew(damage: bytes, tmp_path: Path, own_cache: Path):
    source = write("folder", tmp_path / "x", {"a.bmp": bmp(0), "b.bmp": bmp(1)})
    first = open_pictures(source).fingerprint
    (store,) = (own_cache / "contents").iterdir()
    store.write_bytes(damage)
    assert open_pictures(source).fingerprint == first


# ----------------------------------------------------------------------------
# The cache of pixels.


def cached_file(own_cache: Path) -> Path:
    (path,) = (own_cache / "data").iterdir()
    return path


@pytest.fixture
def source(tmp_path: Path, own_cache: Path) -> Path:
    return write("folder", tmp_path / "x", {f"{i}.png": png(32, i) for i in range(6)})


@pytest.mark.parametrize(
    "place", ["header", "pixels", "last pixel", "digests", "positions", "told", "footer"]
)
def test_one_wrong_bit_anywhere_is_found(place: str, source: Path, own_cache: Path, capfd):
    before = load_photographs(source, 16).pixels.copy()
    path = cached_file(own_cache)
    data = path.read_bytes()
    pixels = 128 + before.nbytes
    at = {
        "header": 60,
        "pixels": 128 + before.nbytes // 2,
        "last pixel": pixels - 1,
        "digests": pixels + 5,
        "positions": pixels + 4 * 6 + 9,
        "told": len(data) - pixel_file.FOOTER.size - 3,
        "footer": len(data) - 20,
    }[place]
    path.write_bytes(flipped(data, at))
    capfd.readouterr()
    assert (load_photographs(source, 16).pixels == before).all()
    assert f"note: {path} is damaged, or of an older version: decoding again" in capfd.readouterr().err
    assert path.read_bytes() == data


def test_a_cache_that_was_cut_short_or_replaced_is_decoded_again(
    source: Path, own_cache: Path, tmp_path: Path
):
    before = load_photographs(source, 16).pixels.copy()
    path = cached_file(own_cache)
    data = path.read_bytes()
    for content in (b"", data[:-1], data[: len(data) // 2], b"\0" * len(data), data + data):
        path.write_bytes(content)
        assert (load_photographs(source, 16).pixels == before).all()
        assert path.read_bytes() == data
    other = write("folder", tmp_path / "y", {f"{i}.png": png(32, 9 + i) for i in range(6)})
    load_photographs(other, 16)
    (theirs,) = set((own_cache / "data").iterdir()) - {path}
    shutil.copy(theirs, path)  # whole, and of other pictures
    assert (load_photographs(source, 16).pixels == before).all()


def test_a_choice_of_pictures_is_part_of_what_is_cached(tmp_path: Path, own_cache: Path):
    """With a manifest a zip is a prepared archive, without one all its pictures count; the fingerprint of its
    pictures is the same."""
    members = [(f"{size}/{i}.png", png(size, i)) for size in (16, 64) for i in range(3)]
    manifest = ("manifest.json", b'{"fingerprint": "", "filter": "box", "sizes": [16, 64]}')
    for _ in range(2):
        assert len(load_photographs(write_zip(tmp_path / "a.zip", [*members, manifest]), 16)) == 3
        assert len(load_photographs(write_zip(tmp_path / "b.zip", members), 16)) == 6


def test_a_cache_of_an_older_version_is_made_anew(source: Path, own_cache: Path):
    before = load_photographs(source, 16).pixels.copy()
    path = cached_file(own_cache)
    np.save(path, before[::-1])
    assert (load_photographs(source, 16).pixels == before).all()


def test_older_versions_can_read_the_file(source: Path, own_cache: Path):
    pixels = load_photographs(source, 16).pixels
    assert (np.load(cached_file(own_cache), mmap_mode="r") == pixels).all()


def test_a_large_file_is_sampled_anew_each_time(
    source: Path, own_cache: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(pixel_file, "CHECKED_BYTES", 3 * 16 * 16 * 3)
    load_photographs(source, 16)
    path, pictures = cached_file(own_cache), open_pictures(source)
    content = fingerprint_of([pictures.fingerprint, *pictures.names])
    assert pixel_file.open_pixels(path, content, 16) is not None
    path.write_bytes(flipped(path.read_bytes(), 128))
    found = []
    for _ in range(40):
        kept = path.read_bytes()
        found.append(pixel_file.open_pixels(path, content, 16) is None)
        assert path.read_bytes() == kept
    assert 5 < sum(found) < 35  # three of six are looked at


PROGAN = {
    "name": "t",
    "about": "t",
    "generator": {"kind": "progan", "resolution": 16, "latent_size": 8},
    "discriminator": {"kind": "progan", "resolution": 16},
    "schedule": {"resolution": 16, "batch": 4, "fade_images": 32, "stable_images": 32},
}
CROPS = {
    "name": "t",
    "about": "t",
    "generator": {"kind": "compact", "scale": 2},
    "discriminator": {},
    "schedule": {"resolution": 8, "start_resolution": 8, "batch": 2, "stable_images": 100},
    "objective": {"adversarial": "none", "pixel": "l1"},
    "data": {"resolution": 16, "mirror": False},
}
CPU = torch.device("cpu")


@pytest.mark.parametrize("kind", [LatentBatches, CropBatches])
def test_a_cache_that_is_cut_while_it_is_trained_on_is_a_line(kind, source: Path, own_cache: Path):
    """What is mapped beyond the end of its file would end the process by a signal."""
    recipe = config.from_dict(PROGAN if kind is LatentBatches else CROPS)
    batches = kind(recipe, source, CPU)
    stage = build(recipe.schedule).at(0)
    batches.for_critic(stage, 0)
    path = max((own_cache / "data").iterdir())
    os.truncate(path, 200)
    with pytest.raises(PgsrError, match="was cut short while it was in use"):
        batches.for_critic(stage, 4)


def test_a_cache_that_is_made_anew_meanwhile_changes_nothing(source: Path, own_cache: Path):
    batches = LatentBatches(config.from_dict(PROGAN), source, CPU)
    path = cached_file(own_cache)
    path.unlink()
    path.write_bytes(b"")
    batches.for_critic(build(batches.recipe.schedule).at(0), 0)


# ----------------------------------------------------------------------------
# Pairs of two sizes.


def prepared_with_damage(path: Path) -> Path:
    """An archive of seven pictures at 16 and 8, of which one of each size is broken."""
    prepare([], path / "a.zip", Settings((16, 8), "lanczos", "png", 95), drawn=7)
    with zipfile.ZipFile(path / "a.zip") as packed:
        members = {name: packed.read(name) for name in packed.namelist()}
    members |= {"16/000002.png": b"broken", "8/000005.png": b"broken"}
    return write_zip(path / "b.zip", list(members.items()))


@pytest.mark.parametrize("prepared", [False, True])
def test_a_picture_that_is_missing_at_one_size_is_missing_at_both(prepared: bool, tmp_path: Path):
    """Too small for the larger size, or damaged at either of a prepared archive."""
    if prepared:
        source, kept, drawn = prepared_with_damage(tmp_path), (0, 1, 3, 4, 6), 16
    else:
        files = {f"{i}.png": png(12 if i in (0, 4) else 32, i) for i in range(7)}
        source, kept, drawn = write("folder", tmp_path / "x", files), (1, 2, 3, 5, 6), 32
    batches = CropBatches(config.from_dict(CROPS), source, CPU)
    assert batches.count == 5
    assert len(batches.left_out) == 2
    for side, pixels, rows in ((16, batches.high, batches.rows[:, 0]), (8, batches.low, batches.rows[:, 1])):
        pictures = [procedural.draw(i, drawn).resize((side, side), LANCZOS) for i in kept]
        assert (
            pixels.pixels[torch.from_numpy(rows)].numpy() == np.stack([np.asarray(p) for p in pictures])
        ).all()
    held_out = {**CROPS, "data": {**CROPS["data"], "held_out": 2}}  # type: ignore[dict-item]
    assert (CropBatches(config.from_dict(held_out), source, CPU).rows == batches.rows[:3]).all()


def test_no_pairs_at_all(tmp_path: Path):
    source = write("folder", tmp_path / "x", {f"{i}.png": png(32, i) for i in range(3)})
    recipe = config.from_dict({**CROPS, "data": {**CROPS["data"], "held_out": 2}})  # type: ignore[dict-item]
    with pytest.raises(PgsrError, match=r"3 pictures that are there at 16 and 8, of which .* takes 2"):
        CropBatches(recipe, source, CPU)


def test_labels_follow_their_pictures_where_some_are_too_small(tmp_path: Path):
    place = tmp_path / "x"
    place.mkdir()
    with tarfile.open(place / "x.tar", "w") as archive:
        for i in range(5):
            for suffix, data in (("png", png(8 if i == 1 else 32, i)), ("cls", b"%d" % i)):
                (place / "part").write_bytes(data)
                archive.add(place / "part", f"{i}.{suffix}")
    assert load_photographs(place / "x.tar", 16).labels.tolist() == [0, 2, 3, 4]
