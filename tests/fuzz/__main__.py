"""Feeds every reader with anything.

    python tests/fuzz --minutes 5                  # of all targets together
    python tests/fuzz --cases 100000 manifest zip  # of each way of each of these
    python tests/fuzz --list
    python tests/fuzz --counts                     # of all runs into one folder, a row a target

Prints what came of each target, and exits with 1 if anything was answered wrongly. What was lies in --found,
with defects.txt, and small inputs are printed, too; put it into tests/fuzz/seeds/TARGET/ when it is mended.
"""

from __future__ import annotations

import argparse
import base64
import json
import sys
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path[:1] = [str(ROOT), str(ROOT / "tests")]  # in place of this folder

from fuzz.running import WAYS, Order, Told, run, take_turns  # noqa: E402


def main() -> int:
    if sys.argv[1:2] == ["--turns"]:
        take_turns(*sys.argv[2:])
        return 0
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("targets", nargs="*", help="all unless named")
    parser.add_argument("--minutes", type=float, default=0.0, help="of all together")
    parser.add_argument("--cases", type=int, default=0, help="of each way of each target")
    parser.add_argument(
        "--way", choices=WAYS, help="bytes: mutated files; built: by strategies; both unless said"
    )
    parser.add_argument(
        "--found", type=Path, default=Path("fuzz-found"), help="a folder for defects and logs"
    )
    parser.add_argument("--list", action="store_true", help="name the targets")
    parser.add_argument("--seed", type=int, default=0, help="others draw other inputs")
    parser.add_argument("--counts", action="store_true", help="add up what runs into --found have written")
    arguments = parser.parse_args()
    if arguments.counts:
        lines = (arguments.found / COUNTS).read_text().splitlines()
        print(added([Told(**json.loads(line)) for line in lines]))
        return 0
    from fuzz.targets import MODULES, of_module

    every = {target.name: (module, target) for module in MODULES for target in of_module(module)}
    for name in arguments.targets:
        if name not in every:
            parser.error(f"no target {name}; there are {', '.join(every)}")
    if arguments.list:
        print("\n".join(every))
        return 0
    if not arguments.minutes and not arguments.cases:
        parser.error("say how long: --minutes or --cases")
    arguments.found.mkdir(parents=True, exist_ok=True)
    turns = [
        (name, way)
        for name in arguments.targets or every
        for way in WAYS
        if arguments.way in (None, way) and (way == "bytes" or every[name][1].built is not None)
    ]
    seconds = 60 * arguments.minutes / max(1, len(turns))
    print(f"--seed {arguments.seed}", HEAD, sep="\n", flush=True)
    told: list[Told] = []
    before = inputs(arguments.found)
    for module in MODULES:
        orders = [
            Order(name, way, str(arguments.found.resolve()), seconds, arguments.cases, arguments.seed)
            for name, way in turns
            if every[name][0] == module
        ]
        for one in run(module, orders) if orders else ():
            print(_line(one), flush=True)
            told.append(one)
            with open(arguments.found / COUNTS, "a") as file:
                file.write(json.dumps(asdict(one)) + "\n")
    for path in sorted(inputs(arguments.found) - before):
        print(shown(path))
    wrong = sum(t.defects + t.crashes for t in told)
    print(f"{sum(t.cases for t in told):,} cases, {wrong} answered wrongly")
    return int(wrong > 0)


HEAD = "| target | way | cases | read | refused | wrong | different | ended the process | seconds |\n"
HEAD += "| --- " * 9 + "|"


def _line(told: Told) -> str:
    counts = (told.cases, told.read, told.refused, told.defects, told.different, told.crashes)
    return f"| {told.target} | {told.way} | {' | '.join(f'{n:,}' for n in counts)} | {told.seconds:.0f} |"


COUNTS = "counts.jsonl"  # a line a turn
SHOWN = 3000  # bytes of an input that is printed


def inputs(found: Path) -> set[Path]:
    """What was answered wrongly, or ended a process."""
    return {path for path in found.glob("*/*") if not path.name.startswith("slow-unit-")}


def shown(path: Path) -> str:
    """An input with what is known of it, for those who see the log alone."""
    notes = path.parents[1] / "defects.txt"
    known = [line for line in notes.read_text().splitlines() if path.name in line] if notes.exists() else []
    line = known[0] if known else f"{path.parent.name} {path.name} ended the process"
    data = path.read_bytes()
    return f"{line}\n    {base64.b64encode(data).decode()}" if len(data) <= SHOWN else line


def added(told: Sequence[Told]) -> str:
    """A table of all turns, those with most cases first."""
    turns: dict[str, list[Told]] = defaultdict(list)
    for one in told:
        turns[one.target].append(one)
    rows = ["| target | bytes | built | read | different faults |", "| --- | ---: | ---: | ---: | ---: |"]
    for target, of in sorted(turns.items(), key=lambda item: -sum(t.cases for t in item[1])):
        ways = [sum(t.cases for t in of if t.way == way) for way in WAYS]
        read = sum(t.read for t in of) / max(1, sum(ways))
        faults = sum(t.different + t.crashes for t in of) or "-"
        rows.append(f"| {target} | {ways[0]:,} | {ways[1]:,} | {read:.1%} | {faults} |")
    return "\n".join([*rows, f"\n{sum(t.cases for t in told):,} cases"])


if __name__ == "__main__":
    sys.exit(main())
