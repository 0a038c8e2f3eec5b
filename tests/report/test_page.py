"""The report is one whole, offline page that says what the run's files say."""

from __future__ import annotations

import html.parser
import json
import re

import pytest
from run_folders import write_run

from kdcompress.errors import UserError
from kdcompress.report import words
from kdcompress.report.page import write_report

_VOID = {"meta", "br", "link", "img", "hr", "input"}


class _Page(html.parser.HTMLParser):
    def __init__(self, text):
        super().__init__()
        self.open, self.ids, self.attributes, self.words = [], [], [], []
        self.feed(text)
        self.close()
        assert self.open == []
        self.text = " ".join(" ".join(self.words).replace("\N{NO-BREAK SPACE}", " ").split())

    def handle_starttag(self, tag, attributes):
        if tag not in _VOID:
            self.open.append(tag)
        self.attributes += attributes
        self.ids += [value for key, value in attributes if key == "id"]

    def handle_startendtag(self, tag, attributes):
        self.attributes += attributes

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if "style" not in self.open:
            self.words.append(data)


def _page(folder):
    return _Page(write_report(folder).read_text(encoding="utf-8"))


@pytest.mark.parametrize(
    "parts",
    [
        {},
        {"baseline": False},
        {"bench": False},
        {"teacher": False},
        {"epochs": 1},
        {"epochs": 0},
        {"labels": False},
        {"backbone": True},
        {"backbone": True, "labels": False, "bench": False},
        {"baseline": False, "bench": False, "teacher": False},
    ],
    ids=str,
)
def test_the_page_is_whole_whatever_the_run_has(tmp_path, parts):
    page = _page(write_run(tmp_path / "run", **parts))
    assert len(page.ids) == len(set(page.ids))
    named = [value for key, value in page.attributes if key == "aria-labelledby"]
    assert {part for value in named for part in value.split()} <= set(page.ids)
    assert not re.search(r"(?<!\[)\bNone\b|\bnan\b|Undefined", page.text)  # `[None]` is in the code


def test_nothing_is_loaded_from_anywhere(tmp_path):
    text = write_report(write_run(tmp_path / "run")).read_text(encoding="utf-8")
    page = _Page(text)
    assert not [key for key, _ in page.attributes if key in {"src", "href", "srcset", "data", "action"}]
    assert "url(" not in text
    assert "@import" not in text
    assert "<script" not in text
    assert "http" not in text


def test_the_headline_says_smaller_faster_and_better(tmp_path):
    text = _page(write_run(tmp_path / "run")).text
    assert "93.1 % top-1 on the test split" in text
    assert "6.12× smaller than the teacher" in text
    assert "6.40× faster than the teacher" in text
    assert "+1.4 points gained by distillation" in text
    assert "all 12 gates passed" in text


def test_a_failed_gate_is_said_at_the_top_with_figure_and_limit_below(tmp_path):
    text = _page(write_run(tmp_path / "run", gate_fails=True)).text
    assert "1 of 12 gates failed: not fit to ship" in text
    assert "top1_exported ✗ failed 0.88 0.931" in text


def test_without_labels_the_agreement_stands_in_for_accuracy(tmp_path):
    text = _page(write_run(tmp_path / "run", labels=False)).text
    assert "95.3 % agreement with the teacher" in text
    assert "balanced" not in text


def test_a_backbone_is_shown_by_its_neighbours_and_the_teachers(tmp_path):
    text = _page(write_run(tmp_path / "run", backbone=True)).text
    assert "84.2 % top-1 by nearest neighbours on the test split" in text
    assert "kNN top-1 agreement with the teacher parameters" in text
    assert "resnet8x4 84.2 % 61.7 %" in text
    assert "10 nearest images that are also the teacher's" in text
    assert "top-1 by nearest neighbours on held-out images, %" in text
    assert "By class" not in text
    text = _page(write_run(tmp_path / "unlabelled", backbone=True, labels=False)).text
    assert "61.7 % of nearest neighbours are also the teacher's" in text
    assert "kNN top-1 agreement" not in text


def test_a_run_without_labels_is_drawn_by_its_agreement(tmp_path):
    text = _page(write_run(tmp_path / "run", labels=False, baseline=False)).text
    assert "agreement on held-out images, %" in text


def test_a_speed_that_was_not_shown_is_not_claimed(tmp_path):
    folder = write_run(tmp_path / "run")
    bench = json.loads((folder / "bench.json").read_text())
    bench["results"][0]["vs_baseline"] |= {"ratio": 1.01, "ci95": None, "verdict": "no difference"}
    (folder / "bench.json").write_text(json.dumps(bench))
    text = _page(folder).text
    assert "the teacher's speed: no difference shown" in text
    assert "faster than the teacher" not in text


def test_a_slower_student_is_said_to_be_slower_by_a_number_above_one(tmp_path):
    folder = write_run(tmp_path / "run")
    bench = json.loads((folder / "bench.json").read_text())
    bench["results"][0]["vs_baseline"] |= {"ratio": 0.5, "ci95": [0.4, 0.6], "verdict": "slower"}
    (folder / "bench.json").write_text(json.dumps(bench))
    assert "2.00× slower than the teacher" in _page(folder).text


def test_what_comes_from_outside_is_text_and_never_markup(tmp_path):
    folder = write_run(tmp_path / "run")
    evil = "<script>alert(1)</script>"
    config = json.loads((folder / "config.json").read_text())
    config["label_names"][3] = evil
    (folder / "config.json").write_text(json.dumps(config))
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["command"] = evil
    (folder / "manifest.json").write_text(json.dumps(manifest))
    text = write_report(folder).read_text(encoding="utf-8")
    assert evil not in text
    assert "&lt;script&gt;" in text


def test_the_baselines_own_log_is_a_curve_of_the_page(tmp_path):
    folder = write_run(tmp_path / "run", baseline=False)
    log = (folder / "log.jsonl").read_text()
    (folder / "baseline").mkdir()
    (folder / "baseline" / "log.jsonl").write_text(
        "".join(x + "\n" for x in log.splitlines() if "student" in x)
    )
    assert "Loss terms of the baseline" in _page(folder).text


def test_phases_of_the_student_have_charts_of_their_own(tmp_path):
    folder = write_run(tmp_path / "run", baseline=False)
    log = (folder / "log.jsonl").read_text().replace('"student"', '"student/stages"', 30)
    (folder / "log.jsonl").write_text(log)
    text = _page(folder).text
    assert "Loss terms of the student/stages" in text
    assert "Loss terms of the student" in re.sub("student/stages", "", text)


def test_a_run_without_results_is_refused_in_one_sentence(tmp_path):
    folder = write_run(tmp_path / "run")
    (folder / "results.json").unlink()
    with pytest.raises(UserError, match=r"has no results\.json"):
        write_report(folder)
    with pytest.raises(UserError, match="no such run folder"):
        write_report(tmp_path / "absent")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"schema": "kdcompress.gates/2"}', "newer than this kdcompress"),
        ('{"schema": "other/1"}', "unknown schema"),
        ("{", "not valid JSON"),
        ("[]", "expected a JSON object"),
    ],
)
def test_a_file_that_cannot_be_understood_is_named(tmp_path, content, message):
    folder = write_run(tmp_path / "run")
    (folder / "gates.json").write_text(content)
    with pytest.raises(UserError, match=rf"gates\.json.*{message}"):
        write_report(folder)


def test_warnings_and_failures_of_the_benchmark_are_on_the_page(tmp_path):
    folder = write_run(tmp_path / "run")
    bench = json.loads((folder / "bench.json").read_text())
    bench["results"][0]["warnings"] = ["two modes"]
    failure = {
        "artefact": "student (PyTorch)",
        "runtime": "torch",
        "stage": "load",
        "type": "E",
        "message": "gone",
    }
    bench["failures"] = [failure]
    (folder / "bench.json").write_text(json.dumps(bench))
    text = _page(folder).text
    assert "Warning (student, 1 thread, batch 1): two modes." in text
    assert "Failed: student (PyTorch) in torch, at load: E: gone." in text
    assert "two copies of teacher came out 1.01× apart (95 % interval 0.99 to 1.03)" in text


def test_few_labels_are_among_what_was_asked(tmp_path):
    folder = write_run(tmp_path / "run")
    assert "labels" not in _page(folder).text.split("Recipe")[1].split("The networks")[0]
    text = (folder / "recipe.yaml").read_text()
    text = text.replace("data:", "data:\n  labels: 3000\n  labelled_share: 0.5", 1)
    (folder / "recipe.yaml").write_text(text)
    assert re.search(r"labels 3,?000, labelled share 0\.5", _page(folder).text)


def test_which_network_ships_and_what_the_others_reached_is_said():
    reached = {"student": {"top1": 0.9, "epoch": 2}, "peer1": {"top1": 0.95, "epoch": 3}}
    results = {"training": {"candidate": "peer1", "candidates": reached}}
    assert words.candidates_sentence(results).replace("\N{NO-BREAK SPACE}", " ") == (
        "Best top-1 on held-out images: peer1 95.0 % (ships), student 90.0 %."
    )
    results["training"]["candidate"] = "student"
    assert words.candidates_sentence(results).endswith(
        "peer1 95.0\N{NO-BREAK SPACE}%, student 90.0\N{NO-BREAK SPACE}% (ships). A lead within twice its "
        "standard error does not decide: the later epoch and the lower loss do."
    )
    # One that may not ship decides nothing, but what it reached is said too.
    reached["peer1"]["may_ship"] = False
    assert words.candidates_sentence(results).replace("\N{NO-BREAK SPACE}", " ") == (
        "Best top-1 on held-out images: peer1 95.0 %, student 90.0 % (ships). Trained with it, and not "
        "offered as the student: peer1."
    )
    assert words.candidates_sentence({"training": {"candidate": "student", "candidates": {}}}) == ""
    assert words.candidates_sentence({}) == ""
