"""Figures computed of outputs alone, without a network or a run."""
