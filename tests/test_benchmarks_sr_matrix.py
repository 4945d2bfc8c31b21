"""pgsr-bench sr-matrix: its cells are paper 3's, its numbers are right, its runs go on."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import Result
from PIL import Image

from pgsr.benchmarks import cli
from pgsr.benchmarks.harness import runs
from pgsr.benchmarks.sr_matrix import cells as sr_cells
from pgsr.benchmarks.sr_matrix import measure as sr_matrix
from pgsr.benchmarks.sr_matrix import report as reports
from pgsr.benchmarks.sr_matrix import scores as sr_scores
from pgsr.benchmarks.sr_matrix.cells import CELLS, Cell, Settings
from pgsr.benchmarks.sr_matrix.scores import Trained
from pgsr.errors import PgsrError

# ----------------------------------------------------------------------------
# The cells (paper 3, sections 4 and 5).


def recipe(name: str):
    return sr_cells.recipe_of(CELLS[name], Settings(Path("d"), Path("o"), images=320, features=2))


def test_the_matrix():
    names = {f"{a}-{o}" for a, o in itertools.product(("resnet", "dcgan", "mlp"), sr_cells.OBJECTIVES)}
    names |= {f"{a}-{o}" for a, o in itertools.product(("resnet-plain", "dcgan-tanh"), sr_cells.OBJECTIVES)}
    names |= {f"resnet-gamma-{g}-{o}" for g, o in itertools.product(("0.5", "0"), ("gan", "wgan"))}
    names |= {f"{a}-batch-wgan-gp" for a in ("resnet", "dcgan", "mlp")}
    assert set(CELLS) == names | {"noise-gan", "noise-wgan-gp"}
    assert all(recipe(name) for name in CELLS)  # every one can be built


@pytest.mark.parametrize("architecture", ["resnet", "dcgan", "mlp"])
def test_objectives_have_the_papers_optimizers(architecture: str):
    gan, wgan, penalised = (recipe(f"{architecture}-{objective}") for objective in sr_cells.OBJECTIVES)
    for chosen in (gan, wgan, penalised):
        assert chosen.generator_optimizer == chosen.critic_optimizer
    adam = gan.generator_optimizer
    assert (adam.kind, adam.learning_rate, adam.beta1) == ("adam", 0.0002, 0.5)
    assert (wgan.generator_optimizer.kind, wgan.generator_optimizer.learning_rate) == ("rmsprop", 0.0001)
    adam = penalised.generator_optimizer
    assert (adam.kind, adam.learning_rate, adam.beta1, adam.beta2) == ("adam", 0.0002, 0.5, 0.9)
    assert [r.objective.adversarial for r in (gan, wgan, penalised)] == ["logistic", "wgan-gp", "wgan-gp"]
    assert [r.objective.clip for r in (gan, wgan, penalised)] == [0, 0.01, 0]
    assert [r.objective.gradient_penalty for r in (gan, wgan, penalised)] == [0, 0, 10]
    assert [r.objective.critic_steps for r in (gan, wgan, penalised)] == [1, 5, 5]
    assert [r.discriminator["norm"] for r in (gan, wgan, penalised)] == ["batch", "batch", "layer"]
    for chosen in (gan, wgan, penalised):
        assert (chosen.objective.pixel, chosen.objective.pixel_at) == ("l1", "inputs")
        assert (chosen.objective.adversarial_weight, chosen.objective.pixel_weight) == (0.1, 0.9)
        assert chosen.schedule.stable_images == 320 * chosen.objective.critic_steps


def test_cells_differ_as_their_names_say():
    assert recipe("mlp-gan").generator["kind"] == "mlp-sr"
    assert recipe("mlp-gan").discriminator["kind"] == "mlp"
    plain, tanh = recipe("resnet-plain-wgan-gp"), recipe("dcgan-tanh-gan")
    for chosen in (plain, tanh):
        assert not chosen.generator["batch_norm"]
        assert chosen.discriminator["norm"] == "none"
    assert (plain.generator["activation"], tanh.generator["activation"]) == ("relu", "tanh")
    assert (tanh.generator["kind"], tanh.discriminator["activation"]) == ("dcgan-sr", "tanh")
    normed = recipe("mlp-batch-wgan-gp")
    assert (normed.discriminator["kind"], normed.discriminator["norm"]) == ("mlp", "batch")
    assert normed.objective == recipe("mlp-wgan-gp").objective
    for gamma in (0.5, 0.0):
        objective = recipe(f"resnet-gamma-{gamma:g}-wgan").objective
        assert (objective.pixel_weight, objective.adversarial_weight) == (gamma, 1 - gamma)


# ----------------------------------------------------------------------------
# Its numbers.


def test_psnr():
    a = np.zeros((2, 2, 2, 3), dtype=np.uint8)
    b = a.copy()
    b[0] += 51  # error 51 of 255: 20 log10(5) dB
    b[1] += 255
    assert sr_scores.psnr(b, a) == pytest.approx(20 * np.log10(5) / 2)


def test_variety():
    same, flat = np.zeros((2, 2, 2, 3), dtype=np.uint8), np.zeros((2, 2, 2, 3), dtype=np.uint8)
    same[:, 0] = 200  # two pictures alike, each with contrast
    flat[1] = 200  # two pictures of one colour each
    half = same.copy()
    half[1, 1] = 200  # alike in one half, apart in the other
    assert sr_scores.variety(same) == 0
    assert sr_scores.variety(flat) == pytest.approx(1)
    assert sr_scores.variety(half) == pytest.approx(50 / (200 * np.sqrt(3) / 4))
    assert sr_scores.variety(np.zeros_like(same)) == 0


def slow_rank_correlation(a: list[float], b: list[float]) -> float:
    """1 - 6 sum(d**2) / (n (n**2 - 1)), without ties."""
    n = len(a)
    ranks = [[sorted(side).index(value) for value in side] for side in (a, b)]
    return 1 - 6 * sum((x - y) ** 2 for x, y in zip(*ranks, strict=True)) / (n * (n**2 - 1))


def test_rank_correlation():
    a, b = [3.0, 1.0, 4.0, 1.5, 9.0], [2.0, 7.0, 1.0, 8.0, 0.5]
    assert sr_scores.rank_correlation(a, b) == pytest.approx(slow_rank_correlation(a, b))
    assert sr_scores.rank_correlation([1.0, 2.0, 3.0], [1.0, 8.0, 27.0]) == pytest.approx(1)
    assert sr_scores.rank_correlation([1.0, 2.0, float("nan")], [1.0, 2.0, 3.0]) is None
    assert sr_scores.rank_correlation([1.0, 1.0, 1.0], [1.0, 2.0, 3.0]) is None


def test_moving_average():
    values = [float(v * v % 7) for v in range(12)]
    expected = [np.mean(values[max(0, i - 3) : i + 1]) for i in range(12)]
    assert reports.moving_average(values, window=4) == pytest.approx(expected)


def trained(**last: float) -> Trained:
    """A cell of three looks at 10, 20 and 30 images, whose last has these numbers."""
    log = [{"images_shown": i, "loss/critic": -float(i)} for i in range(2, 31, 2)]
    looks = [{"images_shown": 10 * k, "variety": 1.0, "psnr_db": 20.0 - k, "l1": float(k)} for k in (1, 2, 3)]
    looks[-1] |= last
    return Trained(Cell("c", "C", "gan", "sr-gan"), 1, log, looks)


def test_rows():
    row = sr_scores.row_of(trained(), {"bicubic": 18.0, "flat": 10.0})
    assert row["fallen_db"] == 2.0
    assert row["to_bicubic_db"] == -1.0
    assert sr_scores.critic_at_looks(trained()) == [6, 16, 26]  # |critic| rises as PSNR falls and L1 rises
    assert (row["critic_with_psnr"], row["critic_with_l1"]) == (pytest.approx(-1), pytest.approx(1))


@pytest.mark.parametrize(
    ("last", "expected"),
    [
        ({"psnr_db": 18.0}, "above bicubic"),
        ({"psnr_db": 17.9}, "below bicubic"),
        ({"psnr_db": 9.9}, "failed"),
        ({"psnr_db": 19.0, "variety": 0.49}, "collapsed"),
    ],
)
def test_verdicts(last: dict[str, float], expected: str):
    assert sr_scores.verdict(trained(**last), {"bicubic": 18.0, "flat": 10.0}) == expected


def test_a_diverged_cell_counts_as_failed():
    cell = trained()
    cell.diverged = "loss/critic is nan"
    rows = [sr_scores.row_of(cell, {"bicubic": 18.0, "flat": 10.0})]
    assert sr_scores.claims(rows)["gan"]["failed"] == ["c"]


# ----------------------------------------------------------------------------
# The command.

CHOSEN = ("mlp-gan", "noise-gan", "resnet-wgan-gp")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from pgsr.trainer.data.cli import Settings as Preparation
    from pgsr.trainer.data.cli import prepare

    path = tmp_path_factory.mktemp("data") / "toy.zip"
    prepare([], path, Preparation((64,), "box", "png", 95), drawn=12)
    return path


@pytest.fixture
def matrix(data: Path, command: Callable[..., Result]) -> Callable[..., Result]:
    def run(out: Path, *arguments: Any, cells: tuple[str, ...] = CHOSEN) -> Result:
        small = ["--images", 6, "--batch", 2, "--features", 1, "--held-out", 4, "--evaluations", 3]
        where = ["sr-matrix", "--data", data, "--out", out, "--cells", ",".join(cells), "--device", "cpu"]
        return command(cli.main, *where, *small, *arguments)

    return run


def test_the_command_trains_draws_and_goes_on(
    matrix: Callable[..., Result], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    out = tmp_path / "matrix"
    first = matrix(out, "--json")
    assert first.exit_code == 0, first.stderr
    result = json.loads(first.stdout)
    assert [row["cell"] for row in result["rows"]] == list(CHOSEN)
    assert [row["iterations"] for row in result["rows"]] == [3, 3, 3]
    assert json.loads((out / "report.json").read_text()) == result
    assert "| mlp-gan |" in (out / "report.md").read_text()
    looks = [json.loads(line) for line in (out / "resnet-wgan-gp" / "heldout.jsonl").read_text().splitlines()]
    assert [look["images_shown"] for look in looks] == [10, 20, 30]
    for number, rows in {1: 4, 3: 4}.items():  # input, bicubic, label and one cell
        with Image.open(out / f"figure{number}.png") as picture:
            assert picture.height == rows * (64 + 4)
    assert (out / "figure2.png").stat().st_size > 1000
    assert (out / "figure5.png").stat().st_size > 1000
    assert not (out / "figure4.png").exists()

    monkeypatch.setattr(sr_matrix, "_train_cell", lambda *_: pytest.fail("trained again"))
    again = matrix(out, "--json")
    assert json.loads(again.stdout) == result


def test_a_stopped_cell_goes_on_to_the_same_end(
    matrix: Callable[..., Result], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    assert matrix(whole, cells=("mlp-gan",)).exit_code == 0
    real = sr_matrix.generated
    monkeypatch.setattr(sr_matrix, "generated", lambda *_: (_ for _ in ()).throw(PgsrError("a crash")))
    assert matrix(parts, cells=("mlp-gan",)).exit_code == 1
    monkeypatch.setattr(sr_matrix, "generated", real)
    assert matrix(parts, cells=("mlp-gan",)).exit_code == 0
    pictures = [np.load(folder / "mlp-gan" / "pictures.npy") for folder in (whole, parts)]
    assert np.array_equal(*pictures)


def test_divergence_is_a_result(matrix: Callable[..., Result], tmp_path: Path):
    done = matrix(tmp_path / "m", "--set", "run.explosion=1e-9", "--json", cells=("mlp-gan",))
    assert done.exit_code == 0, done.stderr
    row = json.loads(done.stdout)["rows"][0]
    assert row["verdict"] == "diverged"
    assert "beyond run.explosion" in row["diverged"]


@pytest.mark.parametrize(
    ("arguments", "cells", "message"),
    [
        ((), ("vgg-gan",), "--cells = 'vgg-gan' is not one of 'resnet-gan'"),
        (("--evaluations", 2), ("mlp-gan",), "--evaluations is 2, but must be at least 3"),
    ],
)
def test_wrong_options_are_named(
    matrix: Callable[..., Result], tmp_path: Path, arguments: tuple, cells: tuple[str, ...], message: str
):
    done = matrix(tmp_path / "m", *arguments, cells=cells)
    assert done.exit_code == 1
    assert message in done.stderr


def test_other_settings_need_another_folder(matrix: Callable[..., Result], tmp_path: Path):
    folder = tmp_path / "m" / "mlp-gan"
    folder.mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    done = matrix(tmp_path / "m", cells=("mlp-gan",))
    assert done.exit_code == 1
    assert "is a run of other settings: give those again, or name another --out" in done.stderr


def test_a_setting_that_was_added_since_has_its_default(tmp_path: Path):
    chosen = recipe("mlp-gan")
    written = chosen.as_dict()
    del written["data"]["held_out"], written["objective"]["content"]
    (tmp_path / "config.json").write_text(json.dumps(written | {"data": written["data"] | {"held_out": 64}}))
    runs.require_same(tmp_path, chosen)
    (tmp_path / "config.json").write_text(json.dumps(written))  # 0 held out
    with pytest.raises(PgsrError, match="other settings"):
        runs.require_same(tmp_path, chosen)
