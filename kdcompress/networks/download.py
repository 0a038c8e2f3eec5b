"""Fetching a file over HTTP: with time limits, checked, and either whole or not there at all."""

from __future__ import annotations

import hashlib
import http.client
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

from kdcompress.atomic import replacing, sha256_of, translated
from kdcompress.errors import DownloadError

TIMEOUT_S = 10.0
"""To connect, and for each read."""

_CHUNK_BYTES = 1 << 18
_WAY_OUT = "fetch the file elsewhere and pass it, for instance with --set teacher.weights=FILE"


def fetch(
    url: str,
    folder: Path,
    *,
    file_name: str | None = None,
    hash_prefix: str | None = None,
    progress: bool = False,
    timeout_s: float = TIMEOUT_S,
) -> Path:
    """A file from the network, kept in a folder; fetched only if it is not there yet.

    Args:
        url: http or https.
        folder: Where it is kept; made if need be.
        file_name: Its name there; None: the last part of the URL.
        hash_prefix: First hexadecimal digits of its SHA-256, or None: unknown.
        progress: Whether to show the download on stderr when that is a terminal.
        timeout_s: Limit in seconds to connect, and for each read.

    Returns:
        The path of the complete, checked file.

    Raises:
        DownloadError: It cannot be had, or is not what was expected.
        UserError: The folder cannot be written.
        WorldError: The disk is full.
    """
    parts = urllib.parse.urlsplit(url)
    assert parts.scheme in {"http", "https"}, url
    target = folder / (file_name or Path(urllib.parse.unquote(parts.path)).name)
    if target.is_file() and (hash_prefix is None or sha256_of(target).startswith(hash_prefix)):
        return target
    with translated(target):
        folder.mkdir(parents=True, exist_ok=True)
    with replacing(target) as temporary:
        found = _receive(url, temporary, target.name, progress, timeout_s)
        if hash_prefix is not None and not found.startswith(hash_prefix):
            raise DownloadError(
                f"{url}: is not the file that was expected (its SHA-256 begins with {found[:12]}, not with "
                f"{hash_prefix}); {_WAY_OUT}"
            )
    return target


def _receive(url: str, path: Path, name: str, progress: bool, timeout_s: float) -> str:
    """Writes the body to a file and gives its SHA-256."""
    digest, received = hashlib.sha256(), 0
    request = urllib.request.Request(url, headers={"User-Agent": "kdcompress"})
    with _told(url, timeout_s):
        response = urllib.request.urlopen(request, timeout=timeout_s)
    with closing(response), path.open("wb") as file, _bar(progress) as bar:
        announced = response.headers.get("Content-Length")
        total = int(announced) if announced and announced.isdigit() else None
        task = bar.add_task(name, total=total)
        while True:
            with _told(url, timeout_s):
                chunk: bytes = response.read(_CHUNK_BYTES)
            if not chunk:
                break
            digest.update(chunk)
            received += len(chunk)
            file.write(chunk)  # a full disk is no failed download: `replacing` says so
            bar.advance(task, len(chunk))
    if total is not None and received != total:
        raise DownloadError(f"{url}: the connection broke after {received} of {total} bytes; {_WAY_OUT}")
    return digest.hexdigest()


@contextmanager
def _told(url: str, timeout_s: float) -> Iterator[None]:
    """Turns whatever goes wrong on the network into one sentence."""
    try:
        yield
    except urllib.error.HTTPError as error:
        error.close()
        raise DownloadError(f"{url}: the server answers {error.code} {error.reason}; {_WAY_OUT}") from None
    except urllib.error.URLError as error:
        if isinstance(error.reason, TimeoutError):
            raise DownloadError(f"{url}: no connection within {timeout_s:g} seconds; {_WAY_OUT}") from None
        raise DownloadError(f"{url}: cannot be reached ({_reason(error.reason)}); {_WAY_OUT}") from None
    except TimeoutError:
        raise DownloadError(f"{url}: nothing came for {timeout_s:g} seconds; {_WAY_OUT}") from None
    except (http.client.HTTPException, OSError) as error:
        raise DownloadError(f"{url}: the connection broke ({_reason(error)}); {_WAY_OUT}") from None


def _reason(error: object) -> str:
    return (error.strerror if isinstance(error, OSError) else None) or str(error) or type(error).__name__


def _bar(progress: bool) -> Progress:
    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    return Progress(*columns, console=console, disable=not (progress and console.is_terminal))
