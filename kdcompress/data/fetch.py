"""Downloads files into the cache: whole and checked, or not there at all."""

from __future__ import annotations

import atexit
import errno
import functools
import hashlib
import http.client
import os
import shutil
import tempfile
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, InvalidStateError
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import Any

from kdcompress import __version__
from kdcompress.atomic import replacing
from kdcompress.data.decode import open_regular
from kdcompress.data.raw import OnProgress
from kdcompress.errors import DownloadError
from kdcompress.recipe import write_notice

TIMEOUT_S = 10.0
"""For each attempt to connect, and for each read."""
OFFLINE = "KDCOMPRESS_OFFLINE"
"""Environment variable; 1: nothing is downloaded, and what is in the cache is used."""
_CHUNK_BYTES = 1 << 18
_MOST_BYTES = 8 << 30
"""Largest file in the cache whose checksum is compared; no published one is larger."""


def fetch(
    urls: Sequence[str],
    path: Path,
    *,
    advice: str,
    md5: str | None = None,
    sha256_prefix: str | None = None,
    progress: OnProgress | None = None,
    timeout_s: float = TIMEOUT_S,
    connect_s: float | None = None,
    replace: bool = False,
) -> Path:
    """Downloads a file, unless it is there already.

    Where its folder cannot be written the file goes to a temporary one, until this process ends.

    Args:
        urls: The same file at several places, tried in order.
        path: Path of the file; its folder is made.
        advice: End of the error message: what the user can do without a network.
        md5: The publisher's checksum; None: not known.
        sha256_prefix: First hexadecimal digits of its SHA-256; None: not known. A file that is there already
            is compared too, and replaced if it differs.
        progress: Called with the number of bytes.
        timeout_s: Limit in seconds for each attempt to connect, and for each read.
        connect_s: Limit in seconds until a place answers, with the lookup of its name, all of its addresses
            and redirects; None: `timeout_s` for each of them.
        replace: True: the file that is there is known to be damaged.

    Returns:
        Path of the file: `path`, or one in a temporary folder.

    Raises:
        DownloadError: No place gave the file with that checksum, or downloads are switched off.
        WorldError: The disk is full.
    """
    if not replace and is_whole(path, sha256_prefix=sha256_prefix):
        return path
    if os.environ.get(OFFLINE, "0") not in ("", "0"):
        state = "damaged" if path.is_file() else "not"
        raise DownloadError(
            f"{path.name} is {state} in the cache, and {OFFLINE} switches downloads off", advice
        )
    place, path = path, _writable(path)
    if path != place and is_whole(path, md5=md5, sha256_prefix=sha256_prefix):
        return path  # downloaded before, by this process
    problems = []
    for url in urls:
        try:
            with replacing(path) as temporary:
                digests = _receive(url, temporary, path.name, progress, timeout_s, connect_s)
                _check(digests, md5, sha256_prefix)
        except _Unusable as error:
            problems.append(f"{url}: {error}")
        else:
            return path
    reasons = "; ".join(problems)
    message = reasons if len(problems) == 1 else f"cannot download {path.name} ({reasons})"
    raise DownloadError(message, advice)


def is_whole(path: Path, *, md5: str | None = None, sha256_prefix: str | None = None) -> bool:
    """Returns True if a file is there, and has the checksums as far as they are known.

    Args:
        path: The file.
        md5: See `fetch`.
        sha256_prefix: See `fetch`.
    """
    expected = {"md5": md5, "sha256": sha256_prefix}
    known = {name: digest for name, digest in expected.items() if digest is not None}
    if not known:
        return path.is_file()
    digests = {name: hashlib.new(name, usedforsecurity=False) for name in known}
    try:
        with open_regular(path) as file:
            if os.fstat(file.fileno()).st_size > _MOST_BYTES:
                return False
            while chunk := file.read(_CHUNK_BYTES):
                for digest in digests.values():
                    digest.update(chunk)
    except OSError:
        return False
    return all(digest.hexdigest().startswith(known[name]) for name, digest in digests.items())


def _writable(path: Path) -> Path:
    """Returns a path that can be written: the given one, or one of the same name in a temporary folder."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.is_dir():
            raise OSError(errno.EISDIR, f"{path.name} is a folder")
        with tempfile.TemporaryFile(dir=path.parent):
            pass
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            return path  # the download says that the disk is full
        write_notice(
            f"{path.parent}: the cache cannot be written ({error.strerror}); {path.name} is downloaded for "
            "this run alone. Set KDCOMPRESS_CACHE to another folder to keep it"
        )
        return _temporary_folder() / path.name
    return path


@functools.cache
def _temporary_folder() -> Path:
    folder = Path(tempfile.mkdtemp(prefix="kdcompress-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


class _Unusable(Exception):
    """The reason why one place did not give the file. No OSError: those are of our disk."""


def _receive(
    url: str,
    path: Path,
    name: str,
    progress: OnProgress | None,
    timeout_s: float,
    connect_s: float | None,
) -> dict[str, str]:
    """Writes the body to a file, and returns its checksums."""
    md5, sha256, received = hashlib.md5(usedforsecurity=False), hashlib.sha256(), 0
    with _network_errors(timeout_s):
        request = urllib.request.Request(url, headers={"User-Agent": f"kdcompress/{__version__}"})
        response = _connect(request, timeout_s, connect_s)
    with closing(response), path.open("wb") as file:
        announced = response.headers.get("Content-Length") or ""
        total = int(announced) if announced.isdigit() else 0
        while True:
            with _network_errors(timeout_s):
                chunk: bytes = response.read(_CHUNK_BYTES)
            if not chunk:
                break
            file.write(chunk)  # a full disk is no failed download: `replacing` says so
            md5.update(chunk)
            sha256.update(chunk)
            received += len(chunk)
            if progress is not None:
                progress(f"download {name}", received, total)
    if total and received != total:
        raise _Unusable(f"the connection broke after {received} of {total} bytes")
    return {"md5": md5.hexdigest(), "sha256": sha256.hexdigest()}


def _connect(request: urllib.request.Request, timeout_s: float, connect_s: float | None) -> Any:
    """Sends the request and returns the response, whose body is still to be read."""
    if connect_s is None:
        return urllib.request.urlopen(request, timeout=timeout_s)
    answer: Future[Any] = Future()

    def connect() -> None:
        try:
            response = urllib.request.urlopen(request, timeout=timeout_s)
        except BaseException as error:
            with suppress(InvalidStateError):
                answer.set_exception(error)
            return
        try:
            answer.set_result(response)
        except InvalidStateError:  # too late
            response.close()

    # The lookup of a name knows no timeout, and each address and redirect has one of its own.
    threading.Thread(target=connect, daemon=True).start()
    try:
        return answer.result(connect_s)
    except TimeoutError:
        if not answer.cancel():
            raise  # the connection's own
        raise _Unusable(f"no connection within {connect_s:g} seconds") from None


def _check(digests: dict[str, str], md5: str | None, sha256_prefix: str | None) -> None:
    if md5 is not None and digests["md5"] != md5:
        raise _Unusable(
            f"is not the file that was expected (its MD5 is {digests['md5']}, not the published {md5})"
        )
    if sha256_prefix is not None and not digests["sha256"].startswith(sha256_prefix):
        raise _Unusable(
            f"is not the file that was expected (its SHA-256 begins with {digests['sha256'][:12]}, not with "
            f"{sha256_prefix})"
        )


@contextmanager
def _network_errors(timeout_s: float) -> Iterator[None]:
    """Turns whatever goes wrong on the network into one reason."""
    try:
        yield
    except urllib.error.HTTPError as error:
        error.close()
        raise _Unusable(f"the server answers {error.code} {error.reason}") from None
    except urllib.error.URLError as error:
        if isinstance(error.reason, TimeoutError):
            raise _Unusable(f"no connection within {timeout_s:g} seconds") from None
        raise _Unusable(f"cannot be reached ({_reason(error.reason)})") from None
    except TimeoutError:
        raise _Unusable(f"nothing came for {timeout_s:g} seconds") from None
    except (http.client.HTTPException, OSError, ValueError) as error:  # ValueError: not a URL
        raise _Unusable(f"the connection broke ({_reason(error)})") from None


def _reason(error: object) -> str:
    text = (error.strerror if isinstance(error, OSError) else None) or str(error) or type(error).__name__
    return " ".join(text.split())
