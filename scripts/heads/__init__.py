"""How heads are compared, and which one is the default."""
