"""A document of the largest size that is read takes at most 1 GiB and 10 s, whatever is in it."""

from __future__ import annotations

import json
import shutil

import pytest

from hostile import cases, forked
from hostile.test_hostile import ABOVE_MB
from kdcompress.bench.device import main as packed
from kdcompress.bench.pack import read_result
from kdcompress.data.label_table import read_table
from kdcompress.deploy.ir_size import ir_facts
from kdcompress.documents import MOST_BYTES
from kdcompress.report.record import MOST_LOG_BYTES, read_run

FILLINGS = {
    "lists": "[[[]]],", "objects": '{"":1},', "text": '"ab",', "floats": "1e1,", "keys": "",
    "characters": "",
}  # fmt: skip


def _filled(filling, size):
    """Returns a JSON value of so many bytes that takes much memory."""
    if filling == "keys":
        return "{" + ",".join(f'"{number:08d}":0' for number in range((size - 2) // 13)) + "}"
    if filling == "characters":
        return '"\U0001f600' + "a" * (size - 10) + '"'
    return f"[{FILLINGS[filling] * ((size - 3) // len(FILLINGS[filling]))}1]"


def _report(name, filling, folder):
    run = shutil.copytree(cases.FINISHED, folder / "run")
    content = (run / name).read_text()
    if name == "log.jsonl":
        line = content.splitlines()[0]
        (run / name).write_text(f'{line[:-1]}, "x": {_filled(filling, MOST_LOG_BYTES - 10_000)}}}\n')
    else:
        document = content.rstrip()
        (run / name).write_text(f'{document[:-1]}, "x": {_filled(filling, MOST_BYTES - 10_000)}}}')
    forked.note_inputs()
    read_run(run)


def _log_of_many_lines(_, filling, folder):
    run = shutil.copytree(cases.FINISHED, folder / "run")
    line = (run / "log.jsonl").read_bytes().splitlines()[0] + b"\n"
    (run / "log.jsonl").write_bytes(line * (MOST_LOG_BYTES // len(line)))
    forked.note_inputs()
    read_run(run)


def _merge(_, filling, folder):
    body = {**cases.packed_body(), "x": "FILLING"}
    text = json.dumps(packed.with_digest(body)).replace('"FILLING"', _filled(filling, MOST_BYTES - 10_000))
    (folder / "result.json").write_text(text)
    forked.note_inputs()
    read_result(folder / "result.json")


def _far_end(_, filling, folder):
    messages = [json.dumps(message) for message in cases.far_end.valid()]
    messages[4] = f'{messages[4][:-1]}, "x": {_filled(filling, MOST_BYTES - 10_000)}}}'
    cases.measure_there(folder, "\n".join([*messages, ""]).encode())


def _table(name, filling, folder):
    rows = {"short": "a.png,b\n", "missing": "%08d.png,b\n", "no fields": "\n", "one": "a"}[filling]
    count = (64 << 20) // 10
    with (folder / name).open("w") as file:
        file.write("path,label\n")
        for first in range(0, count, 10_000):
            file.write(
                "".join(rows % number if "%" in rows else rows for number in range(first, first + 10_000))
            )
    forked.note_inputs()
    read_table(folder / name, labels=True)


def _json_table(name, filling, folder):
    row = {"empty": "{}\n", "missing": '{"path": "%08d.png", "label": "b"}\n', "others": '{"a%08d": 1}\n'}[
        filling
    ]
    with (folder / name).open("w") as file:
        for number in range((16 << 20) // len(row)):
            file.write(row % number if "%" in row else row)
    forked.note_inputs()
    read_table(folder / name, labels=True)


def _ir(_, filling, folder):
    size = {"elements": b"<a/>", "attributes": b'<a b="" c="" d=""/>', "text": b"<a>\xc3\xa4</a>"}[filling]
    content = b'<?xml version="1.0"?><net><layers>%s</layers></net>' % (size * ((16 << 20) // len(size) - 20))
    (folder / "a.xml").write_bytes(content)
    forked.note_inputs()
    ir_facts(folder / "a.xml")


CASES = [
    *((_report, "results.json", filling) for filling in FILLINGS),
    *((_report, "log.jsonl", filling) for filling in ("lists", "objects", "text")),
    (_log_of_many_lines, "", "lines"),
    *((_merge, "", filling) for filling in ("lists", "floats", "text")),
    *((_far_end, "", filling) for filling in ("lists", "text", "characters")),
    *((_table, "labels.csv", filling) for filling in ("short", "missing", "no fields", "one")),
    *((_json_table, "labels.jsonl", filling) for filling in ("empty", "missing", "others")),
    *((_ir, "", filling) for filling in ("elements", "attributes", "text")),
]


@pytest.mark.parametrize(
    ("read", "name", "filling"), CASES, ids=[f"{c[0].__name__[1:]}-{c[1]}-{c[2]}" for c in CASES]
)
def test_a_document_of_the_largest_size_takes_bounded_memory_and_time(read, name, filling, tmp_path):
    ending = forked.run(lambda rng, folder: read(name, filling, folder), 0, tmp_path / "case")
    problem = ending.problem(forked.own_megabytes() + ABOVE_MB)
    assert problem is None, (problem, ending.output[-1500:])
