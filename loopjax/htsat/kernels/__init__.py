"""Hand-written accelerator kernels of the network."""
