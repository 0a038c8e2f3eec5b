"""Clusters for labels: trains the student without labels, clusters its features, and labels the images so."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from kdcompress.data.dataset import Data
from kdcompress.data.source import Source
from kdcompress.errors import UserError
from kdcompress.methods.base import configured
from kdcompress.metrics import kmeans
from kdcompress.metrics.kmeans import Whitening
from kdcompress.metrics.neighbours import knn_top1
from kdcompress.networks.from_recipe import LoadedNetwork, load_network, seeded
from kdcompress.networks.load_state import load_state
from kdcompress.networks.networks import Networks
from kdcompress.networks.tapped import Tapped
from kdcompress.recipe import PseudoLabelsSection, Recipe
from kdcompress.run.context import Run
from kdcompress.run.networks import info, input_spec, tapped
from kdcompress.run.training import Training, for_method, stored_training
from kdcompress.tasks.clusters import of_clusters
from kdcompress.train import result_store
from kdcompress.train.evaluate import predict
from kdcompress.train.result_store import StoredResult

PRETRAINING, CLUSTERS = "pretraining", "clusters"
"""Names of the stored results in `checkpoints/`; the first also names the log lines."""


@dataclass(frozen=True, slots=True)
class Pretraining:
    """A student that was trained without labels, and the clusters of its features.

    Args:
        state: State dictionary of the student without a classifier, on the CPU.
        network: A network of this architecture, with the state.
        assigned: `[N]` int64, the cluster of each training image.
        centres: `[K, P]` float32 unit vectors.
        whitening: Change of features before they are compared with the centres; None: unit length alone.
        note: Facts about the clusters, for `results.json`.
        starts_student: True if the training on the clusters begins with the state.
    """

    state: dict[str, Tensor]
    network: Tapped
    assigned: Tensor
    centres: Tensor
    whitening: Whitening | None
    note: dict[str, Any]
    starts_student: bool


def with_placeholder_labels(recipe: Recipe, data: Data) -> Data:
    """Returns the data with labels of K classes of equal size, to check what a training on clusters needs.

    The labels are those of no clustering: nothing may be trained on them.

    Args:
        recipe: Its `pseudo_labels.clusters` is K; without that section the data stays as it is.
        data: Opened.

    Raises:
        UserError: There are fewer images than clusters.
    """
    if recipe.pseudo_labels is None:
        return data
    clusters, images = recipe.pseudo_labels.clusters, len(data.train)
    if clusters > images:
        raise UserError(
            f"pseudo_labels.clusters: {clusters:,}, and there are only {images:,} training images; choose "
            "fewer"
        )
    return data.with_clusters(torch.arange(len(data.train)) % clusters, clusters)


def with_clusters(run: Run, pretraining: Pretraining) -> Run:
    """Returns the run with the clusters for labels."""
    return dataclasses.replace(
        run, data=run.data.with_clusters(pretraining.assigned, len(pretraining.centres))
    )


def pretrain(run: Run) -> Pretraining | None:
    """Trains the student without labels and clusters its features; None: the recipe does not ask for it.

    Both are stored in the run folder and, as a teacher is, in the user cache. No label is read.

    Args:
        run: The run, whose training images have no labels.

    Raises:
        Interrupted: As in any training; a resume continues within it.
        DataError: The features form fewer clusters than are asked for.
    """
    section = run.recipe.pseudo_labels
    if section is None:
        return None
    start = build_backbone(run)
    key = _key(run, section, start)
    note = {"model": run.recipe.student.model, "method": section.method, "epochs": section.epochs}
    training = functools.partial(pretraining_of, run, section, start)
    fits = result_store.fits_network(start.network)
    stored = stored_training(run, PRETRAINING, key, training, note, fits)
    load_state(start.network, stored.state)
    network = tapped(run, run.recipe.student, start)
    clusters_key = result_store.key_of(
        stored.sha256, section.clusters, section.starts, section.whiten, run.recipe.seed
    )
    clusters = result_store.result(
        run.folder.checkpoints, CLUSTERS, clusters_key, run.processes,
        lambda: _cluster(run, section, network), functools.partial(_are_clusters, run, section),
    )  # fmt: skip
    tensors = clusters.state
    whitening = Whitening(tensors["mean"], tensors["directions"]) if section.whiten else None
    return Pretraining(
        stored.state, network, tensors["assigned"], tensors["centres"], whitening, clusters.note,
        section.student == "pretrained",
    )  # fmt: skip


def build_backbone(run: Run) -> LoadedNetwork:
    """Builds the student without its classifier, with its initial weights."""
    return load_network(
        run.recipe.student,
        num_classes=run.data.num_classes,
        channels=run.data.channels,
        image_size=run.data.image_size,
        seed=run.recipe.seed,
        purpose="student",
        allow_code=run.allow_code,
        headless="always",
        progress=not run.progress.quiet and run.processes.first,
    )


def build_pretraining(run: Run, start: LoadedNetwork) -> Any:
    """Builds the method of the pre-training beside the student, on the run's device."""
    assert run.recipe.pseudo_labels is not None
    cls, config = configured(run.recipe.pseudo_labels.method)
    seeded(run.recipe.seed, PRETRAINING)
    data = info(for_method(run, cls, config), cls.needs(config))
    return cls(config, Networks(tapped(run, run.recipe.student, start)), data).to(run.device)


def load_pretrained_weights(student: LoadedNetwork, pretraining: Pretraining) -> None:
    """Gives a student the weights of the pre-training; its classifier stays as it was drawn."""
    own = student.network.state_dict()
    extra = pretraining.state.keys() - own.keys()
    assert not extra, f"the student has no {sorted(extra)}"
    load_state(student.network, {**own, **pretraining.state})


def pretraining_figures(run: Run, pretraining: Pretraining) -> dict[str, Any]:
    """Scores the network as it was before the training on its clusters, on the test split.

    Args:
        run: The run.
        pretraining: Of the run.

    Returns:
        `knn_top1`, and `cluster_accuracy`, `nmi`, `ari` and `purity` of the nearest centres; each None
        without labels; and the note on the clusters.
    """
    features_ND, labels_N = _features(run, pretraining.network, run.data.test, run.data.test_name)
    change = pretraining.whitening or functools.partial(F.normalize, dim=1)
    assigned = (change(features_ND) @ pretraining.centres.T).argmax(1)
    return {
        "knn_top1": knn_top1(features_ND, labels_N),
        **of_clusters(assigned, labels_N),
        **pretraining.note,
    }


def pretraining_of(run: Run, section: PseudoLabelsSection, start: LoadedNetwork) -> Training:
    """Describes the training without labels.

    Args:
        run: The run.
        section: `pseudo_labels:` of its recipe.
        start: From `build_backbone`.
    """
    assert isinstance(section.epochs, int), "resolved when the data is known"
    train = run.recipe.train.model_copy(update={"ema": None, "compile": False, "ship": "last"})
    method = build_pretraining(run, start)
    return Training(PRETRAINING, method, run.recipe.seed, section.epochs, train, section.optim, choose=False)


def _cluster(
    run: Run, section: PseudoLabelsSection, network: Tapped
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    features_ND, _ = _features(run, network, run.data.train, "training")
    content = features_ND.contiguous().numpy().tobytes()
    whitening = Whitening.of(features_ND) if section.whiten else None
    values = features_ND if whitening is None else whitening(features_ND)
    with run.progress.announce(f"Clustering {len(values):,} images into {section.clusters:,} (k-means)"):
        result = kmeans.cluster(values, section.clusters, run.recipe.seed, starts=section.starts)
    note = {
        "sizes": torch.bincount(result.assigned, minlength=len(result.centres)).tolist(),
        "inertia": result.inertia,
        "features": features_ND.shape[1],
        "features_sha256": hashlib.sha256(content).hexdigest(),
    }
    tensors = {"assigned": result.assigned, "centres": F.normalize(result.centres, dim=1)}
    if whitening is not None:
        tensors |= {"mean": whitening.mean, "directions": whitening.directions}
    return tensors, note


def _are_clusters(run: Run, section: PseudoLabelsSection, stored: StoredResult) -> bool:
    """Returns True if a stored result holds clusters of the run's training images."""
    tensors, note = stored.state, stored.note
    names = {"assigned", "centres"} | ({"mean", "directions"} if section.whiten else set())
    if tensors.keys() != names or not {"sizes", "inertia", "features", "features_sha256"} <= note.keys():
        return False
    assigned, centres = tensors["assigned"], tensors["centres"]
    if assigned.dtype != torch.int64 or centres.dtype != torch.float32 or centres.ndim != 2:
        return False
    features = centres.shape[1]
    if section.whiten:
        mean, directions = tensors["mean"], tensors["directions"]
        if directions.ndim != 2 or mean.shape != directions.shape[:1] or directions.shape[1] != features:
            return False
        features = len(mean)
    return (
        assigned.shape == (len(run.data.train),)
        and len(centres) == section.clusters == len(note["sizes"])
        and features == note["features"]
        and bool(((assigned >= 0) & (assigned < section.clusters)).all())
    )


def _features(run: Run, network: Tapped, split: Source, name: str) -> tuple[Tensor, Tensor]:
    """Computes the features of a split without augmentation, `[N, D]` float32, and its labels."""
    what = f"Features of {len(split):,} {name} images"
    with run.progress.announce(what), run.evaluation(split) as batches:
        return predict(network.network, network, batches)


def _key(run: Run, section: PseudoLabelsSection, start: LoadedNetwork) -> str:
    """Returns a hash of everything that the pre-training depends on."""
    recipe = run.recipe
    return result_store.key_of(
        section.model_dump(mode="json", include={"method", "epochs", "optim"}),
        recipe.seed,
        recipe.student.model_dump(mode="json", exclude={"weights", "sha256"}),
        start.weights.sha256 if start.weights else None,
        input_spec(run, recipe.student, start).to_json(),
        *result_store.recipe_parts(recipe),
        run.data.listing_sha256,
        run.environment,
    )
