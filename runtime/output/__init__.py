"""Pictures to bytes and files: encoders, archives, animations."""
