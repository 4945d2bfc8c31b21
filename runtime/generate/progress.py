"""How far a command is, on stderr."""

from __future__ import annotations

import sys
import time

import click

REPORT_SECONDS = 0.2  # between updates of the line
LINE_SECONDS = 60.0  # between lines where there is no terminal, as in a job's log


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


class SetProgress:
    """How far a set of shards is, with rate and time left: a line on a terminal, else one a minute."""

    def __init__(self, count: int) -> None:
        self._count = count
        self._made = self._present = self._workers = 0
        self._began = self._last = time.perf_counter()
        self._live = sys.stderr.isatty()
        self._open = False

    def __call__(self, made: int, present: int, workers: int = 0) -> None:
        """Shows that so many faces are made and so many were there, and how many workers are at work."""
        self._made, self._present, self._workers = made, present, workers
        now = time.perf_counter()
        if now - self._last < (REPORT_SECONDS if self._live else LINE_SECONDS):
            return
        self._last = now
        text = f"{self.words}, {self._pace(now - self._began)}"
        if self._live:
            self._open = True
            click.echo(f"\r{text}\x1b[K", err=True, nl=False)
        else:
            click.echo(text, err=True)

    @property
    def words(self) -> str:
        """Returns how many faces there are."""
        workers = f", {self._workers} workers" if self._workers else ""
        return f"{self._made + self._present}/{self._count} faces{workers}"

    def _pace(self, seconds: float) -> str:
        if not self._made:
            return "none made yet"
        rate = self._made / seconds
        left = int((self._count - self._made - self._present) / rate)
        return f"{rate:.1f} images/s, {left // 3600}:{left // 60 % 60:02d}:{left % 60:02d} left"

    def finish(self) -> None:
        """Ends the line."""
        if self._open:
            click.echo("\r\x1b[K", err=True, nl=False)
            self._open = False
