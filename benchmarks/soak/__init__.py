"""pgsr-bench soak: whether an hour's work leaves anything behind."""
