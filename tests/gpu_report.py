"""What `pytest -m gpu` leaves behind: one JSON with the machine, and each test's outcome and figures.

A test records a figure with pytest's own fixture: record_property("images_per_second", 812.0). conftest.py
imports the hooks.
"""

from __future__ import annotations

import json
import platform
import re
import subprocess
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from pgsr import __version__, gpu, machine
from pgsr.errors import PgsrError

ROOT = Path(__file__).resolve().parents[1]
LIBRARIES = (
    *("torch", "onnxruntime-gpu", "tensorrt", "tensorrt-rtx", "cuda-python", "pycuda", "numpy"),
    *("nvidia-cudnn-cu12", "nvidia-cudnn-cu13", "nvidia-nccl-cu12", "nvidia-nccl-cu13"),
)
SCHEMA = 1


def find_gpus() -> list[gpu.Gpu]:
    """All that the driver sees. Raises PgsrError if there is none."""
    found = [gpu.find_gpu()]
    while True:
        try:
            found.append(gpu.find_gpu(len(found)))
        except PgsrError:
            return found


def on_gpus(config: pytest.Config) -> bool:
    """Whether this is `pytest -m gpu`, perhaps with more conditions, in the process that reports."""
    asked = re.search(r"(?<!not )\bgpu\b", config.option.markexpr)
    return bool(asked) and not hasattr(config, "workerinput")


def pytest_addoption(parser: pytest.Parser) -> None:
    text = "Where `pytest -m gpu` writes its report."
    parser.addoption("--gpu-report", default="gpu-report.json", metavar="FILE", help=text)


def pytest_configure(config: pytest.Config) -> None:
    """Ends `pytest -m gpu` where there is no GPU, rather than let it pass with nothing run."""
    if on_gpus(config) and not config.option.collectonly:
        try:
            config.pluginmanager.register(Report(config, find_gpus()), "gpu report")
        except PgsrError as error:
            raise pytest.UsageError(f"-m gpu needs a GPU: {error}") from None


class Report:
    """Collects outcomes, and writes them when the session ends."""

    def __init__(self, config: pytest.Config, gpus: list[gpu.Gpu]) -> None:
        self.config, self.gpus = config, gpus
        self.tests: dict[str, dict[str, Any]] = {}

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Takes the call's outcome, or that of whatever failed or was skipped around it."""
        entry = self.tests.setdefault(report.nodeid, {"outcome": "passed", "seconds": 0.0})
        entry["seconds"] = round(entry["seconds"] + report.duration, 2)
        if not report.passed:
            entry |= {"outcome": report.outcome, "why": _why(report)}
        if report.user_properties:
            entry["figures"] = dict(report.user_properties)

    def pytest_sessionfinish(self) -> None:
        path = Path(self.config.option.gpu_report)
        path.write_text(json.dumps(self.content(), indent=1, sort_keys=True) + "\n")
        print(f"\n{path} holds what was found; docs/gpu.md says what to do with it")

    def content(self) -> dict[str, Any]:
        """The report: no name and no path of this machine."""
        outcomes = [entry["outcome"] for entry in self.tests.values()]
        return {
            "schema": SCHEMA,
            "pgsr": __version__,
            "commit": _commit(),
            "date": datetime.now(UTC).date().isoformat(),
            "gpus": [{"name": g.name, "compute_capability": g.compute_capability} for g in self.gpus],
            "driver": self.gpus[0].driver,
            "processor": machine.processor_name(),
            "cores": machine.usable_cores(),
            "python": platform.python_version(),
            "libraries": machine.installed_versions(*LIBRARIES),
            "selected": [a for a in self.config.invocation_params.args if not Path(a).is_absolute()],
            "summary": {kind: outcomes.count(kind) for kind in ("passed", "failed", "skipped")},
            "tests": self.tests,
        }


def _why(report: pytest.TestReport) -> str:
    """The reason of a skip, or the last line of a failure."""
    if isinstance(report.longrepr, tuple):
        return report.longrepr[2].removeprefix("Skipped: ")
    crash = getattr(report.longrepr, "reprcrash", None)
    text = crash.message if crash else str(report.longrepr)
    return text.splitlines()[0].replace(str(ROOT), "") if text else ""


def _commit() -> str | None:
    """The checkout's, with "+" if it was changed."""
    command = ["git", "describe", "--always", "--dirty=+", "--abbrev=12"]
    try:
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=30)
    except OSError:
        return None
    return done.stdout.strip() or None
