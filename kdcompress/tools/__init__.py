"""The work behind the other commands: bench, suggest, evaluate, probe, strip, compare."""
