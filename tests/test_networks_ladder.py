"""The ladder of paper 2's Table 1: ProGAN's options against formulas in float64, recipes, the command."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn
from torch.autograd import gradcheck, gradgradcheck
from torch.func import functional_call
from torch.nn import functional as F

from pgsr import draws
from pgsr.benchmarks.cli import main as bench
from pgsr.benchmarks.ladder import measure as ladder
from pgsr.errors import PgsrError
from pgsr.export.graphs import Chain
from pgsr.export.lowering import Grown
from pgsr.export.rewrites.table import rewritten
from pgsr.networks import DISCRIMINATORS, GENERATORS, build, layers
from pgsr.networks.progan import ProGANDiscriminator, ProGANGenerator
from pgsr.trainer.metrics.similarity import ms_ssim
from pgsr.trainer.step import objectives, schedule
from pgsr.trainer.step import recipe as config
from pgsr.trainer.step.state import update_average

SMALL = {"feature_base": 64, "feature_max": 8}
BASELINE = {"normalization": "batch", "activation": "relu", "output": "tanh", "normalize_latents": False}
BARE = {"normalization": "none"}


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def generator_of(resolution: int = 16, **options: Any) -> ProGANGenerator:
    network = build(
        GENERATORS, {"kind": "progan", "resolution": resolution, "latent_size": 6, **SMALL, **options}
    )
    return lively(network)


def critic_of(resolution: int = 16, **options: Any) -> ProGANDiscriminator:
    return lively(build(DISCRIMINATORS, {"kind": "progan", "resolution": resolution, **SMALL, **options}))


def lively(network: Any) -> Any:
    """In float64, gains, biases and statistics away from where they start."""
    for i, (name, tensor) in enumerate(network.double().state_dict().items()):
        if name.endswith("bias") or "running_mean" in name:
            tensor.copy_(0.2 * randn(*tensor.shape, seed=i))
        if ".norm.weight" in name or "running_var" in name:
            tensor.copy_(1 + 0.3 * randn(*tensor.shape, seed=i).abs())
    return network


# ----------------------------------------------------------------------------
# The networks written out.


def written_norm(x: Tensor, act: Any) -> Tensor:
    """Batch normalisation of the batch's own statistics, or layer normalisation (Ba et al. 2016)."""
    if act.norm is None:
        return x
    over = (0, 2, 3) if isinstance(act.norm, nn.BatchNorm2d) else (1, 2, 3)
    mean = x.mean(over, keepdim=True)
    variance = (x - mean).square().mean(over, keepdim=True)
    x = (x - mean) / (variance + 1e-5).sqrt()
    return x * act.norm.weight.view(1, -1, 1, 1) + act.norm.bias.view(1, -1, 1, 1)


def written_generator(network: ProGANGenerator, z: Tensor, alpha: float, options: dict[str, Any]) -> Tensor:
    def follow(x: Tensor, act: Any) -> Tensor:
        x = written_norm(x, act)
        x = x.clamp(min=0) if options.get("activation") == "relu" else torch.where(x > 0, x, 0.2 * x)
        return layers.pixel_norm(x) if options.get("normalization", "pixel") == "pixel" else x

    def convolved(layer: Any, x: Tensor) -> Tensor:
        return F.conv2d(x, layer.scaled(), layer.bias, padding=1)

    x = layers.pixel_norm(z) if options.get("normalize_latents", True) else z
    first, *rest = network.blocks
    x = (x @ first.first.scaled().T).view(len(z), -1, 4, 4) + first.first.bias.view(1, -1, 1, 1)
    x = follow(x, first.act1)
    x = follow(convolved(first.conv, x), first.act2)
    below = x
    for block in rest:
        below = x
        x = follow(convolved(block.conv1, F.interpolate(x, scale_factor=2.0)), block.act1)
        x = follow(convolved(block.conv2, x), block.act2)

    def colours(level: int, x: Tensor) -> Tensor:
        layer = network.to_rgb[level]
        return F.conv2d(x, layer.scaled(), layer.bias)  # type: ignore[arg-type]

    images = alpha * colours(-1, x) + (1 - alpha) * F.interpolate(colours(-2, below), scale_factor=2.0)
    return images.tanh() if options.get("output") == "tanh" else images


@pytest.mark.parametrize("alpha", [0.3, 1.0])
@pytest.mark.parametrize("options", [{}, BARE, BASELINE, {**BASELINE, "activation": "leaky"}], ids=str)
def test_generator_is_what_is_written(options: dict[str, Any], alpha: float):
    network, z = generator_of(**options), randn(5, 6)
    expected = written_generator(network, z, alpha, options)
    torch.testing.assert_close(network(z, alpha=alpha), expected, rtol=1e-9, atol=1e-10)


def written_critic(network: ProGANDiscriminator, images: Tensor) -> Tensor:
    def leaky(x: Tensor) -> Tensor:
        return torch.where(x > 0, x, 0.2 * x)

    def convolved(layer: Any, x: Tensor, padding: int = 1) -> Tensor:
        return F.conv2d(x, layer.scaled(), layer.bias, padding=padding)

    x = leaky(convolved(network.from_rgb[-1], images, 0))  # no normalisation in the 1 x 1 layer
    for block in network.blocks[::-1]:
        x = leaky(written_norm(convolved(block.conv1, x), block.act1))
        x = F.avg_pool2d(leaky(written_norm(convolved(block.conv2, x), block.act2)), 2)
    last = network.last_block
    if last.stddev is not None:
        x = layers.minibatch_stddev(x, last.stddev.group)
    x = leaky(written_norm(convolved(last.conv, x), last.act1))
    x = leaky(written_norm(convolved(last.last, x, 0), last.act2)).flatten(1)
    if last.discrimination is not None:
        x = torch.cat([x, written_discrimination(x, last.discrimination)], dim=1)
    return (x @ last.dense.scaled().T + last.dense.bias).squeeze(1)


def written_discrimination(x: Tensor, layer: layers.MinibatchDiscrimination) -> Tensor:
    """o(x_i)_b = sum over j of exp(-|M_ib - M_jb|), one number at a time (Salimans et al. 2016, 3.2)."""
    matrix = layer.scaled().view(layer.kernels, -1, x.shape[1])  # [B, C, A]
    found = torch.zeros(len(x), layer.kernels, dtype=torch.float64)
    rows = [[matrix[b] @ x[i] for b in range(layer.kernels)] for i in range(len(x))]
    for i in range(len(x)):
        for b in range(layer.kernels):
            for j in range(len(x)):
                distance = sum(abs(float(p) - float(q)) for p, q in zip(rows[i][b], rows[j][b], strict=True))
                found[i, b] += math.exp(-distance)
    return found


@pytest.mark.parametrize("statistics", ["stddev", "discrimination", "none"])
@pytest.mark.parametrize("normalization", ["none", "layer"])
@torch.no_grad()
def test_critic_is_what_is_written(normalization: str, statistics: str):
    network = critic_of(normalization=normalization, statistics=statistics)
    images = randn(4, 3, 16, 16)
    torch.testing.assert_close(network(images), written_critic(network, images), rtol=1e-9, atol=1e-10)


def test_only_minibatch_statistics_join_the_images_of_a_batch():
    images = randn(4, 3, 8, 8)
    for statistics, alone in (("stddev", False), ("discrimination", False), ("none", True)):
        network = critic_of(8, normalization="layer", statistics=statistics)
        same = torch.allclose(network(images)[:1], network(images[:1]), rtol=1e-9)
        assert same == alone, statistics


def test_discrimination_of_equal_images_counts_them():
    layer = layers.MinibatchDiscrimination(7, kernels=3, size=2).double()
    found = layer(randn(1, 7).expand(5, 7))
    assert found.shape == (5, 10)
    torch.testing.assert_close(found[:, 7:], torch.full((5, 3), 5.0, dtype=torch.float64))


def test_discrimination_has_gradients_of_both_orders():
    layer = layers.MinibatchDiscrimination(4, kernels=3, size=2).double()
    x = randn(3, 4).requires_grad_(True)
    assert gradcheck(layer, x)
    assert gradgradcheck(layer, x)
    layer(x).sum().backward()
    assert layer.weight.grad is not None
    assert layer.weight.grad.abs().min() > 0


def test_discrimination_starts_with_columns_of_unit_length():
    norms = layers.MinibatchDiscrimination(512).scaled().norm(dim=1)
    assert norms.shape == (500,)
    assert 0.85 < norms.min() < norms.max() < 1.15


# ----------------------------------------------------------------------------
# Layer normalisation under WGAN-GP, which differentiates it twice.


def penalty(critic: Callable[[Any], Any]) -> Tensor:
    reals, fakes, blend = randn(3, 3, 8, 8), randn(3, 3, 8, 8, seed=1), torch.full((3,), 0.4)
    return objectives.gradient_penalty(critic, reals, fakes, blend, 1.0)


@pytest.mark.parametrize(
    "name", ["blocks.0.act1.norm.weight", "blocks.0.act2.norm.bias", "last_block.act2.norm.weight"]
)
def test_the_gradient_penalty_moves_layer_norms_as_differences_say(name: str):
    critic = critic_of(8, normalization="layer", statistics="none")

    def of(value: Tensor) -> Tensor:
        return penalty(lambda images: functional_call(critic, {name: value}, (images,)))

    value = critic.get_parameter(name).detach().clone().requires_grad_(True)
    assert gradcheck(of, value)
    of(value).backward()
    assert value.grad is not None
    assert value.grad.abs().max() > 1e-6


def test_layer_norm_survives_autocast():
    """In bfloat16, as training on a GPU has it, the penalty of a normalised critic still has gradients."""
    critic = build(DISCRIMINATORS, {"kind": "progan", "resolution": 8, "normalization": "layer", **SMALL})
    reals, fakes = randn(4, 3, 8, 8).float(), randn(4, 3, 8, 8, seed=1).float()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = objectives.gradient_penalty(critic, reals, fakes, torch.full((4,), 0.5), 1.0)
    loss.backward()
    used = {k: p.grad for k, p in critic.named_parameters() if not k.startswith("from_rgb.0")}
    assert all(g is not None and torch.isfinite(g).all() for k, g in used.items() if k.endswith("weight"))


# ----------------------------------------------------------------------------
# Without equalized learning rate.


@pytest.mark.parametrize("convolution", ["vanilla", "separable"])
@pytest.mark.parametrize(("table", "kind"), [(GENERATORS, "generator"), (DISCRIMINATORS, "critic")])
def test_without_equalized_rate_weights_start_as_he_says(table: Any, kind: str, convolution: str):
    options = {"kind": "progan", "resolution": 16, "convolution": convolution, **SMALL}
    scaled, plain = build(table, options, 3), build(table, {**options, "equalized": False}, 3)
    for (name, one), other in zip(scaled.named_modules(), plain.modules(), strict=True):
        if isinstance(one, layers.EqualizedWeight):
            assert isinstance(other, layers.EqualizedWeight)
            assert torch.equal(one.weight * one.scale, other.weight), name
            assert other.scale == 1.0
    assert scaled.state_dict().keys() == plain.state_dict().keys()
    x = torch.randn(2, 512) if kind == "generator" else torch.randn(2, 3, 16, 16)
    torch.testing.assert_close(scaled(x), plain(x), rtol=1e-4, atol=1e-5)


def test_defaults_add_nothing_to_checkpoints():
    """The weights that ship were saved by networks that had none of these options."""
    for network in (ProGANGenerator(resolution=16, **SMALL), ProGANDiscriminator(resolution=16, **SMALL)):
        names = {name.split(".", 1)[0] for name in network.state_dict()}
        assert names <= {"blocks", "to_rgb", "from_rgb", "last_block"}
        assert not any("act" in name or "norm" in name for name in network.state_dict())


@pytest.mark.parametrize(
    ("network", "options"),
    [
        (ProGANGenerator, {"normalization": "layer"}),
        (ProGANGenerator, {"activation": "tanh"}),
        (ProGANGenerator, {"output": "sigmoid"}),
        (ProGANDiscriminator, {"normalization": "batch"}),
        (ProGANDiscriminator, {"statistics": "mean"}),
    ],
)
def test_unknown_choices_are_named(network: type[nn.Module], options: dict[str, str]):
    ((name, value),) = options.items()
    with pytest.raises(PgsrError, match=f"{name} = '{value}' is not one of"):
        network(**options)


# ----------------------------------------------------------------------------
# Batch normalisation: averaging and export.


def test_the_average_takes_the_batch_statistics_over():
    network, average = generator_of(**BASELINE), generator_of(**BASELINE)
    network.train()(randn(8, 6, seed=2))
    update_average(average, network, 0.5)
    for name, value in network.named_buffers():
        assert torch.equal(dict(average.named_buffers())[name], value), name
    assert not torch.equal(
        average.blocks[0].act1.norm.running_mean, generator_of(**BASELINE).blocks[0].act1.norm.running_mean
    )


@pytest.mark.parametrize("convolution", ["vanilla", "separable"])
@torch.no_grad()
def test_folding_batch_norm_into_progan_is_exact(convolution: str):
    network, z = generator_of(convolution=convolution, **BASELINE).eval(), randn(3, 6)  # type: ignore[arg-type]
    folded, applied = rewritten(Grown(network, 16))
    assert {"fold-gains", "fold-batch-norm"} <= set(applied)
    assert not any(isinstance(m, nn.BatchNorm2d) for m in folded.modules())
    torch.testing.assert_close(folded(z), network(z), rtol=1e-10, atol=1e-12)


def test_a_generator_with_batch_norm_exports():
    onnx = pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    from pgsr.export.onnx_file import to_onnx
    from pgsr.export.parity import session_of

    network = generator_of(8, **BASELINE).float().eval()
    folded, _ = rewritten(Grown(network, 8))
    z = draws.latents(0, range(5), 6)
    model = to_onnx(Chain([folded], "fp32", True), torch.from_numpy(z[:2]), "latents", "pixels", {0: "n"})
    assert "BatchNormalization" not in {node.op_type for node in onnx.load_from_string(model).graph.node}
    with torch.no_grad():
        expected = Chain([network], "fp32", True)(torch.from_numpy(z)).numpy()
    assert np.abs(session_of(model)(z).astype(int) - expected.astype(int)).max() <= 1


# ----------------------------------------------------------------------------
# The recipes.


def flat(table: Any, path: str = "") -> dict[str, Any]:
    if not isinstance(table, dict):
        return {path[1:]: table}
    return {k: v for key, value in table.items() for k, v in flat(value, f"{path}.{key}").items()}


def recipe_of(rung: str) -> dict[str, Any]:
    return flat(config.load(f"ladder-{rung}").as_dict())


BOTH_RATES = {"generator_optimizer.learning_rate", "critic_optimizer.learning_rate"}
STEPS = {
    ("a", "b"): {
        "schedule.start_resolution",
        "schedule.fade_images",
        "schedule.stable_images",
        "schedule.at.128.stable_images",
    },
    ("b", "c"): {"schedule.batch", "averaging.decay"},
    ("c", "d"): {
        *(f"generator.{k}" for k in ("latent_size", *BASELINE)),
        "discriminator.normalization",
        "objective.critic_steps",
        "objective.drift",
        "generator_optimizer.beta2",
        "critic_optimizer.beta2",
        "averaging.decay",
    },
    ("d", "e-star"): {"discriminator.statistics"},
    ("d", "e"): {"discriminator.statistics", "discriminator.stddev_group"},
    ("e", "f"): {"generator.equalized", "discriminator.equalized", *BOTH_RATES},
    ("f", "g"): {"generator.normalization"},
    ("g", "h"): {
        "generator.feature_base",
        "discriminator.feature_base",
        "schedule.fade_images",
        "schedule.stable_images",
        "schedule.at.128.stable_images",
    },
}


@pytest.mark.parametrize("pair", STEPS, ids="-".join)
def test_each_rung_changes_what_the_paper_says_and_nothing_else(pair: tuple[str, str]):
    one, other = (recipe_of(rung) for rung in pair)
    changed = {k for k in one.keys() | other.keys() if one.get(k) != other.get(k)}
    assert changed - {"name", "about", "source"} == STEPS[pair]


def test_the_baseline_is_section_a_2s():
    recipe = recipe_of("a")
    for name in ("generator_optimizer", "critic_optimizer"):
        assert (recipe[f"{name}.learning_rate"], recipe[f"{name}.beta2"]) == (0.0001, 0.9)
    assert (recipe["objective.critic_steps"], recipe["objective.drift"], recipe["schedule.batch"]) == (
        5,
        0.0,
        64,
    )
    assert recipe["generator.latent_size"] == 128
    assert recipe["discriminator.statistics"] == "none"
    assert not recipe["generator.equalized"]
    assert not recipe["discriminator.equalized"]


@pytest.mark.parametrize("rung", ladder.RUNGS)
def test_rungs_have_the_papers_widths_and_length(rung: str):
    recipe = config.load(f"ladder-{rung}")
    assert recipe.source == f"paper 2, Table 1 ({'e*' if rung == 'e-star' else rung})"
    with torch.device("meta"):
        networks = build(GENERATORS, recipe.generator), build(DISCRIMINATORS, recipe.discriminator)
    widths = [512, 512, 256, 128, 64, 32] if rung != "h" else [512, 512, 512, 512, 256, 128]
    assert [rgb.weight.shape[1] for rgb in networks[0].to_rgb] == widths  # section A.2
    assert [rgb.weight.shape[0] for rgb in networks[1].from_rgb] == widths
    built = schedule.build(recipe.schedule, recipe.objective.critic_steps)
    total = 15_000_000 if rung == "h" else 10_000_000
    assert total <= built.total_images < total + len(built.phases) * 320
    assert len(built.phases) == (1 if rung == "a" else 11)


# ----------------------------------------------------------------------------
# The ladder made small.


def settings_of(out: Path, **changes: Any) -> ladder.Settings:
    given: dict[str, Any] = {
        "data": out,
        "out": out,
        "resolution": 32,
        "images": 100_000,
        "maps": 64,
        "rates": 1.0,
        "rungs": tuple(ladder.RUNGS),
        "swd_images": 0,
        "overrides": (),
        "device": "cpu",
    }
    return ladder.Settings(**{**given, **changes})


@pytest.mark.parametrize("rung", ladder.RUNGS)
def test_a_reduced_rung_keeps_the_papers_proportions(rung: str, tmp_path: Path):
    full, small = config.load(f"ladder-{rung}"), ladder.reduced(rung, settings_of(tmp_path))
    built = schedule.build(small.schedule, small.objective.critic_steps)
    assert built.total_images == pytest.approx(150_000 if rung == "h" else 100_000, rel=0.03)
    assert built.phases[-1].resolution == 32
    assert (small.schedule.batch, small.objective) == (full.schedule.batch, full.objective)
    assert small.generator["feature_base"] == full.generator["feature_base"] // 8
    if rung not in ("a", "h"):
        assert small.schedule.fade_images == 6_000
        assert [p.name for p in built.phases][:3] == ["stable 4", "fade 8", "stable 8"]
    again = ladder.reduced(rung, settings_of(tmp_path, resolution=128, rates=5.0))
    for name in ("generator_optimizer", "critic_optimizer"):
        rates = [getattr(recipe, name).learning_rate for recipe in (full, small, again)]
        assert rates == pytest.approx([rates[0], rates[0], 5 * rates[0]])
    assert again.schedule.at["128"].stable_images in (40_000, 70_000, 100_000)


def test_the_command_trains_draws_and_goes_on(command, toy: Path, tmp_path: Path):
    arguments = [
        "ladder",
        "--data",
        toy,
        "--out",
        tmp_path,
        "--resolution",
        16,
        "--images",
        1000,
        "--maps",
        16,
    ]
    arguments += ["--swd-images", 20, "--device", "cpu", "--json", "--rung", "a", "--rung", "e-star"]
    first = command(bench, *arguments)
    assert first.exit_code == 0, first.stderr
    result = json.loads(first.stdout)
    assert [row["rung"] for row in result["rows"]] == ["a", "e-star"]
    assert result["rows"][0]["generator_steps"] == 4  # 1280 images, 5 x 64 a step
    assert all(row["swd"].keys() == {"16", "average"} for row in result["rows"])
    assert 0 < result["photographs"]["swd"]["16"] < min(row["swd"]["16"] for row in result["rows"])
    pictures = np.concatenate([*ladder.faces(tmp_path / "ladder-a", 20, torch.device("cpu"))])
    pairs = [(i, j) for i in range(20) for j in range(i)]
    a, b = (torch.tensor(pictures[[pair[k] for pair in pairs]]).permute(0, 3, 1, 2).float() for k in (0, 1))
    assert result["rows"][0]["ms_ssim"] == pytest.approx(float(ms_ssim(a, b).mean()), rel=1e-4)
    assert "| 9.28 | 0.2854 |" in (tmp_path / "ladder.md").read_text()
    with Image.open(tmp_path / "ladder.png") as picture:
        assert picture.size == (12 * (64 + 2) + 2, 2 * (22 + 2 * (64 + 2) + 2))
    assert "| (e*) + minibatch discrimination | " in (tmp_path / "ladder.md").read_text()
    before = {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*.safetensors")}
    second = command(bench, *arguments)
    assert json.loads(second.stdout)["rows"] == result["rows"]
    assert {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*.safetensors")} == before
    other = command(bench, *arguments, "--set", "objective.drift=0.5")
    assert other.exit_code == 1
    assert "is a run of other settings" in other.stderr


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rungs": ("i",)}, "--rung = 'i' is not one of"),
        ({"resolution": 48}, "--resolution 48 is not 16, 32, 64 or 128"),
        ({"rates": 0.0}, "--rates 0.0 is not above 0"),
        ({"images": 10}, "--images 10: a rung needs at least 1000"),
    ],
)
def test_wrong_settings_are_one_line(changes: dict[str, Any], message: str, tmp_path: Path):
    with pytest.raises(PgsrError, match=message):
        settings_of(tmp_path, **changes)
