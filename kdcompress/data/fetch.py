"""Downloads of data set files into the cache: whole and checked, or not there at all."""

from __future__ import annotations

import hashlib
import http.client
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from pathlib import Path

from kdcompress import __version__
from kdcompress.atomic import replacing, translated
from kdcompress.data.raw import OnProgress
from kdcompress.errors import DownloadError

TIMEOUT_SECONDS = 10.0
"""To connect, and for each wait for more bytes."""
_BLOCK_BYTES = 1 << 18
_NETWORK_ERRORS = (OSError, http.client.HTTPException, ValueError)  # ValueError: not a URL


def fetch(
    urls: Sequence[str], path: Path, *, md5: str, advice: str, progress: OnProgress | None = None
) -> Path:
    """Downloads a file, unless it is there.

    Args:
        urls: The same file at several places, tried in order.
        path: Where it goes; its folder is made.
        md5: Its publisher's checksum.
        advice: End of the error message: what the user can do without a network.
        progress: Told of the bytes.

    Returns:
        `path`.

    Raises:
        DownloadError: No place gave the file with that checksum.
        WorldError: The disk is full.
        UserError: The cache folder must not be written to.
    """
    if path.is_file():
        return path
    problems = []
    for url in urls:
        try:
            _fetch_one(url, path, md5, progress)
        except _Unusable as error:
            problems.append(f"{url}: {error}")
        else:
            return path
    raise DownloadError(f"cannot download {path.name} ({'; '.join(problems)}); {advice}")


class _Unusable(Exception):
    """Why one place did not give the file. No OSError: while the file is written, those are of our disk."""


def _fetch_one(url: str, path: Path, md5: str, progress: OnProgress | None) -> None:
    request = urllib.request.Request(url, headers={"User-Agent": f"kdcompress/{__version__}"})
    try:
        response = urllib.request.urlopen(request, timeout=TIMEOUT_SECONDS)
    except _NETWORK_ERRORS as error:
        raise _Unusable(_reason(error)) from None
    digest, done = hashlib.md5(usedforsecurity=False), 0
    with response:
        total = int(response.headers.get("Content-Length") or 0)
        with translated(path):
            path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as temporary:
            with temporary.open("wb") as file:
                for block in _blocks(response):
                    file.write(block)
                    digest.update(block)
                    done += len(block)
                    if progress:
                        progress(f"download {path.name}", done, total)
            if done < total:
                raise _Unusable(f"ended after {done} of {total} bytes")
            if digest.hexdigest() != md5:
                raise _Unusable(f"its MD5 is {digest.hexdigest()}, not the published {md5}")


def _blocks(response: http.client.HTTPResponse) -> Iterator[bytes]:
    while True:
        try:
            block = response.read(_BLOCK_BYTES)
        except _NETWORK_ERRORS as error:
            raise _Unusable(_reason(error)) from None
        if not block:
            return
        yield block


def _reason(error: Exception) -> str:
    if isinstance(error, urllib.error.HTTPError):
        return f"HTTP {error.code}"
    if isinstance(error, TimeoutError):
        return f"no answer for {TIMEOUT_SECONDS:.0f} s"
    if isinstance(error, urllib.error.URLError):
        return str(getattr(error.reason, "strerror", None) or error.reason)
    return str(error) or type(error).__name__
