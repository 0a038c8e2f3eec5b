"""The documents of a run: the files' metadata, `results.json`, `manifest.json` and `seeds.json`."""

from __future__ import annotations

import json
import platform
import statistics
from collections.abc import Mapping, Sequence
from importlib import metadata as packages
from pathlib import Path
from typing import Any

from kdcompress import __version__
from kdcompress.data import fast_views
from kdcompress.data.split_name import TEST, keep_words, name_split
from kdcompress.networks.from_recipe import LoadedNetwork
from kdcompress.networks.weights import ResolvedWeights
from kdcompress.recipe import RANDOM, NetworkSection, Recipe
from kdcompress.report.verdict import gain_over_seeds, image_error
from kdcompress.report.words import use_cautions
from kdcompress.tasks.figures import selection_metric

RESULTS_SCHEMA = "kdcompress.results/1"
SEEDS_SCHEMA = "kdcompress.seeds/1"
OWN_WEIGHTS = "those that its builder loads"
PACKAGES = ("torch", "torchvision", "onnx", "onnxscript", "onnxruntime", "safetensors", "numpy", "pillow")


def file_metadata(recipe: Recipe, teacher: dict[str, Any] | None) -> dict[str, str]:
    """Returns the metadata of an exported file; folders of the user's machine stay out of it.

    Args:
        recipe: Resolved.
        teacher: Its entry of the manifest.
    """
    document = recipe.model_dump(mode="json")
    document["data"]["root"] = None
    if document["data"]["extra"] is not None:
        document["data"]["extra"]["root"] = Path(document["data"]["extra"]["root"]).name
    for section in (document["student"], document["teacher"], *document["peers"]):
        if section is not None and section["weights"] is not None:
            section["weights"] = Path(section["weights"]).name
    if document["teacher"] is not None and isinstance(document["teacher"]["cache"], dict):
        document["teacher"]["cache"]["folder"] = None
    # Exits are a file of their own: the student's is the same, to the bit, with them and without.
    del document["export"]["exits"]
    if not document["export"]["calibrate"]:
        del document["export"]["calibrate"]
    metadata = {"recipe": json.dumps(document, sort_keys=True)}
    if teacher is not None:
        metadata["teacher"] = json.dumps(
            {**teacher, "weights": document["teacher"]["weights"]}, sort_keys=True
        )
    return metadata


def student_entry(recipe: Recipe, weights: ResolvedWeights | None) -> dict[str, Any]:
    """Builds the manifest's `student` object: the network and its initial weights.

    Args:
        recipe: Resolved.
        weights: Loaded before the training; None: random ones.
    """
    return _entry(recipe.student, weights)


def peer_entries(recipe: Recipe, networks: Mapping[str, LoadedNetwork]) -> list[dict[str, Any]]:
    """Builds the manifest's `peers`: those that did not start from random weights.

    Args:
        recipe: Resolved.
        networks: From `load_networks`.
    """
    pairs = [(section, networks[f"peer{k}"].weights) for k, section in enumerate(recipe.peers, start=1)]
    return [_entry(section, weights) for section, weights in pairs if weights is not None]


def teacher_entry(recipe: Recipe, start: LoadedNetwork, sha256: str | None) -> dict[str, Any] | None:
    """Builds the manifest's `teacher` object.

    Args:
        recipe: Resolved.
        start: The teacher as it was loaded.
        sha256: Sha256 of the weights that taught, where `start` does not name a file of them; None: it does.
    """
    section = recipe.teacher
    if section is None:
        return None
    if start.own_weights:
        return {
            "model": section.model, "weights": OWN_WEIGHTS, "sha256": sha256, "license": section.license,
        }  # fmt: skip
    entry = {**_entry(section, start.weights), "weights": section.initial_weights}
    return {**entry, "sha256": sha256 or entry["sha256"]}


def _entry(section: NetworkSection, weights: ResolvedWeights | None) -> dict[str, Any]:
    return {
        "model": section.model,
        "weights": RANDOM if weights is None else section.weights,
        "sha256": weights.sha256 if weights is not None else None,
        "license": weights.license if weights is not None else None,
    }


def versions() -> dict[str, str]:
    """Returns the versions of every package that decides the result."""
    result = {"python": platform.python_version(), "kdcompress": __version__}
    result |= {name: packages.version(name) for name in PACKAGES}
    decoder = fast_views.version()
    return result if decoder is None else {**result, fast_views.PACKAGE: decoder}


def results(
    student: dict[str, Any],
    teacher: dict[str, Any] | None,
    baseline: dict[str, Any] | None,
    gain: dict[str, Any] | None,
    training: dict[str, Any],
) -> dict[str, Any]:
    """Builds `results.json`.

    Args:
        student: Figures of the exported file on the test split.
        teacher: The same of the teacher in PyTorch.
        baseline: The same of the exported baseline.
        gain: Student against baseline.
        training: Candidate, epoch, held-out figures and seconds of the training.
    """
    return {
        "schema": RESULTS_SCHEMA,
        "student": student,
        "teacher": teacher,
        "baseline": baseline,
        "gain": gain,
        "training": training,
    }


def seeds(
    per_seed: Sequence[dict[str, Any]], class_names: Sequence[str] = (), test_name: str = TEST
) -> dict[str, Any]:
    """Builds `seeds.json`: one figure of each seed, its mean and its spread.

    That is the top-1; of a backbone the top-1 by nearest neighbours; of clusters their accuracy; where there
    are no labels, the agreement with the teacher. `figure` says which; None: nothing can be scored.
    `cautions` says which seed's student gives all images one class.

    Args:
        per_seed: `results.json` of each seed, in order.
        class_names: By class number; empty: not known.
        test_name: Name of the test split in the cautions.
    """
    first = per_seed[0]["student"]
    figure = selection_metric(first)
    document: dict[str, Any] = {"schema": SEEDS_SCHEMA, "seeds": len(per_seed), "figure": figure}
    document["cautions"] = [
        name_split(f"Run {number}: {sentence}", test_name)
        for number, results in enumerate(per_seed)
        for sentence in use_cautions(results, keep_words(list(class_names)))
    ]
    if figure is None:
        params = {"params": per_seed[0]["student"]["params"]}
        return {**document, "student": params, "teacher": None, "baseline": None, "gain": None}
    for who in ("student", "baseline"):
        known = [result[who].get(figure) for result in per_seed if result[who] is not None]
        values = [value for value in known if value is not None]
        document[who] = {figure: values, **_spread(values)} if values else None
    teacher = per_seed[0]["teacher"]
    document["teacher"] = teacher and {figure: teacher.get(figure), "params": teacher["params"]}
    if document["baseline"] is not None:
        pairs = zip(document["student"][figure], document["baseline"][figure], strict=True)
        points = [100 * (a - b) for a, b in pairs]
        document["gain"] = {"points": points, "mean": statistics.fmean(points), "sd": _sd(points)}
        if len(points) > 1:
            errors = [image_error(result["gain"]) for result in per_seed if result["gain"] is not None]
            over_seeds = gain_over_seeds(points, errors)
            document["gain"] |= {key: over_seeds[key] for key in ("ci95", "verdict")}
    else:
        document["gain"] = None
    document["student"]["params"] = per_seed[0]["student"]["params"]
    return document


def _spread(values: list[float]) -> dict[str, Any]:
    return {"mean": statistics.fmean(values), "sd": _sd(values)}


def _sd(values: list[float]) -> float | None:
    """Returns the standard deviation of the sample; one value has none."""
    return statistics.stdev(values) if len(values) > 1 else None
