"""Hypothesis strategies: documents and tables that are nearly right."""

from __future__ import annotations

import copy
import json
import struct
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from hypothesis import strategies as st
from hypothesis.strategies import SearchStrategy

ODD_NUMBERS = (
    *(0, 1, -1, 2, 3, 7, 64, 255, 256, 65535, 65536, 10**9, 2**31 - 1, 2**31, 2**32, 2**53, 2**63, 2**64),
    *(-(2**63), 10**400, 0.5, -0.0, 1e308, 5e-324, float("nan"), float("inf"), -float("inf")),
)
ODD_TEXTS = (
    *(
        "",
        "0",
        "²",
        "٣",
        "chain",
        "fp32",
        "progan",
        "n" * 3000,
        "\0",
        "\ud800",
        "\x1b[2J",
        "a b\nc",
        "\u2028",
    ),
    *("../x", "/dev/zero", "/", ".", "..", "x/../../y", "CON", "a" * 300 + ".onnx", "__class__", "9" * 5000),
)


def scalars() -> SearchStrategy[Any]:
    """None, truth values, numbers and texts, odd ones above all."""
    return st.one_of(
        st.sampled_from([None, True, False, [], {}]),
        st.sampled_from(ODD_NUMBERS),
        st.sampled_from(ODD_TEXTS),
        st.integers(-300, 300),
        st.integers(),
        st.floats(),
        st.text(max_size=20),
    )


def values() -> SearchStrategy[Any]:
    """Whatever JSON holds, and what lies beyond its numbers."""
    keys = st.sampled_from([*ODD_TEXTS[:12], "x", "name", "shape", "kind"])
    return st.recursive(
        scalars(),
        lambda inner: st.one_of(st.lists(inner, max_size=4), st.dictionaries(keys, inner)),
        max_leaves=6,
    )


def places(value: Any) -> Iterator[tuple[Any, Any]]:
    """Every list or table in a value with every one of its keys."""
    if isinstance(value, dict | list):
        for key in list(value) if isinstance(value, dict) else range(len(value)):
            yield value, key
            yield from places(value[key])


@st.composite
def changed(
    draw: Callable[..., Any], tree: Any, most: int = 4, odd: SearchStrategy[Any] | None = None
) -> Any:
    """A tree in which something is replaced, removed, doubled, renamed or exchanged."""
    data = copy.deepcopy(tree)
    for _ in range(draw(st.integers(1, most))):
        every = list(places(data))
        if not every:
            return draw(values())
        holder, key = every[draw(st.integers(0, len(every) - 1))]
        match draw(st.integers(0, 6)):
            case 0 | 1 | 2:
                holder[key] = draw(values() if odd is None else odd)
            case 3:
                del holder[key]
            case 4 if isinstance(holder, list):
                holder.insert(draw(st.integers(0, len(holder))), copy.deepcopy(holder[key]))
            case 4:
                name = st.one_of(st.sampled_from(["x", "", "name", str(key) + "x"]), st.text(max_size=8))
                holder[draw(name)] = holder.pop(key)
            case 5:
                for _ in range(draw(st.sampled_from([1, 3, 70]))):
                    holder[key] = [holder[key]]
            case _:
                other, its = every[draw(st.integers(0, len(every) - 1))]
                there = its in other if isinstance(other, dict) else its < len(other)
                holder[key] = copy.deepcopy(other[its]) if there else None
    return data


def as_json(data: Any) -> bytes:
    """JSON of a tree, half letters and numbers that are none included."""
    return json.dumps(data, skipkeys=True).encode("utf-8", "surrogatepass")


def documents(tree: Any) -> SearchStrategy[bytes]:
    """JSON documents near a tree, some of them very deep."""
    deep = st.sampled_from([b"[" * 100_000, b'{"x":' * 5000, b"[" * 990 + b"]" * 990])
    return st.one_of(changed(tree).map(as_json), changed(tree).map(as_json), deep)


def as_toml(data: dict[str, Any]) -> bytes:
    """TOML of a table: one line a key, tables within it in braces."""
    lines = [f"{json.dumps(str(key))} = {_toml(value)}" for key, value in data.items()]
    return "\n".join(lines).encode("utf-8", "surrogatepass")


def _toml(value: Any) -> str:
    if isinstance(value, dict):
        return "{" + ", ".join(f"{json.dumps(str(k))} = {_toml(v)}" for k, v in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(_toml, value)) + "]"
    if isinstance(value, float):
        return repr(value)
    return json.dumps(value)


def bytes_near(examples: Sequence[bytes], most: int = 6) -> SearchStrategy[bytes]:
    """Examples with some bytes replaced, put in or cut out."""
    edit = st.tuples(st.integers(0, 2), st.integers(0, 2**16), st.one_of(numbers(), st.binary(max_size=8)))
    return st.tuples(st.sampled_from(list(examples)), st.lists(edit, min_size=1, max_size=most)).map(
        lambda drawn: _edited(*drawn)
    )


def numbers() -> SearchStrategy[bytes]:
    """Numbers that are edges, as headers hold them."""
    edges = [0, 1, 0x7F, 0x80, 0xFF, 0x7FFF, 0x8000, 0xFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF]
    return st.tuples(st.sampled_from(edges), st.sampled_from(["<I", ">I", "<H", ">H", "B", "<Q", ">Q"])).map(
        lambda drawn: struct.pack(drawn[1], drawn[0] % 2 ** (8 * struct.calcsize(drawn[1])))
    )


def _edited(data: bytes, edits: list[tuple[int, int, bytes]]) -> bytes:
    for kind, place, new in edits:
        at = place % (len(data) + 1)
        cut = len(new) if kind == 0 else 0 if kind == 1 else 1 + place % 64
        data = data[:at] + (b"" if kind == 2 else new) + data[at + cut :]
    return data
