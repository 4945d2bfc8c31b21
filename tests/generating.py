"""pgsr-generate as tests run it: in this process, and what it writes read back."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result
from PIL import Image

from pgsr.runtime.generate.cli import main


def command(*arguments: Any) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


def result_of(*arguments: Any) -> dict[str, Any]:
    """The object that a command which must succeed prints."""
    result = command(*arguments, "--json")
    assert result.exit_code == 0, result.output
    return dict(json.loads(result.stdout))


def refused(arguments: list[str], words: str) -> None:
    """Asserts that a command fails as commands do: one line."""
    result = command(*arguments)
    assert result.exit_code == 1, result.output
    assert result.stdout == ""
    assert result.stderr.startswith("error: "), result.stderr
    assert result.stderr.count("\n") == 1
    assert words in result.stderr


def refused_in(folder: Path, arguments: list[str], words: str) -> None:
    """Likewise, run in an empty folder, where it leaves nothing."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        refused(arguments, words)
    assert list(folder.iterdir()) == []


def pixels(path: Path) -> np.ndarray:
    with Image.open(path) as picture:
        return np.asarray(picture)
