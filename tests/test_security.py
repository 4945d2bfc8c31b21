"""What SECURITY.md says is true: the tests that it names exist, its numbers are the code's, and the promises
that no other file holds."""

from __future__ import annotations

import ast
import os
import re
import resource
import time
import zipfile
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from pgsr import checkpoint, decoding, pictures, schema
from pgsr.cli import in_one_line
from pgsr.errors import PgsrError
from pgsr.export.source import read_source
from pgsr.networks import GENERATORS, build
from pgsr.runtime.serve.protocol import HEAD_BYTES, HEADERS
from pgsr.runtime.serve.settings import Limits
from pgsr.trainer.data import listing, mnist_cifar, sources
from pgsr.trainer.data.sources import open_pictures, reading
from pictures import png, write_zip

ROOT = Path(__file__).resolve().parents[1]
PAGE = (ROOT / "SECURITY.md").read_text()
NAMED = sorted(set(re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", PAGE)))


def test_promises_name_their_tests():
    assert len(NAMED) > 30
    for section in PAGE.split("\n## ")[2:4]:  # what is promised everywhere, and for each
        for promise in re.split(r"\n- |\n\| (?!---|what)", section)[1:]:
            assert "::test_" in promise, promise


@pytest.mark.parametrize(("file", "name"), NAMED)
def test_the_tests_exist(file: str, name: str):
    tree = ast.parse((ROOT / file).read_text())
    assert name in {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}


def test_the_files_and_names_in_the_limits_exist():
    for place in re.findall(r"of (pgsr/\S+\.py|trainer/\S+\.py)", PAGE):
        assert (ROOT / place).is_file(), place
    options = set(re.findall(r"`(--max-[a-z-]+|--rate)`", PAGE))
    assert options == {
        f"--max-{n.replace('_', '-')}" for n in vars(Limits()) if not re.match("rate|request", n)
    } | {"--rate"}


def test_the_limits_are_those_of_the_code():
    limits, mebi = Limits(), 2**20
    rows = [
        f"| {limits.body // mebi} MiB; {limits.body_seconds:g} s; {limits.header_seconds:g} s |",
        f"| {HEADERS}, {HEAD_BYTES // 1024} KiB |",
        f"| {limits.pixels:,} |",
        f"| {limits.count:,}; {limits.frames:,} |",
        f"| {limits.waiting}; {limits.streams}; {limits.uploads}; {limits.connections:,} |",
        f"| {sources.MAX_DAMAGED} |",
        f"| {decoding.MOST_PIXELS:,}; {pictures.MOST_SECONDS:g}; {listing.LARGEST_FILE // mebi} MiB |",
        f"| {listing.MOST_FILES:,}; {mnist_cifar.LARGEST // 2**30} GiB |",
        f"| {schema.LONGEST_DOCUMENT // mebi} MiB; {schema.DEEPEST} |",
    ]
    missing = [row for row in rows if row not in PAGE]
    assert not missing
    assert not limits.rate


# ----------------------------------------------------------------------------


def test_control_characters_are_written_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    """A name in an archive may clear the screen, or write over the line before."""
    assert in_one_line("a\x1b[2Jb \x9bc\r\n d\u2028e \u202ef") == r"a\x1b[2Jb \x9bc d e \u202ef"
    assert in_one_line("Ünïcödé 顔") == "Ünïcödé 顔"
    path = write_zip(tmp_path / "a.zip", [("0.png", png(8)), ("\x1b[2J.txt", b"x")])
    listed = open_pictures(path)
    listing.tell(path, len(listed), listed.left_out, verbose=True)
    said = capsys.readouterr().err
    assert r"left out \x1b[2J.txt: no picture" in said
    assert "\x1b" not in said


def test_an_error_is_no_longer_than_a_screen():
    assert len(in_one_line("word " * 10_000)) == 2000


NAMES = ["../../x.png", "/etc/x.png", "a/../../x.png", "..", ".", "", "x\0.png", "C:\\x.png"]


@pytest.mark.parametrize("name", NAMES)
def test_names_of_members_lead_nowhere(name: str, tmp_path: Path):
    """They are read, where the archive is, and nothing is written."""
    folder = tmp_path / "a" / "b"
    folder.mkdir(parents=True)
    with zipfile.ZipFile(folder / "a.zip", "w") as archive:
        archive.writestr(zipfile.ZipInfo(name), png(8))
        archive.writestr("sound.png", png(8))
    listed = open_pictures(folder / "a.zip")
    with reading(listed) as read:
        assert {read(found) for found in listed.names} == {png(8)}
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == [folder / "a.zip"]
    assert not os.path.lexists(tmp_path.parent / "x.png")


@pytest.mark.parametrize(
    "options",
    [
        {
            "kind": "progan",
            "resolution": 4,
            "feature_base": 2**15,
            "feature_max": 2**15,
            "latent_size": 2**15,
        },
        {"kind": "compact", "features": 2**14},
        {"kind": "compact", "layers": 2**20},
        {"kind": "srresnet", "blocks": 2**10, "features": 2**10},
    ],
    ids=str,
)
def test_a_checkpoint_that_asks_for_a_huge_network_is_refused_at_once(
    options: dict[str, int], tmp_path: Path
):
    """A few bytes may name a network of gigabytes: it is compared with the weights that are there before."""
    small = build(GENERATORS, {"kind": "compact", "features": 4, "layers": 1})
    tensors = {f"generator_ema.{name}": tensor for name, tensor in small.state_dict().items()}
    held = checkpoint.Checkpoint(
        tensors, {"generator": {"kind": "compact", "features": 4, "layers": 1}}, {}, {}
    )
    path = tmp_path / "small.safetensors"
    checkpoint.save(path, replace(held, progress={"images_shown": 1}))
    assert read_source(path).kind == "upscaler"
    checkpoint.save(path, replace(held, config={"generator": options}, progress={"images_shown": 1}))
    before, began = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.process_time()
    with pytest.raises(PgsrError, match=r"do not fit its recipe|must be from 1 to 1024"):
        read_source(path)
    assert time.process_time() - began < 20
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 2**20  # KB


def test_a_network_is_what_it_was(tmp_path: Path):
    """Its weights are compared without memory first, and then loaded."""
    network = build(GENERATORS, {"kind": "compact", "features": 4, "layers": 1}, seed=3)
    tensors = {f"generator_ema.{name}": tensor for name, tensor in network.state_dict().items()}
    options = {"generator": {"kind": "compact", "features": 4, "layers": 1}}
    checkpoint.save(
        tmp_path / "a.safetensors", checkpoint.Checkpoint(tensors, options, {"images_shown": 1}, {})
    )
    loaded = read_source(tmp_path / "a.safetensors").network
    for name, tensor in network.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], tensor)
