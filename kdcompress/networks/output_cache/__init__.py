"""Outputs of a teacher that are kept on disk, so that it computes each of them once."""
