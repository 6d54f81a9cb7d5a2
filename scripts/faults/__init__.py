"""Trials that take minutes: what a kill, a full disk or a lost device leaves behind."""
