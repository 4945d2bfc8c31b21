"""A worker of the real runs.

    python -m pgsr.benchmarks.scaling.worker MODEL PRECISION BACKEND

Opens the model, says so, and makes a tar of each line "START COUNT PATH" on stdin; answers with its seconds.
"""

from __future__ import annotations

import sys
from pathlib import Path

from pgsr.runtime.generate.job import Job
from pgsr.runtime.generate.write import generate
from pgsr.runtime.synthesizer import Synthesizer


def main(model: str, precision: str, backend: str) -> None:
    """Works until stdin ends."""
    folder = Path(model) if model else None
    with Synthesizer(folder, "cpu", precision, backend, batch=16, threads=1) as synthesizer:
        print("ready", flush=True)
        for line in sys.stdin:
            start, count, path = line.split(" ", 2)
            job = Job(Path(path.strip()), count=int(count), start=int(start), threads=1)
            print(generate(synthesizer, job).seconds, flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
