"""A real OpenSSH server on the loopback, and a bare Python without torch for it to start."""

from __future__ import annotations

import contextlib
import getpass
import os
import re
import shutil
import socket
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnxruntime
import psutil

SSHD = shutil.which("sshd", path=os.environ.get("PATH", "") + ":/usr/sbin:/sbin:/usr/local/sbin")


def lacking():
    """Why there is no server; None if there is one."""
    if sys.platform == "win32" or SSHD is None:
        return "needs OpenSSH's sshd (Debian: apt-get install openssh-server)"
    return None if shutil.which("ssh") and shutil.which("ssh-keygen") else "needs the OpenSSH client"


def bare_python(folder, *packages):
    """An interpreter that has these packages and no others; nothing is downloaded."""
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder], check=True)
    (site,) = folder.glob("lib/python*/site-packages")
    for package in packages:
        home = Path(package.__file__).parent
        for part in (home, home.with_name(home.name + ".libs")):
            if part.exists():
                (site / part.name).symlink_to(part)
    return folder / "bin" / "python"


def full_python(folder):
    """One with all that a target needs."""
    return bare_python(folder, np, onnxruntime)


@dataclass
class Server:
    """A server that has started.

    Args:
        process: The sshd that listens.
        port: On 127.0.0.1.
        folder: Of its keys and its log.
        there: What the other side takes for its folder of temporary files.
    """

    process: subprocess.Popen
    port: int
    folder: Path
    there: Path

    def config(self, name="config", **changes):
        """A client's configuration in which the server is called `board`."""
        settings = {
            "HostName": "127.0.0.1",
            "Port": self.port,
            "User": getpass.getuser(),
            "IdentityFile": self.folder / "user_key",
            "IdentitiesOnly": "yes",
            "IdentityAgent": "none",
            "UserKnownHostsFile": self.folder / "known_hosts",
            "GlobalKnownHostsFile": "none",
        } | changes
        path = self.folder / name
        path.write_text("Host board\n" + "".join(f"  {key} {value}\n" for key, value in settings.items()))
        return path

    def sessions(self):
        """The processes of those who are logged in, and what these have started."""
        return psutil.Process(self.process.pid).children(recursive=True)

    def kill(self, is_meant):
        """Kills the processes of the sessions that a predicate picks.

        One that has ended, because another was killed before it, needs no killing: on a busy machine that
        happens between listing the processes and asking for their names.
        """
        for process in self.sessions():
            with contextlib.suppress(psutil.NoSuchProcess):
                if is_meant(process):
                    process.kill()

    def is_clean(self, seconds=60.0):
        """Waits until nothing is left there; False if something still is after so long."""
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            if not os.listdir(self.there) and not self._strays():
                return True
            time.sleep(0.1)
        return False

    def _strays(self):
        found = []
        for process in psutil.process_iter():
            try:
                if any(str(self.there) in word for word in process.cmdline()):
                    found.append(process)
            except psutil.Error:
                continue
        return found


def _version():
    told = subprocess.run(["ssh", "-V"], capture_output=True, text=True, check=True).stderr
    found = re.search(r"OpenSSH_(?:for_Windows_)?(\d+)\.(\d+)", told)
    return (int(found[1]), int(found[2])) if found else (0, 0)


def start(folder):
    """A server of its own keys that lets this user in with one of its own."""
    there = folder / "there"
    there.mkdir()
    for name in ("host_key", "other_host_key", "user_key", "other_key"):
        keygen = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "", "-f", folder / name]
        subprocess.run(keygen, check=True)
    if os.geteuid() == 0:
        os.makedirs("/run/sshd", mode=0o755, exist_ok=True)  # where a server of root's own keeps nothing
    for _ in range(5):  # another program may take the free port before the server does
        process, port = _listen(folder, there)
        if port is not None:
            break
    else:
        raise RuntimeError((folder / "sshd.log").read_text())
    for hosts, key in (("known_hosts", "host_key"), ("other_known_hosts", "other_host_key")):
        public = (folder / f"{key}.pub").read_text()
        (folder / hosts).write_text(f"[127.0.0.1]:{port} {public}")
    return Server(process, port, folder, there)


def _listen(folder, there):
    """Starts sshd on a free port and waits until it says that it listens; no port where it ended instead."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    (folder / "sshd_config").write_text(
        f"ListenAddress 127.0.0.1\nPort {port}\nHostKey {folder}/host_key\nPidFile {folder}/sshd.pid\n"
        f"AuthorizedKeysFile {folder}/user_key.pub\nStrictModes no\nUsePAM no\nPasswordAuthentication no\n"
        "KbdInteractiveAuthentication no\nPermitRootLogin yes\nMaxStartups 100\nLoginGraceTime 0\n"
        f"SetEnv TMPDIR={there} OMP_NUM_THREADS=1\n"
        # Who has shown a wrong key is kept out for a while, and the next test comes from the same place.
        + ("PerSourcePenalties no\n" if _version() >= (9, 8) else "")
    )
    command, log = [SSHD, "-D", "-e", "-f", folder / "sshd_config"], folder / "sshd.log"
    with log.open("wb") as file:
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stderr=file)
    # That something answers on the port would not show that it is this server.
    while process.poll() is None:
        if f"Server listening on 127.0.0.1 port {port}." in log.read_text():
            return process, port
        time.sleep(0.05)
    return process, None
