"""How far a command is, on stderr."""

from __future__ import annotations

import sys
import time

import click

REPORT_SECONDS = 0.2  # between updates of the line


class Progress:
    """A line on stderr: rewritten in place on a terminal, else printed once at the end."""

    def __init__(self, count: int, what: str = "faces") -> None:
        self.count = 0  # images made or already there
        self._count = count
        self._what = what
        self._began = self._last_update = time.perf_counter()
        self._live = sys.stderr.isatty()
        self._open = False  # whether the cursor stands behind an unfinished line

    def __call__(self, count: int) -> None:
        """Shows that `count` images are made or were there."""
        self.count = count
        now = time.perf_counter()
        if self._live and now - self._last_update >= REPORT_SECONDS:
            self._last_update = now
            self._open = True
            click.echo(f"\r{self._line(now - self._began)}\x1b[K", err=True, nl=False)

    def _line(self, seconds: float) -> str:
        left = seconds * (self._count - self.count) / max(1, self.count)
        return f"{self.count}/{self._count} {self._what}, {left:.0f} s left"

    def finish(self) -> None:
        """Ends the line."""
        if self._open:
            click.echo("\r\x1b[K", err=True, nl=False)
            self._open = False
        elif not self._live and self.count == self._count:
            click.echo(f"{self.count}/{self._count} {self._what}", err=True)
