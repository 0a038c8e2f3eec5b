"""Published weights of a network: how a family downloads them, and what it knows of them."""

from __future__ import annotations

import urllib.parse
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from kdcompress.data.cache import cache_folder
from kdcompress.data.fetch import fetch
from kdcompress.progress import Progress

WITHOUT_NETWORK = "fetch the file elsewhere and pass it, for instance with --set teacher.weights=FILE"


def fetch_weights(
    url: str,
    *,
    progress: bool,
    file_name: str | None = None,
    sha256_prefix: str | None = None,
    connect_s: float | None = None,
) -> Path:
    """Downloads a file of weights into the cache, unless it is there already.

    Args:
        url: http or https.
        progress: True: shows the download on stderr.
        file_name: Name in the cache; None: the last part of the URL.
        sha256_prefix: First hexadecimal digits of its SHA-256; None: not known.
        connect_s: Limit in seconds until the server answers; None: see `fetch`.

    Raises:
        DownloadError: It cannot be downloaded, or is not the expected file.
    """
    name = file_name or Path(urllib.parse.unquote(urllib.parse.urlsplit(url).path)).name
    with Progress(quiet=not progress).counter() as report:
        return fetch(
            [url], cache_folder() / "weights" / name,
            advice=WITHOUT_NETWORK, sha256_prefix=sha256_prefix, progress=report, connect_s=connect_s,
        )  # fmt: skip


@dataclass(frozen=True, slots=True)
class Pretrained:
    """Published weights and what they expect of their images.

    Args:
        state_dict: On the CPU.
        mean: Per channel, of images in [0, 1].
        std: Per channel.
        size: (H, W) they were evaluated at.
        class_names: In the order of the logits, or None if not told.
        license_note: One sentence on the terms of the weights and of their data, or None if not told.
        sha256: Hash of their file.
    """

    state_dict: dict[str, Tensor]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    size: tuple[int, int]
    class_names: tuple[str, ...] | None
    license_note: str | None
    sha256: str
