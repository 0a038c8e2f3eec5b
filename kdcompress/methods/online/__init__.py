"""Peers trained together teach each other."""
