"""A condition is judged for the results it is about; what cannot be told fails, and nonsense is said."""

from __future__ import annotations

import re

import pytest
from bench.documents import document, result
from click.testing import CliRunner

from kdcompress.bench.conditions import Condition
from kdcompress.bench.metrics import METRICS
from kdcompress.cli import main
from kdcompress.errors import UserError

TEACHER = result("teacher", 20.0)
STUDENT = result("student", 4.0, base="teacher", ratio=5.0)


def _held(text, *results, old=None):
    """The artefacts and settings that it holds for."""
    said = Condition(text).failures(document(*(results or (TEACHER, STUDENT))), old)
    prefix = f"--fail-if {text!r}: "
    assert all(sentence.startswith(prefix) for sentence in said)
    return [sentence.removeprefix(prefix) for sentence in said]


@pytest.mark.parametrize(
    ("text", "artefacts"),
    [
        ("p50 > 5ms", ["teacher"]),
        ("p50 > 5", ["teacher"]),
        ("p50 >= 4ms", ["teacher", "student"]),
        ("p50 > 0.004 s", ["teacher"]),
        ("p50 > 25000us", []),
        ("student.p50 > 5ms", []),
        ("student.p50 < 5ms", ["student"]),
        ("student.p50 > teacher.p50 / 4", []),
        ("student.p50 > teacher.p50 / 6", ["student"]),
        ("student.p50 * 6 > teacher.p50", ["student"]),
        ("student.ratio < 2", []),
        ("student.ratio_low < 4.95", ["student"]),
        ("student.ratio_high < 5.05", []),
        ("rss > 91MB and p50 < 5ms", ["student"]),
        ("p50 < 1ms or first >= 4ms", ["teacher", "student"]),
        ("p50 > 30ms or p50 < 5 and rss > 1GB", []),
        ("(p90 - min) / p50 > 0.29", ["teacher", "student"]),
        ("size == 2MB", ["teacher", "student"]),
        ("params != 5", []),
        ("throughput < 51", ["teacher"]),
        ("p50_high - p50_low > 0.5ms", ["teacher"]),
        ("1 - 2 * 3 / 6 < p50 - 19ms", ["teacher"]),
        ("1 - (2 - 3) == p50 - 2ms", ["student"]),
        ("(p50 > 30 or p50 < 5) and rss > 1MB", ["student"]),
        ("p50 > 30 or p50 < 5 and rss > 1MB", ["student"]),
    ],
)
def test_it_holds_for_these_results(text, artefacts):
    assert [sentence.split(" ")[0] for sentence in _held(text)] == artefacts


def test_the_sentence_names_the_result_and_its_figures():
    assert _held("student.p50 > teacher.p50 / 6") == [
        "student (onnxruntime fp32, threads 1, batch 1): student.p50 is 4 ms, teacher.p50 is 20 ms"
    ]


def test_a_name_that_is_no_word_stands_in_quotes():
    torch = result("student (PyTorch)", 9.0)
    assert _held("'student (PyTorch)'.p50 > 8ms", STUDENT, torch)
    assert _held('"student (PyTorch)".p50 > 10ms', STUDENT, torch) == []
    int8 = result("student.int8", 1.0)
    assert [s.split(" ")[0] for s in _held("student.int8.p50 < 2ms", STUDENT, int8)] == ["student.int8"]


def test_old_is_the_other_sides_figure_of_the_same_result_in_the_earlier_document():
    old = document(result("teacher", 20.0), result("student", 3.0), result("student", 30.0, threads=2))
    assert [s.split(" ")[0] for s in _held("p50 > 1.1 * old", old=old)] == ["student"]
    assert _held("student.p50 > 1.1 * old", old=old) == [
        "student (onnxruntime fp32, threads 1, batch 1): student.p50 is 4 ms, old.student.p50 is 3 ms"
    ]
    for text in ("student.p50 > 1.3 * old.p50", "old.student.p50 < 3.1ms and student.p50 > 1ms"):
        assert len(_held(text, old=old)) == 1
    assert _held("student.p50 > 1.4 * old", old=old) == []
    assert len(_held("student.p50 / old.p50 > 1.3", old=old)) == 1
    assert Condition("p50 > old").needs_old
    assert not Condition("p50 > 5").needs_old


def test_a_result_is_set_beside_the_one_of_the_same_threads_and_runtime():
    rows = [
        result("teacher", 20.0), result("teacher", 11.0, threads=2),
        result("teacher", 10.0, runtime="openvino"), result("student", 4.0),
        result("student", 4.0, threads=2), result("student", 4.0, runtime="openvino"),
    ]  # fmt: skip
    said = _held("student.p50 > teacher.p50 / 3", *rows)
    assert [(s.split("(")[1].split(",")[0], s.split("threads ")[1][0]) for s in said] == [
        ("onnxruntime fp32", "2"), ("openvino fp32", "1"),
    ]  # fmt: skip


def test_what_cannot_be_told_fails():
    assert "cannot be told: p99: it needs 662 calls" in _held("p99 > 5ms")[0]
    assert "cannot be told: agreement" in _held("agreement < 90%")[0]
    few = result("student", 4.0)
    few["latency_ms"]["ci95"] = None
    assert "an interval needs 6 rounds" in _held("p50_low > 1ms", few)[0]
    assert "divides by zero" in _held("p50 / (p90 - p90) > 1")[0]
    assert _held("student.p50 > 1ms", TEACHER) == ["cannot be told: nothing of it was measured"]
    assert "teacher was not measured" in _held("student.p50 > teacher.p50", STUDENT)[0]


def test_the_baseline_itself_and_a_new_result_are_not_what_a_condition_is_about():
    assert _held("ratio < 2") == []  # of the student alone
    assert "cannot be told: ratio" in _held("ratio < 2", TEACHER)[0]  # and of nothing else
    assert _held("p50 > 1.1 * old", old=document(TEACHER)) == []
    assert "not in the file of --compare" in _held("p50 > old", STUDENT, old=document(TEACHER))[0]


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "expected a number or a metric"),
        ("p50", "expected one of < <= > >= == !="),
        ("p50 >", "expected a number or a metric"),
        ("p50 > 5 6", "expected 'and', 'or' or the end at '6'"),
        ("p50 > (5", "expected ')'"),
        ("p5 > 5", "unknown metric 'p5'; did you mean 'p50'?"),
        ("student.p51 > 5", "unknown metric 'p51'; did you mean 'p50'?"),
        ("p50 > 5m", "unknown unit 'm'; did you mean 'ms'?"),
        ("p50 > 5 $", "cannot be read from '$' on"),
        ("p50 > 200MB", "time and memory do not go together"),
        ("p50 + rss > 1", "time and memory do not go together"),
        ("p50 * p50 > 1", "time * time is no figure"),
        ("1 / p50 > 1", "any / time is no figure"),
        ("1 < 2", "names no figure; metrics: p50, "),
        ("old > 2", "the other side of 'old' names no figure, or several; say which: old.p50"),
        ("p50 > 1 and and", "expected a number or a metric"),
        ("p50 > __import__('os')", "unknown metric '__import__'"),
        ("p50.real > 1", "unknown metric 'real'"),
        ("p50 > 5)", "expected 'and', 'or' or the end at ')'"),
        ("1 < p50 < 5", "expected 'and', 'or' or the end at '<'"),
        ("p50 > -5", "expected a number or a metric at '-'"),
        ("p50 > ()", "expected a number or a metric at ')'"),
        ("p50 ( 5 )", "expected 'and', 'or' or the end at '('"),
        ("(p50 > 5) + 1 > 2", "expected a number or a metric, and not a comparison, in parentheses"),
        ("not p50 > 5", "unknown metric 'not'"),
    ],
)
def test_what_makes_no_sense_is_said_in_a_sentence(text, why):
    with pytest.raises(UserError, match=re.escape(f"--fail-if {text!r}: {why}")):
        Condition(text)


@pytest.mark.parametrize(
    "text", ["(" * 9999 + "p50 > 1", "p50 > 1" + " + 1" * 9999, "p50 > 1 or " * 99 + "p50 > 1"]
)
def test_a_condition_that_is_too_long_or_too_deep_is_refused(text):
    with pytest.raises(UserError, match=r"--fail-if '.{40}\.\.\.': is longer than 200 words and signs"):
        Condition(text)


def test_the_longest_condition_is_read_and_checked():
    assert len(_held("p50 > 5" + " - 0" * 98)) == 1
    assert len(_held("p50 > " + "(" * 98 + "5" + ")" * 98)) == 1


def test_an_artefact_that_is_not_measured_is_refused():
    with pytest.raises(UserError, match="no artefact 'studnt'; did you mean 'student'"):
        Condition("studnt.p50 > 1").check(["student", "teacher"])
    Condition("student.p50 > old.teacher.p50").check(["student", "teacher"])


def test_the_help_text_names_every_metric():
    help_text = CliRunner().invoke(main, ["bench", "--help"]).stdout
    assert set(METRICS) <= set(re.findall(r"\w+", help_text))
