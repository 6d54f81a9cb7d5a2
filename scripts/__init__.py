"""Programs around the package; run them from the checkout, `python -m scripts.render --help`."""
