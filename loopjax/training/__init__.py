"""Compiled training steps, loops and checkpoints."""
