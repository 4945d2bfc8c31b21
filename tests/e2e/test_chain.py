"""The whole way by the commands a user types: photographs, archive, two runs, bundle, faces.

With real photographs where ../shared/data has them, else with pictures that the project draws itself.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pgsr import draws
from pgsr.runtime import Synthesizer

ROOT = Path(__file__).resolve().parents[2]
PHOTOGRAPHS = ROOT.parent / "shared" / "data" / "faces64.zip"

PROGAN = ["tiny", "--set", "schedule.fade_images=320", "--set", "schedule.stable_images=640"]
UPSCALER = ["upscale-4x-pixel", "--set", "data.resolution=64", "--set", "schedule.resolution=32"]
UPSCALER += ["--set", "schedule.start_resolution=32", "--set", "schedule.stable_images=1600"]
UPSCALER += ["--set", "generator.features=8", "--set", "generator.layers=2", "--set", "run.log_images=160"]


def command(module: str, *arguments: object) -> dict:
    """Runs `python -m pgsr.MODULE ... --json` in the checkout; its JSON object."""
    line = [sys.executable, "-m", module, *map(str, arguments), "--json"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(line, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A prepared archive of 120 pictures at 16 and 64 pixels."""
    folder = tmp_path_factory.mktemp("data")
    out = folder / "faces.zip"
    arguments = ["--out", out, "--sizes", "16,64"]
    if PHOTOGRAPHS.is_file():
        print("the whole chain on real photographs")
        with zipfile.ZipFile(PHOTOGRAPHS) as source, zipfile.ZipFile(folder / "few.zip", "w") as few:
            for name in sorted(source.namelist())[:120]:
                few.writestr(name, source.read(name))
        prepared = command("pgsr.trainer.data.cli", folder / "few.zip", *arguments)
    else:
        print("no photographs in ../shared/data: the whole chain on procedural pictures")
        prepared = command("pgsr.trainer.data.cli", "--procedural", "120", *arguments)
    assert prepared["count"] == 120
    return out


@pytest.fixture(scope="module")
def made(archive: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bundle of a ProGAN and an upscaler trained for seconds."""
    folder = tmp_path_factory.mktemp("runs")
    for name, recipe in (("faces", PROGAN), ("upscale", UPSCALER)):
        done = command("pgsr.trainer", *recipe, "--data", archive, "--out", folder / name)
        assert done["finished"]
    result = command("pgsr.export", folder / "faces", folder / "upscale", "--out", folder / "bundle")
    assert [g["name"] for g in result["graphs"]] == ["generator", "upscaler", "chain"]
    return folder


def test_runs_hold_what_they_promise(made: Path) -> None:
    run = made / "faces"
    records = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [r["images_shown"] for r in records] == sorted({r["images_shown"] for r in records})
    assert {r["resolution"] for r in records} == {4, 8, 16}
    assert json.loads((run / "config.json").read_text())["name"] == "tiny"
    assert list((run / "samples").glob("*.png"))
    assert list((run / "tensorboard").glob("events*"))
    pixel = [json.loads(line)["loss/pixel"] for line in (made / "upscale" / "metrics.jsonl").open()]
    assert np.mean(pixel[-3:]) < np.mean(pixel[:3])


def test_faces_are_those_of_the_trained_networks(made: Path, tmp_path: Path) -> None:
    """The files against the checkpoints' averaged networks in PyTorch, within one step of 255."""
    import torch

    from pgsr.export.source import read_source

    arguments = ["--model", made / "bundle", "--count", "20", "--seed", "5", "--out", tmp_path / "out"]
    report = command("pgsr.runtime", *arguments)
    assert (report["made"], report["size"]) == (20, 64)
    generator, upscaler = (read_source(made / name).network for name in ("faces", "upscale"))
    z = torch.from_numpy(draws.latents(5, range(20), 32))
    with torch.no_grad():
        x = upscaler(generator(z)).numpy()
    expected = np.rint(np.clip((x + 1) * 127.5, 0, 255)).transpose(0, 2, 3, 1)
    for i, picture in enumerate(expected):
        written = np.asarray(Image.open(tmp_path / "out" / f"{i:06d}.png"))
        assert np.abs(written - picture).max() <= 1
    assert Image.open(tmp_path / "out" / "sheet.png").width > 64


def test_same_bytes_for_any_batch_and_window(made: Path, tmp_path: Path) -> None:
    """--batch 1, --batch 16, and a second half made alone."""
    windows = {"one": ["--batch", "1", "--count", "24"], "many": ["--batch", "16", "--count", "24"]}
    windows["half"] = ["--start", "12", "--count", "12"]
    for name, arguments in windows.items():
        command("pgsr.runtime", "--model", made / "bundle", *arguments, "--out", tmp_path / name)
    files = {n: {p.name: p.read_bytes() for p in (tmp_path / n).glob("0*.png")} for n in windows}
    assert files["one"] == files["many"]
    assert files["half"] == {n: d for n, d in files["many"].items() if int(n[:6]) >= 12}


def test_shipped_model_draws_the_same_at_any_batch() -> None:
    with Synthesizer(batch=1) as one, Synthesizer(batch=7) as seven:
        assert np.array_equal(one.images(seed=3, count=8), seven.images(seed=3, count=8))
