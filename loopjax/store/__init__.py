"""Embeddings and scores on disk."""
