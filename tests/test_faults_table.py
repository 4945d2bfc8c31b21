"""The table of docs/faults.md: every fault has a cell for every command, and the tests it names exist."""

from __future__ import annotations

import ast
from functools import cache
from pathlib import Path

import faults
import pytest

TESTS = Path(__file__).parent


@cache
def functions_of(name: str) -> set[str]:
    """The functions of a file that pytest collects."""
    tree = ast.parse((TESTS / name).read_text())
    return {node.name for node in tree.body if isinstance(node, ast.FunctionDef) and node.name[:5] == "test_"}


@pytest.mark.parametrize("fault", faults.TABLE)
def test_every_command_has_one_cell(fault: str):
    rows = faults.TABLE[fault]
    assert sorted(name for row in rows for name in row.commands) == sorted(faults.COMMANDS)
    for row in rows:
        assert row.happens
        assert row.kept
        assert row.tests or row.by_hand, f"{fault}: nothing holds {row.commands}"
        for test in row.tests:
            file, _, name = test.partition("::")
            assert name in functions_of(file), test


def test_every_test_of_faults_is_in_the_table():
    named = {test for rows in faults.TABLE.values() for row in rows for test in row.tests}
    for file in ("test_faults.py", "test_faults_serve.py", "test_faults_ray.py"):
        assert {f"{file}::{name}" for name in functions_of(file)} <= named


def test_the_page_has_the_table():
    page = faults.PAGE.read_text()
    assert faults.written(page) == page, "python tests/faults.py writes it again"
