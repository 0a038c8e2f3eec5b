"""Turned views of a batch, for the methods that learn from rotations."""

from __future__ import annotations

from kdcompress.data.batch import Batch, TurnedViews, View
from kdcompress.methods import losses


def turned(batch: Batch) -> TurnedViews:
    """Turns view k of each image by k quarter turns counter-clockwise, for a batch of four views."""
    return turned_together(batch.views)


def turned_together(views: tuple[View, ...]) -> TurnedViews:
    """Turns view k of each image by k quarter turns counter-clockwise, for four views."""
    return TurnedViews(losses.turned_views([view.images for view in views]), views)
