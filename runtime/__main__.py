"""python -m pgsr.runtime: the same as pgsr-generate."""

from .cli import main

main()
