"""Two documents are told apart by intervals that do not overlap, and another machine is said loudly."""

from __future__ import annotations

import json

import pytest
from bench.documents import ENV, document, result

from kdcompress.bench.compare import compare, read_document
from kdcompress.errors import UserError


def _rows(new, old):
    return {row["artefact"]: row for row in compare(new, old, "OLD.json")["results"]}


def test_times_whose_intervals_lie_apart_are_a_difference():
    old = document(result("a", 4.0), result("b", 4.0), result("c", 4.0))
    rows = _rows(document(result("a", 2.0), result("b", 4.1), result("c", 5.0)), old)
    assert {name: row["verdict"] for name, row in rows.items()} == {
        "a": "faster", "b": "no difference", "c": "slower",
    }  # fmt: skip
    assert (rows["a"]["ratio"], rows["a"]["by"]) == (2.0, "times")
    # 4 ∓ 2 % over 2 ∓ 2 %: from 3.92 / 2.04 to 4.08 / 1.96.
    assert rows["a"]["ci95"] == [1.922, 2.082]


def test_intervals_that_overlap_are_none():
    rows = _rows(document(result("a", 4.2, spread=0.03)), document(result("a", 4.0, spread=0.03)))
    assert rows["a"]["verdict"] == "no difference"


def test_without_intervals_nothing_is_claimed():
    new, old = document(result("a", 2.0)), document(result("a", 4.0))
    old["results"][0]["latency_ms"]["ci95"] = None
    row = _rows(new, old)["a"]
    assert (row["ratio"], row["ci95"], row["verdict"]) == (2.0, None, "no difference")


def test_against_the_same_baseline_a_slower_hour_cancels():
    def hour(slow, student):
        base = result("teacher", 20.0 * slow)
        return document(base, result("student", student * slow, base="teacher", ratio=20.0 / student))

    rows = _rows(hour(2.0, 4.0), hour(1.0, 4.0))
    assert (rows["student"]["verdict"], rows["student"]["by"]) == ("no difference", "ratio to teacher")
    assert (rows["teacher"]["verdict"], rows["teacher"]["by"]) == ("slower", "times")
    rows = _rows(hour(2.0, 5.0), hour(1.0, 4.0))
    assert (rows["student"]["verdict"], rows["student"]["ratio"]) == ("slower", 0.8)


def test_a_baseline_of_other_bytes_is_no_common_measure():
    new, old = (
        document(result("teacher", 20.0), result("student", 4.0, base="teacher", ratio=5.0)) for _ in "ab"
    )
    new["artefacts"]["teacher"]["sha256"] = "other"
    found = compare(new, old, "OLD.json")
    assert {row["by"] for row in found["results"]} == {"times"}
    assert any("the baseline teacher is another file now" in warning for warning in found["warnings"])


def test_the_control_of_either_hour_widens_the_margin():
    new, old = document(result("a", 4.4, spread=0.001)), document(result("a", 4.0, spread=0.001))
    assert _rows(new, old)["a"]["verdict"] == "slower"
    old["aa"] |= {"ratio": 1.2, "ci95": [1.19, 1.21]}
    assert _rows(new, old)["a"]["verdict"] == "no difference"


def test_results_are_paired_by_all_that_they_depend_on():
    old = document(result("a", 4.0), result("a", 3.0, threads=2), result("a", 1.0, precision="bf16"))
    new = document(result("a", 4.0, batch=8), result("a", 3.0, threads=2), result("b", 1.0))
    found = compare(new, old, "OLD.json")
    assert [(row["artefact"], row["threads"]) for row in found["results"]] == [("a", 2)]
    assert found["only_new"] == [
        "a (onnxruntime fp32, threads 1, batch 8)", "b (onnxruntime fp32, threads 1, batch 1)",
    ]  # fmt: skip
    assert found["only_old"] == [
        "a (onnxruntime fp32, threads 1, batch 1)", "a (onnxruntime bf16, threads 1, batch 1)",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("changed", "warning"),
    [
        ({"env": ENV | {"cpu": "B CPU"}}, "another processor: 'A CPU', now 'B CPU'"),
        ({"env": ENV | {"granted_cores": 4}}, "another number of cores: 2, now 4"),
        ({"env": ENV | {"runtimes": {"onnxruntime": "1.3"}}}, "another version of onnxruntime: 1.2, now 1.3"),
        ({"protocol": {"rounds": 9, "block_s": 0.5, "turns": 10}}, "other rounds: 21, now 9"),
        ({"quality": "noisy"}, "the machine was noisy during this measurement"),
    ],
)
def test_what_else_differs_is_said(changed, warning):
    found = compare(document(result("a"), **changed), document(result("a")), "OLD.json")
    assert warning in found["warnings"]
    assert (warning in found["another_machine"]) == ("env" in changed)
    assert warning not in compare(document(result("a")), document(result("a")), "OLD.json")["warnings"]


def test_two_hours_without_a_common_baseline_are_warned_of():
    found = compare(document(result("a")), document(result("a")), "OLD.json")
    assert any("with the same --baseline in both" in warning for warning in found["warnings"])
    found = compare(document(result("a")), document(result("b")), "OLD.json")
    assert any("no result is of the same artefact" in warning for warning in found["warnings"])


def test_a_document_of_before_turns_and_versions_were_told_can_be_read(tmp_path):
    old = document(result("a", 4.0))
    del old["protocol"]["turns"], old["results"][0]["throughput_img_s"]
    (tmp_path / "old.json").write_text(json.dumps(old))
    assert _rows(document(result("a", 2.0)), read_document(tmp_path / "old.json"))["a"]["verdict"] == "faster"


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (None, "cannot be read"),
        ("{", "is not valid JSON"),
        ("[]", "it is no benchmark document"),
        ('{"schema": "kdcompress.results/1"}', "it is no benchmark document"),
        ('{"schema": "kdcompress.bench/2"}', "this version of kdcompress reads 'kdcompress.bench/1'"),
        ('{"schema": "kdcompress.bench/1"}', "lacks artefacts, env, protocol, results"),
    ],
)
def test_what_is_no_document_is_refused(tmp_path, content, why):
    if content is not None:
        (tmp_path / "old.json").write_text(content)
    with pytest.raises(UserError, match=why):
        read_document(tmp_path / "old.json")
