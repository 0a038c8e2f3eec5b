"""Probes a network's features, and compares how much of an image the networks of a run keep."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from kdcompress.atomic import write_bytes
from kdcompress.cores import granted_cores
from kdcompress.data.dataset import Data
from kdcompress.data.source import Source
from kdcompress.deploy.accuracy import as_input
from kdcompress.deploy.config import DeployedConfig
from kdcompress.deploy.formats import onnx, safetensors
from kdcompress.deploy.load import GRAPH, WEIGHTS, spec_of
from kdcompress.errors import DataError, UserError
from kdcompress.export.reexport import artefact, data_of, images_of
from kdcompress.metrics.neighbours import NEIGHBOURS
from kdcompress.networks.from_recipe import teacher_needs_training
from kdcompress.networks.tapped import Tapped
from kdcompress.networks.teacher import FrozenTeacher
from kdcompress.probe.clusters import clusters, pixel_values
from kdcompress.probe.concepts import MARGIN, concepts, overlap
from kdcompress.probe.features import Features, Read, features, pooled, variance
from kdcompress.probe.knn import knn
from kdcompress.probe.knowledge import HIGHEST, LEAST, MOST, Search, entropies, passes
from kdcompress.probe.linear import linear
from kdcompress.probe.picture import ROWS, Column, picture
from kdcompress.probe.views import ORIGINAL, View, second_view
from kdcompress.progress import Progress, counted
from kdcompress.recipe import Recipe, load_recipe_of_data
from kdcompress.run.context import Run
from kdcompress.run.networks import load_networks, tapped
from kdcompress.run.teacher import own_size
from kdcompress.run_folder import RunFolder, check_writable
from kdcompress.tasks import task_of
from kdcompress.tasks.classification import accuracy
from kdcompress.tools.evaluate import EVALUATION_SCHEMA
from kdcompress.train import result_store
from kdcompress.train.processes import Processes

KNOWLEDGE_SCHEMA = "kdcompress.knowledge/1"
PICTURE = "knowledge.png"
IMAGES = 16
COMPARABLE = 1.25
"""Distortions farther apart than by this factor make entropies of two networks no comparison: where f is
linear, a distortion that is 1.25 times as large adds ½ log 1.25 = 0.11 nats to every pixel."""
_VARIANCE_IMAGES = 1000
"""On which the scale of a network's features is measured; a sample of the split where it has more."""


def probe(
    source: Path,
    progress: Progress,
    *,
    kind: str,
    recipe: str,
    data: str | None,
    overrides: tuple[str, ...],
    split: str,
    allow_code: bool,
) -> dict[str, Any]:
    """Scores a frozen network's features, with a classifier of the labelled training images or by clusters.

    Args:
        source: A `.safetensors` file, a `.onnx` file of a bare backbone, or a run folder.
        progress: Progress display.
        kind: linear, knn or clusters.
        recipe: Recipe whose `data:` section says which images, cut how, and which labels are seen; its seed
            is that of the clusters.
        data: Folder of the data; goes before the recipe's.
        overrides: See `distill`.
        split: test or held_out, on which is scored. What is held out chooses C unless it is scored on.
        allow_code: True: a `python:` network may be built.

    Raises:
        UserError: Nothing to probe, or nothing to probe it on.
    """
    file = artefact(source, (WEIGHTS, GRAPH))
    resolved = load_recipe_of_data(recipe, overrides)
    if file.suffix == onnx.SUFFIX:
        graph = onnx.open_(file, torch.get_num_threads())
        if graph.task.has_classes:
            raise UserError(
                f"{file}: gives logits, and a probe reads features; name the {WEIGHTS} that it was made with"
            )
        read, spec = _embedding(graph), spec_of(graph)
    else:
        read, config = _student(file, resolved, allow_code=allow_code)
        spec = config.spec
    size = (spec.height, spec.width)
    opened = data_of(resolved, data, size, spec.channels, progress, spec.known_fit)
    role = opened.split_called(split)
    scored, split = _split(opened, role), opened.test_name if role == "test" else role
    if not bool((scored.labels >= 0).any()):
        raise DataError(f"--probe: no image of the {split} split has a label to score on")
    document = {"schema": EVALUATION_SCHEMA, "file": str(file), "split": split}
    if kind == "clusters":
        return document | _clusters(read, scored, split, opened.num_classes, resolved.seed, progress)
    train = _labelled(opened.train)
    if train is None:
        raise DataError(
            "--probe: no training image has a label to learn from; set data.labels to all or to a number, or "
            "sort the images into a folder per class"
        )
    chooser = _labelled(opened.held_out) if kind == "linear" and role == "test" else None
    known = _features(read, train, progress, "features of training images")
    queries = _features(read, scored, progress, f"features of {split} images")
    told: dict[str, Any]
    if kind == "knn":
        classes = knn(known, queries.values, opened.num_classes)
        told = {"k": min(NEIGHBOURS, len(train))}
    else:
        held_out = None
        if chooser is not None:
            held_out = _features(read, chooser, progress, "features of held-out images")
        fitted = linear(known, queries.values, held_out)
        classes = fitted.classes
        if not fitted.converged:
            progress.warn("the linear probe has not converged; its top-1 is at least nearly what it would be")
        told = {
            "C": fitted.strength,
            "chosen_on": "held_out" if fitted.chosen else None,
            "converged": fitted.converged,
        }
    score = accuracy(classes, queries.labels, opened.num_classes)
    return {
        **document,
        **score,
        "probe": kind,
        "features": known.values.shape[1],
        "labelled": len(train),
        **told,
    }


def _clusters(
    read: Read, images: Source, split: str, num_classes: int, seed: int, progress: Progress
) -> dict[str, Any]:
    """Returns the figures of clusters of a split's features and of its pixels, as many as classes."""
    queries = _features(read, images, progress, f"features of {split} images")
    pixels = _features(pixel_values, images, progress, f"pixels of {split} images")
    result = clusters(queries, pixels, num_classes, seed)
    return {
        "probe": "clusters",
        "n": int((images.labels >= 0).sum()),
        "features": queries.values.shape[1],
        "clusters": num_classes,
        "seed": seed,
        **result.figures,
        "whitened": result.whitened,
        "pixels": result.pixels,
    }


def knowledge(
    source: Path,
    progress: Progress,
    *,
    recipe: str,
    data: str | None,
    overrides: tuple[str, ...],
    split: str,
    images: int,
    allow_code: bool,
    search: Search | None = None,
) -> dict[str, Any]:
    """Compares what the features of a run's teacher, student and baseline keep of the same images.

    The maps are written to `RUN/knowledge.png`.

    Args:
        source: A finished run folder.
        progress: Progress display.
        recipe: Recipe whose `data:` section says which images, cut how; its seed draws them and the noise.
        data: Folder of the data; goes before the recipe's.
        overrides: See `distill`.
        split: test or held_out.
        images: Number of its images; all, if it has fewer.
        allow_code: True: a `python:` network may be built.
        search: Settings of the search for the noise; None: the defaults.

    Raises:
        UserError: No finished run, or one whose networks are not all there.
    """
    if source.is_file():
        raise UserError(
            f"{source}: is a file; --knowledge compares the networks of a run, so name its folder"
        )
    file = artefact(source, (WEIGHTS,))
    check_writable(source)
    recorded = RunFolder(source).recorded_recipe(allow_code)
    if recorded is None:
        raise UserError(f"{source}: holds no recipe.yaml, so it is no run of kdcompress")
    resolved = load_recipe_of_data(recipe, overrides)
    student, config = _student(file, recorded, allow_code=allow_code)
    size = config.spec.height, config.spec.width
    opened = data_of(resolved, data, size, config.spec.channels, progress, config.spec.known_fit)
    networks = {"student": _Network(config.model, student)}
    if recorded.teacher is not None:
        own = opened
        if not _same_training_images(recorded, resolved):
            # A teacher that was trained there normalises as its own training images said.
            own = data_of(recorded, data, size, config.spec.channels, progress, config.spec.known_fit)
        own = dataclasses.replace(own, class_names=config.class_names or own.class_names)
        alone = Processes(0, 1, torch.device("cpu"))
        run = Run(recorded, RunFolder(source), own, alone, progress, allow_code, "")
        networks = {"teacher": _Network(recorded.teacher.model, _teacher(run)), **networks}
    if (source / "baseline" / WEIGHTS).is_file():
        baseline, its_config = _student(source / "baseline" / WEIGHTS, recorded, allow_code=allow_code)
        networks["baseline"] = _Network(its_config.model, baseline)
    role = opened.split_called(split)
    split = opened.test_name if role == "test" else role
    look = _EntropyAnalysis(
        _split(opened, role), images, resolved.seed, second_view(opened.augment, min(size)), search
    )
    threads = resolved.train.threads or recorded.train.threads
    with progress.bar("entropies", len(networks) * look.steps) as bar, _threads(threads):
        seen = {name: look(network, partial(bar.advance, 1, name)) for name, network in networks.items()}
    figures = {name: entry for name, (entry, _) in seen.items()}
    distortions = [entry["distortion"] for entry in figures.values()]
    comparable = max(distortions) <= COMPARABLE * min(distortions)
    if not comparable:
        progress.warn(
            "the networks' features are distorted unequally, so their entropies are no comparison: "
            + ", ".join(f"{name} {entry['distortion']:.3g}" for name, entry in figures.items())
        )
    columns = [Column(name, f"mean {figures[name]['entropy']:.2f}", maps) for name, (_, maps) in seen.items()]
    how = f"Entropy given the pooled features, in nats; {resolved.data.dataset}, {len(look.pixels):,} images"
    if len(look.pixels) > ROWS:
        how += f", the first {ROWS} shown"
    write_bytes(source / PICTURE, picture(look.pixels, columns, "What the features keep of each pixel", how))
    return {
        "schema": KNOWLEDGE_SCHEMA,
        "folder": str(source),
        "split": split,
        "images": len(look.pixels),
        "seed": resolved.seed,
        "lambda": look.search.trade,
        "sigma": [LEAST, MOST],
        "steps": look.search.steps,
        "samples": look.search.samples,
        "view": look.second.name,
        "margin": MARGIN,
        "networks": figures,
        "comparable": comparable,
        "picture": str(source / PICTURE),
    }


@dataclass(frozen=True, slots=True)
class _Network:
    """A network of a run, to be looked into."""

    model: str
    read: Read


class _EntropyAnalysis:
    """The same look into one network after the other: the same images, views and noise.

    Args:
        images: The split; the images are drawn from it.
        count: Number of images to analyse.
        seed: Seed of the draw and of the noise.
        second: The second view of each image.
        search: Settings of the search for the noise; None: the defaults.
    """

    def __init__(self, images: Source, count: int, seed: int, second: View, search: Search | None) -> None:
        order = torch.randperm(len(images), generator=torch.Generator().manual_seed(seed))
        chosen = images.subset(order[:count].sort().values)
        self.pixels = torch.cat([batch for batch, _ in images_of(chosen, workers=0)])
        self.for_variance = images.subset(order[:_VARIANCE_IMAGES].sort().values)
        self.seed, self.second, self.search = seed, second, search or Search()

    @property
    def steps(self) -> int:
        """Returns the number of progress steps for one network."""
        count, _, height, width = self.pixels.shape
        return 2 * passes(count, height, width, self.search)

    def __call__(self, network: _Network, advance: Callable[[], None]) -> tuple[dict[str, Any], Tensor]:
        """Returns the figures of a network, and its entropy maps `[N, H, W]`."""
        images = images_of(self.for_variance, workers=granted_cores())
        spread = variance(features(network.read, images).values)
        original, other = (
            entropies(
                network.read, self.pixels, spread,
                seed=self.seed, search=self.search, view=view, advance=advance,
            )
            for view in (ORIGINAL, self.second)
        )  # fmt: skip
        height, width = self.pixels.shape[2:]
        in_both = self.second.seen(height, width)
        iou = overlap(concepts(original.entropy, in_both), concepts(other.entropy, in_both))
        iou = iou[~iou.isnan()]
        mean_N = original.entropy.mean((1, 2))
        everywhere = concepts(original.entropy, ORIGINAL.seen(height, width))
        figures = {
            "model": network.model,
            "entropy": float(mean_N.mean()),
            "sd": float(mean_N.std()) if len(mean_N) > 1 else None,
            "distortion": float(original.distortion.mean()),
            "unread": float((original.entropy >= HIGHEST - 1e-6).float().mean()),
            "concepts": float(everywhere.float().mean()),
            "iou": float(iou.mean()) if len(iou) else None,
            "iou_images": len(iou),
        }
        return figures, original.entropy


def _same_training_images(recorded: Recipe, resolved: Recipe) -> bool:
    """Returns whether two recipes take the same training images, so far as they say so."""
    apart = {"root", "image_size", "batch_size", "workers", "augment", "labels", "labelled_share", "extra"}
    return recorded.data.model_dump(exclude=apart) == resolved.data.model_dump(exclude=apart)


def _teacher(run: Run) -> Read:
    """Returns the features of the teacher that a finished run has learnt from."""
    section = run.recipe.teacher
    assert section is not None
    # The other networks' weights have no part in it and may be gone.
    bare = {"student": run.recipe.student.model_copy(update={"weights": None}), "peers": []}
    found = load_networks(
        dataclasses.replace(run, recipe=run.recipe.model_copy(update=bare)), build_teacher=True
    )["teacher"]
    size = None
    if teacher_needs_training(section, found):
        kept = run.folder.checkpoints / f"{result_store.TEACHER}.safetensors"
        if not kept.is_file():
            raise UserError(f"{kept}: is gone, and with it the teacher, which was trained in that run")
        result_store.fill(found.network, safetensors.tensors_of(kept))
    else:
        size = own_size(run, section, found)
    read = pooled(FrozenTeacher(tapped(run, section, found), size=size, fold=False).tapped)
    if size is None:
        return read
    return lambda images: read(
        F.interpolate(images, size=size, mode="bilinear", antialias=True, align_corners=False)
    )


def _student(file: Path, recipe: Recipe, *, allow_code: bool) -> tuple[Read, DeployedConfig]:
    network, config = safetensors.read(file, allow_code=allow_code)
    spec = config.spec
    # A network whose classifier cannot be found says where it is in its recipe.
    taps = recipe.student.taps if recipe.student.model == config.model else None
    made = Tapped(
        network, config.model, image_size=(spec.height, spec.width), channels=spec.channels,
        mean=spec.mean, std=spec.std, taps=taps, task=task_of(config.num_classes),
    )  # fmt: skip
    return pooled(made), config


@contextmanager
def _threads(count: int | None) -> Iterator[None]:
    """Sets torch's threads within the block to those that the networks were trained with."""
    before = torch.get_num_threads()
    torch.set_num_threads(count or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _embedding(graph: onnx.OnnxModel) -> Read:
    return lambda images: torch.from_numpy(graph(as_input(images)))


def _split(data: Data, split: str) -> Source:
    images = data.test if split == "test" else data.held_out
    if images is None:
        raise DataError("--split held_out: the recipe holds nothing out (data.held_out: 0)")
    return images


def _labelled(images: Source | None) -> Source | None:
    """Returns the images that have a label, or None if there are none."""
    if images is None:
        return None
    known = (images.labels >= 0).nonzero().flatten()
    return images.subset(known) if len(known) else None


def _features(read: Read, images: Source, progress: Progress, what: str) -> Features:
    with progress.bar(what, len(images)) as bar:
        return features(read, counted(images_of(images, workers=granted_cores()), bar))
