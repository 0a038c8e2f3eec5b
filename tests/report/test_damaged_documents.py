"""Every value of a run's documents is damaged: the pages are written, or one error names the file."""

from __future__ import annotations

import copy
import json
import random
import traceback

import pytest
import yaml
from evaluated_run import write_evaluated

from kdcompress.commands.summary import print_summary
from kdcompress.documents import read_document
from kdcompress.errors import KdcompressError
from kdcompress.report.card import write_card
from kdcompress.report.page import write_report
from kdcompress.schemas.results import Results
from kdcompress.tools.compare_runs import compare

MISSING = object()
VALUES = (
    MISSING, None, "", "<script>a\x1b[2J</script>", -1, 0, 7, -0.5, 1e300, True, [], [None], {}, {"a": 1},
    1 << 40,
)  # fmt: skip
DOCUMENTS = (
    "results.json", "details.json", "manifest.json", "config.json", "bench.json", "gates.json", "recipe.yaml",
)  # fmt: skip
NO_COMMON_FIGURE = "the runs have no figure in common"
SAMPLE = 150
"""Damages of each document in the ordinary tests."""


def write_whole(folder):
    """A run with everything that a run may have."""
    run = write_evaluated(folder, counts=(40, 10), epochs=2)
    results = json.loads((run / "results.json").read_text())
    sentence = {"sentence": "a file: top-1 90.00 %"}
    tuned = {"sentence": "tuned", "kept": True}
    results |= {
        "variants": {
            "int8": {
                "file": "student.int8.onnx", "top1": 0.9, "verdict": {**sentence, "told": "x"}, "qat": tuned,
            },
        },
        "ensemble": sentence,
        "exits": {"file": "exits.onnx", "exits": [{"name": "exit1", "file": "exits.onnx", **sentence}]},
        "training": {
            "candidate": "student", "best": {"top1": 0.9},
            "candidates": {"student": {"top1": 0.9}, "peer1": {"top1": 0.8}},
        },
    }  # fmt: skip
    (run / "results.json").write_text(json.dumps(results))
    manifest = json.loads((run / "manifest.json").read_text())
    manifest["student"] = {"model": "cifar/resnet8x4", "weights": "s.pth", "sha256": "a" * 64}
    manifest["peers"] = [
        {"model": "cifar/resnet14", "weights": "p.pth", "sha256": "c" * 64, "license": "MIT"}
    ]
    manifest["data"] |= {
        "license": "MIT", "warnings": ["unequal"], "test_split": "val",
        "extra": {"name": "more", "sha256": "b" * 64, "counts": {"images": 3}},
    }  # fmt: skip
    (run / "manifest.json").write_text(json.dumps(manifest))
    return run


def places(tree, path=()):
    """Lists the paths of all values of a tree; of a list its first two entries."""
    items = tree.items() if isinstance(tree, dict) else enumerate(tree[:2]) if isinstance(tree, list) else ()
    for key, value in items:
        yield (*path, key)
        yield from places(value, (*path, key))


def damaged(tree, path, value):
    """Returns a copy with another value at the path; without it for MISSING."""
    whole = copy.deepcopy(tree)
    inner = whole
    for key in path[:-1]:
        inner = inner[key]
    if value is MISSING:
        del inner[path[-1]]
    else:
        inner[path[-1]] = value
    return whole


def longer_and_shorter(tree, path):
    """Returns the list at the path with one entry more and less; nothing for other values."""
    inner = tree
    for key in path:
        inner = inner[key]
    return [inner + inner[-1:], inner[:-1]] if isinstance(inner, list) and inner else []


def write_pages(run, other):
    """Writes what is made of a run's documents."""
    write_report(run)
    write_card(run)
    print_summary(read_document(run / "results.json", Results), run)
    compare([run, other], run / "page.html")
    compare([other, run], run / "page.html")


@pytest.mark.parametrize("name", DOCUMENTS)
@pytest.mark.parametrize("count", [SAMPLE, pytest.param(None, marks=pytest.mark.exhaustive)])
def test_a_damaged_document_makes_pages_or_one_error(name, count, tmp_path):
    run, other = write_whole(tmp_path / "run"), write_whole(tmp_path / "other")
    whole = (run / name).read_text()
    tree = read(whole, name)
    cases = [(p, v) for p in places(tree) for v in (*VALUES, *longer_and_shorter(tree, p))]
    if count is not None:
        cases = random.Random(0).sample(cases, min(count, len(cases)))
    failures, refused = [], 0
    for path, value in cases:
        (run / name).write_text(json.dumps(damaged(tree, path, value)))
        try:
            write_pages(run, other)
        except KdcompressError as error:
            refused += 1
            if name not in str(error) and NO_COMMON_FIGURE not in str(error):
                failures.append(f"{path} = {value!r}: {error}")
        except Exception:
            failures.append(f"{path} = {value!r}: {''.join(traceback.format_exc().splitlines(True)[-4:])}")
        else:
            pages = [(run / page).read_text() for page in ("report.html", "README.md", "page.html")]
            if any("<script>a" in page or "\x1b" in page for page in pages[::2]):
                failures.append(f"{path} = {value!r}: raw in a page")
    assert not failures, f"{len(failures)} of {len(cases)}\n" + "\n".join(failures)
    assert 0 < refused < len(cases)


def read(text, name):
    """Parses a document."""
    return yaml.safe_load(text) if name.endswith(".yaml") else json.loads(text)
