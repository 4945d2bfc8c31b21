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
from pgsr.runtime import Synthesizer, Upscaler
from pgsr.trainer.metrics.fidelity import fidelity
from pgsr.trainer.metrics.swd import distance_between

DATA = Path(__file__).resolve().parents[2] / "shared" / "data"
PHOTOGRAPHS, LARGE = DATA / "faces64.zip", DATA / "faces256.zip"


@pytest.fixture(scope="module")
def faces() -> NDArray[np.uint8]:
    """The first 128 faces of seed 0 in all their variety: [128, 256, 256, 3]."""
    with Synthesizer(device="cpu", truncation=1.0) as synthesizer:
        return synthesizer.images(seed=0, count=128)


def test_every_graph_is_what_the_manifest_says() -> None:
    shipped = bundle.read(bundle.shipped())
    assert {(g.name, g.precision) for g in shipped.graphs} == {
        (name, precision)
        for name in ("generator", "upscaler", "chain")
        for precision in ("fp32", "fp16", "bf16", "int8")
    }
    for graph in shipped.graphs:
        shipped.path(graph)  # checks the hash
        assert graph.parity["psnr_db"] >= {"fp32": 60, "fp16": 45, "bf16": 40, "int8": 35}[graph.precision]


def test_provenance_and_licence_are_told() -> None:
    shipped = bundle.read(bundle.shipped())
    assert "non-commercial" in shipped.licence
    for part in ("generator", "upscaler"):
        made = shipped.provenance[part]
        assert made["recipe"]["name"] in ("faces-64-large", "upscale-4x-generated")
        assert len(made["data"]["fingerprint"]) == 64
        assert made["images_shown"] > 10_000


def test_sizes(faces: NDArray[np.uint8]) -> None:
    assert faces.shape == (128, 256, 256, 3)
    assert faces.dtype == np.uint8


def test_half_precision_shows_the_same_faces(faces: NDArray[np.uint8]) -> None:
    with Synthesizer(device="cpu", precision="fp16", truncation=1.0) as synthesizer:
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


def test_no_grid_of_the_low_resolution_shows(faces: NDArray[np.uint8]) -> None:
    """Neighbouring columns, and rows, differ alike wherever they lie in the upscaler's 4 x 4 blocks."""
    for axis in (1, 2):
        steps = np.abs(np.diff(faces.astype(float), axis=axis)).mean(axis=(0, 3, 3 - axis))
        by_place = [steps[i::4].mean() for i in range(4)]
        assert max(by_place) < 1.3 * min(by_place)
    blocks = faces.mean(axis=3).reshape(-1, 64, 4, 64, 4).mean(axis=(0, 1, 3))
    assert np.ptp(blocks) < 1.5  # of 255: the places themselves


@pytest.mark.skipif(not LARGE.is_file(), reason="no photographs in ../shared/data")
def test_what_the_upscaler_restores_looks_more_like_photographs() -> None:
    """Photographs reduced to 64 x 64 and enlarged again, beside Lanczos: patches' statistics are far nearer
    to photographs', while the luma's PSNR, which blur is best at, is not much below."""
    with zipfile.ZipFile(LARGE) as archive, Upscaler(device="cpu") as upscaler:
        names = sorted(archive.namelist())[-24:]  # not trained on
        real = [Image.open(io.BytesIO(archive.read(n))).convert("RGB") for n in names]
        low = [picture.resize((64, 64), Image.Resampling.LANCZOS) for picture in real]
        ours = np.stack([upscaler.upscale(np.asarray(picture)) for picture in low])
    plain = np.stack([np.asarray(picture.resize((256, 256), Image.Resampling.LANCZOS)) for picture in low])
    wanted = np.stack([np.asarray(picture) for picture in real])
    mine, lanczos = (distance_between([wanted], [made], 256, 0).average for made in (ours, plain))
    assert mine < 0.75 * lanczos
    mine, lanczos = (fidelity(made, wanted, 4).psnr_db.mean().item() for made in (ours, plain))
    assert mine > lanczos - 2
