"""Programs that run on the measured machine: Python 3.8 and newer, without the rest of kdcompress."""
