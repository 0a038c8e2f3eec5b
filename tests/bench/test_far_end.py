"""A far end is not trusted: an answer that is not ours ends in exit code 4, in bounded memory."""

from __future__ import annotations

import resource
from pathlib import Path

import pytest
from click.testing import CliRunner
from hostile import far_end

from kdcompress.bench import ssh_connection
from kdcompress.bench.measure import Protocol
from kdcompress.cli import main
from kdcompress.tools import bench as timing

GRAPH = Path(__file__).parent.parent / "fixtures" / "e33f4e2" / "finished" / "student.onnx"


@pytest.fixture
def bench(tmp_path, monkeypatch):
    monkeypatch.setattr(timing, "PROTOCOL", Protocol(0.01, 1, 2, 0, 0))
    monkeypatch.setattr(ssh_connection, "GOODBYE_S", 1)
    monkeypatch.setattr(ssh_connection.shutil, "which", lambda name: name)

    def run(script):
        words = far_end.command(tmp_path, script)
        monkeypatch.setattr(ssh_connection.Address, "command", lambda self: words)
        options = ["--target", "ssh://far", "--rounds", "1", "--threads", "1", "--json", "-q"]
        return CliRunner().invoke(main, ["bench", str(GRAPH), *options])

    return run


def test_the_valid_answers_are_a_benchmark(bench):
    done = bench(far_end.transcript(far_end.valid()))
    assert done.exit_code == 0, (done.output, done.exception)


def _with(number, change):
    messages = far_end.valid()
    change(messages[number])
    return far_end.transcript(messages)


WRONG = {
    "a list": b"[1, 2]\n",
    "a number": b"7\n",
    "it tells a blank": _with(3, lambda m: m.update(tell=[1, 2, "\u00a0"])),
    "it tells what no measurement does": _with(3, lambda m: m.update(tell=[1, 2, "mining"])),
    "null": b"null\n",
    "no utf-8": b"\xff\xfe\n",
    "deep": b"[" * 5000 + b"\n",
    "error is a number": b'{"error": 7}\n',
    "ended is text": far_end.transcript([{"hello": ""}, {"ended": "now"}]),
    "no preflight": far_end.transcript([{"hello": ""}, {"ended": 0, "words": ""}]),
    "preflight is a list": _with(1, lambda m: m.update(preflight=[])),
    "no facts": _with(1, lambda m: m["preflight"].pop("facts")),
    "cores are text": _with(1, lambda m: m["preflight"]["facts"].update(granted_cores="many")),
    "free is null": _with(1, lambda m: m["preflight"].update(free=None)),
    "problem of no kind": _with(1, lambda m: m["preflight"].update(problems=[{}])),
    "problem that lacks its version": _with(1, lambda m: m["preflight"].update(problems=[{"kind": "ir"}])),
    "tell is short": _with(3, lambda m: m.update(tell=[1])),
    "tell is empty text": _with(3, lambda m: m.update(tell=[1, 2, ""])),
    "no result": far_end.transcript([m for m in far_end.valid() if "result" not in m]),
    "too few cells": far_end.transcript(far_end.valid(cells=1)),
    "no rounds": far_end.transcript(far_end.valid(rounds=0)),
    "more rounds than the plan has": far_end.transcript(far_end.valid(rounds=20_000)),
    "one round too many": far_end.transcript(far_end.valid(rounds=2)),
    "samples are text": _with(
        4, lambda m: m["result"]["raw"]["cells"][0]["blocks"][0].update(samples_ns="x")
    ),
    "NaN": far_end.transcript(far_end.valid()).replace(b'"wall_s": 0.1', b'"wall_s": NaN'),
    "a failure of no cell": _with(
        4,
        lambda m: m["result"]["raw"]["failures"].append({"cell": 99, "stage": "", "type": "", "message": ""}),
    ),
    "beats without end": b'{"hello": ""}\n' + b'{"beat": 1}\n' * 200_000,
}


@pytest.mark.parametrize("script", WRONG.values(), ids=WRONG.keys())
def test_a_wrong_answer_ends_in_exit_code_4(bench, script):
    done = bench(script)
    assert done.exit_code == 4, (done.output, done.exception)
    assert done.stderr.startswith("Error: far: ")


def test_an_endless_line_takes_bounded_memory(bench):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    done = bench(b'{"hello": ""}\n ENDLESS')
    assert done.exit_code == 4, (done.output, done.exception)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 1_000_000


def test_a_far_end_that_talks_on_after_its_answers_is_left(bench):
    answers = far_end.valid()
    assert answers.pop() == {"gone": True}
    done = bench(far_end.transcript(answers) + b" TALKING")
    assert done.exit_code == 0, done.output


def test_a_far_end_that_reads_nothing_and_talks_on_ends_in_exit_code_4(bench, monkeypatch):
    monkeypatch.setattr(ssh_connection, "LOGIN_TIMEOUT_S", 5)
    done = bench(far_end.transcript(far_end.valid()[:3]) + b" DEAFLY!")
    assert done.exit_code == 4, done.output


def test_a_far_end_that_reads_nothing_and_says_nothing_ends_in_exit_code_4(bench, monkeypatch):
    monkeypatch.setattr(ssh_connection, "RESPONSE_TIMEOUT_S", 3)
    write = ssh_connection.Connection._write

    def flood(self, content):
        # More than a pipe takes, as a file of the job is on a real link.
        write(self, content + b" " * (4 << 20) if b'"put"' in content else content)

    monkeypatch.setattr(ssh_connection.Connection, "_write", flood)
    done = bench(far_end.transcript(far_end.valid()[:3]) + b"  STILL!")
    assert done.exit_code == 4, done.output


def test_endless_words_on_stderr_take_bounded_memory(bench):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    done = bench(far_end.transcript(far_end.valid()) + b" LOUDLY!")
    assert done.exit_code == 0, done.output
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100_000  # kB


def test_control_characters_never_reach_the_terminal(bench):
    done = bench(far_end.transcript([{"hello": ""}, {"error": "failed", "message": "\x1b[2J\x07gone\u2028"}]))
    assert done.exit_code == 2  # as if numpy there were built for another processor
    assert not {"\x1b", "\x07", "\u2028"} & set(done.stderr)
    assert r"\x1b[2J\x07gone\u2028" in done.stderr
