"""One config to a finished run: embed, fit, evaluate, report."""
