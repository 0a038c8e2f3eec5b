"""What `distill` prints, and the document over several seeds, whatever is known of the networks."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from kdcompress.commands.summary import print_summary
from kdcompress.report import documents

SIZES = {"params": 1_000, "macs": 20_000, "bytes": 4_000}
LABELLED = {"top1": 0.9, "balanced_top1": 0.89, "agreement": 0.93}
UNLABELLED = {"top1": None, "balanced_top1": None, "agreement": 0.93}
BACKBONE = {"top1": None, "balanced_top1": None, "knn_top1": 0.71, "agreement": 0.52}
BACKBONE_UNLABELLED = {**BACKBONE, "knn_top1": None}

GATE = {"gate": "opset", "passed": True, "figure": 18, "limit": 18, "detail": ""}
GATES = {"schema": "kdcompress.gates/1", "gates": [GATE] * 3}


def results(student, teacher, baseline=None, gain=None):
    rows = [{**row, **SIZES} if row else None for row in (student, teacher, baseline)]
    return documents.results(*rows, gain, {})


def printed(student, teacher, folder, capsys):
    (folder / "gates.json").write_text(json.dumps(GATES))
    print_summary({**results(student, teacher), "folder": str(folder)}, folder)
    return capsys.readouterr().out


@pytest.mark.parametrize(
    ("student", "teacher", "heading", "figures"),
    [
        (LABELLED, {**LABELLED, "top1": 0.95}, "top-1 %", ["90.00", "95.00"]),
        (UNLABELLED, {**UNLABELLED, "agreement": None}, "agreement %", ["93.00"]),
        (BACKBONE, {**LABELLED, "knn_top1": 0.8}, "kNN top-1 %", ["71.00", "80.00"]),
        (BACKBONE_UNLABELLED, {"top1": None}, "agreement %", ["52.00"]),
    ],
)
def test_the_table_shows_what_is_known(student, teacher, heading, figures, tmp_path, capsys):
    out = printed(student, teacher, tmp_path, capsys)
    assert heading in out.splitlines()[0]
    assert all(figure in out for figure in figures)
    assert "None" not in out
    assert "3 of 3 gates passed" in out


@pytest.mark.parametrize(
    ("student", "figure", "name"),
    [
        (LABELLED, "top1", "top-1"),
        (UNLABELLED, "agreement", "agreement"),
        (BACKBONE, "knn_top1", "kNN top-1"),
        (BACKBONE_UNLABELLED, "agreement", "agreement"),
    ],
)
def test_seeds_are_summed_up_by_the_figure_that_stands_for_a_run(student, figure, name, capsys):
    other = {**student, figure: student[figure] + 0.02}
    document = documents.seeds([results(student, {"top1": 0.8}), results(other, {"top1": 0.8})])
    assert document["figure"] == figure
    assert document["student"][figure] == [student[figure], other[figure]]
    assert document["student"]["mean"] == pytest.approx(student[figure] + 0.01)
    assert document["gain"] is None
    print_summary({**document, "folder": "x"}, Path("x"))
    out = capsys.readouterr().out
    assert f"student   {name} {100 * student[figure] + 1:.2f} %" in out


def test_a_gain_over_seeds_is_paired(capsys):
    baseline = {**LABELLED, "top1": 0.85}
    document = documents.seeds([results(LABELLED, None, baseline)] * 2)
    assert document["gain"]["points"] == pytest.approx([5.0, 5.0])
    print_summary({**document, "folder": "x"}, Path("x"))
    assert "gain      +5.00 points" in capsys.readouterr().out


def test_a_backbone_gains_nothing_on_a_baseline_that_classifies():
    document = documents.seeds([results(BACKBONE, None, LABELLED)] * 2)
    assert (document["baseline"], document["gain"]) == (None, None)


def test_a_seed_whose_student_gives_all_images_one_class_is_named(capsys):
    useless = {**LABELLED, "single_class": 1, "balanced_top1": 0.5}
    document = documents.seeds([results(LABELLED, None), results(useless, None)], ["a", "test"], "val")
    (caution,) = document["cautions"]
    assert caution.startswith("Run 1: The student gives nearly all val images the class 'test'; ")
    print_summary({**document, "folder": "x"}, Path("x"))
    assert caution in capsys.readouterr().out
