"""Starts device/agent.py on another machine with the system's OpenSSH client, and talks with it.

Nothing that a user wrote becomes part of a command line there: ssh is given a list of arguments, and the
line that the remote shell runs holds our own text and an interpreter's name that matches `INTERPRETER`.
No password is asked for, and only known host keys are accepted.
"""

from __future__ import annotations

import contextlib
import json
import os
import queue
import re
import shlex
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn, Self

from kdcompress.bench.answers import MOST_LINE_BYTES, read_message
from kdcompress.bench.device import agent
from kdcompress.errors import KdcompressError, TargetUnreachable, UserError, WorldError
from kdcompress.plain_text import printable

INTERPRETER = re.compile(r"(?!-)[A-Za-z0-9_./+-]+")
CONNECT_S = 15
LOGIN_TIMEOUT_S = 60
"""Time for the login and for Python to start; boards read from slow cards."""
RESPONSE_TIMEOUT_S = 120
"""Longest silence of the agent; it answers a heartbeat every ten seconds."""
HEARTBEAT_S = 10.0
GOODBYE_S = 20
"""Time for the agent to remove its folder at the end."""
_CHUNK_BYTES = 1 << 16
_LOGIN_BYTES = 1 << 16
"""Longest line of a login, and most of its error messages that is read."""
_MOST_WAITING_BYTES = 2 * MOST_LINE_BYTES
_MOST_BEATS, _MOST_ANSWERS = 100_000, 10_000_000
"""Messages in a row that say nothing, and messages of one script."""
_NOISE_LINES = 1000
"""Most lines that a login may print before the agent starts."""

_BOOT = (
    "import sys; "
    'sys.version_info < (3, 8) and sys.exit("kdcompress: Python %d.%d" % sys.version_info[:2]); '
    'sys.stdout.write("kdcompress: send\\n"); sys.stdout.flush(); '
    "eval(compile(sys.stdin.buffer.read(int(sys.stdin.buffer.readline())), "
    '"agent.py", "exec"))'
)
"""One expression that every Python can read, even one too old for the rest, without characters that a shell
changes."""
_READY = b"kdcompress: send\n"


@dataclass(frozen=True, slots=True)
class Address:
    """The address of another machine.

    Args:
        host: A name, an alias of ~/.ssh/config, or an IP address.
        user: User name; None: ssh's choice.
        port: Port; None: ssh's choice.
        python: The interpreter there.
        config: File that ssh reads in place of ~/.ssh/config.
    """

    host: str
    user: str | None = None
    port: int | None = None
    python: str = "python3"
    config: Path | None = None

    def login_command(self) -> str:
        """Formats the ssh command that a user would type to log in."""
        words = ["ssh", *([] if self.config is None else ["-F", str(self.config)])]
        words += [] if self.port is None else ["-p", str(self.port)]
        return shlex.join([*words, self.host if self.user is None else f"{self.user}@{self.host}"])

    def command(self) -> list[str]:
        """Lists the arguments of the ssh command that starts the agent."""
        settings = {
            "BatchMode": "yes",
            "StrictHostKeyChecking": "yes",
            "ConnectTimeout": CONNECT_S,
            "ServerAliveInterval": 15,
            "ServerAliveCountMax": 4,
            "LogLevel": "ERROR",
            "UpdateHostKeys": "no",
            "ClearAllForwardings": "yes",
            "ForwardAgent": "no",
            "ForwardX11": "no",
            "PermitLocalCommand": "no",
            "RemoteCommand": "none",
            "ControlMaster": "no",  # one that is there is used; a new one would outlive this
        }
        words = ["ssh", "-T", *([] if self.config is None else ["-F", str(self.config)])]
        for name, value in settings.items():
            words += ["-o", f"{name}={value}"]
        words += [] if self.user is None else ["-l", self.user]
        words += [] if self.port is None else ["-p", str(self.port)]
        assert INTERPRETER.fullmatch(self.python)
        return [*words, "--", self.host, f"exec {self.python} -c {shlex.quote(_BOOT)}"]


class Connection:
    """A running agent on another machine; the `with` block ends it, and the agent removes its files.

    Args:
        address: Address of the machine.

    Raises:
        UserError: There is no Python to run it.
        TargetUnreachable: The host does not answer, or does not let us in.
        WorldError: The disk is full there.
    """

    def __init__(self, address: Address) -> None:
        self.address = address
        self._is_started = self._is_sending = False
        self._activity = "logging in"
        if shutil.which("ssh") is None:
            raise UserError("there is no ssh here: install the OpenSSH client")
        self._process = subprocess.Popen(
            address.command(),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,  # Ctrl-C ends the agent first, then ssh
        )
        self._lines = _Lines(_MOST_WAITING_BYTES)
        self._closed = threading.Event()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        self._words = b""
        self._listener = threading.Thread(target=self._read_words, daemon=True)
        self._listener.start()
        self._writing = threading.Lock()
        self._heartbeat = threading.Thread(target=self._send_heartbeats, daemon=True)
        try:
            self._start_agent()
        except BaseException:
            self.close()
            raise
        self._heartbeat.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def put(self, name: str, source: Path) -> None:
        """Sends a file.

        Args:
            name: Its path in the folder there.
            source: The file here.
        """
        self._activity, self._is_sending = "sending files", True
        size = source.stat().st_size
        with self._writing, source.open("rb") as file:
            self._write(json.dumps({"put": name, "bytes": size}).encode() + b"\n")
            while size:
                chunk = file.read(min(_CHUNK_BYTES, size))
                if not chunk:
                    raise UserError(f"{source}: became shorter while it was sent")
                self._write(chunk)
                size -= len(chunk)
        self._is_sending = False

    def run(self, activity: str, script: str, *arguments: str) -> Iterator[dict[str, Any]]:
        """Runs a script of the folder there and yields its lines as they come.

        Args:
            activity: Name of the work, for messages.
            script: Its path in the folder.
            arguments: Its arguments.

        Raises:
            UserError: It ended with 2 and says why.
            WorldError: It ended otherwise.
        """
        with self._writing:
            self._write(json.dumps({"run": [script, *arguments]}).encode() + b"\n")
        until = time.monotonic() + agent.LIMIT_S + RESPONSE_TIMEOUT_S
        for _ in range(_MOST_ANSWERS):
            line = self._receive(min(RESPONSE_TIMEOUT_S, until - time.monotonic()))
            if time.monotonic() > until:
                break
            self._activity = activity
            if line.get("ended") is None:
                yield line
                continue
            if line["ended"] != 0:
                self._raise_failure(activity, line["ended"], line.get("words", ""))
            return
        raise TargetUnreachable(f"{self.address.host}: {activity}: it answers without end")

    def close(self) -> None:
        """Ends the agent and waits until it has removed its folder."""
        try:
            # In the middle of a file the agent would take the message for a part of it.
            if self._is_started and not self._is_sending and self._process.poll() is None:
                self._end_agent()
        finally:
            self._closed.set()
            if self._is_sending:
                self._process.terminate()  # what is left of the file would wait for a far end that reads it
            # At the end of its stdin the agent cleans up too, if it has not read the message above.
            with contextlib.suppress(OSError):
                assert self._process.stdin is not None
                self._process.stdin.close()
            try:
                self._process.wait(10 if self._is_started else 1)
            except subprocess.TimeoutExpired:
                self._process.terminate()
                self._process.wait()
            self._reader.join(5)
            self._listener.join(5)
            for stream in (self._process.stdout, self._process.stderr):
                assert stream is not None
                stream.close()

    def _start_agent(self) -> None:
        until = time.monotonic() + LOGIN_TIMEOUT_S
        source = Path(agent.__file__).read_bytes()
        for _ in range(_NOISE_LINES):  # a login may print what it likes before
            line = self._next(until)
            if line == _READY:
                break
        else:
            raise TargetUnreachable(f"{self.address.host}: its login prints without end; make it silent")
        self._write(b"%d\n" % len(source) + source)
        self._receive(until - time.monotonic())
        self._is_started = True

    def _end_agent(self) -> None:
        until = time.monotonic() + GOODBYE_S
        with contextlib.suppress(KdcompressError):
            if not self._writing.acquire(timeout=1):
                return  # a heartbeat that cannot be sent; the end of stdin ends the agent
            try:
                self._write(b'{"end": true}\n')
            finally:
                self._writing.release()
            while time.monotonic() < until and "gone" not in self._receive(until - time.monotonic()):
                pass

    def _send_heartbeats(self) -> None:
        while not self._closed.wait(HEARTBEAT_S):
            with self._writing, contextlib.suppress(KdcompressError):
                self._write(b'{"beat": 1}\n')

    def _read(self) -> None:
        assert self._process.stdout is not None
        with contextlib.suppress(ValueError):  # closed meanwhile
            while line := self._process.stdout.readline(
                MOST_LINE_BYTES if self._is_started else _LOGIN_BYTES
            ):
                self._keep(line)
        self._keep(b"")

    def _read_words(self) -> None:
        """Keeps the end of what ssh and the login write to stderr."""
        assert self._process.stderr is not None
        with contextlib.suppress(ValueError):  # closed meanwhile
            while words := os.read(self._process.stderr.fileno(), _CHUNK_BYTES):
                self._words = (self._words + words)[-_LOGIN_BYTES:]

    def _keep(self, line: bytes) -> None:
        """Waits for room and gives a line to the main thread; after the end it waits no more."""
        while True:
            with contextlib.suppress(queue.Full):
                return self._lines.put(line, timeout=0.5)
            if self._closed.is_set():
                return None

    def _write(self, content: bytes) -> None:
        assert self._process.stdin is not None
        # A pipe that nobody empties would hold this thread; at the end of ssh the write fails.
        late = threading.Timer(RESPONSE_TIMEOUT_S, self._process.terminate)
        late.daemon = True
        late.start()
        try:
            self._process.stdin.write(content)
            self._process.stdin.flush()
        except (BrokenPipeError, ValueError):
            if threading.current_thread() is self._heartbeat:
                return
            # It has ended, and its last message holds the reason.
            until = time.monotonic() + LOGIN_TIMEOUT_S
            while time.monotonic() < until:
                self._receive(until - time.monotonic())
            raise TargetUnreachable(f"{self.address.host}: it reads nothing any more, and talks on") from None
        finally:
            late.cancel()

    def _receive(self, timeout_s: float) -> dict[str, Any]:
        """Waits for the next message that is no heartbeat and no receipt."""
        for _ in range(_MOST_BEATS):
            line = self._next(time.monotonic() + timeout_s)
            message = read_message(line, self.address.host)
            if message.get("error") is not None:
                self._raise_error(message)
            if "beat" not in message and "received" not in message:
                return message
        raise TargetUnreachable(f"{self.address.host}: answers without end and says nothing")

    def _next(self, until: float) -> bytes:
        try:
            line = self._lines.get(timeout=max(0.0, until - time.monotonic()))
        except queue.Empty:
            self._process.terminate()
            raise self._late() from None
        if not line:
            self._lines.put(line)  # for the next call
            self._raise_exit()
        return line

    def _raise_error(self, message: dict[str, Any]) -> NoReturn:
        host = self.address.host
        why = message.get("message", "")
        if message["error"] == "full":
            raise disk_full(host, why)
        if message["error"] == "limit":
            raise WorldError(f"{host}: {why}, and was ended there; ask for less at a time")
        if message["error"] == "silence":
            raise self._lost(why)
        raise WorldError(f"{host}: {why}")

    def _raise_failure(self, activity: str, code: int, words: str) -> NoReturn:
        host = self.address.host
        if code == 2:
            raise UserError(f"{host}: {words}")
        if code == 5:
            raise disk_full(host, words)
        how = f"signal {_signal_name(-code)}" if code < 0 else f"code {code}"
        last_line = f"; its last words: {words}" if words else ""
        raise WorldError(f"{host}: {activity} ended with {how}{last_line}")

    def _lost(self, why: str) -> TargetUnreachable:
        return TargetUnreachable(
            f"{self.address.host}: the connection was cut while {self._activity} ({why}); what was sent is "
            "removed there without it"
        )

    def _late(self) -> TargetUnreachable:
        host = self.address.host
        return TargetUnreachable(
            f"{host}: no answer in time while {self._activity}; is it up, and is the link?"
        )

    def _raise_exit(self) -> NoReturn:
        """Raises the reason why ssh ended early."""
        host, login = self.address.host, self.address.login_command()
        try:
            code = self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            code = self._process.wait()
        if code == -signal.SIGTERM:  # by us, since it read nothing
            raise self._late()
        self._listener.join(5)
        words = printable(self._words.decode("utf-8", "replace").strip(), keep="\n")
        last = words.splitlines()[-1].strip() if words else f"ssh ended with code {code}"
        if self._is_started:
            raise self._lost(last)
        old = re.search(r"kdcompress: Python (\d+\.\d+)", words)
        if old:
            raise UserError(
                f"{host}: {self.address.python} is Python {old[1]}, and 3.8 or newer is needed; name another "
                "with --remote-python"
            )
        if code in {126, 127}:
            raise UserError(
                f"{host}: there is no {self.address.python} ({last}); install Python 3.8 or newer there, or "
                "name one with --remote-python"
            )
        if code != 255:
            raise UserError(f"{host}: {self.address.python} did not start: {last}")
        raise TargetUnreachable(_login_problem(host, login, words, last))


class _Lines(queue.Queue[bytes]):
    """A queue of lines whose bytes, not their number, are bounded."""

    def _init(self, maxsize: int) -> None:
        super()._init(maxsize)
        self.bytes = 0

    def _qsize(self) -> int:
        return self.bytes

    def _put(self, item: bytes) -> None:
        super()._put(item)
        self.bytes += len(item) + 1

    def _get(self) -> bytes:
        line: bytes = super()._get()
        self.bytes -= len(line) + 1
        return line


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return str(number)


def disk_full(host: str, what: str) -> WorldError:
    """Makes the error for a full disk on another machine.

    Args:
        host: Name of the machine.
        what: The details.
    """
    return WorldError(
        f"{host}: the disk is full ({what}); free some space there, or let TMPDIR name a folder with room"
    )


def _login_problem(host: str, login: str, words: str, last: str) -> str:
    """Explains why ssh could not log in, and what to do about it."""
    if "IDENTIFICATION HAS CHANGED" in words:
        return (
            f"{host}: its host key is not the known one: either it was set up anew, or somebody is in "
            f"between. Find out which; if it was set up anew: ssh-keygen -R, then `{login}` once by hand"
        )
    if "Host key verification failed" in words or "host key is known for" in words:
        return f"{host}: its host key is not known here; log in once by hand and check it: `{login}`"
    if "Permission denied" in words or "Too many authentication failures" in words:
        return (
            f"{host}: it does not accept our key ({last}); `{login}` must work without a password: "
            "ssh-copy-id, or ssh-add"
        )
    if "Bad configuration option" in words or "bad configuration options" in words:
        return f"{host}: ssh does not accept its configuration: {last}"
    return f"{host}: cannot be reached: {last}"
