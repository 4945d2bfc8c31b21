"""What the parts about layers measure: networks, ways, how often."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

from pgsr.errors import PgsrError, check_choice
from pgsr.machine import usable_cores

from ..conv.backends import LIBRARIES, installed
from ..harness.machine import FAST, Machine
from ..throughput.systems import System, Widths, exported_system

PRECISIONS = ("fp32", "bf16", "int8")
WITHOUT_KERNELS = (("onnxruntime", "bf16"), ("pytorch", "int8"))  # ways that do not exist


@dataclass(frozen=True)
class Way:
    """A library and what it is asked to compute in."""

    backend: str
    precision: str

    @property
    def name(self) -> str:
        """As people say it."""
        return f"{LIBRARIES[self.backend].name}, {self.precision}"


@dataclass(frozen=True)
class Settings:
    """What is measured. Raises PgsrError for values out of range."""

    widths: Widths = field(default_factory=Widths)
    batch: int = 4
    runs: int = 5  # of a profiled network
    rounds: int = 5  # of what is timed side by side
    precisions: tuple[str, ...] = ()  # none: fp32, and what the processor has instructions for
    backends: tuple[str, ...] = ()  # none: all that are installed
    threads: int = 0  # 0: one a usable core

    def __post_init__(self) -> None:
        for name, least in (("batch", 2), ("runs", 1), ("rounds", 1)):
            if getattr(self, name) < least:
                raise PgsrError(f"{name} is {getattr(self, name)}, but must be at least {least}")
        for precision in self.precisions:
            check_choice("precision", precision, PRECISIONS)
        for backend in self.backends:
            check_choice("backend", backend, tuple(LIBRARIES))
        if not self.threads:
            object.__setattr__(self, "threads", usable_cores())

    def ways(self, machine: Machine) -> list[Way]:
        """Every library with every precision that it has kernels for, and the processor instructions."""
        fast = ("fp32", *(precision for precision in FAST if machine.is_fast_in(precision)))
        return [
            Way(backend, precision)
            for backend in self.backends or installed()
            for precision in self.precisions or fast
            if (backend, precision) not in WITHOUT_KERNELS
        ]

    def exported(self, machine: Machine) -> tuple[str, ...]:
        """The precisions that graphs are needed in."""
        wanted = {way.precision for way in self.ways(machine) if way.backend != "pytorch"}
        return tuple(precision for precision in PRECISIONS if precision in wanted | {"fp32"})

    def system(self, convolution: str, machine: Machine) -> System:
        """The exported networks."""
        return exported_system(self.widths, convolution, self.exported(machine))

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)
