"""Verdicts on int8 and fp16 files: recommended on this machine or not, and why."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from kdcompress.deploy.layer_noise import LayerNoise

WARN_DROP = 1.0
"""Points of top-1 above which a faster file is not recommended."""
UNDECIDED = 1.1
"""Times as fast: where no difference is shown and the interval reaches beyond it, nothing is known."""
NAMED = 3
"""Layers that a sentence names."""


def speed_verdict(
    precision: str,
    score: dict[str, Any],
    size: float,
    timings: Sequence[dict[str, Any]],
    causes: Sequence[str],
    *,
    losses: Sequence[LayerNoise] = (),
    ci95: Sequence[float] | None = None,
    other_target: str | None = None,
) -> dict[str, Any]:
    """Judges a file that passed its gates.

    Args:
        precision: int8 or fp16.
        score: Score of the file, as `Variant` has it.
        size: Bytes of the file over those of the float32 one.
        timings: Against the float32 file on this machine, the one that counts first, as `paired` gives them;
            empty if it could not be timed.
        causes: Reasons that keep it from being faster, half a sentence each.
        losses: The layers that lose most, the worst first.
        ci95: Interval of the points won (negative: lost), or None.
        other_target: The kind of machine it was made for, if this one is of another kind.

    Returns:
        `{keep: true, false, or null where nothing can be said here, sentence, because, timings, points, ci95,
        size, worst}`.
    """
    timing = timings[0] if timings else None
    drop = score["drop"]
    faster = timing is not None and timing["verdict"] == "faster"
    loses_too_much = drop is not None and round(drop, 9) > WARN_DROP
    keep: bool | None = faster and not loses_too_much
    cost = f"{_accuracy(score, ci95)}, {size:.2f} of the size"
    if other_target is not None:
        keep = None
        text = f"no verdict on this machine: made for {other_target}; time it there"
    elif timing is None:
        text = "not recommended: it could not be timed on this machine"
    elif timing["ci95"] is None:
        keep = None
        text = (
            f"undecided. {timing['ratio']:.2f}x the speed of fp32 in too few rounds to tell "
            "(bench.rounds: 6 at least)"
        )
    elif timing["verdict"] == "no difference" and timing["ci95"][1] > UNDECIDED and not loses_too_much:
        keep = None
        text = f"undecided. {_ratio(timing)}, too unsteady to tell (more rounds, or a quieter machine)"
    elif faster and loses_too_much:
        text = f"not recommended. It loses more than {WARN_DROP:g} point of top-1 at {_ratio(timing)}"
    elif faster:
        text = f"keep. {_ratio(timing)}"
    else:
        reason = "; ".join(causes) or "no cause was found in the processor's flags or in the graph"
        text = f"not recommended on this machine. {_ratio(timing)}: {reason}"
    text = f"{text}. {cost}"
    return {
        "keep": keep,
        "sentence": f"{precision}: {text}",
        "because": [] if faster else list(causes),
        "timings": list(timings),
        "points": None if drop is None else 0.0 - drop,
        "ci95": None if ci95 is None else list(ci95),
        "size": size,
        "worst": [loss.to_json() for loss in losses],
    }


def worst_layers(losses: Sequence[LayerNoise]) -> str:
    """Describes the layers that lose most; empty without any."""
    if not losses:
        return ""
    named = ", ".join(
        f"{loss.layer} ({loss.own_db:.0f} dB, in float {loss.gain_db:+.1f} dB at the outputs)"
        for loss in losses[:NAMED]
    )
    return f"worst layers by signal to noise: {named}"


def _ratio(timing: dict[str, Any]) -> str:
    ends = timing["ci95"]
    return f"{timing['ratio']:.2f}x the speed of fp32 (95 % CI {ends[0]:.2f} to {ends[1]:.2f})"


def _accuracy(score: dict[str, Any], ci95: Sequence[float] | None) -> str:
    if score["drop"] is None:
        if "agreement_fp32" in score:
            same = f"fp32's class for {100 * score['agreement_fp32']:.1f} % of the images"
            constant = score.get("constant_fp32")
            if constant is None:
                return same
            return f"{same}, which says little: fp32 is nearly constant, {100 * constant:.1f} % are one class"
        return "no labels to score it by"
    within = "" if ci95 is None else f" (95 % {ci95[0]:+.2f} to {ci95[1]:+.2f})"
    figure = "Top-1" if score["top1"] is not None else "kNN top-1"
    return f"{figure} {0.0 - score['drop']:+.2f} points{within}"
