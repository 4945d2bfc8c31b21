"""Every target by its module and name."""

from __future__ import annotations

from importlib import import_module

from .harness import Target

MODULES = ("documents", "archives", "pictures", "weights", "graphs", "requests")


def of_module(module: str) -> list[Target]:
    """The targets of one of MODULES."""
    targets: list[Target] = import_module(f".{module}", __package__).TARGETS
    return targets
