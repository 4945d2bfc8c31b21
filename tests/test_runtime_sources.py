"""--seeds, --from-latents, --save-latents and --grid: which faces, and the same ones as elsewhere."""

from __future__ import annotations

import io
import json
import os
import struct
import time
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from generating import command, pixels, refused_in, result_of
from PIL import Image

import bundles as tiny
from pgsr import draws
from pgsr.errors import PgsrError
from pgsr.runtime import Synthesizer
from pgsr.runtime.generate import latents as sources
from pgsr.runtime.generate.claim import claim, manifest
from pgsr.runtime.generate.job import Job
from pgsr.runtime.generate.latents import Seeds, Stored, Window
from pgsr.runtime.generate.write import generate, missing, survey


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.add_generator(tiny.write_bundle(tmp_path_factory.mktemp("model")))


@pytest.fixture(scope="module")
def synthesizer(model: Path) -> Synthesizer:
    return Synthesizer(model, device="cpu", batch=4, threads=1)


def faces(folder: Path) -> dict[str, bytes]:
    return {path.name: pixels(path).tobytes() for path in folder.glob("0*.png")}


# ----------------------------------------------------------------------------
# Sources.


@pytest.mark.parametrize(
    ("text", "numbers"),
    [
        ("7", [7]),
        ("0-3,200", [0, 1, 2, 3, 200]),
        ("200, 0-1 ,5-5", [200, 0, 1, 5]),
        (f"{2**64 - 1}", [2**64 - 1]),
    ],
)
def test_seeds_are_read(text: str, numbers: list[int]) -> None:
    source = Seeds(text)
    assert [source.number(i) for i in range(len(source))] == numbers
    expected = [draws.latents(n, [0], 5)[0] for n in numbers]
    assert np.array_equal(source.latents(list(range(len(source))), 5), expected)


def test_many_seeds_take_no_memory() -> None:
    source = Seeds(f"5,10-{2**63}")
    assert source.number(2**62) == 10 + 2**62 - 1


@pytest.mark.parametrize(
    "text",
    [
        *("", ",", "1,", "a", "-1", "3-1", "1-2-3", "1.5", f"{2**64}", f"0-{2**64}"),
        *("9" * 5000, f"0-{'9' * 5000}", "\u0663", "1\u00b2"),  # digits of other scripts
    ],
)
def test_texts_that_are_no_seeds(text: str) -> None:
    with pytest.raises(PgsrError, match="--seeds"):
        Seeds(text)


@pytest.mark.parametrize("text", [f"0-{2**64 - 1}", f"{2**63}-{2**64 - 1},0-{2**63 - 1}"])
def test_more_seeds_than_can_be_counted(text: str) -> None:
    with pytest.raises(PgsrError, match="names more than 9223372036854775807 seeds"):
        Seeds(text)
    assert len(Seeds(f"0-{2**63 - 2}")) == 2**63 - 1


@pytest.mark.parametrize("source", [Window(3, 10, 5), Seeds("7,2-4,20"), Window(0, 2**64 - 2, 2)])
def test_numbers_and_positions(source: Window | Seeds) -> None:
    numbers = [source.number(position) for position in range(len(source))]
    assert [source.position(number) for number in numbers] == list(range(len(source)))
    assert source.last == max(numbers)
    assert source.position(min(numbers) - 1) is None
    assert source.position(source.last + 1) is None
    assert source.position(6) is None


@pytest.mark.parametrize("text", ["3,3", "0-9,5", "5-7,0-5"])
def test_seeds_named_twice(text: str) -> None:
    with pytest.raises(PgsrError, match="twice"):
        Seeds(text)


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        (np.zeros(8), "a row for each face"),
        (np.zeros((0, 8)), "a row for each face"),
        (np.zeros((2, 8), dtype=int), "a row for each face"),
    ],
)
def test_arrays_that_are_no_latents(rows: np.ndarray, words: str, tmp_path: Path) -> None:
    np.save(tmp_path / "z.npy", rows)
    with pytest.raises(PgsrError, match=words):
        Stored(tmp_path / "z.npy")


def test_files_that_are_not_there(tmp_path: Path) -> None:
    with pytest.raises(PgsrError, match=r"cannot read .*absent\.npy: No such file"):
        Stored(tmp_path / "absent.npy")


def with_header(text: str, data: bytes = bytes(64), version: int = 1) -> bytes:
    """A .npy file with this header (numpy's NEP 1)."""
    header = text.encode("latin1") + b"\n"
    size = struct.pack("<H" if version == 1 else "<I", len(header))
    return b"\x93NUMPY" + bytes([version, 0]) + size + header + data


def header(shape: str, kind: str = "'<f4'", order: str = "False") -> str:
    return f"{{'descr': {kind}, 'fortran_order': {order}, 'shape': {shape}, }}"


def archive() -> bytes:
    buffer = io.BytesIO()
    np.savez(buffer, latents=np.zeros((2, 8), np.float32))
    return buffer.getvalue()


NOT_LATENTS = {
    "an archive of arrays": archive(),
    "the beginning of a zip": b"PK\3\4" + bytes(100),
    "nothing": b"",
    "a pickle": b"\x80\x04N.",
    "more rows than an address": with_header(header(f"({2**62}, 8)")),
    "more rows than the file": with_header(header("(200, 8)")),
    "a negative count": with_header(header("(-5, 8)")),
    "a count with a fraction": with_header(header("(2.0, 8)")),
    "no shape": with_header(header("()")),
    "no rows": with_header(header("(0, 8)")),
    "no columns": with_header(header("(5, 0)")),
    "whole numbers": with_header(header("(2, 8)", "'<i4'")),
    "records": with_header(header("(2, 8)", "[('a','<f4')]"), bytes(640)),
    "Python's objects": with_header(header("(2,)", "'|O'")),
    "the mark alone": b"\x93NUMPY\x01",
    "brackets": with_header("(" * 9000),
    "brackets in braces": with_header("{" + "[" * 5000),
    "half a header": with_header('{"descr": '),
    "half a text": with_header("'''abc"),
    "an indented header": with_header("  if x:\n y"),
    "a call": with_header("__import__('os').getpid()"),
    "version 9": with_header(header("(2, 8)"), version=9),
    "a header of 4 GB": b"\x93NUMPY\2\0" + struct.pack("<I", 2**32 - 1) + b"{}",
    "a header of 60 kB": with_header(header("(2, 8)") + " " * 60_000),
}


@pytest.mark.parametrize("what", NOT_LATENTS)
def test_what_is_no_file_of_latents(what: str, tmp_path: Path) -> None:
    path = tmp_path / "z.npy"
    path.write_bytes(NOT_LATENTS[what])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(PgsrError, match=r"z\.npy (cannot be read as a \.npy file|holds)"):
            Stored(path)


def test_pipes_and_devices_are_not_read(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.npy")
    for path in (tmp_path / "pipe.npy", Path("/dev/zero")):
        with pytest.raises(PgsrError, match="is a pipe or a device: save what comes out of it as a file"):
            Stored(path)
    with pytest.raises(PgsrError, match="is a folder"):
        Stored(tmp_path)


@pytest.mark.parametrize("kind", ["<f2", "<f4", ">f4", "<f8", "<f16"])
@pytest.mark.parametrize("order", ["C", "F"])
def test_latents_of_every_kind_of_number(kind: str, order: Any, tmp_path: Path) -> None:
    rows = draws.latents(0, range(5), 8).astype(np.float16)
    np.save(tmp_path / "z.npy", np.asarray(rows, dtype=kind, order=order))
    source = Stored(tmp_path / "z.npy")
    source.check(8)
    found = source.latents([3, 1], 8)
    assert found.dtype == np.float32
    assert np.array_equal(found, rows[[3, 1]].astype(np.float32))


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 1e300, -10_001.0])
def test_stored_latents_must_fit_and_be_finite(value: float, tmp_path: Path) -> None:
    rows = np.ones((3, 8))
    rows[2, 1] = value
    np.save(tmp_path / "z.npy", rows)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(PgsrError, match="numbers in row 2 that are not finite or beyond 10000"):
            Stored(tmp_path / "z.npy").check(8)
    with pytest.raises(PgsrError, match="of 8 numbers; this model takes 5"):
        Stored(tmp_path / "z.npy").check(5)


def test_every_row_is_looked_at(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = np.ones((1000, 8), np.float32)
    monkeypatch.setattr(sources, "ROWS_AT_ONCE", 7 * 8 * 4)
    for row in (0, 6, 7, 999):
        wrong = rows.copy()
        wrong[row, 7] = np.nan
        np.save(tmp_path / "z.npy", wrong)
        with pytest.raises(PgsrError, match=f"in row {row} "):
            Stored(tmp_path / "z.npy").check(8)


@pytest.mark.parametrize(
    "mode", [["--out", "f"], ["--out", "f", "--dry-run"], ["grid", "2x2", "p.png", "--dry-run"]]
)
def test_nothing_is_begun_with_latents_of_another_size(mode: list[str], model: Path, tmp_path: Path) -> None:
    np.save(tmp_path / "z.npy", np.ones((3, 5), np.float32))
    (tmp_path / "work").mkdir()
    options = ["--model", str(model), "--from-latents", str(tmp_path / "z.npy")]
    refused_in(tmp_path / "work", [*mode, *options], "latents of 5 numbers; this model takes 8")


# ----------------------------------------------------------------------------
# Folders.


def test_seeds_are_the_first_faces_of_each(synthesizer: Synthesizer, tmp_path: Path) -> None:
    job = Job(tmp_path, source=Seeds("3-5,40"))
    assert generate(synthesizer, job).made == 4
    for seed in (3, 4, 5, 40):
        expected = synthesizer.images(seed=seed, count=1)[0]
        assert np.array_equal(pixels(tmp_path / f"{seed:06d}.png"), expected)
        with Image.open(tmp_path / f"{seed:06d}.png") as picture:
            picture.load()
            assert (picture.text["pgsr:seed"], picture.text["pgsr:index"]) == (str(seed), "0")  # type: ignore[attr-defined]
    (tmp_path / "000005.png").unlink()
    assert list(missing(job, tiny.SIZE)) == [2]
    assert generate(synthesizer, Job(tmp_path, source=Seeds("0-7,40"))).made == 6
    with pytest.raises(PgsrError, match="name another --out"):
        generate(synthesizer, Job(tmp_path, count=3))


def test_a_window_is_the_job_itself(tmp_path: Path) -> None:
    job = Job(tmp_path, count=5, start=9, seed=2)
    assert job.faces == Window(2, 9, 5)
    assert job.path(1).name == "000010.png"


@pytest.mark.parametrize("truncation", [1.0, 0.6])
def test_saved_latents_give_the_same_faces(model: Path, truncation: float, tmp_path: Path) -> None:
    """Also those made with truncation, which the saved ones are behind."""
    count = 70  # more than are written at once
    options = ("--model", model, "--batch", 8)
    first = (*options, "--out", tmp_path / "a", "--count", count, "--start", 3, "--save-latents")
    told = result_of(*first, "--truncation", truncation)
    assert told["latents"] == str(tmp_path / "a" / "latents.npy")
    saved = np.load(tmp_path / "a" / "latents.npy")
    assert (saved.shape, saved.dtype) == ((count, tiny.LATENT), np.float32)
    if truncation == 1.0:
        assert np.array_equal(saved, draws.latents(0, range(3, count + 3), tiny.LATENT))
    result_of(*options, "--out", tmp_path / "b", "--from-latents", tmp_path / "a" / "latents.npy")
    a, b = faces(tmp_path / "a"), faces(tmp_path / "b")
    assert len(b) == count
    assert list(a.values()) == [b[f"{int(name[:6]) - 3:06d}.png"] for name in a]


def test_other_latents_in_the_folder(synthesizer: Synthesizer, tmp_path: Path) -> None:
    for name in ("a", "b"):
        np.save(tmp_path / f"{name}.npy", draws.latents(ord(name), range(2), tiny.LATENT))
    generate(synthesizer, Job(tmp_path / "f", source=Stored(tmp_path / "a.npy")))
    with pytest.raises(PgsrError, match="latents"):
        generate(synthesizer, Job(tmp_path / "f", source=Stored(tmp_path / "b.npy")))


# ----------------------------------------------------------------------------
# Digits of names: as many as the largest number has, so that names sort; folders go on as they began.


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.glob("*.png"))


def test_names_sort_beyond_a_million(synthesizer: Synthesizer, tmp_path: Path) -> None:
    job = Job(tmp_path, start=999_998, count=4)
    generate(synthesizer, job)
    assert names(tmp_path) == [f"{i:07d}.png" for i in range(999_998, 1_000_002)]
    assert generate(synthesizer, job).made == 0
    assert survey(synthesizer, job) == 0
    expected = synthesizer.images(count=4, start=999_998)
    assert all(
        np.array_equal(pixels(tmp_path / n), e) for n, e in zip(names(tmp_path), expected, strict=True)
    )


def test_shards_agree_about_digits(synthesizer: Synthesizer, tmp_path: Path) -> None:
    for k in range(3):
        generate(synthesizer, Job(tmp_path, start=999_997, count=4, shard=(k, 3)))
    assert names(tmp_path) == [f"{i:07d}.png" for i in range(999_997, 1_000_001)]


def test_seeds_sort_too(synthesizer: Synthesizer, tmp_path: Path) -> None:
    generate(synthesizer, Job(tmp_path, source=Seeds(f"5,{2**64 - 1}")))
    assert names(tmp_path) == ["00000000000000000005.png", f"{2**64 - 1}.png"]


@pytest.mark.parametrize("with_digits", [True, False])
def test_a_folder_goes_on_as_it_began(synthesizer: Synthesizer, with_digits: bool, tmp_path: Path) -> None:
    """Whatever the count is now; folders from before names had digits by the count have six."""
    generate(synthesizer, Job(tmp_path, start=999_997, count=2))
    if not with_digits:
        manifest = tmp_path / "manifest.json"
        older = json.loads(manifest.read_text())
        del older["digits"]
        manifest.write_text(json.dumps(older))
    more = Job(tmp_path, start=999_997, count=5)
    assert survey(synthesizer, more) == 3
    assert generate(synthesizer, more).made == 3
    assert set(names(tmp_path)) == {f"{i:06d}.png" for i in range(999_997, 1_000_002)}
    fewer = Job(tmp_path / "long", start=10**6, count=2)
    generate(synthesizer, fewer)
    generate(synthesizer, Job(tmp_path / "long", start=0, count=2))
    assert names(tmp_path / "long") == ["0000000.png", "0000001.png", "1000000.png", "1000001.png"]


def test_digits_that_are_none(synthesizer: Synthesizer, tmp_path: Path) -> None:
    generate(synthesizer, Job(tmp_path, count=1))
    manifest = tmp_path / "manifest.json"
    for value in (5, 21, "6", -1, 10**9):
        manifest.write_text(json.dumps({**json.loads(manifest.read_text()), "digits": value}))
        with pytest.raises(PgsrError, match=r"digits is .*, not a whole number from 6 to 20"):
            generate(synthesizer, Job(tmp_path, count=1))


@pytest.mark.parametrize("suffix", [".tar", ".zip"])
def test_an_archive_goes_on_as_it_began(
    synthesizer: Synthesizer, suffix: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / f"f{suffix}"
    older = Job(out, start=999_997, count=5, digits=6)  # as names were once
    generate(synthesizer, older)
    whole = out.read_bytes()
    assert b"999999.png" in whole
    assert survey(synthesizer, Job(out, start=999_997, count=5)) == 0
    assert generate(synthesizer, Job(out, start=999_997, count=5)).made == 0
    out.unlink()
    (tmp_path / f".partial.f{suffix}").write_bytes(whole[: whole.index(b"1000000.png")])
    assert generate(synthesizer, Job(out, start=999_997, count=5)).made == 2
    assert out.read_bytes() == whole
    generate(synthesizer, Job(tmp_path / f"new{suffix}", start=999_997, count=5))
    assert b"0999999.png" in (tmp_path / f"new{suffix}").read_bytes()


def test_two_windows_that_begin_at_once_agree(synthesizer: Synthesizer, tmp_path: Path) -> None:
    """Whoever writes the manifest second takes the first one's digits."""
    first, second = (manifest(synthesizer, Job(tmp_path, start=start, count=1)) for start in (0, 10**6))
    tmp_path.mkdir(exist_ok=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os.path, "lexists", lambda path: False)  # neither sees the other's
        assert claim(tmp_path, first) == 6
        patch.undo()
        before = (tmp_path / "manifest.json").read_bytes()
        looks = iter([False, True])
        patch.setattr(os.path, "lexists", lambda path: next(looks))
        assert claim(tmp_path, second) == 6
    assert (tmp_path / "manifest.json").read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["manifest.json"]


def test_a_dry_run_takes_as_long_as_there_are_files(model: Path, tmp_path: Path) -> None:
    options = ("--model", model, "--out", tmp_path / "f")
    result_of(*options, "--count", 3)
    began = time.process_time()
    for count in (10**9, 2**63 - 1):
        told = result_of(*options, "--count", count, "--dry-run")
        assert (told["missing"], told["present"]) == (count - 3, 3)
    told = result_of(*options, "--count", 10**9, "--dry-run", "--shard", "1/2")
    assert (told["missing"], told["present"]) == (10**9 // 2 - 1, 1)
    assert result_of("--model", model, "--out", tmp_path / "g", "--count", 10**9, "--dry-run")["present"] == 0
    assert time.process_time() - began < 10


# ----------------------------------------------------------------------------
# Grids, and the command's refusals.


def test_grid(model: Path, synthesizer: Synthesizer, tmp_path: Path) -> None:
    path = tmp_path / "deep" / "page.png"
    told = result_of("--model", model, "--grid", "3x2", path, "--seed", 4, "--start", 1)
    assert told["count"] == 6
    page = pixels(path)
    step = tiny.SIZE + 2
    assert page.shape == (2 * step + 2, 3 * step + 2, 3)
    for i, face in enumerate(synthesizer.images(seed=4, count=6, start=1)):
        top, left = 2 + step * (i // 3), 2 + step * (i % 3)
        assert np.array_equal(page[top : top + tiny.SIZE, left : left + tiny.SIZE], face)
    assert [p.name for p in path.parent.iterdir()] == ["page.png"]


def test_grid_of_seeds_shows_no_more_than_fit(model: Path, tmp_path: Path) -> None:
    options = ("--model", model, "--grid", "2x2", tmp_path / "page.png")
    assert result_of(*options, "--seeds", "0-99")["count"] == 4
    assert result_of(*options, "--seeds", "0-2")["count"] == 3
    assert command(*options, "--dry-run").stdout.startswith(f"{tmp_path / 'page.png'}: would show 4 faces")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--seeds", "x"], "--seeds"),
        (["--seeds", "1-3", "--seed", "1"], "--seed is not for --seeds"),
        (["--seeds", "1-3", "--count", "2"], "--count is not for --seeds"),
        (["--seeds", "1-3", "--from-latents", "z.npy"], "--from-latents is not for --seeds"),
        (["--from-latents", "z.npy"], "cannot read z.npy"),
        (["--from-latents", "z.npy", "--start", "1"], "--start is not for --from-latents"),
        (["--grid", "8", "page.png"], "COLUMNSxROWS"),
        (["--grid", "0x8", "page.png"], "--grid"),
        (["--grid", "100x100", "page.png"], "--grid"),
        (["--grid", "2x2", "page.jpg"], "--grid"),
        (["--grid", "2x2", "page.png", "--count", "4"], "--count is not for a --grid"),
        (["--grid", "2x2", "page.png", "--out", "f"], "--out is not for a --grid"),
        (["--grid", "2x2", "page.png", "--seed", "-1"], "--seed"),
        (["--video", "f.webp", "--seeds", "1"], "--seeds is not for a --video"),
    ],
)
def test_one_line_for_what_is_wrong(model: Path, arguments: list[str], words: str, tmp_path: Path) -> None:
    refused_in(tmp_path, ["--model", str(model), *arguments], words)
