"""Generators that are told labels: which labels go where, what is learned from them, and their export."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from pgsr import draws
from pgsr.errors import PgsrError
from pgsr.export.lowering import Grown
from pgsr.export.rewrites.table import rewritten
from pgsr.export.source import at_resolution, read_source
from pgsr.networks import DISCRIMINATORS, GENERATORS, build, layers
from pgsr.trainer import cli
from pgsr.trainer.step import recipe as config
from pgsr.trainer.step.batches import LatentBatches
from pgsr.trainer.step.parallel import ALONE, Ranks
from pgsr.trainer.step.pixels import data_indices
from pgsr.trainer.step.schedule import Schedule
from pgsr.trainer.step.schedule import build as build_schedule
from pgsr.trainer.step.trainer import Trainer
from pictures import write_zip

CPU = torch.device("cpu")
GREYS = (40, 128, 215)  # of label 0, 1 and 2
LABELS = [(0, 1, 2, 2)[i % 4] for i in range(40)]  # label 2 twice as often as the others

RECIPE: dict[str, Any] = {
    "name": "told",
    "about": "for tests",
    "generator": {"kind": "progan", "resolution": 8, "latent_size": 5, "feature_base": 64, "labels": 3},
    "discriminator": {"kind": "progan", "resolution": 8, "feature_base": 64, "labels": 3},
    "schedule": {"resolution": 8, "batch": 8, "fade_images": 64, "stable_images": 640},
    "objective": {"gradient_penalty": 10.0, "drift": 0.001},
    "generator_optimizer": {"learning_rate": 0.001},
    "critic_optimizer": {"learning_rate": 0.001},
    "data": {"mirror": False},
    "run": {"precision": "float32"},
}


def grey(value: int, seed: int) -> bytes:
    noise = np.random.default_rng(seed).integers(-20, 21, (8, 8, 3))
    buffer = io.BytesIO()
    Image.fromarray((value + noise).astype(np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()


def write_archive(path: Path, labels: list[int] | None) -> Path:
    """Pictures whose grey is their label's."""
    members = [(f"8/{i:06d}.png", grey(GREYS[label], i)) for i, label in enumerate(LABELS)]
    if labels is not None:
        names = [str(i) for i in range(max(labels) + 1)]
        members.append(("labels.json", json.dumps({"names": names, "labels": labels}).encode()))
    return write_zip(path, members)


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_archive(tmp_path_factory.mktemp("greys") / "greys.zip", LABELS)


def recipe_of(**changes: dict[str, Any]) -> config.Recipe:
    return config.from_dict(
        {k: {**v, **changes.get(k, {})} if isinstance(v, dict) else v for k, v in RECIPE.items()}
    )


def parts(recipe: config.Recipe, archive: Path, ranks: Ranks = ALONE) -> tuple[LatentBatches, Schedule]:
    batches = LatentBatches(recipe, archive, CPU, ranks)
    return batches, build_schedule(recipe.schedule, 1, batches.count)


# ----------------------------------------------------------------------------
# Batches.


def test_the_critic_sees_pictures_with_their_own_labels(archive: Path):
    recipe = recipe_of()
    batches, schedule = parts(recipe, archive)
    for start in (0, 8, 72, 640):
        batch = batches.for_critic(schedule.at(start), start)
        indices = data_indices(recipe.seed, range(start, start + 8), 40)
        assert batch.labels is not None
        assert batch.labels.tolist() == [LABELS[i] for i in indices]
        means = (batch.reals.mean(dim=(1, 2, 3)) + 1) * 127.5
        assert [GREYS[label] for label in batch.labels] == pytest.approx(means.tolist(), abs=8)
        expected = draws.normals(recipe.seed, "critic latent", range(start, start + 8), 5)
        assert torch.equal(batch.inputs[:, :5], torch.from_numpy(expected))
        assert torch.equal(batch.inputs[:, 5:], torch.eye(3)[batch.labels])


def test_the_generator_is_told_labels_as_often_as_pictures_have_them(archive: Path):
    batches, schedule = parts(recipe_of(), archive)
    counts = np.zeros(3)
    for start in range(0, 4000, 8):
        batch = batches.generator_inputs(schedule.at(0), start, batches.for_critic(schedule.at(0), start))
        assert batch.labels is not None
        assert torch.equal(batch.inputs[:, 5:], torch.eye(3)[batch.labels])
        counts += np.bincount(batch.labels.numpy(), minlength=3)
    assert counts / counts.sum() == pytest.approx([0.25, 0.25, 0.5], abs=0.03)
    again = batches.generator_inputs(schedule.at(0), 3992, None)
    assert torch.equal(again.inputs, batch.inputs)  # a function of images shown
    first = batches.generator_inputs(schedule.at(0), 0, None)
    assert first.labels is not None
    assert not torch.equal(first.labels, batches.for_critic(schedule.at(0), 0).labels)  # type: ignore[arg-type]


def test_ranks_share_labels_as_they_share_pictures(archive: Path):
    recipe = recipe_of()
    whole, schedule = parts(recipe, archive)
    for method in ("for_critic", "generator_inputs"):
        shares = []
        for rank in range(2):
            batches = LatentBatches(recipe, archive, CPU)
            batches.ranks = Ranks(rank, 2)
            more = () if method == "for_critic" else (None,)
            shares.append(getattr(batches, method)(schedule.at(0), 16, *more))
        alone = getattr(whole, method)(schedule.at(0), 16, *more)
        assert torch.equal(torch.stack([s.labels for s in shares], 1).flatten(), alone.labels)
        assert torch.equal(torch.stack([s.inputs for s in shares], 1).flatten(0, 1), alone.inputs)


def test_previews_take_the_labels_in_turn(archive: Path):
    batches, _ = parts(recipe_of(), archive)
    inputs = batches.preview(7)
    assert torch.equal(inputs[:, :5], torch.from_numpy(draws.latents(0, range(7), 5)))
    assert inputs[:, 5:].argmax(1).tolist() == [0, 1, 2, 0, 1, 2, 0]
    assert torch.equal(inputs[:, 5:].sum(1), torch.ones(7))


def test_without_labels_nothing_is_told(archive: Path):
    recipe = recipe_of(generator={"labels": 0}, discriminator={"labels": 0})
    batches, schedule = parts(recipe, archive)
    for batch in (batches.for_critic(schedule.at(0), 0), batches.generator_inputs(schedule.at(0), 0, None)):
        assert batch.labels is None
        assert batch.inputs.shape == (8, 5)


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (None, "has no labels, but generator.labels is 3"),
        ([3] * 40, "has labels up to 3, but generator.labels is 3"),
    ],
)
def test_archives_that_do_not_fit(labels: list[int] | None, message: str, tmp_path: Path):
    with pytest.raises(PgsrError, match=message):
        LatentBatches(recipe_of(), write_archive(tmp_path / "other.zip", labels), CPU)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"generator": {"labels": 0}}, "generator.labels is 0, but discriminator.labels is 3"),
        ({"discriminator": {"labels": 2}}, "generator.labels is 3, but discriminator.labels is 2"),
        ({"data": {"stacked": True}}, "data.stacked makes images of three pictures"),
    ],
)
def test_recipes_that_do_not_fit(changes: dict[str, Any], message: str):
    with pytest.raises(PgsrError, match=message):
        recipe_of(**changes)


# ----------------------------------------------------------------------------
# Networks and losses.


@torch.no_grad()
def test_the_hypersphere_is_of_latent_and_label_together():
    """As in the original code: the one-hot label is appended first, then normalised with the latent."""
    network = build(GENERATORS, RECIPE["generator"]).double()
    z, label = torch.randn(2, 5, dtype=torch.float64), torch.eye(3, dtype=torch.float64)[[1, 2]]
    inputs = torch.cat([z, label], 1)
    unit = inputs / (inputs.square().sum(1, keepdim=True) / 8 + 1e-8).sqrt()
    first = network.blocks[0].first
    seen: list[Tensor] = []
    first.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    network(inputs)
    torch.testing.assert_close(seen[0], unit, rtol=1e-12, atol=0)
    assert first.weight.shape == (16 * 16, 8)


@torch.no_grad()
def test_a_critic_with_labels_gives_the_score_and_a_logit_a_label():
    told = build(DISCRIMINATORS, RECIPE["discriminator"])
    plain = build(DISCRIMINATORS, {**RECIPE["discriminator"], "labels": 0})
    images = torch.randn(4, 3, 8, 8)
    out = told(images)
    assert out.shape == (4, 4)
    weights = {**told.state_dict(), "last_block.dense.weight": told.last_block.dense.weight[:1]}
    weights["last_block.dense.bias"] = told.last_block.dense.bias[:1]
    plain.load_state_dict(weights)
    torch.testing.assert_close(plain(images), out[:, 0], rtol=1e-5, atol=1e-6)


def trainer_of(archive: Path, **changes: Any) -> Trainer:
    recipe = recipe_of(**changes)
    batches, schedule = parts(recipe, archive)
    return Trainer(recipe, schedule, batches, CPU, ALONE)


def test_the_label_term_reaches_both_networks(archive: Path):
    trainer = trainer_of(archive)
    stage = trainer.stage()
    batch = trainer.batches.for_critic(stage, 0)
    fakes = trainer._fakes(batch, stage, 0)
    losses, _ = trainer.critic_losses[""](batch.reals, fakes, torch.full((8,), 0.5), stage, batch.labels)
    losses["labels"].backward()
    critic = trainer.state.discriminator
    assert critic is not None
    assert critic.last_block.dense.weight.grad[1:].abs().min() > 0
    assert not critic.last_block.dense.weight.grad[0].any()  # the score is none of its business
    inputs = trainer.batches.generator_inputs(stage, 0, batch)
    losses, _ = trainer.generator_loss(inputs, stage, lambda images: images)
    losses["labels"].backward()
    assert trainer.state.generator.blocks[0].first.weight.grad[:, 5:].abs().max() > 0


def test_the_label_term_is_the_cross_entropy_of_reals_and_fakes(archive: Path):
    trainer = trainer_of(archive, objective={"label_weight": 0.7})
    stage = trainer.stage()
    batch = trainer.batches.for_critic(stage, 0)
    fakes = trainer._fakes(batch, stage, 0)
    losses, _ = trainer.critic_losses[""](batch.reals, fakes, torch.full((8,), 0.5), stage, batch.labels)
    generate, critic = trainer.state.generator.at(4, 1.0), trainer.state.discriminator
    assert critic is not None
    with torch.no_grad():
        both = [F.log_softmax(critic(x)[:, 1:], 1) for x in (batch.reals, generate(batch.inputs))]
    assert batch.labels is not None
    expected = -0.7 * sum(log[torch.arange(8), batch.labels].mean() for log in both)
    assert losses["labels"].item() == pytest.approx(float(expected), rel=1e-5)


def test_the_generator_learns_what_it_is_told(archive: Path):
    """At 4 x 4, each label's pictures come out as dark as its photographs, whatever the latent."""
    trainer = trainer_of(
        archive,
        generator={"resolution": 4},
        discriminator={"resolution": 4},
        schedule={"resolution": 4, "stable_images": 2000},
        data={"resolution": 8},
        objective={"adversarial": "logistic", "gradient_penalty": 0.0, "drift": 0.0, "r1": 1.0},
        generator_optimizer={"learning_rate": 0.01},
        critic_optimizer={"learning_rate": 0.01},
    )
    while trainer.state.images_shown < 2000:
        trainer.step()
    z = torch.from_numpy(draws.latents(5, range(32), 5))
    with torch.no_grad():
        made = [trainer.state.generator(torch.cat([z, torch.eye(3)[[k] * 32]], 1)).mean() for k in range(3)]
    assert [(float(mean) + 1) * 127.5 for mean in made] == pytest.approx(list(GREYS), abs=40)


# ----------------------------------------------------------------------------
# The command, and export.


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, archive: Path, command) -> Path:
    """A short run through the command."""
    folder = tmp_path_factory.mktemp("told")
    text = "\n".join(
        f"{k} = {json.dumps(v)}" for k, v in RECIPE.items() if not isinstance(v, dict) and k != "name"
    )
    for table, options in RECIPE.items():
        if isinstance(options, dict):
            text += f"\n[{table}]\n" + "\n".join(f"{k} = {json.dumps(v)}" for k, v in options.items())
    (folder / "told.toml").write_text(text + "\n")
    made = command(
        cli.main,
        folder / "told.toml",
        "--data",
        archive,
        "--out",
        folder / "run",
        "--device",
        "cpu",
        "--set",
        "schedule.stable_images=64",
    )
    assert made.exit_code == 0, made.stderr
    return folder / "run"


def test_a_run_logs_the_label_loss(run: Path):
    last = json.loads((run / "metrics.jsonl").read_text().splitlines()[-1])
    assert last["loss/labels"] > 0


def test_an_exported_label_is_that_label(run: Path):
    z = torch.from_numpy(draws.latents(1, range(3), 5))
    sources = [read_source(run, label) for label in range(3)]
    network = sources[0].network.generator
    with torch.no_grad():
        for label, source in enumerate(sources):
            told = torch.cat([z, torch.eye(3)[[label] * 3]], 1)
            folded, applied = rewritten(Grown(source.generator, 8))
            assert "fold-gains" in applied
            torch.testing.assert_close(folded(z), network(told), rtol=1e-5, atol=1e-5)
            (smaller,) = at_resolution([source], 4)
            torch.testing.assert_close(Grown(smaller.generator, 4)(z), network(told, 4))
            assert (source.latent_size, source.provenance["label"]) == (5, label)
    assert not torch.equal(sources[0].network(z), sources[1].network(z))


def test_the_export_command_takes_a_label(run: Path, tmp_path: Path, command):
    pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    from pgsr import bundle
    from pgsr.export.cli import main
    from pgsr.export.parity import session_of

    made = command(main, run, "--out", tmp_path / "b", "--label", 2, "--samples", 4)
    assert made.exit_code == 0, made.stderr
    written = bundle.read(tmp_path / "b")
    assert written.provenance["generator"]["label"] == 2
    z = draws.latents(3, range(4), 5)
    pixels = session_of(written.path(written.graph("chain")).read_bytes())(z).astype(int)
    with torch.no_grad():
        images = read_source(run, 2).network(torch.from_numpy(z)).numpy()
    expected = np.rint(np.clip((images + 1) * 127.5, 0, 255)).transpose(0, 2, 3, 1)
    assert np.abs(pixels - expected).max() <= 1


@pytest.mark.parametrize("label", [None, 3, -1])
def test_a_missing_or_wrong_label_is_one_line(run: Path, label: int | None):
    words = "name one with --label, 0 to 2" if label is None else f"--label {label}: .* labels, 0 to 2"
    with pytest.raises(PgsrError, match=words):
        read_source(run, label)


def test_a_label_of_a_generator_without_any_is_an_error(tmp_path: Path, archive: Path, command):
    options = ["--set", "generator.labels=0", "--set", "discriminator.labels=0"]
    made = command(
        cli.main,
        "tiny",
        "--data",
        archive,
        "--out",
        tmp_path / "run",
        "--device",
        "cpu",
        *options,
        "--set",
        "schedule.resolution=8",
        "--set",
        "schedule.fade_images=0",
        "--set",
        "schedule.stable_images=16",
    )
    assert made.exit_code == 0, made.stderr
    with pytest.raises(PgsrError, match=r"--label 1: .* was trained without labels"):
        read_source(tmp_path / "run", 1)


def test_the_recipe_for_cifar_10_is_the_papers():
    for name, labels in (("progan-cifar10", 0), ("progan-cifar10-labels", 10)):
        recipe = config.load(name)
        assert recipe.objective.gradient_target == 750.0
        assert not recipe.data.mirror
        assert recipe.generator["labels"] == recipe.discriminator["labels"] == labels
        assert recipe.schedule.resolutions == [4, 8, 16, 32]
        assert build_schedule(recipe.schedule).total_images == 20_000_000
        with torch.device("meta"):
            generator = build(GENERATORS, recipe.generator)
        assert isinstance(generator.blocks[0].first, layers.VanillaFirstLayer)
        assert generator.blocks[0].first.weight.shape == (512 * 16, 512 + labels)
