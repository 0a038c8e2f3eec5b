"""`kdcompress bench`: from the files on a command line to the benchmark document."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from kdcompress import discovery
from kdcompress.bench import runtimes
from kdcompress.bench.measure import Artefact, Protocol, check, measure
from kdcompress.bench.pack import Pack, merged, pack
from kdcompress.bench.target import LOCAL, PACK, Checked, Target, parse_target
from kdcompress.cores import granted_cores
from kdcompress.data.dataset import Data
from kdcompress.deploy.accuracy import score_split
from kdcompress.deploy.files import format_of
from kdcompress.deploy.formats import executorch, onnx, openvino, safetensors
from kdcompress.deploy.graph_size import GraphFacts, graph_facts
from kdcompress.deploy.image_graph import contract_of
from kdcompress.deploy.ir_size import ir_facts
from kdcompress.deploy.load import Graph, open_graph
from kdcompress.deploy.macs import count_macs, count_parameters
from kdcompress.errors import UserError
from kdcompress.export.reexport import data_of, images_of
from kdcompress.progress import Progress
from kdcompress.recipe import load_recipe
from kdcompress.tools.bench_checks import Judge
from kdcompress.tools.golden_reference import with_golden

PROTOCOL = Protocol(block_s=0.5, turns=10)
"""More than after a training, where student and teacher lie far apart: five per cent are told in 21 of these
rounds though other work keeps the machine busy (tests/bench/test_truth.py)."""
IMAGES = 64
"""Of a recipe's data, to time on; calls go through the first eight batches of them in turn."""


@dataclass(frozen=True, slots=True)
class Asked:
    """The command line.

    Args:
        files: `FILE` or `NAME=FILE`.
        baseline: The same; one of them, or one more. None: none, or for a single file its first runtime.
        runtimes: None of them: each file's own.
        threads: Counts, or "all".
        batch: Images per call.
        rounds: How many.
        out: Where the document goes; None: nowhere.
        plot: Where the plot goes, .svg or .png; None: nowhere.
        compare: An earlier document.
        fail_if: Conditions, as in bench/conditions.py.
        recipe: Whose data the files are timed and scored on; None: noise, and no scores.
        data: Folder of the data.
        overrides: Of the recipe.
        input_size: Side of the images in pixels, for the files that leave it open.
        target: Where to measure, or `pack:DIR`.
        remote_python: The interpreter of an ssh target.
        ssh_config: For ssh, in the place of ~/.ssh/config.
        allow_code: Whether `python:` networks may be built.
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


def bench(asked: Asked, progress: Progress) -> dict[str, Any]:
    """Times files against each other, compares with an earlier time, and judges the conditions.

    Args:
        asked: The command line.
        progress: What a watcher sees.

    Returns:
        The document of schema `kdcompress.bench/1`, with `compare` where asked for, and `not_met`: a
        sentence for each condition that fails the command and each cell that could not be measured. It has
        been written where asked for. For `pack:DIR` what `pack` says of the zip instead.

    Raises:
        UserError: Something asked for cannot be done; nothing has been measured.
        TargetUnreachable: The target does not answer, or the link to it was cut.
        WorldError: A disk is full.
    """
    judge = _judge(asked)
    target = _target(asked)
    named, baseline = _artefacts(asked, target)
    artefacts = check(
        named, threads=asked.threads, batch=asked.batch, rounds=asked.rounds, baseline=baseline, target=target
    )
    names = [artefact.name for artefact in artefacts]
    judge.check(names, has_baseline=baseline is not None, has_top1=asked.recipe is not None)
    warnings: list[str] = []
    if asked.recipe is not None:
        artefacts, warnings = _with_data(artefacts, asked, progress)
    if asked.target != LOCAL:
        artefacts = tuple(with_golden(artefact) for artefact in artefacts)
    if isinstance(target, Pack):
        return pack(
            target,
            artefacts,
            threads=asked.threads,
            batch=asked.batch,
            rounds=asked.rounds,
            baseline=baseline,
            protocol=PROTOCOL,
            warnings=warnings,
        )
    with progress.counter() as tell:
        document = measure(
            artefacts,
            threads=asked.threads,
            batch=asked.batch,
            rounds=asked.rounds,
            baseline=baseline,
            protocol=PROTOCOL,
            allow_code=asked.allow_code,
            target=target,
            progress=lambda done, total, what: tell(f"bench: {what.split()[0]}", done, total),
        )
    document["warnings"] = [*warnings, *document["warnings"]]
    return judge.judged(document, progress)


def merge(path: Path, asked: Asked, progress: Progress) -> dict[str, Any]:
    """What a pack brought back, compared and judged like what is measured here.

    Args:
        path: The result.json of its run.py.
        asked: Of the command line, what is to be done with a document.
        progress: What a watcher sees.

    Returns:
        As `bench`.

    Raises:
        UserError: Something asked for cannot be done; nothing has been written.
    """
    judge = _judge(asked)
    document = merged(path)
    judge.check(
        list(document["artefacts"]),
        has_baseline=document["protocol"]["baseline"] is not None,
        has_top1=any(artefact.get("accuracy") for artefact in document["artefacts"].values()),
    )
    return judge.judged(document, progress)


def _judge(asked: Asked) -> Judge:
    return Judge(out=asked.out, plot=asked.plot, compare=asked.compare, fail_if=asked.fail_if)


def _target(asked: Asked) -> Target | Pack:
    if not asked.target.startswith(PACK):
        return parse_target(asked.target, remote_python=asked.remote_python, ssh_config=asked.ssh_config)
    given = {"out": asked.out, "plot": asked.plot, "compare": asked.compare, "fail-if": asked.fail_if}
    for option, value in given.items():
        if value:
            raise UserError(f"--{option}: belongs to `bench --merge`, when the result has come back")
    return Pack(asked.target)


def _artefacts(asked: Asked, target: Checked) -> tuple[list[Artefact], str | None]:
    """The files, named, with what each says of itself; and the baseline's name."""
    files = [_named(text) for text in asked.files]
    if asked.baseline is not None:
        base = _named(asked.baseline)
        chosen = next((number for number, file in enumerate(files) if _same(base, file)), None)
        if chosen is None:
            files, chosen = [base, *files], 0
    for name in asked.runtimes:
        target.check_runtime(name)
        if not any(runtimes.takes(name, path.suffix) for _, path in files):
            taken = " and ".join(runtimes.RUNTIMES[name].suffixes)
            raise UserError(f"the runtime {name!r} takes {taken} files, and none of the files is one")
    names = _names(files)
    artefacts = [_artefact(name, path, asked) for name, (_, path) in zip(names, files, strict=True)]
    if asked.baseline is not None:
        assert chosen is not None
        return artefacts, names[chosen]
    # The runtimes of a single file have nothing to be compared with but the first of them.
    alone = len(artefacts) == 1 and len(artefacts[0].runtimes) > 1
    return artefacts, names[0] if alone else None


def _named(text: str) -> tuple[str | None, Path]:
    name, equals, rest = text.partition("=")
    if equals and name and not Path(text).exists():
        return name, Path(rest)
    return None, Path(text)


def _same(one: tuple[str | None, Path], other: tuple[str | None, Path]) -> bool:
    """Whether a baseline means a file: by its own name, or by its path."""
    if str(one[1]) == other[0]:
        return True
    return one[1].resolve() == other[1].resolve() and one[0] in {None, other[0]}


def _names(files: Sequence[tuple[str | None, Path]]) -> list[str]:
    """The shortest that tells them apart: as after a training, the file's name, or the whole path.

    That is the name without its suffix, and what runs it after it where an ONNX file has the same.
    """
    graphs = {path.stem for _, path in files if path.suffix == onnx.SUFFIX}

    def as_trained(path: Path) -> str:
        told = {
            safetensors.SUFFIX: "PyTorch",
            openvino.SUFFIX: "OpenVINO",
            executorch.SUFFIX: "ExecuTorch",
        }.get(path.suffix)
        return f"{path.stem} ({told})" if told and path.stem in graphs else path.stem

    shapes: tuple[Callable[[Path], str], ...] = (as_trained, lambda path: path.name, str)
    for shape in shapes:
        names = [name or shape(path) for name, path in files]
        if len(set(names)) == len(names):
            return names
    twice = max(names, key=names.count)
    raise UserError(f"two files are named {twice!r}; give them names of their own: one={twice} other={twice}")


def _artefact(name: str, path: Path, asked: Asked) -> Artefact:
    if not path.is_file():
        what = "is a folder; name a file in it" if path.is_dir() else "no such file"
        raise UserError(f"{path}: {what}")
    chosen = tuple(runtime for runtime in asked.runtimes if runtimes.takes(runtime, path.suffix))
    if not chosen and asked.runtimes:
        fitting = [name for name in runtimes.RUNTIMES if runtimes.takes(name, path.suffix)]
        advice = f"; add one of {', '.join(fitting)}" if fitting else ""
        raise UserError(f"{path}: none of the runtimes asked for takes it{advice}")
    # student.onnx, student.int8.onnx and student.safetensors of one folder are one network.
    network = str(path.resolve().parent / path.name.split(".")[0])
    artefact = Artefact(name, path, chosen, network=network)
    if path.suffix in {onnx.SUFFIX, openvino.SUFFIX}:
        return _of_graph(artefact, asked.input_size)
    if path.suffix == executorch.SUFFIX:
        return _of_program(artefact)
    if path.suffix == safetensors.SUFFIX:
        module, config = safetensors.read(path, allow_code=asked.allow_code)
        spec = config.spec
        macs = count_macs(module, spec.channels, spec.height, spec.width)
        shape = (spec.channels, spec.height, spec.width)
        return dataclasses.replace(artefact, params=count_parameters(module), macs=macs, shape=shape)
    known = format_of(path)
    if known is not None:
        return dataclasses.replace(artefact, **discovery.load("format", known).describe(path))
    if not chosen:
        raise UserError(f"{path}: expected {runtimes.EXPECTED}")
    side = asked.input_size
    return dataclasses.replace(artefact, precision="unknown", shape=None if side is None else (3, side, side))


def _of_program(artefact: Artefact) -> Artefact:
    """As it says itself; in a program of others' making that is its image size alone."""
    file = executorch.open_(artefact.file)
    params, macs = (file.metadata.get(onnx.PREFIX + key) for key in ("params", "macs"))
    channels, height, width = (int(size) for size in file.input_shape[1:] if size is not None)
    return dataclasses.replace(
        artefact,
        shape=(channels, height, width),
        params=None if params is None else int(params),
        macs=None if macs is None else int(macs),
    )


def _of_graph(artefact: Artefact, side: int | None) -> Artefact:
    if artefact.file.suffix == openvino.SUFFIX:
        openvino.check_weights(artefact.file)
    read = graph_facts if artefact.file.suffix == onnx.SUFFIX else ir_facts
    facts = read(artefact.file)
    shape = _shape(artefact.file, facts, side)
    if None in facts.input_shape:
        facts = read(artefact.file, shape)
    if facts.pixels:
        # Other images than those of the files that take them resized, and other outputs.
        artefact = dataclasses.replace(artefact, network=None, pixels=True)
    return dataclasses.replace(
        artefact, precision=facts.precision, params=facts.parameters, macs=facts.macs, shape=shape
    )


def _shape(path: Path, facts: GraphFacts, side: int | None) -> tuple[int, int, int]:
    """(C, H, W): as the graph fixes it, else as asked for, else as its metadata says."""
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
    told = json.loads(text)
    return int(told["channels"]), int(told["height"]), int(told["width"])


def _with_data(
    artefacts: Sequence[Artefact], asked: Asked, progress: Progress
) -> tuple[tuple[Artefact, ...], list[str]]:
    """Each with real images of its own size, and with its accuracy on the test split."""
    assert asked.recipe is not None
    recipe = load_recipe(asked.recipe, asked.overrides, allow_code=asked.allow_code)
    opened: dict[tuple[int, int, int], tuple[Data, NDArray[np.float32]]] = {}
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
        if artefact.shape not in opened:
            data = data_of(recipe, asked.data, (size[0], size[1]), channels, progress)
            opened[artefact.shape] = data, _some_images(data)
        data, images = opened[artefact.shape]
        accuracy, why_not = _accuracy(artefact, data, asked.allow_code)
        if why_not:
            warnings.append(f"{artefact.name}: no top-1: {why_not}")
        done.append(dataclasses.replace(artefact, images=images, accuracy=accuracy))
    return tuple(done), warnings


def _some_images(data: Data) -> NDArray[np.float32]:
    """Images of all over the test split, which may be sorted by class."""
    count = min(IMAGES, len(data.test))
    chosen = torch.linspace(0, len(data.test) - 1, count).round().long()
    return torch.cat([images for images, _ in images_of(data.test.subset(chosen), workers=0)]).numpy()


def _accuracy(artefact: Artefact, data: Data, allow_code: bool) -> tuple[dict[str, Any] | None, str]:
    """Top-1 on the test split; or None, and why."""
    run: Graph | safetensors.SafetensorsModel
    if artefact.file.suffix == safetensors.SUFFIX:
        run = safetensors.open_(artefact.file, granted_cores(), allow_code=allow_code)
    elif format_of(artefact.file) is not None:
        run = open_graph(artefact.file, granted_cores())
    else:
        return None, "its runtime is your own"
    if not run.task.has_classes:
        return None, "it is a backbone, which tells no classes apart"
    outputs = run(next(images_of(data.test.subset(torch.tensor([0])), workers=0))[0].numpy()).shape[1]
    if outputs != data.num_classes:
        return None, f"it tells {outputs} classes apart, the data has {data.num_classes}"
    images = images_of(data.test, workers=granted_cores())
    score = score_split(run, images, run.task.scorer(data.num_classes)).result()
    if score["n"] == 0:
        return None, "none of the test images has a label"
    return {"split": "test", **{key: score[key] for key in ("top1", "balanced_top1", "n")}}, ""
