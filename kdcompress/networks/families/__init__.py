"""One file per family of networks; its file name is the FAMILY of FAMILY/NAME."""
