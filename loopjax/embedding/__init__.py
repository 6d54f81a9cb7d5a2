"""Audio to embeddings, one chain: read -> deduplicate -> encode -> write (see `chain`)."""
