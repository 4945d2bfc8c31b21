"""pgsr-bench resample: ways to reduce a photograph (paper 1, Table 1)."""
