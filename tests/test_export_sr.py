"""Export of paper 3's networks: their norms fold away, those of one size have it in the graph."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from click.testing import CliRunner
from torch import Tensor, nn

from lively import lively
from pgsr import bundle
from pgsr.checkpoint import Checkpoint, save
from pgsr.errors import PgsrError
from pgsr.export import bundle_builder as build
from pgsr.export.cli import main
from pgsr.export.rewrites.table import rewritten
from pgsr.export.source import read_source
from pgsr.networks import GENERATORS, resolved
from pgsr.networks import build as build_network

NETWORKS = {
    "resnet-sr": {"kind": "resnet-sr", "features": 4},
    "dcgan-sr": {"kind": "dcgan-sr", "features": 2},
    "mlp-sr": {"kind": "mlp-sr", "features": 2, "input_size": 8},
    "dcgan": {"kind": "dcgan", "features": 2, "latent_size": 6},
    "dcgan-uniform": {"kind": "dcgan", "features": 2, "latent_size": 6, "latents": "uniform"},
}


def inputs_of(name: str) -> Tensor:
    shape = {"dcgan": (2, 6), "dcgan-uniform": (2, 6), "mlp-sr": (2, 3, 8, 8)}.get(name, (2, 3, 16, 16))
    return torch.randn(*shape, generator=torch.Generator().manual_seed(1)).double()


def checkpoint(path: Path, name: str) -> Path:
    network = lively(build_network(GENERATORS, NETWORKS[name], 3))
    tensors = {f"generator_ema.{k}": v for k, v in network.state_dict().items()}
    progress = {"images_shown": 10, "step": 1, "grown_resolution": 64}
    options = {"generator": resolved(GENERATORS, NETWORKS[name])}
    save(path, Checkpoint(tensors, options, progress, {"version": "test", "data": {"fingerprint": "f"}}))
    return path


@pytest.mark.parametrize("name", NETWORKS)
def test_folding_batch_norm_is_exact(name: str):
    network = lively(build_network(GENERATORS, NETWORKS[name], 1)).double()
    folded, applied = rewritten(network)
    assert "fold-batch-norm" in applied
    assert not any(isinstance(m, (nn.BatchNorm1d, nn.BatchNorm2d)) for m in folded.modules())
    x = inputs_of(name)
    assert (folded(x) - network(x)).abs().max() <= 1e-12


@pytest.mark.parametrize("name", NETWORKS)
def test_without_batch_norm_nothing_folds(name: str):
    network = build_network(GENERATORS, {**NETWORKS[name], "batch_norm": False}, 1)
    assert "fold-batch-norm" not in rewritten(network)[1]


def exported(name: str, folder: Path) -> bundle.Bundle:
    run = checkpoint(folder / f"{name}.safetensors", name)
    result = CliRunner().invoke(main, [str(run), "--out", str(folder / name), "--samples", "4", "--json"])
    assert result.exit_code == 0, result.output
    assert [g["name"] for g in json.loads(result.stdout)["graphs"]] == ["upscaler"]
    return bundle.read(folder / name)


def ran(found: bundle.Bundle, images: Tensor) -> np.ndarray:
    session = onnxruntime.InferenceSession(found.path(found.graph("upscaler")))
    return session.run(None, {"images": images.float().numpy()})[0]


def test_a_network_of_one_size_has_it_in_the_graph(tmp_path: Path):
    found = exported("mlp-sr", tmp_path)
    graph = found.graph("upscaler")
    assert graph.inputs[0].shape == ("n", 3, 8, 8)
    assert graph.outputs[0].shape == ("n", 3, 32, 32)
    images = torch.cat([inputs_of("mlp-sr"), inputs_of("mlp-sr")[:1]])  # 3: the batch is free
    network = lively(build_network(GENERATORS, NETWORKS["mlp-sr"], 3)).double()
    np.testing.assert_allclose(ran(found, images), network(images).detach(), atol=1e-5)


def test_resnet_takes_any_size(tmp_path: Path):
    found = exported("resnet-sr", tmp_path)
    assert found.graph("upscaler").inputs[0].shape == ("n", 3, "height", "width")
    images = inputs_of("resnet-sr")[:, :, :10, :12]
    network = lively(build_network(GENERATORS, NETWORKS["resnet-sr"], 3)).double()
    np.testing.assert_allclose(ran(found, images), network(images).detach(), atol=1e-5)


def test_sizes_that_do_not_meet_are_an_error(tmp_path: Path):
    sources = [read_source(checkpoint(tmp_path / f"{n}.safetensors", n)) for n in ("dcgan-uniform", "mlp-sr")]
    with pytest.raises(PgsrError, match="upscaler takes images of 8x8, but those that come to it are 64x64"):
        build.plans({source.kind: source for source in sources})
