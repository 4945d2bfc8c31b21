"""pgsr-bench neighbours: the nearest photographs, by a slow reference and with planted copies."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from vgg19 import tiny_vgg19

import bundles as tiny
from pgsr.benchmarks.cli import main
from pgsr.benchmarks.quality import neighbours
from pgsr.benchmarks.quality.activations import comparison
from pgsr.benchmarks.quality.neighbours import Settings, middle, nearest, outlined, variety
from pgsr.errors import PgsrError
from pgsr.files import sha256
from pgsr.networks.efficientnet import SHA256, load_lite0
from pgsr.networks.vgg import load_vgg19

BY_PIXELS = comparison("pixels")


def pictures(count: int, seed: int = 0, side: int = 6) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (count, side, side, 3), dtype=np.uint8)


def slow(query: np.ndarray, photographs: np.ndarray, mirror: bool) -> list[tuple[float, int, bool]]:
    """(distance, index, mirrored) of every photograph, nearest first."""
    found = []
    for i, photograph in enumerate(photographs.astype(np.float64)):
        ways = [(np.abs(photograph - query).mean(), i, False)]
        if mirror:
            ways.append((np.abs(photograph[:, ::-1] - query).mean(), i, True))
        found.append(min(ways))
    return sorted(found)


@pytest.mark.parametrize("mirror", [False, True])
@pytest.mark.parametrize("chunk", [1, 7 * 108, 2**20])
def test_nearest_by_a_slow_reference(mirror: bool, chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(neighbours, "CHUNK_BYTES", chunk)
    queries, photographs = pictures(4, 1), pictures(50, 2)
    found = nearest(BY_PIXELS, queries, photographs, 5, mirror, skip=[-1, -1, 30, 0])
    for i, query in enumerate(queries):
        expected = [e for e in slow(query, photographs, mirror) if e[1] != [-1, -1, 30, 0][i]][:5]
        np.testing.assert_allclose(found.distances[i], [e[0] for e in expected])
        assert found.indices[i].tolist() == [e[1] for e in expected]
        assert found.mirrored[i].tolist() == [e[2] for e in expected]


def test_copies_are_found_and_a_photograph_does_not_find_itself() -> None:
    photographs = pictures(40)
    queries = np.stack([photographs[13], photographs[22][:, ::-1], photographs[13]])
    found = nearest(BY_PIXELS, queries, photographs, 2, True, skip=[-1, -1, 13])
    assert found.indices[:2, 0].tolist() == [13, 22]
    assert found.distances[:2, 0].tolist() == [0, 0]
    assert found.mirrored[:2, 0].tolist() == [False, True]
    assert found.indices[2, 0] != 13
    assert found.distances[2, 0] > 0
    assert nearest(BY_PIXELS, queries, photographs, 1, False, [-1] * 3).distances[1, 0] > 0


# ----------------------------------------------------------------------------
# By a network's activations (Chen and Koltun 2017).


def slow_distances(layers: Any, queries: np.ndarray, photographs: np.ndarray) -> np.ndarray:
    """[Q, N] by one pair after the other; `layers` is of one image [1, 3, 96, 96] in [-1, 1]."""

    def found(picture: np.ndarray) -> list[np.ndarray]:
        large = np.asarray(Image.fromarray(picture).resize((96, 96), Image.Resampling.BICUBIC))
        image = torch.from_numpy(large / 127.5 - 1).permute(2, 0, 1)[None]
        with torch.no_grad():
            return [x.numpy() for x in layers(image)]

    asked, given = [found(q) for q in queries], [found(p) for p in photographs]
    scales = [np.mean([np.abs(layer).mean() for layer in column]) for column in zip(*asked, strict=True)]
    return np.array(
        [
            [sum(np.abs(x - y).mean() / s for x, y, s in zip(a, b, scales, strict=True)) for b in given]
            for a in asked
        ]
    )


def test_distances_by_lite0_against_a_slow_reference() -> None:
    queries, photographs = pictures(2, 1, side=20), pictures(3, 2, side=20)
    expected = slow_distances(load_lite0().double().pyramid, queries, photographs)
    compare = comparison("lite0")
    np.testing.assert_allclose(compare(queries)(photographs), expected, rtol=1e-4)
    assert (compare.name, compare.sha256) == ("lite0", SHA256)


def test_distances_by_vgg_are_of_five_layers(tmp_path: Path) -> None:
    file = tmp_path / "vgg19.safetensors"
    save_file(tiny_vgg19(), file)
    network = load_vgg19(file).double()
    queries, photographs = pictures(2, 1, side=20), pictures(2, 2, side=20)
    expected = slow_distances(
        lambda x: [network(x, depth) for depth in (2, 4, 6, 10, 14)], queries, photographs
    )
    compare = comparison(str(file))
    np.testing.assert_allclose(compare(queries)(photographs), expected, rtol=1e-4)
    assert (compare.name, compare.sha256) == ("vgg19", sha256(file))


def test_a_face_finds_its_copy_in_other_light_by_activations_and_not_by_pixels() -> None:
    """A copy in other light is far by pixels, where a flat picture of the same mean is near."""
    original = np.asarray(
        Image.fromarray(pictures(1, 5, side=6)[0]).resize((40, 40), Image.Resampling.BICUBIC)
    )
    copy = (original * 0.4).astype(np.uint8)
    flat = np.full_like(original, original.mean(axis=(0, 1)).astype(np.uint8))
    both = np.stack([copy, flat])
    assert comparison("pixels")(original[None])(both).argmin() == 1
    assert comparison("lite0")(original[None])(both).argmin() == 0


def test_a_network_that_is_not_there_is_named() -> None:
    with pytest.raises(PgsrError, match="no file of VGG19's weights at vgg20"):
        comparison("vgg20")


def test_crop_and_its_line() -> None:
    assert middle(64, 0.625) == slice(12, 52)
    assert middle(64, 1.0) == slice(0, 64)
    assert middle(4, 0.01) == slice(1, 3)
    marked = outlined(np.zeros((8, 8, 3), dtype=np.uint8), slice(2, 6))
    assert (marked.any(axis=-1)).sum() == 12  # around 4 x 4
    assert not marked[3:5, 3:5].any()


def test_variety() -> None:
    same = np.full((3, 2, 2, 3), 7, dtype=np.uint8)
    assert variety(same) == 0
    same[0] += 10
    assert variety(same) == pytest.approx(20 / 3)


def test_command(toy: Path, tmp_path: Path, command) -> None:
    """Its sheet shows the faces above photographs of the set; its numbers are those of the picture."""
    model = tiny.add_generator(tiny.write_bundle(tmp_path / "model"))
    out = tmp_path / "report"
    given = ("--model", model, "--data", toy, "--count", 3, "--rows", 2, "--features", "pixels")
    arguments = ("neighbours", *given, "--out", out)
    result = command(main, *arguments, "--json")
    assert result.exit_code == 0, result.output
    told = json.loads(result.stdout)
    assert told == json.loads((out / "neighbours.json").read_text())
    assert told["photographs"] == 40
    assert told["features"] == "pixels"
    assert not told["mirrored_too"]  # the tiny bundle tells of no recipe
    assert [len(face["neighbours"]) for face in told["faces"]] == [2, 2, 2]
    with Image.open(out / "neighbours.png") as sheet:
        assert sheet.size == (3 * (tiny.SIZE + 2) + 2, 3 * (tiny.SIZE + 2) + 2)
        cells = np.asarray(sheet)
    face, first = (cells[top : top + tiny.SIZE, 2 : 2 + tiny.SIZE].astype(float) for top in (2, 12))
    box = slice(*told["crop"])
    assert np.abs(face - first)[box, box].mean() == pytest.approx(told["faces"][0]["distances"][0], abs=1e-3)
    assert "median distance" in command(main, *arguments).output


@pytest.mark.parametrize("wrong", [{"rows": 0}, {"crop": 0.0}, {"crop": 1.5}, {"count": 0}, {"seed": -1}])
def test_settings_out_of_range(wrong: dict) -> None:
    with pytest.raises(PgsrError, match=f"--{next(iter(wrong))}"):
        Settings(Path("faces.zip"), **wrong)
