"""pgsr-bench modes: how many of 1000 modes a small GAN covers (paper 2, Table 4)."""
