"""Commands with modes: the first word, the older spellings by options, and whose option is whose."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result
from PIL import Image

import bundles as tiny
from pgsr import bundle, draws
from pgsr.export.cli import main as export
from pgsr.runtime.generate.cli import main as generate
from pgsr.runtime.generate.interpolation import between


def run(command, *arguments: object) -> Result:
    return CliRunner().invoke(command, [str(a) for a in arguments])


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.write_bundle(tmp_path_factory.mktemp("model") / "bundle")


def test_a_grid_by_either_spelling_is_the_same_picture(model: Path, tmp_path: Path):
    by_word, by_option = tmp_path / "a.png", tmp_path / "b.png"
    for arguments in (["grid", "3x2", by_word, "--seed", 5], ["--seed", 5, "--grid", "3x2", by_option]):
        done = run(generate, *arguments, "--model", model)
        assert done.exit_code == 0, done.output
    assert by_word.read_bytes() == by_option.read_bytes()
    with Image.open(by_word) as picture:
        assert picture.width > picture.height


def test_a_grid_between_faces_leads_from_each_to_the_next(model: Path, tmp_path: Path):
    """Its ends are the faces themselves; what stands between them is of latents turned by equal angles."""
    latents = draws.latents(5, range(1, 4), bundle.read(model).latent_size)
    rows = [between(a, b, share) for a, b in pairwise(latents) for share in (0.0, 0.5, 1.0)]
    np.save(tmp_path / "rows.npy", np.stack(rows))
    ways, faces = tmp_path / "ways.png", tmp_path / "faces.png"
    for arguments in (
        ["grid", "3x2", ways, "--between", "--seed", 5, "--start", 1],
        ["grid", "3x2", faces, "--from-latents", tmp_path / "rows.npy"],
    ):
        done = run(generate, *arguments, "--model", model)
        assert done.exit_code == 0, done.output
    assert ways.read_bytes() == faces.read_bytes()
    np.save(tmp_path / "one.npy", latents[:1])
    for arguments in (["1x3", "--seed", 5], ["3x1", "--from-latents", tmp_path / "one.npy"]):
        done = run(generate, "grid", arguments[0], ways, *arguments[1:], "--between", "--model", model)
        assert done.exit_code == 1
        assert "--between" in done.output


def test_a_video_by_either_spelling_is_the_same_file(model: Path, tmp_path: Path):
    files = []
    for arguments in (["video"], ["--video"]):
        files.append(tmp_path / f"{len(files)}.gif")
        done = run(generate, *arguments, files[-1], "--seconds", 0.2, "--model", model)
        assert done.exit_code == 0, done.output
    assert files[0].read_bytes() == files[1].read_bytes()
    with_equals = run(generate, f"--video={tmp_path / 'c.gif'}", "--seconds=0.2", "--model", model)
    assert with_equals.exit_code == 0, with_equals.output
    assert (tmp_path / "c.gif").read_bytes() == files[0].read_bytes()


def test_the_default_mode_has_a_name_too(model: Path, tmp_path: Path):
    for words in ([], ["faces"]):
        out = tmp_path / f"out{len(words)}"
        done = run(generate, *words, "--count", 2, "--out", out, "--model", model, "--json")
        assert json.loads(done.stdout)["made"] == 2
    assert (tmp_path / "out0/000001.png").read_bytes() == (tmp_path / "out1/000001.png").read_bytes()


def test_backends_by_either_spelling():
    assert run(generate, "backends").stdout == run(generate, "--backends").stdout != ""
    assert "onnxruntime" in json.loads(run(generate, "backends", "--json").stdout)["backends"][0]["name"]


@pytest.mark.parametrize(
    ("command", "arguments", "words"),
    [
        (generate, ["video", "f.gif", "--count", "3"], "--count is not for "),
        (generate, ["--video", "f.gif", "--count", "3"], "--count is not for a --video: leave it out"),
        (generate, ["--seconds", "3"], "--seconds is for a --video: leave it out"),
        (generate, ["grid", "2x2", "f.png", "--fps", "3"], "--fps is not for "),
        (export, ["run", "--graph", "chain"], "--graph is for a --explain: leave it out"),
        (export, ["explain", "bundle", "--fp16"], "--fp16 is not for "),
        (export, ["engine", "bundle", "tensorrt", "--int8"], "--int8 is not for "),
    ],
)
def test_another_modes_option_is_named(command, arguments: list[str], words: str):
    done = run(command, *arguments)
    assert (done.exit_code, done.stdout) == (1, "")
    assert words in done.stderr
    assert done.stderr.count("\n") == 1


def test_nobodys_option_is_wrong_usage():
    done = run(generate, "--no-such-option")
    assert done.exit_code == 2
    assert "No such option" in done.stderr


def test_help_has_headings_and_modes():
    text = run(generate, "--help").stdout
    headings = [line for line in text.splitlines() if line.endswith(":") and not line.startswith(" ")]
    assert headings == [
        "Output:",
        "Shards, and clusters:",
        "Which faces:",
        "Machine:",
        "Options:",
        "Modes (MODE --help has their options):",
    ]
    assert [word for word in ("video", "grid", "backends") if f"\n  {word} " in text] == [
        "video",
        "grid",
        "backends",
    ]
    assert "--seconds" not in text
    assert "--seconds" in run(generate, "video", "--help").stdout
    assert "\n  explain " in run(export, "--help").stdout


def test_importing_is_exporting_from_a_file(tmp_path: Path):
    done = run(export, "import", tmp_path / "absent.pkl", "--out", tmp_path / "b")
    same = run(export, "--from", tmp_path / "absent.pkl", "--out", tmp_path / "b")
    assert done.exit_code == same.exit_code == 1
    assert done.stderr == same.stderr
    assert "absent.pkl" in done.stderr
