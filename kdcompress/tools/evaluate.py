"""`evaluate`: the accuracy of a file on the data of a recipe."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from kdcompress.cores import granted_cores
from kdcompress.deploy.accuracy import score_split
from kdcompress.deploy.files import format_of
from kdcompress.deploy.formats import safetensors
from kdcompress.deploy.load import Graph, open_graph, spec_of
from kdcompress.errors import DataError, UserError
from kdcompress.export.reexport import artefact, data_of, images_of
from kdcompress.progress import Progress, counted
from kdcompress.recipe import load_recipe_of_data

EVALUATION_SCHEMA = "kdcompress.evaluation/1"


def evaluate(
    source: Path,
    progress: Progress,
    *,
    recipe: str,
    data: str | None,
    overrides: tuple[str, ...],
    split: str,
    allow_code: bool,
) -> dict[str, Any]:
    """Scores a file of any format on the data of a recipe.

    Args:
        source: The file, or a run folder: its ONNX file, else its safetensors.
        progress: Terminal output.
        recipe: Recipe whose `data:` section names the images.
        data: Folder of the data; goes before the recipe's.
        overrides: Changes to the recipe.
        split: test or held_out, or the name of the folder that the test split is read from.
        allow_code: True: a `python:` network may be built.

    Raises:
        UserError: There is no such file, or it does not fit the data.
    """
    file = source if source.is_file() and format_of(source) is not None else artefact(source)
    run: Graph | safetensors.SafetensorsModel
    threads = torch.get_num_threads()
    if file.suffix != safetensors.SUFFIX:
        graph = open_graph(file, threads)
        run, spec = graph, spec_of(graph)
    else:
        network = safetensors.open_(file, threads, allow_code=allow_code)
        run, spec = network, network.config.spec
    if not run.task.has_classes:
        raise UserError(
            f"{file}: is a backbone, which gives features and tells no classes apart; see what they are "
            "worth with --probe"
        )
    resolved = load_recipe_of_data(recipe, overrides)
    size = (spec.height, spec.width)
    opened = data_of(resolved, data, size, spec.channels, progress, spec.known_fit)
    split = opened.split_called(split)
    images = opened.test if split == "test" else opened.held_out
    if images is None:
        raise DataError("--split held_out: the recipe holds nothing out (data.held_out: 0)")
    if not bool((images.labels >= 0).any()):
        raise DataError(f"--split {split}: none of its images has a label to score by")
    one_image = images.subset(torch.tensor([0]))
    outputs = run(next(images_of(one_image, workers=0))[0].numpy()).shape[1]
    if run.task.numbers_are_labels and outputs != opened.num_classes:
        raise UserError(f"{file}: tells {outputs} classes apart, the data has {opened.num_classes}")
    scorer = run.task.scorer(outputs, keep_outputs=False)
    name = opened.test_name if split == "test" else split
    with progress.bar(f"{file.name} on the {name} images", len(images)) as bar:
        batches = counted(images_of(images, workers=granted_cores()), bar)
        score = score_split(run, batches, scorer, file).result()
    return {"schema": EVALUATION_SCHEMA, "file": str(file), "split": name, **score}
