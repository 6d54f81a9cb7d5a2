"""What audio files hold, read from their own bytes before any codec sees them."""
