"""Compares two artefacts of one benchmark document, whichever of them was its baseline."""

from __future__ import annotations

from typing import Any

from kdcompress.bench import stats


def paired(
    document: dict[str, Any], artefact: str, baseline: str, runtime: str = "onnxruntime"
) -> list[dict[str, Any]]:
    """Computes how many times as fast one artefact is as another, for each thread count and batch size.

    They were timed in the same rounds, so the ratio of each round counts, as in `vs_baseline`.

    Args:
        document: A document of schema `kdcompress.bench/1`.
        artefact: Name of the artefact.
        baseline: Name of the other one.
        runtime: Runtime in which both were timed.

    Returns:
        `{threads, batch, ratio (baseline time / own time), ci95, verdict}`, in the document's order; nothing
        for a setting in which one of them failed.
    """
    results = [result for result in document["results"] if result["runtime"] == runtime]
    others = {
        (result["threads"], result["batch"]): result for result in results if result["artefact"] == baseline
    }
    ratios = []
    for own in (result for result in results if result["artefact"] == artefact):
        setting = own["threads"], own["batch"]
        if setting not in others:
            continue
        ratio, interval = stats.paired_ratio(others[setting]["round_medians_ms"], own["round_medians_ms"])
        # The difference between two copies of one file, the same for every comparison.
        margins = [r["vs_baseline"]["margin"] for r in (own, others[setting]) if r["vs_baseline"]]
        least = max(margins, default=stats.LEAST_DIFFERENCE)
        ratios.append(
            {
                "threads": own["threads"],
                "batch": own["batch"],
                "ratio": round(ratio, 4),
                "ci95": interval and [round(end, 4) for end in interval],
                "verdict": stats.verdict(interval, least),
            }
        )
    return ratios
