"""Scores in, metrics, statistics and tables out; arrays only."""
