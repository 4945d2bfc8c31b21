"""Mutation testing: is every change to the core noticed by a test?

    python tests/mutants.py draws files     # these modules
    python tests/mutants.py --sample 100    # of each so many, drawn by seed 0
    python tests/mutants.py --again         # after new tests: those that lived or hung

A mutant is a module with one small change: a comparison turned, a number one more, a call left out. Tests
that pass all the same have not looked at what was changed. Each mutant is written into a copy of the tree and
meets only the tests that run its lines, the quickest first, in a fork of a process with the libraries loaded.
Not changed: annotations, docstrings, decorators, the words of errors, and zip's `strict`, a guard.

Not mutmut, which names a module after its file (`trainer/step/schedule.py` installs as
`pgsr.trainer.step.schedule`), nor cosmic-ray, which starts an interpreter, and so PyTorch, for every mutant.
"""

from __future__ import annotations

import argparse
import ast
import contextlib
import importlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]

# A module's file, and the tests of which some are to notice.
MODULES: dict[str, tuple[str, tuple[str, ...]]] = {
    "draws": ("pgsr/draws.py", ("draws",)),
    "bundle": ("pgsr/bundle.py", ("bundle",)),
    "checkpoint": ("pgsr/checkpoint.py", ("checkpoint",)),
    "files": ("pgsr/files.py", ("files",)),
    "schedule": ("trainer/step/schedule.py", ("schedule",)),
    "objectives": ("trainer/step/objectives.py", ("objectives",)),
    "pipeline": ("runtime/pipeline.py", ("pipeline", "machine")),
    "writers": ("runtime/output/writers.py", ("runtime_writers",)),
    "archives": ("runtime/output/archives.py", ("runtime_writers",)),
}
LIBRARIES = ("numpy", "torch", "PIL.Image", "onnx", "onnxruntime", "safetensors.torch", "click", "pytest")
# A mutant may send any signal to any process: here there are no others to be seen.
APART = ["unshare", "--map-root-user", "--pid", "--fork", "--kill-child", "--mount-proc"]
SLOWER = 10  # times as long as its tests take, and a mutant hangs
GRACE = 15.0  # seconds more
WAITING = 4  # times as long of the clock: others use the machine, too


# ----------------------------------------------------------------------------
# Mutants.


@dataclass(frozen=True)
class Mutant:
    """One change to a module: the text of a node, and what stands there instead."""

    start: int  # in the source's UTF-8
    end: int
    lines: range
    column: int
    old: str
    new: str

    def of(self, source: bytes) -> bytes:
        return source[: self.start] + self.new.encode() + source[self.end :]

    @property
    def key(self) -> str:
        return " ".join(f"{self.lines.start}:{self.column}: {self.old}  ->  {self.new}".split())

    def __str__(self) -> str:
        return f"{self.lines.start}:{self.column}: {short(self.old)}  ->  {short(self.new)}"


def short(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) < 90 else f"{line[:85]} ..."


COMPARED: dict[type[ast.cmpop], list[type[ast.cmpop]]] = {
    ast.Lt: [ast.LtE, ast.GtE],
    ast.LtE: [ast.Lt, ast.Gt],
    ast.Gt: [ast.GtE, ast.LtE],
    ast.GtE: [ast.Gt, ast.Lt],
    ast.Eq: [ast.NotEq],
    ast.NotEq: [ast.Eq],
    ast.Is: [ast.IsNot],
    ast.IsNot: [ast.Is],
    ast.In: [ast.NotIn],
    ast.NotIn: [ast.In],
}
COMPUTED: dict[type[ast.operator], type[ast.operator]] = {
    ast.Add: ast.Sub,
    ast.Sub: ast.Add,
    ast.Mult: ast.Div,
    ast.Div: ast.Mult,
    ast.FloorDiv: ast.Mult,
    ast.Mod: ast.Mult,
    ast.Pow: ast.Mult,
    ast.BitOr: ast.BitAnd,
    ast.BitAnd: ast.BitOr,
    ast.LShift: ast.RShift,
    ast.RShift: ast.LShift,
}


def changed(node: ast.AST) -> Iterator[ast.AST | str]:
    """What may stand instead of a node."""
    match node:
        case ast.Compare(left, [operator], [right]):
            yield from (ast.Compare(left, [other()], [right]) for other in COMPARED[type(operator)])
        case ast.BoolOp(operator, values):
            yield ast.BoolOp(ast.Or() if isinstance(operator, ast.And) else ast.And(), values)
        case ast.BinOp(left, operator, right) if type(operator) in COMPUTED:
            yield ast.BinOp(left, COMPUTED[type(operator)](), right)
        case ast.UnaryOp(ast.Not() | ast.USub() | ast.Invert(), operand):
            yield operand
        case ast.AugAssign(target, operator, value) if type(operator) in COMPUTED:
            yield ast.AugAssign(target, COMPUTED[type(operator)](), value)
        case ast.Constant(bool() as value):
            yield ast.Constant(not value)
        case ast.Constant(int() | float() as value):
            yield ast.Constant(value + 1)
        case ast.Constant(str() as value):
            yield ast.Constant(f"XX{value}")
        case ast.Constant(bytes() as value):
            yield ast.Constant(b"XX" + value)
        case ast.If(test) | ast.IfExp(test) | ast.While(test) if not isinstance(
            test, ast.Compare | ast.UnaryOp | ast.BoolOp | ast.Constant
        ):
            yield ast.UnaryOp(ast.Not(), test)
        case ast.Return(ast.expr() as value) if not (isinstance(value, ast.Constant) and not value.value):
            yield "return None"
        case ast.Expr(ast.Call()) | ast.Raise():
            yield "pass"
        case ast.Continue():
            yield "break"
        case ast.Break():
            yield "continue"
        case ast.Call(function, arguments, keywords):
            for keyword in [] if getattr(function, "id", "") == "zip" else keywords:
                yield ast.Call(function, arguments, [k for k in keywords if k is not keyword])


def children(node: ast.AST, words: bool) -> Iterator[tuple[ast.AST, bool]]:
    """The nodes below that may be changed, and whether they are words of an error or a picture of a value."""
    skipped: list[Any] = []
    if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "zip":
        skipped += node.keywords
    if isinstance(node, ast.FunctionDef | ast.ClassDef):
        skipped += node.decorator_list
    if isinstance(node, ast.FunctionDef):
        skipped += [node.returns]
    if isinstance(node, ast.arg | ast.AnnAssign):
        skipped += [node.annotation]
    if isinstance(node, ast.FunctionDef | ast.ClassDef | ast.Module) and ast.get_docstring(node) is not None:
        skipped += node.body[:1]
    words = words or isinstance(node, ast.Raise | ast.JoinedStr)
    yield from ((child, words) for child in ast.iter_child_nodes(node) if child not in skipped)


def mutants(source: bytes) -> list[Mutant]:
    """Every mutant of a module, in the order of its text."""
    starts = [0]
    for line in source.splitlines(keepends=True):
        starts.append(starts[-1] + len(line))
    found: list[Mutant] = []

    def visit(node: ast.AST, words: bool) -> None:
        if isinstance(node, ast.Assign) and any(getattr(t, "id", "") in ("T", "R") for t in node.targets):
            return  # TypeVar("T")
        text = isinstance(node, ast.Constant) and isinstance(node.value, str)
        if not (words and text) and hasattr(node, "end_lineno"):
            found.extend(of_node(node))
        for child, below in children(node, words):
            visit(child, below)

    def of_node(node: Any) -> Iterator[Mutant]:
        place: Any = node.test if isinstance(node, ast.If | ast.IfExp | ast.While) else node
        start = starts[place.lineno - 1] + place.col_offset
        end = starts[place.end_lineno - 1] + place.end_col_offset
        old = source[start:end].decode()
        for other in changed(node):
            new = other if isinstance(other, str) else ast.unparse(ast.fix_missing_locations(other))
            if isinstance(place, ast.expr):
                new = f"({new})"
            yield Mutant(
                start, end, range(place.lineno, place.end_lineno + 1), place.col_offset + 1, old, new
            )

    visit(ast.parse(source), False)
    return sorted((m for m in found if compiles(m.of(source))), key=lambda m: (m.start, m.end, m.new))


def compiles(source: bytes) -> bool:
    try:
        compile(source, "mutant", "exec")
    except SyntaxError:  # inside an f-string, say
        return False
    return True


# ----------------------------------------------------------------------------
# Running tests in forks.


def forked(work: Callable[[], int], limit: float) -> int | None:
    """Exit status of `work` in a fork and a session of its own; None if it took longer: of the processor, or
    WAITING times as long of the clock."""
    process = os.fork()
    if process == 0:
        os.setsid()
        silence = os.open(os.devnull, os.O_RDWR)
        for handle in (0, 1, 2):
            os.dup2(silence, handle)
        try:
            os._exit(work())
        except BaseException:
            os._exit(70)
    until = time.monotonic() + WAITING * limit
    while time.monotonic() < until and seconds_of(process) < limit:
        ended, status = os.waitpid(process, os.WNOHANG)
        if ended:
            kill_group(process)
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.005)
    kill_group(process)
    os.waitpid(process, 0)
    return None


def seconds_of(process: int) -> float:
    """What a process and its children that have ended had of the processor (proc(5))."""
    fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    return sum(map(int, fields[11:15])) / os.sysconf("SC_CLK_TCK")


def kill_group(process: int) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process, signal.SIGKILL)


class Blame:
    """A pytest plugin: writes which test failed into a file, and ends what waits in a test, by SIGALRM."""

    def __init__(self, file: Path, seconds: Mapping[str, float]) -> None:
        self.file, self.seconds = file, seconds  # of each test, without the change

    def pytest_runtest_logstart(self, nodeid: str) -> None:
        signal.setitimer(signal.ITIMER_REAL, WAITING * (GRACE + SLOWER * self.seconds.get(nodeid, 0)))

    def pytest_runtest_logfinish(self, nodeid: str) -> None:
        signal.setitimer(signal.ITIMER_REAL, 0)

    def pytest_runtest_logreport(self, report: Any) -> None:
        if report.failed:
            self.file.write_text(report.nodeid)


def pytest_of(tests: list[str], plugins: list[Any] | None = None, stop: bool = True) -> int:
    import pytest

    options = ["-q", "--no-header", "-p", "no:cacheprovider", "-p", "no:randomly", "-p", "no:xdist"]
    return int(pytest.main([*options, *(["-x"] if stop else []), *tests], plugins=plugins))


class Watch:
    """A pytest plugin: which lines of a file each test runs, and how long it takes."""

    def __init__(self, file: Path, out: Path) -> None:
        import coverage

        self.out = out
        self.cover = coverage.Coverage(str(out / "coverage"), include=[str(file)], config_file=False)
        self.seconds: dict[str, float] = {}
        self.failed: list[str] = []

    def pytest_runtest_logstart(self, nodeid: str) -> None:
        self.cover.switch_context(nodeid)
        self.seconds[nodeid] = -time.monotonic()

    def pytest_runtest_logreport(self, report: Any) -> None:
        if report.failed:
            self.failed.append(report.nodeid)

    def pytest_runtest_logfinish(self, nodeid: str) -> None:
        self.seconds[nodeid] += time.monotonic()
        self.cover.switch_context("")

    def run(self, tests: list[str]) -> int:
        sys.dont_write_bytecode = False  # of all but mutants
        self.cover.start()
        code = pytest_of(tests, [self], stop=False)
        self.cover.stop()
        self.cover.save()
        (self.out / "told.json").write_text(json.dumps([self.seconds, self.failed]))
        return code


@dataclass(frozen=True)
class Baseline:
    """What the tests do to the module as it is."""

    seconds: dict[str, float]  # of each test
    runs: dict[int, set[str]]  # line -> tests that run it
    imported: set[int]  # lines that run when the module is imported

    kills: Counter[str]  # of each test, so far

    def tests(self, mutant: Mutant) -> list[str]:
        """Those that run a mutant's lines, first those that have noticed the most, then the quickest; all, if
        only importing runs the lines."""
        found = set().union(*(self.runs.get(line, set()) for line in mutant.lines))
        if not found and self.imported.intersection(mutant.lines):
            found = set(self.seconds)
        return sorted(found, key=lambda test: (-self.kills[test], self.seconds[test], test))


def baseline(tree: Path, file: str, tests: list[str]) -> Baseline:
    import coverage

    out = tree.parent / "baseline"
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir()
    code = forked(lambda: Watch(tree / file, out).run(tests), 3600)
    if code is None or not (out / "told.json").exists():
        sys.exit(f"the tests of {file} do not end (exit code {code})")
    for stale in (tree / file).parent.glob(f"__pycache__/{Path(file).stem}.*"):
        stale.unlink()
    seconds, failed = json.loads((out / "told.json").read_text())
    data = coverage.CoverageData(str(out / "coverage"))
    data.read()
    runs: dict[int, set[str]] = {}
    imported = set()
    for line, contexts in data.contexts_by_lineno(str(tree / file)).items():
        runs[line] = {name for name in contexts if name and name not in failed}
        if "" in contexts:
            imported.add(line)
    for name in failed:
        print(f"  left out, as it fails here without any change: {name}", flush=True)
        seconds.pop(name)
    return Baseline(seconds, runs, imported, Counter())


def verdict(tree: Path, file: str, source: bytes, mutant: Mutant, base: Baseline) -> str:
    """ "killed", "timeout" or "survived", or "no test" if none runs its lines."""
    tests = base.tests(mutant)
    if not tests:
        return "no test"
    (tree / file).write_bytes(mutant.of(source))
    limit = GRACE + SLOWER * sum(base.seconds[test] for test in tests)
    blame = tree.parent / "blame"
    blame.write_text("")
    code = forked(lambda: pytest_of(tests, [Blame(blame, base.seconds)]), limit)
    base.kills.update(filter(None, [blame.read_text()]))
    if code in (None, -signal.SIGALRM):
        return "timeout"
    return "survived" if code == 0 else "killed"


# ----------------------------------------------------------------------------
# A module's score.


def copied_tree(folder: Path) -> Path:
    """The tracked files, and those that git does not ignore, where they may be changed."""
    tree = folder / "work" / "tree"
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    for name in filter(None, listed.split("\0")):
        if (ROOT / name).is_file():
            (tree / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, tree / name)
    return tree


def enter(tree: Path, folder: Path) -> None:
    """Lets this process and its children import, and write into, the copy alone."""
    os.chdir(tree)
    (folder / "tmp").mkdir()
    environment = {"TMPDIR": folder / "tmp", "HOME": folder / "tmp", "PYTHONPATH": tree}
    os.environ.update({name: str(path) for name, path in environment.items()})
    os.environ.update({"PYTHONDONTWRITEBYTECODE": "1", "OMP_NUM_THREADS": "1"})
    tempfile.tempdir = None
    sys.dont_write_bytecode = True
    sys.path.insert(0, str(tree))
    for name in LIBRARIES:
        with contextlib.suppress(ImportError):
            importlib.import_module(name)
    assert not [name for name in sys.modules if name.partition(".")[0] == "pgsr"]


KILLED = ("killed", "timeout")


def known(results: Path, name: str) -> dict[str, str]:
    """The verdict on each of a module's mutants that a file has; the newest counts."""
    lines = results.read_text().splitlines() if results.is_file() else []
    entries = [json.loads(line) for line in lines]
    return {entry["mutant"]: entry["verdict"] for entry in entries if entry["module"] == name}


def score(name: str, tree: Path, sample: int, seed: int, results: Path, again: bool) -> None:
    """Runs a module's mutants, but for those whose verdict is known, and prints those that live."""
    file, names = MODULES[name]
    source = (ROOT / file).read_bytes()
    every = mutants(source)
    chosen = every
    if 0 < sample < len(every):
        numbers = list(range(len(every)))
        random.Random(seed).shuffle(numbers)  # so that a larger sample holds a smaller one
        chosen = [every[i] for i in sorted(numbers[:sample])]
    verdicts = known(results, name)
    if again:
        verdicts = {mutant: found for mutant, found in verdicts.items() if found == "killed"}
    left = [mutant for mutant in chosen if mutant.key not in verdicts]
    base = baseline(tree, file, [f"tests/test_{test}.py" for test in names]) if left else None
    print(f"{name}: {len(chosen)} of {len(every)} mutants, {len(left)} of them to run", flush=True)
    for mutant in left:
        assert base is not None
        found = verdicts[mutant.key] = verdict(tree, file, source, mutant, base)
        with results.open("a") as log:
            entry = {"module": name, "mutant": mutant.key, "verdict": found}
            log.write(json.dumps(entry) + "\n")
    (tree / file).write_bytes(source)
    living = [mutant for mutant in chosen if verdicts[mutant.key] not in KILLED]
    for mutant in living:
        print(f"  {verdicts[mutant.key]}: {mutant}")
    killed = len(chosen) - len(living)
    print(f"{name}: {killed} of {len(chosen)} killed, {killed / len(chosen):.1%}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("modules", nargs="*", choices=[*MODULES, []], help="all, unless some are named")
    parser.add_argument("--sample", type=int, default=0, help="so many of each module; 0: every one")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--results", type=Path, default=Path("mutants.jsonl"), help="verdicts, read and added to"
    )
    parser.add_argument("--again", action="store_true", help="those that lived or hung once more")
    options = parser.parse_args()
    if os.getpid() != 1:
        os.execvp("unshare", [*APART, sys.executable, *sys.argv])
    results = options.results.resolve()
    with tempfile.TemporaryDirectory(prefix="mutants-") as folder:
        tree = copied_tree(Path(folder))
        enter(tree, Path(folder))
        for name in options.modules or MODULES:
            score(name, tree, options.sample, options.seed, results, options.again)


if __name__ == "__main__":
    main()
