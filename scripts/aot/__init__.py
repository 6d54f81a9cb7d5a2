"""Programs compiled for accelerators on a machine without one: kernels, bytes, collectives."""
