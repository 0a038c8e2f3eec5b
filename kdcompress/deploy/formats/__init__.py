"""One file per export format; its name in recipes is the file's name with hyphens.

A file defines `SUFFIX`, `TITLE`, `RUNTIME` (of `bench`), if needed `BESIDE` and `PACKAGE`
(`kdcompress.deploy.files.Format`), and the functions `write(network, spec, path, *, metadata, opset, task)`,
`open_(path, threads)` (a `kdcompress.deploy.load.Graph`), `gates(file, opset)` and `describe(path)`, which
returns `params`, `macs` and `shape` for `bench`. A runtime that `bench` does not know is added in
`bench/runtimes.py` and `bench/device/worker.py`.
"""
