"""Fuzzing: every reader of what strangers may have made, fed with anything. CONTRIBUTING.md says how."""
