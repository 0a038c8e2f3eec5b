"""Progress where there is no terminal: a line per event and per minute, and nothing with -q."""

from __future__ import annotations

import io
import re
import sys
import threading
import time
from types import SimpleNamespace

import pytest
import torch

from kdcompress import progress as progress_module
from kdcompress.progress import Progress, counted
from kdcompress.train.journal import describe_epoch

LINE = {
    "phase": "student", "epoch": 3, "step": 30, "seconds": 1.0, "images_per_s": 1234.5, "lr": 0.1,
    "losses": {"ce": 0.51239, "kd": 2.0},
    "held_out": {"top1": 0.8123, "balanced_top1": 0.75, "n": 18, "loss": 1.0},
}  # fmt: skip


def test_the_line_of_an_epoch_names_phase_epoch_losses_held_out_figures_and_speed():
    assert describe_epoch(LINE, 40) == (
        "student: epoch 3 of 40; losses: ce 0.5124, kd 2; "
        "held-out top-1 81.23 %, balanced top-1 75.00 %; 1,234 images/s"
    )


def test_the_line_of_an_epoch_without_held_out_images_leaves_them_out():
    assert describe_epoch({**LINE, "held_out": None, "losses": {}}, 3) == (
        "student: epoch 3 of 3; 1,234 images/s"
    )


def test_without_a_terminal_an_epoch_is_a_line_with_the_time_left(monkeypatch, capsys):
    now = [0.0]
    monkeypatch.setattr(progress_module.time, "monotonic", lambda: now[0])
    with Progress().bar("student: cifar/resnet8", 400, done=100) as bar:
        bar.report("before the first step")
        now[0] = 50.0
        bar.advance(100, "epoch 1/3  512 images/s")
        bar.report("student: epoch 1 of 3")
        now[0] = 150.0
        bar.advance(200)
        bar.report("student: epoch 3 of 3")
    assert capsys.readouterr().err.splitlines() == [
        "before the first step",
        "student: epoch 1 of 3; 2 min left",
        "student: epoch 3 of 3",
    ]


def test_a_task_without_news_writes_a_line_every_minute(monkeypatch, capsys):
    monkeypatch.setattr(progress_module, "LINE_SECONDS", 0.05)
    with Progress().bar("student: cifar/resnet8", 400) as bar:
        bar.advance(100, "epoch 1/3  512 images/s")
        time.sleep(0.3)
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) >= 2
    assert lines[0].startswith("student: cifar/resnet8: 100 of 400; epoch 1/3, 512 images/s; ")
    assert lines[0].endswith(" left")


def test_the_line_of_a_minute_has_the_figures_of_the_epoch_before(monkeypatch, capsys):
    monkeypatch.setattr(progress_module, "LINE_SECONDS", 0.05)
    with Progress().bar("student: cifar/resnet8", 400) as bar:
        bar.advance(100, "epoch 2/3  512 images/s")
        bar.report("student: epoch 1 of 3; losses: ce 0.5; held-out top-1 90.00 %")
        time.sleep(0.3)
    lines = capsys.readouterr().err.splitlines()
    assert lines[-1].endswith("left; before: epoch 1 of 3; losses: ce 0.5; held-out top-1 90.00 %")


def test_work_without_units_is_announced_and_goes_on_every_minute(monkeypatch, capsys):
    monkeypatch.setattr(progress_module, "LINE_SECONDS", 0.05)
    with Progress().announce("Exporting student.onnx"):
        time.sleep(0.2)
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "Exporting student.onnx"
    assert lines[1].startswith("Exporting student.onnx: for ")


def test_the_innermost_of_two_open_tasks_speaks(monkeypatch, capsys):
    monkeypatch.setattr(progress_module, "LINE_SECONDS", 0.05)
    progress = Progress()
    with progress.announce("outer"), progress.counter() as tell:
        tell("inner", 1, 4)
        time.sleep(0.3)
    lines = capsys.readouterr().err.splitlines()
    assert lines[:3] == ["outer", "inner", "inner: 1 of 4"]
    assert not any(line.startswith("outer: ") for line in lines)


def test_a_counter_names_each_of_its_tasks_once(capsys):
    with Progress().counter() as tell:
        for done in range(3):
            tell("bench: loading", done, 3)
            tell("bench: timing", done, 3)
    assert capsys.readouterr().err.splitlines() == ["bench: loading", "bench: timing"]


@pytest.mark.parametrize("text", ["a\x1b]0;title\x07b", "a\u202eb", "a\x9bb", "[red]a[/] [link=x]"])
def test_a_terminal_gets_no_control_characters_of_a_name_or_a_note(monkeypatch, text):
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    shown = Terminal()
    monkeypatch.setattr(sys, "stderr", shown)
    monkeypatch.setenv("COLUMNS", "200")
    with Progress().bar(text, 2) as bar:
        bar.advance(1, note=text)
    with Progress().counter() as tell:
        tell(text, 1, 2)
    own = re.sub(r"\x1b\[[\d;?]*[A-Za-z]", "", shown.getvalue())  # colours and movements of the bars
    assert not set("\x1b\x07\x9b\u202e") & set(own)
    if text.startswith("["):
        assert text in own


def test_images_are_counted_once_they_are_processed():
    events = []
    bar = SimpleNamespace(advance=lambda amount: events.append(f"{amount} done"))
    batches = [(torch.zeros(3), torch.zeros(3)), (torch.zeros(2), torch.zeros(2))]
    for images, _ in counted(batches, bar):
        events.append(f"{len(images)} processed")
    assert events == ["3 processed", "3 done", "2 processed", "2 done"]


def test_no_thread_is_left_after_a_task():
    before = threading.active_count()
    with pytest.raises(KeyError), Progress().announce("Exporting"):
        raise KeyError
    assert threading.active_count() == before


@pytest.mark.parametrize("terminal", [True, False])
def test_quiet_silences_all_but_warnings(monkeypatch, capsys, terminal):
    monkeypatch.setattr("sys.stderr.isatty", lambda: terminal)
    progress = Progress(quiet=True)
    progress.say("where the log is")
    with progress.announce("Exporting"), progress.bar("training", 2) as bar, progress.counter() as tell:
        bar.advance()
        bar.report("epoch 1")
        tell("download", 1, 2)
    progress.warn("a class is tiny")
    assert capsys.readouterr().err == "Warning: a class is tiny\n"


@pytest.mark.parametrize(("seconds", "text"), [(7.4, "7 s"), (240, "4 min"), (12_000, "3 h 20 min")])
def test_a_time_is_read_at_a_glance(seconds, text):
    assert progress_module.duration_text(seconds) == text
