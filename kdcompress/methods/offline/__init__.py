"""A frozen teacher teaches the student."""
