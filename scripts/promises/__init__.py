"""Measured numbers beside their targets."""
