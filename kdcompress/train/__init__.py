"""The one training loop, which names no method."""
