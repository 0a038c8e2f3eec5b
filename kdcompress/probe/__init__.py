"""Measures what a network has learnt: how far its features alone go, and what of an image they keep."""
