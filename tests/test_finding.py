"""Every file of a source that was looked at is used, or left out for a reason that is told."""

from __future__ import annotations

import gzip
import io
import json
import os
import socket
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pgsr.errors import PgsrError
from pgsr.trainer.data import cli as prepare
from pgsr.trainer.data import listing, mnist_cifar, procedural
from pgsr.trainer.data.cache import load_photographs
from pgsr.trainer.data.mnist_cifar import open_native
from pgsr.trainer.data.sources import of_size, open_pictures, reading
from pictures import png, write_zip

SMALL = prepare.Settings((16,), "lanczos", "png", 95)
FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "TIFF", "GIF", "PPM", "JPEG2000")


def encoded(format: str, index: int = 0) -> bytes:
    buffer = io.BytesIO()
    procedural.draw(index, 32).save(buffer, format)
    return buffer.getvalue()


def left_out(source: Path) -> dict[str, str]:
    return {file.name: file.why for file in open_pictures(source).left_out}


def names(source: Path) -> list[str]:
    return list(open_pictures(source).names)


def write_tar(path: Path, *members: tuple[str, bytes] | tarfile.TarInfo) -> Path:
    with tarfile.open(path, "w") as archive:
        for member in members:
            if isinstance(member, tarfile.TarInfo):
                archive.addfile(member)
                continue
            header = tarfile.TarInfo(member[0])
            header.size = len(member[1])
            archive.addfile(header, io.BytesIO(member[1]))
    return path


def link(name: str, target: str, hard: bool = False) -> tarfile.TarInfo:
    header = tarfile.TarInfo(name)
    header.type = tarfile.LNKTYPE if hard else tarfile.SYMTYPE
    header.linkname = target
    return header


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    folder = tmp_path / "photos"
    folder.mkdir()
    for index, name in enumerate(("a.png", "b.png")):
        (folder / name).write_bytes(png(32, index))
    return folder


# ----------------------------------------------------------------------------
# Links.


def test_links_to_folders_are_followed_and_each_folder_is_read_once(photos: Path, tmp_path: Path):
    elsewhere = tmp_path / "elsewhere"
    (elsewhere / "deep").mkdir(parents=True)
    (elsewhere / "deep" / "x.png").write_bytes(png(32, 5))
    (photos / "linked").symlink_to(elsewhere)
    (photos / "again").symlink_to(elsewhere / "deep")
    (photos / "loop").symlink_to(photos)
    (elsewhere / "back").symlink_to(photos, target_is_directory=True)
    assert names(photos) == ["a.png", "again/x.png", "b.png"]
    assert left_out(photos) == {
        "linked/back": "a link to a folder that is read already (.)",
        "linked/deep": "a link to a folder that is read already (again)",
        "loop": "a link to a folder that is read already (.)",
    }


def test_the_source_itself_may_be_a_link(photos: Path, tmp_path: Path):
    (tmp_path / "link").symlink_to(photos)
    assert names(tmp_path / "link") == ["a.png", "b.png"]


def test_links_to_files(photos: Path, tmp_path: Path):
    (tmp_path / "outside").write_bytes(png(32, 3))
    (photos / "c.png").symlink_to(tmp_path / "outside")
    (photos / "d.png").symlink_to("a.png")
    (photos / "e.png").symlink_to("nothing")
    (photos / "f.png").symlink_to("f.png")
    assert names(photos) == ["a.png", "b.png", "c.png"]
    assert left_out(photos) == {
        "d.png": "a link to a picture that is used already",
        "e.png": "a link to nothing",
        "f.png": "a link that leads to itself",
    }
    assert len(load_photographs(photos, 16)) == 3


def test_many_links_to_one_another_end(tmp_path: Path):
    """Thirty folders, each with two links to the next: a thousand million ways."""
    for i in range(30):
        folder = tmp_path / f"{i:02d}"
        folder.mkdir()
        for name in ("left", "right"):
            (folder / name).symlink_to(tmp_path / f"{i + 1:02d}")
    (tmp_path / "30").mkdir()
    (tmp_path / "30" / "a.png").write_bytes(png())
    assert names(tmp_path) == ["30/a.png"]


# ----------------------------------------------------------------------------
# What is no regular file, or cannot be read.


def test_pipes_and_devices_are_not_waited_for(photos: Path):
    os.mkfifo(photos / "pipe.png")
    os.mkfifo(photos / "pipe")
    (photos / "zero.png").symlink_to("/dev/zero")
    (photos / "devices").symlink_to("/dev")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(photos / "s.png"))
        found = left_out(photos)
    own = {name: why for name, why in found.items() if not name.startswith("devices")}
    assert own == dict.fromkeys(("pipe", "pipe.png", "s.png", "zero.png"), "not a regular file")
    assert len(load_photographs(photos, 16)) == 2


def test_a_pipe_that_comes_in_a_pictures_place_is_one_damaged_picture(photos: Path):
    pictures = open_pictures(photos)
    (photos / "a.png").unlink()
    os.mkfifo(photos / "a.png")
    with reading(pictures) as read:
        with pytest.raises(OSError, match="not a regular file"):
            read("a.png")
        assert read("b.png") == png(32, 1)


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads everything")
def test_a_closed_folder_is_named(photos: Path):
    (photos / "closed").mkdir(mode=0)
    assert left_out(photos) == {"closed": "a folder that cannot be read (Permission denied)"}


def test_names_of_any_bytes(photos: Path, tmp_path: Path, command):
    odd = ["\udcff\udcfe.png", "x" * 251 + ".png", "line\nbreak.png", "-o.png", "*.png"]
    for index, name in enumerate(odd):
        (photos / name).write_bytes(png(32, 10 + index))
    assert set(names(photos)) == {"a.png", "b.png", *odd}
    assert len(load_photographs(photos, 16)) == 7
    (photos / "\udcff.txt").write_text("no picture")
    (photos / "\udcfd.png").write_bytes(b"damaged")
    result = command(
        prepare.main, photos, "--out", tmp_path / "out.zip", "--sizes", 16, "--verbose", "--json"
    )
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["count"] == 7


# ----------------------------------------------------------------------------
# What a picture is called.


@pytest.mark.parametrize("packed", ["folder", "zip", "tar"])
def test_pictures_are_known_by_their_first_bytes(packed: str, tmp_path: Path):
    members = [
        (f"{format}{suffix}", encoded(format)) for format in FORMATS for suffix in ("", ".x!d", ".txt")
    ]
    others = {
        "notes": b"P.S. no picture",
        "BMW": b"BMW is a car",
        "p.psd": b"8BPS" + bytes(90),
        "photo.cr2": encoded("TIFF"),
        "clip.mp4": b"\0\0\0\x20ftypisom" + bytes(60),
        "more.zip": b"PK\3\4" + bytes(60),
        "empty": b"",
        "._a.png": png(),
    }
    source = {"folder": tmp_path / "in", "zip": tmp_path / "in.zip", "tar": tmp_path / "in.tar"}[packed]
    every = [*members, *others.items()]
    if packed == "zip":
        write_zip(source, every)
    elif packed == "tar":
        write_tar(source, *every)
    else:
        source.mkdir()
        for name, content in every:
            (source / name).write_bytes(content)
    prefix = "in.tar/" if packed == "tar" else ""
    assert sorted(names(source)) == sorted(prefix + name for name, _ in members)
    found = {name.removeprefix(prefix): why for name, why in left_out(source).items()}
    assert found == {
        "notes": "no picture of a format that is read (no suffix)",
        "BMW": "no picture of a format that is read (no suffix)",
        "p.psd": "no picture of a format that is read (.psd)",
        "photo.cr2": "a camera's raw file (.cr2), which is not read",
        "clip.mp4": "no picture of a format that is read (.mp4)",
        "more.zip": "an archive inside (.zip): name it as a source of its own",
        "empty": "no picture of a format that is read (no suffix)",
        "._a.png": "a note of macOS",
    }
    assert len(load_photographs(source, 16)) == len(members)


def test_a_folder_named_like_a_picture(photos: Path):
    (photos / "x.png").mkdir()
    (photos / "x.png" / "y.png").write_bytes(png())
    assert names(photos) == ["a.png", "b.png", "x.png/y.png"]


def test_nothing_usable_says_what_is_there(tmp_path: Path):
    (tmp_path / "in").mkdir()
    for i in range(3):
        (tmp_path / "in" / f"{i}.heic").write_bytes(b"\0\0\0\x18ftypheic" + bytes(60))
    (tmp_path / "in" / "more.tgz").write_bytes(b"\x1f\x8b")
    with pytest.raises(PgsrError, match=r"holds no pictures .*; 4 left out: 3 .*\(\.heic\), 1 an archive"):
        open_pictures(tmp_path / "in")


# ----------------------------------------------------------------------------
# Tar files.


def test_pictures_beside_shards_are_read_too(photos: Path):
    write_tar(photos / "more.tar", ("x.png", png(32, 7)), ("x.cls", b"3"))
    (photos / "deep").mkdir()
    write_tar(photos / "deep" / "y.tar", ("y.png", png(32, 8)))
    assert names(photos) == ["a.png", "b.png", "deep/y.tar/y.png", "more.tar/x.png"]
    photographs = load_photographs(photos, 16)
    expected = [procedural.draw(i, 32).resize((16, 16), Image.Resampling.LANCZOS) for i in (0, 1, 8, 7)]
    assert (photographs.pixels == np.stack([np.asarray(picture) for picture in expected])).all()
    assert photographs.labels is None
    assert left_out(photos) == {"more.tar/x.cls": "a label, where not every picture has one"}


def test_links_in_tars_are_pictures_of_their_own(tmp_path: Path):
    source = write_tar(
        tmp_path / "x.tar",
        ("d/a.png", png(32, 1)),
        link("hard.png", "d/a.png", hard=True),
        link("d/soft.png", "../hard.png"),
        ("./b.png", png(32, 2)),
        link("c.png", "b.png"),
        link("nowhere.png", "../../etc/passwd"),
        link("circle.png", "circle.png"),
    )
    pictures = open_pictures(source)
    with reading(pictures) as read:
        found = {name: read(name) for name in pictures.names}
    assert found == {
        **{f"x.tar/{name}": png(32, 1) for name in ("d/a.png", "hard.png", "d/soft.png")},
        **{f"x.tar/{name}": png(32, 2) for name in ("./b.png", "c.png")},
    }
    assert left_out(source) == {
        f"x.tar/{name}.png": "a link to nothing in its archive" for name in ("nowhere", "circle")
    }


@pytest.mark.parametrize("packed", ["zip", "tar"])
def test_of_members_of_one_name_the_last_counts(packed: str, tmp_path: Path):
    members = [("a.png", png(32, 1)), ("b.png", png(32, 2)), ("a.png", png(32, 3))]
    if packed == "zip":
        with pytest.warns(UserWarning, match="Duplicate name"):
            source = write_zip(tmp_path / "in.zip", members)
    else:
        source = write_tar(tmp_path / "in.tar", *members)
    pictures = open_pictures(source)
    with reading(pictures) as read:
        assert sorted(read(name) for name in pictures.names) == sorted([png(32, 2), png(32, 3)])
    assert list(left_out(source).values()) == ["replaced by a later member of the same name"]


@pytest.mark.parametrize("change", ["header", "second archive"])
def test_a_tar_that_cannot_be_read_to_its_end_is_no_shorter_one(change: str, tmp_path: Path):
    """Python's tarfile ends without a word at a header that is damaged."""
    source = write_tar(tmp_path / "x.tar", *[(f"{i}.png", png(32, i)) for i in range(4)])
    data = bytearray(source.read_bytes())
    if change == "header":
        data[data.index(b"2.png") + 1] ^= 1
    else:
        data = data + data
    source.write_bytes(data)
    with pytest.raises(PgsrError, match=r"cannot be read beyond byte .*damaged, or several archives in one"):
        open_pictures(source)


# ----------------------------------------------------------------------------
# Limits.


def test_a_class_beyond_all_classes(tmp_path: Path):
    source = write_tar(tmp_path / "x.tar", ("a.png", png()), ("a.cls", b"9999999999"))
    with pytest.raises(PgsrError, match=r"a\.cls is class 9999999999, but classes are numbered from 0 to"):
        open_pictures(source)


def test_a_tar_header_that_would_fill_the_memory(tmp_path: Path):
    header = tarfile.TarInfo("././@LongLink")
    header.type, header.size = tarfile.GNUTYPE_LONGNAME, 2**32
    path = tmp_path / "x.tar"
    path.write_bytes(header.tobuf(tarfile.GNU_FORMAT))
    os.truncate(path, 2**32 + 1024)
    for read in (open_pictures, open_native):
        with pytest.raises(
            PgsrError, match="is damaged, or not a tar archive: a header of 4,294,967,296 bytes"
        ):
            read(path)


@pytest.mark.parametrize("size", ["-5", "99999999999999999999999"])
def test_a_tar_member_of_a_size_that_is_none(size: str, tmp_path: Path):
    """Python's reader seeks to wherever an extended header says."""
    path = tmp_path / "x.tar"
    for name, read in (("0.png", open_pictures), ("data_batch_1.bin", open_native)):
        with tarfile.open(path, "w", format=tarfile.PAX_FORMAT) as archive:
            member = tarfile.TarInfo(name)
            member.size, member.pax_headers = len(png(8)), {"size": size}
            archive.addfile(member, io.BytesIO(png(8)))
        with pytest.raises(PgsrError, match=r"is damaged|is cut short"):
            read(path)


def test_members_of_a_zip_that_are_packed_in_odd_ways(tmp_path: Path):
    """LZMA has an error of its own: a picture that it hits is damaged, another file no picture."""
    path = write_zip(
        tmp_path / "x.zip", [("0.png", png(8)), ("1.png", png(8)), ("other", png(8))], zipfile.ZIP_LZMA
    )
    data = path.read_bytes()
    for name in (b"1.png", b"other"):
        place = data.index(name) + len(name) + 4  # behind a version and the length of the options
        data = data[:place] + b"\xff" + data[place + 1 :]
    path.write_bytes(data)
    pictures = open_pictures(path)
    assert pictures.names == ("0.png", "1.png")
    assert left_out(path) == {"other": "no picture of a format that is read (no suffix)"}
    with reading(pictures) as read:
        assert read("0.png") == png(8)
        with pytest.raises(OSError, match="cannot be unpacked"):
            read("1.png")


def test_a_packed_tar_is_not_unpacked_for_ever(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(mnist_cifar, "LARGEST", 10_000)
    tar = write_tar(tmp_path / "x.tar", ("zeros", bytes(20_000)), ("data_batch_1.bin", bytes(3073)))
    for name in ("x.tar.gz", "x.tgz"):
        (tmp_path / name).write_bytes(gzip.compress(tar.read_bytes()))
        with pytest.raises(PgsrError, match=r"is damaged.*it unpacks to more than 10,000 bytes"):
            open_native(tmp_path / name)


@pytest.mark.parametrize("packed", ["folder", "zip", "tar"])
def test_a_picture_of_gigabytes_is_not_read(packed: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(listing, "LARGEST_FILE", 3000)
    for module in ("shards", "zips"):
        monkeypatch.setattr(f"pgsr.trainer.data.{module}.LARGEST_FILE", 3000)
    contents = [("a.png", png(32, 1)), ("b.png", bytes(3001)), ("c.png", png(32, 2))]
    source = {"folder": tmp_path / "in", "zip": tmp_path / "in.zip", "tar": tmp_path / "in.tar"}[packed]
    if packed == "zip":
        write_zip(source, contents, zipfile.ZIP_DEFLATED)
    elif packed == "tar":
        write_tar(source, *contents)
    else:
        source.mkdir()
        for name, content in contents:
            (source / name).write_bytes(content)
    found = {file.name.split("/")[-1]: file.why for file in load_photographs(source, 16).left_out}
    assert found == {"b.png": "cannot be read (3,001 bytes, more than the 3,000 that are read of a picture)"}


def test_a_source_of_too_many_files(photos: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(listing, "MOST_FILES", 1)
    with pytest.raises(PgsrError, match="holds more than 1 files: name a part of it"):
        open_pictures(photos)


# ----------------------------------------------------------------------------
# Prepared archives, and folders that only look like them.


@pytest.mark.parametrize("packed", [False, True])
def test_class_folders_called_by_numbers_are_no_prepared_archive(packed: bool, tmp_path: Path):
    members = [(f"{c}/{i}.png", png(64, i)) for c in ("16", "64", "cats") for i in range(4)]
    source = write_zip(tmp_path / "in.zip", members) if packed else tmp_path / "in"
    for name, content in [] if packed else members:
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        (source / name).write_bytes(content)
    for size in (16, 64):
        assert len(load_photographs(source, size)) == 12


def test_a_prepared_archive_counts_each_picture_once_at_any_size(tmp_path: Path):
    archive, shards = tmp_path / "a.zip", tmp_path / "shards"
    both = prepare.Settings((64, 16), "lanczos", "png", 95)
    for out, shard in ((archive, 0), (shards, 3)):
        prepare.prepare([], out, both, drawn=5, shard=shard)
    with zipfile.ZipFile(archive) as packed:
        packed.extractall(tmp_path / "unpacked")
    for source in (archive, shards, tmp_path / "unpacked"):
        for size, side in ((64, 64), (16, 16), (32, 64), (8, 16)):
            photographs = load_photographs(source, size)
            assert len(photographs) == 5, (source, size)
            assert photographs.as_stored == (5 if size == side else 0)
            assert not photographs.left_out
        with pytest.raises(PgsrError, match="was prepared at 64,16, which is too small for 128"):
            load_photographs(source, 128)
    manifest = prepare.prepare([archive], tmp_path / "b.zip", prepare.Settings((32,), "lanczos", "png", 95))
    assert manifest["count"] == 5


def test_what_was_added_to_a_prepared_archive_is_told(tmp_path: Path):
    archive = tmp_path / "a.zip"
    prepare.prepare([], archive, SMALL, drawn=3)
    with zipfile.ZipFile(archive, "a") as packed:
        packed.writestr("mine.png", png())
    photographs = load_photographs(archive, 16)
    assert len(photographs) == 3
    assert [(file.name, file.why) for file in photographs.left_out] == [
        ("mine.png", "beside the pictures that pgsr-data prepared")
    ]


def test_a_manifest_of_another_kind_prepares_nothing(tmp_path: Path):
    manifest = json.dumps({"sizes": [16], "labels": [], "seed": 0}).encode()
    source = write_zip(
        tmp_path / "in.zip", [("16/a.png", png(16)), ("b.png", png()), ("manifest.json", manifest)]
    )
    pictures = open_pictures(source)
    assert of_size(pictures, 16).names == ("16/a.png", "b.png")
    assert [file.name for file in pictures.left_out] == ["manifest.json"]


def test_labels_survive_being_prepared_again(tmp_path: Path):
    members = [(f"{i}.png", png(32, i)) for i in range(3)]
    source = write_tar(tmp_path / "x.tar", *members, *[(f"{i}.cls", b"%d" % (i % 2)) for i in range(3)])
    prepare.prepare([source], tmp_path / "a.zip", prepare.Settings((32, 16), "lanczos", "png", 95))
    prepare.prepare([tmp_path / "a.zip"], tmp_path / "b.zip", SMALL)
    assert load_photographs(tmp_path / "b.zip", 16).labels.tolist() == [0, 1, 0]


# ----------------------------------------------------------------------------
# What is told.


def test_pgsr_data_counts_what_it_leaves_out_and_names_it_if_asked(photos: Path, tmp_path: Path, command):
    (photos / "notes.txt").write_text("no picture")
    (photos / "lost.png").symlink_to("nothing")
    arguments = (photos, "--sizes", 16, "--out", tmp_path / "out.zip", "--json")
    quiet, verbose = command(prepare.main, *arguments), command(prepare.main, *arguments, "--verbose")
    reasons = {"a link to nothing": 1, "no picture of a format that is read (.txt)": 1}
    assert json.loads(quiet.stdout)["left out"] == json.loads(verbose.stdout)["left out"] == reasons
    line = (
        f"note: {photos}: 2 pictures used, 2 left out: 1 a link to nothing, "
        "1 no picture of a format that is read (.txt)"
    )
    assert quiet.stderr == f"{line}; --verbose names them\n"
    assert verbose.stderr.splitlines() == [
        "left out lost.png: a link to nothing",
        "left out notes.txt: no picture of a format that is read (.txt)",
        line,
    ]


def test_a_source_named_twice_is_an_error(photos: Path, tmp_path: Path):
    (tmp_path / "link").symlink_to(photos)
    for again in (photos, photos / ".." / "photos", tmp_path / "link"):
        with pytest.raises(PgsrError, match="is named twice"):
            prepare.prepare([photos, again], tmp_path / "out.zip", SMALL)
