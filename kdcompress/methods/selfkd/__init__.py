"""The student teaches itself."""
