"""pgsr-generate as tests run it: in this process, and what it writes read back."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result
from PIL import Image

from pgsr.runtime.cli import main


def command(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


def result_of(*arguments: object) -> dict[str, Any]:
    """The object that a command which must succeed prints."""
    result = command(*arguments, "--json")
    assert result.exit_code == 0, result.output
    return dict(json.loads(result.stdout))


def says_in_one_line(words: str, *arguments: object, folder: Path) -> None:
    """A command that cannot be done: run in an empty folder, where it leaves nothing."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        result = command(*arguments)
    assert result.exit_code == 1, result.output
    assert result.stdout == ""
    assert result.stderr.startswith("error: ")
    assert result.stderr.count("\n") == 1
    assert words in result.stderr
    assert list(folder.iterdir()) == []


def pixels(path: Path) -> np.ndarray:
    with Image.open(path) as picture:
        return np.asarray(picture)
