"""python -m pgsr.benchmarks: the same as pgsr-bench."""

from .cli import main

main()
