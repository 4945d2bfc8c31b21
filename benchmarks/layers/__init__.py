"""Layer by layer: every layer of the networks under the roof, and where the saving goes on the way to
files."""
