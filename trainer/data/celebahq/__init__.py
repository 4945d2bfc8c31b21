"""CelebA-HQ made again from CelebA's pictures in the wild (paper 2, appendix C)."""
