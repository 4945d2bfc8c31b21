"""Training through its command: exact resuming, clean stops, one-line errors."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from pgsr.checkpoint import Checkpoint, load
from pgsr.networks import GENERATORS, build
from pgsr.networks.pixels import from_pixels
from pgsr.trainer import cli
from pgsr.trainer import start as beginning
from pgsr.trainer.data.cache import load_photographs
from pgsr.trainer.loop import StopRequest
from pgsr.trainer.run_folder import cost
from pgsr.trainer.step import recipe as config
from pgsr.trainer.step import schedule, state
from pgsr.trainer.step import trainer as loop
from pgsr.trainer.step.tables import AveragingConfig, OptimizerConfig, ScheduleConfig
from pictures import flipped, png, write_zip
from processes import CLOCKED

PROGAN = """
about = "for tests"
[generator]
kind = "progan"
resolution = 16
latent_size = 8
feature_base = 128
feature_max = 8
convolution = "separable"
[discriminator]
kind = "progan"
resolution = 16
feature_base = 128
feature_max = 8
[schedule]
resolution = 16
batch = 8
fade_images = 64
stable_images = 32
[schedule.at.16]
batch = 4
[objective]
gradient_penalty = 10.0
drift = 0.001
critic_steps = 1
[averaging]
half_life_images = 50.0
[run]
log_images = 8
sample_images = 40
checkpoint_images = 1000
sample_grid = 9
"""

UPSCALER = """
about = "for tests"
discriminator = {}
[generator]
kind = "compact"
scale = 2
features = 8
layers = 1
[schedule]
resolution = 16
start_resolution = 16
batch = 4
stable_images = 240
[objective]
adversarial = "none"
pixel = "l1"
[generator_optimizer]
learning_rate = 0.005
beta1 = 0.9
[data]
resolution = 16
[run]
log_images = 4
sample_images = 1000
checkpoint_images = 1000
sample_grid = 4
"""


@pytest.fixture(scope="module")
def recipes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("recipes")
    (folder / "progan.toml").write_text(PROGAN)
    (folder / "upscaler.toml").write_text(UPSCALER)
    return folder


class StopAfter(StopRequest):
    """A stop that is due after so many steps."""

    steps = 0

    def __init__(self, minutes: float | None) -> None:
        super().__init__(minutes)
        self.left = self.steps

    @property
    def due(self) -> bool:
        self.left -= 1
        return self.left < 0


@pytest.fixture
def train(command, recipes: Path, toy: Path, monkeypatch: pytest.MonkeyPatch):
    """train("progan", out, "--flag", ..., steps=N): the command in this process, stopped after N steps."""

    def run(recipe: str, out: Path, *arguments: Any, steps: int | None = None):
        with monkeypatch.context() as patch:
            if steps is not None:
                patch.setattr(StopAfter, "steps", steps)
                patch.setattr(beginning, "StopRequest", StopAfter)
            return command(
                cli.main,
                recipes / f"{recipe}.toml",
                "--data",
                toy,
                "--out",
                out,
                "--device",
                "cpu",
                *arguments,
            )

    return run


def succeeded(result) -> str:
    assert result.exit_code == 0, result.stderr
    return result.stdout


def checkpoints(run: Path) -> dict[str, Checkpoint]:
    return {p.name: load(p) for p in sorted((run / "checkpoints").glob("*.safetensors"))}


def sheets(run: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in sorted((run / "samples").iterdir())}


def metrics(run: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def assert_same_checkpoints(one: dict[str, Checkpoint], other: dict[str, Checkpoint]) -> None:
    """Weights, averages, moments and step counts, to the bit."""
    assert one.keys() == other.keys()
    for name in one:
        a, b = one[name], other[name]
        assert (a.config, a.progress, a.provenance) == (b.config, b.progress, b.provenance)
        assert a.tensors.keys() == b.tensors.keys()
        different = [k for k in a.tensors if not torch.equal(a.tensors[k], b.tensors[k])]
        assert not different, f"{name}: {different}"


# ----------------------------------------------------------------------------
# Resuming.

TOTAL = 32 + 64 + 32 + 64 + 32


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory, command, recipes: Path, toy: Path) -> Path:
    out = tmp_path_factory.mktemp("runs") / "whole"
    arguments = (recipes / "progan.toml", "--data", toy, "--out", out, "--device", "cpu", "--json")
    result = json.loads(succeeded(command(cli.main, *arguments)))
    assert result == {"run": str(out), "images_shown": TOTAL, "finished": True}
    return out


def test_a_run_writes_what_contract_1_says(uninterrupted: Path):
    assert {p.name for p in uninterrupted.iterdir()} == {
        "config.json",
        "checkpoints",
        "samples",
        "metrics.jsonl",
        "tensorboard",
    }
    kept = checkpoints(uninterrupted)
    assert list(kept) == [f"{n:09d}.safetensors" for n in (32, 96, 128, 192, 224)]  # the end of each phase
    last = kept[f"{TOTAL:09d}.safetensors"]
    assert {k.split(".")[0] for k in last.tensors} == {
        "generator",
        "generator_ema",
        "discriminator",
        "optimizer",
        "watch",
    }
    assert last.progress["images_shown"] == TOTAL
    assert last.progress["step"] == 4 + 8 + 4 + 16 + 8
    assert last.provenance["data"]["pictures"] == 40
    written = json.loads((uninterrupted / "config.json").read_text())
    chosen = written.pop("chosen")
    assert chosen == {"device": "cpu", "precision": os.environ["PGSR_PRECISION"], "residency": "host"}
    assert written == last.config == config.from_dict(written).as_dict()
    assert "/" not in json.dumps(last.provenance)  # no path of this machine


@pytest.mark.parametrize("stops", [[8], [4, 9], [1, 12, 22, 23]])
def test_a_resumed_run_is_the_uninterrupted_one_to_the_bit(
    train, uninterrupted: Path, tmp_path: Path, stops: list[int]
):
    """Stopped in the middle of a fade (step 8 is in fade 8, 22 in fade 16), and at phase ends."""
    out, done = tmp_path / "resumed", 0
    for i, step in enumerate(stops):
        text = succeeded(train("progan", out, *(["--resume"] if i else []), steps=step - done))
        assert "; to go on: pgsr-train" in text
        done = step
    succeeded(train("progan", out, "--resume"))
    final = f"{TOTAL:09d}.safetensors"
    assert_same_checkpoints({final: checkpoints(uninterrupted)[final]}, {final: checkpoints(out)[final]})
    whole, parts = sheets(uninterrupted), sheets(out)
    assert whole == parts
    for a, b in zip(metrics(uninterrupted), metrics(out), strict=True):
        assert {k: v for k, v in a.items() if k not in CLOCKED} == {
            k: v for k, v in b.items() if k not in CLOCKED
        }


def test_resuming_from_an_older_checkpoint_forgets_what_came_after(
    train, uninterrupted: Path, tmp_path: Path
):
    out = tmp_path / "copy"
    shutil.copytree(uninterrupted, out)
    for path in sorted((out / "checkpoints").iterdir())[2:]:
        path.unlink()
    with open(out / "metrics.jsonl", "a") as file:
        file.write('{"images_shown": 9')  # cut in half by a crash
    succeeded(train("progan", out, "--resume"))
    shown = [line["images_shown"] for line in metrics(out)]
    assert shown == sorted(set(shown)) == [line["images_shown"] for line in metrics(uninterrupted)]
    whole, again = checkpoints(uninterrupted), checkpoints(out)
    assert_same_checkpoints(whole, again)


def test_alpha_and_resolution_are_logged_as_scheduled(uninterrupted: Path):
    recipe = config.from_dict(json.loads((uninterrupted / "config.json").read_text()))
    built = schedule.build(recipe.schedule)
    for line in metrics(uninterrupted):
        batch = line["batch"]
        stage = built.at(int(line["images_shown"] - batch))
        assert (line["resolution"], line["alpha"], batch) == (stage.resolution, stage.alpha, stage.batch)
        assert {"loss/critic", "loss/generator", "loss/gradient penalty", "loss/drift"} <= line.keys()


def test_the_seed_and_nothing_else_decides_the_weights(train, tmp_path: Path):
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        succeeded(train("progan", tmp_path / name, "--seed", seed, steps=2))
    a, b, c = (checkpoints(tmp_path / name) for name in "abc")
    assert_same_checkpoints(a, b)
    key = "generator.to_rgb.0.weight"
    assert not torch.equal(a["000000016.safetensors"].tensors[key], c["000000016.safetensors"].tensors[key])


def test_old_checkpoints_go_but_the_ends_of_phases_stay(train, tmp_path: Path):
    settings = ["--set", "run.checkpoint_images=8", "--set", "run.keep_checkpoints=2"]
    succeeded(train("progan", tmp_path / "run", *settings, steps=9))
    assert [int(n[:9]) for n in checkpoints(tmp_path / "run")] == [32, 64, 72]


# ----------------------------------------------------------------------------
# Stopping.


def start(recipes: Path, toy: Path, out: Path, *arguments: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "pgsr.trainer", str(recipes / "progan.toml")]
    command += ["--data", str(toy), "--out", str(out), "--device", "cpu", *arguments]
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=Path(__file__).parents[1]
    )


def test_sigterm_leaves_a_checkpoint_and_the_command_to_go_on(recipes: Path, toy: Path, tmp_path: Path):
    out = tmp_path / "with space"
    long = "--set", "schedule.stable_images=1000000"
    process = start(recipes, toy, out, *long)
    deadline = time.monotonic() + 600
    while not (out / "metrics.jsonl").is_file() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    stdout, stderr = process.communicate(timeout=600)
    assert process.returncode == 0, stderr
    assert "Traceback" not in stderr
    (name,) = checkpoints(out)
    shown = int(name[:9])
    assert stdout == (
        f"{out}: {shown} images shown; to go on: pgsr-train {recipes / 'progan.toml'} --data {toy} "
        f"--out '{out}' --device cpu {' '.join(long)} --resume\n"
    )


def test_minutes_stop_the_run(monkeypatch: pytest.MonkeyPatch):
    now = 1000.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    with StopRequest(2.0) as stop, StopRequest(None) as never:
        now = 1119.0
        assert not stop.due
        now = 1120.0
        assert stop.due
        assert not never.due


def test_a_run_stopped_before_its_first_step_can_be_started_again(train, tmp_path: Path):
    text = succeeded(train("progan", tmp_path / "run", steps=0))
    assert "0 images shown; to go on: pgsr-train" in text
    assert "--resume" not in text  # there is nothing to resume from
    succeeded(train("progan", tmp_path / "run", steps=1))
    assert list(checkpoints(tmp_path / "run")) == ["000000008.safetensors"]


# ----------------------------------------------------------------------------
# Super-resolution.


def test_pixel_loss_falls(train, tmp_path: Path, toy: Path):
    """From what replication misses, over all pictures."""
    succeeded(train("upscaler", tmp_path / "run"))
    (checkpoint,) = checkpoints(tmp_path / "run").values()
    network = build(GENERATORS, checkpoint.config["generator"], checkpoint.config["seed"])
    before = pixel_error(network, toy)
    network.load_state_dict(checkpoint.under("generator."))
    after = pixel_error(network, toy)
    assert after < 0.85 * before


def pixel_error(network: torch.nn.Module, toy: Path) -> float:
    """Mean absolute difference between pictures of 16 and pictures of 8 made twice as large."""
    high, low = (from_pixels(torch.tensor(load_photographs(toy, size).pixels)) for size in (16, 8))
    with torch.no_grad():
        return (network(low) - high).abs().mean().item()


def test_super_resolution_goes_on_with_a_critic(train, tmp_path: Path):
    """Pixel loss first; then from its weights with an adversarial loss, which resumes exactly too."""
    succeeded(train("upscaler", tmp_path / "pixel", steps=8))
    adversarial = ["--set", "objective.adversarial=logistic", "--set", "objective.adversarial_weight=0.01"]
    critic = {"kind": '"srgan"', "crop": 16, "features": 4, "dense": 8}
    for key, value in critic.items():
        adversarial += ["--set", f"discriminator.{key}={value}"]
    begun = [*adversarial, "--start-from", tmp_path / "pixel"]
    succeeded(train("upscaler", tmp_path / "whole", *begun, steps=6))
    succeeded(train("upscaler", tmp_path / "parts", *begun, steps=3))
    succeeded(train("upscaler", tmp_path / "parts", *adversarial, "--resume", steps=3))
    name = "000000024.safetensors"
    whole, parts = checkpoints(tmp_path / "whole"), checkpoints(tmp_path / "parts")
    assert_same_checkpoints({name: whole[name]}, {name: parts[name]})
    assert "discriminator.convolutions.3.running_mean" in whole[name].tensors
    assert {"loss/pixel", "loss/generator", "loss/critic"} <= metrics(tmp_path / "whole")[0].keys()


def test_starting_from_takes_the_averaged_generator(train, tmp_path: Path):
    succeeded(train("upscaler", tmp_path / "first", steps=5))
    frozen = ["--set", "generator_optimizer.learning_rate=0.0"]
    succeeded(train("upscaler", tmp_path / "second", "--start-from", tmp_path / "first", *frozen, steps=1))
    (first,), (second,) = checkpoints(tmp_path / "first").values(), checkpoints(tmp_path / "second").values()
    average, raw = first.under("generator_ema."), first.under("generator.")
    for prefix in ("generator.", "generator_ema."):
        begun = second.under(prefix)
        assert all(torch.equal(begun[k], average[k]) for k in average)
    assert any(not torch.equal(raw[k], average[k]) for k in average)


# ----------------------------------------------------------------------------
# The running average.


def test_the_average_is_its_formula():
    networks = [build(GENERATORS, {"kind": "srresnet", "features": 4, "blocks": 1}, seed) for seed in (0, 1)]
    average, network = networks
    network.trunk_bn.running_mean.fill_(3.0)
    before = {k: v.double().clone() for k, v in average.named_parameters()}
    state.update_average(average, network, 0.9)
    theirs = dict(network.named_parameters())
    for name, parameter in average.named_parameters():
        expected = 0.9 * before[name] + 0.1 * theirs[name].double()
        torch.testing.assert_close(parameter.double(), expected, rtol=1e-6, atol=1e-7)
    assert (average.trunk_bn.running_mean == 3).all()


def stage_of(batch: int, images_shown: int = 0) -> schedule.Stage:
    """A stage of a schedule 4, 8 whose fade to 8 begins at 1600 images."""
    plan = ScheduleConfig(8, fade_images=800, stable_images=1600, batch=batch)
    return schedule.build(plan).at(images_shown)


def test_half_life_means_the_same_at_any_batch():
    """A weight that jumps from 0 to 1: the average after 240 images, and after one half-life."""
    halving = AveragingConfig(half_life_images=48.0)
    for images, expected in ((48, 0.5), (240, 1 - 0.5**5)):
        for batch in (4, 16):
            average, network = torch.nn.Linear(1, 1).double(), torch.nn.Linear(1, 1).double()
            torch.nn.init.zeros_(average.weight)
            torch.nn.init.ones_(network.weight)
            for _ in range(images // batch):
                state.update_average(average, network, state.average_decay(halving, stage_of(batch)))
            assert average.weight.item() == pytest.approx(expected, rel=1e-12)


def test_without_half_life_the_decay_is_a_step():
    for batch in (4, 16):
        assert state.average_decay(AveragingConfig(decay=0.999), stage_of(batch)) == 0.999


def test_rampup_forgets_untrained_layers():
    """At the start of a resolution nothing is kept; later the half-life grows to its own value."""
    ramped = AveragingConfig(half_life_images=100.0, rampup=0.5)
    assert state.average_decay(ramped, stage_of(8, 1600)) == 0.0
    for shown, half_life in ((1640, 20), (1680, 40), (1800, 100), (3000, 100)):
        assert state.average_decay(ramped, stage_of(8, shown)) == pytest.approx(0.5 ** (8 / half_life))
    unramped = AveragingConfig(decay=0.999, rampup=1e9)
    assert state.average_decay(unramped, stage_of(8, 1608)) == pytest.approx(0.999)


# ----------------------------------------------------------------------------
# Optimizers.


def make_trainer(recipes: Path, toy: Path, *settings: str) -> loop.Trainer:
    recipe = config.load(str(recipes / "progan.toml"), settings)
    built = schedule.build(recipe.schedule, recipe.objective.critic_steps)
    return loop.make_trainer(recipe, built, toy, torch.device("cpu"))


def steps_counted(optimizer: torch.optim.Optimizer | None) -> set[int]:
    assert optimizer is not None
    return {int(s["step"]) for s in optimizer.state.values()}


def test_moments_are_cleared_exactly_when_a_phase_begins(recipes: Path, toy: Path):
    trainer = make_trainer(recipes, toy, "schedule.resolution=8")
    for _ in range(4 + 8 + 4):
        stage = trainer.stage()
        trainer.step()
        within = (trainer.state.images_shown - stage.phase.start) // stage.batch
        counted = {within}
        if stage.phase.fading and stage.alpha == 1.0:
            counted.add(within - 1)  # the old to_rgb and from_rgb, which no longer count
        assert steps_counted(trainer.state.generator_optimizer) == counted
        assert steps_counted(trainer.state.critic_optimizer) == counted


def test_moments_can_be_kept(recipes: Path, toy: Path):
    trainer = make_trainer(recipes, toy, "critic_optimizer.reset_on_growth=false", "schedule.resolution=8")
    for _ in range(6):
        trainer.step()
    assert max(steps_counted(trainer.state.critic_optimizer)) == 6
    assert max(steps_counted(trainer.state.generator_optimizer)) == 2


def test_the_first_step_is_adams(recipes: Path, toy: Path):
    """beta1 = 0: every weight with a gradient moves by learning_rate * g / (|g| + eps)."""
    trainer = make_trainer(recipes, toy, "critic_optimizer.learning_rate=0.01")
    critic = trainer.state.discriminator
    before = {k: v.detach().double().clone() for k, v in critic.named_parameters()}
    gradients: dict[str, torch.Tensor] = {}
    step = trainer.state.critic_optimizer.step

    def noting() -> None:
        gradients.update(
            {k: p.grad.double().clone() for k, p in critic.named_parameters() if p.grad is not None}
        )
        step()

    trainer.state.critic_optimizer.step = noting
    trainer.step()
    for name, parameter in critic.named_parameters():
        moved = parameter.detach().double() - before[name]
        if name in gradients:
            g = gradients[name]
            torch.testing.assert_close(moved, -0.01 * g / (g.abs() + 1e-8), rtol=1e-3, atol=1e-6)
        else:
            assert not moved.any(), f"{name} is not grown in, yet it moved"
    assert "blocks.0.conv1.weight" not in gradients
    assert "from_rgb.0.weight" in gradients


def test_learning_rates_begin_where_they_say():
    rates = OptimizerConfig(learning_rate=0.1, learning_rate_from={"100": 0.01, "20": 0.05})
    asked = [(0, 0.1), (19, 0.1), (20, 0.05), (99, 0.05), (100, 0.01), (10**9, 0.01)]
    assert [state.learning_rate(rates, shown) for shown, _ in asked] == [rate for _, rate in asked]


def test_critic_steps_show_that_many_batches(recipes: Path, toy: Path):
    trainer = make_trainer(recipes, toy, "objective.critic_steps=3")
    terms = trainer.step()
    assert trainer.state.images_shown == 3 * 8
    assert steps_counted(trainer.state.critic_optimizer) == {3}
    assert steps_counted(trainer.state.generator_optimizer) == {1}
    assert {"critic", "generator"} <= terms.keys()
    assert not any(t.requires_grad for t in terms.values())


def test_the_critics_weights_get_no_gradient_from_the_generators_step(recipes: Path, toy: Path):
    trainer = make_trainer(recipes, toy)
    before = {k: v.clone() for k, v in trainer.state.discriminator.state_dict().items()}
    trainer.state.critic_optimizer.step = lambda: None
    trainer.step()
    after = trainer.state.discriminator.state_dict()
    assert all(torch.equal(before[k], after[k]) for k in before)
    assert all(p.requires_grad for p in trainer.state.discriminator.parameters())


def test_a_loss_that_is_not_a_number_stops_the_run(train, tmp_path: Path):
    result = train("progan", tmp_path / "run", "--set", "generator_optimizer.learning_rate=1e30", steps=20)
    assert result.exit_code == 1
    assert " is nan at step 1, stable 4 (8 images shown), before the first checkpoint" in result.stderr
    for checkpoint in checkpoints(tmp_path / "run").values():
        assert all(torch.isfinite(t).all() for t in checkpoint.tensors.values())


# ----------------------------------------------------------------------------
# What users get wrong: exit 1 and one line.


def error_line(result) -> str:
    """The one line on stderr that is not progress."""
    assert result.exit_code == 1
    assert result.stdout == ""
    lines = [x for x in result.stderr.replace("\r", "\n").splitlines() if x.strip() and not progress(x)]
    assert len(lines) == 1, lines
    assert lines[0].startswith("error: ")
    return lines[0]


def progress(line: str) -> bool:
    return line.startswith(("decoding:", "training ", "skipped ", "note: "))


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("schedule.bach=4", "unknown key 'schedule.bach'"),
        ("generator.width=4", "unknown option 'width' of 'progan'"),
        ("schedule.batch=x", "schedule.batch is 'x', but must be of type int"),
        ("schedule.resolution=32", "schedule.resolution is 32, but discriminator.resolution is 16"),
        ("generator.convolution=odd", "convolution = 'odd' is not one of 'vanilla', 'separable'"),
    ],
)
def test_wrong_settings_are_one_line(train, tmp_path: Path, setting: str, message: str):
    assert message in error_line(train("progan", tmp_path / "run", "--set", setting))
    assert not (tmp_path / "run").exists()


def test_an_unknown_recipe_is_one_line(command, tmp_path: Path):
    assert "no recipe 'nonsense'" in error_line(command(cli.main, "nonsense", "--data", "x", "--out", "y"))


def test_a_missing_data_option_is_one_line(command, recipes: Path):
    result = command(cli.main, recipes / "progan.toml")
    assert "name the photographs with --data and the run's folder with --out" in error_line(result)


@pytest.mark.parametrize("device", ["tpu9", "nonsense", "meta", "cuda:99"])
def test_a_device_that_is_not_there_is_one_line(train, tmp_path: Path, device: str):
    assert "--device" in error_line(train("progan", tmp_path / "run", "--device", device))


def test_bad_data_are_one_line(command, recipes: Path, tmp_path: Path):
    (tmp_path / "text.zip").write_text("no zip")
    write_zip(tmp_path / "one.zip", [("a.png", png(32))])
    write_zip(tmp_path / "small.zip", [(f"{i}.png", png(8, i)) for i in range(3)])
    for name, message in (
        ("text.zip", "text.zip is not a zip archive of pictures"),
        ("one.zip", "one.zip has 1 usable picture(s) of 16x16; training needs at least 2"),
        ("small.zip", "small.zip has 0 usable picture(s)"),
        ("absent", "no folder or zip of pictures at"),
    ):
        arguments = ("--data", tmp_path / name, "--out", tmp_path / "run", "--device", "cpu")
        assert message in error_line(command(cli.main, recipes / "progan.toml", *arguments))
    assert not (tmp_path / "run").exists()


def test_out_that_is_a_file_is_one_line(train, tmp_path: Path):
    (tmp_path / "taken").write_text("mine")
    assert str(tmp_path / "taken") in error_line(train("progan", tmp_path / "taken"))
    assert (tmp_path / "taken").read_text() == "mine"


def test_an_existing_run_is_not_overwritten(train, uninterrupted: Path):
    before = {p: p.stat().st_mtime_ns for p in uninterrupted.rglob("*")}
    assert "already holds a run: add --resume" in error_line(train("progan", uninterrupted))
    assert {p: p.stat().st_mtime_ns for p in uninterrupted.rglob("*")} == before


def test_resuming_nothing_is_one_line(train, tmp_path: Path):
    assert "holds no checkpoint" in error_line(train("progan", tmp_path / "run", "--resume"))
    assert not (tmp_path / "run").exists()


def test_a_damaged_checkpoint_is_one_line(train, uninterrupted: Path, tmp_path: Path):
    out = tmp_path / "run"
    shutil.copytree(uninterrupted, out)
    newest = max((out / "checkpoints").iterdir())
    newest.write_bytes(flipped(newest.read_bytes(), newest.stat().st_size - 100))
    line = error_line(train("progan", out, "--resume"))
    assert f"{newest} is damaged: its contents do not match its digest; use an older checkpoint" in line


def test_a_checkpoint_of_another_network_is_one_line(train, uninterrupted: Path, tmp_path: Path):
    out = tmp_path / "run"
    shutil.copytree(uninterrupted, out)
    line = error_line(train("progan", out, "--resume", "--set", "generator.latent_size=9"))
    assert "the checkpoint's generator does not fit this recipe" in line


def test_a_checkpoint_of_other_data_is_one_line(command, recipes: Path, uninterrupted: Path, tmp_path: Path):
    other = write_zip(tmp_path / "other.zip", [(f"{i}.png", png(16, 90 + i)) for i in range(3)])
    out = tmp_path / "run"
    shutil.copytree(uninterrupted, out)
    arguments = ("--data", other, "--out", out, "--device", "cpu", "--resume")
    assert "was trained on other data" in error_line(command(cli.main, recipes / "progan.toml", *arguments))


def test_dry_run_prints_the_schedule_and_trains_nothing(command, recipes: Path, tmp_path: Path):
    text = succeeded(command(cli.main, recipes / "progan.toml", "--dry-run", "--out", tmp_path / "run"))
    above, _, rest = text.partition("\n{")
    *rows, footer = above.partition("\nresolution  batch")[0].splitlines()
    assert [" ".join(row.split()).partition(" s a step")[0] for row in rows[:1]] == [
        "phase resolution alpha batch images steps shown at end"
    ]
    found = [tuple(cell.strip() for cell in re.split("  +", row)) for row in rows[1:]]
    assert [row[:7] for row in found[:-1]] == [
        ("stable 4", "4 x 4", "1.00", "8", "32", "4", "32"),
        ("fade 8", "8 x 8", "0.12 -> 1.00", "8", "64", "8", "96"),
        ("stable 8", "8 x 8", "1.00", "8", "32", "4", "128"),
        ("fade 16", "16 x 16", "0.06 -> 1.00", "4", "64", "16", "192"),
        ("stable 16", "16 x 16", "1.00", "4", "32", "8", "224"),
    ]
    assert found[-1][:3] == ("total", "224", "40")
    assert footer.startswith("Times: steps up to ")
    assert config.from_dict(json.loads("{" + rest)) == config.load(str(recipes / "progan.toml"))
    assert not (tmp_path / "run").exists()


def test_dry_run_estimates_the_time(command, recipes: Path):
    arguments = ("--set", "schedule.at.16.stable_images=4000", "--dry-run", "--json")
    found = json.loads(succeeded(command(cli.main, recipes / "progan.toml", *arguments)))
    assert found["total_images"] == 192 + 4000
    assert found["total_steps"] == 32 + 1000
    for row in found["phases"]:
        assert row["seconds"] == pytest.approx(row["seconds_a_step"] * row["steps"])
    assert found["total_seconds"] == pytest.approx(sum(row["seconds"] for row in found["phases"]))


def test_a_schedule_by_epochs_needs_the_data(command, recipes: Path, toy: Path):
    by_epochs = [recipes / "progan.toml", "--dry-run", "--json", "--set", "schedule.stable_epochs=2"]
    by_epochs += ["--set", "schedule.at.4.stable_epochs=1", "--set", "schedule.resolution=8"]
    by_epochs += ["--set", "generator.resolution=8", "--set", "discriminator.resolution=8"]
    assert "schedule.stable_epochs counts passes over the data" in error_line(command(cli.main, *by_epochs))
    found = json.loads(succeeded(command(cli.main, *by_epochs, "--data", toy)))
    assert [row["images"] for row in found["phases"]] == [40, 64, 80]


def test_without_growing_there_is_one_phase(command, recipes: Path):
    arguments = ("--set", "schedule.start_resolution=16", "--dry-run", "--json")
    (row,) = json.loads(succeeded(command(cli.main, recipes / "progan.toml", *arguments)))["phases"]
    assert (row["phase"], row["alpha"], row["steps"]) == ("stable 16", [1.0, 1.0], 8)


def test_a_multiply_add_is_counted_once(recipes: Path):
    """A network without a critic, whose cost is known: 3 x 3 layers, forward and for both gradients."""
    recipe = config.load(str(recipes / "upscaler.toml"))
    (count,) = cost.multiply_adds(recipe, schedule.build(recipe.schedule)).values()
    network = build(GENERATORS, recipe.generator)
    layers = [m for m in network.modules() if isinstance(m, torch.nn.Conv2d)]
    pixels = 4 * 8 * 8  # of a batch, where the layers are
    forward = sum(pixels * m.weight.numel() for m in layers)
    first = pixels * layers[0].weight.numel()  # no gradient for images
    assert count == 3 * forward - first
