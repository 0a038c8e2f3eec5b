"""How far features go with a linear classifier: the linear probe."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from torch import Tensor

from kdcompress.errors import DataError
from kdcompress.probe.features import Features

STRENGTHS = (0.01, 0.1, 1.0, 10.0)
"""C, the inverse of the L2 penalty's weight, as scikit-learn has it: minimised is the sum of cross-entropies
+ ‖w‖² / (2 C)."""
DEFAULT = 1.0
"""Where there is nothing to choose C on: scikit-learn's own."""
MOST_STEPS = 1000


@dataclass(frozen=True, slots=True)
class LinearProbe:
    """A fitted linear probe's verdict.

    Args:
        classes: `[Q]` int64, of the queries.
        strength: C.
        chosen: True: C was chosen on held-out images.
        converged: True: L-BFGS came to its end within `MOST_STEPS`.
    """

    classes: Tensor
    strength: float
    chosen: bool
    converged: bool


def linear(train: Features, queries_QD: Tensor, held_out: Features | None) -> LinearProbe:
    """Fits logistic regression on features standardised over the training images (mean 0, deviation 1).

    Args:
        train: Train of the labelled training images.
        queries_QD: Features of the images to be classified.
        held_out: Labelled images on which the top-1 chooses C from `STRENGTHS`, the smallest of several that
            are equally good. None: `DEFAULT`.

    Raises:
        DataError: The training images have one class only.
    """
    if len(torch.unique(train.labels)) < 2:
        raise DataError("a linear probe needs labelled training images of at least two classes")
    mean, std = train.values.double().mean(0), train.values.double().std(0, correction=0)
    std = torch.where(std > 0, std, torch.ones_like(std))  # a dead feature stays 0 and takes no weight

    def standardised(values: Tensor) -> NDArray[np.float64]:
        scaled: NDArray[np.float64] = ((values.double() - mean) / std).numpy()
        return scaled

    strengths = (DEFAULT,) if held_out is None else STRENGTHS
    # Ascending, each from the one before: weak penalties take many steps from zero.
    model = LogisticRegression(max_iter=MOST_STEPS, warm_start=True)
    inputs, labels = standardised(train.values), train.labels.numpy()
    best: tuple[float, LinearProbe] | None = None
    for strength in strengths:
        model.set_params(C=strength)
        converged = _fit(model, inputs, labels)
        score = 0.0
        if held_out is not None:
            score = float((_predict(model, standardised(held_out.values)) == held_out.labels).double().mean())
        if best is None or score > best[0]:
            classes = _predict(model, standardised(queries_QD))
            best = score, LinearProbe(classes, strength, held_out is not None, converged)
    assert best is not None
    return best[1]


def _fit(model: Any, inputs: NDArray[np.float64], labels: NDArray[np.int64]) -> bool:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # told by the number of steps instead
        model.fit(inputs, labels)
    return bool(max(model.n_iter_) < MOST_STEPS)


def _predict(model: Any, inputs: NDArray[np.float64]) -> Tensor:
    return torch.from_numpy(np.asarray(model.predict(inputs), dtype=np.int64))
