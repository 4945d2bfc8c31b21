"""Figures of the papers that show how training goes on in time: pgsr-bench convolutions, growing, scales."""
