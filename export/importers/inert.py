"""Pickles read as data: an interpreter of the pickle machine that imports nothing and calls nothing.

A pickle is a program for a small stack machine, and Python's own reader runs what it names. Here a name is
only written down (`Name`), and where the program would call it or make an object of it there stands a record
of that (`Inert`): what was to be called, on what, and the state that was to be set. Which records mean arrays
or tensors is decided in plain.py. A program that names part of Python, numpy or PyTorch beyond what saved
weights need is refused by that name, so that a file that was made to do harm is reported as one.

Python hashes a key as deep as it goes: a tuple that holds another twice, forty times over, takes for ever,
and a deep one overflows the stack. So keys are text, numbers, names and short flat tuples of them.
"""

from __future__ import annotations

import pickletools
import re
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import IO, Any

from pgsr.errors import PgsrError


@dataclass(frozen=True)
class Name:
    """What a pickle would have imported."""

    module: str
    name: str

    def __str__(self) -> str:
        return f"{self.module}.{self.name}"


@dataclass(eq=False)
class Inert:
    """What a pickle would have made by calling `name`."""

    name: Name
    args: tuple[Any, ...]
    state: Any = None  # what __setstate__ would have got
    items: list[Any] = field(default_factory=list)  # what would have been appended to it
    pairs: list[tuple[Any, Any]] = field(default_factory=list)  # what would have been stored in it


@dataclass(frozen=True)
class Persistent:
    """A reference to something outside the pickle; in PyTorch's files, a storage."""

    key: Any


MARK = object()

# ----------------------------------------------------------------------------
# Names. Of these libraries only what saved weights name; of others any class, since nothing is made of it.

GUARDED = {*sys.stdlib_module_names, "__builtin__", "copy_reg", "exceptions", "numpy", "torch"}
PERMITTED = re.compile(
    r"collections\.[A-Za-z]\w*"
    r"|copyreg\._reconstructor|copy_reg\._reconstructor"
    r"|_codecs\.encode"
    r"|(builtins|__builtin__)\.(object|dict|list|tuple|set|frozenset|int|float|bool|str|bytes|bytearray|complex"
    r"|slice|range|long|unicode|xrange|type|Ellipsis|NotImplemented|[A-Z]\w*(Error|Exception|Warning))|exceptions\.\w+"
    r"|(_io|io)\.(BytesIO|StringIO)|re\._compile|http\.HTTP(Status|Method)|enum\.\w+|random\.Random|array\.array"
    r"|typing\.[A-Z]\w*|logging\.(Logger|getLogger)|ipaddress\.\w+|zoneinfo\.ZoneInfo\._unpickle|string\.\w+"
    r"|argparse\.Namespace|types\.SimpleNamespace|pathlib\.(_local\.)?\w*Path|functools\.partial"
    r"|datetime\.(date|time|datetime|timedelta|timezone)|uuid\.(UUID|SafeUUID)|decimal\.Decimal"
    r"|fractions\.Fraction|numpy\.random\._pickle\.__\w+_ctor|numpy\.random\.\w+\.\w+"
    r"|numpy\.(ndarray|dtype|(bool|u?int|float|complex|str|bytes|datetime|timedelta)(\d+|_)?)"
    r"|numpy\.(core|_core)\.multiarray\.(_reconstruct|scalar)|numpy\.ma(\.core)?\.\w+"
    r"|numpy\.(core|_core)\.numeric\._frombuffer"
    r"|torch\._utils\._rebuild_\w+|torch\._tensor\._rebuild_from_type_v2"
    r"|torch(\.cuda)?\.\w+Storage|torch\.storage\.\w+Storage"
    r"|torch\.(device|dtype|bool|(float|bfloat|complex|int|uint|quint|qint)\d+\w*|\w+_format|strided|sparse_\w+)"
    r"|torch\.serialization\._get_layout"
    r"|torch\.nn\.modules\.\w+\.\w+|torch\.nn\.parallel\.\w+\.\w+|torch\.optim\.\w+\.\w+"
    r"|torch(\._C)?\.(nn\.functional|_nn)\.\w+|torch\.(tanh|relu|sigmoid|softmax|sin|cos|exp|abs|square)"
    # Any other class of PyTorch's, apart from those that run what a file holds.
    r"|torch\.(?!(jit|hub|package|classes|_classes|ops|_ops|_dynamo|_inductor|utils\.cpp_extension)\.)([\w.]+\.)?[A-Z]\w*"
)


def name(module: str, attribute: str) -> Name:
    """Raises PgsrError for a name that no file of weights needs."""
    result = Name(module, attribute)
    if module.partition(".")[0] in GUARDED and not PERMITTED.fullmatch(str(result)):
        raise PgsrError(
            f"it is a pickle that names {result}, which weights have no need of: do not trust it "
            "(nothing of it was run)"
        )
    return result


# ----------------------------------------------------------------------------
# Keys of dicts and members of sets.

LARGEST_KEY = 2**61 - 1  # Python hashes integers modulo this: larger ones can be made to collide
LONGEST_KEY = 8  # parts of a tuple

Scalar = str | bytes | int | float | bool | None | Name


def hashable(values: Iterable[Any]) -> None:
    """Raises ValueError unless each value can be hashed in a moment."""
    for value in values:
        parts = value if type(value) is tuple and len(value) <= LONGEST_KEY else (value,)
        for part in parts:
            if not isinstance(part, Scalar | Inert):
                raise ValueError(f"a key of type {type(part).__name__}, which weights have no need of")
            if isinstance(part, int) and abs(part) >= LARGEST_KEY:
                raise ValueError("a key that is too large a number")


# ----------------------------------------------------------------------------
# The machine.


class Machine:
    """The stack and the memo of one pickle; `guarded` refuses names that weights have no need of."""

    def __init__(self, guarded: bool = True) -> None:
        self.stack: list[Any] = []
        self.memo: dict[int, Any] = {}
        self.name = name if guarded else Name

    def pop(self) -> Any:
        value = self.stack.pop()
        if value is MARK:
            raise ValueError("a mark where a value belongs")
        return value

    def to_mark(self) -> list[Any]:
        """Pops everything above the last mark, and the mark."""
        at = len(self.stack) - 1
        while self.stack[at] is not MARK:
            at -= 1
            if at < 0:
                raise ValueError("no mark")
        values = self.stack[at + 1 :]
        del self.stack[at:]
        return values

    def global_(self, argument: str) -> None:
        module, _, attribute = argument.partition(" ")
        self.stack.append(self.name(module, attribute))

    def stack_global(self) -> None:
        attribute, module = self.pop(), self.pop()
        if not isinstance(module, str) or not isinstance(attribute, str):
            raise ValueError("a name that is not text")
        self.stack.append(self.name(module, attribute))

    def make(self, called: Any, args: Any, more: Any = None) -> None:
        """Records a call that Python would make here."""
        if not isinstance(called, Name) or not isinstance(args, tuple):
            raise ValueError("a call of something that is no name")
        self.stack.append(Inert(called, args, state=more))

    def instance(self, argument: str) -> None:
        args = tuple(self.to_mark())
        self.global_(argument)
        self.make(self.pop(), args)

    def object_(self) -> None:
        called, *args = self.to_mark()
        self.make(called, tuple(args))

    def build(self) -> None:
        state, target = self.pop(), self.stack[-1]
        if not isinstance(target, Inert):
            raise ValueError("state for something that was not made")
        target.state = state

    def append(self, values: list[Any]) -> None:
        into = self.stack[-1]
        if isinstance(into, Inert):
            into.items.extend(values)
        elif isinstance(into, list):
            into.extend(values)
        elif isinstance(into, set):
            hashable(values)
            into.update(values)
        else:
            raise ValueError("values for something that is no list")

    def store(self, values: list[Any]) -> None:
        into = self.stack[-1]
        pairs = list(zip(values[::2], values[1::2], strict=True))
        if isinstance(into, Inert):
            hashable(values[::2])
            into.pairs.extend(pairs)
        elif isinstance(into, dict):
            hashable(values[::2])
            into.update(pairs)
        else:
            raise ValueError("pairs for something that is no dict")

    def refer(self, key: Any) -> None:
        """PyTorch wrote a class with its source text, as ("module", class, file, text): the class alone."""
        if isinstance(key, tuple) and len(key) > 1 and key[0] == "module" and isinstance(key[1], Name):
            self.put(key[1])
        else:
            self.put(Persistent(key))

    def dict_(self) -> None:
        values = self.to_mark()
        self.put({})
        self.store(values)

    def frozen(self) -> frozenset[Any]:
        """Pops a frozen set's members."""
        values = self.to_mark()
        hashable(values)
        return frozenset(values)

    def pop_many(self, n: int) -> list[Any]:
        values = [self.pop() for _ in range(n)]
        return values[::-1]

    def put(self, value: Any) -> None:
        self.stack.append(value)


CONSTANTS: dict[str, Any] = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False, "MARK": MARK}
LITERALS = {
    *("INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT"),
    *("STRING", "BINSTRING", "SHORT_BINSTRING", "UNICODE", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8"),
    *("BINBYTES", "SHORT_BINBYTES", "BINBYTES8", "BYTEARRAY8"),
}
OPERATIONS: dict[str, Callable[[Machine, Any], Any]] = {
    "PROTO": lambda m, a: None,
    "FRAME": lambda m, a: None,
    "READONLY_BUFFER": lambda m, a: None,
    "POP": lambda m, a: m.stack.pop(),
    "POP_MARK": lambda m, a: m.to_mark(),
    "DUP": lambda m, a: m.put(m.stack[-1]),
    **dict.fromkeys(("GET", "BINGET", "LONG_BINGET"), lambda m, a: m.put(m.memo[a])),
    **dict.fromkeys(("PUT", "BINPUT", "LONG_BINPUT"), lambda m, a: m.memo.__setitem__(a, m.stack[-1])),
    "MEMOIZE": lambda m, a: m.memo.__setitem__(len(m.memo), m.stack[-1]),
    "EMPTY_LIST": lambda m, a: m.put([]),
    "EMPTY_DICT": lambda m, a: m.put({}),
    "EMPTY_TUPLE": lambda m, a: m.put(()),
    "EMPTY_SET": lambda m, a: m.put(set()),
    "LIST": lambda m, a: m.put(m.to_mark()),
    "TUPLE": lambda m, a: m.put(tuple(m.to_mark())),
    "FROZENSET": lambda m, a: m.put(m.frozen()),
    "DICT": lambda m, a: m.dict_(),
    "TUPLE1": lambda m, a: m.put(tuple(m.pop_many(1))),
    "TUPLE2": lambda m, a: m.put(tuple(m.pop_many(2))),
    "TUPLE3": lambda m, a: m.put(tuple(m.pop_many(3))),
    "APPEND": lambda m, a: m.append(m.pop_many(1)),
    "APPENDS": lambda m, a: m.append(m.to_mark()),
    "ADDITEMS": lambda m, a: m.append(m.to_mark()),
    "SETITEM": lambda m, a: m.store(m.pop_many(2)),
    "SETITEMS": lambda m, a: m.store(m.to_mark()),
    "GLOBAL": Machine.global_,
    "STACK_GLOBAL": lambda m, a: m.stack_global(),
    "INST": Machine.instance,
    "OBJ": lambda m, a: m.object_(),
    "REDUCE": lambda m, a: m.make(*m.pop_many(2)),
    "NEWOBJ": lambda m, a: m.make(*m.pop_many(2)),
    "NEWOBJ_EX": lambda m, a: m.make(*m.pop_many(3)),
    "BUILD": lambda m, a: m.build(),
    "PERSID": lambda m, a: m.refer(a),
    "BINPERSID": lambda m, a: m.refer(m.pop()),
}


def read(file: IO[bytes], guarded: bool = True) -> Any:
    """Reads the value of the pickle at the file's place, which afterwards is behind it.

    Without `guarded` any name passes, for a file that another reader with a list of its own shall read next.
    Raises PgsrError for a pickle that is damaged, or that names what weights have no need of.
    """
    machine = Machine(guarded)
    try:
        for operation, argument, _ in pickletools.genops(file):
            if operation.name == "STOP":
                return machine.pop()
            if operation.name in LITERALS:
                machine.put(argument)
            elif operation.name in CONSTANTS:
                machine.put(CONSTANTS[operation.name])
            else:
                OPERATIONS[operation.name](machine, argument)
    except (ValueError, TypeError, IndexError, KeyError, OverflowError, MemoryError, RecursionError) as error:
        raise PgsrError(f"its pickle is damaged or of no known kind ({error})") from error
    raise PgsrError("its pickle is cut short")
