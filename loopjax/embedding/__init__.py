"""Audio files to embeddings: read -> encode -> write, with deduplication and resume."""
