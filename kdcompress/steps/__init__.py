"""The steps of `pipeline.py`, one file each, in the order in which a run takes them."""
