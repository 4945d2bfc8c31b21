"""The commands of pgsr-bench, by what they ask."""
