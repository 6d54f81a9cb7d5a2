"""Training through the encoder: what changes, what for, step by step."""
