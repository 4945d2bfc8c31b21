"""Hundreds of files, changed at random: no traceback leaves a command, only one line and exit code 1."""

from __future__ import annotations

import json
import random
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
from mutations import KINDS, changed_bytes, changed_json

import bundles as tiny
from pgsr import bundle as bundles
from pgsr.errors import PgsrError

COUNTS = {"manifests": 400, "latents": 300, "folders": 200, "graphs": 200, "graphs-in-openvino": 120}


def answers(kind: str, count: int) -> None:
    if kind == "graphs-in-openvino" and find_spec("openvino") is None:
        pytest.skip("OpenVINO is not installed")
    program = str(Path(__file__).with_name("mutations.py"))
    done = subprocess.run(
        [sys.executable, program, kind, str(count), "0"], capture_output=True, text=True, timeout=1200
    )
    assert done.returncode == 0, f"{done.stdout[-2000:]}\n{done.stderr[-2000:]}"
    assert done.stdout.count("case ") == count
    assert done.stderr == ""


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_commands_answer_with_one_line(kind: str):
    answers(kind, COUNTS[kind])


@pytest.mark.parametrize("kind", ["manifests", "latents"])
def test_commands_answer_some(kind: str):
    answers(kind, 12)


def test_manifests_are_read_or_refused(tmp_path: Path):
    """Many, since nothing else runs; both happen, and what is read is as a manifest must be."""
    folder = tiny.add_generator(tiny.write_bundle(tmp_path / "b"))
    path = folder / bundles.MANIFEST
    text = path.read_text()
    read, refused = 0, []
    for number in range(300):
        draw = random.Random(number)
        if number % 4:
            data = json.dumps(changed_json(json.loads(text), draw)).encode("utf-8", "surrogatepass")
        else:
            data = changed_bytes(text.encode(), draw)
        path.write_bytes(data)
        try:
            found = bundles.read(folder)
        except PgsrError as error:
            refused.append(str(error))
        else:
            read += 1
            assert {type(v) for v in (found.latent_size, found.resolution, found.scale)} == {int}
            assert all(graph.name in bundles.GRAPHS for graph in found.graphs)
    assert all(str(path) in sentence and len(sentence) < 600 for sentence in refused)
    assert read > 10
    assert len(refused) > 100
