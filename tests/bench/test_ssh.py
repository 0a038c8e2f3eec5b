"""Over a real OpenSSH server: what is measured, what is said when it cannot be, and nothing left behind."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from bench import ssh_server
from bench.mean_classifier import mean_classifier
from click.testing import CliRunner

from kdcompress.bench import ssh_connection
from kdcompress.bench.measure import Artefact, Protocol, measure
from kdcompress.bench.targets import parse_target
from kdcompress.cli import main
from kdcompress.deploy.golden_file import Picker, write_golden
from kdcompress.errors import TargetUnreachable, UserError, WorldError
from kdcompress.tasks import CLASSIFICATION
from kdcompress.tools import bench as timing

LACKING = ssh_server.lacking()
pytestmark = pytest.mark.skipif(LACKING is not None, reason=str(LACKING))
SHORT = Protocol(block_s=0.01, turns=1, min_calls=2, warmup_s=0, gap_ms=0)


@pytest.fixture(autouse=True)
def _short(monkeypatch):
    monkeypatch.setattr(timing, "PROTOCOL", SHORT)


@pytest.fixture(scope="module")
def running(tmp_path_factory):
    server = ssh_server.start(tmp_path_factory.mktemp("server"))
    yield server
    server.process.terminate()
    server.process.wait()


@pytest.fixture
def server(running):
    """And when the test is over, nothing may be left there."""
    yield running
    assert running.is_clean(), os.listdir(running.there)


@pytest.fixture(scope="module")
def python(tmp_path_factory):
    return ssh_server.full_python(tmp_path_factory.mktemp("full") / "venv")


@pytest.fixture
def file(tmp_path):
    """With the golden images that a run keeps beside it."""
    path = mean_classifier(tmp_path / "student.onnx")
    images = torch.arange(5 * 64, dtype=torch.float32).reshape(5, 1, 8, 8) / 512
    outputs = images.mean((1, 2, 3))[:, None] * torch.tensor([1.0, 2.0, 3.0])
    picker = Picker()
    for _ in picker.through([(images, torch.full((5,), -1))]):
        pass
    write_golden(tmp_path / "golden.npz", picker, outputs, limit=5e-3, task=CLASSIFICATION)
    return path


@pytest.fixture
def kdcompress(server, python):
    def run(*arguments, config=None, at="ssh://board", interpreter=python):
        told = ["bench", "--target", at, "--ssh-config", config or server.config(), "--threads", "1"]
        told += ["--rounds", "1", "--remote-python", interpreter, *arguments]
        return CliRunner().invoke(main, [str(word) for word in told])

    return run


def _script(path, text):
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return path


def test_a_file_is_proved_on_its_golden_images_and_timed_there(kdcompress, file, server):
    done = kdcompress(file, "--threads", "1,all", "--json", "-q")
    assert (done.exit_code, done.stderr) == (0, "")
    document = json.loads(done.stdout)
    assert document["target"] == {"kind": "ssh", "host": "board"}
    assert set(document["env"]["runtimes"]) == {"onnxruntime"}
    assert document["env"]["granted_cores"] == max(r["threads"] for r in document["results"])
    for result in document["results"]:
        assert result["parity"]["to"] == "the reference"
        assert (result["parity"]["n"], result["images"]) == (5, "real")
        assert not any("unverified" in warning for warning in result["warnings"])
    assert set(document["artefacts"]["student"]) == {"file", "sha256", "bytes", "params", "macs", "precision"}


def test_without_golden_images_it_is_said_to_be_unverified(kdcompress, file):
    (file.parent / "golden.npz").unlink()
    (result,) = json.loads(kdcompress(file, "--json").stdout)["results"]
    assert result["parity"] is None
    assert any(warning.startswith("unverified") for warning in result["warnings"])


def test_a_file_that_gives_other_outputs_there_is_not_timed(kdcompress, file):
    arrays = dict(np.load(file.parent / "golden.npz"))
    np.savez(file.parent / "golden.npz", **arrays | {"logits": arrays["logits"] + 0.5})
    done = kdcompress(file)
    assert done.exit_code == 3
    assert "its outputs differ from those of the reference by 0.5, more than" in done.stderr


def test_tensors_beside_the_file_go_along(kdcompress, file):
    import onnx

    graph = onnx.load(file)
    onnx.save_model(graph, file, save_as_external_data=True, location="weights.bin", size_threshold=0)
    done = kdcompress(file, "--json")
    assert done.exit_code == 0, done.stderr
    assert json.loads(done.stdout)["results"][0]["parity"]["max_err_over_spread"] < 1e-4
    graph = onnx.load(file, load_external_data=False)
    graph.graph.initializer[0].external_data[0].value = "../weights.bin"
    onnx.save_model(graph, file)
    done = kdcompress(file)
    assert done.exit_code == 2
    assert "keeps tensors outside of its folder ('../weights.bin')" in done.stderr


def test_what_a_login_prints_is_no_answer_of_ours(kdcompress, file, python, tmp_path):
    noisy = _script(tmp_path / "noisy", f'echo "Welcome!"; echo "{{}}"; exec {python} "$@"')
    assert kdcompress(file, interpreter=noisy).exit_code == 0


def test_nobody_there_is_4(kdcompress, file, server):
    done = kdcompress(file, config=server.config(Port=1))
    assert done.exit_code == 4
    assert "Error: board: cannot be reached: " in done.stderr
    assert "Connection refused" in done.stderr
    assert done.stderr.count("\n") == 1


def test_a_key_that_it_does_not_know_is_4(kdcompress, file, server):
    done = kdcompress(file, config=server.config(IdentityFile=server.folder / "other_key"))
    assert done.exit_code == 4
    assert "board: it does not accept our key" in done.stderr
    assert "must work without a password" in done.stderr


@pytest.mark.parametrize(
    ("hosts", "message"),
    [
        ("/dev/null", "its host key is not known here; log in once by hand and check it: `ssh -F "),
        ("other_known_hosts", "its host key is not the known one"),
    ],
)
def test_a_host_key_that_is_unknown_or_another_is_4(kdcompress, file, server, hosts, message):
    done = kdcompress(file, config=server.config(UserKnownHostsFile=server.folder / hosts))
    assert done.exit_code == 4
    assert message in done.stderr
    assert done.stderr.count("\n") == 1


def test_no_python_there_is_2(kdcompress, file):
    done = kdcompress(file, interpreter="no-python-of-this-name")
    assert done.exit_code == 2
    assert "board: there is no no-python-of-this-name" in done.stderr


def test_too_old_a_python_there_is_2(kdcompress, file, python, tmp_path):
    (tmp_path / "old.py").write_text(
        "import sys\nsys.version_info = (3, 6, 9, 'final', 0)\nexec(sys.argv[2])\n"
    )
    old = _script(tmp_path / "old", f'exec {python} {tmp_path}/old.py "$@"')
    done = kdcompress(file, interpreter=old)
    assert done.exit_code == 2
    assert "is Python 3.6, and 3.8 or newer is needed" in done.stderr


def test_no_numpy_or_no_onnxruntime_there_is_2(kdcompress, file, tmp_path):
    for packages, absent in (((), "numpy"), ((np,), "onnxruntime")):
        python = ssh_server.bare_python(tmp_path / absent, *packages)
        done = kdcompress(file, interpreter=python)
        assert done.exit_code == 2
        assert f"Error: there is no {absent} on board: install it" in done.stderr


def test_too_old_an_onnxruntime_there_is_2_and_told_before_anything_is_sent(kdcompress, file, monkeypatch):
    import onnxruntime

    monkeypatch.setattr(ssh_connection.Connection, "put", _no_model(ssh_connection.Connection.put))
    mean_classifier(file, opset=60)
    done = kdcompress(file)
    assert done.exit_code == 2
    assert f"Error: onnxruntime {onnxruntime.__version__} on board supports opset <= " in done.stderr
    assert "; student.onnx uses 60. Export again with --opset " in done.stderr
    mean_classifier(file, ir=60)
    done = kdcompress(file)
    assert done.exit_code == 2
    assert "reads ONNX IR versions <= " in done.stderr
    done = kdcompress(mean_classifier(file), "--runtime", "openvino")
    assert done.exit_code == 2
    assert "there is no openvino on board" in done.stderr


def _no_model(put):
    def checked(self, name, source):
        assert not name.startswith("files/")
        put(self, name, source)

    return checked


def test_a_file_that_may_not_grow_there_is_5(kdcompress, file, python, tmp_path):
    _grow(file)
    limited = _script(tmp_path / "limited", f'ulimit -f 100; exec {python} "$@"')  # of 512 bytes
    done = kdcompress(file, interpreter=limited)
    assert done.exit_code == 5
    assert "Error: board: the disk is full (" in done.stderr


@pytest.mark.skipif(
    sys.platform != "linux" or os.geteuid() != 0 or shutil.which("mount") is None, reason="needs to mount"
)
def test_a_full_disk_there_is_5(kdcompress, file, python, tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", disk], check=False)
    if mounted.returncode:
        pytest.skip("may not mount")
    try:
        there = _script(tmp_path / "there", f'export TMPDIR={disk}; exec {python} "$@"')
        done = kdcompress(file, interpreter=there)
        assert done.exit_code == 5
        assert "board: the disk is full (1 MB are free, 16 MB are needed); free some" in done.stderr
        assert os.listdir(disk) == []
        # And where it fills while files arrive.
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("kdcompress.bench.ssh_target.ROOM_BYTES", -(10**9))
            done = kdcompress(_grow(file), interpreter=there)
        assert done.exit_code == 5
        assert "board: the disk is full ([Errno 28] No space left on device); free some" in done.stderr
        assert os.listdir(disk) == []
    finally:
        # Whoever wrote there has said so and is about to end; until then the disk is in use.
        _wait_until(
            lambda: subprocess.run(["umount", disk], capture_output=True, check=False).returncode == 0
        )


def _grow(file):
    import onnx

    graph = onnx.load(file)
    more = onnx.numpy_helper.from_array(np.random.default_rng(0).random(500_000, np.float32), "more")
    graph.graph.initializer.append(more)
    onnx.save(graph, file)
    return file


def _measure(server, python, file, progress=None):
    target = parse_target("ssh://board", remote_python=str(python), ssh_config=server.config())
    endless = Protocol(block_s=0.2, turns=1, min_calls=2, warmup_s=0)
    return measure(
        [Artefact("student", file)], rounds=1000, protocol=endless, target=target, progress=progress
    )


def test_a_cut_connection_is_4_and_the_other_side_cleans_up(server, python, file):
    def cut(done, of, what):
        if what == "timing round 2 of 1000":
            server.kill(lambda process: process.name().startswith("sshd"))

    with pytest.raises(TargetUnreachable, match="board: the connection was cut while measuring") as caught:
        _measure(server, python, file, cut)
    assert caught.value.exit_code == 4


def test_a_far_end_that_is_killed_leaves_nothing_either(server, python, file):
    def kill(done, of, what):
        if what == "timing round 2 of 1000":
            server.kill(lambda process: "-c" in process.cmdline() and process.name().startswith("python"))

    with pytest.raises(TargetUnreachable, match="the connection was cut while measuring"):
        _measure(server, python, file, kill)


def test_one_that_does_not_answer_is_4(kdcompress, file, tmp_path, monkeypatch):
    monkeypatch.setattr(ssh_connection, "LOGIN_TIMEOUT_S", 1)
    done = kdcompress(file, interpreter=_script(tmp_path / "slow", "exec sleep 20"))
    assert done.exit_code == 4
    assert "board: no answer in time while logging in" in done.stderr


HANGING = "import sys, time\nprint('{}', flush=True)\ntime.sleep(600)\n"
LINKED = """
import signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)  # a test run in the background ignores it
from pathlib import Path
from kdcompress.bench.ssh_connection import Address, Connection
with Connection(Address("board", python=sys.argv[1], config=Path(sys.argv[2]))) as link:
    link.put("hanging.py", Path(sys.argv[3]))
    for line in link.run("hanging", "hanging.py"):
        print("hangs", flush=True)
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL], ids=lambda number: number.name)
def test_ctrl_c_and_a_kill_here_leave_nothing_there(server, python, tmp_path, number):
    (tmp_path / "hanging.py").write_text(HANGING)
    words = [sys.executable, "-c", LINKED, python, server.config(), tmp_path / "hanging.py"]
    process = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    try:
        assert process.stdout.readline() == b"hangs\n"
        assert os.listdir(server.there) != []
        process.send_signal(number)
        process.communicate(timeout=WAIT_S)
    finally:
        process.kill()  # one that is still there would fail the tests that follow, too
        process.communicate()
    if number == signal.SIGINT:  # it has waited until all is removed there
        assert os.listdir(server.there) == []


def test_a_near_end_that_falls_silent_is_given_up(python, server, tmp_path, monkeypatch):
    """A link that is dead without an end of file: no beat comes any more.

    The far end's clock is a file here, so that 90 seconds pass when the test says so.
    """
    clock, source = tmp_path / "clock", tmp_path / "agent.py"

    def pass_time(to_s):
        (tmp_path / "clock.part").write_text(str(to_s))
        (tmp_path / "clock.part").replace(clock)

    pass_time(0)
    real = Path(ssh_connection.agent.__file__).read_text()
    assert "HEARTBEAT_TIMEOUT_S = 90\n" in real
    source.write_text(real.replace("import time\n", f"import time\n{FILE_CLOCK.format(str(clock))}\n", 1))
    monkeypatch.setattr(ssh_connection.agent, "__file__", str(source))
    monkeypatch.setattr(ssh_connection, "HEARTBEAT_S", 0.1)
    (tmp_path / "hanging.py").write_text(HANGING)
    with ssh_connection.Connection(
        ssh_connection.Address("board", python=str(python), config=server.config())
    ) as link:
        link.put("hanging.py", tmp_path / "hanging.py")
        lines = link.run("hanging", "hanging.py")
        next(lines)
        _wait_until(lambda: link._lines.qsize() >= 2)  # beats are sent and answered by themselves
        for number, to_s in enumerate((60, 120, 180), 100):
            pass_time(to_s)
            _beat(link, number)  # and what was heard at this time keeps it for 90 seconds more
        assert os.listdir(server.there) != []
        link._closed.set()
        link._heartbeat.join()
        _beat(link, 999)  # the far end has read every beat: one that it read later would keep it
        # More than once: the far end may have answered and not looked at the time yet for its next wait.
        times = iter(range(1000, ssh_connection.agent.LIMIT_S, 10))

        def has_given_up():
            pass_time(next(times))
            return os.listdir(server.there) == []

        _wait_until(has_given_up)
        with pytest.raises(TargetUnreachable, match="the connection was cut while hanging"):
            next(lines)
        assert server.is_clean()


FILE_CLOCK = "time.monotonic = lambda: float(open({!r}).read())"


def _beat(link, number):
    """Sends a beat of this number and waits for its answer; other answers are thrown away."""
    with link._writing:
        link._write(b'{"beat": %d}\n' % number)
    while json.loads(link._lines.get(timeout=WAIT_S)) != {"beat": number}:
        pass


WAIT_S = 120
"""For what must happen some time; how soon depends on what else the machine does."""


def _wait_until(is_so):
    until = time.monotonic() + WAIT_S
    while not is_so():
        assert time.monotonic() < until, "it never came to be"
        time.sleep(0.05)


def test_a_connection_closed_in_the_middle_of_a_file_is_cut(python, server, tmp_path, monkeypatch):
    """A message to end would be taken for a part of the file, and its answer waited for in vain."""
    monkeypatch.setattr(ssh_connection.Connection, "_end_agent", lambda self: pytest.fail("sent a message"))
    (tmp_path / "short").write_bytes(bytes(1000))
    source = SimpleNamespace(stat=lambda: SimpleNamespace(st_size=2000), open=(tmp_path / "short").open)
    address = ssh_connection.Address("board", python=str(python), config=server.config())
    with pytest.raises(UserError, match="became shorter"), ssh_connection.Connection(address) as connection:
        connection.put("short", source)
    # The far end clears up when it finds its input closed, which nobody here waits for.
    _wait_until(lambda: os.listdir(server.there) == [])


def test_files_stay_within_the_folder(python, server, tmp_path):
    (tmp_path / "out.txt").write_text("x")
    with (
        ssh_connection.Connection(
            ssh_connection.Address("board", python=str(python), config=server.config())
        ) as link,
        pytest.raises(WorldError, match="is outside of the folder"),
    ):
        _put_and_run(link, "../out.txt", tmp_path / "out.txt")


def _put_and_run(link, name, file):
    link.put(name, file)
    list(link.run("running", name))


def test_two_can_measure_there_at_once(server, python, file):
    target = parse_target("ssh://board", remote_python=str(python), ssh_config=server.config())

    def one(_):
        return measure([Artefact("student", file)], rounds=1, protocol=SHORT, target=target)

    with ThreadPoolExecutor(2) as pool:
        documents = list(pool.map(one, range(2)))
    assert all(len(document["results"]) == 1 for document in documents)
