"""What pgsr-serve's OpenAPI document and page of docs promise: every address, and lines that work."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

import upscaling
from pgsr.runtime.serve.cli import main
from serving import ROOT, Served, serving, write_model

PAGE = (ROOT / "docs" / "serving.md").read_text()
HERE = "http://127.0.0.1:8000"
LINES = re.findall(r"^    (curl .+)$", PAGE, re.MULTILINE)

LOOK = {"model", "graph", "truncation", "size", "stage", "quality"}
OPERATIONS = {
    ("get", "/v1/images"): LOOK | {"seed", "index", "count", "format"},
    ("get", "/v1/images/{seed}/{index}.{suffix}"): LOOK | {"seed", "index", "suffix"},
    ("post", "/v1/latents"): set(),
    ("get", "/v1/video"): {
        *("model", "graph", "seed", "seconds", "fps", "smooth", "loop", "truncation", "quality", "format"),
    },
    ("post", "/v1/upscale"): {"model", "graph", "format", "quality", "job"},
    ("get", "/v1/upscale/{job}"): {"job"},
    ("get", "/v1/models"): set(),
    ("get", "/healthz"): set(),
    ("get", "/readyz"): set(),
    ("get", "/metrics"): set(),
}


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    model = write_model(tmp_path_factory.mktemp("model") / "tiny")
    with serving(tmp_path_factory.mktemp("serve"), "--model", model) as found:
        yield found
        assert found.errors == []


@pytest.fixture(scope="module")
def document(served: Served) -> dict[str, Any]:
    found: dict[str, Any] = served.get("/openapi.json").json()
    return found


def operations(document: dict[str, Any]) -> dict[tuple[str, str], dict[str, Any]]:
    return {(method, path): o for path, one in document["paths"].items() for method, o in one.items()}


def test_the_document_has_every_address_and_parameter(document: dict[str, Any]):
    found = operations(document)
    assert {key: {p["name"] for p in o.get("parameters", ())} for key, o in found.items()} == OPERATIONS
    assert document["openapi"].startswith("3.")
    for key, operation in found.items():
        assert operation["description"], key
        assert "200" in operation["responses"], key


def test_the_document_says_what_comes_and_how_it_is_refused(document: dict[str, Any]):
    found = operations(document)
    images = found["get", "/v1/images"]["responses"]
    kinds = {"image/png", "image/jpeg", "image/webp", "image/jxl", "application/x-tar"}
    assert set(images["200"]["content"]) == kinds
    error = {"$ref": "#/components/schemas/ErrorAnswer"}
    for status in ("422", "503"):
        assert images[status]["content"]["application/json"]["schema"] == error
    body = found["post", "/v1/upscale"]["requestBody"]["content"]
    assert set(body) == {"image/*", "multipart/form-data"}
    assert set(document["components"]["schemas"]["ErrorAnswer"]["required"]) == {"error", "request"}


def test_the_documents_examples_work(document: dict[str, Any], served: Served):
    (example,) = document["components"]["schemas"]["LatentsBody"]["examples"]
    assert served.post("/v1/latents", json=example).status_code == 200
    tried = 0
    for (method, path), operation in operations(document).items():
        parameters = operation.get("parameters", ())
        query = {p["name"]: p["schema"]["examples"][0] for p in parameters if "examples" in p["schema"]}
        if method == "get" and query:
            assert served.get(path, params=query).status_code == 200, path
            tried += 1
    assert tried == 2


def test_the_document_holds_the_ranges(document: dict[str, Any]):
    parameters = {p["name"]: p["schema"] for p in operations(document)["get", "/v1/images"]["parameters"]}
    truncation = parameters["truncation"]["anyOf"][0]  # or nothing, which is the model's own
    assert (truncation["minimum"], truncation["maximum"]) == (0, 1)
    assert parameters["seed"]["minimum"] == 0
    assert parameters["format"]["enum"] == ["png", "jpeg", "webp", "jxl"]


def test_the_page_tells_every_address(document: dict[str, Any]):
    for path in document["paths"]:
        assert path.replace(".{suffix}", ".png") in PAGE


@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")
@pytest.mark.parametrize("line", LINES, ids=lambda line: line[:60])
def test_curls_lines_work(line: str, served: Served, tmp_path: Path):
    (tmp_path / "photo.jpg").write_bytes(
        upscaling.file_of(Image.fromarray(upscaling.picture(20, 30)), format="JPEG")
    )
    assert HERE in line
    command = line.replace(HERE, served.url).replace("curl ", "curl --fail --silent --show-error ", 1)
    done = subprocess.run(["bash", "-o", "pipefail", "-c", command], cwd=tmp_path, capture_output=True)
    assert done.returncode == 0, done.stderr
    made = [path for path in tmp_path.iterdir() if path.name != "photo.jpg"]
    assert done.stdout or made
    for path in made:
        if path.suffix in (".png", ".jpg", ".webp"):
            assert Image.open(path).size > (0, 0)
    if line.endswith("| tar -x"):
        assert len(made) == 10


def test_the_lines_are_many():
    assert len(LINES) >= 10


def test_the_python_of_the_page_runs(served: Served, capsys: pytest.CaptureFixture[str]):
    (code,) = re.findall(r"^```python\n(.*?)^```$", PAGE, re.DOTALL | re.MULTILINE)
    names: dict[str, Any] = {}
    exec(compile(code.replace(HERE, served.url), "docs/serving.md", "exec"), names)
    assert len(names["frames"]) == 8
    assert names["data"][:4] == b"\x89PNG"
    assert len(capsys.readouterr().out.splitlines()) == 20


# ----------------------------------------------------------------------------
# Running it.

KNOWN = {name for option in main.params for name in option.opts}


@pytest.fixture
def unit(tmp_path: Path) -> Path:
    """The page's unit, whose command is there."""
    (text,) = re.findall(r"(^    \[Unit\]\n.*?)\n\n(?=\()", PAGE, re.DOTALL | re.MULTILINE)
    command = tmp_path / "pgsr-serve"
    command.write_text("#!/bin/sh\n")
    command.chmod(0o755)
    path = tmp_path / "pgsr-serve.service"
    path.write_text(textwrap.dedent(text).replace("/opt/pgsr/bin/pgsr-serve", str(command)))
    assert str(command) in path.read_text()
    return path


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd is not installed")
def test_the_unit_is_a_tight_one(unit: Path):
    verify = subprocess.run(["systemd-analyze", "verify", unit], capture_output=True, text=True)
    if "Failed to" in verify.stderr and verify.returncode:
        pytest.skip(verify.stderr.strip()[:200])  # a container that lets systemd look at nothing
    assert (verify.returncode, verify.stdout, verify.stderr) == (0, "", "")
    exposure = [*"systemd-analyze security --offline=yes --threshold=20".split(), str(unit)]  # of 100
    done = subprocess.run(exposure, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-200:]


def test_the_unit_starts_and_reloads_the_server(unit: Path):
    values = dict(line.split("=", 1) for line in unit.read_text().splitlines() if "=" in line)
    _, *arguments = shlex.split(values["ExecStart"])
    assert {word for word in arguments if word.startswith("--")} == {"--json", "--api-key-file"} <= KNOWN
    assert values["ExecReload"].endswith("-HUP $MAINPID")
    (grace,) = (option.default for option in main.params if option.name == "grace")
    assert int(values["TimeoutStopSec"]) > grace


def test_the_containers_line_is_the_images(tmp_path: Path):
    """The image holds the server, and what follows the image's name are options that it has."""
    (line,) = re.findall(r"^    (docker run .+)$", PAGE, re.MULTILINE)
    words = shlex.split(line)
    assert words[words.index("--entrypoint") + 1] == "pgsr-serve"
    assert "127.0.0.1:8000:8000" in words  # for this machine alone
    image = words.index("pgsr")
    assert words[image + 1 :] == ["--host", "0.0.0.0", "--json"]
    (grace,) = (option.default for option in main.params if option.name == "grace")
    assert int(words[words.index("--stop-timeout") + 1]) > grace
    assert ",serve]" in (ROOT / "docker" / "cpu.Dockerfile").read_text()
