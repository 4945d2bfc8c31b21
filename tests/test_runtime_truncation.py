"""--truncation: latents turned toward a typical face, the same ones in any batch."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result
from PIL import Image

import bundles as tiny
from pgsr import bundle as bundles
from pgsr import draws, truncation
from pgsr.errors import PgsrError
from pgsr.runtime import Synthesizer
from pgsr.runtime.generate.cli import main
from pgsr.runtime.generate.job import Job
from pgsr.runtime.generate.write import generate
from pgsr.sphere import toward
from pgsr.truncation import typical_direction, typicality


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.add_generator(tiny.write_bundle(tmp_path_factory.mktemp("model")))


def command(*arguments: Any) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


# ----------------------------------------------------------------------------
# Turning.


def angles(z: np.ndarray, c: np.ndarray) -> np.ndarray:
    cosine = z.astype(np.float64) @ c / np.linalg.norm(z, axis=1) / np.linalg.norm(c)
    return np.arccos(np.clip(cosine, -1, 1))


@pytest.mark.parametrize("psi", [0.0, 0.3, 0.7, 1.0])
def test_what_is_left_of_the_angle(psi: float) -> None:
    z = draws.latents(1, range(50), 64)
    c = draws.normals(2, "centre", [0], 64)[0].astype(np.float64) * 0.01  # of any length
    turned = toward(z, c, psi)
    np.testing.assert_allclose(angles(turned, c), psi * angles(z, c), atol=2e-3)
    lengths = psi * np.linalg.norm(z, axis=1) + (1 - psi) * 8
    np.testing.assert_allclose(np.linalg.norm(turned, axis=1), lengths, rtol=1e-5)
    # In the plane of both: it is z and c alone that are mixed.
    plane = np.stack([np.broadcast_to(c, z.shape), z], axis=-1)
    for row, pair in zip(turned, plane, strict=True):
        rest = row - pair @ np.linalg.lstsq(pair, row, rcond=None)[0]
        assert np.linalg.norm(rest) < 1e-4


def test_the_centre_itself_stays() -> None:
    c = np.arange(1.0, 9.0) / np.sqrt(np.mean(np.arange(1.0, 9.0) ** 2))
    np.testing.assert_allclose(toward(c[None].astype(np.float32), c, 0.4)[0], c, rtol=1e-6)


def test_a_turned_latent_does_not_depend_on_its_batch() -> None:
    z = draws.latents(0, range(33), 128)
    c = draws.normals(2, "centre", [0], 128)[0].astype(np.float64)
    whole = toward(z, c, 0.6)
    assert np.array_equal(whole, np.concatenate([toward(z[i : i + 1], c, 0.6) for i in range(33)]))


# ----------------------------------------------------------------------------
# The centre.


def test_typicality_is_the_correlation_with_the_mean() -> None:
    pictures = np.random.default_rng(0).random((20, 30)) + np.linspace(0, 2, 30)
    standard = (pictures - pictures.mean(axis=1, keepdims=True)) / pictures.std(axis=1, keepdims=True)
    mean = standard.mean(axis=0)
    expected = [np.corrcoef(picture, mean)[0, 1] for picture in pictures]
    np.testing.assert_allclose(typicality(pictures), expected)
    np.testing.assert_allclose(typicality(3 * pictures + 5), expected)


def test_centre_is_the_direction_that_makes_pictures_typical() -> None:
    """A network that draws one pattern the more clearly, the further its latent points along `known`."""
    size = 24
    known = np.eye(size)[3]
    pattern = np.random.default_rng(1).standard_normal((16, 16))
    clutter = np.random.default_rng(2).standard_normal((size, 16, 16)) * 0.5

    def draw(z: np.ndarray) -> np.ndarray:
        clear = 1 / (1 + np.exp(-2 * (z @ known)))
        grey = clear[:, None, None] * pattern + np.einsum("nl,lhw->nhw", z, clutter)
        return np.repeat(grey[:, None], 3, axis=1).astype(np.float32)

    centre = typical_direction(draw, size, batch=50)
    assert centre @ known / np.linalg.norm(centre) > 0.7


@pytest.mark.parametrize("side", [4, 8, 28, 64, 96])
def test_outlines_of_any_size(side: int) -> None:
    images = np.ones((2, 3, side, side), dtype=np.float32)
    images[1] *= -0.5
    outline = truncation._outline(images)
    assert outline.shape[0] == 2
    assert outline.shape[1] <= truncation.SIDE**2
    assert (outline[0] == 1).all()
    assert (outline[1] == -0.5).all()


# ----------------------------------------------------------------------------
# Faces.


def variety(pictures: np.ndarray) -> float:
    rows = pictures.reshape(len(pictures), -1).astype(np.float64)
    return float(np.mean([np.abs(a - b).mean() for i, a in enumerate(rows) for b in rows[:i]]))


def faces(model: Path | None, psi: float, count: int = 24, **options: int) -> np.ndarray:
    with Synthesizer(model, device="cpu", threads=1, truncation=psi, **options) as synthesizer:  # type: ignore[arg-type]
        return synthesizer.images(seed=3, count=count)


def test_variety_falls_to_one_face(model: Path) -> None:
    kept = [variety(faces(model, psi)) for psi in (1.0, 0.7, 0.3, 0.0)]
    assert kept == sorted(kept, reverse=True)
    assert kept[0] > 1.5 * kept[2]
    assert kept[3] == 0


def test_truncation_of_one_changes_no_byte(model: Path) -> None:
    with Synthesizer(model, device="cpu", threads=1) as plain:
        assert np.array_equal(faces(model, 1.0), plain.images(seed=3, count=24))


def test_batch_and_window_change_no_byte(model: Path) -> None:
    many, one = faces(model, 0.6, batch=16), faces(model, 0.6, batch=1)
    assert np.array_equal(many, one)
    with Synthesizer(model, device="cpu", threads=2, truncation=0.6) as synthesizer:
        assert np.array_equal(synthesizer.images(seed=3, count=5, start=7), many[7:12])


def test_shipped_faces_become_more_typical() -> None:
    """Against the mean of untruncated faces of another seed."""
    plain, closer = faces(None, 1.0), faces(None, 0.7)
    with Synthesizer(device="cpu") as synthesizer:
        others = synthesizer.images(seed=77, count=24)
    assert variety(closer) < 0.8 * variety(plain)
    outlines = [truncation._outline(x.transpose(0, 3, 1, 2).astype(np.float32)) for x in (plain, closer)]
    mean = truncation._outline(others.transpose(0, 3, 1, 2).astype(np.float32)).mean(axis=0)
    before, after = ([np.corrcoef(row, mean)[0, 1] for row in rows] for rows in outlines)
    assert np.median(after) > np.median(before) + 0.1
    assert np.percentile(after, 10) > np.percentile(before, 10) + 0.2  # the worst gain the most


# ----------------------------------------------------------------------------
# The command and its folder.


def test_json_and_note(model: Path, tmp_path: Path) -> None:
    options = ("--model", model, "--out", tmp_path, "--count", 2, "--truncation", 0.5, "--json")
    result = command(*options)
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["truncation"] == 0.5
    assert json.loads((tmp_path / "manifest.json").read_text())["truncation"] == 0.5
    assert b"pgsr:truncation\x000.5" in (tmp_path / "000000.png").read_bytes()


def test_folders_hold_one_truncation(model: Path, tmp_path: Path) -> None:
    with Synthesizer(model, device="cpu", truncation=0.5) as closer:
        generate(closer, Job(tmp_path, count=2))
    with Synthesizer(model, device="cpu") as plain, pytest.raises(PgsrError, match=r"truncation 0\.5, not 1"):
        generate(plain, Job(tmp_path, count=2))


def test_folders_from_before_go_on(model: Path, tmp_path: Path) -> None:
    with (
        Synthesizer(model, device="cpu") as plain,
        Synthesizer(model, device="cpu", truncation=0.5) as closer,
    ):
        generate(plain, Job(tmp_path, count=2))
        manifest = json.loads((tmp_path / "manifest.json").read_text())
        del manifest["truncation"]
        (tmp_path / "manifest.json").write_text(json.dumps(manifest))
        assert generate(plain, Job(tmp_path, count=4)).made == 2
        with pytest.raises(PgsrError, match="truncation 1"):
            generate(closer, Job(tmp_path, count=4))


# ----------------------------------------------------------------------------
# What a bundle says.


@pytest.fixture(scope="module")
def truncating(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle that truncates unless told otherwise, toward another centre than its generator's own."""
    folder = shutil.copytree(model, tmp_path_factory.mktemp("truncating") / "b")
    centre = tuple(float(number) for number in range(1, tiny.LATENT + 1))
    bundles.write(dataclasses.replace(bundles.read(folder), truncation=0.5, centre=centre))
    return folder


def test_a_bundles_truncation_is_for_those_who_say_nothing(truncating: Path, model: Path) -> None:
    latents = draws.latents(3, range(24), tiny.LATENT)
    turned = toward(latents, np.arange(1.0, tiny.LATENT + 1), 0.5)
    with Synthesizer(truncating, device="cpu", threads=1) as synthesizer:
        assert synthesizer.truncation == 0.5
        assert synthesizer.note["truncation"] == 0.5
        assert np.abs(synthesizer.images(seed=3, count=24) - tiny.expected_pixels(turned)).max() <= 0.51
    assert np.array_equal(faces(truncating, 1.0), faces(model, 1.0))
    assert not np.array_equal(faces(truncating, 0.7), faces(model, 0.7))  # the centre is the bundle's


def test_a_bundles_centre_needs_no_generator(truncating: Path, tmp_path: Path) -> None:
    folder = tiny.write_bundle(tmp_path / "chain alone")
    said = bundles.read(truncating)
    alone = dataclasses.replace(bundles.read(folder), truncation=said.truncation, centre=said.centre)
    bundles.write(alone)
    with Synthesizer(folder, device="cpu") as one, Synthesizer(truncating, device="cpu") as other:
        assert np.array_equal(one.images(seed=3, count=4), other.images(seed=3, count=4))


def test_given_latents_are_not_turned_again(truncating: Path, tmp_path: Path) -> None:
    first, again, turned = (tmp_path / name for name in ("first", "again", "turned"))
    machine = ("--model", truncating, "--device", "cpu")
    made = command(*machine, "--count", 3, "--out", first, "--save-latents")
    assert made.exit_code == 0, made.output
    stored = (*machine, "--from-latents", first / "latents.npy", "--out")
    assert command(*stored, again).exit_code == 0
    assert command(*stored, turned, "--truncation", 0.5).exit_code == 0
    faces_of = [
        [np.asarray(Image.open(f / f"00000{i}.png")) for i in range(3)] for f in (first, again, turned)
    ]
    assert np.array_equal(faces_of[0], faces_of[1])
    assert not np.array_equal(faces_of[0], faces_of[2])


def test_bundles_from_before_stay_byte_for_byte(model: Path, tmp_path: Path) -> None:
    manifest = json.loads((model / bundles.MANIFEST).read_text())
    assert not {"truncation", "centre"} & manifest.keys()
    assert bundles.read(model).truncation == 1.0


@pytest.mark.parametrize("psi", ["-0.1", "1.01", "nan"])
def test_truncation_out_of_range(model: Path, psi: str, tmp_path: Path) -> None:
    result = command("--model", model, "--out", tmp_path / "f", "--truncation", psi)
    assert result.exit_code == 1
    assert "--truncation" in result.stderr
    assert result.stderr.count("\n") == 1


def test_a_bundle_without_its_generator(tmp_path: Path) -> None:
    folder = tiny.write_bundle(tmp_path / "model")
    result = command("--model", folder, "--out", tmp_path / "f", "--truncation", 0.5)
    assert result.exit_code == 1
    assert "holds no generator graph" in result.stderr
