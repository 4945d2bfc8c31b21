"""Data sets as they are handed out: CelebA with its annotations, FFHQ's zips, LSUN's lmdb, WebDataset's
shards; damage up to a limit; archives of a hundred thousand pictures."""

from __future__ import annotations

import gzip
import io
import json
import sys
import tarfile
import time
import tracemalloc
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import lmdb
import numpy as np
import pytest
from PIL import Image

from pgsr.errors import PgsrError
from pgsr.trainer.data import cache as data
from pgsr.trainer.data import celeba, procedural
from pgsr.trainer.data import cli as prepare
from pgsr.trainer.data.celeba import Selection, label_names, read_table, select
from pgsr.trainer.data.sources import Damage, open_pictures, reading
from pictures import flipped, png, write_zip

REAL = Path(__file__).resolve().parents[2] / "shared" / "data"
needs_real = pytest.mark.skipif(not (REAL / "faces128.zip").is_file(), reason="no photographs")

SMALL = prepare.Settings((16,), "lanczos", "png", 95)


def drawn(index: int, size: int = 16) -> np.ndarray:
    """Picture `index` drawn at 32 and reduced."""
    return np.asarray(procedural.draw(index, 32).resize((size, size), Image.Resampling.LANCZOS))


def bytes_of(source: Path) -> dict[str, bytes]:
    """Every picture's file by name, read in threads."""
    pictures = open_pictures(source)
    with reading(pictures) as read, ThreadPoolExecutor(4) as pool:
        return dict(zip(pictures.names, pool.map(read, pictures.names), strict=True))


# ----------------------------------------------------------------------------
# CelebA, aligned.

PARTS = (0, 0, 1, 0, 2, 0, 1, 2)  # of eight pictures
MALE = (1, -1, -1, 1, 1, -1, 1, -1)
SMILING = (1, 1, -1, -1, 1, 1, -1, -1)


def write_celeba(folder: Path, form: str = "txt") -> Path:
    """Eight pictures as CelebA lays them out, or as CSV beside them; gives back the pictures' place."""
    pictures = folder / "Img" / "img_align_celeba"
    pictures.mkdir(parents=True)
    names = [f"{i + 1:06d}.png" for i in range(8)]
    for i, name in enumerate(names):
        (pictures / name).write_bytes(png(32, i))
    for place in ("Anno", "Eval"):
        (folder / place).mkdir()
    if form == "txt":
        rows = [f"{n}  {m} {s:2d}" for n, m, s in zip(names, MALE, SMILING, strict=True)]
        (folder / "Anno" / "list_attr_celeba.txt").write_text("8\nMale Smiling \n" + "\n".join(rows) + "\n")
        rows = [f"{n} {p}" for n, p in zip(names, PARTS, strict=True)]
        (folder / "Eval" / "list_eval_partition.txt").write_text("\n".join(rows) + "\n")
    else:
        rows = [f"{n},{max(m, 0)},{max(s, 0)}" for n, m, s in zip(names, MALE, SMILING, strict=True)]
        text = "image_id,Male,Smiling\n" + "\n".join(rows)
        (pictures.parent / "list_attr_celeba.csv").write_text(text)
        rows = [f"{n},{p}" for n, p in zip(names, PARTS, strict=True)]
        (pictures.parent / "list_eval_partition.csv").write_text("image_id,partition\n" + "\n".join(rows))
    return pictures


@pytest.mark.parametrize("form", ["txt", "csv"])
@pytest.mark.parametrize("packed", [False, True])
def test_celebas_attributes_become_labels_and_its_partition_a_filter(
    form: str, packed: bool, tmp_path: Path, command, own_cache: Path
):
    source = write_celeba(tmp_path / "celeba", form)
    if packed:
        members = [(f"img_align_celeba/{p.name}", p.read_bytes()) for p in source.iterdir()]
        source = write_zip(source.with_suffix(".zip"), members)
    out = tmp_path / "out.zip"
    arguments = ("--label", "Male,Smiling", "--part", "train", "--sizes", 16)
    result = command(prepare.main, source, "--out", out, *arguments, "--json")
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["count"] == 4
    photographs = data.load_photographs(out, 16)
    chosen = [i for i in range(8) if PARTS[i] == 0]
    assert photographs.label_names == (
        "not Male, not Smiling",
        "not Male, Smiling",
        "Male, not Smiling",
        "Male, Smiling",
    )
    assert photographs.labels is not None
    assert photographs.labels.tolist() == [2 * (MALE[i] > 0) + (SMILING[i] > 0) for i in chosen]
    for pixels, i in zip(photographs.pixels, chosen, strict=True):
        assert (pixels == drawn(i)).all()


def test_labels_stay_with_their_pictures_where_one_is_damaged(tmp_path: Path, own_cache: Path):
    source = write_celeba(tmp_path / "celeba")
    (source / "000003.png").write_bytes(b"damaged")
    manifest = prepare.prepare([source], tmp_path / "out.zip", SMALL, selection=Selection(("Male",)))
    assert manifest["labels"] == ["not Male", "Male"]
    photographs = data.load_photographs(tmp_path / "out.zip", 16)
    assert photographs.labels is not None
    assert photographs.labels.tolist() == [int(m > 0) for i, m in enumerate(MALE) if i != 2]
    assert (photographs.pixels[2] == drawn(3)).all()


def test_every_attribute_doubles_the_labels():
    assert label_names(("Male",)) == ("not Male", "Male")
    assert len(label_names(tuple("abcd"))) == 16
    assert label_names(("a", "b"))[2] == "a, not b"


def test_pictures_without_a_line_are_left_out_and_counted(tmp_path: Path, capsys):
    source = write_celeba(tmp_path / "celeba")
    (source / "000099.png").write_bytes(png(32))
    chosen = select(open_pictures(source), Selection(("Male",), "val"))
    assert chosen.names == ("000003.png", "000007.png")
    assert chosen.labels == (0, 1)
    assert "left out 1 pictures that list_eval_partition.txt does not know" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--label", "Bearded"), "has no column 'Bearded'; it has Male, Smiling"),
        (("--label", "Male,Male"), "--label names an attribute twice"),
        (("--label", "Male", "--attributes", "absent.txt"), "cannot read the annotations in absent.txt"),
        (("--part", "test", "--partition", "other.txt"), "knows none of the pictures"),
        (("--part", "val", "--partition", "short.txt"), "no picture of"),
    ],
)
def test_annotations_that_do_not_fit(
    arguments: tuple, message: str, tmp_path: Path, command, monkeypatch: pytest.MonkeyPatch
):
    source = write_celeba(tmp_path / "celeba")
    monkeypatch.chdir(tmp_path)
    Path("other.txt").write_text("a.jpg 2\nb.jpg 0\n")
    Path("short.txt").write_text("000001.png 0\n")
    result = command(prepare.main, source, "--out", "out.zip", *arguments)
    assert result.exit_code == 1
    assert message in result.stderr
    assert not Path("out.zip").exists()


def test_annotations_nowhere(tmp_path: Path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "x.png").write_bytes(png())
    with pytest.raises(PgsrError, match=r"no list_attr_celeba.txt in .* or beside it: name the file"):
        select(open_pictures(tmp_path / "a"), Selection(("Male",)))


@pytest.mark.parametrize("listed", [".jpg", ".png"])
def test_celebas_png_edition_is_known_by_the_lists_of_the_jpeg_one(listed: str, tmp_path: Path):
    source = write_celeba(tmp_path / "celeba")
    for path in (tmp_path / "celeba").rglob("*.txt"):
        path.write_text(path.read_text().replace(".png", listed))
    chosen = select(open_pictures(source), Selection(("Male",), "val"))
    assert chosen.names == ("000003.png", "000007.png")
    assert chosen.labels == (0, 1)


def test_names_that_differ_by_their_suffix_alone_are_not_guessed(tmp_path: Path):
    (tmp_path / "list.csv").write_text("image_id,Male\na.jpg,1\na.jpeg,0\nb.jpg,1\n")
    table = read_table(tmp_path / "list.csv")
    assert [name in table for name in ("a.jpg", "a.png", "b.png", "c.png")] == [True, False, True, False]


@needs_real
def test_real_celeba_files():
    """Two forms of the same annotations: CelebA's own and CSV. Its first 20,000 are all of "train"."""
    attributes = read_table(REAL / "faces128_attr.txt")
    assert len(attributes.columns) == 40
    assert len(attributes.rows) == 1124
    table = read_table(REAL / "faces128_labels.csv")
    assert len(table.rows) == 12_000
    parts = [celeba.part_of(table, name) for name in table.rows]
    assert [parts.count(i) for i in range(3)] == [9660, 1147, 1193]
    pictures = open_pictures(REAL / "faces128.zip")
    chosen = select(
        pictures, Selection(("Male",), "train", REAL / "faces128_attr.txt", REAL / "faces128_labels.csv")
    )
    assert chosen.labels is not None
    for name, label in zip(chosen.names, chosen.labels, strict=True):
        assert table.integers(name, ("partition", "male")) == [0, label]


# ----------------------------------------------------------------------------
# FFHQ: folders of a thousand in one zip.


def test_ffhqs_nested_zip(tmp_path: Path, own_cache: Path):
    names = [f"images1024x1024/{i // 2:02d}000/{i:05d}.png" for i in range(6)]
    junk = [("__MACOSX/images1024x1024/._00000.png", b"junk"), ("LICENSE.txt", b"text")]
    source = write_zip(tmp_path / "ffhq.zip", [*[(n, png(32, i)) for i, n in enumerate(names)][::-1], *junk])
    photographs = data.load_photographs(source, 16)
    assert [(file.name, file.why) for file in photographs.left_out] == [
        (junk[0][0], "a note of macOS"),
        ("LICENSE.txt", "no picture of a format that is read (.txt)"),
    ]
    assert (photographs.pixels == np.stack([drawn(i) for i in range(6)])).all()


# ----------------------------------------------------------------------------
# LSUN: an lmdb.


def write_lmdb(folder: Path, entries: dict[bytes, bytes]) -> Path:
    with lmdb.open(str(folder), map_size=2**24) as database, database.begin(write=True) as transaction:
        for key, value in entries.items():
            transaction.put(key, value)
    return folder


def webp(index: int) -> bytes:
    """As LSUN keeps its pictures, but without loss."""
    buffer = io.BytesIO()
    procedural.draw(index, 32).save(buffer, "WEBP", lossless=True)
    return buffer.getvalue()


def test_an_lsun_lmdb_becomes_an_archive(tmp_path: Path, own_cache: Path):
    keys = [b"%040x" % (7 * i) for i in range(5)]
    entries = {key: webp(i) for i, key in enumerate(keys)}
    source = write_lmdb(tmp_path / "bedroom_train_lmdb", {**entries, b"\xff\x00odd": b"damaged"})
    assert bytes_of(source)[keys[3].decode()] == entries[keys[3]]
    manifest = prepare.prepare([source], tmp_path / "out.zip", SMALL)
    assert (manifest["count"], len(manifest["skipped"])) == (5, 1)
    photographs = data.load_photographs(tmp_path / "out.zip", 16)
    assert (photographs.pixels == np.stack([drawn(i) for i in range(5)])).all()
    assert (data.load_photographs(source, 16).pixels == photographs.pixels).all()


def test_an_lmdbs_fingerprint_knows_its_contents(tmp_path: Path):
    source = write_lmdb(tmp_path / "x_lmdb", {b"a": webp(0), b"b": webp(1)})
    first = open_pictures(source).fingerprint
    assert open_pictures(source).fingerprint == first
    write_lmdb(source, {b"b": webp(2)})
    assert open_pictures(source).fingerprint != first


def test_lmdbs_that_cannot_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    folder = tmp_path / "x_lmdb"
    folder.mkdir()
    (folder / "data.mdb").write_bytes(b"no database")
    with pytest.raises(PgsrError, match="is damaged, or not an lmdb"):
        open_pictures(folder)
    packed = write_zip(tmp_path / "x_lmdb.zip", [("x_lmdb/data.mdb", b"")])
    with pytest.raises(PgsrError, match="holds an lmdb: unzip it"):
        open_pictures(packed)
    monkeypatch.setitem(sys.modules, "lmdb", None)
    with pytest.raises(PgsrError, match=r"pip install 'pgsr\[lmdb\]'"):
        open_pictures(folder)


@pytest.mark.parametrize("damage", ["length", "page", "cut", "meta"])
def test_a_damaged_lmdb_is_a_line_and_not_a_signal(damage: str, tmp_path: Path):
    """lmdb follows what stands in its file: a wrong length leads beyond the end of what is mapped."""
    keys = [b"%040d" % i for i in range(30)]
    source = write_lmdb(tmp_path / "x_lmdb", {key: png(32, i) for i, key in enumerate(keys)})
    data = bytearray((source / "data.mdb").read_bytes())
    if damage == "length":  # of a value: in 16 bits low, 16 high, before flags, the key's length, the key
        at = data.index(keys[17]) - 8
        data[at + 2 : at + 4] = b"\xff\x7f"
    elif damage == "page":
        data[8 * 4096 : 9 * 4096] = bytes(range(256)) * 16
    elif damage == "cut":
        del data[-4096:]
    else:  # the pages' size, in both pages that tell it
        data[40:44] = data[4096 + 40 : 4096 + 44] = bytes(4)
    (source / "data.mdb").write_bytes(data)
    with pytest.raises(PgsrError, match=r"is damaged|is cut short"):
        open_pictures(source)


# ----------------------------------------------------------------------------
# WebDataset's tar shards.


def write_tar(path: Path, members: list[tuple[str, bytes]]) -> Path:
    path.parent.mkdir(exist_ok=True, parents=True)
    with tarfile.open(path, "w") as archive:
        for name, content in members:
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return path


def test_shards_in_webdatasets_form(tmp_path: Path, own_cache: Path):
    """Samples in the order of shards and of members, labels from .cls, other members passed over."""
    order = [4, 0, 3, 1, 2]
    for shard, indices in enumerate((order[:3], order[3:])):
        members = []
        for i in indices:
            parts = {"jpg.png": png(32, i), "cls": b"%d" % (i % 3), "json": b"{}"}
            members += [(f"train/n{i}.{suffix}", content) for suffix, content in parts.items()]
        write_tar(tmp_path / "set" / f"set-{shard:06d}.tar", members)
    photographs = data.load_photographs(tmp_path / "set", 16)
    assert (photographs.pixels == np.stack([drawn(i) for i in order])).all()
    assert photographs.labels is not None
    assert photographs.labels.tolist() == [i % 3 for i in order]
    assert photographs.label_names == ("0", "1", "2")
    one = data.load_photographs(tmp_path / "set" / "set-000000.tar", 16)
    assert (one.pixels == photographs.pixels[:3]).all()
    manifest = prepare.prepare([tmp_path / "set"], tmp_path / "out.zip", SMALL)
    assert manifest["labels"] == ["0", "1", "2"]
    assert data.load_photographs(tmp_path / "out.zip", 16).labels.tolist() == photographs.labels.tolist()


def test_a_tar_of_pictures_alone_has_no_labels(tmp_path: Path, own_cache: Path):
    source = write_tar(tmp_path / "x.tar", [(f"{i}.png", png(32, i)) for i in range(2)])
    assert data.load_photographs(source, 16).labels is None
    part = write_tar(tmp_path / "y.tar", [("0.png", png()), ("1.png", png()), ("1.cls", b"0")])
    assert open_pictures(part).labels is None


def test_pgsr_data_writes_shards_that_training_reads(tmp_path: Path, command, own_cache: Path):
    """The same pixels and labels as the zip, and the same bytes again."""
    source = write_celeba(tmp_path / "celeba")
    arguments = (source, "--label", "Male", "--sizes", "16,8")
    assert command(prepare.main, *arguments, "--out", tmp_path / "out.zip").exit_code == 0
    made = []
    for name in ("a", "b"):
        result = command(prepare.main, *arguments, "--out", tmp_path / name, "--shard", 3, "--json")
        assert result.exit_code == 0, result.output
        made.append({p.name: p.read_bytes() for p in (tmp_path / name).iterdir()})
    assert made[0] == made[1]
    assert sorted(made[0]) == ["000000.tar", "000001.tar", "000002.tar", "manifest.json"]
    with tarfile.open(tmp_path / "a" / "000001.tar") as archive:
        assert archive.getnames()[:3] == ["000003.16.png", "000003.8.png", "000003.cls"]
    for size in (16, 8):
        shards = data.load_photographs(tmp_path / "a", size)
        packed = data.load_photographs(tmp_path / "out.zip", size)
        assert (shards.pixels == packed.pixels).all()
        assert shards.labels is not None
        assert packed.labels is not None
        assert shards.labels.tolist() == packed.labels.tolist()
        assert shards.label_names == packed.label_names == ("not Male", "Male")
    result = command(prepare.main, *arguments, "--out", tmp_path / "a", "--shard", 3)
    assert result.exit_code == 1
    assert "is there already" in result.stderr
    assert {p.name: p.read_bytes() for p in (tmp_path / "a").iterdir()} == made[0]


def test_shards_that_cannot_be_written_leave_nothing(tmp_path: Path):
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.png").write_bytes(b"damaged")
    with pytest.raises(PgsrError, match="not one usable picture"):
        prepare.prepare([tmp_path / "in"], tmp_path / "out", SMALL, shard=2)
    assert [p.name for p in tmp_path.iterdir()] == ["in"]


def test_shards_that_cannot_be_read(tmp_path: Path):
    whole = write_tar(tmp_path / "a.tar", [("a.png", png(32)), ("b.png", png(32, 1))]).read_bytes()
    (tmp_path / "cut.tar").write_bytes(whole[:1500])
    with pytest.raises(PgsrError, match=r"is cut short|is damaged"):
        open_pictures(tmp_path / "cut.tar")
    for name in ("packed.tar", "packed.tar.gz"):
        (tmp_path / name).write_bytes(gzip.compress(whole))
        with pytest.raises(PgsrError, match=r"is compressed, so .*: gunzip it first"):
            open_pictures(tmp_path / name)
    bad = write_tar(tmp_path / "bad.tar", [("a.png", png(32)), ("a.cls", b"cat")])
    with pytest.raises(PgsrError, match=r"a.cls is not the number of a class"):
        open_pictures(bad)


def test_labels_of_damaged_pictures_in_shards(tmp_path: Path, own_cache: Path):
    """Each picture keeps its own."""
    members = [(f"{i}.png", png(32, i) if i != 1 else b"damaged") for i in range(3)]
    source = write_tar(tmp_path / "x.tar", [*members, *[(f"{i}.cls", b"%d" % i) for i in range(3)]])
    assert data.load_photographs(source, 16).labels.tolist() == [0, 2]
    prepare.prepare([source], tmp_path / "out.zip", SMALL)
    assert data.load_photographs(tmp_path / "out.zip", 16).labels.tolist() == [0, 2]


# ----------------------------------------------------------------------------
# Damage up to a limit.


def damaged_set(kind: str, folder: Path) -> Path:
    """Six pictures of which two cannot be read, one of them by a checksum or its bits alone."""
    files = [png(32, i) for i in range(6)]
    files[1] = b"no picture"
    files[4] = files[4][:200]
    if kind == "lmdb":
        return write_lmdb(folder / "x_lmdb", {b"%d" % i: file for i, file in enumerate(files)})
    if kind == "shards":
        return write_tar(folder / "x.tar", [(f"{i}.png", file) for i, file in enumerate(files)])
    if kind == "zip":
        files[4] = png(32, 4)
        path = write_zip(folder / "x.zip", [(f"{i}.png", file) for i, file in enumerate(files)])
        at = path.read_bytes().index(files[4]) + 100
        path.write_bytes(flipped(path.read_bytes(), at))
        return path
    (folder / "x").mkdir()
    for i, file in enumerate(files):
        (folder / "x" / f"{i}.png").write_bytes(file)
    return folder / "x"


@pytest.mark.parametrize("kind", ["folder", "zip", "shards", "lmdb"])
def test_damage_is_named_counted_and_limited(kind: str, tmp_path: Path, command, own_cache: Path):
    source = damaged_set(kind, tmp_path)
    arguments = (source, "--out", tmp_path / "out.zip", "--sizes", 16)
    result = command(prepare.main, *arguments, "--max-damaged", 2, "--json")
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["skipped"] == 2
    assert result.stderr.count("cannot be read") == 2
    (tmp_path / "out.zip").unlink()
    result = command(prepare.main, *arguments, "--max-damaged", 1)
    assert result.exit_code == 1
    assert "error: more than 1 pictures are damaged, the last of them" in result.stderr
    assert not (tmp_path / "out.zip").exists()
    assert len(data.load_photographs(source, 16)) == 4


def test_training_gives_up_a_set_that_is_mostly_damaged(tmp_path: Path, own_cache: Path):
    members = [(f"{i:04d}.png", b"damaged") for i in range(150)]
    source = write_zip(tmp_path / "x.zip", [*members, ("a.png", png()), ("b.png", png(32, 1))])
    with pytest.raises(PgsrError, match=r"more than 100 pictures are damaged, the last of them 0100.png"):
        data.load_photographs(source, 16)
    assert not list(own_cache.rglob("*.npy"))


def test_small_pictures_are_not_damaged():
    picture, why = data.problem(png(8), 16)
    assert picture is None
    assert not why.startswith(data.UNREAD)
    damage = Damage(0)
    with pytest.raises(PgsrError):
        damage.count("a.png")


# ----------------------------------------------------------------------------
# Large archives.


def large_zip(path: Path, count: int) -> Path:
    """So many small members, a thousand a folder as in FFHQ."""
    file = png(16)
    with zipfile.ZipFile(path, "w") as archive:
        for i in range(count):
            archive.writestr(zipfile.ZipInfo(f"{i // 1000:05d}/{i:05d}.png"), file)
    return path


def test_a_zip_is_listed_and_not_loaded(tmp_path: Path):
    """Memory is of the names; the bytes of the members stay where they are."""
    source = large_zip(tmp_path / "x.zip", 5_000)
    open_pictures(source)  # what is imported and cached is not counted
    tracemalloc.start()
    try:
        pictures = open_pictures(source)
        with reading(pictures) as read:
            assert read(pictures.names[4_999]) == png(16)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert len(pictures) == 5_000
    assert peak < 1_500 * len(pictures)  # zipfile keeps some hundred bytes of each member


@pytest.mark.slow
def test_a_hundred_thousand_members_open_in_two_seconds(tmp_path: Path):
    source = large_zip(tmp_path / "x.zip", 100_000)
    began = time.process_time()
    pictures = open_pictures(source)
    seconds = time.process_time() - began
    print(f"{len(pictures)} members of {source.stat().st_size / 2**20:.0f} MiB opened in {seconds:.2f} s")
    assert seconds < 2
