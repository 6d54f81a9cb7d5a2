"""Files on disk to fixed-shape batches of samples; NumPy only, jax is never imported here."""
