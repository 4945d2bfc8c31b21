"""python -m pgsr.trainer: the same as pgsr-train."""

from .cli import main

main()
