"""Pages, tables and drawings of a run's results."""
