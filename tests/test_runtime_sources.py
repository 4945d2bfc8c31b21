"""--seeds, --from-latents, --save-latents and --grid: which faces, and the same ones as elsewhere."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from generating import command, pixels, refused_in, result_of
from PIL import Image

import bundles as tiny
from pgsr import draws
from pgsr.errors import PgsrError
from pgsr.runtime import Synthesizer
from pgsr.runtime.generate.job import Job
from pgsr.runtime.generate.latents import Seeds, Stored, Window
from pgsr.runtime.generate.write import generate, missing


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


@pytest.mark.parametrize("text", ["", ",", "1,", "a", "-1", "3-1", "1-2-3", "1.5", f"{2**64}", f"0-{2**64}"])
def test_texts_that_are_no_seeds(text: str) -> None:
    with pytest.raises(PgsrError, match="--seeds"):
        Seeds(text)


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


def test_files_that_are_no_latents(tmp_path: Path) -> None:
    (tmp_path / "z.npy").write_bytes(b"\x93NUMPY\x01")
    np.save(tmp_path / "pickle.npy", np.array([{}], dtype=object), allow_pickle=True)
    for name in ("z.npy", "pickle.npy", "absent.npy"):
        with pytest.raises(PgsrError, match="cannot be read"):
            Stored(tmp_path / name)


def test_stored_latents_must_fit_and_be_finite(tmp_path: Path) -> None:
    rows = np.ones((3, 8))
    rows[2, 1] = np.nan
    np.save(tmp_path / "z.npy", rows)
    source = Stored(tmp_path / "z.npy")
    assert source.latents([0, 1], 8).dtype == np.float32
    with pytest.raises(PgsrError, match="finite"):
        source.latents([2], 8)
    with pytest.raises(PgsrError, match="of 8 numbers; this model takes 5"):
        source.latents([0], 5)


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
        (["--from-latents", "z.npy"], "z.npy cannot be read"),
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
