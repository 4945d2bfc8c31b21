"""The benchmark of training steps at tiny sizes: its plain reference, its processes, its report."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import Result
from PIL import Image
from torch import Tensor, nn

from pgsr import draws
from pgsr.errors import PgsrError

pytest.importorskip("onnxruntime")

from pgsr.benchmarks.cli import main
from pgsr.benchmarks.harness import machine
from pgsr.benchmarks.references import training as plain_training
from pgsr.benchmarks.training.contender import MultiplyAdds, multiply_adds, ours, reference
from pgsr.benchmarks.training.measure import Child, Settings, draw_pictures, jobs
from pgsr.trainer.step import recipe as config
from pgsr.trainer.step.schedule import build
from pgsr.trainer.step.trainer import Trainer, make_trainer

Command = Callable[..., Result]
CPU = torch.device("cpu")
LATENT, BASE, MOST, BATCH = 12, 160, 20, 8  # maps: 20 at 4 and 8, 10 at 16

TINY = Settings(
    resolutions=(4, 8),
    batch=4,
    rounds=2,
    latent_size=16,
    feature_base=64,
    feature_max=12,
    call_seconds=0.0,
    threads=1,
)


# ----------------------------------------------------------------------------
# The reference's step is the trainer's.

HALVES = {"vanilla": {"": ""}, "separable": {".depthwise": ".0", ".pointwise": ".1"}}  # of a convolution


def layer_names(resolution: int) -> dict[str, dict[str, str]]:
    """Layers of the networks -> those of the plain ones, convolutions of either kind first."""
    last = resolution.bit_length() - 3
    generator = {"blocks.0.first": "first", "blocks.0.conv": "convs.0"}
    critic = {"last_block.conv": "conv", "last_block.last": "last"}
    for i in range(last):
        for j in (1, 2):
            generator[f"blocks.{i + 1}.conv{j}"] = f"convs.{2 * i + j}"
            critic[f"blocks.{i}.conv{j}"] = f"convs.{2 * (last - 1 - i) + j - 1}"
    return {"generator": generator, "critic": critic}


def ends(resolution: int) -> dict[str, dict[str, str]]:
    last = resolution.bit_length() - 3
    return {
        "generator": {f"to_rgb.{last}": "to_rgb"},
        "critic": {f"from_rgb.{last}": "from_rgb", "last_block.dense": "dense"},
    }


def translated(
    tensors: dict[str, Tensor], network: str, convolution: str, resolution: int
) -> dict[str, Tensor]:
    """Weights or gradients under the plain network's names and in its shapes."""
    names = dict(ends(resolution)[network])
    for theirs, mine in layer_names(resolution)[network].items():
        names |= {theirs + a: mine + b for a, b in HALVES[convolution].items()}
    result = {}
    for theirs, mine in names.items():
        for part in ("weight", "bias"):
            if f"{theirs}.{part}" in tensors:
                result[f"{mine}.{part}"] = reshaped(f"{theirs}.{part}", tensors[f"{theirs}.{part}"])
    return result


def reshaped(name: str, value: Tensor) -> Tensor:
    """The first layer is a dense one here, a transposed convolution there."""
    if name == "blocks.0.first.weight":  # [C * 16, L] -> [L, C, 4, 4]
        return value.view(-1, 4, 4, value.shape[1]).permute(3, 0, 1, 2)
    if name == "blocks.0.first.depthwise.weight":  # [L, 4, 4]
        return value[:, None]
    return value


def gradients(network: nn.Module) -> dict[str, Tensor]:
    return {name: p.grad for name, p in network.named_parameters() if p.grad is not None}


def double_trainer(convolution: str, resolution: int, toy: Path) -> Trainer:
    """Ours in float64 at the start of a stable phase, with biases that matter."""
    sizes = [f"{net}.{k}={v}" for net in ("generator", "discriminator") for k, v in SIZES.items()]
    own = ["schedule.resolution=16", f"generator.latent_size={LATENT}", f"schedule.batch={BATCH}"]
    recipe = config.load(f"progan-64-{convolution}", [*sizes, *own, "run.precision=float64"])
    schedule = build(recipe.schedule, recipe.objective.critic_steps)
    trainer = make_trainer(recipe, schedule, toy, CPU)
    (phase,) = (p for p in schedule.phases if p.resolution == resolution and not p.fading)
    trainer.state.images_shown = phase.start
    assert trainer.state.discriminator is not None
    with_random_biases(trainer.state.generator)
    with_random_biases(trainer.state.discriminator)
    trainer.state.generator_ema.load_state_dict(trainer.state.generator.state_dict())
    return trainer


SIZES = {"resolution": 16, "feature_base": BASE, "feature_max": MOST}


def with_random_biases(network: nn.Module) -> None:
    draw = torch.Generator().manual_seed(5)
    for name, parameter in network.named_parameters():
        if name.endswith("bias"):
            parameter.data = torch.randn(parameter.shape, generator=draw, dtype=parameter.dtype)


def plain_trainer(trainer: Trainer, convolution: str, resolution: int) -> plain_training.PlainTrainer:
    """The reference in float64 with the same weights."""
    sizes = (convolution, resolution)
    generator = plain_training.PlainProGenerator(*sizes, LATENT, BASE, MOST).double()
    critic = plain_training.PlainCritic(*sizes, BASE, MOST).double()
    assert trainer.state.discriminator is not None
    for name, mine, theirs in (
        ("generator", generator, trainer.state.generator),
        ("critic", critic, trainer.state.discriminator),
    ):
        mine.load_state_dict(translated(theirs.state_dict(), name, convolution, resolution))
    pixels = torch.zeros(1, resolution, resolution, 3, dtype=torch.uint8)
    return plain_training.PlainTrainer(generator, critic, pixels, LATENT)


def latents(trainer: Trainer, purpose: str) -> Tensor:
    """Those of the trainer's next step."""
    shown = trainer.state.images_shown
    rows = draws.normals(trainer.recipe.seed, purpose, range(shown, shown + BATCH), LATENT)
    return torch.from_numpy(rows).double()


@pytest.mark.parametrize("resolution", [4, 8, 16])
@pytest.mark.parametrize("convolution", ["vanilla", "separable"])
def test_the_plain_step_is_the_trainers(convolution, resolution, toy):
    """Loss terms, gradients, updated weights and the running average of one whole step."""
    trainer = double_trainer(convolution, resolution, toy)
    plain = plain_trainer(trainer, convolution, resolution)
    stage, shown = trainer.stage(), trainer.state.images_shown
    reals = trainer.batches.for_critic(stage, shown).reals
    blend = torch.from_numpy(draws.uniforms(trainer.recipe.seed, "penalty", shown, BATCH))
    critic_latents, generator_latents = (latents(trainer, f"{n} latent") for n in ("critic", "generator"))

    terms = trainer.step()
    expected = plain.update_critic(reals, critic_latents, blend)
    expected |= plain.update_generator(generator_latents)
    plain.update_average()

    assert expected["gradient penalty"] > 0.1
    assert terms.keys() == expected.keys()
    for name, term in terms.items():
        torch.testing.assert_close(term, expected[name].detach(), rtol=1e-9, atol=0, msg=name)
    state = trainer.state
    assert state.discriminator is not None
    for name, mine, theirs in (
        ("generator", plain.generator, state.generator),
        ("critic", plain.critic, state.discriminator),
    ):
        assert_same(gradients(mine), translated(gradients(theirs), name, convolution, resolution), 1e-9)
        # Adam's first step is the gradient's sign, so near-zero gradients of either sign are a step apart.
        weights = translated(theirs.state_dict(), name, convolution, resolution)
        assert_same(mine.state_dict(), weights, 1e-6)
    average = translated(state.generator_ema.state_dict(), "generator", convolution, resolution)
    assert_same(plain.average.state_dict(), average, 1e-9)


def assert_same(mine: dict[str, Tensor], theirs: dict[str, Tensor], relative: float) -> None:
    """Tensor by tensor, against each one's largest value."""
    assert mine.keys() == theirs.keys()
    for name, value in mine.items():
        difference = float((value - theirs[name]).abs().max())
        assert difference <= relative * float(value.abs().max()), name


def test_photographs_of_the_reference():
    """uint8 [M, H, W, 3] -> [N, 3, H, W] in [-1, 1], some of them mirrored."""
    pixels = torch.arange(2 * 4 * 4 * 3, dtype=torch.uint8).view(2, 4, 4, 3)
    trainer = plain_training.PlainTrainer(nn.Linear(1, 1), nn.Linear(1, 1), pixels, 1)
    originals = pixels.permute(0, 3, 1, 2) / 127.5 - 1
    found = set()
    for image in trainer.reals(64):
        for i, original in enumerate(originals):
            found |= {(i, "as it is")} if torch.allclose(image, original, atol=1e-6) else set()
            found |= {(i, "mirrored")} if torch.allclose(image, original.flip(2), atol=1e-6) else set()
    assert len(found) == 4


def test_the_reference_starts_as_the_paper_says():
    critic = plain_training.PlainCritic("separable", 16, 256, 64)
    plain_training.initialise(critic)
    for name, parameter in critic.named_parameters():
        if name.endswith("bias"):
            assert not parameter.any()
        elif parameter.numel() > 500:
            assert 0.9 < parameter.std() < 1.1, name


# ----------------------------------------------------------------------------
# Counting.


def counted(function: Callable[[], object]) -> int:
    with MultiplyAdds() as counter:
        function()
    return counter.flops // 2


@pytest.mark.parametrize(("groups", "forward"), [(1, 6 * 6 * 9 * 25 * 2), (6, 6 * 9 * 25 * 2)])
def test_a_convolution_backwards_costs_twice_as_much(groups, forward):
    layer = nn.Conv2d(6, 6, 3, padding=1, groups=groups)
    x = torch.randn(2, 6, 5, 5, requires_grad=True)
    assert counted(lambda: layer(x)) == forward
    assert counted(lambda: layer(x).sum().backward()) == 3 * forward
    assert counted(lambda: layer(x.detach()).sum().backward()) == 2 * forward


def test_second_derivatives_are_counted():
    layer, x = nn.Conv2d(6, 6, 3, padding=1), torch.randn(2, 6, 5, 5, requires_grad=True)

    def penalty() -> None:
        (slope,) = torch.autograd.grad(layer(x).square().sum(), x, create_graph=True)
        slope.square().sum().backward()

    assert counted(penalty) >= 5 * counted(lambda: layer(x))


def job_named(name: str, archive: Path) -> Any:
    (found,) = (job for job in jobs(TINY, 8, "cpu", archive) if job.name == name)
    return found


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("pictures") / "pictures.zip"
    draw_pictures(path, (4, 8))
    return path


@pytest.mark.parametrize("convolution", ["vanilla", "separable"])
def test_both_do_the_same_arithmetic(convolution, archive):
    """But for the first layer, which is a dense one in ours."""
    plain = multiply_adds(reference(job_named(f"reference {convolution}", archive), CPU))
    found = multiply_adds(ours(job_named(f"ours {convolution}, plain-malloc", archive), CPU))
    assert found == pytest.approx(plain, rel=0.1)


def test_a_lazy_penalty_is_counted_over_its_period(archive):
    eager = replace(job_named("ours vanilla, lazy-penalty", archive), keep_memory=False)
    lazy = ours(eager, CPU)
    always = ours(replace(eager, settings=(*eager.settings, "objective.penalty_every=1")), CPU)
    assert (lazy.period, always.period) == (4, 1)
    assert multiply_adds(lazy) < 0.8 * multiply_adds(always)


# ----------------------------------------------------------------------------
# The contenders.


def test_who_takes_part(tmp_path):
    found = jobs(TINY, 8, "cpu", tmp_path / "pictures.zip")
    assert [job.name for job in found] == [
        f"{name} {convolution}{variant}"
        for name, variant in (
            ("reference", ""),
            ("ours", ""),
            ("ours", ", simultaneous"),
            ("ours", ", lazy-penalty"),
            ("ours", ", plain-malloc"),
        )
        for convolution in ("vanilla", "separable")
    ]
    assert [job.name for job in found if not job.keep_memory] == [
        "ours vanilla, plain-malloc",
        "ours separable, plain-malloc",
    ]


def test_the_users_settings_come_last(tmp_path):
    settings = Settings(overrides=("objective.penalty_every=2",), variants=("lazy-penalty",))
    for job in jobs(settings, 64, "cpu", tmp_path):
        assert job.batch == 4
        if not job.reference:
            recipe = config.load(f"progan-64-{job.convolution}", job.settings)
            assert recipe.objective.penalty_every == 2
            assert build(recipe.schedule).phases[-1].batch == 4


# ----------------------------------------------------------------------------
# The command, once.

ARGUMENTS = (
    "--resolutions 4,8 --batch 4 --batch-at 8=3 --rounds 2 --latent-size 16 --feature-base 64 "
    "--feature-max 12 --call-seconds 0 --threads 1 --device cpu"
).split()


@pytest.fixture(scope="module")
def report(command: Command, tmp_path_factory: pytest.TempPathFactory) -> tuple[Result, Path]:
    """The command's result with --json, and its report's folder."""
    folder = tmp_path_factory.mktemp("training")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(machine, "peak_gflops", lambda threads: 2.0)
        result = command(main, "training", *ARGUMENTS, "--variant", "", "--json", "--out", folder)
    assert result.exit_code == 0, result.stderr
    return result, folder


@pytest.fixture(scope="module")
def found(report: tuple[Result, Path]) -> dict[str, Any]:
    return json.loads(report[0].stdout)


def test_the_json_is_also_the_file(report, found):
    assert json.loads((report[1] / "training.json").read_text()) == found
    assert found["benchmark"] == "training"
    assert found["settings"]["threads"] == found["machine"]["threads"] == 1


def test_all_rows_are_there(found):
    names = [f"{who} {kind}" for who in ("reference", "ours") for kind in ("vanilla", "separable")]
    assert [(row["resolution"], row["contender"]) for row in found["rows"]] == [
        (resolution, name) for resolution in (4, 8) for name in names
    ]
    assert {(row["resolution"], row["batch"]) for row in found["rows"]} == {(4, 4), (8, 3)}


def test_speeds_and_ratios_follow_from_the_seconds(found):
    rows = {(row["resolution"], row["contender"]): row for row in found["rows"]}
    for row in found["rows"]:
        assert len(row["seconds"]) == 2
        assert row["images_per_call"] == row["batch"] * row["steps_per_call"]
        assert row["images_per_second"] == pytest.approx(row["images_per_call"] / row["seconds_median"])
        gflops = 2e-9 * row["multiply_adds"] * row["images_per_second"] / row["batch"]
        assert (row["gflops"], row["share_of_peak"]) == pytest.approx((gflops, gflops / 2.0))
        for kind in ("vanilla", "separable"):
            plain = rows[row["resolution"], f"reference {kind}"]
            rounds = [
                (b / plain["images_per_call"]) / (a / row["images_per_call"])
                for a, b in zip(row["seconds"], plain["seconds"], strict=True)
            ]
            assert row[f"ratio_to_{kind}"] == pytest.approx(sum(rounds) / 2)  # the median of two


def test_separable_steps_multiply_less(found):
    counts = {(row["resolution"], row["contender"]): row["multiply_adds"] for row in found["rows"]}
    for resolution in (4, 8):
        for who in ("reference", "ours"):
            vanilla, separable = (counts[resolution, f"{who} {k}"] for k in ("vanilla", "separable"))
            assert 0 < separable < 0.7 * vanilla


def test_memory_is_that_of_the_step(found):
    for row in found["rows"]:
        assert 0.1 < row["memory_peak_mib"] < 400  # PyTorch itself, which is left out, holds more


def test_page_and_table_have_all_rows(report, found):
    from pgsr.benchmarks.training.report import HEADINGS, text

    page = (report[1] / "training.md").read_text()
    table = text(found).splitlines()
    assert all(heading in table[0] for heading in HEADINGS)
    for row, line in zip(found["rows"], table[1:], strict=False):
        assert re.match(rf"{row['resolution']} +{row['contender']} +{row['precision']} ", line)
    assert page.count("| ours separable | ") == 2
    assert "## 8 x 8, batch 3" in page
    assert all(note in page for note in found["notes"])


def test_the_picture_opens(report):
    with Image.open(report[1] / "training.png") as picture:
        picture.load()
        assert picture.width > 500


def test_progress_is_on_stderr(report):
    assert "8 x 8: round 2 of 2" in report[0].stderr
    assert report[0].stdout.count("\n") == 1  # the object alone


# ----------------------------------------------------------------------------
# What goes wrong.


STARTER = """
import subprocess, sys
child = "import os, threading; from pgsr.benchmarks.training.contender import end_with\\n"
child += "threading.Thread(target=end_with, args=(os.getppid(),), daemon=True).start()\\n"
child += "print(os.getpid(), flush=True)\\nwhile True: pass"
subprocess.run([sys.executable, "-c", child])
"""


def test_a_process_ends_with_who_started_it():
    """Though it computes and looks at nothing: its starter was killed."""
    starter = subprocess.Popen([sys.executable, "-c", STARTER], stdout=subprocess.PIPE, text=True)
    assert starter.stdout is not None
    process = int(starter.stdout.readline())
    starter.kill()
    try:
        starter.communicate(timeout=300)  # until the pipe's other end closes, as the process ends
    except subprocess.TimeoutExpired:
        os.kill(process, signal.SIGKILL)
        raise


def test_a_process_that_breaks_is_an_error(archive):
    """What it says itself, what Python says last, or the signal."""
    job = job_named("ours vanilla", archive)
    with (
        closing(Child(replace(job, archive=str(archive.with_name("absent.zip"))))) as broken,
        closing(Child(replace(job, threads=0))) as crashed,  # PyTorch wants one
        closing(Child(job)) as killed,
    ):
        killed._process.kill()
        with pytest.raises(PgsrError, match=r"^ours vanilla at 8 was ended by signal 9"):
            killed.imported()
        broken.imported()
        with pytest.raises(PgsrError, match=r"^ours vanilla at 8: .*absent\.zip"):
            broken.warm_up()
        crashed.imported()
        with pytest.raises(PgsrError, match=r"^ours vanilla at 8 failed: RuntimeError: .*thread"):
            crashed.warm_up()
        with pytest.raises(PgsrError, match=r"^ours vanilla at 8 failed"):
            crashed.call()


@pytest.mark.parametrize(
    ("wrong", "named"),
    [
        ("--resolutions 5", "resolution 5"),
        ("--batch 6", "--batch is 6"),
        ("--batch 0", "--batch is 0"),
        ("--batch-at 8=5", "--batch-at 8"),
        ("--rounds 0", "--rounds"),
        ("--threads -1", "--threads"),
        ("--variant absent", "--variant"),
        ("--device nonsense", "--device"),
        ("--set objective.nonsense=1", "objective.nonsense"),
    ],
)
def test_wrong_settings_are_named(command, wrong, named):
    result = command(main, "training", *wrong.split())
    assert result.exit_code == 1
    assert named in result.stderr


@pytest.mark.parametrize("wrong", ["--resolutions 4;8", "--batch-at 8", "--batch-at a=b"])
def test_what_is_no_number_is_wrong_usage(command, wrong):
    result = command(main, "training", *wrong.split())
    assert result.exit_code == 2
    assert wrong.split()[0] in result.stderr


@pytest.mark.gpu
def test_the_command_runs_on_a_gpu(command):
    arguments = [a for a in ARGUMENTS if a not in ("--device", "cpu")]
    result = command(main, "training", *arguments, "--variant", "", "--json", "--device", "cuda")
    assert result.exit_code == 0, result.stderr
    rows = json.loads(result.stdout)["rows"]
    assert {row["precision"] for row in rows if not row["reference"]} == {"bfloat16"}
    assert all(row["memory_peak_mib"] > 0 for row in rows)
