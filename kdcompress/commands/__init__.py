"""The commands, a file each: options are parsed, a step is called, what it tells is printed.

Nothing heavy is imported at the top of these files, so that `--help` and the listings start at once.
"""
