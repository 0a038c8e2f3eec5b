"""A run whose teacher could not be folded says so: its passes are slower, and nothing else shows it."""

from __future__ import annotations

import pytest
from click.testing import CliRunner

from kdcompress import pipeline
from kdcompress.cli import main
from kdcompress.networks import teacher as teachers

TINY = (
    "distill", "--recipe", "quickstart", "--threads", "1", "--set", "train.max_steps=1",
    "--set", "teacher.epochs=1", "--set", "teacher.min_top1=0",
)  # fmt: skip


class Stopped(Exception):
    """Ends a run where the student's training would begin."""


@pytest.mark.parametrize("folds", [True, False])
def test_a_teacher_whose_folding_would_change_its_outputs_is_warned_of(folds, tmp_path, monkeypatch):
    def stop(run, training):
        raise Stopped

    monkeypatch.setattr(pipeline, "run_training", stop)
    if not folds:
        monkeypatch.setattr(teachers, "_same_readings", lambda folded, plain: False)
    done = CliRunner().invoke(main, [*TINY, "--out", str(tmp_path / "run")])
    assert isinstance(done.exception, Stopped), done.output
    warnings = [line for line in done.stderr.splitlines() if "was folded" in line]
    assert len(warnings) == (0 if folds else 1)
    if not folds:
        assert "teacher cifar/wrn-16-2: none of its " in warnings[0]
        assert warnings[0].endswith("it teaches as before, only slower")
