"""Paper 2's appendix C from the recipe on: JPEG's artefacts removed, the network exported and used."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from pgsr.checkpoint import load
from pgsr.export.cli import main as export
from pgsr.networks import GENERATORS, build
from pgsr.networks.pixels import from_pixels
from pgsr.trainer import cli
from pgsr.trainer.data.cache import load_photographs
from pgsr.trainer.data.celebahq.cli import main as celeba_hq
from pgsr.trainer.data.cli import Settings, prepare
from pgsr.trainer.step.degradation import compressed

SIDE = 32
IMAGES = 960
NARROW = {
    "generator.features": 16,
    "generator.layers": 2,
    "data.resolution": SIDE,
    "data.jpeg": "[10, 40]",
    "data.held_out": 8,
    "schedule.resolution": 24,
    "schedule.start_resolution": 24,
    "schedule.batch": 8,
    "schedule.stable_images": IMAGES,
    "generator_optimizer.learning_rate": 0.005,
    "averaging.half_life_images": 200,
    "run.checkpoint_images": IMAGES // 2,
    "run.sample_images": IMAGES,
}


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("drawn") / "drawn.zip"
    prepare([], path, Settings((SIDE,), "lanczos", "png", 95), drawn=48)
    return path


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, command, drawn: Path) -> Path:
    return train(command, drawn, tmp_path_factory.mktemp("restore") / "run")


def train(command, drawn: Path, out: Path, *more: str) -> Path:
    settings = [word for key, value in NARROW.items() for word in ("--set", f"{key}={value}")]
    options = more or ("jpeg-restore", "--data", str(drawn), *settings)
    result = command(cli.main, *options, "--out", out, "--device", "cpu")
    assert result.exit_code == 0, result.stderr
    return out


def checkpoint(run: Path, images: int = IMAGES) -> Path:
    return run / "checkpoints" / f"{images:09d}.safetensors"


def test_restored_pictures_are_nearer_to_the_photographs(trained: Path, drawn: Path):
    """Of pictures that were held out, at qualities drawn for other positions than those of training."""
    made = load(checkpoint(trained))
    network = build(GENERATORS, made.config["generator"], 0)
    network.load_state_dict(made.under("generator_ema."))
    pictures = from_pixels(torch.tensor(load_photographs(drawn, SIDE).pixels[-8:]))
    worse = torch.cat([compressed(pictures, 9, range(i, i + 8), (10, 40)) for i in range(0, 32, 8)])
    with torch.no_grad():
        left = (network(worse) - pictures.repeat(4, 1, 1, 1)).square().mean()
    before = (worse - pictures.repeat(4, 1, 1, 1)).square().mean()
    assert left < 0.85 * before  # 0.7 dB


def test_a_run_from_its_middle_ends_in_the_same_weights(trained: Path, drawn: Path, tmp_path: Path, command):
    out = tmp_path / "run"
    (out / "checkpoints").mkdir(parents=True)
    for path in (trained / "config.json", checkpoint(trained, IMAGES // 2)):
        target = out / path.relative_to(trained)
        target.write_bytes(path.read_bytes())
    train(command, drawn, out, "--resume", "--data", str(drawn))
    whole, resumed = load(checkpoint(trained)), load(checkpoint(out))
    assert whole.tensors.keys() == resumed.tensors.keys()
    assert all(torch.equal(whole.tensors[k], resumed.tensors[k]) for k in whole.tensors)


def test_the_network_is_exported_and_restores_every_picture(trained: Path, tmp_path: Path, command):
    result = command(export, trained, "--out", tmp_path / "restorer", "--samples", 2, "--licence", "test")
    assert result.exit_code == 0, result.stderr
    options = ("--procedural", 2, "--size", 64, "--oversampling", 1, "--processes", 1, "--json")
    for out, more in (("plain", ()), ("restored", ("--restorer", tmp_path / "restorer"))):
        result = command(celeba_hq, "--out", tmp_path / out, *options, *more)
        assert result.exit_code == 0, result.stderr
        summary = json.loads(result.stdout)
        assert summary["passes"] == ({"restorer": summary["judged"]} if more else {})
    names = [path.name for path in (tmp_path / "plain" / "pictures").iterdir()]
    assert names
    for name in names:
        files = [(tmp_path / out / "pictures" / name).read_bytes() for out in ("plain", "restored")]
        assert files[0] != files[1]


def test_a_run_in_place_of_a_bundle_is_one_line(trained: Path, tmp_path: Path, command):
    result = command(celeba_hq, "--procedural", 1, "--out", tmp_path / "out", "--restorer", trained)
    assert result.exit_code == 1
    assert (
        f"--restorer {trained} is no bundle: make one by pgsr-export {trained} --out BUNDLE" in result.stderr
    )
    assert len(result.stderr.splitlines()) == 1
