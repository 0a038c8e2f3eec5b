"""One file per export format; its name in recipes is the file's name with hyphens.

A file defines `SUFFIX`, `TITLE`, `RUNTIME` (of `bench`), if needed `BESIDE` and `PACKAGE`
(`kdcompress.deploy.files.Format`), and the functions `write(network, spec, path, *, metadata, opset, task)`,
`open_(path, threads)` (a `kdcompress.deploy.load.Graph`), `gates(file, opset)` and `describe(path)`, which
returns `params`, `macs` and `shape` for `bench`. If no class of `bench/device/worker.py` runs such files, the
format's file also defines one, with the methods of the classes there: `RUNTIME_CLASS` is its name, and
`COMPUTES_IN` its precision if that is not the file's.
"""
