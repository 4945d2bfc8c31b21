"""pgsr-serve under load: beside the offline pipeline and a plain handler, in one run."""
