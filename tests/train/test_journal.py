"""The log, and its drawing."""

from __future__ import annotations

import importlib.util
import json

import pytest

from kdcompress.errors import UserError, WorldError
from kdcompress.train.journal import Journal, require_tensorboard


def line(epoch):
    return {
        "phase": "student",
        "epoch": epoch,
        "lr": 0.1,
        "images_per_s": 5.0,
        "losses": {"ce": 1.0},
        "held_out": {"top1": 0.5, "loss": None},
    }


def test_what_was_written_after_a_checkpoint_is_cut_back(tmp_path):
    journal = Journal(tmp_path)
    journal.epoch(line(1))
    sizes = journal.sizes()
    journal.epoch(line(2))
    journal.truncate(sizes)
    journal.epoch(line(3))
    lines = (tmp_path / "log.jsonl").read_text().splitlines()
    assert [json.loads(row)["epoch"] for row in lines] == [1, 3]


def test_sizes_of_other_files_in_a_checkpoint_change_nothing(tmp_path):
    (tmp_path / "precious").write_text("mine")
    (tmp_path / "run").mkdir()
    Journal(tmp_path / "run").truncate({"../precious": 0, str(tmp_path / "precious"): 1})
    assert (tmp_path / "precious").read_text() == "mine"


def test_a_log_that_is_a_link_is_not_appended_to(tmp_path):
    (tmp_path / "precious").write_text("mine\n")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "log.jsonl").symlink_to(tmp_path / "precious")
    with pytest.raises(WorldError, match=r"log\.jsonl: cannot be written"):
        Journal(tmp_path / "run").epoch(line(1))
    assert (tmp_path / "precious").read_text() == "mine\n"


def test_only_the_first_process_writes(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    journal = Journal(None, tensorboard=True)
    journal.epoch(line(1))
    assert not list(tmp_path.iterdir())


def test_tensorboard_shows_every_figure_of_an_epoch(tmp_path):
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    journal = Journal(tmp_path, tensorboard=True)
    journal.epoch(line(1))
    journal.epoch(line(2))
    events = accumulator.EventAccumulator(str(tmp_path / "tensorboard" / "student")).Reload()
    assert set(events.Tags()["scalars"]) == {"losses/ce", "held_out/top1", "lr", "images_per_s"}
    assert [event.step for event in events.Scalars("held_out/top1")] == [1, 2]


def test_a_missing_tensorboard_is_said_before_the_run(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"pip install 'kdcompress\[tensorboard\]'"):
        require_tensorboard()
