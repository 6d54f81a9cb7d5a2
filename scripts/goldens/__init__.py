"""Outputs of the original PyTorch implementations, frozen for the tests."""
