"""Times students against a budget: short first timings, rounds, more rounds, and a verdict for each."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from typing import Any, Literal

import numpy as np

from kdcompress.bench import stats
from kdcompress.bench.budget import CONFIDENCE, Budget, latency_verdict
from kdcompress.bench.measure import Artefact, Protocol, measure
from kdcompress.bench.target import Target
from kdcompress.tools.suggest_candidates import StudentCandidate

PROTOCOL = Protocol(block_s=0.2, turns=2, min_calls=4)
SHORT_PROTOCOL = Protocol(block_s=0.05, turns=1, min_calls=2, warmup_s=0.1)
AT_ONCE = 4
"""Candidates of one short timing: the device holds so many files and processes at the same time."""
FAR = 2.0
"""A candidate whose fastest call takes more than so many budgets is far too slow. Other work on the device
makes calls longer, never shorter, so the fastest of a dozen needs no interval."""
RUNTIMES: tuple[str, ...] = ()
"""Empty: the default for the file's suffix."""


class Trial:
    """Times candidates and collects their measurements.

    Args:
        budget: Limits of the device.
        side: Side of their images in pixels.
        threads: Thread count of the runtime.
        batch: Images per call.
        rounds: Number of rounds.
        target: The device.
        tell: Called with progress: (the present step, done, total).

    Attributes:
        env: The device's `env` block, or None until something was timed.
        quality: The `quality` of a benchmark document.
        warnings: Sentences on the device's state.
    """

    def __init__(
        self,
        budget: Budget,
        *,
        side: int,
        threads: int | Literal["all"],
        batch: int,
        rounds: int,
        target: Target,
        tell: Callable[[str, int, int], None],
    ) -> None:
        self.budget, self.batch, self.rounds = budget, batch, rounds
        self.threads: int | Literal["all"] = threads
        self.target, self.tell = target, tell
        self.env: dict[str, Any] | None = None
        self.quality = "ok"
        self.warnings: list[str] = []
        self._results: dict[str, dict[str, Any]] = {}
        self._medians_ms: dict[str, list[float]] = {}
        self._failures: dict[str, dict[str, Any]] = {}
        self._dropped: set[str] = set()
        drawn = np.random.default_rng(0)
        # One image, mapped from its file: what the benchmark itself holds would count as the network's.
        self._images = {
            channels: drawn.random((1, channels, side, side), dtype=np.float32) for channels in (1, 3)
        }

    def time(self, candidates: Sequence[StudentCandidate]) -> None:
        """Times all briefly, drops those far too slow, and times the others until their verdict is clear."""
        left = list(candidates)
        if len(left) > AT_ONCE:
            for start in range(0, len(left), AT_ONCE):
                group = left[start : start + AT_ONCE]
                self._measure(group, SHORT_PROTOCOL, stats.MIN_ROUNDS, "first look", start, len(left))
            self.tell("suggest: first look", len(left), len(left))
            left = [c for c in left if c.student in self._results and not self._drop_if_far(c)]
            self._medians_ms = {name: self._medians_ms[name] for name in self._dropped}
        if left:
            self.warnings = []  # the state of the device during the short timings no longer matters
            self._measure(left, PROTOCOL, self.rounds, "timing")
        undecided = self._undecided(left)
        if undecided:  # a second and last verdict; see budget.CONFIDENCE
            self._measure(undecided, PROTOCOL, 2 * self.rounds, "deciding")

    def row(self, candidate: StudentCandidate) -> dict[str, Any]:
        """Makes the document's row of a candidate: its figures and verdict."""
        name = candidate.student
        result, medians = self._results.get(name), self._medians_ms.get(name, [])
        failure = self._failures.get(name)
        timed = result is not None and failure is None
        why = _excesses(candidate, result if timed else None, self.budget)
        verdict: str | None = None
        if why:
            verdict = "does not fit"
        elif timed:
            verdict = (
                "does not fit" if name in self._dropped else latency_verdict(medians, self.budget.latency_ms)
            )
        problem = candidate.problem
        if failure is not None:
            problem = f"{failure['stage']}: {failure['type']}: {failure['message']}"
        return {
            "student": name,
            "params": candidate.params,
            "macs": candidate.macs,
            "channels": candidate.channels,
            "bytes": candidate.bytes,
            "imagenet_top1": candidate.top1 and {"top1": candidate.top1[0], "weights": candidate.top1[1]},
            "latency_ms": _latency(result, medians) if timed and result is not None else None,
            "rounds": len(medians) if timed else 0,
            "ram_mb": _ram_mb(result) if timed else None,
            "verdict": verdict,
            "why": why,
            "first_look_only": name in self._dropped,
            "problem": problem or None,
            "noise": result["noise"] if timed and result is not None else None,
        }

    def _measure(
        self,
        candidates: Sequence[StudentCandidate],
        protocol: Protocol,
        rounds: int,
        what: str,
        before: int = 0,
        total: int = 0,
    ) -> None:
        """Times candidates together and adds the measurements to those before."""
        artefacts = []
        for candidate in candidates:
            assert candidate.file is not None
            assert candidate.channels is not None
            images = self._images[candidate.channels]
            artefacts.append(Artefact(candidate.student, candidate.file, RUNTIMES, images=images))

        def progress(done: int, of: int, step: str) -> None:
            if not total:
                self.tell(f"suggest: {what}" if step.startswith("timing") else "suggest: loading", done, of)
            elif step.startswith("timing"):
                self.tell(f"suggest: {what}", before + len(candidates) * done // of, total)

        document = measure(
            artefacts,
            threads=[self.threads],
            batch=[self.batch],
            rounds=rounds,
            protocol=protocol,
            target=self.target,
            progress=progress,
        )
        self.env = document["env"]
        self.threads = document["protocol"]["threads"][0]
        if protocol is not SHORT_PROTOCOL:
            self.quality = "noisy" if "noisy" in (self.quality, document["quality"]) else "ok"
        self.warnings += [warning for warning in document["warnings"] if warning not in self.warnings]
        for result in document["results"]:
            name = result["artefact"]
            self._results[name] = result
            self._medians_ms.setdefault(name, []).extend(result["round_medians_ms"])
        for failure in document["failures"]:
            if not failure["control"]:
                self._failures.setdefault(failure["artefact"], failure)

    def _drop_if_far(self, candidate: StudentCandidate) -> bool:
        quickest: float = self._results[candidate.student]["latency_ms"]["min"]
        if quickest <= FAR * self.budget.latency_ms:
            return False
        self._dropped.add(candidate.student)
        return True

    def _undecided(self, candidates: Sequence[StudentCandidate]) -> list[StudentCandidate]:
        """Lists the undecided candidates that would be the answer if they fitted."""
        rows = {candidate.student: self.row(candidate) for candidate in candidates}
        fitting = largest(sorted(rows.values(), key=lambda row: -row["params"]))
        least = 0 if fitting is None else fitting["params"]
        return [
            candidate
            for candidate in candidates
            if rows[candidate.student]["verdict"] == "undecided" and rows[candidate.student]["params"] > least
        ]


def _latency(result: dict[str, Any], medians_ms: Sequence[float]) -> dict[str, Any]:
    ends = stats.interval(medians_ms, CONFIDENCE)
    latency = result["latency_ms"]
    return {
        "p50": float(f"{statistics.median(medians_ms):.4g}"),
        "ci95": ends and list(ends),
        **{key: latency[key] for key in ("p90", "min", "n")},
    }


def _ram_mb(result: dict[str, Any] | None) -> float | None:
    """Computes the memory that running it added to its process."""
    return None if result is None else round(result["rss_mb"]["peak"] - result["rss_mb"]["base"], 1)


def _file_mb(candidate: StudentCandidate) -> float:
    """Returns the size of the file, or of the weights alone if it was not exported."""
    assert candidate.params is not None
    return candidate.bytes / 1e6 if candidate.bytes is not None else 4 * candidate.params / 1e6


def file_fits(candidate: StudentCandidate, budget: Budget) -> bool:
    """Tells if its file, or its weights alone if it was not exported, keep within the budget."""
    return budget.file_mb is None or _file_mb(candidate) <= budget.file_mb


def _excesses(candidate: StudentCandidate, result: dict[str, Any] | None, budget: Budget) -> list[str]:
    """Lists the sizes that are larger than the budget."""
    why = []
    if candidate.params is not None and not file_fits(candidate, budget):
        what = "file" if candidate.bytes is not None else "weights alone"
        why.append(f"{what} {_file_mb(candidate):.3g} MB")
    ram_mb = _ram_mb(result)
    if budget.ram_mb is not None and ram_mb is not None and ram_mb > budget.ram_mb:
        why.append(f"memory {ram_mb:.3g} MB")
    return why


def largest(rows: Sequence[dict[str, Any]]) -> dict[str, Any] | None:
    """Finds the first row that fits; the rows are ordered from the largest to the smallest."""
    return next((row for row in rows if row["verdict"] == "fits"), None)


def no_answer(rows: Sequence[dict[str, Any]], budget: Budget) -> str:
    """Explains that nothing fits, and names the nearest students."""
    limits = [f"{budget.latency_ms:g} ms"]
    limits += [] if budget.file_mb is None else [f"a file of {budget.file_mb:g} MB"]
    limits += [] if budget.ram_mb is None else [f"{budget.ram_mb:g} MB of memory"]
    timed = [row for row in rows if row["latency_ms"]]
    reasons = []
    if timed:
        quickest = min(timed, key=lambda row: row["latency_ms"]["p50"])
        reasons.append(f"the fastest timed is {quickest['student']} with {shown_latency(quickest)}")
    sized = [row for row in rows if row["params"] is not None]
    if budget.file_mb is not None and any("file" in w or "weights" in w for r in rows for w in r["why"]):
        smallest = min(sized, key=lambda row: row["bytes"] or 4 * row["params"])
        size_mb = (smallest["bytes"] or 4 * smallest["params"]) / 1e6
        reasons.append(f"the smallest file is that of {smallest['student']} with {size_mb:.3g} MB")
    if budget.ram_mb is not None and any("memory" in w for r in rows for w in r["why"]):
        leanest = min(timed, key=lambda row: row["ram_mb"])
        reasons.append(f"the least memory is that of {leanest['student']} with {leanest['ram_mb']:.3g} MB")
    undecided = [row for row in rows if row["verdict"] == "undecided"]
    if undecided:
        named = ", ".join(f"{row['student']} ({shown_latency(row)})" for row in undecided)
        reasons.append(
            f"undecided, since the interval straddles the budget: {named}; a quieter machine or more "
            "--rounds may settle it"
        )
    failed = [row for row in rows if row["problem"]]
    if failed and not timed:
        reasons.append(f"{failed[0]['student']}: {failed[0]['problem']}")
    return f"nothing fits {' and '.join(limits)} with 95 % confidence; {'; '.join(reasons)}"


def shown_latency(row: dict[str, Any]) -> str:
    """Formats a latency with its interval: `3.2 ms [3.1, 3.3]`."""
    latency = row["latency_ms"]
    ends = latency["ci95"]
    between = "" if ends is None else f" [{ends[0]:.3g}, {ends[1]:.3g}]"
    return f"{latency['p50']:.3g} ms{between}"
