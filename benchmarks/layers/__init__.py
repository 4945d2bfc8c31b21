"""Layer by layer: every layer under the roof, and where the saving goes on the way to files."""
