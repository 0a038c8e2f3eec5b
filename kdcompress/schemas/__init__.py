"""Schemas of the documents of runs, benchmarks and the cache: the keys that are read, with their kinds.

Unknown keys are of a newer version and stay. A key that some reader indexes is required here, and one that it
looks up with a default is optional: so no reader has to expect damage.
"""
