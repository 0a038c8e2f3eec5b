"""Measures the latency of model files and compares them."""
