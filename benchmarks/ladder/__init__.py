"""pgsr-bench ladder: the training configurations of paper 2's Table 1."""
