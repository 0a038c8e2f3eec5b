"""A recipe goes in, a small network that can be trusted comes out."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from kdcompress.deploy.load import load

__version__ = "0.1.0"
__all__ = ["__version__", "load"]


def __getattr__(name: str) -> Any:
    # `kdcompress.load` needs torch; `import kdcompress` must not.
    if name == "load":
        from kdcompress.deploy.load import load

        return load
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
