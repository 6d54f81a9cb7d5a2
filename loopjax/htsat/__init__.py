"""Batches of samples to embeddings: log-mel, feature fusion, HTS-AT. Never opens an audio file."""
