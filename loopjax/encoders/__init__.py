"""Named encoders: loading, storing, comparing."""
