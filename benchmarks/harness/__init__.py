"""What all measurements share: timing side by side, the machine, tables."""
