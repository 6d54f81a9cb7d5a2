"""Pickles read as data: nothing in them is run, and memory is bounded by their size."""
