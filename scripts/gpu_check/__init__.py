"""Sections of `scripts/gpu_check.sh`: what one GPU computes, and how fast, in ten minutes."""
