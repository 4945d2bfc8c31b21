"""What the GPU libraries' bindings offer, as lines of text, and whether the adapters use just that.

    python tests/signatures.py tensorrt FOLDER        # an unpacked wheel of tensorrt-cu1x-bindings
    python tests/signatures.py cuda FOLDER            # ... of cuda-bindings
    python tests/signatures.py onnxruntime FOLDER     # ... of onnxruntime-gpu
    python tests/signatures.py pycuda FOLDER          # an unpacked sdist of pycuda

print a table for tests/contracts/, of what cannot be installed where the tests run. No GPU is needed.
A line is a name of the module, of a class's attribute, or a signature, one line for each overload:

    Runtime
    Runtime.deserialize_cuda_engine(serialized_engine) -> ICudaEngine
    IExecutionContext.set_input_shape(name, shape) -> bool
    ICudaEngine.create_execution_context(strategy=) -> IExecutionContext
    option trt_engine_cache_enable True False
"""

from __future__ import annotations

import ast
import ctypes
import datetime
import importlib
import inspect
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

# ----------------------------------------------------------------------------
# Tables.


@dataclass
class Table:
    """Names with their signatures: lists of parameters, of which those with = may be left out."""

    signatures: dict[str, list[list[str]]] = field(default_factory=dict)
    returns: dict[str, str] = field(default_factory=dict)
    names: set[str] = field(default_factory=set)
    options: dict[str, list[str]] = field(default_factory=dict)

    def __contains__(self, name: str) -> bool:
        return name in self.names


LINE = re.compile(r"([\w.]+)(?:\((.*)\)(?: -> (\w+))?)?")


def read_table(lines: Iterable[str]) -> Table:
    table = Table()
    for line in lines:
        if not line.strip() or line.startswith("#"):
            continue
        if line.startswith("option "):
            _, name, *values = line.split()
            table.options[name] = values
            continue
        match = LINE.fullmatch(line.strip())
        assert match, line
        name, parameters, returned = match.groups()
        table.names.add(name)
        if parameters is not None:
            table.signatures.setdefault(name, []).append([p for p in parameters.split(", ") if p])
        if returned and returned != "None":
            table.returns[name] = returned
    return table


def stored(name: str) -> Table:
    path = Path(__file__).with_name("contracts") / f"{name}.txt"
    return read_table(path.read_text().splitlines())


# ----------------------------------------------------------------------------
# pybind11: signatures are in the docstrings.

CLASSES = (
    "Builder", "INetworkDefinition", "ITensor", "ILayer", "IBuilderConfig", "IOptimizationProfile",
    "ITimingCache", "OnnxParser", "ParserError", "Runtime", "ICudaEngine", "EngineInspector",
    "IExecutionContext", "ILogger",
    "IRuntimeConfig", "IRuntimeCache", "IHostMemory", "NetworkDefinitionCreationFlag", "BuilderFlag",
    "ProfilingVerbosity", "LayerInformationFormat", "TensorIOMode", "ExecutionContextAllocationStrategy",
    "ComputeCapability", "CudaGraphStrategy", "DynamicShapesKernelSpecializationStrategy",
)  # fmt: skip


def pybind_lines(module: ModuleType) -> Iterator[str]:
    """Of TensorRT or TensorRT-RTX: the classes that adapters may use, as far as this version has them."""
    yield from ("__version__", "nptype(trt_type)")
    for name in CLASSES:
        owner = getattr(module, name, None)
        if owner is not None:
            yield name
            yield from _members(name, owner)


def _members(path: str, owner: Any) -> Iterator[str]:
    if not hasattr(owner, "__init__") or "__members__" in dir(owner):
        yield f"{path}.__members__"
        yield from (f"{path}.{member}" for member in owner.__members__)
        return
    for name in sorted(set(dir(owner))):
        member = getattr(owner, name)
        if name == "__init__":
            yield f"{path}.__init__"
            yield from (
                line.replace(".__init__", "") for line in _overloads(path, name, member.__doc__ or "")
            )
        elif name.startswith(("_", "add_")) and name != "add_optimization_profile":  # layers by hand
            continue
        elif isinstance(member, type):
            yield f"{path}.{name}"
            yield from _members(f"{path}.{name}", member)
        elif callable(member):
            yield from _overloads(path, name, member.__doc__ or "")
        else:
            yield f"{path}.{name}"


def _overloads(path: str, name: str, text: str) -> Iterator[str]:
    found = re.findall(rf"^(?:\d+\. )?{name}\((self: .*)\)(?: -> (\S+))?$", text, re.MULTILINE)
    for parameters, returned in found:
        parts = [_parameter(p) for p in _split(parameters)[1:]]
        short = re.split(r"[.:]", returned or "")[-1].replace("IParserError", "ParserError")
        yield f"{path}.{name}({', '.join(parts)})" + (f" -> {short}" if short.isidentifier() else "")
    if not found:
        yield f"{path}.{name}"


def _split(text: str) -> list[str]:
    """At commas outside of brackets."""
    return re.split(r", (?![^\[(<]*[\])>])", text)


def _parameter(text: str) -> str:
    return re.split(r"[:=]", text)[0].strip() + ("=" if "=" in text else "")


def load_bindings(folder: Path) -> ModuleType:
    """TensorRT's bindings without TensorRT: libraries whose functions give nothing stand in for it."""
    library = next(folder.glob("tensorrt_bindings/tensorrt.so"))
    symbols = _read("nm", "-D", "--undefined-only", str(library))
    names = re.findall(r" U ((?:create|get|init)\w+)$", symbols, re.MULTILINE)
    needed = re.findall(r"\[(libnv\w+\.so\.\d+)\]", _read("readelf", "-d", str(library)))
    with tempfile.TemporaryDirectory() as work:
        source = Path(work) / "none.c"
        source.write_text("".join(f"void *{name}(void) {{ return 0; }}\n" for name in names))
        for name in needed:
            target = f"{work}/{name}"
            subprocess.run(
                ["cc", "-shared", "-fPIC", "-o", target, f"-Wl,-soname,{name}", str(source)], check=True
            )
            ctypes.CDLL(target, ctypes.RTLD_GLOBAL)
        sys.path.insert(0, str(folder))
        return importlib.import_module("tensorrt_bindings")


def _read(*command: str) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


# ----------------------------------------------------------------------------
# cuda-python, ONNX Runtime, pycuda.


def cuda_lines(driver: ModuleType) -> Iterator[str]:
    """Of cuda.bindings.driver: Cython keeps signatures."""
    for name in sorted(vars(driver)):
        member = getattr(driver, name)
        if re.match(r"cu[A-Z]", name) and callable(member):
            yield f"{name}({', '.join(inspect.signature(member).parameters)})"
    for name in ("CUstreamCaptureMode", "CUstream_flags"):
        yield name
        yield from (f"{name}.{member}" for member in getattr(driver, name).__members__)


ORT_CLASSES = ("Session", "InferenceSession", "IOBinding")


def onnxruntime_lines(module: ModuleType) -> Iterator[str]:
    """Of the Python files, and of the strings in the libraries."""
    assert module.__file__ is not None
    package = Path(module.__file__).parent
    tree = ast.parse((package / "capi" / "onnxruntime_inference_collection.py").read_text())
    for node in tree.body:
        if isinstance(node, ast.ClassDef) and node.name in ORT_CLASSES:
            yield from _class_lines(node)
    init = ast.parse((package / "__init__.py").read_text())
    yield from (
        f"{node.name}({', '.join(_parameters(node))})"
        for node in init.body
        if isinstance(node, ast.FunctionDef) and not node.name.startswith("_")
    )
    yield from (
        "InferenceSession",
        "SessionOptions()",
        "get_available_providers()",
        "__version__",
        "__file__",
    )
    yield from (f"SessionOptions.{name}" for name in dir(module.SessionOptions) if not name.startswith("_"))
    yield from option_lines(package)


def _class_lines(node: ast.ClassDef) -> Iterator[str]:
    for method in node.body:
        if isinstance(method, ast.FunctionDef) and (method.name == "__init__" or method.name[0] != "_"):
            if (node.name, method.name) == ("Session", "__init__"):  # of which nobody makes one
                continue
            owner = node.name.replace("InferenceSession", "Session").replace("Session", "InferenceSession")
            name = owner if method.name == "__init__" else f"{owner}.{method.name}"
            returned = f" -> {method.returns.id}" if isinstance(method.returns, ast.Name) else ""
            yield f"{name}({', '.join(_parameters(method)[1:])}){returned}"


def _parameters(node: ast.FunctionDef) -> list[str]:
    names = [argument.arg for argument in node.args.args]
    optional = len(node.args.defaults)
    required = len(names) - optional
    more = [f"{a.arg}=" for a in node.args.kwonlyargs] + (
        [f"**{node.args.kwarg.arg}"] if node.args.kwarg else []
    )
    return [*names[:required], *(f"{name}=" for name in names[required:]), *more]


def option_lines(package: Path) -> Iterator[str]:
    """Provider options and what they take, by the libraries' own messages and names; and session options."""
    capi = package / "capi"
    files = [path for path in sorted(capi.glob("*.so*")) if "providers_cuda" not in path.name]
    text = b"".join(path.read_bytes() for path in files)
    switches = re.findall(rb"The value for the key '(\w+)' should be '(\w+)' or '(\w+)'", text)
    told = {name.decode(): f"{yes.decode()} {no.decode()}" for name, yes, no in switches}
    named = {name.decode() for name in re.findall(rb"[\0 ](trt_[a-z_0-9]+)(?=[\0 :])", text)}
    yield from (f"option {name} {told.get(name, '')}".strip() for name in sorted(named | set(told)))
    entries = re.findall(rb"\0(session\.[a-z_0-9.]+)\0", text)
    yield from (f"option {name}" for name in sorted({entry.decode() for entry in entries}))
    path = capi / "libonnxruntime_providers_cuda.so"  # hundreds of megabytes
    cuda = path.read_bytes() if path.is_file() else b""
    yield from (f"option {name}" for name in CUDA_OPTION_NAMES if name.encode() + b"\0" in cuda)
    if b"HEURISTIC\0" in cuda:
        yield "option cudnn_conv_algo_search HEURISTIC"


CUDA_OPTION_NAMES = (
    "device_id", "user_compute_stream", "has_user_compute_stream", "gpu_mem_limit", "arena_extend_strategy",
    "cudnn_conv_algo_search", "do_copy_in_default_stream", "cudnn_conv_use_max_workspace",
    "enable_cuda_graph", "cudnn_conv1d_pad_to_nc1d", "tunable_op_enable", "use_tf32", "prefer_nhwc",
    "fuse_conv_bias",
)  # fmt: skip


def pycuda_lines(folder: Path) -> Iterator[str]:
    """Of the C++ that declares pycuda._driver, which pycuda.driver passes on."""
    text = (folder / "src" / "wrapper" / "wrap_cudadrv.cpp").read_text()
    text = re.sub(r"^#.*$|//.*$", "", text, flags=re.MULTILINE)
    yield from sorted(f"{name}" for name in set(re.findall(r"DECLARE_EXC\((\w+)", text)))
    current = ""
    pattern = re.compile(
        r'class_<[^;"]*?>\s*(?:\w+\s*)?\(\s*"(\w+)"(?:,\s*py::init<([^>]*)>\((.*?)\)\))?'
        r"|DEF_SIMPLE_METHOD\((\w+)\)"
        r'|(?<!py::)\.def\(\s*"(\w+)",([^;]*?)\)\s*(?=\.|;|$|\n\s*(?:\.|;|DEF))'
        r'|\.add_property\("(\w+)"'
        r'|py::def\("(\w+)",(.*?)\);'
        r"|DEF_SIMPLE_FUNCTION\((\w+)\)",
        re.DOTALL,
    )
    for match in pattern.finditer(text):
        cls, _, made_with, method, defined, rest, prop, function, arguments, simple = match.groups()
        if cls:
            current = cls
            yield f"{cls}({', '.join(_boost(made_with))})" if made_with else cls
        elif method:
            yield f"{current}.{method}()"
        elif defined and not defined.startswith("__"):
            names = [name for name in _boost(rest or "") if name != "self"]
            yield f"{current}.{defined}({', '.join(names)})" + RETURNS.get(defined, "")
        elif prop:
            yield f"{current}.{prop}"
        elif function:
            names = _boost(arguments or "") or WITHOUT_NAMES.get(function, [])
            yield f"{function}({', '.join(names)})" + RETURNS.get(function, "")
        elif simple:
            yield f"{simple}()"


# What the C++ declares elsewhere than at the name.
RETURNS = {"mem_alloc": " -> DeviceAllocation", "retain_primary_context": " -> Context"}
WITHOUT_NAMES = {"mem_alloc": ["bytes"]}


def _boost(text: str) -> list[str]:
    """Names in py::args("a", "b"), py::arg("c")=1."""
    found = []
    for names, name, default in re.findall(r'py::args\(([^)]*)\)|py::arg\("(\w+)"\)\s*(=?)', text):
        found += re.findall(r'"(\w+)"', names) or [name + ("=" if default else "")]
    return found


# ----------------------------------------------------------------------------
# Adapters: every use of a library's name in a syntax tree.


@dataclass(frozen=True)
class Use:
    """A name of the library that a file uses, and how; `positional` is -1 of one that is not called."""

    line: int
    name: str
    positional: int = -1
    keywords: tuple[str, ...] = ()

    def wrong(self, table: Table) -> str:
        """Why the library does not take it; "" if it does."""
        if self.name not in table:
            return f"line {self.line}: there is no {self.name}"
        overloads = table.signatures.get(self.name)
        if self.positional < 0 or overloads is None:
            return ""
        if any(_fits(self, parameters) for parameters in overloads):
            return ""
        given = f"{self.positional} arguments" + "".join(f", {k}=" for k in self.keywords)
        takes = " or ".join(f"({', '.join(p)})" for p in overloads)
        return f"line {self.line}: {self.name} with {given} takes {takes}"


def _fits(use: Use, parameters: list[str]) -> bool:
    anything = any(p.startswith("**") for p in parameters)
    names = [p for p in parameters if not p.startswith("*")]
    left = names[use.positional :]
    required = {p for p in left if not p.endswith("=")}
    known = {p.rstrip("=") for p in left}
    return (
        use.positional <= len(names)
        and required <= set(use.keywords)
        and (anything or set(use.keywords) <= known)
    )


VARIABLES = (ast.Name, ast.Attribute, ast.Subscript)
Types = dict[str, str]  # variable -> a class of the library; "" is its module


class Walker(ast.NodeVisitor):
    """Follows the library's objects through a file, from the variables whose types are told, by what calls
    return. `seeds` has them for each function, and under "*" for all."""

    def __init__(self, table: Table, seeds: dict[str, Types]) -> None:
        self.table, self.seeds = table, seeds
        self.uses: list[Use] = []
        self.types: Types = dict(seeds.get("*", {}))
        self._called: set[ast.AST] = set()

    def visit_FunctionDef(self, node: ast.FunctionDef) -> None:
        before = dict(self.types)
        self.types |= self.seeds.get(node.name, {})
        self.generic_visit(node)
        own = {name: kind for name, kind in self.types.items() if name.startswith("self.")}
        self.types = before | own

    def visit_Assign(self, node: ast.Assign) -> None:
        self.generic_visit(node)
        kind = self.kind(node.value)
        for target in node.targets:
            name = ast.unparse(target)
            if kind is not None:
                self.types[name] = kind
            elif name in self.types and isinstance(node.value, ast.Dict | ast.List | ast.JoinedStr):
                del self.types[name]

    def visit_Call(self, node: ast.Call) -> None:
        name = self.path(node.func)
        if name is not None:
            self._called.add(node.func)
            keywords = tuple(k.arg for k in node.keywords if k.arg)
            starred = any(isinstance(a, ast.Starred) for a in node.args)
            self.uses.append(Use(node.lineno, name, -1 if starred else len(node.args), keywords))
        self.generic_visit(node)

    def visit_Attribute(self, node: ast.Attribute) -> None:
        name = self.path(node)
        if name is not None and node not in self._called:
            self.uses.append(Use(node.lineno, name))
        self.generic_visit(node)

    def path(self, node: ast.AST) -> str | None:
        """The table's name of an attribute of a library's object."""
        if not isinstance(node, ast.Attribute) or ast.unparse(node) in self.types:
            return None
        owner = self.kind(node.value)
        if owner is None:
            return None
        return f"{owner}.{node.attr}" if owner else node.attr

    def kind(self, node: ast.AST) -> str | None:
        """The class that an expression is of (or is), as far as it can be followed."""
        told = self.types.get(ast.unparse(node)) if isinstance(node, VARIABLES) else None
        if told is not None:
            return told
        if isinstance(node, ast.IfExp):
            return self.kind(node.body) or self.kind(node.orelse)
        if isinstance(node, ast.Call):
            name = self.path(node.func)
            if name is None:
                return self.started(node)
            made = self.table.returns.get(name, name)
            return made if made in self.table and made[:1].isupper() and "." not in made else None
        if isinstance(node, ast.Attribute):
            name = self.path(node)
            return name if name is not None and name.rpartition(".")[2][:1].isupper() else None
        return None

    def started(self, node: ast.Call) -> str | None:
        """start(trt.Runtime, log, name, ...) makes a Runtime (pgsr/tensorrt/library.py)."""
        if isinstance(node.func, ast.Name) and node.func.id == "start":
            name = self.path(node.args[0])
            if name is not None:
                self.uses.append(Use(node.lineno, name, len(node.args) - 2))
            return name
        return None


def uses(source: str, table: Table, seeds: dict[str, Types]) -> list[Use]:
    """Every use of the library's names in a file, each once."""
    walker = Walker(table, seeds)
    walker.visit(ast.parse(source))
    return list(dict.fromkeys(walker.uses))


# ----------------------------------------------------------------------------


def main(library: str, folder: Path) -> None:
    lines: Iterable[str]
    if library == "tensorrt":
        module = load_bindings(folder)
        version, lines = module.__version__, pybind_lines(module)
    elif library == "cuda":
        sys.path.insert(0, str(folder))
        driver = importlib.import_module("cuda.bindings.driver")
        version, lines = importlib.import_module("cuda.bindings").__version__, cuda_lines(driver)
    elif library == "onnxruntime":
        sys.path.insert(0, str(folder))
        module = importlib.import_module("onnxruntime")
        version, lines = module.__version__, onnxruntime_lines(module)
    else:
        version, lines = folder.name, pycuda_lines(folder)
    print(f"# {library} {version}, {datetime.date.today()}: python tests/signatures.py {library} FOLDER")
    for line in dict.fromkeys(lines):
        print(line)


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
