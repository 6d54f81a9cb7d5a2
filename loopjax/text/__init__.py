"""Sentences to vectors: the text tower of CLAP and its tokenizer."""
