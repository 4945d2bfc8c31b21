"""Exact algebra on trained networks: the same images from fewer operations."""
