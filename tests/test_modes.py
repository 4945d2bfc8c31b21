"""Stacked digits, the small networks, the digit classifier, and the count of modes."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch

from pgsr import checkpoint as checkpoints
from pgsr import draws
from pgsr.benchmarks.cli import main as bench
from pgsr.benchmarks.modes import measure as modes
from pgsr.benchmarks.modes import report as modes_report
from pgsr.errors import PgsrError
from pgsr.networks import DISCRIMINATORS, GENERATORS, build
from pgsr.trainer.data.cache import Photographs, load_photographs
from pgsr.trainer.data.listing import LABELS
from pgsr.trainer.data.mnist_cifar import open_native
from pgsr.trainer.metrics import digits
from pgsr.trainer.step import batches, pixels
from pgsr.trainer.step import recipe as config
from pgsr.trainer.step.residency import Pixels
from pgsr.trainer.step.schedule import build as build_schedule
from pgsr.trainer.step.tables import DataConfig
from pictures import write_zip

MNIST = Path(__file__).resolve().parents[2] / "shared" / "data" / "mnist"
CPU = torch.device("cpu")
RECIPES = [f"mnist-modes-{system}-{critic}" for system in modes.SYSTEMS for critic in modes.CRITICS]
needs_mnist = pytest.mark.skipif(not MNIST.is_dir(), reason="no digits in ../shared/data/mnist")


def bars(labels: Sequence[int], seed: int = 0) -> np.ndarray:
    """Easy digits: digit d is a bright bar in rows 2d + 4 and 2d + 5, on noise: [N, 28, 28, 3] grey."""
    grey = np.random.default_rng(seed).integers(0, 60, (len(labels), 28, 28), dtype=np.uint8)
    for picture, label in zip(grey, labels, strict=True):
        picture[2 * label + 4 : 2 * label + 6, 6:22] = 255
    return np.repeat(grey[..., None], 3, axis=-1)


def bar_photographs(count: int = 300, seed: int = 0) -> Photographs:
    labels = np.random.default_rng(seed).integers(0, 10, count)
    return Photographs(bars(list(labels), seed), "bars", (), labels.astype(np.int64), tuple("0123456789"))


@pytest.fixture(scope="module")
def easy() -> digits.Trained:
    """A classifier of the bars. They cannot be moved, since their place is what they say."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(digits, "RANGES", (0.0,) * 6)
        return digits.train_classifier(bar_photographs(), seed=0, epochs=12)


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    """Forty bars as a prepared archive."""
    import io

    from PIL import Image

    labels = [i % 10 for i in range(40)]
    content = []
    for i, picture in enumerate(bars(list(labels))):
        buffer = io.BytesIO()
        Image.fromarray(picture).save(buffer, "PNG")
        content.append((f"28/{i:06d}.png", buffer.getvalue()))
    names = json.dumps({"names": list("0123456789"), "labels": labels}).encode()
    return write_zip(tmp_path / "bars.zip", [*content, (LABELS, names)])


# ----------------------------------------------------------------------------
# Stacked images.


def marked(count: int, side: int = 4) -> Pixels:
    """Picture n has 3n in red, 3n + 1 in green, 3n + 2 in blue: [N, side, side, 3]."""
    values = torch.arange(3 * count, dtype=torch.uint8).view(count, 1, 1, 3)
    return Pixels(values.expand(count, side, side, 3).contiguous(), CPU)


def stacked(source: Pixels, seed: int, positions: range) -> torch.Tensor:
    return pixels.stacked(source, pixels.stack_cuts(source, seed, positions))


def test_channels_are_those_of_three_pictures_drawn_by_position():
    images = stacked(marked(60), 5, range(100, 140))
    assert images.shape == (40, 3, 4, 4)
    values = ((images + 1) * 127.5).round().int()
    assert (values == values[:, :, :1, :1]).all()
    for image, position in zip(values[:, :, 0, 0], range(100, 140), strict=True):
        chosen = [int(u * 60) for u in draws.uniforms(5, "stack", position, 3)]
        assert image.tolist() == [3 * n + channel for channel, n in enumerate(chosen)]
    parts = [stacked(marked(60), 5, range(a, a + 20)) for a in (100, 120)]
    assert torch.equal(torch.cat(parts), images)
    assert not torch.equal(stacked(marked(60), 6, range(100, 140)), images)


def test_the_three_are_independent_and_even():
    chosen = np.array(pixels.stack_indices(0, range(3000), 10))
    triples = np.bincount(chosen @ [100, 10, 1], minlength=1000)
    statistic = ((triples - 3.0) ** 2 / 3.0).sum()  # chi squared of 999 degrees: 999 with deviation 45
    assert 850 < statistic < 1150


def test_a_recipe_trains_on_stacks(archive: Path, own_cache: Path):
    recipe = config.load("mnist-modes-gan-k4", ["schedule.batch=6", "seed=3"])
    source = batches.LatentBatches(recipe, archive, CPU)
    reals = source.for_critic(build_schedule(recipe.schedule).at(12), 12).reals
    photographs = Pixels(torch.from_numpy(load_photographs(archive, 28).pixels.copy()), CPU)
    expected = stacked(photographs, 3, range(12, 18))
    assert torch.equal(reals, expected)
    assert not torch.equal(reals[:, 0], reals[:, 1])


def test_stacks_have_no_boxes():
    with pytest.raises(PgsrError, match=r"data\.stacked and data\.box exclude each other"):
        DataConfig(stacked=True, box=8)


# ----------------------------------------------------------------------------
# Networks and recipes.


def parameters(network: torch.nn.Module) -> int:
    return sum(p.numel() for p in network.parameters())


@pytest.mark.parametrize(
    ("options", "about", "expected"),
    [  # 9 * (3 a + 2 a a + 8 a a) of the convolutions, 16 * 4 a + 1 of the dense layer
        ({"maps": 4}, 2000, 108 + 288 + 1152 + 2 * 28 + 257),
        ({"maps": 2}, 500, 54 + 72 + 288 + 2 * 14 + 129),
        ({"maps": 4, "normalization": "pixel"}, 2000, 108 + 288 + 1152 + 28 + 257),
        ({"maps": 2, "normalization": "pixel"}, 500, 54 + 72 + 288 + 14 + 129),
        ({"maps": 4, "normalization": "pixel", "minibatch_stddev": True}, 2000, 1833 + 16),
        ({"maps": 2, "normalization": "pixel", "minibatch_stddev": True}, 500, 557 + 16),
    ],
)
def test_critics_have_the_papers_number_of_parameters(options, about: int, expected: int):
    critic = build(DISCRIMINATORS, {"kind": "metz", **options})
    assert parameters(critic) == expected
    assert abs(expected - about) < 0.15 * about
    assert critic(torch.zeros(8, 3, 28, 28)).shape == (8,)


@pytest.mark.parametrize("normalization", ["batch", "pixel"])
def test_the_generator_grows_from_4_by_7_and_14_to_28(normalization: str):
    generator = build(GENERATORS, {"kind": "metz", "normalization": normalization})
    sizes = []
    for block in generator.blocks:
        block.register_forward_hook(lambda module, inputs, output: sizes.append(tuple(output.shape)))
    latents = 3 * torch.randn(6, 256)
    images = generator(latents)
    assert sizes == [(6, 32, 7, 7), (6, 16, 14, 14), (6, 8, 28, 28)]
    assert images.shape == (6, 3, 28, 28)
    assert images.abs().max() < 1
    images.square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in generator.parameters())


GROWING = {"kind": "metz-growing", "normalization": "pixel"}


def test_growing_networks_are_the_others_once_grown():
    """With the same weights, to the bit; what looked at smaller images has no part."""
    grown, plain = (build(GENERATORS, {**GROWING, "kind": kind}, 1) for kind in ("metz-growing", "metz"))
    plain.load_state_dict({k: v for k, v in grown.state_dict().items() if "smaller_to_rgb" not in k})
    latents = torch.randn(4, 256)
    assert torch.equal(grown(latents), plain(latents))
    options = {**GROWING, "minibatch_stddev": True, "maps": 2}
    grown, plain = (build(DISCRIMINATORS, {**options, "kind": kind}, 1) for kind in ("metz-growing", "metz"))
    plain.load_state_dict({k: v for k, v in grown.state_dict().items() if "from_rgb" not in k})
    images = torch.randn(4, 3, 28, 28)
    assert torch.equal(grown(images), plain(images))
    assert parameters(plain) == 573


@pytest.mark.parametrize("side", [14, 28])
def test_a_fade_leads_from_the_smaller_network_to_the_larger(side: int):
    """Alpha 0 is the smaller one, enlarged or reduced; between, the mean of both before tanh."""
    generator, critic = (build(table, GROWING, 1).double() for table in (GENERATORS, DISCRIMINATORS))
    latents = torch.randn(4, 256, dtype=torch.float64)
    small, large = (generator.at(s, 1.0)(latents) for s in (side // 2, side))
    assert (small.shape[-1], large.shape[-1]) == (side // 2, side)
    enlarged = small.repeat_interleave(2, 2).repeat_interleave(2, 3)
    torch.testing.assert_close(generator.at(side, 0.0)(latents), enlarged)
    between = ((enlarged.atanh() + large.atanh()) / 2).tanh()
    torch.testing.assert_close(generator.at(side, 0.5)(latents), between)
    reduced = torch.nn.functional.avg_pool2d(large, 2)
    torch.testing.assert_close(critic.at(side, 0.0, {})(large), critic.at(side // 2, 1.0, {})(reduced))
    scores = [critic.at(side, alpha, {})(large) for alpha in (0.0, 0.5, 1.0)]
    assert not torch.equal(scores[0], scores[1])
    assert not torch.equal(scores[1], scores[2])


def test_growing_networks_have_three_sizes():
    with pytest.raises(PgsrError, match="7, 14 and 28, not 4"):
        build(GENERATORS, GROWING).at(4, 1.0)


@pytest.mark.parametrize("critic", modes.CRITICS)
def test_progression_grows_within_the_images_asked_for(critic: str, archive: Path, tmp_path: Path):
    settings = modes.Settings(archive, tmp_path, images=300_000)
    schedule = build_schedule(modes.recipe_of(settings, "progression", critic, 0).schedule)
    names = ["stable 7", "fade 14", "stable 14", "fade 28", "stable 28"]
    assert [phase.name for phase in schedule.phases] == names
    assert 300_000 <= schedule.total_images < 300_000 + 5 * 128
    assert schedule.phases[1].images == pytest.approx(40_000, abs=128)
    plain = build_schedule(modes.recipe_of(settings, "stddev", critic, 0).schedule)
    assert 300_000 <= plain.total_images < 300_000 + 128


def test_equalized_layers_keep_the_scale():
    """Unit variance in, about He's gain out: what the constant of each layer is for."""
    from pgsr.networks.metz import EqualizedStride, EqualizedTransposed

    torch.manual_seed(0)
    with torch.no_grad():
        enlarged = EqualizedTransposed(64, 32, 1)(torch.randn(16, 64, 14, 14))
        reduced = EqualizedStride(32, 64, 3)(torch.randn(16, 32, 14, 14))
    assert (enlarged.shape, reduced.shape) == ((16, 32, 28, 28), (16, 64, 7, 7))
    assert 1.2 < enlarged.std() < 1.6
    assert 1.2 < reduced.std() < 1.6


@pytest.mark.parametrize("name", RECIPES)
def test_recipes_are_the_columns_of_table_4(name: str):
    recipe = config.load(name)
    *_, critic = name.split("-")
    assert "Table 4" in recipe.source
    assert recipe.discriminator["maps"] == {"k4": 2, "k2": 4}[critic]
    gan = "-gan-" in name or "unrolled" in name
    own = any(part in name for part in ("norm", "stddev", "progression"))
    assert recipe.objective.adversarial == ("logistic" if gan else "wgan-gp")
    assert recipe.objective.gradient_penalty == (0 if gan else 10)
    assert recipe.generator["normalization"] == recipe.discriminator["normalization"]
    assert recipe.generator["normalization"] == ("pixel" if own else "batch")
    statistic = "stddev" in name or "progression" in name
    assert recipe.discriminator["minibatch_stddev"] == statistic
    assert not statistic or recipe.discriminator["stddev_group"] == recipe.schedule.batch
    assert recipe.generator["kind"] == ("metz-growing" if "progression" in name else "metz")
    assert recipe.data.stacked
    assert not recipe.data.mirror
    assert recipe.objective.critic_steps == 1


# ----------------------------------------------------------------------------
# The classifier.


def test_the_classifier_learns(easy: digits.Trained):
    assert easy.error_rate < 0.02
    assert (easy.trained_on, easy.held_out) == (255, 45)
    others = bar_photographs(50, seed=9)
    images = torch.from_numpy(others.pixels[..., 0] / np.float32(127.5) - 1)
    assert (digits.classify(easy.network, images) == others.labels).mean() > 0.95


def test_held_out_digits_are_not_trained_on():
    """Labels that say nothing can be learnt by heart, but not foretold."""
    photographs = bar_photographs(200)
    random = np.random.default_rng(1).integers(0, 10, 200)
    trained = digits.train_classifier(dataclasses.replace(photographs, labels=random), seed=0, epochs=1)
    assert trained.error_rate > 0.6


def test_the_same_seed_is_the_same_classifier(tmp_path: Path):
    photographs = bar_photographs(100)
    first, second, other = (digits.train_classifier(photographs, seed, epochs=1) for seed in (1, 1, 2))
    for a, b, c in zip(*(t.network.state_dict().values() for t in (first, second, other)), strict=True):
        assert torch.equal(a, b)
        assert a.dtype == torch.int64 or not torch.equal(a, c)
    digits.save_classifier(tmp_path / "c.safetensors", first)
    loaded = digits.load_classifier(tmp_path / "c.safetensors")
    assert dataclasses.replace(loaded, network=first.network) == first
    images = torch.randn(7, 28, 28)
    assert (digits.classify(loaded.network, images) == digits.classify(first.network, images)).all()


def test_digits_are_moved_turned_stretched_and_sheared(monkeypatch: pytest.MonkeyPatch):
    """By whole pixels, a quarter turn, a half and a shear of 1, which need no interpolation."""
    picture = torch.full((1, 1, 28, 28), -1.0)
    picture[0, 0, 5, 9] = picture[0, 0, 20, 14] = 1.0

    def change(ranges: tuple[float, ...], number: float = 1.0) -> torch.Tensor:
        monkeypatch.setattr(digits, "RANGES", ranges)
        return digits.changed(picture, torch.full((1, 6), number))

    ranges = digits.RANGES
    torch.testing.assert_close(change(ranges, 0.5), picture)  # nothing is changed in the middle
    moved = change((0, 0, 0, 0, 3.0, 2.0))
    torch.testing.assert_close(moved[..., 2:, 3:], picture[..., :-2, :-3])
    assert bool((moved[..., :2, :] == -1).all())  # black comes in
    assert bool((moved[..., :3] == -1).all())
    torch.testing.assert_close(
        change((math.pi / 2, 0, 0, 0, 0, 0)), picture.rot90(1, (2, 3)), atol=1e-4, rtol=0
    )
    torch.testing.assert_close(change((0, 1.0, 1.0, 0, 0, 0))[..., :7, :], torch.full((1, 1, 7, 28), -1.0))
    sheared = change((0, 0, 0, 1.0, 0, 0))  # row r looks r - 13.5 pixels to the right
    assert [column for column in range(28) if sheared[0, 0, 20, column] > -0.5] == [7, 8]  # 14 - 6.5
    assert [column for column in range(28) if sheared[0, 0, 5, column] > -0.5] == [17, 18]  # 9 + 8.5


@pytest.mark.parametrize(
    "change", [{"labels": None}, {"label_names": ("a",)}, {"pixels": np.zeros((5, 32, 32, 3), np.uint8)}]
)
def test_digits_that_do_not_fit_are_one_line(change):
    with pytest.raises(
        PgsrError, match="needs labelled digits of 28x28: prepare MNIST's files with pgsr-data"
    ):
        digits.train_classifier(dataclasses.replace(bar_photographs(20), **change), 0)


# ----------------------------------------------------------------------------
# Counting.


def slow_divergence(counts: Sequence[int]) -> float:
    total, result = sum(counts), 0.0
    for count in counts:
        if count:
            result += count / total * (math.log(count / total) - math.log(1 / len(counts)))
    return result


def test_counts_by_hand():
    numbers = np.array([[0, 0, 0], [9, 9, 9], [1, 2, 3], [1, 2, 3], [3, 2, 1]])
    counts = modes.histogram(numbers)
    assert {i: int(n) for i, n in enumerate(counts) if n} == {0: 1, 999: 1, 123: 2, 321: 1}
    assert modes.covered(counts) == 4
    assert modes.divergence(counts) == pytest.approx(slow_divergence(counts.tolist()), abs=1e-12)


@pytest.mark.parametrize(
    ("counts", "covered", "divergence"),
    [
        (np.full(1000, 25), 1000, 0.0),
        (np.eye(1000, dtype=np.int64)[7] * 25_600, 1, math.log(1000)),
        (np.repeat([0, 50], 500), 500, math.log(2)),
        (np.repeat([1, 3], 500), 1000, 0.25 * math.log(0.5) + 0.75 * math.log(1.5)),
    ],
)
def test_known_histograms(counts: np.ndarray, covered: int, divergence: float):
    assert modes.covered(counts) == covered
    assert modes.divergence(counts) == pytest.approx(divergence, abs=1e-12)


def test_images_are_read_red_green_blue(easy: digits.Trained):
    numbers = [[1, 2, 3], [9, 0, 5], [1, 2, 3], [7, 7, 7]]
    grey = torch.from_numpy(np.stack([bars(n)[..., 0] for n in numbers])) / 127.5 - 1  # [4, 3, 28, 28]
    counts = modes.count_modes([grey[:3], grey[3:]], easy)
    assert {i: int(n) for i, n in enumerate(counts) if n} == {123: 2, 905: 1, 777: 1}


def test_real_stacks_are_read_as_what_they_are(easy: digits.Trained):
    """The count of real stacks against the labels of the pictures drawn; 2,000 draws cover 1 - exp(-2)."""
    labels = np.arange(200) % 10
    photographs = Photographs(bars(list(labels)), "bars", (), labels, tuple("0123456789"))
    row = modes.real_row(photographs, easy, 2000)
    true = modes.histogram(labels[np.array(pixels.stack_indices(0, range(2000), 200))])
    assert 840 < modes.covered(true) < 890
    assert abs(row["modes"] - modes.covered(true)) <= 10
    assert row["kl"] == pytest.approx(modes.divergence(true), abs=0.02)


def test_spread_is_over_runs():
    assert modes.spread([1.0, 3.0]) == (2.0, pytest.approx(math.sqrt(2)))
    assert modes.spread([5]) == (5.0, None)


# ----------------------------------------------------------------------------
# The command.


def test_the_command_trains_counts_and_goes_on(
    command, archive: Path, tmp_path: Path, own_cache: Path, monkeypatch
):
    monkeypatch.setattr(digits, "EPOCHS", 1)
    out = tmp_path / "modes"
    arguments = ["modes", "--data", archive, "--out", out, "--generated", 40, "--system", "gan"]
    result = command(bench, *arguments, "--seeds", 1, "--images", 128, "--json")
    assert result.exit_code == 0, result.stderr
    answer = json.loads(result.stdout)
    assert [(r["system"], r["critic"], r["images_shown"]) for r in answer["rows"]] == [
        ("gan", "k4", 128),
        ("gan", "k2", 128),
    ]
    assert all(1 <= r["modes"] <= 40 for r in answer["rows"])
    assert all(r["kl"] >= math.log(1000 / 40) - 1e-9 for r in answer["rows"])  # 40 images, 40 modes at most
    assert "30.6 ± 20.7" in (out / "modes.md").read_text()
    assert (out / "modes.png").is_file()
    stamps = {p: p.stat().st_mtime_ns for p in out.rglob("*.safetensors")}
    more = command(bench, *arguments, "--seeds", 2, "--images", 128, "--json")
    assert {p: p.stat().st_mtime_ns for p in stamps} == stamps  # nothing was trained twice
    assert json.loads(more.stdout)["rows"][:2] == answer["rows"]
    longer = command(bench, *arguments, "--seeds", 1, "--images", 256, "--json")
    assert [r["images_shown"] for r in json.loads(longer.stdout)["rows"]] == [256, 256]
    shorter = command(bench, *arguments, "--seeds", 1, "--images", 128)
    assert shorter.exit_code == 1
    assert "is a run of 256 images, more than 128: name another --out" in shorter.stderr
    other = command(bench, *arguments, "--seeds", 1, "--images", 512, "--set", "critic_optimizer.beta1=0.1")
    assert other.exit_code == 1
    assert "is a run of other settings: give those again, or name another --out" in other.stderr


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        ("--images", 0, "--images is 0, but must be at least 1"),
        ("--seeds", 0, "--seeds is 0, but must be at least 1"),
        ("--system", "vae", "--system = 'vae' is not one of 'gan'"),
    ],
)
def test_wrong_options_are_one_line(command, option: str, value, message: str, tmp_path: Path):
    result = command(
        bench, "modes", "--data", tmp_path / "absent.zip", "--out", tmp_path / "o", option, value
    )
    assert result.exit_code == 1
    assert message in result.stderr
    assert result.stderr.count("\n") == 1


def test_generated_images_are_a_function_of_seed_and_index(
    archive: Path, tmp_path: Path, own_cache: Path, monkeypatch
):
    """Whatever the batch: batch normalisation uses its running statistics."""
    from pgsr.trainer.start import open_run

    run = open_run(config.load("mnist-modes-gan-k4", ["schedule.batch=8"]), archive, tmp_path / "run", CPU)
    run.trainer.step()
    with run.writing():
        path = run.write_checkpoint()
    path = path or checkpoints.newest(tmp_path / "run")
    whole = torch.cat(list(modes.generated(path, 10, 3, CPU)))
    monkeypatch.setattr(modes, "BATCH", 3)
    assert torch.allclose(torch.cat(list(modes.generated(path, 10, 3, CPU))), whole, atol=1e-6)
    assert whole.std(dim=0).mean() > 0


def test_the_table_has_the_papers_values_in_their_places():
    summary = [
        {"critic": c, "system": s, "critic_parameters": 1, "modes": (1.0, None), "kl": (2.0, 0.5)}
        | {f"paper_{name}": modes.PAPER[s, c][name] for name in ("modes", "kl")}
        for c in modes.CRITICS
        for s in modes.SYSTEMS
    ]
    lines = modes_report.table({"settings": {"systems": modes.SYSTEMS}, "summary": summary})
    columns = ["GAN", "+ unrolling", "WGAN-GP", "+ our norm", "+ mb stddev", "+ progression"]
    assert lines[0] == ["critic", "measure", *columns]
    assert lines[2] == [
        "K/4",
        "modes, paper 2",
        *("30.6 ± 20.7", "372.2 ± 20.7", "640.1 ± 136.3", "856.7 ± 50.4", "881.3 ± 39.2", "859.5 ± 36.2"),
    ]
    assert lines[7] == ["K/2", "KL, ours", *["2.00 ± 0.50"] * 6]
    values = ("2.58 ± 0.75", "1.43 ± 0.12", "1.35 ± 0.55", "0.98 ± 0.33", "0.89 ± 0.21", "0.82 ± 0.13")
    assert lines[8] == ["K/2", "KL, paper 2", *values]


@needs_mnist
def test_the_classifier_reads_real_digits():
    """A few steps on 1,000 real digits; the whole training has 0.5% wrong."""
    native = open_native(MNIST)
    pixels = np.repeat(native.pixels[:1000, ..., None], 3, axis=-1)
    photographs = Photographs(pixels, "mnist", (), native.labels[:1000], native.names)
    assert digits.train_classifier(photographs, 0, epochs=2).error_rate < 0.25


def test_batch_normalised_runs_resume_exactly(archive: Path, tmp_path: Path, own_cache: Path):
    """The running statistics of both networks are in the checkpoint."""
    from pgsr.trainer.start import open_run

    recipe = config.load("mnist-modes-wgan-gp-k4", ["schedule.batch=8"])
    whole, first, second = (open_run(recipe, archive, tmp_path / name, CPU) for name in ("a", "b", "b"))
    for _ in range(4):
        whole.trainer.step()
    for _ in range(2):
        first.trainer.step()
    with first.writing():
        first.write_checkpoint()
    second.resume(checkpoints.newest(tmp_path / "b"))
    for _ in range(2):
        second.trainer.step()
    for network in ("generator", "generator_ema", "discriminator"):
        one, other = (getattr(run.trainer.state, network).state_dict() for run in (whole, second))
        assert any("running_mean" in name for name in one)
        assert all(torch.equal(one[name], other[name]) for name in one)


def test_a_run_of_other_data_is_named(tmp_path: Path):
    """The runs that measurements keep are of one data set, one recipe and so many images."""
    from pgsr.benchmarks.harness import runs
    from pgsr.trainer.data.cli import Settings as DataSettings
    from pgsr.trainer.data.cli import prepare
    from pgsr.trainer.step import recipe as recipes

    archives = [tmp_path / name for name in ("a.zip", "b.zip")]
    for archive, count in zip(archives, (20, 21), strict=True):
        prepare([], archive, DataSettings((4,), "lanczos", "png", 95), drawn=count)
    settings = ["schedule.resolution=4", "schedule.stable_images=32", "generator.resolution=4"]
    chosen = recipes.load("tiny", [*settings, "discriminator.resolution=4"])
    folder, cpu = tmp_path / "run", torch.device("cpu")
    assert runs.finish(folder, chosen, archives[0], cpu).trainer.state.images_shown == 32
    told: list[str] = []
    runs.finish(folder, chosen, archives[0], cpu, told.append)
    assert told == []  # it is there already
    with pytest.raises(PgsrError, match="is a run of other data"):
        runs.finish(folder, chosen, archives[1], cpu)
