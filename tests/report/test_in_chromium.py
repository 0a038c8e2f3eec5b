"""The page in headless Chromium: no table is clipped, nothing is requested, nothing complains."""

from __future__ import annotations

import shutil
from pathlib import Path

import chromium
import pytest
from evaluated_run import write_evaluated
from run_folders import write_run

from kdcompress.report.comparison import Compared, write_comparison
from kdcompress.report.page import write_report
from kdcompress.report.record import read_run

FINISHED = Path(__file__).parent.parent / "fixtures" / "e33f4e2" / "finished"
LONG = ("an extraordinarily long class name with many words in it", "Donaudampfschifffahrtsgesellschaft" * 2)

CLIPPED = """
[...document.querySelectorAll("table, .scroll, svg.chart, svg text, section, figure, pre")].filter(part => {
  const box = part.getBoundingClientRect();
  return box.right > innerWidth + 1 || box.left < 0
      || (part.tagName != "PRE" && !(part instanceof SVGElement) && part.scrollWidth > part.clientWidth + 1);
}).map(part => part.tagName + ": " + part.textContent.trim().slice(0, 60))
"""
COLOURS = """
[getComputedStyle(document.body).backgroundColor, getComputedStyle(document.body).color]
"""
ABOVE = """
[...document.querySelectorAll(".answer h2")].map(part => part.getBoundingClientRect().top)
"""

pytestmark = pytest.mark.skipif(chromium.PROGRAM is None, reason="there is no chromium here")


@pytest.fixture(scope="module")
def pages(tmp_path_factory):
    """A page of each kind: of ten classes, two long names, many, a backbone, an old run, several runs."""
    work = tmp_path_factory.mktemp("pages")
    folders = {
        "ten": write_evaluated(work / "ten"),
        "two": write_evaluated(work / "two", counts=(80, 20), skill=1.0, names=LONG),
        "many": write_evaluated(work / "many", counts=(5,) * 40, skill=2.0, names=[LONG[0]] * 40),
        "backbone": write_run(work / "backbone", backbone=True),
        "old": Path(shutil.copytree(FINISHED, work / "old")),
    }  # fmt: skip
    runs = {name: write_report(folder) for name, folder in folders.items()}
    return {**runs, "several": several(folders["ten"], work / "several.html")}


def several(folder, path):
    """The page of `compare`: many rows with long names, a choice of teachers, and a run that did not ship."""
    record = read_run(folder)
    difference = {"points": 0.5, "sd": 0.25, "n": 3, "ci95": [-0.25, 1.25], "verdict": "no difference shown"}
    name = "kd:temperature=2.5:kd_weight=0.125, torchvision/mobilenet_v3_small"
    rows = [Compared("none", (record,), p50_ms=0.5)]
    rows += [Compared(f"{name} {k}", (record,) * 3, difference, p50_ms=0.5 + k) for k in range(8)]
    teachers = [
        {"teacher": f"torchvision/resnet{depth}@IMAGENET1K_V2", "failed": None, "taken": depth == 50,
         "figure": "top1", "held_out": 0.75, "own_top1": 0.875, "params": 25_557_032, "epochs": 4}
        for depth in (50, 101)
    ]  # fmt: skip
    failures = [f"cells/{LONG[1]}/seeds/0: did not ship: {LONG[0]}"]
    write_comparison(rows, path, reference="none", teachers=teachers, failures=failures)
    return path


@pytest.mark.parametrize("name", ["ten", "two", "many", "backbone", "old", "several"])
def test_nothing_is_clipped_requested_or_complained_of(pages, name):
    with chromium.browser() as page:
        page.open(pages[name])
        for width in (1200, 390):
            page.look(width)
            assert page.evaluate("document.documentElement.scrollWidth") <= width
            assert page.evaluate(CLIPPED) == [], width
        seen = {}
        for dark in (False, True):
            page.look(1200, dark=dark)
            seen[dark] = page.evaluate(COLOURS)
        requests = [url for url in page.requests() if not url.startswith("data:image/")]
        assert requests == [pages[name].resolve().as_uri()]
        assert page.complaints() == []
    assert seen[False] == list(reversed(["rgb(27, 35, 48)", "rgb(255, 255, 255)"]))
    assert seen[True] == ["rgb(18, 22, 28)", "rgb(228, 233, 240)"]


def test_all_four_answers_begin_above_the_fold(pages):
    with chromium.browser() as page:
        page.open(pages["ten"])
        page.look(1200, 900)
        tops = page.evaluate(ABOVE)
    assert len(tops) == 4
    assert max(tops) < 900


def test_a_request_and_a_console_error_would_be_seen(tmp_path):
    """The checks above can fail."""
    file = tmp_path / "bad.html"
    table = "<table><tr>" + "<td>wide</td>" * 200 + "</tr></table>"
    file.write_text(f"<body><img src='absent.png'>{table}<script>console.error('no')</script>")
    with chromium.browser() as page:
        page.open(file)
        page.look(390)
        assert any(url.endswith("absent.png") for url in page.requests())
        assert page.complaints()
        assert page.evaluate(CLIPPED)
