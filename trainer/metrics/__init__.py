"""Distances between sets of pictures: how good, and how varied, what a generator makes is."""
