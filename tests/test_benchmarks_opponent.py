"""The second opponent: it draws what the networks draw, and is timed beside ours."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from PIL import Image
from torch import nn

from pgsr.benchmarks.cli import main
from pgsr.benchmarks.references import afternoon

pytest.importorskip("openvino")


@pytest.fixture(scope="module")
def network() -> nn.Module:
    torch.manual_seed(0)
    places = nn.Sequential(nn.Linear(6, 3 * 16), nn.Unflatten(1, (3, 4, 4)), nn.Upsample(scale_factor=4))
    return places.eval().requires_grad_(False)


@pytest.fixture(scope="module")
def engine(network: nn.Module, tmp_path_factory: pytest.TempPathFactory) -> afternoon.Engine:
    latents = torch.randn(afternoon.CALIBRATION, 6, generator=torch.Generator().manual_seed(1))
    chain = afternoon.PixelChain(network)
    path = afternoon.export(chain, latents[:2], tmp_path_factory.mktemp("afternoon") / "chain.onnx")
    return afternoon.Engine(path, "fp32", 1, latents.numpy())


@pytest.mark.parametrize("count", [1, 5, 17])
def test_outputs_are_in_order_whatever_the_batch(count: int, engine: afternoon.Engine, network: nn.Module):
    latents = torch.randn(count, 6, generator=torch.Generator().manual_seed(2))
    made = engine.outputs(latents.numpy())
    expected = afternoon.PixelChain(network)(latents).numpy()
    assert made.shape == (count, 16, 16, 3)
    assert np.abs(made.astype(int) - expected).max() <= 1


def test_files_hold_the_pictures(engine: afternoon.Engine, network: nn.Module, tmp_path: Path):
    latents = torch.randn(5, 6, generator=torch.Generator().manual_seed(2))
    assert afternoon.write_images(engine, latents.numpy(), tmp_path) == 5
    expected = afternoon.PixelChain(network)(latents).numpy()
    for i, picture in enumerate(expected):
        made = np.asarray(Image.open(tmp_path / f"{i:06d}.png")).astype(int)
        assert np.abs(made - picture).max() <= 1


def test_the_command_times_both_and_itself(tmp_path: Path):
    pytest.importorskip("nncf")
    pytest.importorskip("cv2")
    small = ["--resolution", "8", "--feature-base", "64", "--feature-max", "8"]
    upscaler = ["--sr-blocks", "1", "--sr-features", "4"]
    which = [
        "--convolution",
        "separable",
        "--precision",
        "fp32",
        "--stage",
        "generator",
        "--stage",
        "end to end",
    ]
    arguments = [
        "opponent",
        *small,
        *upscaler,
        *which,
        "--images",
        "4",
        "--rounds",
        "2",
        "--out",
        str(tmp_path),
    ]
    done = CliRunner().invoke(main, [*arguments, "--json"], catch_exceptions=False)
    assert done.exit_code == 0
    result = json.loads(done.stdout)
    assert [row["stage"] for row in result["rows"]] == ["generator", "end to end"]
    for row in result["rows"]:
        assert set(row["timings"]) == {"ours", "theirs", "theirs again"}
        assert min(row["psnr_db"].values()) > 50
        assert row["ratio"] > 0
    assert json.loads((tmp_path / "opponent.json").read_text()) == result
    assert "| separable | fp32 | end to end |" in (tmp_path / "opponent.md").read_text()
