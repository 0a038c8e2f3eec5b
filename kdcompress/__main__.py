"""`kdcompress`, `python -m kdcompress` and `torchrun -m kdcompress`."""

from __future__ import annotations

import os
import sys


def main() -> None:
    """Runs the command line; Ctrl-C while it is still being imported ends it without a traceback."""
    _open_closed_streams()
    try:
        from kdcompress.cli import main as run
    except KeyboardInterrupt:
        sys.stderr.write("Error: interrupted; nothing was finished\n")
        sys.stderr.flush()
        # Not `sys.exit`: Python may then send itself the signal, and a second Ctrl-C finds it at its end.
        os._exit(130)
    run()


def _open_closed_streams() -> None:
    """Gives the null device to closed standard streams (`>&-`); else a file would get their number."""
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # the least free number is this one
            os.set_inheritable(number, True)
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, mode, encoding="utf-8"))  # noqa: SIM115


if __name__ == "__main__":
    main()
