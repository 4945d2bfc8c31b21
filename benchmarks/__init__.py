"""Benchmarks: measurements of speed beside a naive reference, and their reports."""
