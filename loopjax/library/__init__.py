"""What a curator does with a store of embeddings: search it, clean it, decide."""
