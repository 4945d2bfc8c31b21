"""python -m pgsr.runtime: the same as pgsr-generate."""

from .generate.cli import main

main()
