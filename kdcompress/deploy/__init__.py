"""Strips, writes and proves the files that ship."""
