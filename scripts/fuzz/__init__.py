"""Fuzzers: damaged and hostile inputs, seeded and bounded."""
