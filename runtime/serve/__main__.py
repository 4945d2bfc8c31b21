"""python -m pgsr.runtime.serve: the same as pgsr-serve."""

from .cli import main

main()
