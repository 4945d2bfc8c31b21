"""Who may import whom, and what the wheel must hold."""

from __future__ import annotations

import ast
import importlib
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
FOLDERS = ("pgsr", "trainer", "export", "runtime", "benchmarks")

TORCH = ("torch", "torchvision", "safetensors", "tensorboard")
ONNX = ("onnx", "onnxscript", "onnx_ir")
ENGINES = ("onnxruntime", "tensorrt", "tensorrt_rtx", "openvino", "llvmlite", "cuda", "pycuda")
PARTS = tuple(f"pgsr.{folder}" for folder in FOLDERS[1:])
NETWORKS = ("pgsr.networks", "pgsr.checkpoint")  # the core that needs torch

# folder -> (what it may never import, what it may import lazily: not in a file that a command's start reads)
RULES: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "pgsr": ((*PARTS, *ONNX, *ENGINES), ()),
    "trainer": (("pgsr.export", "pgsr.runtime", "pgsr.benchmarks", *ONNX, *ENGINES), ()),
    "export": (("pgsr.trainer", "pgsr.runtime", "pgsr.benchmarks"), ENGINES),
    "runtime": (("pgsr.trainer", "pgsr.export", "pgsr.benchmarks", *TORCH, *NETWORKS, *ONNX), ()),
    "benchmarks": ((), (*TORCH, *ONNX, *ENGINES)),
}

COMMANDS = {name: target.split(":")[0] for name, target in PROJECT["project"]["scripts"].items()}


def sources(folder: str) -> list[Path]:
    return sorted(p for p in (ROOT / folder).rglob("*.py") if "__pycache__" not in p.parts)


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
    return name if parts[0] == "pgsr" else f"pgsr.{name}"


def imports(path: Path) -> Iterator[tuple[str, bool]]:
    """(module, whether inside a function) of every import; those for type checkers alone do not count."""
    package = module_name(path).split(".")
    if path.name != "__init__.py":
        package = package[:-1]
    yield from _imports(ast.parse(path.read_text(), str(path)), package, False)


def _imports(node: ast.AST, package: list[str], inside: bool) -> Iterator[tuple[str, bool]]:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.Import):
            yield from ((alias.name, inside) for alias in child.names)
        elif isinstance(child, ast.ImportFrom):
            base = package[: len(package) - child.level + 1] if child.level else []
            source = ".".join([*base, *([child.module] if child.module else [])])
            yield source, inside
            yield from ((f"{source}.{alias.name}", inside) for alias in child.names)
        elif isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test):
            continue
        else:
            function = isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda))
            yield from _imports(child, package, inside or function)


def within(module: str, names: tuple[str, ...]) -> bool:
    return any(module == name or module.startswith(f"{name}.") for name in names)


def violations(path: Path, folder: str) -> set[str]:
    never, lazily = RULES[folder]
    found = set()
    for module, inside in imports(path):
        if within(module, never):
            found.add(f"imports {module}")
        if within(module, lazily) and not inside and path.stem in ("cli", "__init__", "__main__"):
            found.add(f"imports {module} outside a function")
    return found


EVERY_SOURCE = [(folder, path) for folder in FOLDERS for path in sources(folder)]


@pytest.mark.parametrize(("folder", "path"), EVERY_SOURCE, ids=lambda v: v if isinstance(v, str) else v.name)
def test_imports_keep_the_rule(folder: str, path: Path):
    assert not violations(path, folder)


@pytest.mark.parametrize("path", sources("pgsr"), ids=lambda p: p.name)
def test_the_rest_of_the_core_needs_no_torch(path: Path):
    if within(module_name(path), NETWORKS):
        return
    wrong = [m for m, _ in imports(path) if within(m, (*TORCH, *NETWORKS))]
    assert not wrong


def test_each_engine_has_one_file_in_the_runtime():
    users = {
        engine: {p.name for p in sources("runtime") if any(within(m, (engine,)) for m, _ in imports(p))}
        for engine in ("onnxruntime", "tensorrt", "tensorrt_rtx", "openvino", "llvmlite", "pycuda")
    }
    assert all(len(files) <= 1 for files in users.values()), users
    for files in users.values():
        assert all((ROOT / "runtime" / "backends" / name).is_file() for name in files), users


def test_the_rule_finds_what_breaks_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Every form of import that would break the runtime's rule is seen, and type checkers' are not."""
    monkeypatch.setattr(sys.modules[__name__], "ROOT", tmp_path)
    (tmp_path / "runtime").mkdir()
    path = tmp_path / "runtime" / "bad.py"
    path.write_text(
        "import torch.nn as nn\n"
        "from pgsr import networks\n"
        "from ..trainer.config import load\n"
        "from .. import export\n"
        "def f():\n    try:\n        from safetensors import safe_open\n"
        "    except ImportError:\n        pass\n"
        "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import onnx\n"
        "import torchlike\n"
    )
    assert {v.split()[1] for v in violations(path, "runtime")} == {
        "torch.nn",
        "pgsr.networks",
        "pgsr.trainer.config",
        "pgsr.trainer.config.load",
        "pgsr.export",
        "safetensors",
        "safetensors.safe_open",
    }


# ----------------------------------------------------------------------------
# What a command really loads.

HELP = """
import runpy, sys
sys.argv = [{module!r}, "--help"]
try:
    import importlib
    importlib.import_module({module!r}).main()
except SystemExit as stop:
    assert not stop.code, stop.code
print("LOADED", *sorted(sys.modules))
"""

UNLOADED = {
    "pgsr-generate": (
        "torch",
        "onnx",
        "onnxruntime",
        "numpy",
        "pgsr.trainer",
        "pgsr.export",
        "pgsr.networks",
    ),
    "pgsr-upscale": ("torch", "onnx", "onnxruntime", "numpy", "pgsr.trainer", "pgsr.export", "pgsr.networks"),
    "pgsr-serve": (
        *("torch", "onnx", "onnxruntime", "numpy", "fastapi", "uvicorn"),
        *("pgsr.trainer", "pgsr.export", "pgsr.networks"),
    ),
    "pgsr-data": ("onnx", "onnxruntime", "tensorrt", "pgsr.export", "pgsr.runtime"),
    "pgsr-celeba-hq": ("torch", "onnx", "onnxruntime", "tensorrt", "pgsr.export", "pgsr.runtime"),
    "pgsr-train": ("onnx", "onnxruntime", "tensorrt", "pgsr.export", "pgsr.runtime"),
    "pgsr-export": ("onnxruntime", "tensorrt", "pgsr.trainer", "pgsr.runtime"),
    "pgsr-bench": ("torch", "onnx", "onnxruntime", "tensorrt"),
}


@pytest.mark.parametrize("command", COMMANDS)
def test_help_loads_only_what_the_command_needs(command: str):
    module = COMMANDS[command]
    code = HELP.format(module=module)
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    text, _, loaded = done.stdout.rpartition("LOADED")
    assert "Usage:" in text
    wrong = [name for name in UNLOADED[command] if name in loaded.split()]
    assert not wrong


def test_every_command_has_its_line_above():
    assert set(COMMANDS) == set(UNLOADED)


# ----------------------------------------------------------------------------
# The wheel: setuptools takes the packages that are named, and silently no others.


REPORTS = ROOT / "benchmarks" / "reports"  # measurements that were made, which no one installs


def package_of(folder: Path) -> str:
    parts = folder.relative_to(ROOT).parts
    return ".".join(parts if parts[0] == "pgsr" else ("pgsr", *parts))


def package_folders() -> set[str]:
    """Every folder under the five with Python files or recipes in it."""
    suffixes = {".py", ".toml", ".html", ".js", ".css"}
    files = [p for folder in FOLDERS for p in (ROOT / folder).rglob("*") if p.suffix in suffixes]
    return {package_of(p.parent) for p in files if "__pycache__" not in p.parts and REPORTS not in p.parents}


def test_every_package_folder_is_named():
    listed = PROJECT["tool"]["setuptools"]["packages"]
    assert len(listed) == len(set(listed))
    assert not package_folders() - set(listed), "these would be missing from the wheel"


def test_every_named_package_is_a_folder():
    places = PROJECT["tool"]["setuptools"]["package-dir"]
    for package in PROJECT["tool"]["setuptools"]["packages"]:
        top = ".".join(package.split(".")[:2])
        place = places.get(top, top.replace(".", "/")) + package.removeprefix(top).replace(".", "/")
        assert (ROOT / place).is_dir(), package


def test_package_data_match_files():
    """A pattern that matches nothing is a data file that was moved; models may not be there yet."""
    data = PROJECT["tool"]["setuptools"]["package-data"]
    for package, patterns in data.items():
        folder = ROOT / package if package == "pgsr" else ROOT / "/".join(package.split(".")[1:])
        if package == "pgsr.models":
            continue
        for pattern in patterns:
            assert list(folder.glob(pattern)), f"{package}: {pattern}"


def test_files_that_are_not_python_are_package_data():
    named = PROJECT["tool"]["setuptools"]["package-data"]
    for folder in FOLDERS:
        for path in (ROOT / folder).rglob("*"):
            if (
                path.suffix in (".toml", ".typed", ".html", ".css", ".js", ".npz")
                and REPORTS not in path.parents
            ):
                patterns = named.get(package_of(path.parent), [])
                assert any(path.match(pattern) for pattern in patterns), path


def test_commands_point_at_their_folders():
    assert all(module.startswith(PARTS) for module in COMMANDS.values())


# ----------------------------------------------------------------------------
# The rooms of a folder stand in an order: none imports a later one.

ROOMS = {
    "trainer": ("data", "metrics", "step", "run_folder", "loop", "start", "cli"),
    "export": (
        *("source", "sides", "sessions", "lowering", "graphs", "rewrites", "onnx_file", "parity", "int8"),
        *("shapes", "bundle_folder", "bundle_builder", "engines", "explain", "importers", "triton", "cli"),
    ),
    "runtime": (
        *("measured", "memory", "output", "backends", "triton_model", "pipeline", "autotune"),
        *("machinery", "upscale", "stages", "synthesizer", "generate", "serve"),
    ),
}


def room(module: str) -> str:
    return ".".join(module.split(".")[2:3])


@pytest.mark.parametrize("folder", ROOMS)
def test_no_room_imports_a_later_one(folder: str):
    order = ROOMS[folder]
    for path in sources(folder):
        own = room(module_name(path))
        if own in ("", "__main__"):
            continue
        assert own in order, f"{own} has no place in the order"
        for module, _ in imports(path):
            if module.startswith(f"pgsr.{folder}.") and room(module) in order:
                assert order.index(room(module)) <= order.index(own), f"{path} imports {module}"


# ----------------------------------------------------------------------------
# Paths that commands are given.


def parameters(command: click.Command) -> Iterator[click.Parameter]:
    yield from command.params
    for mode in getattr(command, "commands", {}).values():
        yield from parameters(mode)


@pytest.mark.parametrize("name", COMMANDS)
def test_who_reads_a_path_says_what_is_wrong_with_it(name: str):
    """click looks at none before: it would end with its usage and code 2, and a file may go meanwhile."""
    main = importlib.import_module(COMMANDS[name]).main
    paths = [p for p in parameters(main) if isinstance(p.type, click.Path)]
    assert paths
    for path in paths:
        kind = path.type
        assert isinstance(kind, click.Path)
        assert not any((kind.exists, kind.readable, kind.writable, kind.executable)), path.opts
