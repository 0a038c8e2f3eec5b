"""Every document that is read is checked: damage is one message that names the file, with exit code 2."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest
from click.testing import CliRunner

from kdcompress.cli import main
from kdcompress.documents import MOST_DEPTH, parse_document, parse_json, read_document
from kdcompress.errors import UserError
from kdcompress.report.record import read_log
from kdcompress.schemas.config import Labels
from kdcompress.schemas.figures import FigureName
from kdcompress.schemas.grid import Grid
from kdcompress.schemas.results import Results
from kdcompress.schemas.run import Manifest
from kdcompress.tasks.figures import FIGURES

FINISHED = Path(__file__).parent / "fixtures" / "e33f4e2" / "finished"


@pytest.fixture
def run(tmp_path):
    return Path(shutil.copytree(FINISHED, tmp_path / "run"))


def kdcompress(*arguments):
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


def refused(done, *words):
    assert done.exit_code == 2, (done.exception, done.output)
    assert done.stderr.splitlines()[-1].startswith("Error: "), done.stderr
    for word in words:
        assert word in done.stderr


def changed(path, change):
    document = json.loads(path.read_text())
    change(document)
    path.write_text(json.dumps(document))


def test_the_schema_knows_every_figure():
    assert set(FigureName.__args__) == set(FIGURES)


@pytest.mark.parametrize(
    ("name", "change", "word"),
    [
        ("results.json", lambda d: d["student"].update(top1="high"), "student.top1"),
        ("results.json", lambda d: d["student"].update(decides="nmi"), "decides"),
        ("results.json", lambda d: d["student"]["per_class"].pop(), "per_class"),
        ("results.json", lambda d: d["student"].pop("macs"), "lacks the key 'macs'"),
        ("manifest.json", lambda d: d.update(files=[1]), "files"),
        ("manifest.json", lambda d: d.update(files={"../x": {"sha256": "", "bytes": 1}}), "outside"),
        ("gates.json", lambda d: d["gates"][0].pop("passed"), "gates.0: lacks the key 'passed'"),
        ("bench.json", lambda d: d["results"][0].update(latency_ms=None), "results.0.latency_ms"),
        ("bench.json", lambda d: d["results"][0]["latency_ms"].update(p50=0), "p50"),
        ("config.json", lambda d: d["input"].update(mean=[1, 2]), "mean and std"),
        ("config.json", lambda d: d["input"].update(height=10**9), "input.height"),
    ],
)
def test_report_names_the_file_and_the_key(run, name, change, word):
    changed(run / name, change)
    refused(kdcompress("report", run), f"{run / name}: is damaged", word)


@pytest.mark.parametrize(
    "text",
    ["[" * 5000, "{" * 5000, '{"a": NaN}', '{"a": 1e999}', f'{{"a": {"9" * 5000}}}', '["\\ud800"]', "\0"],
)
def test_what_no_writer_of_ours_makes_is_refused(text):
    with pytest.raises(UserError, match="there: is damaged"):
        parse_json(text, "there")
    deep = "[" * (MOST_DEPTH + 2) + "]" * (MOST_DEPTH + 2)
    with pytest.raises(UserError, match="nested too deeply"):
        parse_json(deep, "there")


def test_a_message_never_has_a_control_character_of_the_file():
    with pytest.raises(UserError) as caught:
        parse_document('{"schema": "kdcompress.grid/1", "threads": 1, "\\u001b[2J": 1}', "there", Grid)
    with pytest.raises(UserError) as caught:
        parse_document('{"schema": "\\u001b[2J"}', "there", Manifest)
    assert "\x1b" not in str(caught.value)
    assert str(caught.value).isprintable()


def test_newer_keys_stay():
    text = '{"schema": "kdcompress.manifest/1", "finished": true, "newer": {"a": [1]}}'
    assert parse_document(text, "there", Manifest)["newer"] == {"a": [1]}


def test_a_fifo_is_no_document(tmp_path):
    os.mkfifo(tmp_path / "results.json")
    with pytest.raises(UserError, match="no regular file"):
        read_document(tmp_path / "results.json", Results)


def test_labels_are_a_list_of_text(tmp_path):
    (tmp_path / "labels.json").write_text("[1]")
    with pytest.raises(UserError, match=r"labels\.json: is damaged: 0: "):
        read_document(tmp_path / "labels.json", Labels)


def test_a_torn_last_line_of_the_log_is_left_out_with_a_note(run, capsys):
    with (run / "log.jsonl").open("ab") as log:
        log.write(b"\xff")
    assert len(read_log(run / "log.jsonl")) == 2
    assert "log.jsonl: its last line is not complete" in capsys.readouterr().err


def test_other_damage_of_the_log_is_one_message(run):
    lines = (run / "log.jsonl").read_bytes().splitlines(keepends=True)
    (run / "log.jsonl").write_bytes(lines[0] + b"\xff\n" + lines[1])
    refused(kdcompress("report", run), "log.jsonl, line 2")
    recipe = run / "recipe.yaml"
    refused(kdcompress("distill", "--recipe", recipe, "--out", run, "--resume", "-q"), "log.jsonl, line 2")


def test_a_finished_run_with_a_torn_log_is_resumed(run):
    with (run / "log.jsonl").open("ab") as log:
        log.write(b"\xff")
    done = kdcompress("distill", "--recipe", run / "recipe.yaml", "--out", run, "--resume", "--json", "-q")
    assert done.exit_code == 0, done.output


@pytest.mark.parametrize(
    ("change", "word"),
    [
        (lambda d: d["results"][0].pop("threads"), "lacks the key 'threads'"),
        (lambda d: d.update(results={}), "results"),
        (lambda d: d["aa"].update(ratio=0), "aa.ratio"),
    ],
)
def test_bench_compare_refuses_a_damaged_document(run, change, word):
    changed(run / "bench.json", change)
    refused(kdcompress("bench", run / "student.onnx", "--compare", run / "bench.json", "-q"), word)
