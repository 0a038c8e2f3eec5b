"""Writing a network's files: for a run, for a finished run again, and for a checkpoint of other code."""
