"""`kdcompress`, `python -m kdcompress` and `torchrun -m kdcompress`."""

from __future__ import annotations

import os
import sys


def main() -> None:
    """Runs the command line; Ctrl-C while it is still being imported ends it without a traceback."""
    try:
        from kdcompress.cli import main as run
    except KeyboardInterrupt:
        sys.stderr.write("Error: interrupted; nothing was finished\n")
        sys.stderr.flush()
        # Not `sys.exit`: Python may then send itself the signal, and a second Ctrl-C finds it at its end.
        os._exit(130)
    run()


if __name__ == "__main__":
    main()
