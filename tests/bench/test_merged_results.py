"""A result of a pack and an earlier benchmark come from anywhere: a wrong one ends in one message."""

from __future__ import annotations

import copy
import json

import pytest
from bench.documents import document, result
from click.testing import CliRunner
from hostile.cases import packed_body

from kdcompress.bench import answers
from kdcompress.bench.device import main as packed
from kdcompress.bench.stats import MOST_ROUNDS
from kdcompress.cli import main


def _merge(tmp_path, body, *words):
    path = tmp_path / "result.json"
    path.write_text(json.dumps(packed.with_digest(body)))
    return CliRunner().invoke(main, ["bench", "--merge", str(path), *map(str, words)])


def _compare(tmp_path, old, *words):
    path = tmp_path / "old.json"
    path.write_text(json.dumps(old))
    return _merge(tmp_path, packed_body(), "--compare", path, *words)


def _message(done):
    """Checks that a command ended in one message with exit code 2, and returns it."""
    assert done.exit_code == 2, (done.output, done.exception)
    assert done.stderr.count("Error: ") == 1
    return done.stderr


def test_the_valid_result_is_a_benchmark(tmp_path):
    done = _merge(tmp_path, packed_body(rounds=6))
    assert done.exit_code == 0, (done.output, done.exception)


@pytest.mark.parametrize("rounds", [2, 20_000])
def test_another_number_of_rounds_than_the_job_has_is_refused(tmp_path, rounds):
    body = packed_body(rounds=rounds)
    body["job"]["protocol"]["rounds"] = 1
    assert "rounds" in _message(_merge(tmp_path, body))


def test_more_rounds_than_can_be_evaluated_are_refused_at_once(tmp_path):
    assert "rounds" in _message(_merge(tmp_path, packed_body(rounds=20_000)))


def test_more_calls_than_fit_into_a_message_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(answers, "MOST_CALLS", 5)  # the two cells have three each
    assert "6 calls, and at most 5" in _message(_merge(tmp_path, packed_body()))


def test_the_command_line_allows_no_more_rounds_than_can_be_evaluated(tmp_path):
    done = CliRunner().invoke(main, ["bench", "x.onnx", "--rounds", str(MOST_ROUNDS + 1)])
    assert f"1<=x<={MOST_ROUNDS}" in _message(done)


def _changed(path, value):
    body = copy.deepcopy(packed_body())
    *above, last = path
    place = body
    for key in above:
        place = place[key]
    if value is ...:
        del place[last]
    else:
        place[last] = value
    return body


ARTEFACT = ("job", "artefacts", "student")


@pytest.mark.parametrize(
    "body",
    [
        _changed((*ARTEFACT, "accuracy"), 7),
        _changed((*ARTEFACT, "accuracy"), {"top1": "x"}),
        _changed((*ARTEFACT, "macs"), "many"),
        _changed((*ARTEFACT, "bytes"), [1]),
        _changed((*ARTEFACT, "file"), ...),
        _changed(("job", "plan", "cells"), [7]),
        _changed(("job", "protocol"), []),
    ],
)
def test_a_wrong_part_of_a_result_is_named(tmp_path, body):
    assert "is damaged" in _message(_merge(tmp_path, body, "--fail-if", "size > 1GB"))


@pytest.mark.parametrize("body", [
    _changed((*ARTEFACT, "bytes"), ...), _changed((*ARTEFACT, "bytes"), None),
    _changed((*ARTEFACT, "macs"), ...), _changed((*ARTEFACT, "accuracy"), None),
    _changed((*ARTEFACT, "accuracy"), {"x": 1}),
])  # fmt: skip
def test_a_result_without_an_optional_figure_is_shown_without_it(tmp_path, body):
    done = _merge(tmp_path, body)
    assert done.exit_code == 0, (done.output, done.exception)


def _old(**changes):
    made = document(result("student"))
    for path, value in changes.items():
        *above, last = path.split("__")
        place = made
        for key in above:
            place = place[int(key) if key.isdecimal() else key]
        if value is ...:
            del place[last]
        else:
            place[last] = value
    return made


@pytest.mark.parametrize("changes", [
    {"artefacts": {}}, {"results__0__latency_ms__p99": "x"}, {"results__0__parity": "x"},
    {"results__0__latency_ms__min": []}, {"results__0__images": 7}, {"target": "here"},
    {"results__0__throughput_img_s": {}}, {"artefacts__student__accuracy": 7},
])  # fmt: skip
def test_a_wrong_part_of_an_earlier_benchmark_is_named(tmp_path, changes):
    assert "old.json: is damaged" in _message(
        _compare(tmp_path, _old(**changes), "--fail-if", "p99 > 1.1 * old")
    )


@pytest.mark.parametrize(("changes", "condition"), [
    ({"results__0__latency_ms__p99": ...}, "p99 > 1.1 * old"),
    ({"results__0__latency_ms__min": ...}, "min > 1000 * old"),
    ({"results__0__parity": ...}, "agreement < old"),
    ({"artefacts__student__bytes": ...}, "size > old"),
    ({"artefacts__student__params": ...}, "params > old"),
    ({"artefacts__student__macs": ...}, "macs > old"),
])  # fmt: skip
def test_a_figure_that_an_earlier_benchmark_lacks_cannot_be_told(tmp_path, changes, condition):
    done = _compare(tmp_path, _old(**changes), "--fail-if", condition)
    assert done.exit_code in {0, 3}, (done.output, done.exception)
    assert done.exit_code == 0 or "cannot be told" in done.stderr


def test_control_characters_of_a_result_never_reach_the_terminal(tmp_path):
    body = packed_body()
    body["warnings"] = ["\x1b]0;title\x07 \u202e"]
    done = _merge(tmp_path, body)
    assert done.exit_code == 0
    assert not set("\x1b\x07\u202e") & set(done.output)
