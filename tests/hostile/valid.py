"""Valid inputs of each kind: the program takes them, and damaged ones may take little more memory."""

from __future__ import annotations

import functools
import shutil

import safetensors.torch
import torch

from hostile import array_sets, cache_parts, cases, far_end, openvino_files
from kdcompress.bench.device import main as packed


def _recipe(rng, folder):
    shutil.copy(cases.RECIPES / "quickstart.yaml", folder / "recipe.yaml")
    cases.cli("show", folder / "recipe.yaml")


def _run(action, rng, folder):
    shutil.copytree(cases.FINISHED, folder / "run")
    cases.read_run(action, folder / "run", rng)


def _benchmark(rng, folder):
    shutil.copy(cases.FIXTURES / "bench.json", folder / "old.json")
    _packed_result(rng, folder, "--compare", folder / "old.json", "--fail-if", "p50 > 1000")


def _packed_result(rng, folder, *words):
    (folder / "result.json").write_text(cases.json.dumps(packed.with_digest(cases.packed_body())))
    cases.merge_benchmark(folder, *words)


def _far_end(rng, folder):
    cases.measure_there(folder, far_end.transcript(far_end.valid()))


def _graph(action, rng, folder):
    shutil.copy(cases.GRAPH, folder / "student.onnx")
    cases.read_graph(action, folder / "student.onnx")


def _checkpoint(suffix, rng, folder):
    path = folder / f"checkpoint{suffix}"
    if suffix == ".pth":
        torch.save(safetensors.torch.load_file(cases.WEIGHTS), path)
    else:
        shutil.copy(cases.WEIGHTS, path)
    cases.strip(path, folder)


def _images(rng, folder):
    cases.read_images(cases.image_folder(rng, folder))


def _golden(rng, folder):
    shutil.copy(cases.FINISHED / "golden.npz", folder / "golden.npz")
    cases.compare_golden(folder / "golden.npz")


def _shards(rng, folder):
    root = folder / "shards"
    root.mkdir()
    cases.write_shards(rng, root, sound=True)
    cases.read_shards(root, [0, 0])


def _table(rng, folder):
    root = cases.image_folder(rng, folder)
    names = [str(path.relative_to(root)) for path in sorted(root.rglob("*.png"))]
    lines = ["path,label,split", *(f"{name},{name.split('/')[1]},{name.split('/')[0]}" for name in names)]
    (root / "labels.csv").write_text("\n".join(lines))
    cases.read_images(root / "labels.csv")


def _arrays(read, rng, folder):
    read(rng, folder, sound=True)


def _ir(action, rng, folder):
    openvino_files.read_ir(action, openvino_files.valid_files(folder))


def _each(function, choices):
    return [functools.partial(function, choice) for choice in choices]


INPUTS = {
    "recipes": [_recipe],
    "runs": _each(_run, cases.READERS_OF_A_RUN),
    "benchmarks": [_benchmark, _packed_result],
    "far_ends": [_far_end],
    "graphs": _each(_graph, cases.READERS_OF_A_GRAPH),
    "checkpoints": _each(_checkpoint, [".pth", ".safetensors"]),
    "images": [_images],
    "goldens": [_golden],
    "shards": [_shards],
    "tables": [_table],
    "cache_parts": _each(cache_parts.read_twice, cache_parts.PARTS),
    "array_sets": _each(_arrays, [array_sets.idx, array_sets.cifar, array_sets.generated]),
    "openvino_files": _each(_ir, sorted(set(openvino_files.READERS))),
}
