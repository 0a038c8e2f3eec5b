"""The chart of a benchmark: a row for each result of one thread count and batch size."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from kdcompress.report import numbers
from kdcompress.report.charts import Chart, Row, dot_chart

_COLOURS = {"student": 0, "teacher": 1}
"""As everywhere in a report; other artefacts get the colours after these, in their order."""


def latency_charts(results: Sequence[dict[str, Any]]) -> list[Chart]:
    """Draws a chart for each (threads, batch), in the order of the results.

    Args:
        results: Results of a benchmark document.
    """
    settings = list(dict.fromkeys((result["threads"], result["batch"]) for result in results))
    colours = _colours(results)
    return [_chart(results, threads, batch, colours) for threads, batch in settings]


def _chart(results: Sequence[dict[str, Any]], threads: int, batch: int, colours: dict[str, int]) -> Chart:
    rows = []
    for result in results:
        if (result["threads"], result["batch"]) != (threads, batch):
            continue
        latency = result["latency_ms"]
        ends = latency["ci95"]
        # fp32 is what one expects; anything else is worth its room.
        precision = "" if result["precision"] == "fp32" else f" · {result['precision']}"
        rows.append(
            Row(
                f"{result['artefact']} · {result['runtime']}{precision}",
                [(latency["p50"], colours[result["artefact"]])],
                None if ends is None else (ends[0], ends[1]),
                numbers.milliseconds(latency["p50"]),
                marks=result.get("round_medians_ms", ()),
            )
        )
    title = f"{threads} thread{'s' if threads > 1 else ''}, batch {batch}"
    what = "ms per call, median of the rounds with its 95 % interval"
    return dot_chart(rows, key=f"latency-{threads}-{batch}", title=title, x_label=what)


def _colours(results: Sequence[dict[str, Any]]) -> dict[str, int]:
    colours: dict[str, int] = {}
    others = 0
    for name in dict.fromkeys(result["artefact"] for result in results):
        role = name.split(" ")[0]
        colours[name] = _COLOURS[role] if role in _COLOURS else len(_COLOURS) + others % 4
        others += role not in _COLOURS
    return colours
