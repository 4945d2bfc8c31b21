"""From pictures to training batches: archives, caches, order, crops."""

from __future__ import annotations

import dataclasses
import io
import itertools
import json
import os
import shutil
import zipfile
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.lib import format as npy
from PIL import Image

from pgsr import draws
from pgsr.errors import PgsrError
from pgsr.networks.pixels import from_pixels
from pgsr.trainer.data import cache as data
from pgsr.trainer.data import cli as prepare
from pgsr.trainer.data import procedural
from pgsr.trainer.step import batches
from pgsr.trainer.step import recipe as config
from pgsr.trainer.step.degradation import compressed
from pgsr.trainer.step.schedule import build
from pictures import flipped, png, write_zip

PILLOW = {
    "lanczos": Image.Resampling.LANCZOS,
    "bicubic": Image.Resampling.BICUBIC,
    "bilinear": Image.Resampling.BILINEAR,
    "hamming": Image.Resampling.HAMMING,
    "box": Image.Resampling.BOX,
    "nearest": Image.Resampling.NEAREST,
}


def settings(*sizes: int, resampling: str = "lanczos") -> prepare.Settings:
    return prepare.Settings(sizes or (16,), resampling, "png", 95)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Six pictures; their names are not in the order of their drawing."""
    path = tmp_path / "photos"
    (path / "more").mkdir(parents=True)
    for index, name in enumerate(("c.png", "a.png", "more/b.PNG", "b.png", "d.png", "more/a.png")):
        (path / name).write_bytes(png(32, index))
    (path / "notes.txt").write_text("not a picture")
    return path


IN_ORDER = [1, 3, 0, 4, 5, 2]  # a, b, c, d, more/a, more/b


def members(path: Path) -> dict[str, bytes]:
    with zipfile.ZipFile(path) as archive:
        assert archive.testzip() is None
        return {name: archive.read(name) for name in archive.namelist()}


def pixels_of(file: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(file)))


def reduced(index: int, size: int, resampling: str = "lanczos") -> np.ndarray:
    """Picture `index` at `size`, by Pillow alone."""
    return np.asarray(procedural.draw(index, 32).resize((size, size), PILLOW[resampling]))


# ----------------------------------------------------------------------------
# The filter that recipes reduce photographs by.

BICUBIC = ["progan-64-epochs", "progan-64-separable", "progan-64-vanilla", "srgan-4x", "srresnet-4x"]


def test_recipes_reduce_by_the_filter_of_their_paper() -> None:
    """Bicubic in paper 1, section III, and in SRGAN's section 3.2; what pgsr-data takes elsewhere."""
    chosen = {name: config.load(name).data.reduce for name in config.recipe_names()}
    assert [name for name, reduce in chosen.items() if reduce == "bicubic"] == BICUBIC
    assert set(chosen.values()) == {"bicubic", "lanczos"}
    with pytest.raises(PgsrError, match=r"data\.reduce = .sinc. is not one of .lanczos."):
        config.load("tiny", ["data.reduce=sinc"])


def test_a_run_of_paper_1_sees_photographs_reduced_by_bicubic(tmp_path: Path, own_cache: Path) -> None:
    """The batches' own pixels, by Pillow alone; in a cache of their own beside those of another recipe."""
    (tmp_path / "photos").mkdir()
    for i in range(4):
        (tmp_path / "photos" / f"{i}.png").write_bytes(png(96, i))
    small = [f"{network}.feature_base=64" for network in ("generator", "discriminator")]
    for _ in range(2):
        for name, way in (("progan-64-separable", "bicubic"), ("faces-64", "lanczos")):
            source = batches.LatentBatches(config.load(name, small), tmp_path / "photos", torch.device("cpu"))
            with Image.open(tmp_path / "photos" / "0.png") as picture:
                expected = np.asarray(picture.convert("RGB").resize((64, 64), PILLOW[way]))
            assert np.array_equal(source.opened[0].pixels[0], expected)
    assert len(list((own_cache / "data").glob("*.npy"))) == 2


def test_an_archive_of_another_filter_is_noted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for way in ("lanczos", "bicubic"):
        prepare.prepare([], tmp_path / f"{way}.zip", settings(16, 32, resampling=way), drawn=3)
        pixels = data.load_photographs(tmp_path / f"{way}.zip", 16, "bicubic").pixels
        assert np.array_equal(pixels[1], reduced(1, 16, way))  # whatever it is, it is not reduced again
        note = "lanczos.zip was reduced by lanczos, and bicubic is asked for"
        assert (note in capsys.readouterr().err) == (way == "lanczos")
        data.load_photographs(tmp_path / f"{way}.zip", 16)
        assert not capsys.readouterr().err


# ----------------------------------------------------------------------------
# The procedural pictures.


def test_drawn_pictures_are_a_function_of_seed_and_index():
    picture = procedural.draw(3, 24)
    assert (picture.size, picture.mode) == ((24, 24), "RGB")
    assert picture.tobytes() == procedural.draw(3, 24).tobytes()
    others = {procedural.draw(i, 24, seed).tobytes() for i in range(50) for seed in (0, 1)}
    assert len(others) == 100


def test_drawn_pictures_are_the_same_at_every_size():
    """The large one reduced is the small one, but for the rounding of outlines to pixels."""
    large = np.asarray(procedural.draw(0, 128).reduce(4), dtype=float)
    assert abs(large - np.asarray(procedural.draw(0, 32), dtype=float)).mean() < 3


def test_drawn_faces_show_every_kind():
    faces = [procedural.face(i) for i in range(300)]
    assert 0.3 < sum(f.open_mouth for f in faces) / 300 < 0.5
    assert 0.1 < sum(f.glasses for f in faces) / 300 < 0.3
    assert len({f.iris for f in faces}) == 4


# ----------------------------------------------------------------------------
# Preparing an archive.


def test_an_archive_holds_the_pictures_in_the_order_of_their_names(folder: Path, tmp_path: Path):
    manifest = prepare.prepare([folder], tmp_path / "out.zip", settings(16, 8))
    files = members(tmp_path / "out.zip")
    expected = [f"{size}/{i:06d}.png" for i in range(6) for size in (16, 8)]
    assert list(files) == [*expected, "manifest.json"]
    for i, index in enumerate(IN_ORDER):
        assert (pixels_of(files[f"16/{i:06d}.png"]) == reduced(index, 16)).all()
        assert (pixels_of(files[f"8/{i:06d}.png"]) == reduced(index, 8)).all()
    assert json.loads(files["manifest.json"]) == manifest
    assert (manifest["count"], manifest["skipped"], manifest["sizes"]) == (6, [], [16, 8])


def test_sources_come_one_after_the_other_then_the_drawn(folder: Path, tmp_path: Path):
    second = write_zip(tmp_path / "more.zip", [("z.png", png(32, 9)), ("y.png", png(32, 8))])
    prepare.prepare([second, folder], tmp_path / "out.zip", settings(), drawn=2)
    files = members(tmp_path / "out.zip")
    for i, index in enumerate([8, 9, *IN_ORDER]):
        assert (pixels_of(files[f"16/{i:06d}.png"]) == reduced(index, 16)).all()
    for i in range(2):
        assert (pixels_of(files[f"16/{8 + i:06d}.png"]) == np.asarray(procedural.draw(i, 16))).all()


def test_the_same_pictures_make_the_same_archive(folder: Path, tmp_path: Path):
    """From a folder, a copy of it with other dates, or a zip in another order."""
    copy = tmp_path / "copy" / "photos"
    shutil.copytree(folder, copy)
    for file in copy.rglob("*.*"):
        os.utime(file, (1, 1))
    names = sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*.*") if p.is_file())
    packed = write_zip(
        tmp_path / "photos.zip", [(n, (folder / n).read_bytes()) for n in names[::-1]], zipfile.ZIP_DEFLATED
    )
    made = []
    for i, source in enumerate((folder, copy, packed)):
        prepare.prepare([source], tmp_path / f"{i}.zip", settings(16, 8))
        made.append((tmp_path / f"{i}.zip").read_bytes())
    assert made[0] == made[1] == made[2]


def test_the_manifests_fingerprint_knows_the_contents(folder: Path, tmp_path: Path):
    def fingerprint(**options) -> str:
        return prepare.prepare([folder], tmp_path / "out.zip", settings(**options))["fingerprint"]

    first = fingerprint()
    assert fingerprint() == first
    assert fingerprint(resampling="box") != first
    (folder / "a.png").write_bytes(png(32, 77))
    assert fingerprint() != first


@pytest.mark.parametrize("name", PILLOW)
def test_filters_are_pillows(name: str, tmp_path: Path):
    source = write_zip(tmp_path / "in.zip", [("a.png", png(32, 1))])
    prepare.prepare([source], tmp_path / "out.zip", settings(12, resampling=name))
    assert (pixels_of(members(tmp_path / "out.zip")["12/000000.png"]) == reduced(1, 12, name)).all()


def test_filters_have_the_names_of_paper_1():
    assert data.FILTERS == PILLOW


def test_jpeg_archives_keep_full_colour(tmp_path: Path):
    jpeg = prepare.Settings((16,), "box", "jpeg", 95)
    prepare.prepare([], tmp_path / "out.zip", jpeg, drawn=1)
    picture = Image.open(io.BytesIO(members(tmp_path / "out.zip")["16/000000.jpg"]))
    assert picture.format == "JPEG"
    layers = picture.layer  # type: ignore[attr-defined]
    assert {layer[1:3] for layer in layers} == {(1, 1)}  # no subsampling of colour
    difference = np.asarray(picture, dtype=float) - np.asarray(procedural.draw(0, 16), dtype=float)
    assert abs(difference).mean() < 4


def damaged_zip(path: Path) -> Path:
    """Six pictures: the good ones are 0 and 5."""
    whole = png(32, 1)
    contents = [
        png(32, 0),
        whole[: len(whole) // 2],
        b"no picture",
        flipped(whole, len(whole) // 2),
        png(8, 4),
        png(32, 5),
    ]
    return write_zip(path, [(f"{i}.png", content) for i, content in enumerate(contents)])


def test_damaged_and_small_pictures_are_named_counted_and_left_out(tmp_path: Path, capfd):
    manifest = prepare.prepare([damaged_zip(tmp_path / "in.zip")], tmp_path / "out.zip", settings(16))
    assert [s["picture"] for s in manifest["skipped"]] == [f"in.zip/{i}.png" for i in (1, 2, 3, 4)]
    assert manifest["skipped"][3]["why"] == "too small (8x8)"
    assert all("cannot be read" in s["why"] for s in manifest["skipped"][:3])
    assert manifest["count"] == 2
    files = members(tmp_path / "out.zip")
    assert (pixels_of(files["16/000001.png"]) == reduced(5, 16)).all()
    stderr = capfd.readouterr().err
    assert all(f"skipped in.zip/{i}.png: " in stderr for i in (1, 2, 3, 4))


@pytest.mark.parametrize("compression", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_a_damaged_zip_member_is_one_skipped_picture(compression: int, tmp_path: Path):
    """Wherever the bit flips in it: a wrong checksum, or a deflate stream that makes no sense."""
    bmp = io.BytesIO()
    procedural.draw(1, 32).save(bmp, "BMP")
    path = write_zip(tmp_path / "in.zip", [("a.bmp", bmp.getvalue()), ("b.png", png(32, 2))], compression)
    good = path.read_bytes()
    with zipfile.ZipFile(path) as archive:
        first, second = archive.infolist()
    middle = range(first.header_offset + 40, second.header_offset, max(1, first.compress_size // 40))
    for position in middle:
        path.write_bytes(flipped(good, position, position % 8))
        manifest = prepare.prepare([path], tmp_path / "out.zip", settings(16))
        assert [s["picture"] for s in manifest["skipped"]] == ["in.zip/a.bmp"]


def test_not_one_usable_picture_is_an_error_and_leaves_no_archive(tmp_path: Path):
    source = write_zip(tmp_path / "in.zip", [("a.png", b"broken"), ("b.png", png(8))])
    (tmp_path / "out").mkdir()
    with pytest.raises(PgsrError, match=r"not one usable picture in .*in\.zip: 2 skipped"):
        prepare.prepare([source], tmp_path / "out" / "out.zip", settings(16))
    assert not list((tmp_path / "out").iterdir())


def test_a_failure_leaves_the_old_archive(tmp_path: Path):
    prepare.prepare([], tmp_path / "out.zip", settings(16), drawn=1)
    old = (tmp_path / "out.zip").read_bytes()
    with pytest.raises(PgsrError, match="not one usable picture"):
        prepare.prepare(
            [write_zip(tmp_path / "in.zip", [("a.png", b"")])], tmp_path / "out.zip", settings(16)
        )
    assert (tmp_path / "out.zip").read_bytes() == old
    assert {p.name for p in tmp_path.iterdir()} == {"in.zip", "out.zip"}
    prepare.prepare([], tmp_path / "out.zip", settings(16), drawn=2)
    assert (tmp_path / "out.zip").read_bytes() != old


def test_what_is_no_archive_of_ours_is_not_replaced(folder: Path, tmp_path: Path):
    """Least of all the photographs themselves."""
    photographs = tmp_path / "photographs.zip"
    with zipfile.ZipFile(photographs, "w") as archive:
        for picture in folder.iterdir():
            archive.write(picture, picture.name)
    (tmp_path / "link.zip").symlink_to(photographs)
    (tmp_path / "notes.txt").write_text("mine")
    before = photographs.read_bytes()
    for out, complaint in {
        "photographs.zip": "where the pictures come from",
        "link.zip": "where the pictures come from",
        "notes.txt": "no archive of pgsr-data",
    }.items():
        with pytest.raises(PgsrError, match=complaint):
            prepare.prepare([photographs], tmp_path / out, settings(16))
    with pytest.raises(PgsrError, match="no archive of pgsr-data"):
        prepare.prepare([folder], photographs, settings(16))
    assert photographs.read_bytes() == before
    assert (tmp_path / "notes.txt").read_text() == "mine"


def test_sources_that_are_not_there_or_no_zip_are_named(tmp_path: Path):
    (tmp_path / "text.zip").write_text("this is no zip")
    (tmp_path / "empty").mkdir()
    for name, message in (
        ("absent", "no folder or zip of pictures at"),
        ("text.zip", "text.zip is not a zip archive of pictures"),
        ("empty", "empty holds no pictures"),
    ):
        with pytest.raises(PgsrError, match=message):
            prepare.prepare([tmp_path / name], tmp_path / "out.zip", settings())
    assert not (tmp_path / "out.zip").exists()


# ----------------------------------------------------------------------------
# The command.


def test_pgsr_data_draws_without_sources(command, tmp_path: Path):
    out = tmp_path / "toy.zip"
    result = command(prepare.main, "--procedural", 3, "--out", out, "--sizes", "16,8", "--json")
    assert result.exit_code == 0
    answer = json.loads(result.stdout)
    assert (answer["archive"], answer["count"], answer["skipped"]) == (str(out), 3, 0)
    assert len(members(out)) == 7


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "name folders or zips of pictures, or how many to draw with --procedural"),
        (["--procedural", 1, "--sizes", "big"], "--sizes 'big' is not a list of numbers"),
        (["--procedural", 1, "--sizes", "2"], "--sizes must name sides of at least 4"),
        (["--procedural", 1, "--sizes", "8,8"], "--sizes names 8 twice"),
        (["--procedural", 1, "--filter", "sinc"], "--filter = 'sinc' is not one of 'lanczos'"),
        (["absent"], "no folder or zip of pictures at absent"),
    ],
)
def test_pgsr_data_names_what_is_wrong(command, tmp_path: Path, arguments: list[Any], message: str):
    result = command(prepare.main, "--out", tmp_path / "out.zip", *arguments)
    assert result.exit_code == 1
    assert result.stdout == ""
    assert result.stderr.startswith("error: ")
    assert message in result.stderr
    assert result.stderr.count("\n") == 1
    assert not (tmp_path / "out.zip").exists()


# ----------------------------------------------------------------------------
# Reading pictures.


@pytest.mark.parametrize(
    ("orientation", "turned"),
    [
        (1, lambda a: a),
        (2, lambda a: a[:, ::-1]),
        (3, lambda a: a[::-1, ::-1]),
        (4, lambda a: a[::-1]),
        (5, lambda a: a.transpose(1, 0, 2)),
        (6, lambda a: np.rot90(a, -1)),
        (7, lambda a: a[::-1, ::-1].transpose(1, 0, 2)),
        (8, lambda a: np.rot90(a)),
    ],
)
def test_pictures_stand_as_their_exif_says(orientation: int, turned):
    picture = procedural.draw(0, 24).crop((0, 0, 24, 16))
    exif, buffer = Image.Exif(), io.BytesIO()
    exif[0x0112] = orientation
    picture.save(buffer, "PNG", exif=exif)
    assert (np.asarray(data.decode(buffer.getvalue())) == turned(np.asarray(picture))).all()


@pytest.mark.parametrize("mode", ["L", "P", "RGBA", "CMYK", "1", "I;16"])
def test_every_kind_of_picture_becomes_rgb(mode: str):
    base = procedural.draw(0, 16)
    picture = Image.new("I;16", (16, 16), 0) if mode == "I;16" else base.convert(mode)
    buffer = io.BytesIO()
    picture.save(buffer, "TIFF")
    assert data.decode(buffer.getvalue()).mode == "RGB"


@pytest.mark.parametrize("shape", [(40, 20), (20, 40), (21, 20), (20, 20)])
def test_the_centred_square_is_kept(shape: tuple[int, int]):
    """Red where the centred square is, blue around it."""
    width, height = shape
    side = min(shape)
    left, top = (width - side) // 2, (height - side) // 2
    picture = Image.new("RGB", shape, (0, 0, 255))
    picture.paste((255, 0, 0), (left, top, left + side, top + side))
    for size in (side, 10):
        squared = np.asarray(data.square(picture, size, Image.Resampling.BOX))
        assert squared.shape == (size, size, 3)
        assert (squared == (255, 0, 0)).all()


def test_a_folders_fingerprint_knows_names_and_contents(folder: Path):
    first = data.open_pictures(folder).fingerprint
    assert data.open_pictures(folder).fingerprint == first
    (folder / "notes.txt").write_text("other notes")
    assert data.open_pictures(folder).fingerprint == first
    (folder / "a.png").write_bytes(png(32, 50))
    second = data.open_pictures(folder).fingerprint
    (folder / "a.png").rename(folder / "0.png")
    assert len({first, second, data.open_pictures(folder).fingerprint}) == 3


def test_a_zips_fingerprint_knows_contents_not_packing(tmp_path: Path):
    pictures = [("a.png", png(32, 0)), ("b.png", png(32, 1))]

    def fingerprint(content: Sequence[tuple[str, bytes]], compression: int = zipfile.ZIP_STORED) -> str:
        return data.open_pictures(write_zip(tmp_path / "x.zip", content, compression)).fingerprint

    first = fingerprint(pictures)
    assert fingerprint(pictures[::-1], zipfile.ZIP_DEFLATED) == first
    assert fingerprint([("a.png", png(32, 1)), ("b.png", png(32, 0))]) != first


# ----------------------------------------------------------------------------
# The decoded array and its cache.


def test_photographs_are_the_pictures_reduced(folder: Path, own_cache: Path):
    photographs = data.load_photographs(folder, 16)
    assert (photographs.pixels == np.stack([reduced(i, 16) for i in IN_ORDER])).all()
    assert photographs.fingerprint == data.open_pictures(folder).fingerprint


def test_the_second_load_decodes_nothing(folder: Path, own_cache: Path, monkeypatch: pytest.MonkeyPatch):
    first = data.load_photographs(folder, 16).pixels.copy()
    monkeypatch.setattr(data, "decode", lambda *_: pytest.fail("decoded again"))
    assert (data.load_photographs(folder, 16).pixels == first).all()
    with pytest.raises(pytest.fail.Exception):
        data.load_photographs(folder, 8)  # another size is another array


def test_changed_pictures_are_decoded_anew(folder: Path, own_cache: Path):
    before = data.load_photographs(folder, 16).pixels.copy()
    (folder / "a.png").write_bytes(png(32, 50))
    after = data.load_photographs(folder, 16).pixels
    assert (after[0] == reduced(50, 16)).all()
    assert (after[1:] == before[1:]).all()


def test_the_array_is_right_after_skips(tmp_path: Path, own_cache: Path):
    photographs = data.load_photographs(damaged_zip(tmp_path / "in.zip"), 16)
    for again in (photographs, data.load_photographs(tmp_path / "in.zip", 16)):
        assert [file.name for file in again.left_out] == ["1.png", "2.png", "3.png", "4.png"]
        assert again.left_out[3].why == "too small (8x8)"
    assert photographs.positions.tolist() == [0, 5]
    (cached,) = (own_cache / "data").iterdir()
    with open(cached, "rb") as file:
        assert npy.read_magic(file) == (1, 0)
        assert npy.read_array_header_1_0(file) == ((2, 16, 16, 3), False, np.dtype(np.uint8))
    assert (np.load(cached) == np.stack([reduced(0, 16), reduced(5, 16)])).all()


def test_a_prepared_archive_gives_its_own_pictures(toy: Path, own_cache: Path):
    files = members(toy)
    for size in (16, 8):
        pixels = data.load_photographs(toy, size).pixels
        assert (pixels == np.stack([pixels_of(files[f"{size}/{i:06d}.png"]) for i in range(40)])).all()


@pytest.mark.parametrize("good", [0, 1])
def test_fewer_than_two_pictures_are_an_error(good: int, tmp_path: Path, own_cache: Path):
    contents = [("broken.png", b"broken")] + [("a.png", png(32))] * good
    source = write_zip(tmp_path / "in.zip", contents)
    for _ in range(2):  # from the cache as well
        with pytest.raises(PgsrError, match=f"has {good} usable picture"):
            data.load_photographs(source, 16)


def test_a_damaged_cache_is_decoded_again(folder: Path, own_cache: Path):
    before = data.load_photographs(folder, 16).pixels.copy()
    (cached,) = (own_cache / "data").iterdir()
    cached.write_bytes(cached.read_bytes()[:200])
    assert (data.load_photographs(folder, 16).pixels == before).all()


# ----------------------------------------------------------------------------
# Order and mirrors.


@pytest.mark.parametrize("count", [2, 7, 40])
def test_every_epoch_shows_every_photograph_once(count: int):
    shown = batches.data_indices(3, range(4 * count), count)
    epochs = [shown[e * count : (e + 1) * count] for e in range(4)]
    assert all(sorted(epoch) == list(range(count)) for epoch in epochs)
    if count > 7:
        assert len({tuple(epoch) for epoch in epochs}) == 4


@pytest.mark.parametrize(
    "function",
    [
        lambda s, n: batches.data_indices(3, range(s, s + n), 7),
        lambda s, n: batches.mirrored(3, range(s, s + n)),
    ],
)
def test_what_is_shown_does_not_depend_on_the_batch(function):
    whole = function(0, 60)
    assert [x for start in range(0, 60, 4) for x in function(start, 4)] == whole
    assert function(13, 20) == whole[13:33]


def test_half_of_the_photographs_are_mirrored():
    assert 400 < sum(batches.mirrored(0, range(1000))) < 600
    assert batches.mirrored(0, range(100)) != batches.mirrored(1, range(100))


def test_mirror_flips_the_chosen_left_to_right():
    images = torch.arange(2 * 3 * 2 * 2.0).view(2, 3, 2, 2)
    out = batches.mirror(images, [False, True])
    assert torch.equal(out[0], images[0])
    assert out[1].tolist() == [[row[::-1] for row in channel] for channel in images[1].tolist()]


# ----------------------------------------------------------------------------
# Batches.

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
    "schedule": {"resolution": 8, "start_resolution": 8, "batch": 10, "stable_images": 100},
    "objective": {"adversarial": "none", "pixel": "l1"},
    "data": {"resolution": 16, "mirror": False},
}

CPU = torch.device("cpu")


def test_reals_are_the_photographs_averaged_and_faded(toy: Path):
    """Against numpy: the whole chain from archive to batch in the middle of a fade."""
    recipe = config.from_dict(PROGAN)
    stage = build(recipe.schedule).at(32 + 12)
    assert (stage.resolution, stage.alpha) == (8, 0.5)
    source = batches.LatentBatches(recipe, toy, CPU)
    pixels = data.load_photographs(toy, 16).pixels.astype(np.float64) / 127.5 - 1
    for found, index, flip in zip(
        source.reals(stage, range(44, 48)),
        batches.data_indices(0, range(44, 48), 40),
        batches.mirrored(0, range(44, 48)),
        strict=True,
    ):
        photograph = pixels[index][:, ::-1] if flip else pixels[index]
        at8 = photograph.reshape(8, 2, 8, 2, 3).mean(axis=(1, 3))
        at4 = at8.reshape(4, 2, 4, 2, 3).mean(axis=(1, 3)).repeat(2, 0).repeat(2, 1)
        np.testing.assert_allclose(found.numpy().transpose(1, 2, 0), (at8 + at4) / 2, atol=1e-6)


def test_critic_and_generator_draw_other_latents_and_previews_the_runtimes(toy: Path):
    from pgsr import draws

    recipe = config.from_dict({**PROGAN, "seed": 5})
    source = batches.LatentBatches(recipe, toy, CPU)
    stage = build(recipe.schedule).at(0)
    critic = source.for_critic(stage, 8)
    generator = source.generator_inputs(stage, 8, critic)
    assert (critic.inputs.numpy() == draws.normals(5, "critic latent", range(8, 12), 8)).all()
    assert (generator.inputs.numpy() == draws.normals(5, "generator latent", range(8, 12), 8)).all()
    assert (source.preview(3).numpy() == draws.latents(5, range(3), 8)).all()
    assert generator.reals is critic.reals
    assert not critic.paired


def positions(count: int, size: int) -> np.ndarray:
    """Pictures whose pixels say which picture, row and column they are: [count, size, size, 3]."""
    n, i, j = np.meshgrid(np.arange(count), np.arange(size), np.arange(size), indexing="ij")
    return np.stack([n, i, j], axis=-1).astype(np.uint8)


@pytest.fixture
def placed(tmp_path: Path) -> Path:
    """An archive in which high pixel (2i, 2j) of a picture lies over low pixel (i, j)."""
    content = []
    for size in (16, 8):
        for n, picture in enumerate(positions(5, size)):
            buffer = io.BytesIO()
            Image.fromarray(picture).save(buffer, "PNG")
            content.append((f"{size}/{n:06d}.png", buffer.getvalue()))
    content.append(("manifest.json", b'{"fingerprint": "", "filter": "box", "sizes": [16, 8]}'))
    return write_zip(tmp_path / "placed.zip", content)


@pytest.mark.parametrize("mirror", [False, True])
def test_crops_of_a_pair_line_up(placed: Path, mirror: bool):
    recipe = config.from_dict({**CROPS, "data": {"resolution": 16, "mirror": mirror}})
    source = batches.CropBatches(recipe, placed, CPU)
    corners, flips = Counter(), 0
    for start in range(0, 100, 10):
        batch = source.for_critic(build(recipe.schedule).at(start), start)
        assert (batch.inputs.shape, batch.reals.shape) == ((10, 3, 4, 4), (10, 3, 8, 8))
        low = ((batch.inputs + 1) * 127.5).round().int()
        high = ((batch.reals + 1) * 127.5).round().int()
        for a, b, index in zip(low, high, batches.data_indices(0, range(start, start + 10), 5), strict=True):
            flipped_over = bool(a[2, 0, 0] > a[2, 0, -1])
            if flipped_over:
                a, b = a.flip(2), b.flip(2)
            assert (a[0] == index).all()
            assert (b[0] == index).all()
            assert torch.equal(b[1:, ::2, ::2], 2 * a[1:])  # the same corner, and every pixel in its place
            assert torch.equal(b[1:, 1::2, 1::2], 2 * a[1:] + 1)
            corners[int(a[1, 0, 0]), int(a[2, 0, 0])] += 1
            flips += flipped_over
    assert {c for corner in corners for c in corner} == {0, 1, 2, 3, 4}  # the last possible corner too
    assert (20 < flips < 80) if mirror else flips == 0


def test_noise_is_on_the_inputs_alone_and_no_stronger_than_asked(placed: Path):
    noisy = config.from_dict({**CROPS, "data": {"resolution": 16, "mirror": False, "noise": 0.5}})
    clean = config.from_dict({**CROPS, "data": {"resolution": 16, "mirror": False}})
    strengths = []
    for start in range(0, 400, 10):
        stage = build(noisy.schedule).at(start)
        a = batches.CropBatches(noisy, placed, CPU).for_critic(stage, start)
        b = batches.CropBatches(clean, placed, CPU).for_critic(stage, start)
        assert torch.equal(a.reals, b.reals)
        strengths += (a.inputs - b.inputs).square().mean(dim=(1, 2, 3)).sqrt().tolist()
    assert 0.2 < np.mean(strengths) < 0.3  # uniform between 0 and 0.5
    assert max(strengths) < 0.5 * 1.4  # of 48 numbers
    assert min(strengths) < 0.05


def test_at_scale_1_inputs_are_the_photographs_as_jpeg(placed: Path):
    options = {"generator": {"kind": "rednet"}, "data": {"resolution": 16, "jpeg": [20, 60]}}
    recipe = config.from_dict({**CROPS, **options})
    source = batches.CropBatches(recipe, placed, CPU)
    batch = source.for_critic(build(recipe.schedule).at(20), 20)
    flips = batches.mirrored(recipe.seed, range(20, 30))
    wanted = compressed(batches.mirror(batch.reals, flips), recipe.seed, range(20, 30), (20, 60))
    assert torch.equal(batches.mirror(batch.inputs, flips), wanted)
    clean = from_pixels(torch.tensor(source.high.pixels.numpy()[:3]))
    assert torch.equal(source.preview(3), compressed(clean, recipe.seed, range(3), (20, 60)))


WORSE = {"noise": 0.3, "coarse_noise": 0.2, "blur": 0.8, "filters": ["stored", "area", "bicubic"]}


def test_noise_is_the_draws_of_its_positions(placed: Path):
    """To the bit, so that a run with noise goes on as it began."""
    noisy = config.from_dict({**CROPS, "data": {"resolution": 16, "mirror": False, "noise": 0.5}})
    clean = config.from_dict({**CROPS, "data": {"resolution": 16, "mirror": False}})
    stage, shown = build(noisy.schedule).at(20), range(20, 20 + noisy.schedule.batch)
    a, b = (batches.CropBatches(r, placed, CPU).for_critic(stage, 20) for r in (noisy, clean))
    shares = [0.5 * draws.uniforms(noisy.seed, "degradation", p, 1)[0] for p in shown]
    strengths = np.array(shares, dtype=np.float32)
    rows = draws.normals(noisy.seed, "noise", shown, 48) * strengths[:, None]
    assert torch.equal(a.inputs, b.inputs + torch.from_numpy(rows).view(-1, 3, 4, 4))


@pytest.mark.parametrize("ways", [{}, {"noise": 0.3}, WORSE])
def test_crops_do_not_depend_on_the_batch(placed: Path, ways: dict[str, Any]):
    recipe = config.from_dict({**CROPS, "data": {**CROPS["data"], **ways}})  # type: ignore[dict-item]
    halved = dataclasses.replace(recipe, schedule=dataclasses.replace(recipe.schedule, batch=5))
    whole = batches.CropBatches(recipe, placed, CPU).for_critic(build(recipe.schedule).at(20), 20)
    source, stage = batches.CropBatches(halved, placed, CPU), build(halved.schedule).at(20)
    parts = [source.for_critic(stage, start) for start in (20, 25)]
    assert torch.equal(torch.cat([p.inputs for p in parts]), whole.inputs)
    assert torch.equal(torch.cat([p.reals for p in parts]), whole.reals)


def test_some_inputs_are_crops_of_a_generators_pictures(placed: Path, tmp_path: Path):
    """As many as asked for, from every place of every picture; the others are as they were."""
    drawn = np.random.default_rng(3).integers(0, 256, (3, 8, 8, 3), dtype=np.uint8)
    for i, pixels in enumerate(drawn):
        Image.fromarray(pixels).save(tmp_path / f"{i}.png")
    options = {**CROPS["data"], "generated": str(tmp_path), "generated_share": 0.4}  # type: ignore[dict-item]
    recipe = config.from_dict({**CROPS, "data": options})
    source = batches.CropBatches(recipe, placed, CPU)
    plain = batches.CropBatches(config.from_dict(CROPS), placed, CPU)
    found: Counter[tuple[int, int, int]] = Counter()
    for start in range(0, 1000, 10):
        stage = build(recipe.schedule).at(start)
        batch, without = source.for_critic(stage, start), plain.for_critic(stage, start)
        assert without.photographed is None
        assert batch.photographed is not None
        assert torch.equal(batch.reals, without.reals)
        assert torch.equal(batch.inputs[batch.photographed], without.inputs[batch.photographed])
        for crop in ((batch.inputs[~batch.photographed] + 1) * 127.5).round().byte().permute(0, 2, 3, 1):
            (place,) = [
                (n, y, x)
                for n, y, x in itertools.product(range(3), range(5), range(5))
                if (drawn[n, y : y + 4, x : x + 4] == crop.numpy()).all()
            ]
            found[place] += 1
    assert 340 < found.total() < 460  # of 1,000; the deviation is 15
    assert len(found) == 3 * 5 * 5
    assert source.fingerprint not in (plain.fingerprint, source.others[tmp_path].fingerprint)


def test_generated_crops_do_not_depend_on_the_batch(placed: Path):
    recipe = config.from_dict({**CROPS, "data": {**CROPS["data"], "generated": str(placed)}})  # type: ignore[dict-item]
    halved = dataclasses.replace(recipe, schedule=dataclasses.replace(recipe.schedule, batch=5))
    whole = batches.CropBatches(recipe, placed, CPU).for_critic(build(recipe.schedule).at(20), 20)
    source, stage = batches.CropBatches(halved, placed, CPU), build(halved.schedule).at(20)
    parts = [source.for_critic(stage, start) for start in (20, 25)]
    assert torch.equal(torch.cat([p.inputs for p in parts]), whole.inputs)
    assert [*parts[0].photographed, *parts[1].photographed] == [*whole.photographed]  # type: ignore[misc]


def test_a_generators_pictures_that_are_not_there(placed: Path, tmp_path: Path):
    options = {**CROPS["data"], "generated": str(tmp_path / "faces.zip")}  # type: ignore[dict-item]
    with pytest.raises(PgsrError, match=r"faces\.zip"):
        batches.CropBatches(config.from_dict({**CROPS, "data": options}), placed, CPU)


def test_the_low_half_of_a_pair_is_the_picture_reduced(folder: Path, own_cache: Path):
    source = batches.CropBatches(config.from_dict(CROPS), folder, CPU)
    assert (source.low.pixels.numpy() == np.stack([reduced(i, 8) for i in IN_ORDER])).all()
    assert (source.high.pixels.numpy() == np.stack([reduced(i, 16) for i in IN_ORDER])).all()


def test_crops_that_do_not_fit_are_an_error(toy: Path):
    for options in ({"resolution": 0}, {"resolution": 6}):
        with pytest.raises(PgsrError, match=r"crops of 8 at scale 2 do not fit .*set data\.resolution"):
            batches.CropBatches(config.from_dict({**CROPS, "data": options}), toy, CPU)
