"""Our graphs and runtime beside what a good engineer writes in an afternoon (references/afternoon.py)."""
