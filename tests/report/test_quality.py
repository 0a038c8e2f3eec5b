"""The badge is green only for a right student that beats the largest class; the page says why else."""

from __future__ import annotations

import io
import json
import re
import shutil
from base64 import b64decode
from pathlib import Path

import pytest
import torch
from evaluated_run import labels_of, logits_of, write_evaluated
from PIL import Image
from run_folders import write_run

from kdcompress.metrics.intervals import balanced_interval, share_interval
from kdcompress.report.card import card
from kdcompress.report.evaluation import MOST_MISTAKES, SplitOutputs, confusions, evaluate_classifier
from kdcompress.report.matrix import matrix_chart
from kdcompress.report.page import page
from kdcompress.report.quality import badge, class_rows, read_quality
from kdcompress.report.record import read_run
from kdcompress.report.thumbnails import SIDE, thumbnail

FINISHED = Path(__file__).parent.parent / "fixtures" / "e33f4e2" / "finished"


def shown(folder):
    text = re.sub(r"(?s)<style>.*?</style>|<[^>]+>", " ", page(read_run(folder)))
    return " ".join(text.replace("\N{NO-BREAK SPACE}", " ").replace("&#39;", "'").split())


def badge_of(folder):
    return badge(read_quality(read_run(folder)))


def test_a_right_student_that_beats_the_largest_class_is_green(tmp_path):
    found = badge_of(write_evaluated(tmp_path / "run"))
    assert (found.level, found.reason) == ("good", "")
    assert 'class="chip good"' in page(read_run(tmp_path / "run"))


def test_a_student_that_may_beat_the_largest_class_by_chance_is_amber_with_the_interval(tmp_path):
    folder = write_evaluated(tmp_path / "run", counts=(80, 20), skill=0.0, names=("intact", "broken"))
    found = badge_of(folder)
    assert found.level == "amber"
    assert re.search(r"Against always 'intact' the difference is .* points of balanced top-1", found.reason)
    text = shown(folder)
    assert found.reason in text.replace("&#34;", '"')
    assert "all 12 gates passed" in text  # it is right all the same
    assert "chip good" not in page(read_run(folder))


def test_a_student_with_less_than_half_of_its_teachers_lead_is_amber(tmp_path):
    folder = write_evaluated(tmp_path / "run", counts=(100,) * 10, skill=1.0)
    results = json.loads((folder / "results.json").read_text())
    assert results["largest_class"]["student_ahead"]["verdict"] == "better"
    lead, teachers = (results[role]["top1"] - 0.1 for role in ("student", "teacher"))
    assert lead < 0.5 * teachers
    found = badge_of(folder)
    assert (found.level, found.text) == ("amber", "right, but far behind its teacher")
    assert f"only {int(100 * lead / teachers)} % of its teacher's lead" in found.reason
    results["teacher"] |= {"top1": results["student"]["top1"] + 0.9 * lead}
    (folder / "results.json").write_text(json.dumps(results))
    assert badge_of(folder).level == "good"


def test_a_student_of_80_to_20_is_judged_by_balanced_top1_and_shown_beside_always_the_largest(tmp_path):
    folder = write_evaluated(tmp_path / "run", counts=(80, 20), names=("intact", "broken"))
    assert badge_of(folder).level == "good"
    assert "always the largest class intact 50.0 % 80.0 %" in shown(folder)


def test_a_failed_gate_is_red_whatever_the_accuracy(tmp_path):
    found = badge_of(write_evaluated(tmp_path / "run", gate_fails=True))
    assert (found.level, found.text) == ("bad", "1 of 12 gates failed: not fit to ship")


@pytest.mark.parametrize(
    ("parts", "reason"),
    [
        ({"labels": False}, "No test image has a label"),
        ({}, "how many test images each class has"),
        ({"backbone": True}, "how many test images each class has"),
    ],
)
def test_what_cannot_be_compared_with_the_largest_class_is_amber(tmp_path, parts, reason):
    found = badge_of(write_run(tmp_path / "run", **parts))
    assert found.level == "amber"
    assert reason in found.reason


def test_a_backbone_is_compared_by_its_neighbours(tmp_path):
    folder = write_run(tmp_path / "run", backbone=True)
    results = json.loads((folder / "results.json").read_text())
    largest = {"class": 0, "largest_in": "test", "top1": 0.1, "balanced_top1": 0.1, "student_ahead": None}
    (folder / "results.json").write_text(json.dumps({**results, "largest_class": largest}))
    results["student"]["n"] = 1000
    (folder / "results.json").write_text(json.dumps({**results, "largest_class": largest}))
    assert badge_of(folder).level == "good"
    largest["top1"] = 0.84
    (folder / "results.json").write_text(json.dumps({**results, "largest_class": largest}))
    assert badge_of(folder).level == "amber"


def test_the_answers_stand_first_and_in_their_order(tmp_path):
    text = shown(write_evaluated(tmp_path / "run"))
    questions = ("Is it any good?", "Did distillation help?", "Is it right?", "Is it fast?")
    places = [text.index(question) for question in (*questions, "By class", "Recipe")]
    assert places == sorted(places)


def test_the_weakest_classes_and_the_table_by_class_have_counts(tmp_path):
    folder = write_evaluated(tmp_path / "run", counts=(30, 20), skill=2.0, names=("cat", "dog"))
    rows = class_rows(read_quality(read_run(folder)))
    assert {(row.name, row.n) for row in rows} == {("cat", 30), ("dog", 20)}
    assert rows[0].student <= rows[1].student
    assert rows[0].right in shown(folder)


def test_a_run_of_before_is_compared_through_its_predictions(tmp_path):
    folder = Path(shutil.copytree(FINISHED, tmp_path / "finished"))
    quality = read_quality(read_run(folder))
    assert sum(quality.counts) == quality.record.results["student"]["n"]
    assert sum(map(sum, quality.details["confusion"])) == sum(quality.counts)
    assert "always the largest class" in shown(folder)
    shutil.rmtree(folder / "checkpoints")
    assert "cannot be compared with always the largest class" in shown(folder)


def test_the_card_has_the_verdict_the_largest_class_and_the_calibration(tmp_path):
    text = card(read_run(write_evaluated(tmp_path / "run"))).replace("\N{NO-BREAK SPACE}", " ")
    assert "**Right, and better than the largest class" in text
    assert "| always the largest class (`kind 0`) | 10.0 % | 10.0 % |" in text
    assert "fitted on 300 held-out images" in text


def test_without_held_out_images_nothing_is_fitted_and_it_is_said(tmp_path):
    folder = write_evaluated(tmp_path / "run", counts=(80, 20), held_out=False)
    student = json.loads((folder / "results.json").read_text())["student"]
    assert (student["calibration"]["temperature"], student["calibration"]["ece_calibrated"]) == (None, None)
    assert student["two_classes"]["threshold"] is None
    text = shown(folder)
    assert "No temperature was fitted, since there are no held-out images" in text
    assert "No other threshold was chosen, since there are no held-out images" in text


def test_a_threshold_is_chosen_for_two_classes_alone_and_the_rarer_one_is_found(tmp_path):
    folder = write_evaluated(tmp_path / "two", counts=(80, 20), names=("intact", "broken"))
    text = shown(folder)
    assert "of 'broken' found" in text
    assert "ROC curve: area" in text
    assert "Precision and recall: average" in text
    assert "ROC curve" not in shown(write_evaluated(tmp_path / "ten"))


def test_temperature_and_threshold_do_not_depend_on_the_test_images():
    labels = labels_of((60, 40))
    held = SplitOutputs(logits_of(labels, 2, 2.0, 1), labels)

    def evaluated(seed):
        test = SplitOutputs(logits_of(labels, 2, 2.0, seed), labels)
        return evaluate_classifier(
            test, held, temperature=1.5, train_counts=[60, 40], teacher_logits=None, pictures=lambda rows: []
            if not len(rows) else [""] * len(rows),
        ).student  # fmt: skip

    one, other = evaluated(2), evaluated(3)
    assert one["two_classes"]["threshold"]["threshold"] == other["two_classes"]["threshold"]["threshold"]
    assert one["two_classes"]["roc_auc"] != other["two_classes"]["roc_auc"]


def test_the_mistakes_are_those_of_the_student_alone_the_worst_first():
    labels = torch.zeros(20, dtype=torch.int64)
    logits = torch.zeros(20, 2)
    logits[:, 1] = torch.arange(20) - 2.0  # wrong from 3 on, the last the worst
    teacher = torch.tensor([[1.0, 0.0]] * 19 + [[0.0, 1.0]])  # errs on the last
    found = evaluate_classifier(
        SplitOutputs(logits, labels), None, temperature=None, train_counts=[1, 1], teacher_logits=teacher,
        pictures=lambda rows: [str(int(row)) for row in rows],
    ).details["mistakes"]  # fmt: skip
    assert [entry["position"] for entry in found] == list(range(18, 18 - MOST_MISTAKES, -1))
    assert [entry["image"] for entry in found] == [str(entry["position"]) for entry in found]


def test_thumbnails_are_small_and_carry_no_metadata():
    kind, data = thumbnail(torch.randint(0, 256, (3, 300, 200)).byte()).split(",")
    image = Image.open(io.BytesIO(b64decode(data)))
    assert kind == "data:image/jpeg;base64"
    assert max(image.size) <= SIDE
    assert not image.getexif()
    assert set(image.info) <= {"jfif", "jfif_version", "jfif_unit", "jfif_density"}
    grey = Image.open(io.BytesIO(b64decode(thumbnail(torch.zeros(1, 8, 8).byte()).split(",")[1])))
    assert (grey.size, grey.mode, grey.info) == ((8, 8), "L", {})


def test_confusions_count_every_image_once():
    labels, given = torch.tensor([0, 0, 1, 2, 2, 2]), torch.tensor([0, 1, 1, 0, 0, 2])
    found = confusions(labels, given, 3)
    assert found["confusion"] == [[1, 1, 0], [0, 1, 0], [2, 0, 1]]
    assert found["confusions"] == [{"label": 2, "given": 0, "n": 2}, {"label": 0, "given": 1, "n": 1}]
    many = confusions(labels, given, 100)
    assert many["confusion"] is None
    assert many["confusions"] == found["confusions"]


def test_the_matrix_cuts_long_names_and_escapes_them():
    svg = str(matrix_chart([[3, 1], [0, 4]], ["<b>" + "x" * 40, "ok"], key="m", title="T").svg)
    assert "<b>" not in svg
    assert "x" * 20 not in svg
    assert svg.count("<rect") == 4


def test_intervals_hold_the_share_and_have_the_known_ends():
    assert share_interval(8, 10) == pytest.approx([0.4902, 0.9433], abs=1e-4)  # Wilson, 8 of 10
    assert share_interval(0, 0) is None
    low, high = balanced_interval([1.0, 1.0], [50, 10])
    assert low < 1.0 == high
    # Two equal classes of 0.5: the standard error is that of one proportion of twice as many images.
    low, high = balanced_interval([0.5, 0.5], [98, 98])
    assert high - low == pytest.approx(2 * 1.96 * (0.25 / 200) ** 0.5, rel=1e-3)
    assert balanced_interval([None], [0]) is None


def test_the_agreement_of_a_nearly_constant_student_says_that_it_is_nearly_constant(tmp_path):
    folder = write_run(tmp_path / "run", labels=False)
    results = json.loads((folder / "results.json").read_text())
    results["student"] |= {"agreement": 0.96, "constant": {"class": 3, "share": 0.97, "teacher_share": 0.95}}
    (folder / "results.json").write_text(json.dumps(results))
    text = shown(folder)
    assert "the student is nearly constant" in text
    assert "it gives 97.0 % of the test images the class 'cat'" in text
    assert "always that class would agree on 95.0 %" in text
    assert "nearly constant" in card(read_run(folder))
