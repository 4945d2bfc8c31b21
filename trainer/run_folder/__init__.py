"""A run's folder: what is written, watched, drawn and estimated around the steps."""
