"""`python -m kdcompress` and `torchrun -m kdcompress`."""

from __future__ import annotations

from kdcompress.cli import main

if __name__ == "__main__":
    main()
