"""What the reports share: tables, and lines that describe the machine."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

Row = Mapping[str, Any]


def rate(images_per_second: float) -> str:
    """Formats images a second with three significant digits."""
    return f"{images_per_second:.2f}" if images_per_second < 10 else f"{images_per_second:.1f}"


def times(ratio: float | None) -> str:
    """Formats a ratio such as 2.1x; a dash where there is none."""
    return "-" if ratio is None else f"{ratio:.2f}x"


def aligned(lines: Sequence[Sequence[str]], left: int) -> str:
    """Columns of one width, the first `left` of them words."""
    widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
    return "\n".join("  ".join(_padded(line, widths, left)).rstrip() for line in lines)


def _padded(line: Sequence[str], widths: Sequence[int], left: int) -> list[str]:
    return [
        text.ljust(width) if i < left else text.rjust(width)
        for i, (text, width) in enumerate(zip(line, widths, strict=True))
    ]


def markdown_table(lines: Sequence[Sequence[str]], left: int) -> list[str]:
    """Formats a table in Markdown, line by line."""
    rule = ["---"] * left + ["---:"] * (len(lines[0]) - left)
    return [f"| {' | '.join(line)} |" for line in (lines[0], rule, *lines[1:])]


def machine_lines(machine: Mapping[str, Any]) -> list[str]:
    """Returns what was measured on."""
    instructions = ", ".join(machine["instruction_sets"]) or "instruction sets unknown"
    packages = ", ".join(f"{name} {version}" for name, version in machine["packages"].items())
    return [
        f"{machine['cpu']}; {instructions}; {machine['memory_bytes'] / 2**30:.1f} GiB; "
        f"usable cores: {machine['cores']}, threads: {machine['threads']}",
        f"{machine['system']}, Python {machine['python']}; {packages}",
    ]
