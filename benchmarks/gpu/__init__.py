"""What runs on a machine with a GPU that is lent for minutes: in pieces, without network."""
