"""Sidecars: what an engine was built from and for, beside it as JSON, and why it is stale."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from pathlib import Path

from pgsr.errors import PgsrError
from pgsr.files import make_folder, sha256, write_bytes, write_text
from pgsr.schema import document, either, items, one_of, record, text, whole

from .building import Built
from .engines import Engine, Key, Profile

SCHEMA = 1


# ----------------------------------------------------------------------------
# Sidecars.


def sidecar(engine: Path) -> Path:
    """Returns the path of an engine's sidecar."""
    return engine.with_name(f"{engine.name}.json")


WORD = text(255)
PROFILE = record(dict.fromkeys(("min", "opt", "max"), whole(1, 2**20)))
KEY = record(
    {
        **dict.fromkeys(("onnx_sha256", "library", "version", "precision"), WORD),
        "compute_capabilities": items(WORD, 1, 100),
        "driver": either(WORD, one_of(None)),
        "profile": PROFILE,
    }
)
SIDECAR = record(
    {"schema": one_of(SCHEMA), "key": KEY, "sha256": WORD, "layers": record({}), "read_back": WORD}
)


def read_sidecar(path: Path) -> Engine | None:
    """Returns what a sidecar says; None if it is absent or damaged, so that the engine is built again."""
    try:
        data = document(path, SIDECAR, "sidecar of an engine", "build the engine again")
        key = data["key"]
        profile = Profile(*(key["profile"][name] for name in ("min", "opt", "max")))
    except PgsrError:
        return None
    names = {field.name for field in dataclasses.fields(Key)}
    values = {name: value for name, value in key.items() if name in names}
    capabilities = tuple(key["compute_capabilities"])
    request = Key(**{**values, "compute_capabilities": capabilities, "profile": profile})
    engine = path.with_name(path.name.removesuffix(".json"))
    return Engine(engine, request, data["sha256"], data["layers"], data["read_back"])


def why_stale(engine: Engine, key: Key, batch: int | None = None) -> str | None:
    """Why an engine cannot serve; None if it can.

    With `batch`, an engine serves that was built for more GPUs than `wanted` names, or whose profile differs
    but takes that batch: what the runtime asks. Without, everything is as wanted: what the export asks.
    """
    own = engine.key
    if own.onnx_sha256 != key.onnx_sha256:
        return "it was built from another graph"
    if (own.library, own.version) != (key.library, key.version):
        return f"it was built by {own.library} {own.version} and this is {key.library} {key.version}"
    if own.driver != key.driver:
        return f"it was built with driver {own.driver} and this is {key.driver}"
    if own.precision != key.precision:
        return f"it is {own.precision}, not {key.precision}"
    missing = set(key.compute_capabilities) - set(own.compute_capabilities)
    others = set(own.compute_capabilities) != set(key.compute_capabilities)
    if missing or (others and batch is None):
        return f"it is for compute capability {', '.join(own.compute_capabilities)}"
    if batch is None and own.profile != key.profile:
        return f"its profile is {own.profile}, not {key.profile}"
    if batch is not None and not own.profile.min <= batch <= own.profile.max:
        return f"its profile {own.profile} does not take a batch of {batch}"
    if not engine.path.is_file() or sha256(engine.path) != engine.sha256:
        return "its file is missing or damaged"
    return None


def write_engine(path: Path, key: Key, built: Built) -> Engine:
    """The engine, then its sidecar: an engine without one is never loaded."""
    make_folder(path.parent)
    sidecar(path).unlink(missing_ok=True)
    write_bytes(path, built.data)
    engine = Engine(path, key, hashlib.sha256(built.data).hexdigest(), built.layers, built.read_back)
    data = {
        "schema": SCHEMA,
        "key": dataclasses.asdict(key),
        "sha256": engine.sha256,
        "layers": dict(built.layers),
        "read_back": built.read_back,
    }
    write_text(sidecar(path), json.dumps(data, indent=1, sort_keys=True) + "\n")
    return engine
