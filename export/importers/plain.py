"""Records of a pickle -> plain data: dicts, lists, numbers, arrays and tensors.

Arrays and tensors are put together here from their bytes, by what numpy and PyTorch write when they save;
everything else that a pickle would have made stays a `Record` of its name and state.
"""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pgsr.errors import PgsrError

from .inert import Inert, Name, Persistent

STORED = {
    "DoubleStorage": torch.float64,
    "FloatStorage": torch.float32,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
}


MOST_REPEATED = 2**24  # numbers of a tensor that repeats those of a smaller storage by strides of 0


@dataclass(frozen=True, eq=False)
class Record:
    """An object that was not made: its class and what it would have held."""

    name: str
    args: tuple[Any, ...]
    state: Any

    def get(self, attribute: str, default: Any = None) -> Any:
        return self.state.get(attribute, default) if isinstance(self.state, dict) else default


class Storages:
    """The numbers that a pickle of PyTorch refers to, by key, of the type each reference names."""

    def __init__(self, read: Callable[[str], bytes]) -> None:
        self.read = read
        self.tensors: dict[str, Tensor] = {}

    def storage(self, reference: Any) -> Tensor:
        """[numbers]. `reference` is ("storage", type, key, device, count, ...)."""
        if not (isinstance(reference, tuple) and len(reference) >= 5 and reference[0] == "storage"):
            raise ValueError("a reference that is no storage")
        if any(part is not None for part in reference[5:]):
            raise ValueError("a view of a storage, which PyTorch no longer writes: save it again")
        kind, key = reference[1], reference[2]
        if not isinstance(key, (str, int)):
            raise ValueError("a storage whose key is no text")
        key = str(key)
        dtype = STORED.get(kind.name) if isinstance(kind, Name) else None
        if dtype is None:
            raise ValueError(f"a storage of {_shown(kind)}")
        if key not in self.tensors:
            data = bytearray(self.read(key))
            self.tensors[key] = torch.frombuffer(data, dtype=dtype) if data else torch.empty(0, dtype=dtype)
        return self.tensors[key]


def no_storages(key: str) -> bytes:
    """Refuses every storage: a file without any must not name one."""
    raise ValueError(f"storage {key}, which a pickle alone does not hold")


class Plain:
    """The conversion of one pickle; what is referred to twice is converted once."""

    def __init__(self, storages: Storages | None = None) -> None:
        self.storages = storages or Storages(no_storages)
        self.conversions: dict[int, tuple[Any, Any]] = {}  # by id: (original, kept alive, and its conversion)

    def of(self, value: Any) -> Any:
        """Raises PgsrError for arrays and tensors that do not fit their bytes."""
        try:
            return self._of(value)
        except (ValueError, TypeError, IndexError, KeyError, RuntimeError, OverflowError) as error:
            raise PgsrError(f"its pickle is damaged ({error})") from error

    def _of(self, value: Any) -> Any:
        if id(value) in self.conversions:
            return self.conversions[id(value)][1]
        if isinstance(value, Inert):
            return self._keep(value, self._inert(value))
        if isinstance(value, tuple):
            return self._keep(value, tuple(self._of(v) for v in value))
        if isinstance(value, list):
            listed: list[Any] = self._keep(value, [])
            listed.extend(self._of(v) for v in value)
            return listed
        if isinstance(value, dict):
            stored: dict[Any, Any] = self._keep(value, {})
            stored.update((k, self._of(v)) for k, v in value.items())
            return stored
        return str(value) if isinstance(value, Name) else value

    def _keep(self, original: Any, conversion: Any) -> Any:
        self.conversions[id(original)] = (original, conversion)
        return conversion

    def _inert(self, value: Inert) -> Any:
        called = str(value.name)
        if called in MAKERS:
            return MAKERS[called](self, value)
        if called.startswith(("collections.", "builtins.dict", "__builtin__.dict")):
            first = self._of(value.args[0]) if value.args else []
            pairs = first.items() if isinstance(first, dict) else first if isinstance(first, list) else []
            return {**dict(pairs), **{k: self._of(v) for k, v in value.pairs}}
        state: dict[str, Any] = {}
        record = Record(_class(value), (), state)  # known before what it holds, which may hold it
        self._keep(value, record)
        held = self._of(value.state)
        if isinstance(held, tuple) and len(held) == 2 and isinstance(held[0], dict):
            held = held[0]  # (__dict__, slots)
        state.update(held if isinstance(held, dict) else {})
        return record

    # What numpy writes.

    def array(self, value: Inert) -> Any:
        _, shape, dtype, fortran, data = self._of(value.state)
        return None if dtype is None else _array(self._raw(data), dtype, shape, "F" if fortran else "C")

    def buffer(self, value: Inert) -> Any:
        data, dtype, shape, order = (self._of(a) for a in value.args)
        return None if dtype is None else _array(self._raw(data), dtype, shape, order)

    def scalar(self, value: Inert) -> Any:
        dtype, data = (self._of(a) for a in value.args)
        return None if dtype is None else _array(self._raw(data), dtype, (1,), "C")[0].item()

    def dtype(self, value: Inert) -> np.dtype[Any] | None:
        """Numbers alone; None for text, dates, objects and fields, whose arrays become None."""
        code = value.args[0] if value.args else None
        if not isinstance(code, str):
            raise ValueError("an array of no type")
        if not re.fullmatch(r"[fiu][1248]|b1|bool", code):
            return None
        order = value.state[1] if isinstance(value.state, tuple) else "="
        return np.dtype(code).newbyteorder("<" if order == "<" else ">" if order == ">" else "=")

    def encoded(self, value: Inert) -> bytes:
        text, coding = value.args
        if coding not in ("latin1", "latin-1"):
            raise ValueError(f"text in {_shown(coding)}")
        return bytes(text, "latin-1")

    def builtin(self, value: Inert) -> Any:
        """Returns what early protocols write as calls of their types: empty bytes, bytearrays, sets."""
        arguments = [self._of(a) for a in value.args[:1]]
        kind = {"bytes": bytes, "bytearray": bytearray, "set": set, "frozenset": frozenset}[value.name.name]
        if kind in (bytes, bytearray):
            return kind(self._raw(arguments[0])) if arguments else kind()
        return kind(arguments[0]) if arguments and isinstance(arguments[0], list) else kind()

    def _raw(self, data: Any) -> bytes:
        """An array's bytes; Python 2 wrote them as text of eight bits a letter."""
        if not isinstance(data, (str, bytes, bytearray)):
            raise ValueError("bytes that are none")
        return data.encode("latin-1") if isinstance(data, str) else bytes(data)

    # What PyTorch writes.

    def tensor(self, value: Inert) -> Tensor:
        """A view of a storage. Raises ValueError if it reaches beyond it."""
        reference, offset, size, stride = value.args[:4]
        if not isinstance(reference, Persistent):
            raise ValueError("a tensor without a storage")
        storage = self.storages.storage(reference.key)
        size, stride = _sides(self._of(size)), _sides(self._of(stride))
        last = offset + sum((s - 1) * t for s, t in zip(size, stride, strict=True))
        if math.prod(size) == 0:
            return torch.empty(size, dtype=storage.dtype)
        if offset < 0 or last >= storage.numel() or math.prod(size) > max(storage.numel(), MOST_REPEATED):
            raise ValueError("a tensor larger than its storage")
        return storage.as_strided(size, stride, offset)

    def parameter(self, value: Inert) -> Any:
        tensor = self._of(value.args[0])
        if not isinstance(tensor, Tensor):
            raise ValueError("a parameter that is no tensor")
        return tensor

    def typed(self, value: Inert) -> Any:
        """torch._tensor._rebuild_from_type_v2(function, type, arguments, state)."""
        function, _, args, _ = value.args
        return self._of(Inert(function, args))

    def size(self, value: Inert) -> Any:
        return tuple(self._of(value.args[0]))


def _shown(value: Any) -> str:
    """Words for a value of a file that is not trusted: text cut short, of anything else its type alone."""
    return repr(value[:40]) if isinstance(value, str) else f"type {type(value).__name__}"


def _class(value: Inert) -> str:
    """The class of an object; those of protocol 0 and 1 come through a function that makes them."""
    through = str(value.name) in ("copyreg._reconstructor", "copy_reg._reconstructor") and value.args
    return str(value.args[0] if through else value.name)


def _sides(values: Any) -> tuple[int, ...]:
    sides = tuple(values)
    if not all(isinstance(s, int) and s >= 0 for s in sides):
        raise ValueError("a shape that is none")
    return sides


def _array(data: bytes, dtype: Any, shape: Any, order: str) -> Any:
    if not isinstance(dtype, np.dtype):
        raise ValueError("an array of unknown type")
    sides = _sides(shape)
    if math.prod(sides) * dtype.itemsize != len(data):
        raise ValueError("an array that does not fit its bytes")
    flat = np.frombuffer(bytearray(data), dtype).astype(dtype.newbyteorder("="), copy=False)
    return flat.reshape(sides, order="F" if order == "F" else "C")


MAKERS: dict[str, Callable[[Plain, Inert], Any]] = {
    "numpy.core.multiarray._reconstruct": Plain.array,
    "numpy._core.multiarray._reconstruct": Plain.array,
    "numpy.core.numeric._frombuffer": Plain.buffer,
    "numpy._core.numeric._frombuffer": Plain.buffer,
    "numpy.core.multiarray.scalar": Plain.scalar,
    "numpy._core.multiarray.scalar": Plain.scalar,
    "numpy.dtype": Plain.dtype,
    "_codecs.encode": Plain.encoded,
    **{
        f"{module}.{kind}": Plain.builtin
        for module in ("builtins", "__builtin__")
        for kind in ("bytes", "bytearray", "set", "frozenset")
    },
    "torch._utils._rebuild_tensor": Plain.tensor,
    "torch._utils._rebuild_tensor_v2": Plain.tensor,
    "torch._utils._rebuild_parameter": Plain.parameter,
    "torch._utils._rebuild_parameter_with_state": Plain.parameter,
    "torch.nn.parameter.Parameter": Plain.parameter,
    "torch.autograd.variable.Variable": Plain.parameter,
    "torch._tensor._rebuild_from_type_v2": Plain.typed,
    "torch.Size": Plain.size,
}


# ----------------------------------------------------------------------------
# Modules that were saved whole.


MOST_MODULES = 20_000  # of a file; one that is shared counts as often as it is held


def state_dict(record: Record) -> dict[str, Tensor]:
    """The parameters and buffers of a module that was not made, by the names PyTorch gives them.

    Raises PgsrError for modules that hold one another without end, or too many of them.
    """
    return _state_dict(record, "", 32, itertools.count(1))


def _state_dict(record: Record, prefix: str, depth: int, counter: Iterator[int]) -> dict[str, Tensor]:
    if depth == 0 or next(counter) > MOST_MODULES:
        raise PgsrError("its modules hold one another without end")
    tensors: dict[str, Tensor] = {}
    for kind in ("_parameters", "_buffers"):
        entries = record.get(kind)
        if isinstance(entries, Mapping):
            tensors.update({f"{prefix}{k}": v for k, v in entries.items() if isinstance(v, Tensor)})
    modules = record.get("_modules")
    if isinstance(modules, Mapping):
        for name, module in modules.items():
            if isinstance(module, Record):
                tensors.update(_state_dict(module, f"{prefix}{name}.", depth - 1, counter))
    return tensors
