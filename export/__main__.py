"""python -m pgsr.export: the same as pgsr-export."""

from .cli import main

main()
