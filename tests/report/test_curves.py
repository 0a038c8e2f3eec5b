"""What the curves show is what the log says."""

from __future__ import annotations

import types

from kdcompress.report import curves


def test_the_first_point_is_the_first_epoch_and_the_last_the_last(monkeypatch):
    log = [
        {"phase": "student", "epoch": epoch, "losses": {"ce": 1 / epoch}, "held_out": {"top1": epoch / 10}}
        for epoch in range(1, 9)
    ]
    drawn = []
    monkeypatch.setattr(curves, "line_chart", lambda lines, **how: drawn.append(lines))
    curves.charts(types.SimpleNamespace(log=log))
    accuracy, loss = drawn
    assert [x for x, _ in accuracy[0].points] == list(range(1, 9))
    assert [x for x, _ in loss[0].points] == list(range(1, 9))
