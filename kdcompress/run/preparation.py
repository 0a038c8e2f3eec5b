"""What a method trains beside the teacher before the student learns; kept and found again like a teacher."""

from __future__ import annotations

import hashlib
import json
from typing import Any

from torch import Tensor

from kdcompress.methods.base import Method, Preparation
from kdcompress.networks.from_recipe import seeded
from kdcompress.networks.networks import Networks
from kdcompress.networks.teacher import Teacher, teacher_network
from kdcompress.run.context import Run
from kdcompress.run.networks import info
from kdcompress.run.training import loop, taught_by
from kdcompress.train import teacher_store

LABEL = "preparation"
STEM = "teacher_extras"
"""Of the file under checkpoints/ and in the cache."""


def prepare(run: Run, method: Method, teacher: Teacher | None) -> None:
    """Hands the method what it needs beside the teacher, from an earlier run with the same inputs or trained.

    Args:
        run: The run.
        method: That of the recipe.
        teacher: Tested.

    Raises:
        Interrupted: As in any training; a resume goes on within it.
    """
    asked = method.preparation(method.config)
    if asked is None:
        return
    assert teacher is not None, "only what is taught can need a preparation"
    key = _key(run, asked, teacher)
    kept = teacher_store.find(run.folder.checkpoints, key, STEM)
    if run.processes.agree(kept is not None):
        state: dict[str, Tensor] | None = None
        if run.processes.first:
            assert kept is not None
            teacher_store.store(run.folder.checkpoints, key, kept.state, kept.note, STEM)
            state = kept.state
        method.take_prepared(run.processes.agree(state))
        return
    # Nobody trains the network that the frozen copy was made of, in no process.
    original = teacher_network(teacher, f"method {run.recipe.method['name']}")
    original.network.requires_grad_(False)
    trained = build_preparation(run, asked, teacher)
    train = run.recipe.train.model_copy(update={"ema": None, "compile": False, "ship": "last"})
    optim = run.recipe.optim.model_copy(
        update={
            "lr": asked.lr, "schedule": "multistep", "milestones": list(asked.milestones), "warmup": 0.0,
        }
    )  # fmt: skip
    outcome = loop(
        run, trained, LABEL, seed=_seed(run), epochs=asked.epochs, train=train, optim=optim, choose=False
    )
    original.network.requires_grad_(True)
    original.train_mode(False)
    note = {"model": teacher.model, "for": run.recipe.method["name"], "epochs": asked.epochs}
    if run.processes.first:
        teacher_store.keep(run.folder.checkpoints, key, outcome.state, note, STEM)
    run.processes.wait()
    method.take_prepared(outcome.state)


def build_preparation(run: Run, asked: Preparation, teacher: Teacher) -> Method:
    """The method that a preparation trains, beside the teacher, on the run's device."""
    seeded(_seed(run), LABEL)
    data = info(taught_by(run, asked.method, asked.config))
    network = teacher_network(teacher, f"method {run.recipe.method['name']}")
    return asked.method(asked.config, Networks(network, teacher), data).to(run.device)


def _seed(run: Run) -> int:
    """The teacher's: `--seeds` repeats the student and keeps what it learns from."""
    assert run.recipe.teacher is not None
    return run.recipe.teacher.seed


def _key(run: Run, asked: Preparation, teacher: Teacher) -> str:
    """A hash of everything that the result depends on, and of nothing else."""
    of_training: dict[str, Any] = {
        "method": f"{asked.method.__module__}.{asked.method.__qualname__}",
        "config": asked.config.model_dump(mode="json"),
        "epochs": asked.epochs,
        "lr": asked.lr,
        "milestones": asked.milestones,
        "seed": _seed(run),
        "teacher": [teacher.model, teacher.size, teacher.fingerprint],
        "mean_std": teacher.normalisation,
    }
    parts = [of_training, *teacher_store.of_recipe(run.recipe), run.data.listing_sha256, run.surroundings]
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:32]
