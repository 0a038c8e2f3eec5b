"""Hostile input: seeded generators of damaged files, and the promise that each ends in one clear message."""
