"""The NVIDIA GPU that is present, asked of the driver itself: nothing to install, no context made."""

from __future__ import annotations

import ctypes
from dataclasses import dataclass

from pgsr.errors import PgsrError

MAJOR, MINOR = 75, 76  # CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR, _MINOR
NVML_VERSION_BYTES = 80  # NVML_SYSTEM_DRIVER_VERSION_BUFFER_SIZE


@dataclass(frozen=True)
class Gpu:
    """One GPU, as CUDA_VISIBLE_DEVICES lets this process see it."""

    index: int
    name: str
    compute_capability: str  # "8.6"
    driver: str  # "580.65.06", or "CUDA 13.0" where only that can be asked


def find_gpu(index: int = 0) -> Gpu:
    """Raises PgsrError, saying what is missing, if there is no driver or no GPU of that number."""
    cuda = _library("libcuda.so.1")
    if cuda is None:
        raise PgsrError("no NVIDIA driver is installed (libcuda.so.1 is not found)")
    code = cuda.cuInit(0)
    if code:
        raise PgsrError(f"the NVIDIA driver does not start or sees no GPU (CUDA error {code})")
    count, device = ctypes.c_int(), ctypes.c_int()
    _ask(cuda.cuDeviceGetCount(ctypes.byref(count)))
    if not 0 <= index < count.value:
        raise PgsrError(f"there is no GPU {index}; the driver sees {count.value}, numbered from 0")
    _ask(cuda.cuDeviceGet(ctypes.byref(device), index))
    name = ctypes.create_string_buffer(256)
    _ask(cuda.cuDeviceGetName(name, len(name), device))
    numbers = [_attribute(cuda, attribute, device) for attribute in (MAJOR, MINOR)]
    return Gpu(index, name.value.decode(), ".".join(map(str, numbers)), _driver(cuda))


def _attribute(cuda: ctypes.CDLL, attribute: int, device: ctypes.c_int) -> int:
    value = ctypes.c_int()
    _ask(cuda.cuDeviceGetAttribute(ctypes.byref(value), attribute, device))
    return value.value


def _driver(cuda: ctypes.CDLL) -> str:
    """The driver's own version, from NVML where that is there, else the CUDA version it offers."""
    nvml = _library("libnvidia-ml.so.1")
    text = ctypes.create_string_buffer(NVML_VERSION_BYTES)
    if nvml is not None and nvml.nvmlInit_v2() == 0:
        try:
            if nvml.nvmlSystemGetDriverVersion(text, len(text)) == 0:
                return text.value.decode()
        finally:
            nvml.nvmlShutdown()
    version = ctypes.c_int()
    _ask(cuda.cuDriverGetVersion(ctypes.byref(version)))
    return f"CUDA {version.value // 1000}.{version.value % 1000 // 10}"


def _library(name: str) -> ctypes.CDLL | None:
    try:
        return ctypes.CDLL(name)
    except OSError:
        return None


def _ask(code: int) -> None:
    if code:
        raise PgsrError(f"the NVIDIA driver does not answer (CUDA error {code}): restart the machine")
