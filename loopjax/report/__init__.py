"""Pages, tables and figures of a finished run."""
