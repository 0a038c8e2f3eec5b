from __future__ import annotations

import contextlib
import hashlib
import os
import socket
import threading
import time
import urllib.request
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from kdcompress.data.fetch import fetch
from kdcompress.errors import DownloadError

pytestmark = pytest.mark.usefixtures("downloads")

CONTENT = b"images" * 1000
MD5 = hashlib.md5(CONTENT).hexdigest()
SHA256 = hashlib.sha256(CONTENT).hexdigest()


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
        if self.path == "/slow":
            for start in range(0, len(CONTENT), 1000):
                time.sleep(0.1)
                self.wfile.write(CONTENT[start : start + 1000])
            return
        self.wfile.write(CONTENT[:100] if self.path == "/short" else CONTENT)

    def log_message(self, *parts):
        pass


@pytest.fixture
def server():
    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as running:
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
        ("/absent", MD5, "the server answers 404 Not Found"),
        ("/file", "0" * 32, "not the published 0000"),
        ("/short", MD5, "broke after 100 of 6000 bytes|100 bytes read"),
        ("/stalled", MD5, "nothing came for 0.3 seconds"),
    ],
)
def test_a_failure_leaves_nothing_and_says_what_else_can_be_done(server, tmp_path, path, md5, reason):
    settings = {"md5": md5, "advice": "pass --data DIR", "timeout_s": 0.3}
    with pytest.raises(DownloadError, match=f"^{server}{path}: .*({reason}).*; pass --data DIR$"):
        fetch([server + path], tmp_path / "file", **settings)
    with pytest.raises(DownloadError, match=f"^cannot download file .*404.*({reason}).*; pass --data DIR$"):
        fetch([f"{server}/absent", server + path], tmp_path / "file", **settings)
    assert list(tmp_path.iterdir()) == []


def test_a_broken_file_in_its_place_is_fetched_again_where_its_hash_is_known(server, tmp_path):
    (tmp_path / "file").write_bytes(b"wrong")
    fetch([f"{server}/file"], tmp_path / "file", sha256_prefix=SHA256[:8], advice="")
    assert (tmp_path / "file").read_bytes() == CONTENT
    fetch(["http://127.0.0.1:1/"], tmp_path / "file", sha256_prefix=SHA256[:8], advice="")


def test_another_file_than_expected_is_not_kept(server, tmp_path):
    with pytest.raises(DownloadError, match=rf"its SHA-256 begins with {SHA256[:12]}, not with 00000000\)"):
        fetch([f"{server}/file"], tmp_path / "file", sha256_prefix="00000000", advice="")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (b"", "nothing came for 0.2 seconds|no connection within 0.2 seconds"),
        (b"this is no HTTP\r\n\r\n", "broke"),
    ],
)
def test_a_server_that_is_silent_or_talks_rubbish_is_given_up(tmp_path, answer, reason):
    with answering(answer) as port, pytest.raises(DownloadError, match=f"({reason}).*; the way out"):
        fetch([f"http://127.0.0.1:{port}/w"], tmp_path / "w", advice="the way out", timeout_s=0.2)
    assert list(tmp_path.iterdir()) == []


@contextlib.contextmanager
def answering(answer):
    with socket.create_server(("127.0.0.1", 0)) as server:
        connections = []

        def serve():
            connection, _ = server.accept()
            connections.append(connection)
            connection.recv(4096)
            connection.sendall(answer)

        thread = threading.Thread(target=serve)
        thread.start()
        yield server.getsockname()[1]
        thread.join()
        for connection in connections:
            connection.close()


def test_a_server_that_never_answers_is_given_up_after_the_whole_limit(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}/w"
        with pytest.raises(DownloadError, match=r"/w: no connection within 0\.2 seconds; the way out"):
            fetch([url], tmp_path / "w", advice="the way out", timeout_s=30, connect_s=0.2)
    assert list(tmp_path.iterdir()) == []


def test_a_connection_that_comes_too_late_is_closed(server, tmp_path, monkeypatch):
    """The wait may be in the lookup of its name, which has no timeout of its own."""
    released, closed, urlopen = threading.Event(), threading.Event(), urllib.request.urlopen

    def late(request, timeout):
        released.wait(30)
        response = urlopen(request, timeout=timeout)
        close = response.close
        response.close = lambda: (close(), closed.set())
        return response

    monkeypatch.setattr(urllib.request, "urlopen", late)
    with pytest.raises(DownloadError, match=r"no connection within 0\.1 seconds"):
        fetch([f"{server}/file"], tmp_path / "file", advice="", connect_s=0.1)
    released.set()
    assert closed.wait(30)


def test_a_slow_download_that_has_begun_goes_on(server, tmp_path):
    started = time.monotonic()
    fetch([f"{server}/slow"], tmp_path / "file", sha256_prefix=SHA256, advice="", connect_s=0.5)
    assert time.monotonic() - started > 0.5  # of the server's pauses
    assert (tmp_path / "file").read_bytes() == CONTENT


@pytest.mark.parametrize("path", ["/absent", "/file"])
def test_a_server_that_answers_in_time_is_heard(server, tmp_path, path):
    reason = "404" if path == "/absent" else "SHA-256 begins"
    with pytest.raises(DownloadError, match=reason):
        fetch([server + path], tmp_path / "file", sha256_prefix="0" * 8, advice="", connect_s=20)


def test_downloads_can_be_switched_off(server, tmp_path, monkeypatch):
    fetch([f"{server}/file"], tmp_path / "there", advice="")
    monkeypatch.setenv("KDCOMPRESS_OFFLINE", "1")
    fetch([f"{server}/file"], tmp_path / "there", advice="")
    message = "file is not in the cache, and KDCOMPRESS_OFFLINE switches downloads off; pass --data DIR"
    with pytest.raises(DownloadError, match=f"^{message}$"):
        fetch([f"{server}/file"], tmp_path / "file", advice="pass --data DIR")
    monkeypatch.setenv("KDCOMPRESS_OFFLINE", "0")
    fetch([f"{server}/file"], tmp_path / "file", advice="")


def test_an_address_that_is_no_url_is_a_download_error(tmp_path):
    with pytest.raises(DownloadError, match="unknown url type"):
        fetch(["nowhere"], tmp_path / "file", advice="")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_that_must_not_be_written_costs_a_notice(server, tmp_path, capsys):
    tmp_path.chmod(0o500)
    path = fetch([f"{server}/w.pth"], tmp_path / "w.pth", advice="")
    assert path.read_bytes() == CONTENT
    assert "is downloaded for this run alone" in capsys.readouterr().err


def test_a_refused_connection_is_a_download_error(tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}/"
    with pytest.raises(DownloadError, match=r"cannot be reached \(Connection refused\)"):
        fetch([url], tmp_path / "file", md5=MD5, advice="")


def test_a_cache_that_cannot_be_written_costs_a_notice_and_a_download(server, tmp_path, capsys):
    (tmp_path / "file").write_text("no folder")
    wanted = tmp_path / "file" / "below" / "name"
    path = fetch([f"{server}/file"], wanted, md5=MD5, advice="")
    assert path.read_bytes() == CONTENT
    assert f"{wanted.parent}: the cache cannot be written (Not a directory)" in capsys.readouterr().err
    assert fetch([f"{server}/absent"], wanted, md5=MD5, advice="") == path  # no second download


def test_a_folder_in_the_place_of_a_file_costs_a_notice(server, tmp_path, capsys):
    (tmp_path / "name").mkdir()
    path = fetch([f"{server}/file"], tmp_path / "name", sha256_prefix=SHA256[:8], advice="")
    assert path.read_bytes() == CONTENT
    assert "name is a folder" in capsys.readouterr().err


def test_a_pipe_or_a_huge_file_in_the_place_of_a_file_is_replaced(server, tmp_path):
    path = tmp_path / "name"
    os.mkfifo(path)
    assert fetch([f"{server}/file"], path, sha256_prefix=SHA256[:8], advice="") == path
    os.truncate(path, 1 << 40)
    assert fetch([f"{server}/file"], path, sha256_prefix=SHA256[:8], advice="") == path
    assert path.read_bytes() == CONTENT
