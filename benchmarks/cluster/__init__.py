"""pgsr-generate --ray beside the same command without it, and with machines that die under it."""
