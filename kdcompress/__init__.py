"""A recipe goes in, a small network that can be trusted comes out."""

from __future__ import annotations

import os

# Importing `typing` takes milliseconds, in which Ctrl-C would end in a traceback.
TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from kdcompress.deploy.load import load

# Left alone, onnxruntime reports its use to its maker and writes below the home folder when it is imported.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

__version__ = "0.1.0"
__all__ = ["__version__", "load"]


def __getattr__(name: str) -> Any:
    # `kdcompress.load` needs torch; `import kdcompress` must not.
    if name == "load":
        from kdcompress.deploy.load import load

        return load
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
