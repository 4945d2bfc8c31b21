"""What a run begins from, and what lies in its folder, may be anything: it trains, or one line says why."""

from __future__ import annotations

import copy
import hashlib
import json
import math
import os
import re
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from pgsr.checkpoint import files_of, load, load_description, newest, save
from pgsr.errors import PgsrError
from pgsr.trainer import cli
from pgsr.trainer.data.cache import Noise
from pgsr.trainer.data.sources import open_pictures
from pgsr.trainer.run_folder import metrics_log
from pgsr.trainer.run_folder.status import status_of
from pgsr.trainer.start import open_run
from pgsr.trainer.step import recipe as config
from pgsr.trainer.step.parallel import Ranks
from pgsr.trainer.step.schedule import build
from pictures import png

RECIPE = """
about = "for tests"
[generator]
kind = "progan"
resolution = 8
latent_size = 8
feature_base = 64
feature_max = 8
[discriminator]
kind = "progan"
resolution = 8
feature_base = 64
feature_max = 8
[schedule]
resolution = 8
batch = 4
fade_images = 8
stable_images = 8
[run]
log_images = 4
sample_images = 1000
checkpoint_images = 8
sample_grid = 4
"""
UPSCALER = """
about = "for tests"
[generator]
kind = "compact"
scale = 2
[discriminator]
[schedule]
resolution = 8
start_resolution = 8
batch = 4
stable_images = 8
[objective]
adversarial = "none"
pixel = "l1"
[data]
resolution = 16
"""
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def recipe_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("recipe") / "small.toml"
    path.write_text(RECIPE)
    return path


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data") / "photos"
    folder.mkdir()
    for i in range(6):
        (folder / f"{i}.png").write_bytes(png(16, i))
    return folder


@pytest.fixture(scope="module")
def finished(recipe_file: Path, photos: Path, command, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A whole run; nobody writes to it."""
    run = tmp_path_factory.mktemp("runs") / "run"
    assert command(cli.main, recipe_file, "--data", photos, "--out", run).exit_code == 0
    return run


@pytest.fixture
def run(finished: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(finished, tmp_path / "run", symlinks=True))


def resume(command, run: Path, data: Path, *arguments: str):
    return command(cli.main, "--resume", "--data", data, "--out", run, *arguments)


# ----------------------------------------------------------------------------
# Before the first step.


def test_a_batch_that_cannot_be_shared_is_refused_at_once_whatever_its_phase(recipe_file: Path):
    """Before the data are even looked for."""
    recipe = config.load(str(recipe_file), ["schedule.at.8.batch=2"])
    for rank in range(4):
        with pytest.raises(PgsrError, match=r"a batch of 2 cannot be shared by 4 processes: start fewer, or"):
            open_run(recipe, Path("nowhere"), Path("run"), CPU, Ranks(rank, 4))


def test_a_batch_of_one_has_no_deviation(recipe_file: Path, photos: Path):
    """The phase is named; a critic that does not look across a batch may have it."""
    settings = ["schedule.at.8.batch=1"]
    with pytest.raises(PgsrError, match=r"(fade|stable) 8 has a batch of 1, of which there is no minibatch"):
        open_run(config.load(str(recipe_file), settings), photos, Path("run"), CPU)
    settings.append("discriminator.stddev_group=1")
    assert open_run(config.load(str(recipe_file), settings), photos, Path("run"), CPU)


def test_and_where_the_data_tell_the_phases(recipe_file: Path, photos: Path, monkeypatch: pytest.MonkeyPatch):
    settings = ["schedule.at.8.batch=2", "schedule.stable_epochs=1.0"]
    monkeypatch.setattr(Ranks, "in_turn", lambda self, work, waiting_for: work())
    with pytest.raises(PgsrError, match="a batch of 2 cannot be shared by 4 processes"):
        open_run(config.load(str(recipe_file), settings), photos, Path("run"), CPU, Ranks(0, 4))


@pytest.mark.parametrize(
    "setting",
    [
        f"seed={'9' * 4000}",
        "seed=-1",
        f"seed={2**64}",
        f"schedule.batch={'9' * 5000}",
        f"schedule.fade_images={'9' * 4000}",
        "schedule.batch=1000000000",
        f"generator.latent_size={2**50}",
        "generator.latent_size=0",
        "generator.latent_size=-1",
        "discriminator.stddev_group=0",
        "generator_optimizer.beta1=1.0",
        "generator_optimizer.learning_rate=-1.0",
        "critic_optimizer.epsilon=nan",
        'critic_optimizer.learning_rate_from={"²" = 1.0}',
        "data.resolution=12",
        "data.resolution=1000000",
        "objective.critic_steps=100000000",
        f"name={'x' * 100_000}",
        f"{'a.' * 5000}b=1",
        f"run.log_images={'[' * 5000}",
        f"about={'[' * 400}{']' * 400}",
    ],
    ids=lambda setting: setting[:40],
)
def test_settings_without_sense_are_a_line(setting: str, recipe_file: Path, command, tmp_path: Path):
    result = command(cli.main, recipe_file, "--dry-run", "--set", setting)
    assert result.exit_code == 1, result.output
    assert result.stderr.startswith("error: ")
    assert result.stderr.count("\n") == 1
    assert len(result.stderr) < 1000


HOSTILE = (
    *(None, [], {}, "x", "", -1, 1, 1e308, math.inf, math.nan, 2**70, 2**52, 10**4000, True, "9" * 5000),
    *([[[[1]]]], {"a": {"b": {"c": 1}}}, ["a"], {"1": 1}, {"x": 1}, [{}], [1.5], 1e-320),
)


def places(value: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """The paths to everything in a config."""
    yield path
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from places(inner, (*path, key))


def test_a_config_with_anything_in_any_place_is_a_recipe_or_a_line():
    """A fifth of the values in each place, in turn."""
    whole = config.load("progan-cifar10-labels").as_dict()
    for number, path in enumerate(places(whole)):
        for value in HOSTILE[number % 5 :: 5]:
            changed = copy.deepcopy(whole) if path else value
            if path:
                table: Any = changed
                for key in path[:-1]:
                    table = table[key]
                table[path[-1]] = value
            try:
                recipe = config.from_dict(changed)  # type: ignore[arg-type]
                json.dumps(recipe.as_dict())
                if not recipe.schedule.counts_epochs:
                    build(recipe.schedule, recipe.objective.critic_steps)
            except PgsrError as error:
                assert len(str(error)) < 3000  # noqa: PT017


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"[1]",
        b"3",
        b"\xff\xfe",
        b"[" * 100_000,
        b'{"a":' * 100_000,
        b'{"seed": ' + b"9" * 5000 + b"}",
        b'{"generator": ' + b"[" * 500 + b"]" * 500 + b"}",
        b" " * 2**21,
    ],
    ids=range(9),
)
def test_a_config_file_of_anything_is_a_line(content: bytes, run: Path, photos: Path, command):
    (run / "config.json").write_bytes(content)
    for arguments in (("--status", run), ("--resume", "--data", photos, "--out", run)):
        result = command(cli.main, *arguments)
        assert result.exit_code == 1, result.output
        assert result.stderr.startswith("error: ")
        assert len(result.stderr) < 1000


def test_a_pipe_in_place_of_a_config_or_log_is_not_waited_for(run: Path):
    (run / "metrics.jsonl").unlink()
    os.mkfifo(run / "metrics.jsonl")
    with pytest.raises(PgsrError, match=r"metrics\.jsonl is a pipe or a device"):
        status_of(run)
    (run / "config.json").unlink()
    os.mkfifo(run / "config.json")
    with pytest.raises(PgsrError, match=r"config\.json is a pipe or a device"):
        status_of(run)


# ----------------------------------------------------------------------------
# What others left in a run's folder.

FOREIGN_LINES = (
    "[1, 2]",
    "null",
    '{"images_shown": "many", "step": 3}',
    '{"images_shown": -5, "step": 3, "resolution": 8, "alpha": 1, "batch": 4}',
    '{"images_shown": 9, "step": 3}',
    '{"images_shown": 9, "step": 1, "resolution": 8, "alpha": 1, "batch": 4, "loss/critic": "low"}',
    '{"images_shown": 9, "step": 1, "resolution": null, "alpha": 1, "batch": 4}',
    '{"images_shown": 9, "rollback": {"to": 3}}',
    '{"images_shown": ' + "9" * 5000 + "}",
    '{"images_shown": 9, "learning_rate_scale": "half"}',
    "[" * 100_000,
    "\udcff",
)


def test_lines_of_others_in_the_log_are_passed_over(run: Path, photos: Path, command):
    own = metrics_log.read(run / "metrics.jsonl")
    before = status_of(run)[0]
    with open(run / "metrics.jsonl", "a", errors="surrogateescape") as file:
        file.writelines(f"{line}\n" for line in FOREIGN_LINES)
    assert metrics_log.read(run / "metrics.jsonl") == own
    ages = ("last_line_seconds_ago", "checkpoints")
    after = status_of(run)[0]
    assert {k: v for k, v in after.items() if k not in ages} == {
        k: v for k, v in before.items() if k not in ages
    }
    assert resume(command, run, photos).exit_code == 0


def test_files_of_others_in_a_run_folder_stop_nothing(run: Path, photos: Path, command):
    checkpoints, files = run / "checkpoints", files_of(run)
    for name in ("best-so-far", "000000016-copy", "notes", "9" * 200):
        (checkpoints / f"{name}.safetensors").write_bytes(b"mine")
    (checkpoints / "000000099.safetensors").mkdir()
    (checkpoints / "000000098.safetensors").symlink_to("nothing")
    os.mkfifo(checkpoints / "000000097.safetensors")
    (run / "samples" / "mine.png").write_bytes(b"mine")
    (run / "samples" / "000000001.png").mkdir()
    (run / "best.safetensors").write_bytes(b"mine")
    kept = {path for path in run.rglob("*") if path.name != "config.json"}
    assert files_of(run) == files
    assert status_of(run)[0]["state"] == "finished"
    result = resume(command, run, photos)
    assert result.exit_code == 0, result.output
    assert kept <= set(run.rglob("*"))


# ----------------------------------------------------------------------------
# The data of a run that goes on.


def test_training_tells_what_it_leaves_out(run: Path, photos: Path, tmp_path: Path, command):
    shutil.copytree(photos, tmp_path / "copy")
    (tmp_path / "copy" / "notes.txt").write_text("no picture")
    (tmp_path / "copy" / "lost.png").symlink_to("nothing")
    note = (
        f"note: {tmp_path / 'copy'}: 6 pictures used, 2 left out: 1 a link to nothing, "
        "1 no picture of a format that is read (.txt)"
    )
    quiet = resume(command, run, tmp_path / "copy").stderr.splitlines()
    assert f"{note}; --verbose names them" in quiet
    verbose = resume(command, run, tmp_path / "copy", "--verbose").stderr.splitlines()
    assert {note, "left out lost.png: a link to nothing"} <= set(verbose)


def test_what_is_left_out_is_told_of_the_source_that_holds_it(photos: Path, tmp_path: Path, command):
    """A generator's pictures, as pgsr-generate packs them, have files beside them."""
    (tmp_path / "faces").mkdir()
    for name in ("0.png", "1.png", "2.png"):
        (tmp_path / "faces" / name).write_bytes(png(8, 1))
        (tmp_path / "faces" / name).with_suffix(".json").write_text("{}")
    (tmp_path / "crops.toml").write_text(UPSCALER)
    settings = ("--set", f"data.generated={tmp_path / 'faces'}", "--out", tmp_path / "run")
    result = command(cli.main, tmp_path / "crops.toml", "--data", photos, *settings)
    assert result.exit_code == 0, result.stderr
    assert [line for line in result.stderr.splitlines() if line.startswith("note: ")] == [
        f"note: {tmp_path / 'faces'}: 3 pictures used, 3 left out: "
        "3 no picture of a format that is read (.json); --verbose names them"
    ]


def test_a_run_goes_on_with_a_copy_of_its_data_and_not_with_other_data(
    run: Path, photos: Path, tmp_path: Path, command
):
    shutil.copytree(photos, tmp_path / "copy")
    for path in (tmp_path / "copy").iterdir():
        os.utime(path, (1, 1))
    assert resume(command, run, tmp_path / "copy").exit_code == 0
    (tmp_path / "copy" / "3.png").write_bytes(png(16, 33))
    result = resume(command, run, tmp_path / "copy")
    assert result.exit_code == 1
    assert "was trained on other data (fingerprint" in result.stderr
    assert resume(command, run, tmp_path / "copy", "--other-data").exit_code == 0


def test_a_checkpoint_with_the_fingerprint_of_before_goes_on(run: Path, photos: Path, command):
    """Names, sizes and times, as pgsr 0.1 took them."""
    lines = [f"{p.name} {p.stat().st_size} {p.stat().st_mtime_ns}" for p in sorted(photos.iterdir())]
    older = hashlib.sha256("\n".join(lines).encode()).hexdigest()
    assert open_pictures(photos).identity.older == older
    path = newest(run)
    checkpoint = load(path)
    for fingerprint, exit_code in ((older, 0), ("0" * 64, 1)):
        data = {**checkpoint.provenance["data"], "fingerprint": fingerprint}
        save(path, replace(checkpoint, provenance={**checkpoint.provenance, "data": data}))
        assert resume(command, run, photos).exit_code == exit_code


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("progress", {}),
        ("progress", {"images_shown": "16"}),
        ("progress", {"images_shown": -4}),
        ("progress", {"images_shown": 16, "learning_rate_scale": 0}),
        ("progress", {"images_shown": 16, "rollbacks": [1]}),
        ("provenance", {}),
        ("provenance", {"data": 3}),
        ("provenance", {"data": {"fingerprint": 3}}),
        ("config", {"name": 3}),
        ("config", []),
    ],
)
def test_a_checkpoint_of_odd_contents_is_a_line(field: str, value: Any, run: Path, photos: Path, command):
    """With a digest that is right."""
    path = newest(run)
    save(path, replace(load(path), **{field: value}))
    result = resume(command, run, photos)
    assert result.exit_code == 1, result.output
    assert result.stderr.splitlines()[-1].startswith("error: ")
    assert "Traceback" not in result.output


@pytest.mark.parametrize(
    ("name", "tensor", "words"),
    [
        (
            "optimizer.generator.nothing/exp_avg",
            torch.zeros(3),
            "nothing/exp_avg .3. does not fit this recipe",
        ),
        (
            "optimizer.generator.{}/exp_avg_sq",
            torch.zeros(1, 2),
            "exp_avg_sq .1, 2. does not fit this recipe",
        ),
        ("optimizer.generator.{}/step", torch.zeros(2), "step .2. does not fit this recipe"),
        ("optimizer.generator.{}/exp_avg_sq", None, "optimizer of generator is none of this recipe's kind"),
        ("optimizer.discriminator.{}/step", None, "optimizer of discriminator is none of this recipe's kind"),
    ],
)
def test_moments_that_do_not_fit_are_a_line(
    name: str, tensor: torch.Tensor | None, words: str, run: Path, photos: Path, command
):
    """With a digest that is right."""
    path = newest(run)
    checkpoint = load(path)
    prefix = ".".join(name.split(".")[:2]) + "."
    moment = next(n for n in sorted(checkpoint.tensors) if n.startswith(prefix) and n.endswith("/step"))
    name = name.format(moment.removeprefix(prefix).removesuffix("/step"))
    tensors = dict(checkpoint.tensors)
    if tensor is None:
        del tensors[name]
    else:
        tensors[name] = tensor
    save(path, replace(checkpoint, tensors=tensors))
    result = resume(command, run, photos)
    assert result.exit_code == 1, result.output
    assert re.search(words, result.stderr.splitlines()[-1]), result.stderr


@pytest.mark.parametrize(
    "data", [None, 3, {}, {"pictures": "6"}, {"pictures": -1}, {"pictures": 10**400}], ids=str
)
def test_the_status_of_a_run_whose_checkpoint_tells_no_pictures(data: Any, run: Path):
    """A schedule of epochs is not known then, and the rest is told."""
    for path in files_of(run):
        save(path, replace(load(path), provenance={"data": data}))
    settings = json.loads((run / "config.json").read_text())
    settings["schedule"] |= {"stable_epochs": 1.0}
    (run / "config.json").write_text(json.dumps(settings))
    assert status_of(run)[0]["total_images"] is None


@pytest.mark.parametrize("text", ["[" * 100_000, "{", "3", '{"images_shown": ' + "9" * 5000 + "}"])
def test_a_checkpoint_whose_metadata_are_no_tables_is_a_line(text: str, tmp_path: Path):
    path = tmp_path / "x.safetensors"
    texts = {"format": "pgsr-checkpoint-1", "config": "{}", "progress": text, "provenance": "{}"}
    save_file({"a": torch.zeros(1)}, path, texts)
    with pytest.raises(PgsrError, match=r"x\.safetensors is damaged: its progress"):
        load_description(path)


def test_noise_has_no_files(recipe_file: Path):
    """The timing of steps takes noise in place of photographs."""
    run = open_run(config.load(str(recipe_file)), Noise(4), Path("run"), CPU)  # type: ignore[arg-type]
    assert (run.trainer.batches.fingerprint, run.trainer.batches.left_out) == ("noise", ())
