"""pgsr-bench sr-matrix: objectives times architectures of super-resolution (paper 3)."""
