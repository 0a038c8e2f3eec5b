"""The tasks that a network is trained, scored and exported for."""

from __future__ import annotations

from kdcompress.tasks.base import Task
from kdcompress.tasks.classification import CLASSIFICATION
from kdcompress.tasks.clusters import CLUSTERS
from kdcompress.tasks.embedding import EMBEDDING

TASKS: tuple[Task, ...] = (CLASSIFICATION, EMBEDDING, CLUSTERS)


def task_of(num_classes: int, name: str | None = None) -> Task:
    """Returns the task of a network: the named one, classification, or embedding where it has no classes.

    Args:
        num_classes: K; 0 for a network without a classifier.
        name: `Task.name`; None: not known.
    """
    default = CLASSIFICATION if num_classes else EMBEDDING
    return next((task for task in TASKS if task.name == name), default)


def task_with_output(name: str) -> Task:
    """Returns the task whose exported files name their output so; other files' outputs count as logits."""
    return next((task for task in TASKS if task.output == name), CLASSIFICATION)


__all__ = ["CLASSIFICATION", "CLUSTERS", "EMBEDDING", "TASKS", "Task", "task_of", "task_with_output"]
