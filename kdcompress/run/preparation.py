"""Preparations of a method: trainings before the student's, each stored and reused by later runs."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
from collections.abc import Iterator

from kdcompress.methods.base import Method, Preparation
from kdcompress.networks.from_recipe import seeded
from kdcompress.networks.networks import Networks
from kdcompress.networks.tapped import Tapped
from kdcompress.networks.teacher import Teacher, teacher_network
from kdcompress.run.context import Run
from kdcompress.run.networks import info
from kdcompress.run.training import Training, for_method, stored_training
from kdcompress.train import result_store
from kdcompress.train.result_store import StoredResult


def prepare(run: Run, method: Method, teacher: Teacher | None) -> None:
    """Trains the extra heads that a method attaches to the teacher, or loads them from an earlier run.

    Args:
        run: The run.
        method: The recipe's method; receives the results in `take_prepared`.
        teacher: Tested.

    Raises:
        Interrupted: As in any training; a resume continues within it.
    """
    earlier: list[str] = []
    for preparation in method.preparations(method.config):
        assert teacher is not None, "a preparation trains beside a teacher"
        with _without_gradients(_network(run, teacher)):
            stored = stored_training(
                run,
                _stem(preparation),
                _key(run, preparation, teacher, earlier),
                functools.partial(preparation_training, run, preparation, teacher),
                {
                    "model": teacher.model,
                    "for": run.recipe.method["name"],
                    "epochs": preparation.epochs,
                },
                functools.partial(_takes, method, preparation.name, taken := set[str]()),
            )
        earlier.append(stored.sha256)
        if stored.sha256 not in taken:
            method.take_prepared(preparation.name, stored.state)


def _takes(method: Method, name: str, taken: set[str], stored: StoredResult) -> bool:
    """Gives a stored result to the method; returns True if it is taken, and adds its hash to `taken`."""
    try:
        method.take_prepared(name, stored.state)
    except RuntimeError:
        return False
    taken.add(stored.sha256)
    return True


def build_preparation(run: Run, preparation: Preparation, teacher: Teacher) -> Method:
    """Builds the method that a preparation trains, beside the teacher, on the run's device."""
    seeded(_seed(run), preparation.name)
    data = info(
        for_method(run, preparation.method, preparation.config), preparation.method.needs(preparation.config)
    )
    networks = Networks(_network(run, teacher), teacher)
    return preparation.method(preparation.config, networks, data).to(run.device)


def preparation_training(run: Run, preparation: Preparation, teacher: Teacher) -> Training:
    """Describes the training of the heads that a preparation attaches to the teacher."""
    recipe = run.recipe
    train = recipe.train.model_copy(
        update={"ema": None, "compile": False, "ship": "last", "bn_statistics": "off"}
    )
    schedule = {"schedule": "multistep", "milestones": list(preparation.milestones), "warmup": 0.0}
    optim = recipe.optim.model_copy(update={"lr": preparation.lr, **schedule})
    method = build_preparation(run, preparation, teacher)
    return Training(preparation.name, method, _seed(run), preparation.epochs, train, optim, choose=False)


@contextlib.contextmanager
def _without_gradients(tapped: Tapped) -> Iterator[None]:
    """Keeps the network that the frozen teacher was copied from out of the training that runs beside it."""
    tapped.network.requires_grad_(False)
    try:
        yield
    finally:
        tapped.network.requires_grad_(True)
        tapped.train_mode(False)


def _network(run: Run, teacher: Teacher) -> Tapped:
    return teacher_network(teacher, f"method {run.recipe.method['name']}")


def _stem(preparation: Preparation) -> str:
    # The name that run folders of the first version have.
    return "teacher_extras" if preparation.name == "preparation" else f"teacher_{preparation.name}"


def _seed(run: Run) -> int:
    """Returns the teacher's seed: `--seeds` repeats the student and keeps the teacher and its heads."""
    assert run.recipe.teacher is not None
    return run.recipe.teacher.seed


def _key(run: Run, preparation: Preparation, teacher: Teacher, earlier: list[str]) -> str:
    """Returns a hash of everything that the result depends on, earlier preparations included."""
    own = {
        **{f.name: getattr(preparation, f.name) for f in dataclasses.fields(preparation)},
        "method": f"{preparation.method.__module__}.{preparation.method.__qualname__}",
        "config": preparation.config.model_dump(mode="json"),
        "seed": _seed(run),
        "teacher": [teacher.model, teacher.size, teacher.fingerprint],
        "mean_std": teacher.normalisation,
        "earlier": earlier,
    }
    return result_store.key_of(
        own, *result_store.recipe_parts(run.recipe), run.data.listing_sha256, run.environment
    )
