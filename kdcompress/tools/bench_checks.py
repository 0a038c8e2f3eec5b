"""Compares a benchmark document with an earlier one, checks the conditions of --fail-if, and writes it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from kdcompress.atomic import write_bytes, write_json
from kdcompress.bench.compare import compare, label_of, read_document
from kdcompress.bench.conditions import Condition
from kdcompress.errors import UserError
from kdcompress.progress import Progress
from kdcompress.report.plot import FORMATS, plot


class BenchChecks:
    """The options about a document, checked before anything is measured.

    Args:
        out: File for the document; None: it is not written.
        plot: File for the plot, .svg or .png; None: it is not drawn.
        compare: An earlier document.
        fail_if: Conditions, as in bench/conditions.py.

    Raises:
        UserError: A condition or a file name cannot be used.
    """

    def __init__(
        self, *, out: Path | None, plot: Path | None, compare: Path | None, fail_if: Sequence[str]
    ) -> None:
        self._out, self._plot, self._compare = out, plot, compare
        self._conditions = [Condition(text) for text in fail_if]
        self._old = None if compare is None else read_document(compare)
        for option, path in (("--out", out), ("--plot", plot)):
            if path is None:
                continue
            if path.is_dir():
                raise UserError(f"{option} {path}: is a folder; name a file")
            if not path.absolute().parent.is_dir():
                raise UserError(f"{option} {path}: there is no folder {path.parent}")
        if plot is not None and plot.suffix not in FORMATS:
            raise UserError(f"--plot {plot}: expected a name that ends in {' or '.join(FORMATS)}")

    def check_conditions(self, artefacts: Sequence[str], *, has_baseline: bool, has_top1: bool) -> None:
        """Refuses conditions on figures that the document will not have.

        Args:
            artefacts: Names of the artefacts.
            has_baseline: True if there is a baseline.
            has_top1: True if their accuracy is known.

        Raises:
            UserError: There is one.
        """
        for condition in self._conditions:
            condition.check(artefacts)
            lacking = None
            if condition.needs_old and self._old is None:
                lacking = "'old' is of an earlier document; give it with --compare"
            elif condition.metrics & {"ratio", "ratio_low", "ratio_high"} and not has_baseline:
                lacking = "a ratio is to a baseline; give it with --baseline"
            elif "top1" in condition.metrics and not has_top1:
                lacking = "top1 is known with the data of a --recipe"
            if lacking is not None:
                raise UserError(f"--fail-if {condition.text!r}: {lacking}")

    def finish(self, document: dict[str, Any], progress: Progress) -> dict[str, Any]:
        """Adds `compare` and `not_met` to the document, and writes it and the plot.

        Args:
            document: A document of schema `kdcompress.bench/1`.
            progress: Terminal output for warnings.
        """
        if self._old is not None:
            assert self._compare is not None
            document["compare"] = compare(document, self._old, self._compare.name)
            for difference in document["compare"]["another_machine"]:
                progress.warn(f"{self._compare} is not comparable: {difference}")
        document["not_met"] = self._not_met(document)
        if self._out is not None:
            write_json(self._out, document)
        if self._plot is not None and document["results"]:
            write_bytes(self._plot, plot(document, self._plot.suffix))
        return document

    def _not_met(self, document: dict[str, Any]) -> list[str]:
        cells = len(document["results"]) + sum(not failure.get("control") for failure in document["failures"])
        sentences = [
            f"{label_of(failure)}{', the control,' if failure.get('control') else ''} could not be measured: "
            f"{failure['stage']}: {failure['type']}: {failure['message']}"
            for failure in document["failures"]
        ]
        if sentences:
            sentences = [f"{len(document['results'])} of {cells} results measured", *sentences]
        return sentences + [
            sentence for condition in self._conditions for sentence in condition.failures(document, self._old)
        ]
