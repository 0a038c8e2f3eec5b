"""Charts of a student's quality: confusion matrix, calibration, and the curves of two classes."""

from __future__ import annotations

from typing import Any

from kdcompress.metrics.calibration import BINS
from kdcompress.report import numbers, words
from kdcompress.report.charts import Chart, Line, line_chart
from kdcompress.report.matrix import matrix_chart
from kdcompress.report.quality import Quality

MOST_DRAWN = 30
"""Classes of a drawn confusion matrix; of more the most frequent mistakes are listed."""
MOST_LISTED = 8
MOST_CHARACTERS = 24
"""Of a class name in the label of an axis."""


def confusion_chart(quality: Quality) -> Chart | None:
    """Draws the confusion matrix; None: it is not known, or has too many classes."""
    matrix = quality.details.get("confusion")
    if not matrix or not 1 < len(matrix) <= MOST_DRAWN:
        return None
    names = [quality.name(number) for number in range(len(matrix))]
    return matrix_chart(matrix, names, key="confusion", title="Test images by true class (rows)")


def confusion_list(quality: Quality) -> list[str]:
    """Lists the most frequent mistakes of a student with too many classes for a drawn matrix."""
    if confusion_chart(quality) is not None:
        return []
    return [
        f"{quality.name(pair['label'])} taken for {quality.name(pair['given'])}: {pair['n']:,}"
        for pair in quality.details.get("confusions", [])[:MOST_LISTED]
    ]


def calibration_chart(quality: Quality) -> Chart | None:
    """Draws top-1 over confidence; None: it is not known."""
    stored = quality.details.get("calibration")
    if not stored or not stored["bins"]:
        return None
    lines = [Line("perfect", [(0, 0), (100, 100)], 1, dashed=True), _bins("as trained", stored["bins"], 0)]
    if stored["bins_calibrated"]:
        lines.append(_bins("at the fitted temperature", stored["bins_calibrated"], 3))
    return line_chart(
        lines, key="calibration", title="Calibration", x_label="mean confidence, %",
        y_label="correct, % of the bin", from_zero=True,
    )  # fmt: skip


def _bins(name: str, bins: list[dict[str, Any]], colour: int) -> Line:
    return Line(name, [(100 * part["confidence"], 100 * part["top1"]) for part in bins], colour)


def two_class_charts(quality: Quality) -> list[Chart]:
    """Draws the ROC and the precision-recall curve; empty with other numbers of classes."""
    figures, curves = quality.record.results["student"].get("two_classes"), quality.details.get("two_classes")
    if not figures or not curves:
        return []
    positive = words.shortened(quality.name(figures["positive"]), MOST_CHARACTERS)
    points = [("at 0.5", figures["at_half"], 2)]
    if figures["threshold"] is not None:
        points.append(("at the chosen threshold", figures["threshold"], 3))
    roc = [Line("student", _percent(curves["roc"]), 0), Line("chance", [(0, 0), (100, 100)], 1, dashed=True)]
    precision = [Line("student", _percent(curves["precision_recall"]), 0)]
    for name, at, colour in points:
        roc.append(Line(name, [(100 * at["false_positive_rate"], 100 * at["recall"])], colour))
        if at["precision"] is not None:
            precision.append(Line(name, [(100 * at["recall"], 100 * at["precision"])], colour))
    found = f"{positive!r} that are found, %"
    return [
        line_chart(
            roc, key="roc", title=f"ROC curve: area {figures['roc_auc']:.3f}",
            x_label="false alarms, % of the others", y_label=found, from_zero=True,
        ),
        line_chart(
            precision, key="precision-recall",
            title=f"Precision and recall: average {figures['average_precision']:.3f}",
            x_label=found, y_label="alarms that are right, %", from_zero=True,
        ),
    ]  # fmt: skip


def _percent(points: list[list[float]]) -> list[tuple[float, float]]:
    return [(100 * x, 100 * y) for x, y in points]


def calibration_sentence(quality: Quality) -> str:
    """Describes the calibration and the temperature; empty if they are not known."""
    facts = quality.record.results["student"].get("calibration")
    if not facts:
        return ""
    text = (
        f"Confidence and top-1 differ by {100 * facts['ece']:.1f} points on average (expected calibration "
        f"error on the test images, {BINS} bins)"
    )
    if facts["temperature"] is None:
        return (
            f"{text}. No temperature was fitted, since there are no held-out images with labels "
            "(data.held_out) and the test images must not choose it."
        )
    sentence = (
        f"{text}; by {100 * facts['ece_calibrated']:.1f} if the logits are divided by the temperature "
        f"{facts['temperature']:g}, which was fitted on {facts['fitted_on']['n']:,} held-out images."
    )
    if (quality.record.recipe.get("export") or {}).get("calibrate"):
        return f"{sentence} The second output “probabilities” of the exported files is their softmax."
    return f"{sentence} --set export.calibrate=true adds their softmax to the exported files."


def threshold_sentences(quality: Quality) -> list[str]:
    """Describes a classifier of two classes at 0.5 and at the threshold chosen on held-out images."""
    figures = quality.record.results["student"].get("two_classes")
    if not figures:
        return []
    positive, at = quality.name(figures["positive"]), figures["threshold"]
    sentences = [f"At the threshold 0.5 (the larger logit): {_at(figures['at_half'], positive)}"]
    if at is None:
        sentences.append(
            "No other threshold was chosen, since there are no held-out images of both classes and the test "
            "images must not choose it."
        )
    else:
        sentences.append(
            f"At {at['threshold']:.3g}, chosen for balanced top-1 on {at['chosen_on']['n']:,} held-out "
            f"images: {_at(at, positive)}"
        )
    return sentences


def _at(at: dict[str, Any], positive: str) -> str:
    precision = (
        "no alarm"
        if at["precision"] is None
        else f"{numbers.percent(at['precision'])} of the alarms are right"
    )
    return (
        f"{numbers.percent(at['recall'])} of {positive!r} found, "
        f"{numbers.percent(at['false_positive_rate'])} false alarms among the others, {precision}; balanced "
        f"top-1 {numbers.percent(at['balanced_top1'])}."
    )


def mistake_cards(quality: Quality) -> list[dict[str, str]]:
    """Describes the worst test images that the student gets wrong, for their thumbnails."""
    return [
        {
            "image": str(mistake["image"]),
            "label": quality.name(mistake["label"]),
            "given": quality.name(mistake["given"]),
            "probability": numbers.percent(mistake["probability"]),
        }
        for mistake in quality.details.get("mistakes") or []
    ]
