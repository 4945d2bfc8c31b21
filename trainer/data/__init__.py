"""Photographs: where they lie, how they are read, and the archives they are prepared into."""
