"""The kinds of input: each makes one damaged input in a folder and hands it to the program."""

from __future__ import annotations

import io
import json
import os
import shutil
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import onnx
import safetensors.torch
import torch
import yaml
from PIL import Image

from hostile import damage, far_end, forked
from hostile.array_sets import array_sets
from hostile.cache_parts import cache_parts
from hostile.openvino_files import openvino_files
from kdcompress.bench import ssh_connection
from kdcompress.bench.device import main as packed
from kdcompress.bench.measure import Protocol
from kdcompress.bench.metrics import METRICS
from kdcompress.cli import main
from kdcompress.data.dataset import open_data
from kdcompress.deploy.golden_file import read_golden
from kdcompress.deploy.load import load
from kdcompress.recipe import DataSection
from kdcompress.tools import bench as timing

FIXTURES = Path(__file__).parent.parent / "fixtures" / "e33f4e2"
FINISHED = FIXTURES / "finished"
RECIPES = Path(__file__).parent.parent.parent / "recipes"
GRAPH = FINISHED / "student.onnx"
WEIGHTS = FINISHED / "student.safetensors"


def cli(*words):
    """Runs the program."""
    main([str(word) for word in words])


def recipes(rng, folder):
    """A recipe, shown: that resolves and checks it."""
    text = rng.choice(sorted(RECIPES.glob("*.yaml"))).read_bytes()
    if rng.random() < 0.6:
        text = yaml.safe_dump(damage.of_tree(rng, yaml.safe_load(text)), allow_unicode=True).encode(
            "utf-8", "surrogatepass"
        )
    else:
        text = damage.of_bytes(rng, text)
    (folder / "recipe.yaml").write_bytes(text)
    words = []
    if rng.random() < 0.3:
        key = rng.choice(["method.loss", "train.epochs", "student.taps.0", "peers.0.model", "a.b", "export"])
        words = [
            "--set",
            f"{key}={rng.choice(['[[1]]', '{a: {b: 1}}', '9' * 400, 'null', '[', '&a', '!!x'])}",
        ]
    cli("show", folder / "recipe.yaml", *words)


DOCUMENTS = [
    "results.json", "manifest.json", "gates.json", "bench.json", "config.json", "labels.json", "log.jsonl",
    "recipe.yaml", "checkpoints/test_predictions.safetensors",
]  # fmt: skip


def _damage_run(rng, run):
    name = rng.choice(DOCUMENTS)
    content = (run / name).read_bytes()
    if rng.random() < 0.1:
        _replace(rng, run / name)
        return
    if name == "recipe.yaml":
        tree = damage.of_tree(rng, yaml.safe_load(content))
        changed = yaml.safe_dump(tree).encode() if rng.random() < 0.7 else damage.of_bytes(rng, content)
    elif name.endswith(".safetensors"):
        changed = damage.of_bytes(rng, content)
    else:
        changed = damage.of_lines(rng, content) if name == "log.jsonl" else damage.of_json(rng, content)
    (run / name).write_bytes(changed)


def _replace(rng, path):
    """Replaces a document by a link, a pipe or a folder."""
    elsewhere = path.parent.parent / "elsewhere"
    shutil.move(path, elsewhere)
    kind = rng.choice(["link", "pipe", "folder", "dead_link"])
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    else:
        path.symlink_to(elsewhere if kind == "link" else elsewhere.with_name("nothing"))


def runs(rng, folder):
    """A run folder with one damaged document, in every command that reads it."""
    run = folder / "run"
    shutil.copytree(FINISHED, run)
    _damage_run(rng, run)
    # An export or a resume takes seconds.
    read_run(rng.choices(READERS_OF_A_RUN, [40, 30, 20, 7, 3])[0], run, rng)


READERS_OF_A_RUN = ("report", "compare", "load", "resume", "export")


def read_run(action, run, rng):
    """Runs a command that reads a run folder."""
    if action == "report":
        cli("report", run)
    elif action == "compare":
        other = run.with_name("run2")
        shutil.copytree(FINISHED, other)
        cli("report", *rng.sample([run, other], 2), "--out", run / "page.html")
    elif action == "load":
        forked.note_inputs()
        load(run)
    elif action == "resume":
        cli("distill", "--recipe", FINISHED / "recipe.yaml", "--out", run, "--resume", "-q")
    else:
        cli("export", run, "--format", "safetensors", "--out", run / "out", "-q")


def benchmarks(rng, folder):
    """An earlier benchmark (--compare), or the result of a pack (--merge)."""
    old, result = folder / "old.json", folder / "result.json"
    is_old = rng.random() < 0.7
    source = rng.choice([FIXTURES / "bench.json", FINISHED / "bench.json"])
    old.write_bytes(damage.of_json(rng, source.read_bytes()) if is_old else source.read_bytes())
    body = packed_body()
    if not is_old and rng.random() < 0.8:
        body = damage.of_tree(rng, body)
    content = json.dumps(packed.with_digest(body)).encode()
    is_cut = not is_old and rng.random() < 0.3
    result.write_bytes(damage.of_json(rng, content) if is_cut else content)
    words = []
    if is_old or rng.random() < 0.3:
        words += ["--compare", old]
        words += ["--fail-if", f"{rng.choice(list(METRICS))} > {rng.choice(['1.5 * old', '2'])}"]
    if rng.random() < 0.2:
        words += ["--plot", folder / "run" / "plot.svg"]
    merge_benchmark(folder, *words)


def merge_benchmark(folder, *words):
    """Merges the result of a pack."""
    (folder / "run").mkdir()
    cli("bench", "--merge", folder / "result.json", "--out", folder / "run" / "out.json", *words)


def packed_body(rounds=1):
    """Returns the body of a result of a pack, of one file and its control."""
    far = far_end.valid(rounds=rounds)
    cell = {"artefact": "student", "runtime": "onnxruntime", "threads": 1, "batch": 1, "control": False}
    return {
        "job": {
            "tool": {"name": "kdcompress", "version": "1"},
            "artefacts": {"student": {"file": "a.onnx", "sha256": "", "bytes": 1, "params": 1, "macs": 1} | {
                "precision": "fp32"
            }},
            "plan": {"cells": [cell, {**cell, "control": True}]},
            "baseline": None, "protocol": {"rounds": rounds}, "warnings": [],
        },
        "raw": far[4]["result"]["raw"], "before": far[1]["preflight"]["facts"],
        "after": far[4]["result"]["after"], "warnings": [],
    }  # fmt: skip


def far_ends(rng, folder):
    """A machine that answers anything over ssh."""
    measure_there(folder, far_end.damaged(rng))


def measure_there(folder, script):
    """Times a file on a machine that answers as the script says."""
    words = far_end.command(folder, script)
    # The process is a fork of its own, so nothing has to be put back.
    ssh_connection.Address.command = lambda self: words
    ssh_connection.shutil.which = lambda name: name
    ssh_connection.LOGIN_TIMEOUT_S, ssh_connection.RESPONSE_TIMEOUT_S = 2, 1
    ssh_connection.GOODBYE_S = 0.5
    timing.PROTOCOL = Protocol(0.01, 1, 2, 0, 0)
    cli("bench", GRAPH, "--target", "ssh://far", "--rounds", 1, "--threads", 1, "-q")


def graphs(rng, folder):
    """An ONNX file: truncated, flipped, with odd metadata, without opset."""
    path = folder / "student.onnx"
    content = GRAPH.read_bytes()
    if rng.random() < 0.5:
        model = onnx.load_from_string(content)
        kind = rng.choice(["metadata", "metadata", "opset", "dims", "nodes", "weights"])
        if kind == "metadata":
            entry = rng.choice(list(model.metadata_props))
            if rng.random() < 0.5:
                entry = next(e for e in model.metadata_props if e.key == "kdcompress.input")
            entry.value = damage.of_json(rng, entry.value.encode()).decode("utf-8", "replace")
        elif kind == "opset":
            del model.opset_import[:]
        elif kind == "dims":
            axis = rng.choice(list(model.graph.input[0].type.tensor_type.shape.dim))
            axis.dim_value = rng.choice([0, -1, 1, 7, 2**40])
        elif kind == "nodes":
            del model.graph.node[rng.randrange(len(model.graph.node))]
        else:
            tensor = rng.choice(list(model.graph.initializer))
            tensor.dims.append(rng.choice([0, 2, 2**40]))
        content = model.SerializeToString()
    else:
        content = damage.of_bytes(rng, content)
    path.write_bytes(content)
    read_graph(rng.choice(READERS_OF_A_GRAPH), path)


READERS_OF_A_GRAPH = ("evaluate", "facts", "load")


def read_graph(action, path):
    """Reads an exported graph as a command does."""
    if action == "evaluate":
        cli("evaluate", path, "--recipe", "quickstart", "-q")
    elif action == "facts":
        forked.note_inputs()
        timing._artefact("a", path, timing.BenchRequest(files=(str(path),)))
    else:
        forked.note_inputs()
        load(path)


def checkpoints(rng, folder):
    """A checkpoint (.pth, .safetensors): truncated, flipped, with odd tensors or names."""
    state = safetensors.torch.load_file(WEIGHTS)
    kind = rng.choice(["bytes", "bytes", "tensor", "names", "tree"])
    key = rng.choice(list(state))
    if kind == "tensor":
        state[key] = rng.choice(
            [
                lambda t: t.to(torch.float8_e4m3fn), lambda t: t.to_sparse(), lambda t: t.to("meta"),
                lambda t: t.to(torch.complex64), lambda t: t.to(torch.int8), lambda t: t * float("nan"),
                lambda t: t.double(), lambda t: t.half(), lambda t: t.reshape(-1), lambda t: t[None],
                lambda t: t.to(torch.bool), lambda t: torch.zeros(0), lambda t: t.t() if t.ndim == 2 else t,
            ]
        )(state[key])  # fmt: skip
    elif kind == "names":
        prefix = rng.choice(["module.", "model.", "_orig_mod."]) * rng.choice([1, 2, 3000])
        state = {prefix + name: tensor for name, tensor in state.items()}
    elif kind == "tree":
        state = rng.choice([{"model": state}, {"a": {"b": {"c": state}}}, [state], {}, 7, {"x": [1, None]}])
    suffix = ".safetensors" if kind == "bytes" and rng.random() < 0.5 else rng.choice([".pth", ".pt"])
    path = folder / f"checkpoint{suffix}"
    if suffix == ".safetensors":
        path.write_bytes(WEIGHTS.read_bytes())
    else:
        torch.save(state, path)
    if kind == "bytes":
        path.write_bytes(damage.of_bytes(rng, path.read_bytes()))
    strip(path, folder)


def strip(path, folder):
    """Reads the student out of a checkpoint."""
    (folder / "run").mkdir()
    cli("strip", path, "--student", "cifar/resnet8", "--out", folder / "run" / "out.safetensors")


def image_folder(rng, folder):
    """Writes a folder of small images."""
    root = folder / "images"
    for split in ("train", "test"):
        for name in ("cat", "dog"):
            (root / split / name).mkdir(parents=True)
            for number in range(3):
                pixels = np.frombuffer(rng.randbytes(16 * 16 * 3), np.uint8).reshape(16, 16, 3)
                Image.fromarray(pixels).save(root / split / name / f"{number}.png")
    return root


def images(rng, folder):
    """A folder with a damaged image of any format."""
    root = image_folder(rng, folder)
    buffer = io.BytesIO()
    mode = rng.choice(["RGB", "L", "RGBA", "I;16", "P", "1"])
    kind = rng.choice(["PNG", "JPEG", "GIF", "BMP", "TIFF", "WEBP", "PPM"])
    picture = Image.new(mode, (rng.choice([1, 17, 300]), rng.choice([1, 16])))
    try:
        picture.save(buffer, kind)
    except (OSError, ValueError):
        picture.convert("RGB").save(buffer, kind)
    path = root / "train" / "cat" / f"x.{kind.lower()}"
    path.write_bytes(damage.of_bytes(rng, buffer.getvalue()))
    read_images(root, rng.choice([0, 0.5]))


def read_images(root, max_broken=0):
    """Opens a folder of images or a table of labels."""
    forked.note_inputs()
    data = open_data(DataSection(dataset="imagefolder", root=str(root), image_size=16, max_broken=max_broken))
    torch.as_tensor(data.train.labels).sum()


def goldens(rng, folder):
    """A file of golden images."""
    path = folder / "golden.npz"
    content = (FINISHED / "golden.npz").read_bytes()
    draw = rng.random()
    if draw < 0.2:
        content = _declared_otherwise(rng, content)
    elif draw < 0.6:
        with np.load(io.BytesIO(content)) as held:
            arrays = dict(held)
        key = rng.choice(list(arrays))
        arrays[key] = rng.choice(
            [np.zeros(0), np.zeros((2, 3)), np.array("x"), np.array(np.nan), np.zeros((4, 1, 8, 8), np.int8)]
        )
        if rng.random() < 0.3:
            del arrays[key]
        buffer = io.BytesIO()
        np.savez_compressed(buffer, **arrays)
        content = buffer.getvalue()
    else:
        content = damage.of_bytes(rng, content)
    path.write_bytes(content)
    compare_golden(path)


def compare_golden(path):
    """Compares outputs with the golden ones."""
    forked.note_inputs()
    golden = read_golden(path)
    golden.error(lambda images: np.zeros_like(golden.outputs))


def _declared_otherwise(rng, content):
    """Returns an archive of which one array declares another shape or kind, or unpacks to 600 MB."""
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    changed, header = rng.choice(list(members)), io.BytesIO()
    declared = {
        "descr": rng.choice(["|u1", "<f4", "<f8", "<U9", "<U1000000000", "|S0"]),
        "fortran_order": rng.random() < 0.5,
        "shape": rng.choice([(10**12,), (10**6, 10**6, 4, 4), (2**62, 8), (0,), (-1,), (), (1,) * 40]),
    }
    np.lib.format.write_array_header_1_0(header, declared)
    members[changed] = header.getvalue() + members[changed][-rng.choice([1, 64, 4096]) :]
    zeros = 600 if rng.random() < 0.05 else 0
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, member in members.items():
            with archive.open(name, "w", force_zip64=True) as file:
                file.write(member)
                for _ in range(zeros if name == changed else 0):
                    file.write(bytes(1 << 20))
    return buffer.getvalue()


def tables(rng, folder):
    """A table of labels."""
    root = image_folder(rng, folder)
    names = [str(path.relative_to(root)) for path in sorted(root.rglob("*.png"))]
    kind = rng.choice([".csv", ".tsv", ".jsonl"])
    rows = [(name, name.split("/")[1], name.split("/")[0]) for name in names]
    if rng.random() < 0.6:
        number = rng.randrange(len(rows))
        nasty = [rng.choice(damage.NASTY_TEXT) for _ in range(3)]
        rows[number] = tuple(rng.choice([own, new]) for own, new in zip(rows[number], nasty, strict=True))
    if kind == ".jsonl":
        lines = [json.dumps(dict(zip(("path", "label", "split"), row, strict=True))) for row in rows]
    else:
        mark = "," if kind == ".csv" else "\t"
        lines = [mark.join(row) for row in [("path", "label", "split"), *rows]]
    content = "\n".join(lines).encode("utf-8")
    if rng.random() < 0.5:
        content = damage.of_bytes(rng, content)
    (root / f"labels{kind}").write_bytes(content)
    read_images(root / f"labels{kind}")


def _tar(rng, names, contents, odd):
    """A tar file with damaged headers whose sums are right, or None where one cannot be written."""
    file = io.BytesIO()
    with tarfile.open(
        fileobj=file, mode="w", format=rng.choice([tarfile.PAX_FORMAT, tarfile.GNU_FORMAT])
    ) as tar:
        for name, content in zip(names, contents, strict=True):
            member = tarfile.TarInfo(name)
            member.size = len(content)
            if rng.random() < odd:
                member.type = rng.choice(
                    [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE, b"S", b"x", b"g", b"L", b"?"]
                )
                member.linkname = "/etc/passwd"
            if rng.random() < odd:
                member.size = rng.choice([0, 1, 511, 10**6, 8**11, 2**62, -1, -1024])
            if rng.random() < odd:
                member.pax_headers = {
                    rng.choice(["size", "path", "GNU.sparse.map", "GNU.sparse.size"]): rng.choice(
                        ["-1", "9" * 400, "nan", "a", "1,2,3", "../x.png"]
                    )
                }
            tar.fileobj.write(member.tobuf(tar.format, "utf-8", "surrogateescape"))
            tar.fileobj.write(content + bytes(-len(content) % 512))
    return file.getvalue() + bytes(1024)


def shards(rng, folder):
    """A folder of tar shards."""
    root = folder / "shards"
    root.mkdir()
    write_shards(rng, root)
    read_shards(root, [rng.choice([0, 0.5]) for _ in range(2)])


def write_shards(rng, root, *, sound=False):
    """Writes a shard of each split, with strange members and damaged bytes unless `sound`."""
    odd = 0 if sound else 0.015
    for split in ("train", "test"):
        names, contents = [], []
        keyed = rng.random() < 0.5
        for number in range(8):
            pixels = np.frombuffer(rng.randbytes(16 * 16 * 3), np.uint8).reshape(16, 16, 3)
            picture = io.BytesIO()
            Image.fromarray(pixels).save(picture, "PNG")
            stem = str(number) if keyed else f"{rng.choice(['cat', 'dog'])}/{number}"
            nasty = rng.random() < odd
            names.append(rng.choice(damage.NASTY_TEXT) + ".png" if nasty else stem + ".png")
            contents.append(picture.getvalue())
            if keyed:
                names.append(stem + ".cls")
                contents.append(
                    rng.choice(damage.NASTY_TEXT).encode() if rng.random() < odd else b"01"[number % 2 :][:1]
                )
        content = _tar(rng, names, contents, odd)
        if rng.random() < 0.4 and not sound:
            content = damage.of_bytes(rng, content)
        (root / f"{split}.tar").write_bytes(content)


def read_shards(root, allowances):
    """Reads all images of tar shards, some times."""
    forked.note_inputs()
    for max_broken in allowances:  # the second time from the index in the cache
        data = open_data(DataSection(root=str(root), image_size=16, max_broken=max_broken))
        data.train.evaluation_images(torch.arange(len(data.train)))


KINDS = {
    "recipes": recipes,
    "runs": runs,
    "benchmarks": benchmarks,
    "far_ends": far_ends,
    "graphs": graphs,
    "checkpoints": checkpoints,
    "images": images,
    "goldens": goldens,
    "shards": shards,
    "tables": tables,
    "cache_parts": cache_parts,
    "array_sets": array_sets,
    "openvino_files": openvino_files,
}
