"""pgsr-generate --backends: what is there, what is missing, and the sentence that installs it."""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from typing import Any

from pgsr.errors import PgsrError, check_onnxruntime
from pgsr.gpu import find_gpu
from pgsr.machine import installed_versions
from pgsr.privacy import silent_openvino

from . import BACKENDS, INSTALL_ORT_CUDA, INSTALL_ORT_TENSORRT
from .choice import is_installed
from .ort import load_libraries

# What to install where the extra alone is not enough.
INSTALL = {"onnxruntime-tensorrt": INSTALL_ORT_TENSORRT}
CUDA_PACKAGES = ("cuda.bindings", "pycuda.driver")  # one of them, for TensorRT itself


@dataclass(frozen=True)
class Presence:
    """A backend on this machine."""

    name: str
    version: str  # "" if it is not installed
    devices: tuple[str, ...]  # on which it can run now
    missing: str  # why not, and what to do; "" if nothing is missing

    def line(self) -> str:
        """The backend in one line, for a person to read."""
        if self.devices:
            state = f"{self.version}, runs on {' and '.join(self.devices)}"
        else:
            state = f"{self.version}, cannot run here" if self.version else "not installed"
        return f"{self.name:<21} {state}{'; ' if self.missing else ''}{self.missing}"


def present() -> list[Presence]:
    """Every backend of BACKENDS, in the order of preference."""
    return [_presence(name) for name in BACKENDS]


def _presence(name: str) -> Presence:
    entry = BACKENDS[name]
    install = INSTALL.get(name, f"pip install 'pgsr[{entry.extra}]'")
    if not is_installed(entry.library):
        return Presence(name, "", (), install)
    try:
        with silent_openvino():
            library = importlib.import_module(entry.library)
        if entry.library == "onnxruntime":
            check_onnxruntime(library)
    except PgsrError as error:
        return Presence(name, "", (), str(error))
    except (ImportError, OSError) as error:
        return Presence(name, "", (), f"it is installed but does not load ({error}): {install}")
    versions = installed_versions(*entry.packages).values()
    version = next(iter(versions), "unknown version")
    devices, missing = _cuda_of(name, library, install) if "cuda" in entry.devices else ((), "")
    if "cpu" in entry.devices:
        devices = ("cpu", *devices)
    return Presence(name, version, devices, missing)


def _cuda_of(name: str, library: Any, install: str) -> tuple[tuple[str, ...], str]:
    """(("cuda",), "") where a backend can run on the GPU, else ((), what is missing)."""
    if name.startswith("onnxruntime"):
        provider = "TensorrtExecutionProvider" if name.endswith("tensorrt") else "CUDAExecutionProvider"
        if provider not in library.get_available_providers():
            gpu = INSTALL.get(name, INSTALL_ORT_CUDA)
            return (), f"for NVIDIA GPUs: {gpu}"
    elif not any(_has_module(package) for package in CUDA_PACKAGES):
        return (), f"it needs cuda-python or pycuda: {install}"
    try:
        find_gpu()
        if name.startswith("onnxruntime"):
            load_libraries(library, "tensorrt" if name.endswith("tensorrt") else "cuda")
    except PgsrError as error:
        return (), str(error)
    return ("cuda",), ""


def _has_module(module: str) -> bool:
    try:
        return is_installed(module)
    except ImportError:  # its parent is not there
        return False


def report() -> tuple[dict[str, object], str]:
    """Describes the backends, as JSON data and as text."""
    backends = present()
    lines = [
        {"name": b.name, "version": b.version, "devices": list(b.devices), "missing": b.missing}
        for b in backends
    ]
    return {"backends": lines}, "\n".join(backend.line() for backend in backends)
