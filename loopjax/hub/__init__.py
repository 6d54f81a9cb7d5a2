"""Encoders, models and stores to the Hugging Face Hub and back."""
