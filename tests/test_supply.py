"""What pgsr stands on is known: versions, hashes, licences, and what the page says of them."""

from __future__ import annotations

import re

import pytest

import offline
import supply

PAGE = supply.PAGE.read_text()
INSTALLED = supply.installed(["cpu", "dev"])


def rows(name: str) -> list[list[str]]:
    """The cells of a table of the page."""
    found = re.search(rf"<!-- {name} -->\n(.*?)\n<!-- end of {name} -->", PAGE, re.DOTALL)
    assert found is not None
    lines = found[1].splitlines()[2:]
    return [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines]


def test_every_package_of_ci_is_pinned():
    """But for pip, which comes with Python."""
    assert not INSTALLED - set(supply.pins()) - {"pip"}


def test_the_lock_is_of_the_pins():
    text = supply.LOCK.read_text()
    public = {name: version for name, version in supply.pins().items() if "+" not in version}
    assert supply.pins(supply.LOCK) == public, "make lock"
    entries = re.split(r"\n(?=\S)", text.rstrip("\n"))
    entries = [entry for entry in entries if not entry.startswith("#")]
    assert len(entries) == len(public)
    assert all(re.search(r"--hash=sha256:[0-9a-f]{64}", entry) for entry in entries)


# ----------------------------------------------------------------------------
# Licences.


def test_every_licence_is_known_and_free():
    names = INSTALLED | set(supply.pins())
    wrong = {name: supply.licence(name) for name in sorted(names) if not supply.may_be_used(name)}
    assert not wrong


@pytest.mark.parametrize(
    ("expression", "allowed"),
    [
        ("MIT", True),
        ("Apache-2.0 WITH LLVM-exception AND MIT", True),
        ("GPL-3.0-only OR MIT", True),
        ("GPL-3.0-only AND MIT", False),
        ("AGPL-3.0-or-later", False),
        (supply.NVIDIA, False),  # of anybody but NVIDIA
        (supply.UNKNOWN, False),
    ],
)
def test_licences_that_may_not_be_used(expression: str, allowed: bool, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(supply, "licence", lambda name: expression)
    assert supply.may_be_used("somebody-elses") == allowed


def test_a_package_without_a_licence_is_unknown():
    assert supply.licence("no-such-package-anywhere") == supply.UNKNOWN
    assert not supply.may_be_used("no-such-package-anywhere")


def test_programs_under_the_gpl_are_imported_by_nobody():
    for name in supply.PROGRAMS:
        module = name.replace("-", "_")
        for folder in ("pgsr", "trainer", "export", "runtime", "benchmarks", "tests"):
            for path in (supply.ROOT / folder).rglob("*.py"):
                assert not re.search(rf"^\s*(import|from) {module}\b", path.read_text(), re.MULTILINE), path


def test_the_page_has_every_package_under_its_licence():
    told = {name: row[0] for row in rows("licences") for name in row[1].split(", ")}
    assert not INSTALLED - set(told), "python tests/supply.py docs"
    assert {name: told[name] for name in INSTALLED} == {name: supply.licence(name) for name in INSTALLED}
    assert supply.UNKNOWN not in told.values()


def test_the_page_has_what_every_extra_asks_for():
    told = {row[0].strip("`"): row[1] for row in rows("extras")}
    assert told.pop("none") == supply.asked(supply.PROJECT["dependencies"])
    assert told == {extra: supply.asked(asked) for extra, asked in supply.EXTRAS.items()}


# ----------------------------------------------------------------------------
# The oldest versions, and no network.


def test_every_requirement_has_a_lowest_version():
    """Else `make oldest` would test nothing of it. Two are of the newest alone."""
    for extra in supply.EXTRAS:
        for requirement in supply.required([extra]):
            assert any(one.operator in (">=", "==") for one in requirement.specifier), requirement


def test_the_runtimes_tests_are_found():
    names = {path.stem for path in supply.runtime_tests()}
    assert {"test_draws", "test_bundle", "test_pipeline", "test_runtime_generate", "test_serve"} <= names
    assert not names & {"test_training", "test_export", "test_schedule", "test_checkpoint"}


def test_every_command_of_the_readme_is_tried_offline():
    """Smaller, where it would take long, and no rule of what is smaller is left over."""
    commands = offline.commands()
    programs = {command.split()[0] for command in commands}
    assert set(supply.PROJECT["scripts"]) | {"torchrun"} == programs
    assert all(any(old in command for command in commands) for old in offline.LESS)
    assert offline.smaller("pgsr-generate --count 1000 --out x") == "pgsr-generate --count 8 --out x"
    assert "1000" not in "".join(map(offline.smaller, commands)).replace("compute", "")
