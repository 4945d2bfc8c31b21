"""pgsr-bench judge: what it reads, what it learns, and that quality takes its file."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from click.testing import Result
from PIL import Image

from pgsr.benchmarks.cli import main
from pgsr.benchmarks.quality import feature_network, judge
from pgsr.benchmarks.quality.judge import UNKNOWN, Judge, Settings, known_of, masked_loss, share_of_rate
from pgsr.errors import PgsrError
from pgsr.trainer.data.celeba import read_table


@pytest.fixture(scope="module")
def discs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """64 pictures of noise, half of them with a bright disc; labels.csv says which, and who is held out."""
    folder = tmp_path_factory.mktemp("discs")
    random = np.random.default_rng(3)
    down, right = np.mgrid[:64, :64]
    lines = ["name,Disc,person,partition"]
    for i in range(64):
        pixels = random.integers(0, 120, (64, 64, 3))
        if i % 2:
            y, x = random.integers(20, 44, 2)
            pixels[(down - y) ** 2 + (right - x) ** 2 < 150] += 120
        Image.fromarray(pixels.astype(np.uint8)).save(folder / f"{i:03d}.png")
        lines.append(f"{i:03d}.png,{i % 2},{i},{2 if i >= 48 else 0}")
    (folder / "labels.csv").write_text("\n".join(lines) + "\n")
    return folder


def table(path: Path, text: str):
    path.write_text(text)
    return read_table(path)


def test_tables_are_joined_by_names_and_columns(tmp_path: Path):
    first = table(tmp_path / "a.csv", "name,male,age,partition\n1.png,0,30,0\n2.png,1,40,1\n4.png,1,50,0\n")
    second = table(tmp_path / "b.txt", "2\nMale Smiling\n1.png -1 1\n3.png 1 -1\n")
    known = known_of(("x/1.png", "2.png", "3.png", "4.png", "5.png"), (first, second), seed=0)
    assert known.attributes == ("male", "smiling")  # an age is none; male is in both
    assert known.values.tolist() == [[0, 1], [1, -1], [1, 0], [1, -1], [-1, -1]]
    assert known.training.tolist() == [True, False, False, True, False]  # by the partition


def test_without_a_partition_a_tenth_is_held_out(tmp_path: Path):
    names = [f"{i}.png" for i in range(40)]
    lines = "\n".join(f"{name},{i % 2}" for i, name in enumerate(names))
    given = [table(tmp_path / "a.csv", f"name,odd\n{lines}\n")]
    known, other = known_of(names, given, seed=0), known_of(names, given, seed=1)
    assert known.training.sum() == other.training.sum() == 36
    assert known.training.tolist() != other.training.tolist()


def test_what_is_unknown_has_no_loss_and_no_gradient():
    logits = torch.tensor([[2.0, -1.0], [0.5, 3.0]], dtype=torch.float64, requires_grad=True)
    loss = masked_loss(logits, torch.tensor([[1, UNKNOWN], [UNKNOWN, 0]], dtype=torch.int8))
    expected = (np.log1p(np.exp(-2.0)) + np.log1p(np.exp(3.0))) / 2
    assert loss.item() == pytest.approx(expected, rel=1e-12)
    (gradient,) = torch.autograd.grad(loss, logits)
    assert (gradient != 0).tolist() == [[True, False], [False, True]]


def test_the_rate_rises_and_falls():
    shares = [share_of_rate(step, 100) for step in range(100)]
    assert shares[0] == pytest.approx(0.1)
    assert max(shares) == shares[9] > 0.97
    assert shares[50] == pytest.approx(0.5)
    assert shares[99] < 1e-3
    assert share_of_rate(0, 1) == 1


def test_it_learns_and_quality_takes_its_file(
    discs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: Callable[..., Result]
):
    monkeypatch.setattr(judge, "BATCH", 8)
    out = tmp_path / "judge.onnx"
    arguments = ("--data", discs, "--labels", discs / "labels.csv", "--epochs", 6, "--out", out)
    result = command(main, "judge", *arguments, "--json")
    assert result.exit_code == 0, result.output
    told = json.loads(result.stdout)
    assert (told["trained_on"], told["held_out"]) == (48, 16)
    assert set(told["accuracy"]) == {"disc"}
    assert told["accuracy"]["disc"] >= 0.9
    session = onnxruntime.InferenceSession(out.read_bytes())
    assert len(session.get_outputs()) == 1  # attributes' logits would make no inception score
    network = feature_network.open_network(feature_network.Settings(out))
    assert (network.side, network.range, network.distance) == (64, "bytes", "FD")
    pixels = np.random.default_rng(1).integers(0, 256, (3, 64, 64, 3), dtype=np.uint8)
    features, logits = network(pixels)
    assert features.shape == (3, 192)
    assert logits is None
    assert features.std() > 0


def test_the_same_seed_is_the_same_judge(discs: Path):
    settings = Settings(discs, (discs / "labels.csv",), epochs=1)
    lines: list[str] = []
    (first, told), (second, again) = (judge.run(settings, lines.append) for _ in range(2))
    assert told == again
    other, _ = judge.run(Settings(discs, settings.labels, epochs=1, seed=1), lines.append)
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))
    assert not torch.equal(first.last.weight, other.last.weight)
    assert len(lines) == 3


def test_the_file_gives_what_the_network_gives(tmp_path: Path):
    torch.manual_seed(1)
    network = Judge(3)
    images = torch.randint(0, 256, (5, 3, 64, 64), dtype=torch.uint8)
    network(images)  # moves the batch norms' statistics off their start
    network.eval()
    judge.write(network, {"data": "abc"}, tmp_path / "judge.onnx")
    opened = feature_network.open_network(feature_network.Settings(tmp_path / "judge.onnx"))
    features, _ = opened(images.permute(0, 2, 3, 1).numpy())
    assert torch.allclose(features, network(images), atol=1e-5)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("name,age\n000.png,30\n001.png,31\n", "has no column of 0"),
        ("name,male\na.png,1\nb.png,0\n", "knows none of the pictures"),
    ],
)
def test_annotations_of_nothing_are_named(discs: Path, tmp_path: Path, text: str, message: str, command):
    (tmp_path / "labels.csv").write_text(text)
    out = tmp_path / "judge.onnx"
    result = command(main, "judge", "--data", discs, "--labels", tmp_path / "labels.csv", "--out", out)
    assert result.exit_code == 1
    assert message in result.stderr.splitlines()[-1]
    assert not out.exists()


def test_annotations_stay_with_their_pictures_where_one_cannot_be_used(
    discs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    folder = Path(shutil.copytree(discs, tmp_path / "some"))
    (folder / "002.png").write_bytes(b"not a picture")
    asked: list[list[str]] = []

    def known(names, *rest):
        asked.append(names)
        return known_of(names, *rest)

    monkeypatch.setattr(judge, "known_of", known)
    lines: list[str] = []
    judge.run(Settings(folder, (discs / "labels.csv",), epochs=1), lines.append)
    assert asked == [[f"{i:03d}.png" for i in range(64) if i != 2]]


def test_settings_out_of_range():
    with pytest.raises(PgsrError, match="--epochs 0"):
        Settings(Path("a.zip"), (Path("b.csv"),), epochs=0)
    with pytest.raises(PgsrError, match="--labels"):
        Settings(Path("a.zip"), ())
