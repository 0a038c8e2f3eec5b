"""The steps of one distillation run, in the order that `pipeline.py` calls them."""
