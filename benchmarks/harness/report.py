"""What the reports share: their files, tables, and lines that describe the machine."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from PIL import Image

from pgsr.files import make_folder, write_bytes, write_text

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Row = Mapping[str, Any]
Lines = Sequence[Sequence[str]]  # a table's cells, headings first


def write_report_files(
    folder: Path, name: str, result: Mapping[str, Any], page: str, picture: bytes = b""
) -> None:
    """NAME.json, .md and, if there is a picture, .png in a folder. Raises PgsrError if they cannot be
    written."""
    make_folder(folder)
    write_text(folder / f"{name}.json", json.dumps(result, indent=1) + "\n")
    write_text(folder / f"{name}.md", page)
    if picture:
        write_bytes(folder / f"{name}.png", picture)


def plain_page(
    title: str,
    tables: Sequence[tuple[Lines, int]],
    notes: Sequence[str],
    picture: tuple[str, str] | None = None,
) -> str:
    """A page in Markdown: a title, tables with their columns of words, a picture (what it shows, its file),
    and notes."""
    lines = [f"# {title}", ""]
    for cells, left in tables:
        lines += [*markdown_table(cells, left), ""]
    if picture is not None:
        lines += [f"![{picture[0]}]({picture[1]})", ""]
    return "\n".join([*lines, *[f"- {note}" for note in notes], ""])


def png(drawn: Figure | Image.Image, dpi: float | None = None) -> bytes:
    """A picture as a PNG file's bytes; `dpi` is of a figure, by default its own."""
    buffer = io.BytesIO()
    if isinstance(drawn, Image.Image):
        drawn.save(buffer, "PNG")
    else:
        drawn.savefig(buffer, format="png", dpi=dpi or "figure")
    return buffer.getvalue()


def rate(images_per_second: float) -> str:
    """Formats images a second with three significant digits."""
    return f"{images_per_second:.2f}" if images_per_second < 10 else f"{images_per_second:.1f}"


def times(ratio: float | None) -> str:
    """Formats a ratio such as 2.1x; a dash where there is none."""
    return "-" if ratio is None else f"{ratio:.2f}x"


def listed(words: Sequence[str]) -> str:
    """Joins words as a sentence does: a, b and c."""
    return " and ".join(filter(None, [", ".join(words[:-1]), *words[-1:]]))


def aligned(lines: Lines, left: int) -> str:
    """Columns of one width, the first `left` of them words."""
    widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
    return "\n".join("  ".join(_padded(line, widths, left)).rstrip() for line in lines)


def _padded(line: Sequence[str], widths: Sequence[int], left: int) -> list[str]:
    return [
        text.ljust(width) if i < left else text.rjust(width)
        for i, (text, width) in enumerate(zip(line, widths, strict=True))
    ]


def markdown_table(lines: Lines, left: int) -> list[str]:
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
