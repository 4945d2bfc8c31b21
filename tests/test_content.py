"""Content loss: VGG19 against a slow version, its files, and what it does to generated images."""

from __future__ import annotations

import io
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import Result
from safetensors.torch import save_file
from torch import Tensor, nn
from vgg19 import tiny_vgg19

from pgsr.checkpoint import load, newest
from pgsr.errors import PgsrError
from pgsr.files import sha256
from pgsr.networks import DISCRIMINATORS, build
from pgsr.networks.efficientnet import SHA256, load_lite0
from pgsr.networks.vgg import load_vgg19
from pgsr.trainer import cli
from pgsr.trainer.step import content_loss as content
from pgsr.trainer.step.objectives import paired_losses
from pgsr.trainer.step.recipe import ObjectiveConfig


@pytest.fixture(scope="module")
def vgg_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("vgg") / "vgg19.pth"
    torch.save(tiny_vgg19(), path)
    return path


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


# ----------------------------------------------------------------------------
# The network.


def slow_vgg(images: np.ndarray, tensors: dict[str, Tensor]) -> list[np.ndarray]:
    """Every convolution's output after its ReLU, written out as the paper's table D has them: blocks of
    2, 2, 4, 4, 4 layers, maxima between."""
    # as float32 holds them
    mean, std = (
        np.array([0.485, 0.456, 0.406], np.float32).astype(float),
        np.array([0.229, 0.224, 0.225], np.float32).astype(float),
    )
    x = ((images + 1) / 2 - mean[:, None, None]) / std[:, None, None]
    outputs, number = [], 0
    for layers in (2, 2, 4, 4, 4):
        for _ in range(layers):
            weight = tensors[f"features.{number}.weight"].double().numpy()
            bias = tensors[f"features.{number}.bias"].double().numpy()
            padded = np.pad(x, ((0, 0), (0, 0), (1, 1), (1, 1)))
            made = np.zeros((len(x), len(bias), *x.shape[2:]))
            for i in range(x.shape[2]):
                for j in range(x.shape[3]):
                    window = padded[:, :, i : i + 3, j : j + 3]
                    made[:, :, i, j] = np.einsum("nchw,ochw->no", window, weight) + bias
            x = np.maximum(made, 0)
            outputs.append(x)
            number += 2  # the ReLU is a module of its own in torchvision
        n, c, h, w = x.shape
        if len(outputs) == 16:
            break  # the last pool is beyond VGG54
        x = x.reshape(n, c, h // 2, 2, w // 2, 2).max(axis=(3, 5))
        number += 1  # and so is the pool
    return outputs


def test_vgg_is_its_layers(vgg_file: Path):
    images = randn(2, 3, 16, 32).clamp(-1, 1)
    expected = slow_vgg(images.numpy(), tiny_vgg19())
    network = load_vgg19(vgg_file).double()
    assert len(expected) == 16
    assert expected[-1].any()
    for depth in (1, 3, 8, 13, 16):
        np.testing.assert_allclose(network(images, depth=depth).numpy(), expected[depth - 1], atol=1e-12)
    assert torch.equal(network(images), network(images, depth=16))


def test_safetensors_hold_the_same(vgg_file: Path, tmp_path: Path):
    save_file(tiny_vgg19(), tmp_path / "vgg19.safetensors")
    images = randn(1, 3, 16, 16).float()
    assert torch.equal(load_vgg19(tmp_path / "vgg19.safetensors")(images), load_vgg19(vgg_file)(images))


# ----------------------------------------------------------------------------
# Files that are wrong.


class Command:
    """Pickles to a call of `print`, which loading must not make."""

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return print, ("executed",)


def _missing(path: Path) -> None:
    pass


def _noise(path: Path) -> None:
    path.write_bytes(bytes(range(256)) * 8)


def _cut(path: Path) -> None:
    torch.save(tiny_vgg19(), path)
    path.write_bytes(path.read_bytes()[:2000])


def _list(path: Path) -> None:
    torch.save([torch.zeros(2)], path)


def _with_batch_norm(path: Path) -> None:
    torch.save({"features.0.weight": torch.zeros(2, 3, 3, 3), "features.0.bias": torch.zeros(2)}, path)


def _other_shape(path: Path) -> None:
    torch.save(tiny_vgg19() | {"features.7.weight": torch.zeros(6, 4, 3, 3)}, path)


def _code(path: Path) -> None:
    path.write_bytes(pickle.dumps({"features.0.weight": Command()}, protocol=2))


@pytest.mark.parametrize(
    ("write", "suffix", "message"),
    [
        (_missing, ".pth", "no file of VGG19's weights at"),
        (_noise, ".pth", "cannot be read as weights"),
        (_noise, ".safetensors", "cannot be read as weights"),
        (_cut, ".pth", "cannot be read as weights"),
        (_list, ".pth", "holds a list, not the tensors of a network by name"),
        (_with_batch_norm, ".pth", "has no features.2.weight or .bias: it is not VGG19"),
        (
            _other_shape,
            ".pth",
            r"features.7.weight of .* has shape \(6, 4, 3, 3\) where VGG19 has \(6, 8, 3, 3\)",
        ),
        (_code, ".pth", "cannot be read as weights"),
    ],
)
def test_a_wrong_file_is_one_line(
    write: Callable[[Path], None], suffix: str, message: str, tmp_path: Path, capsys: pytest.CaptureFixture
):
    path = tmp_path / f"weights{suffix}"
    write(path)
    with pytest.raises(PgsrError, match=message) as caught:
        load_vgg19(path)
    assert "\n" not in str(caught.value)
    assert "executed" not in capsys.readouterr().out


# ----------------------------------------------------------------------------
# The loss.


def features_of(config: ObjectiveConfig, critic: Any = None):
    return content.content_features(config, critic, nn.Linear(1, 1).double())


def test_content_loss_of_vgg(vgg_file: Path):
    config = ObjectiveConfig(adversarial="none", content=str(vgg_file))
    fakes, reals = randn(2, 3, 16, 16, seed=1).requires_grad_(), randn(2, 3, 16, 16, seed=2)
    terms = paired_losses(config, fakes, reals, features=features_of(config))
    a, b = (slow_vgg(x.detach().numpy(), tiny_vgg19())[-1] for x in (fakes, reals))
    assert set(terms) == {"content"}
    assert terms["content"].item() == pytest.approx(0.006 * np.mean((a - b) ** 2), rel=1e-10)
    (gradient,) = torch.autograd.grad(terms["content"], fakes)
    assert (gradient.abs().sum(dim=(1, 2, 3)) > 0).all()


@pytest.mark.parametrize(("depth", "scale"), [(1, 0), (3, 2), (0, 3)])
def test_content_loss_of_lite0(depth: int, scale: int):
    config = ObjectiveConfig(adversarial="none", content="lite0", content_depth=depth, content_weight=3.0)
    fakes, reals = randn(2, 3, 64, 32, seed=1).requires_grad_(), randn(2, 3, 64, 32, seed=2)
    terms = paired_losses(config, fakes, reals, features=features_of(config))
    pyramid = load_lite0().double().pyramid
    expected = 3 * (pyramid(fakes)[scale] - pyramid(reals)[scale]).square().mean()
    assert terms["content"].item() == pytest.approx(expected.item(), rel=1e-6)
    (gradient,) = torch.autograd.grad(terms["content"], fakes)
    assert (gradient.abs().sum(dim=(1, 2, 3)) > 0).all()


@pytest.mark.parametrize("kind", ["srgan", "cnn"])
def test_content_loss_of_the_critic(kind: str):
    critic = build(DISCRIMINATORS, {"kind": kind, "features": 2, "crop": 16}, 3).double().eval()
    config = ObjectiveConfig(adversarial="logistic", content="critic", content_depth=2, content_weight=2.0)
    fakes, reals = randn(2, 3, 16, 16, seed=1).requires_grad_(), randn(2, 3, 16, 16, seed=2)
    terms = paired_losses(config, fakes, reals, features=features_of(config, critic))
    expected = (critic.features(fakes, 2) - critic.features(reals, 2)).square().mean()
    assert terms["content"].item() == pytest.approx(2 * expected.item(), rel=1e-12)
    (gradient,) = torch.autograd.grad(terms["content"], fakes)
    assert (gradient.abs().sum(dim=(1, 2, 3)) > 0).all()


def test_no_content_is_no_features():
    assert features_of(ObjectiveConfig()) is None


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"adversarial": "none", "content": "critic"}, "needs a critic: set objective.adversarial"),
        ({"content_depth": -1}, "objective.content_depth is -1"),
    ],
)
def test_wrong_settings_are_named(options: dict, message: str):
    with pytest.raises(PgsrError, match=message):
        ObjectiveConfig(**options)


def test_a_critic_without_features_is_named():
    critic = build(DISCRIMINATORS, {"kind": "mlp", "features": 1, "crop": 16})
    with pytest.raises(PgsrError, match="this critic has no features; 'srgan' and 'cnn' have"):
        features_of(ObjectiveConfig(content="critic"), critic)


def test_too_deep_is_named(vgg_file: Path):
    with pytest.raises(PgsrError, match="content_depth is 5, but there are 4 scales"):
        features_of(ObjectiveConfig(content="lite0", content_depth=5))
    with pytest.raises(PgsrError, match="content_depth is 17, but there are 16 convolutions"):
        features_of(ObjectiveConfig(content=str(vgg_file), content_depth=17))


# ----------------------------------------------------------------------------
# In training.

RECIPE = """
about = "for tests"
[generator]
kind = "srresnet"
scale = 2
features = 2
blocks = 1
[discriminator]
kind = "srgan"
crop = 16
features = 1
dense = 2
[schedule]
resolution = 16
start_resolution = 16
batch = 2
stable_images = 8
[objective]
adversarial = "logistic"
pixel = "none"
[data]
resolution = 16
[run]
log_images = 2
precision = "float32"
"""


@pytest.mark.parametrize("network", ["critic", "vgg", "lite0"])
def test_training_with_content(
    network: str, vgg_file: Path, toy: Path, tmp_path: Path, command: Callable[..., Result]
):
    (tmp_path / "recipe.toml").write_text(RECIPE)
    chosen = vgg_file if network == "vgg" else network
    arguments = [
        "--data",
        toy,
        "--out",
        tmp_path / "run",
        "--device",
        "cpu",
        "--set",
        f"objective.content={chosen}",
    ]
    result = command(cli.main, tmp_path / "recipe.toml", *arguments)
    assert result.exit_code == 0, result.stderr
    assert "loss/content" in (tmp_path / "run" / "metrics.jsonl").read_text()
    checkpoint = load(newest(tmp_path / "run"))
    parts = {name.split(".")[0] for name in checkpoint.tensors}
    assert parts <= {"generator", "generator_ema", "discriminator", "optimizer", "objective", "watch"}
    assert not any("features." in name for name in checkpoint.tensors)


def test_a_missing_file_ends_the_command_with_a_line(
    toy: Path, tmp_path: Path, command: Callable[..., Result]
):
    (tmp_path / "recipe.toml").write_text(RECIPE)
    arguments = [
        "--data",
        toy,
        "--out",
        tmp_path / "run",
        "--device",
        "cpu",
        "--set",
        "objective.content=no.pth",
    ]
    result = command(cli.main, tmp_path / "recipe.toml", *arguments)
    assert result.exit_code == 1
    assert result.stderr.splitlines()[-1] == "error: no file of VGG19's weights at no.pth"


def test_the_file_is_named_by_its_hash(vgg_file: Path):
    assert content.content_provenance(ObjectiveConfig(content=str(vgg_file))) == {"content": sha256(vgg_file)}
    assert content.content_provenance(ObjectiveConfig(content="lite0")) == {"content": SHA256}
    assert content.content_provenance(ObjectiveConfig(content="critic")) == {}


def test_a_bias_that_is_one_number(tmp_path: Path):
    torch.save({**tiny_vgg19(), "features.0.bias": torch.tensor(0.0)}, tmp_path / "vgg.pth")
    with pytest.raises(PgsrError, match=r"features.0.weight of .* where VGG19 has \(1, 3, 3, 3\)"):
        load_vgg19(tmp_path / "vgg.pth")


@pytest.mark.parametrize(
    "odd",
    [torch.zeros(6, 3, 3, 3).to_sparse(), torch.zeros(1, dtype=torch.half).expand(6, 3, 3, 3)],
    ids=["sparse", "repeated"],
)
def test_tensors_that_are_not_what_they_are_stored_as(odd: torch.Tensor, tmp_path: Path):
    torch.save({**tiny_vgg19(), "features.0.weight": odd}, tmp_path / "vgg.pth")
    with pytest.raises(PgsrError, match=r"features.0 is no plain tensor"):
        load_vgg19(tmp_path / "vgg.pth")


def test_pickles_of_any_damage_are_one_line(tmp_path: Path):
    """PyTorch's reader raises KeyError for what a pickle refers to and never made."""
    out = io.BytesIO()
    torch.save(tiny_vgg19(), out, _use_new_zipfile_serialization=False)
    (tmp_path / "vgg.pth").write_bytes(out.getvalue()[:15] + b"\x80\x02h\x05." + out.getvalue()[15:])
    with pytest.raises(PgsrError, match="cannot be read as weights"):
        load_vgg19(tmp_path / "vgg.pth")
