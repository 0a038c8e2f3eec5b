"""Reads the shipped student on held-out and test images for the report, and fits its temperature."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from kdcompress.atomic import write_json
from kdcompress.data.dataset import Data
from kdcompress.data.input_spec import InputSpec
from kdcompress.deploy.macs import evaluating
from kdcompress.deploy.normalised import Deployed
from kdcompress.errors import UserError
from kdcompress.metrics.split_rows import SplitRows
from kdcompress.recipe import Recipe
from kdcompress.report import evaluation
from kdcompress.report.evaluation import Evaluation, SplitOutputs
from kdcompress.report.thumbnails import thumbnail
from kdcompress.run.context import Run
from kdcompress.tasks import Task
from kdcompress.tasks.base import Scorer
from kdcompress.tasks.classification import Predictions

HELD_OUT_MOST = 5_000
"""Held-out images that a temperature and a threshold are fitted on: one number each needs no more."""
CALIBRATE = "export.calibrate"


def check_calibrate(recipe: Recipe, data: Data, task: Task) -> None:
    """Refuses probabilities where no temperature can be fitted.

    Raises:
        UserError: There are no held-out images with labels, or the network is no classifier.
    """
    if not recipe.export.calibrate:
        return
    if not task.has_classes:
        raise UserError(
            f"{CALIBRATE}: gives probabilities of classes, and {recipe.method['name']} as set trains a "
            "backbone; take it out (--set export.calibrate=false)"
        )
    if data.held_out is None:
        raise UserError(
            f"{CALIBRATE}: the temperature is fitted on held-out images, and nothing is held out; hold some "
            "out (--set data.held_out=0.1), put images into val/, or take it out "
            "(--set export.calibrate=false)"
        )
    if not bool((data.held_out.labels >= 0).any()):
        raise UserError(
            f"{CALIBRATE}: the temperature is fitted on labels, and no held-out image has one; label some, "
            "or take it out (--set export.calibrate=false)"
        )


def held_out_outputs(run: Run, network: nn.Module, spec: InputSpec) -> SplitOutputs | None:
    """Computes the logits of up to `HELD_OUT_MOST` labelled held-out images; None: there are none.

    Args:
        run: The run.
        network: The trained classifier, on the run's device; takes normalised images.
        spec: Its input.
    """
    images = run.data.held_out
    if images is None:
        return None
    rows = (images.labels >= 0).nonzero().flatten()
    if not len(rows):
        return None
    if len(rows) > HELD_OUT_MOST:
        rows = rows[torch.linspace(0, len(rows) - 1, HELD_OUT_MOST).round().long()]
    deployed = Deployed(network, spec).to(run.device)
    logits, labels = SplitRows(), []
    with evaluating(deployed), torch.no_grad(), run.evaluation(images.subset(rows)) as batches:
        for batch in batches:
            logits.add(deployed(batch.images).float())
            labels.append(batch.labels.cpu())
    return SplitOutputs(logits.tensor(), torch.cat(labels))


def evaluate_student(
    run: Run,
    predictions: Scorer,
    held_out: SplitOutputs | None,
    temperature: float | None,
    teacher_logits: Tensor | None,
    *,
    numbers_are_labels: bool,
) -> Evaluation:
    """Evaluates the exported file, and writes `details.json` into the run folder.

    Args:
        run: The run.
        predictions: The exported file's outputs on the test split.
        held_out: The student's outputs on held-out images.
        temperature: Fitted on them.
        teacher_logits: The teacher's on the test split; None: there are none.
        numbers_are_labels: False: the student is no classifier of the data's classes.
    """
    train, count = run.data.train.labels, run.data.num_classes
    train_counts = torch.bincount(train[train >= 0], minlength=count).tolist()
    if numbers_are_labels and isinstance(predictions, Predictions):
        made = evaluation.evaluate_classifier(
            SplitOutputs(predictions.logits, predictions.labels),
            held_out,
            temperature=temperature,
            train_counts=train_counts,
            teacher_logits=teacher_logits,
            pictures=lambda rows: [thumbnail(pixels) for pixels in run.data.test.evaluation_images(rows)],
        )
    else:
        made = _without_classes(predictions.labels, count)
    write_json(run.folder / evaluation.NAME, made.details)
    return made


def _without_classes(labels_N: Tensor, num_classes: int) -> Evaluation:
    """Counts the classes of the test split for a backbone or clusters."""
    labels = labels_N[labels_N >= 0]
    if not len(labels):
        return Evaluation({}, None, {"schema": evaluation.SCHEMA})
    counts = torch.bincount(labels, minlength=num_classes)
    # No label was read in training, so the largest class is that of the test split.
    largest = evaluation.largest_class(labels, num_classes, [], None)
    return Evaluation({}, largest, {"schema": evaluation.SCHEMA, "class_counts": counts.tolist()})


def with_intervals(scores: dict[str, Any] | None, made: Evaluation) -> dict[str, Any] | None:
    """Adds the 95 % intervals to a network's figures."""
    if scores is None:
        return None
    return {**scores, **evaluation.intervals(scores, made.details.get("class_counts"))}


def with_evaluation(results: dict[str, Any], made: Evaluation) -> dict[str, Any]:
    """Adds the evaluation to `results.json`."""
    roles = {role: with_intervals(results[role], made) for role in ("student", "teacher", "baseline")}
    roles["student"] = {**(roles["student"] or {}), **made.student}
    return {**results, **roles, "largest_class": made.largest_class}
