"""Two artefacts of a document against each other, though neither was its baseline."""

from __future__ import annotations

import pytest

from kdcompress.bench.paired import paired


def result(artefact, medians, *, threads=1, runtime="onnxruntime", margin=None):
    against = None if margin is None else {"margin": margin}
    return {
        "artefact": artefact,
        "runtime": runtime,
        "threads": threads,
        "batch": 1,
        "round_medians_ms": medians,
        "vs_baseline": against,
    }


def document(*results):
    return {"results": list(results)}


def test_the_ratio_is_taken_round_by_round():
    # The machine is slow for half of the rounds; both are.
    slow = [1.0, 1.0, 1.0, 2.0, 2.0, 2.0, 2.0]
    own = [time / 2.5 for time in slow]
    (found,) = paired(document(result("a", slow), result("b", own)), "b", "a")
    assert found["ratio"] == pytest.approx(2.5)
    assert found["ci95"] == pytest.approx([2.5, 2.5])
    assert (found["threads"], found["batch"], found["verdict"]) == (1, 1, "faster")
    (back,) = paired(document(result("a", slow), result("b", own)), "a", "b")
    assert back["verdict"] == "slower"


def test_a_difference_within_that_of_identical_files_is_none():
    both = [result("a", [1.0] * 9, margin=0.2), result("b", [0.9] * 9, margin=0.2)]
    assert paired(document(*both), "b", "a")[0]["verdict"] == "no difference"
    sure = [result("a", [1.0] * 9, margin=0.02), result("b", [0.9] * 9, margin=0.02)]
    assert paired(document(*sure), "b", "a")[0]["verdict"] == "faster"


def test_few_rounds_show_nothing():
    (found,) = paired(document(result("a", [2.0] * 3), result("b", [1.0] * 3)), "b", "a")
    assert (found["ratio"], found["ci95"], found["verdict"]) == (2.0, None, "no difference")


def test_each_setting_is_compared_with_its_own_and_another_runtime_with_nothing():
    found = paired(
        document(
            result("a", [1.0] * 6),
            result("a", [4.0] * 6, threads=2),
            result("a", [9.0] * 6, runtime="torch"),
            result("b", [0.5] * 6),
            result("b", [1.0] * 6, threads=2),
            result("b", [1.0] * 6, threads=3),
        ),
        "b",
        "a",
    )
    assert [(one["threads"], one["ratio"]) for one in found] == [(1, 2.0), (2, 4.0)]
    assert paired(document(result("a", [1.0] * 6)), "b", "a") == []
