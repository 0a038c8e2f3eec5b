"""One file per distillation method; its file name is its name."""
