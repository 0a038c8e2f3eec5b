"""Receives files over ssh into a folder of its own, runs them there, and removes the folder at the end.

This file stands alone (standard library; Python 3.8 and newer). ssh_connection.py sends its text to a Python
that it has started over ssh. From then on each message is a line of JSON on stdin or stdout:

| in | out |
|---|---|
| `{"put": path, "bytes": n}`, then n bytes | `{"received": bytes so far}`, now and then |
| `{"run": [script, argument...]}` | the script's own lines; then `{"ended": exit code, "words": its last}` |
| `{"beat": n}` | the same |
| `{"end": true}` | `{"gone": true if the folder is removed}`, and it ends |

It begins with `{"hello": ...}`. A problem is `{"error": "full", "failed", "limit" or "silence", "message"}`,
and it ends. When the connection is closed (end of file, or no heartbeat for HEARTBEAT_TIMEOUT_S), on a signal
that ends processes, or after LIMIT_S, it ends the script, removes the folder, and ends. The script removes
the folder if this process itself is killed.
"""

from __future__ import annotations

import errno
import json
import os
import queue
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from typing import Any, Dict, List, NoReturn, Optional

HEARTBEAT_TIMEOUT_S = 90
LIMIT_S = 12 * 3600
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_READ_BYTES = 1 << 16
_REPORT_S = 2


class ConnectionClosed(Exception):
    """The other side has gone, or the time is up.

    Args:
        message: Message to the other side, if it still listens.
    """

    def __init__(self, message: Optional[Dict[str, Any]] = None) -> None:
        self.message = message
        super().__init__()


class RemoteAgent:
    """The folder, the running script and the messages of one connection."""

    def __init__(self) -> None:
        self.child: Optional[subprocess.Popen[bytes]] = None
        self.buffer = b""
        self.limit = time.monotonic() + LIMIT_S
        # A thread of its own writes: a pipe that is full must not keep this process from cleaning up.
        self.out: "queue.Queue[Optional[bytes]]" = queue.Queue()
        self.writer = threading.Thread(target=self._write, daemon=True)
        self.writer.start()
        self.folder = self.scratch = ""
        self.closing = False

    def serve(self) -> None:
        """Carries out messages until the connection is closed."""
        self.folder = tempfile.mkdtemp(prefix="kdcompress-")
        self.scratch = os.path.join(self.folder, "scratch")
        os.mkdir(self.scratch)
        self.send(hello=sys.version.split()[0])
        while True:
            message = json.loads(self._line())
            if "put" in message:
                self._put(message["put"], message["bytes"])
            elif "run" in message:
                self._run(message["run"])
            elif "beat" in message:
                self.send(**message)
            else:
                raise ConnectionClosed()

    def send(self, **message: Any) -> None:
        """Queues a message to the other side."""
        self.out.put((json.dumps(message) + "\n").encode("ascii"))

    def flush(self) -> None:
        """Waits until all messages are sent, or the other side is gone."""
        self.out.put(None)
        self.writer.join(5)

    def close(self) -> bool:
        """Ends the script and removes the folder; true if the folder is gone."""
        self.closing = True
        if self.child is not None and self.child.poll() is None:
            try:
                os.killpg(self.child.pid, signal.SIGKILL)  # its workers follow: they die with their parent
            except ProcessLookupError:
                pass
            self.child.wait()
        for _ in range(50):
            if not self.folder or not os.path.exists(self.folder):
                return True
            shutil.rmtree(self.folder, ignore_errors=True)
            time.sleep(0.1)  # a worker that is just ending may have written once more
        return False

    def _put(self, name: str, left: int) -> None:
        path = os.path.realpath(os.path.join(self.folder, name))
        if not path.startswith(os.path.realpath(self.folder) + os.sep):
            raise ValueError("%r is outside of the folder" % name)
        os.makedirs(os.path.dirname(path), exist_ok=True)
        total, reported = 0, time.monotonic()
        with open(path, "wb", buffering=0) as file:
            while total < left:
                if not self.buffer:
                    self._fill()
                part = memoryview(self.buffer)[: left - total]
                written = file.write(part)
                total += written
                self.buffer = self.buffer[written:]
                if time.monotonic() - reported > _REPORT_S:
                    self.send(received=total)
                    reported = time.monotonic()

    def _run(self, command: List[str]) -> None:
        words = tempfile.TemporaryFile(dir=self.folder)
        self.child = subprocess.Popen(
            [sys.executable, os.path.join(self.folder, command[0]), *command[1:]],
            stdin=subprocess.PIPE,  # at its end the child sees that this process is gone
            stdout=subprocess.PIPE,
            stderr=words,
            cwd=self.folder,
            env=dict(os.environ, TMPDIR=self.scratch, PYTHONDONTWRITEBYTECODE="1"),
            start_new_session=True,
        )
        threading.Thread(target=self._relay, args=(self.child, words), daemon=True).start()

    def _relay(self, child: "subprocess.Popen[bytes]", words: Any) -> None:
        assert child.stdout is not None
        for line in child.stdout:
            self.out.put(line)
        code = child.wait()
        if self.closing:
            return  # this process has ended it
        words.seek(0)
        last = words.read().decode("utf-8", "replace").strip().splitlines()[-1:]
        self.send(ended=code, words="".join(last))

    def _line(self) -> bytes:
        while b"\n" not in self.buffer:
            self._fill()
        line, _, self.buffer = self.buffer.partition(b"\n")
        return line

    def _fill(self) -> None:
        silence_end = time.monotonic() + HEARTBEAT_TIMEOUT_S
        while not select.select([0], [], [], 1)[0]:
            now = time.monotonic()
            if now > self.limit:
                raise ConnectionClosed(
                    {"error": "limit", "message": "it took more than %d h" % (LIMIT_S // 3600)}
                )
            if now > silence_end:
                raise ConnectionClosed(
                    {"error": "silence", "message": "nothing was heard for %d s" % HEARTBEAT_TIMEOUT_S}
                )
        read = os.read(0, _READ_BYTES)
        if not read:
            raise ConnectionClosed()
        self.buffer += read

    def _write(self) -> None:
        for line in iter(self.out.get, None):
            try:
                while line:
                    line = line[os.write(1, line) :]
            except OSError:
                return  # the other side is gone; stdin ends too


def _stop(number: int, frame: Any) -> NoReturn:
    raise ConnectionClosed()


def main() -> None:
    """Serves a connection and cleans up at its end."""
    # Started with -c: the current folder, which is the user's home, must not shadow modules.
    sys.path[:] = [place for place in sys.path if place]
    agent = RemoteAgent()
    message: Optional[Dict[str, Any]] = None
    try:
        for number in (signal.SIGHUP, signal.SIGTERM, signal.SIGINT):
            signal.signal(number, _stop)
        agent.serve()
    except ConnectionClosed as closed:
        message = closed.message
    except OSError as error:
        message = {"error": "full" if error.errno in FULL else "failed", "message": str(error)}
    except ValueError as error:
        message = {"error": "failed", "message": str(error)}
    finally:
        for number in (signal.SIGHUP, signal.SIGTERM, signal.SIGINT, signal.SIGPIPE):
            signal.signal(number, signal.SIG_IGN)  # not in the middle of this
        gone = agent.close()
    if message is not None:
        agent.send(**message)
    agent.send(gone=gone)
    agent.flush()
    os._exit(0)  # at once: a thread may still wait for input


if __name__ == "__main__":
    main()
