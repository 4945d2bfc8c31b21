"""What pages say that others build on: their programs run, and their numbers are true."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pgsr import bundle as bundles
from pgsr import draws
from pgsr.runtime import Synthesizer
from pgsr.runtime.output.archives import members

DOCS = Path(__file__).resolve().parents[1] / "docs"
BUNDLE, CARD, GENERATE = (
    (DOCS / name).read_text() for name in ("bundle.md", "shipped-model.md", "generate.md")
)


def program(page: str) -> str:
    """The one Python program of a page."""
    (code,) = re.findall(r"^```python\n(.*?)^```$", page, re.DOTALL | re.MULTILINE)
    return str(code)


@pytest.fixture(scope="module")
def page() -> dict[str, Any]:
    """What docs/bundle.md's program defines. It imports nothing of ours."""
    names: dict[str, Any] = {}
    exec(compile(program(BUNDLE), "docs/bundle.md", "exec"), names)
    assert set(re.findall(r"^import (\S+)", program(BUNDLE), re.MULTILINE)) == {"math", "struct"}
    return names


@pytest.mark.parametrize("seed", [0, 1, 2**32, 2**64 - 1])
@pytest.mark.parametrize("size", [1, 2, 5, 128, 512])
def test_a_stranger_draws_the_same_latents(page: dict[str, Any], seed: int, size: int):
    """To the bit, but for a last bit where this machine's two libraries differ in theirs."""
    indices = [0, 1, 1000, 2**63, 2**64 - 1]
    theirs = np.array([page["latent"](seed, i, size) for i in indices], dtype=np.float32)
    ours = draws.latents(seed, indices, size)
    np.testing.assert_array_max_ulp(theirs, ours, maxulp=1)
    assert (theirs == ours).mean() > 0.99


def test_a_stranger_makes_the_same_faces(page: dict[str, Any]):
    with Synthesizer(device="cpu", backend="onnxruntime", batch=2, threads=1) as synthesizer:
        size = synthesizer.bundle.latent_size
        latents = np.array([page["latent"](7, i, size) for i in (4, 5)], dtype=np.float32)
        assert np.array_equal(synthesizer.render(latents), synthesizer.images(seed=7, count=2, start=4))


def test_the_samples_are_the_programs(page: dict[str, Any]):
    rows = re.findall(r"^\| (\d+) \| (\d+) \| (\d+) \| ([-\d., ]+) \| ([-\d.]+) \|$", BUNDLE, re.MULTILINE)
    assert len(rows) == 4
    for seed, index, size, first, last in rows:
        latent = page["latent"](int(seed), int(index), int(size))
        numbers = [float(number) for number in first.split(",")]
        assert len(numbers) == 3
        assert latent[:3] == pytest.approx(numbers, abs=1e-6)
        assert latent[-1] == pytest.approx(float(last), abs=1e-6)


def test_every_field_of_a_manifest_is_told():
    told = set(re.findall(r"`(\w+)`", "".join(re.findall(r"^\| (`[^|]*) \|", BUNDLE, re.MULTILINE))))
    own = {field.name for kind in (bundles.Bundle, bundles.Graph) for field in dataclasses.fields(kind)}
    assert (own | {"schema"}) - {"folder"} <= told
    assert all(f"`{field.name}`" in BUNDLE for field in dataclasses.fields(bundles.Port))


@pytest.mark.slow  # it measures which backend is the fastest, as a first start does
def test_the_python_of_generating_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    exec(compile(program(GENERATE), "docs/generate.md", "exec"), names)
    assert names["result"].made == 10
    assert len(list(members(tmp_path / "faces.tar"))) == 20
    assert names["larger"].shape == (1024, 1024, 3)


def test_the_model_card_has_no_more_digits_of_swd_than_are_known():
    """It wavers by tenths from one set of 2,000 images to another, which the card says."""
    assert "wavers by ±0.3" in " ".join(CARD.split())
    table = re.search(r"\| SWD 64 \| 32 \| 16 \| average \|.*\n.*\n((?:\|.*\n)+)", CARD)
    assert table is not None
    numbers = [cell.strip() for line in table[1].splitlines() for cell in line.split("|")[2:6]]
    assert len(numbers) == 12
    assert all(re.fullmatch(r"\d+\.\d", number) for number in numbers)


def test_the_model_card_has_the_manifests_parity():
    shipped = bundles.read(bundles.shipped())
    card = " ".join(CARD.split())
    for precision, words in {
        "fp32": r"fp32 differs by at most (\d+) of 255 \(PSNR (\d+) dB\)",
        "fp16": r"fp16 by at most (\d+) \((\d+) dB\)",
        "int8": r"int8 has (?=.*?as far as (\d+) of 255)(\d+) dB",
    }.items():
        found = re.search(words, card)
        assert found is not None, precision
        parity = shipped.graph("chain", precision).parity
        assert [int(number) for number in found.groups()] == [parity["max_steps"], int(parity["psnr_db"])]
