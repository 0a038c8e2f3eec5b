"""One file per format of a shipped network: how it is written and opened."""
