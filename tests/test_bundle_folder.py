"""Where a bundle is written: an older one goes at once, and nothing that is no part of it ever goes."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from bundles import write_bundle
from pgsr import bundle
from pgsr.errors import PgsrError
from pgsr.export import bundle_folder
from pgsr.export.bundle_folder import check_replaceable, replacing_bundle
from pgsr.runtime.generate.cli import main as generate

ENGINES = ("chain.tensorrt.sm89.engine", "chain.tensorrt.sm89.engine.json")


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_bundle(tmp_path_factory.mktemp("other") / "b", seed=1)


@pytest.fixture
def out(tmp_path: Path) -> Path:
    folder = write_bundle(tmp_path / "b")
    for name in ENGINES:
        (folder / name).write_text("of the older graphs")
    return folder


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def replace(out: Path, other: Path) -> None:
    check_replaceable(out)
    with replacing_bundle(out) as folder:
        shutil.copytree(other, folder, dirs_exist_ok=True)


def test_a_bundle_replaces_an_older_one_with_its_engines(out: Path, other: Path):
    replace(out, other)
    assert contents(out) == contents(other)
    assert os.listdir(out.parent) == ["b"]


@pytest.mark.parametrize("way", ["two renames", "a mount"])
def test_where_the_names_cannot_change_places(
    way: str, out: Path, other: Path, monkeypatch: pytest.MonkeyPatch
):
    if way == "a mount":
        monkeypatch.setattr(os.path, "ismount", lambda path: Path(path) == out)
    else:
        monkeypatch.setattr(bundle_folder, "_renamed_both", lambda a, b: False)
    inode = out.stat().st_ino
    replace(out, other)
    assert contents(out) == contents(other)
    assert os.listdir(out.parent) == ["b"]
    assert (out.stat().st_ino == inode) == (way == "a mount")


def test_here(out: Path, other: Path, monkeypatch: pytest.MonkeyPatch):
    """The folder that a shell stands in stays that folder."""
    monkeypatch.chdir(out)
    replace(Path(), other)
    assert contents(Path()) == contents(other)


def test_a_link_stays_one(out: Path, other: Path, tmp_path: Path):
    link = tmp_path / "link"
    link.symlink_to("b")
    replace(link, other)
    assert os.readlink(link) == "b"
    assert contents(out) == contents(other)


def test_a_link_to_nothing_yet(other: Path, tmp_path: Path):
    link = tmp_path / "link"
    link.symlink_to("new")
    replace(link, other)
    assert contents(tmp_path / "new") == contents(other)


def test_an_empty_folder_is_taken(other: Path, tmp_path: Path):
    (tmp_path / "empty").mkdir()
    replace(tmp_path / "empty", other)
    assert contents(tmp_path / "empty") == contents(other)


def faces(folder: Path) -> None:
    result = CliRunner().invoke(generate, ["--count", "1", "--out", str(folder), "--backend", "onnxruntime"])
    assert result.exit_code == 0, result.output


def bundle_with(name: str) -> Any:
    def make(folder: Path) -> None:
        write_bundle(folder)
        path = folder / name
        path.parent.mkdir(exist_ok=True)
        path.write_text("mine")

    return make


def manifest_that(**change: Any) -> Any:
    def make(folder: Path) -> None:
        write_bundle(folder)
        path = folder / bundle.MANIFEST
        path.write_text(json.dumps({**json.loads(path.read_text()), **change}))

    return make


NOT_TO_BE_REPLACED = {
    "faces": faces,
    "faces and more": lambda folder: (faces(folder), (folder / "mine").mkdir()),
    "a file beside": bundle_with("notes.txt"),
    "a folder beside": bundle_with("mine/photo.png"),
    "a hidden file": bundle_with(".gitignore"),
    "an engine of nothing there": bundle_with("upscaler.tensorrt.sm89.engine"),
    "a folder named as a graph's engine": bundle_with(f"{ENGINES[0]}/mine"),
    "another schema": manifest_that(schema=999),
    "a damaged manifest": manifest_that(graphs=3),
    "a graph elsewhere": manifest_that(graphs=[{"file": "../mine.onnx"}]),
}


@pytest.mark.parametrize("what", NOT_TO_BE_REPLACED)
def test_what_is_not_a_bundle_alone_is_left_alone(what: str, other: Path, tmp_path: Path):
    folder = tmp_path / "b"
    NOT_TO_BE_REPLACED[what](folder)
    before = contents(folder)
    with pytest.raises(PgsrError, match="name another folder"):
        replace(folder, other)
    assert contents(folder) == before
    assert os.listdir(tmp_path) == ["b"]


def test_what_was_put_there_meanwhile_is_left_alone(out: Path, other: Path):
    before = contents(out)

    def replace_while_others_write() -> None:
        with replacing_bundle(out) as folder:
            shutil.copytree(other, folder, dirs_exist_ok=True)
            (out / "mine.txt").write_text("mine")

    with pytest.raises(PgsrError, match=r"holds 'mine\.txt'"):
        replace_while_others_write()
    assert contents(out) == {**before, "mine.txt": b"mine"}
    assert os.listdir(out.parent) == ["b"]


REPLACES = """
import shutil, sys, time
from pathlib import Path
from pgsr.export.bundle_folder import replacing_bundle
print("begun", flush=True)
while True:
    with replacing_bundle(Path(sys.argv[1])) as folder:
        shutil.copytree(sys.argv[2], folder, dirs_exist_ok=True)
        time.sleep(0.005)
"""


def test_a_kill_at_any_instant_leaves_a_bundle(out: Path, other: Path):
    """Whenever it is looked at, a bundle stands there, and the next export removes what was left."""
    kills_that_left_some = 0
    for n in range(6):
        process = subprocess.Popen(
            [sys.executable, "-c", REPLACES, str(out), str(other)], stdout=subprocess.PIPE
        )
        assert process.stdout is not None
        process.stdout.readline()
        until = time.monotonic() + 0.2 + 0.03 * n
        looks = 0
        while time.monotonic() < until:
            assert (out / bundle.MANIFEST).exists()
            looks += 1
        process.send_signal(signal.SIGKILL)
        process.wait()
        process.stdout.close()
        assert looks > 10
        found = bundle.read(out)
        assert [found.path(graph) for graph in found.graphs]
        kills_that_left_some += len(os.listdir(out.parent)) > 1
    assert kills_that_left_some
    replace(out, other)
    assert os.listdir(out.parent) == ["b"]
