"""Standard streams that are closed, full, cut short or of a narrow encoding: a sentence at most."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from pgsr.cli import errors_as_lines

LIST = "from pgsr.trainer.cli import main; main(['--list'])"
WORDS = "from pgsr.cli import Command; Command('x', callback=lambda: print(chr(215) + '4')).main([])"


def shell(program: str, redirection: str, **environment: str) -> subprocess.CompletedProcess[str]:
    command = f'exec "$0" -c "$1" {redirection}'
    return subprocess.run(
        ["bash", "-c", command, sys.executable, program],
        capture_output=True,
        text=True,
        encoding="latin-1",
        env={"PATH": "/usr/bin:/bin", "PYTHONPATH": ":".join(sys.path), **environment},
        timeout=600,
    )


@pytest.mark.parametrize("redirection", [">&-", "<&-", "2>&-", "<&- >&- 2>&-", "2>/dev/full"])
def test_closed_streams_are_as_the_null_device(redirection: str):
    done = shell(LIST, redirection)
    assert done.returncode == 0
    assert done.stderr == ""
    assert ("faces-64" in done.stdout) == (">&-" not in redirection.replace("2>&-", ""))


PROGRESS = """
import click
from pgsr.cli import Command
def work():
    for step in range(3):
        click.echo(f"\\rstep {step}", err=True, nl=False)
    click.echo("", err=True)
    click.echo("made")
Command("x", callback=work).main([])
"""


def test_work_does_not_end_because_its_progress_cannot_be_written():
    done = shell(PROGRESS, "2>/dev/full")
    assert (done.returncode, done.stdout) == (0, "made\n")
    done = shell(PROGRESS, "")
    assert (done.returncode, done.stdout) == (0, "made\n")
    assert done.stderr == "\nstep 0\nstep 1\nstep 2\n"  # as text, in which a return is a new line


def test_an_error_that_cannot_be_written_is_an_exit_code():
    program = "from pgsr.cli import Command, fail; Command('x', callback=lambda: fail('no')).main([])"
    assert shell(program, "2>/dev/full").returncode == 1
    assert shell(program, "2>&-").returncode == 1
    assert shell(program, "").stderr == "error: no\n"


def test_a_full_output_is_a_sentence():
    done = shell(LIST, ">/dev/full")
    assert done.returncode == 1
    assert done.stderr == "error: the standard output cannot be written: No space left on device\n"


def test_a_reader_that_goes_away_is_nobodys_error():
    done = shell(f"{LIST}", "| head -c 1")
    assert done.stdout
    assert done.stderr == ""


@pytest.mark.parametrize("encoding", ["ascii", "ascii:strict", "latin-1"])
def test_a_narrow_encoding_loses_letters_not_the_command(encoding: str):
    done = shell(WORDS, "", PYTHONIOENCODING=encoding)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == ("×4" if encoding == "latin-1" else r"\xd74")


def test_other_errors_of_the_system_keep_their_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit), errors_as_lines():
        (tmp_path / "absent" / "file").write_text("x")
    assert capsys.readouterr().err.startswith(f"error: cannot write {tmp_path / 'absent' / 'file'}")
