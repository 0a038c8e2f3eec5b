from __future__ import annotations

import hashlib
import socket
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest

from kdcompress.data import fetch as fetch_file
from kdcompress.data.fetch import fetch
from kdcompress.errors import DownloadError, KdcompressError

CONTENT = b"images" * 1000
MD5 = hashlib.md5(CONTENT).hexdigest()


class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        if self.path == "/absent":
            self.send_error(404)
            return
        self.send_response(200)
        self.send_header("Content-Length", str(len(CONTENT)))
        self.end_headers()
        if self.path == "/stalled":
            self.wfile.write(CONTENT[:100])
            self.wfile.flush()
            self.server.released.wait(10)
            return
        self.wfile.write(CONTENT[:100] if self.path == "/short" else CONTENT)

    def log_message(self, *parts):
        pass


@pytest.fixture
def server():
    with HTTPServer(("127.0.0.1", 0), Handler) as running:
        running.released = threading.Event()
        thread = threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield f"http://127.0.0.1:{running.server_port}"
        running.released.set()
        running.shutdown()
        thread.join()


def test_a_file_is_fetched_checked_and_not_fetched_again(server, tmp_path):
    told, path = [], tmp_path / "new" / "file"
    fetch([f"{server}/file"], path, md5=MD5, advice="", progress=lambda *state: told.append(state))
    assert path.read_bytes() == CONTENT
    assert told[-1] == ("download file", len(CONTENT), len(CONTENT))
    fetch(["http://127.0.0.1:1/"], path, md5=MD5, advice="")


def test_the_next_place_is_tried(server, tmp_path):
    fetch([f"{server}/absent", f"{server}/file"], tmp_path / "file", md5=MD5, advice="")
    assert (tmp_path / "file").read_bytes() == CONTENT


@pytest.mark.parametrize(
    ("path", "md5", "reason"),
    [
        ("/absent", MD5, "HTTP 404"),
        ("/file", "0" * 32, "not the published 0000"),
        ("/short", MD5, "ended after 100 of 6000 bytes|100 bytes read"),
        ("/stalled", MD5, "no answer for"),
    ],
)
def test_a_failure_leaves_nothing_and_says_what_else_can_be_done(
    server, tmp_path, monkeypatch, path, md5, reason
):
    monkeypatch.setattr(fetch_file, "TIMEOUT_SECONDS", 0.3)
    with pytest.raises(DownloadError, match=f"cannot download file .*({reason}).*pass --data DIR"):
        fetch([server + path], tmp_path / "file", md5=md5, advice="pass --data DIR")
    assert list(tmp_path.iterdir()) == []


def test_a_refused_connection_is_a_download_error(tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}/"
    with pytest.raises(DownloadError, match="Connection refused"):
        fetch([url], tmp_path / "file", md5=MD5, advice="")


def test_a_cache_that_cannot_be_written_is_named(server, tmp_path):
    (tmp_path / "file").write_text("no folder")
    with pytest.raises(KdcompressError, match="file"):
        fetch([f"{server}/file"], tmp_path / "file" / "below" / "name", md5=MD5, advice="")
