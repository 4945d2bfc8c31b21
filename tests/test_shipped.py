"""The bundle that comes with the package: whole, licensed, and a model of faces.

The comparison with photographs runs where ../shared/data has them.
"""

from __future__ import annotations

import io
import zipfile
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from pgsr import bundle
from pgsr.runtime import Synthesizer

PHOTOGRAPHS = Path(__file__).resolve().parents[2] / "shared" / "data" / "faces64.zip"


@pytest.fixture(scope="module")
def faces() -> NDArray[np.uint8]:
    """The first 128 faces of seed 0: [128, 256, 256, 3]."""
    with Synthesizer(device="cpu") as synthesizer:
        return synthesizer.images(seed=0, count=128)


def test_every_graph_is_what_the_manifest_says() -> None:
    shipped = bundle.read(bundle.shipped())
    assert {(g.name, g.precision) for g in shipped.graphs} == {
        (name, precision) for name in bundle.GRAPHS for precision in ("fp32", "fp16")
    }
    for graph in shipped.graphs:
        shipped.path(graph)  # checks the hash
        assert graph.parity["psnr_db"] >= {"fp32": 60, "fp16": 45}[graph.precision]


def test_provenance_and_licence_are_told() -> None:
    shipped = bundle.read(bundle.shipped())
    assert "non-commercial" in shipped.licence
    for part in ("generator", "upscaler"):
        made = shipped.provenance[part]
        assert made["recipe"]["name"] in ("faces-64", "upscale-4x")
        assert len(made["data"]["fingerprint"]) == 64
        assert made["images_shown"] > 10_000


def test_sizes(faces: NDArray[np.uint8]) -> None:
    assert faces.shape == (128, 256, 256, 3)
    assert faces.dtype == np.uint8


def test_half_precision_shows_the_same_faces(faces: NDArray[np.uint8]) -> None:
    with Synthesizer(device="cpu", precision="fp16") as synthesizer:
        half = synthesizer.images(seed=0, count=8)
    mse = np.mean((half.astype(float) - faces[:8]) ** 2)
    assert 10 * np.log10(255**2 / mse) >= 45


def reduced(pictures: NDArray[np.uint8], side: int = 32) -> NDArray[np.float64]:
    """Box reduction: [N, S, S, 3] -> [N, side, side, 3]."""
    n, s = len(pictures), pictures.shape[1] // side
    return pictures.reshape(n, side, s, side, s, 3).mean(axis=(2, 4))


@pytest.mark.skipif(not PHOTOGRAPHS.is_file(), reason="no photographs in ../shared/data")
def test_faces_are_distributed_like_photographs(faces: NDArray[np.uint8]) -> None:
    """The mean face, and how much each pixel varies: a collapsed or broken model fails both."""
    with zipfile.ZipFile(PHOTOGRAPHS) as archive:
        names = sorted(archive.namelist())[:1000]
        real = np.stack([np.asarray(Image.open(io.BytesIO(archive.read(n)))) for n in names])
    a, b = reduced(faces), reduced(real)
    correlation = np.corrcoef(a.mean(axis=0).ravel(), b.mean(axis=0).ravel())[0, 1]
    assert correlation > 0.95
    spread = a.std(axis=0).mean() / b.std(axis=0).mean()
    assert 0.7 < spread < 1.3
