"""`kdcompress bench`: times the files of a command line and makes the benchmark document."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from kdcompress import discovery
from kdcompress.bench import runtimes
from kdcompress.bench.measure import Artefact, Protocol, check_artefacts, measure
from kdcompress.bench.metrics import top1_of
from kdcompress.bench.pack import PACK, Pack, pack, read_result
from kdcompress.bench.target import RuntimeChecker, Target
from kdcompress.bench.targets import LOCAL, parse_target
from kdcompress.cores import granted_cores
from kdcompress.data.dataset import Data
from kdcompress.data.input_spec import Fit
from kdcompress.deploy.accuracy import score_split
from kdcompress.deploy.config import NAME as CONFIG
from kdcompress.deploy.config import read_config
from kdcompress.deploy.files import format_of, formats
from kdcompress.deploy.formats import onnx, openvino, safetensors
from kdcompress.deploy.graph_size import GraphFacts, graph_facts
from kdcompress.deploy.image_graph import contract_of
from kdcompress.deploy.ir_size import ir_facts
from kdcompress.deploy.load import Graph, check_size, input_in_metadata, open_graph, spec_of
from kdcompress.deploy.macs import count_macs, count_parameters
from kdcompress.errors import UserError
from kdcompress.export.reexport import data_of, images_of
from kdcompress.progress import Progress
from kdcompress.recipe import load_recipe_of_data
from kdcompress.tools.bench_checks import BenchChecks
from kdcompress.tools.golden_reference import with_golden

PROTOCOL = Protocol(block_s=0.5, turns=10)
"""Longer than after a training, where student and teacher differ a lot: 21 of these rounds show a difference
of five per cent although other work keeps the machine busy (tests/bench/test_truth.py)."""
IMAGES = 64
"""Images of a recipe's data to time on; calls use the first eight batches of them in turn."""


@dataclass(frozen=True, slots=True)
class BenchRequest:
    """The options of `kdcompress bench`.

    Args:
        files: `FILE` or `NAME=FILE`.
        baseline: `FILE` or `NAME=FILE`; one of the files, or one more. None: the first of two files, for a
            single file its first runtime, else no baseline.
        runtimes: Names of runtimes; empty: the default for each file's suffix.
        threads: Thread counts, or "all".
        batch: Images per call.
        rounds: Number of rounds.
        out: File for the document; None: it is not written.
        plot: File for the plot, .svg or .png; None: it is not drawn.
        compare: An earlier document.
        fail_if: Conditions, as in bench/conditions.py.
        recipe: Recipe with the data to time and score the files on; None: noise, and no scores.
        data: Folder of the data.
        overrides: Changes to the recipe.
        input_size: Side of the images in pixels, for the files that leave it open.
        target: `local`, `ssh://...` or `pack:DIR`.
        remote_python: Interpreter of an ssh target.
        ssh_config: File that ssh reads in place of ~/.ssh/config.
        allow_code: True if `python:` networks may be built.
    """

    files: tuple[str, ...]
    baseline: str | None = None
    runtimes: tuple[str, ...] = ()
    threads: tuple[int | Literal["all"], ...] = (1, "all")
    batch: tuple[int, ...] = (1,)
    rounds: int = 21
    out: Path | None = None
    plot: Path | None = None
    compare: Path | None = None
    fail_if: tuple[str, ...] = ()
    recipe: str | None = None
    data: str | None = None
    overrides: tuple[str, ...] = ()
    input_size: int | None = None
    target: str = LOCAL
    remote_python: str = "python3"
    ssh_config: Path | None = None
    allow_code: bool = False


def bench(request: BenchRequest, progress: Progress) -> dict[str, Any]:
    """Times files against each other, compares with an earlier document, and checks the conditions.

    Args:
        request: The options.
        progress: Terminal output.

    Returns:
        The document of schema `kdcompress.bench/1`, with `compare` if an earlier document is given, and
        `not_met`: a sentence for each condition that fails the command and each cell that could not be
        measured. It has been written to `out`. For `pack:DIR` the description of the zip instead.

    Raises:
        UserError: The options cannot be used together or with these files; nothing has been measured.
        TargetUnreachable: The target does not answer, or the link to it was cut.
        WorldError: A disk is full.
    """
    checks = _checks(request)
    target = _target(request)
    named, baseline = _artefacts(request, target)
    artefacts = check_artefacts(
        named,
        threads=request.threads,
        batch=request.batch,
        rounds=request.rounds,
        baseline=baseline,
        target=target,
    )
    names = [artefact.name for artefact in artefacts]
    checks.check_conditions(names, has_baseline=baseline is not None, has_top1=request.recipe is not None)
    warnings: list[str] = []
    if request.recipe is not None:
        artefacts, warnings = _with_data(artefacts, request, progress)
    if request.target != LOCAL:
        artefacts = tuple(with_golden(artefact) for artefact in artefacts)
    if isinstance(target, Pack):
        return pack(
            target,
            artefacts,
            threads=request.threads,
            batch=request.batch,
            rounds=request.rounds,
            baseline=baseline,
            protocol=PROTOCOL,
            warnings=warnings,
        )
    with progress.counter() as tell:
        document = measure(
            artefacts,
            threads=request.threads,
            batch=request.batch,
            rounds=request.rounds,
            baseline=baseline,
            protocol=PROTOCOL,
            allow_code=request.allow_code,
            target=target,
            progress=lambda done, total, what: tell(f"bench: {what.split()[0]}", done, total),
        )
    document["warnings"] = [*warnings, *document["warnings"]]
    return checks.finish(document, progress)


def merge(path: Path, request: BenchRequest, progress: Progress) -> dict[str, Any]:
    """Reads the result of a pack, compares it and checks the conditions as `bench` does.

    Args:
        path: The result.json that run.py wrote.
        request: The options about the document: out, plot, compare and fail_if.
        progress: Terminal output.

    Returns:
        The document, as `bench` gives it.

    Raises:
        UserError: The result or an option cannot be used; nothing has been written.
    """
    checks = _checks(request)
    document = read_result(path)
    checks.check_conditions(
        list(document["artefacts"]),
        has_baseline=document["protocol"].get("baseline") is not None,
        has_top1=any(top1_of(artefact) is not None for artefact in document["artefacts"].values()),
    )
    return checks.finish(document, progress)


def _checks(request: BenchRequest) -> BenchChecks:
    return BenchChecks(out=request.out, plot=request.plot, compare=request.compare, fail_if=request.fail_if)


def _target(request: BenchRequest) -> Target | Pack:
    if not request.target.startswith(PACK):
        return parse_target(
            request.target, remote_python=request.remote_python, ssh_config=request.ssh_config
        )
    options = {
        "out": request.out,
        "plot": request.plot,
        "compare": request.compare,
        "fail-if": request.fail_if,
    }
    for option, value in options.items():
        if value:
            raise UserError(f"--{option}: belongs to `bench --merge`, when the result has come back")
    return Pack(request.target)


def _artefacts(request: BenchRequest, target: RuntimeChecker) -> tuple[list[Artefact], str | None]:
    """Describes each file by its metadata and names it; gives the baseline's name too."""
    files = [_named(text) for text in request.files]
    if request.baseline is not None:
        base = _named(request.baseline)
        number = next((i for i, file in enumerate(files) if _same(base, file)), None)
        if number is None:
            files, number = [base, *files], 0
    for name in request.runtimes:
        target.check_runtime(name)
        if not any(runtimes.takes(name, path.suffix) for _, path in files):
            suffixes = " and ".join(runtimes.known_runtimes()[name].suffixes)
            raise UserError(f"the runtime {name!r} takes {suffixes} files, and none of the files is one")
    names = _names(files)
    artefacts = [_artefact(name, path, request) for name, (_, path) in zip(names, files, strict=True)]
    for artefact in artefacts:
        if artefact.shape is not None:
            check_size(artefact.shape, artefact.file)
    if request.baseline is not None:
        assert number is not None
        return artefacts, names[number]
    # The runtimes of a single file have nothing to be compared with but the first of them, and of two files
    # only their ratio is of interest.
    alone = len(artefacts) == 1 and len(artefacts[0].runtimes) > 1
    return artefacts, names[0] if alone or len(artefacts) == 2 else None


def _named(text: str) -> tuple[str | None, Path]:
    name, equals, rest = text.partition("=")
    if equals and name and not Path(text).exists():
        return name, Path(rest)
    return None, Path(text)


def _same(one: tuple[str | None, Path], other: tuple[str | None, Path]) -> bool:
    """Tells if a baseline is one of the files, by its own name or by its path."""
    if str(one[1]) == other[0]:
        return True
    return one[1].resolve() == other[1].resolve() and one[0] in {None, other[0]}


def _names(files: Sequence[tuple[str | None, Path]]) -> list[str]:
    """Gives the files the shortest names that differ: as after a training, file names, or whole paths.

    After a training a file is called by its name without suffix, and by its format too if an ONNX file has
    the same name.
    """
    graphs = {path.stem for _, path in files if path.suffix == onnx.SUFFIX}
    titles = {known.suffix: known.title for known in formats() if known.suffix != onnx.SUFFIX}

    def name_in_run(path: Path) -> str:
        title = titles.get(path.suffix)
        return f"{path.stem} ({title})" if title and path.stem in graphs else path.stem

    shapes: tuple[Callable[[Path], str], ...] = (name_in_run, lambda path: path.name, str)
    for shape in shapes:
        names = [name or shape(path) for name, path in files]
        if len(set(names)) == len(names):
            return names
    name = max(names, key=names.count)
    raise UserError(f"two files are named {name!r}; give them names of their own: one={name} other={name}")


def _artefact(name: str, path: Path, request: BenchRequest) -> Artefact:
    if not path.is_file():
        what = "is a folder; name a file in it" if path.is_dir() else "no such file"
        raise UserError(f"{path}: {what}")
    own_runtimes = tuple(runtime for runtime in request.runtimes if runtimes.takes(runtime, path.suffix))
    if not own_runtimes and request.runtimes:
        fitting = [name for name in runtimes.known_runtimes() if runtimes.takes(name, path.suffix)]
        advice = f"; add one of {', '.join(fitting)}" if fitting else ""
        raise UserError(f"{path}: none of the runtimes asked for takes it{advice}")
    # student.onnx, student.int8.onnx and student.safetensors of one folder are one network.
    network = str(path.resolve().parent / path.name.split(".")[0])
    artefact = Artefact(name, path, own_runtimes, network=network)
    if path.suffix in {onnx.SUFFIX, openvino.SUFFIX}:
        return _describe_graph(artefact, request.input_size)
    if path.suffix == safetensors.SUFFIX:
        module, config = safetensors.read(path, allow_code=request.allow_code)
        spec = config.spec
        macs = count_macs(module, spec.channels, spec.height, spec.width)
        shape = (spec.channels, spec.height, spec.width)
        return dataclasses.replace(artefact, params=count_parameters(module), macs=macs, shape=shape)
    known = format_of(path)
    if known is not None:
        return dataclasses.replace(artefact, **discovery.load("format", known).describe(path))
    if not own_runtimes:
        raise UserError(f"{path}: expected {runtimes.expected_files()}")
    side = request.input_size
    return dataclasses.replace(artefact, precision="unknown", shape=None if side is None else (3, side, side))


def _describe_graph(artefact: Artefact, side: int | None) -> Artefact:
    if artefact.file.suffix == openvino.SUFFIX:
        openvino.check_weights(artefact.file)
    read = graph_facts if artefact.file.suffix == onnx.SUFFIX else ir_facts
    facts = read(artefact.file)
    shape = _shape(artefact.file, facts, side)
    if None in facts.input_shape:
        facts = read(artefact.file, shape)
    if facts.pixels:
        # Its images are not resized, so its outputs cannot be compared with those of other files.
        artefact = dataclasses.replace(artefact, network=None, pixels=True)
    return dataclasses.replace(
        artefact, precision=facts.precision, params=facts.parameters, macs=facts.macs, shape=shape
    )


def _shape(path: Path, facts: GraphFacts, side: int | None) -> tuple[int, int, int]:
    """Finds (C, H, W): fixed by the graph, else given by the user, else in the metadata."""
    channels, height, width = facts.input_shape
    if channels is not None and height is not None and width is not None:
        return channels, height, width
    if side is not None:
        return channels or 3, height or side, width or side
    metadata = open_graph(path).metadata
    decoded = contract_of(metadata, path)
    if decoded is not None:
        return channels or 3, *decoded["typical"]
    text = metadata.get(onnx.PREFIX + "input")
    if text is None:
        raise UserError(f"{path}: leaves its image size open; say it with --input-size")
    spec = input_in_metadata(text, path)
    return spec.channels, spec.height, spec.width


def _with_data(
    artefacts: Sequence[Artefact], request: BenchRequest, progress: Progress
) -> tuple[tuple[Artefact, ...], list[str]]:
    """Gives each artefact real images of its own size, and its accuracy on the test split."""
    assert request.recipe is not None
    recipe = load_recipe_of_data(request.recipe, request.overrides)
    opened: dict[tuple[tuple[int, int, int], Fit | None], tuple[Data, NDArray[np.float32]]] = {}
    done: list[Artefact] = []
    warnings = []
    for artefact in artefacts:
        if artefact.shape is None:
            raise UserError(
                f"{artefact.file}: --recipe needs to know its image size; say it with --input-size"
            )
        if artefact.pixels:
            warnings.append(f"{artefact.name}: no top-1: takes images as they are decoded; timed on noise")
            done.append(artefact)
            continue
        channels, *size = artefact.shape
        key = artefact.shape, _fit(artefact.file)
        if key not in opened:
            data = data_of(recipe, request.data, (size[0], size[1]), channels, progress, key[1])
            opened[key] = data, _some_images(data)
        data, images = opened[key]
        accuracy, why_not = _accuracy(artefact, data, request.allow_code)
        if why_not:
            warnings.append(f"{artefact.name}: no top-1: {why_not}")
        done.append(dataclasses.replace(artefact, images=images, accuracy=accuracy))
    return tuple(done), warnings


def _fit(file: Path) -> Fit | None:
    """Reads how pictures become squares for a file; None: it does not say."""
    if file.suffix == safetensors.SUFFIX:
        return read_config(file.parent / CONFIG).spec.known_fit
    if format_of(file) is None:
        return None
    graph = open_graph(file)
    return spec_of(graph).known_fit if onnx.PREFIX + "input" in graph.metadata else None


def _some_images(data: Data) -> NDArray[np.float32]:
    """Takes images from all over the test split, which may be sorted by class."""
    count = min(IMAGES, len(data.test))
    rows = torch.linspace(0, len(data.test) - 1, count).round().long()
    return torch.cat([images for images, _ in images_of(data.test.subset(rows), workers=0)]).numpy()


def _accuracy(artefact: Artefact, data: Data, allow_code: bool) -> tuple[dict[str, Any] | None, str]:
    """Measures the top-1 on the test split; or gives None and the reason."""
    run: Graph | safetensors.SafetensorsModel
    if artefact.file.suffix == safetensors.SUFFIX:
        run = safetensors.open_(artefact.file, granted_cores(), allow_code=allow_code)
    elif format_of(artefact.file) is not None:
        run = open_graph(artefact.file, granted_cores())
    else:
        return None, "its runtime is your own"
    if not run.task.has_classes:
        return None, "it is a backbone, which tells no classes apart"
    if not run.task.numbers_are_labels:
        return None, "its outputs are clusters, which have no labels"
    outputs = run(next(images_of(data.test.subset(torch.tensor([0])), workers=0))[0].numpy()).shape[1]
    if outputs != data.num_classes:
        return None, f"it tells {outputs} classes apart, the data has {data.num_classes}"
    images = images_of(data.test, workers=granted_cores())
    score = score_split(
        run, images, run.task.scorer(data.num_classes, keep_outputs=False), artefact.file
    ).result()
    if score["n"] == 0:
        return None, "none of the test images has a label"
    return {"split": data.test_name, **{key: score[key] for key in ("top1", "balanced_top1", "n")}}, ""
