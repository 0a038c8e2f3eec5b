"""One file per data set; its file name is its name."""
