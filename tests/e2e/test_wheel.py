"""The wheel as a user gets it: built, installed with [cpu] into an empty environment, no torch, faces out."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
import time
import zipfile
from pathlib import Path

import numpy as np
import pytest
from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator
from PIL import Image

import building
from pgsr import bundle
from serving import CPU, serving

ROOT = Path(__file__).resolve().parents[2]


def run(*command: object, cwd: Path, check: bool = True) -> subprocess.CompletedProcess[str]:
    """A command away from the checkout, so that only what is installed is imported."""
    hidden = ("PYTHONPATH", "VIRTUAL_ENV")
    environment = {k: v for k, v in os.environ.items() if k not in hidden}
    done = subprocess.run(list(map(str, command)), cwd=cwd, env=environment, capture_output=True, text=True)
    assert not check or done.returncode == 0, done.stderr
    return done


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return building.wheel(tmp_path_factory.mktemp("wheel"))


REPORTS = ROOT / "benchmarks" / "reports"  # measurements that were made, which no one installs


@pytest.fixture(scope="module")
def empty_environment(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bin folder of an environment that holds the wheel with [cpu] and nothing else."""
    return building.environment(wheel, tmp_path_factory.mktemp("environment")).parent


@pytest.fixture(scope="module")
def serve_environment(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bin folder of an environment that holds the wheel with [cpu,serve]."""
    return building.environment(wheel, tmp_path_factory.mktemp("serve"), "cpu,serve").parent


def test_wheel_holds_every_file_of_every_package(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    folders = {"pgsr": "pgsr", "trainer": "pgsr/trainer", "export": "pgsr/export"}
    folders |= {"runtime": "pgsr/runtime", "benchmarks": "pgsr/benchmarks"}
    for source, installed in folders.items():
        for path in (ROOT / source).rglob("*"):
            if REPORTS in path.parents:
                continue
            if path.is_file() and "__pycache__" not in path.parts and path.suffix != ".md":
                assert f"{installed}/{path.relative_to(ROOT / source).as_posix()}" in names
    assert any(name.endswith("licenses/LICENSE") for name in names)
    top_level = {name.split("/")[0] for name in names}
    assert {name for name in top_level if not name.endswith(".dist-info")} == {"pgsr"}


@pytest.mark.slow  # a second build
def test_the_wheel_is_the_same_in_another_folder_at_another_time(
    wheel: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By a user whose files are nobody else's, in another time zone, on another day by the files' times."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setenv("TZ", "Pacific/Auckland")
    monkeypatch.setenv("PYTHONHASHSEED", "7")
    before = os.umask(0o077)
    try:
        time.sleep(2.1)  # the steps of a zip's times
        again = building.wheel(tmp_path / "again")
    finally:
        os.umask(before)
    assert again.read_bytes() == wheel.read_bytes()
    infos = zipfile.ZipFile(again).infolist()
    assert all(info.external_attr >> 16 & 0o044 == 0o044 for info in infos)
    assert len({info.date_time for info in infos}) == 1


def test_the_wheel_holds_the_servers_page(wheel: Path, tmp_path: Path) -> None:
    zipfile.ZipFile(wheel).extractall(tmp_path / "unpacked")
    program = "import sys; sys.path.insert(0, 'unpacked'); from pgsr.runtime.serve import page; "
    told = run(sys.executable, "-c", program + "print(page.__file__, *page.load())", cwd=tmp_path).stdout
    file, *addresses = told.split()
    assert Path(file).is_relative_to(tmp_path)
    assert {"page/app.js", "page/style.css", "page/icon.svg"} <= set(addresses)


def test_environment_is_without_torch_and_small(empty_environment: Path, tmp_path: Path) -> None:
    listed = run(empty_environment / "python", "-m", "pip", "list", "--format=json", cwd=tmp_path).stdout
    names = {entry["name"].lower() for entry in json.loads(listed)}
    assert "onnxruntime" in names
    assert not names & {"torch", "onnx", "tensorboard", "matplotlib", "safetensors"}


@pytest.mark.slow  # an inventory takes seconds
def test_the_bill_of_materials_names_what_is_installed(empty_environment: Path, tmp_path: Path) -> None:
    file = building.bill(empty_environment / "python", tmp_path / "pgsr.cdx.json")
    bill = json.loads(file.read_text())
    assert bill["bomFormat"] == "CycloneDX"
    assert (
        JsonStrictValidator(SchemaVersion.from_version(bill["specVersion"])).validate_str(file.read_text())
        is None
    )
    told = {(entry["name"].lower(), entry["version"]) for entry in bill["components"]}
    listed = run(empty_environment / "python", "-m", "pip", "list", "--format=json", cwd=tmp_path).stdout
    held = {(entry["name"].lower(), entry["version"]) for entry in json.loads(listed)}
    assert bill["metadata"]["component"]["name"] == "pgsr"
    assert {entry for entry in held if entry[0] != "pgsr"} == {entry for entry in told if entry[0] != "pgsr"}
    again = building.bill(empty_environment / "python", tmp_path / "again.cdx.json")
    assert again.read_bytes() == file.read_bytes()


def test_the_runtime_takes_less_than_150_mb(empty_environment: Path) -> None:
    """Without extras: pgsr and what it cannot do without. An inference library comes on top of it."""
    (packages,) = (empty_environment.parent / "lib").glob("python*/site-packages")
    needed = [p for p in packages.iterdir() if p.name.lower().startswith(("pgsr", "numpy", "pil", "click"))]
    assert {"pgsr", "numpy", "PIL", "click"} <= {p.name for p in needed}
    files = [file for p in needed for file in p.rglob("*") if file.is_file() and file.suffix != ".pyc"]
    assert sum(file.stat().st_size for file in files) < 150e6


def test_installed_command_makes_faces(empty_environment: Path, tmp_path: Path) -> None:
    generate = empty_environment / "pgsr-generate"
    done = run(generate, "--count", "5", "--seed", "3", "--out", "faces", "--json", cwd=tmp_path)
    report = json.loads(done.stdout)
    size = bundle.read(bundle.shipped())
    side = size.resolution * size.scale
    assert (report["made"], report["present"], report["size"]) == (5, 0, side)
    pictures = [np.asarray(Image.open(tmp_path / "faces" / f"{i:06d}.png")) for i in range(5)]
    assert all(p.shape == (side, side, 3) and p.std() > 10 for p in pictures)
    assert len({p.tobytes() for p in pictures}) == 5
    again = json.loads(
        run(generate, "--count", "5", "--seed", "3", "--out", "faces", "--json", cwd=tmp_path).stdout
    )
    assert (again["made"], again["present"]) == (0, 5)


def test_installed_server_serves_the_page_and_the_commands_faces(
    serve_environment: Path, tmp_path: Path
) -> None:
    """Away from the checkout: its page's files, its model, the same bytes as pgsr-generate's."""
    options = ("--count", "2", "--format", "png", "--out", "faces", "--no-sheet", *CPU)
    run(serve_environment / "pgsr-generate", *options, cwd=tmp_path)
    (tmp_path / "server").mkdir()
    with serving(tmp_path / "server", installed=serve_environment / "pgsr-serve") as served:
        page = served.get("/").text
        addresses = set(re.findall(r'(?:href|src)="(/page/[^"]+)"', page))
        assert {"/page/app.js", "/page/style.css", "/page/icon.svg"} <= addresses
        for address in addresses:
            file = ROOT / "runtime" / "serve" / address.lstrip("/")
            assert served.get(address).content == file.read_bytes()
        for index in range(2):
            face = served.get(f"/v1/images/0/{index}.png").content
            assert face == (tmp_path / "faces" / f"{index:06d}.png").read_bytes()
        (model,) = served.get("/v1/models").json()["models"]
        assert model["graph"] == bundle.read(bundle.shipped()).graph("chain").sha256
        picture = served.get("/v1/images/0/0.jpg?size=32").content
        assert served.post("/v1/upscale", content=picture).headers["content-type"] == "image/jpeg"
        assert served.errors == []


def test_other_commands_say_what_to_install(empty_environment: Path, tmp_path: Path) -> None:
    """Without torch they are one line that names the extra, not a traceback."""
    cases = {
        "pgsr-train": (["tiny", "--data", "x", "--out", "y"], "train"),
        "pgsr-export": (["x", "--out", "y"], "export"),
        "pgsr-bench": (["throughput"], "bench"),
        "pgsr-serve": ([], "serve"),
    }
    for command, (arguments, extra) in cases.items():
        assert run(empty_environment / command, "--help", cwd=tmp_path).stdout.startswith("Usage:")
        done = run(empty_environment / command, *arguments, cwd=tmp_path, check=False)
        assert done.returncode == 1, command
        assert len(done.stderr.splitlines()) == 1, done.stderr
        assert f"pgsr[{extra}]" in done.stderr


def test_data_command_needs_no_extra(empty_environment: Path, tmp_path: Path) -> None:
    command = [empty_environment / "pgsr-data", "--procedural", "3", "--out", "toy.zip", "--sizes", "16"]
    assert json.loads(run(*command, "--json", cwd=tmp_path).stdout)["count"] == 3
