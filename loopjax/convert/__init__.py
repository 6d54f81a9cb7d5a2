"""Published checkpoints to this package's folders, without PyTorch."""
