"""How long a network takes, measured so that it can be believed."""
