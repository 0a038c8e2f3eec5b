"""Damaged parts of the cache: each is read as a run reads it, which ends in the same bits as without it."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import hashlib
import json
import os
import shutil
import tempfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from small_training import ALONE, tapped

from hostile import damage, forked
from kdcompress.data import pixel_store
from kdcompress.data.batch import View
from kdcompress.data.cache import cache_folder
from kdcompress.data.dataset import open_data
from kdcompress.data.file_list import image_file
from kdcompress.data.image_check import broken_images, shared_images
from kdcompress.networks.teacher import FrozenTeacher
from kdcompress.progress import Progress
from kdcompress.recipe import DataSection, load_recipe
from kdcompress.run.context import Run
from kdcompress.run.pixel_cache import with_pixel_cache
from kdcompress.run.teacher_cache import cached_outputs
from kdcompress.run_folder import RunFolder
from kdcompress.train import result_store

SPARSE_BYTES = 40 << 30


def cache_parts(rng, folder):
    """A part of the cache that was damaged, replaced or removed, read once more."""
    kind = rng.choice(PARTS)
    read = kind(rng, folder)
    expected = read()
    elsewhere = folder / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "secret").write_bytes(rng.randbytes(100))
    (elsewhere / "x.pixels").write_bytes(rng.randbytes(100))
    for _ in range(rng.choice([1, 1, 1, 3])):
        _damage(rng, elsewhere)
    forked.note_inputs()
    for _ in range(2):  # the second time with what the first one has made again
        assert read() == expected, "a damaged part was used"


def read_twice(part, rng, folder):
    """Reads a part of the cache that is sound."""
    read = part(rng, folder)
    assert read() == read()


def _teacher_outputs(rng, folder):
    return teacher_outputs(folder, rng.choice(["fill", "fill", "fill", "read"]))


def teacher_outputs(folder, mode):
    """Returns a function that reads a teacher's outputs for two views as a run with a cache reads them."""
    settings = [
        "teacher.model=cifar/resnet8", "train.epochs=8", "train.threads=1", "data.batch_size=40",
        "teacher.cache.views=2", f"teacher.cache.mode={mode}",
    ]  # fmt: skip
    recipe = load_recipe("quickstart", settings)
    data = _digits()
    run = Run(recipe, RunFolder(folder / "run"), data, ALONE, _Quiet(), False, "")
    torch.manual_seed(1)
    teacher = FrozenTeacher(tapped("cifar/resnet8", 8, classes=10))

    def views(teacher):
        """Returns the outputs of batches of two views."""
        outputs = []
        for number in (0, 1, 0):
            indices = torch.arange(0, 80, 2)
            pixels = data.train.training_images(indices, number, 0).expand(-1, 3, -1, -1) / 255
            view = View(pixels, indices, number, data.train.ids[indices])
            outputs.append(teacher(view).logits.numpy().tobytes())
        return outputs

    def read():
        with cached_outputs(run, teacher) as answering:
            return views(answering)

    filled = load_recipe("quickstart", [*settings, "teacher.cache.mode=fill"])
    with cached_outputs(dataclasses.replace(run, recipe=filled), teacher) as answering:
        views(answering)
    return read


@functools.cache
def _digits():
    return open_data(load_recipe("quickstart").data)


@functools.cache
def _prepare():
    """Reads the teacher's outputs once: that imports what every fork would import again."""
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        patch.setenv("KDCOMPRESS_CACHE", folder)
        teacher_outputs(Path(folder), "fill")()


cache_parts.prepare = _prepare


def _pictures(rng, folder):
    """Training images that are cut out of the pixel cache, of a run."""
    root = _images(rng, folder)
    data = open_data(DataSection(dataset="imagefolder", root=str(root), image_size=16))
    kind = rng.choice(["raw", "jpeg"])
    recipe = load_recipe("quickstart", [f"data.pixel_cache={kind}"])
    run = Run(recipe, RunFolder(folder / "run"), data, ALONE, _Quiet(), False, "")

    def read():
        source = with_pixel_cache(run).data.train
        return source.training_images(torch.arange(len(source)), 0, 0).numpy().tobytes()

    return read


def _checks(rng, folder):
    """What is known of the files of a folder: which are damaged, and which are twice in it."""
    root = _images(rng, folder)
    (root / "train" / "cat" / "0.png").write_bytes(b"no image")
    shutil.copy(root / "train" / "dog" / "1.png", root / "test" / "dog" / "1.png")
    splits = {
        split: [image_file(root, str(path.relative_to(root))) for path in sorted(root.glob(f"{split}/*/*"))]
        for split in ("train", "test")
    }

    def read():
        return broken_images(root, splits["train"] + splits["test"], None), shared_images(root, splits)

    return read


def _results(rng, folder):
    """The tensors and facts of a finished training, in the cache and in a run folder."""
    state = {"weight": torch.arange(600.0).reshape(30, 20), "steps": torch.tensor(7)}
    place = folder / "run" / "checkpoints"

    class Network(torch.nn.Module):
        def state_dict(self):
            return state

    def read():
        stored = result_store.result(
            place, "teacher", "k" * 32, ALONE, lambda: (state, {"epoch": 3, "held_out": {"top1": 0.5}}),
            result_store.fits_network(Network()),
        )  # fmt: skip
        return {name: tensor.tolist() for name, tensor in stored.state.items()}, stored.note, stored.sha256

    def read_without_run():
        shutil.rmtree(place, ignore_errors=True)
        return read()

    return rng.choice([read, read_without_run])


PARTS = (_teacher_outputs, _pictures, _checks, _results)


class _Quiet(Progress):
    """Writes warnings alone."""

    def __init__(self):
        super().__init__(quiet=True)


def _images(rng, folder):
    root = folder / "images"
    for split in ("train", "test"):
        for name in ("cat", "dog"):
            (root / split / name).mkdir(parents=True)
            for number in range(3):
                pixels = np.frombuffer(rng.randbytes(24 * 20 * 3), np.uint8).reshape(24, 20, 3)
                Image.fromarray(pixels).save(root / split / name / f"{number}.png")
    return root


def _damage(rng, elsewhere):
    """Damages, replaces or removes a file of the cache or of the run, or a folder of the cache."""
    parts = [
        path
        for top in (cache_folder(), elsewhere.parent / "run")
        for path in sorted(top.rglob("*"))
        if path.is_file() and not path.is_symlink() and path.stat().st_size < SPARSE_BYTES
    ]
    if not parts:
        return
    path = rng.choice(parts)
    kind = rng.choice(
        ["bytes"] * 8 + ["shape"] * 3 + ["tensors"] * 2
        + ["tree", "foreign", "foreign", "long", "gone", "link", "link", "own"]
        + ["dangling", "loop", "fifo", "folder", "full_folder", "linked_folder", "file_for_folder"]
    )  # fmt: skip
    if kind == "bytes":
        path.write_bytes(damage.of_bytes(rng, path.read_bytes()))
    elif kind == "shape":
        path.write_bytes(_with_another_shape(rng, path))
    elif kind == "tensors":
        _store_other_tensors(rng, path)
    elif kind == "tree":
        note = next((part for part in parts if part.suffix == ".json"), path)
        note.write_bytes(damage.of_json(rng, note.read_bytes()))
    elif kind == "foreign":
        path.write_bytes(rng.choice([rng.choice(parts).read_bytes(), b"{}", b'{"result": {}}', b"[]"]))
    elif kind == "long":
        os.truncate(path, SPARSE_BYTES)
    elif kind in ("linked_folder", "file_for_folder"):
        _replace_folder(rng, path.parent, elsewhere, kind)
    else:
        _replace_file(path, elsewhere, kind)


def _replace_file(path, elsewhere, kind):
    if kind == "own":  # a link to the very same bytes
        shutil.move(path, elsewhere / path.name)
        path.symlink_to(elsewhere / path.name)
        return
    path.unlink()
    if kind == "link":
        path.symlink_to(elsewhere / "secret")
    elif kind == "dangling":
        path.symlink_to(elsewhere / "nothing")
    elif kind == "loop":
        path.symlink_to(path)
    elif kind == "fifo":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    elif kind == "full_folder":
        path.mkdir()
        (path / "x").touch()


def _store_other_tensors(rng, path):
    """Replaces a stored result by one of other tensors, whose note and sums are right."""
    with contextlib.suppress(OSError, ValueError, KeyError):
        key = json.loads(path.with_suffix(".json").read_bytes())["key"]
        state = {
            name: torch.zeros(rng.choice([(), (0,), (3, 2), (30, 20)])).to(
                rng.choice([torch.int64, torch.float32])
            )
            for name in rng.sample(["weight", "steps", "bias", "x"], rng.randrange(4))
        }
        digest = hashlib.sha256(result_store.content_of(state)).hexdigest()
        other = result_store.StoredResult(state, {"epoch": 9}, key, digest)
        result_store.write_stored(path.parent, path.stem, other)


def _replace_folder(rng, place, elsewhere, kind):
    if place == cache_folder() / "checks" or "run" in place.parts[-2:]:
        return  # a link there may be the user's own
    shutil.move(place, elsewhere / "moved")
    if kind == "linked_folder":
        place.symlink_to(rng.choice([elsewhere, elsewhere / "moved"]))
    else:
        place.write_bytes(b"x")


def _with_another_shape(rng, path):
    """Returns a file whose list of contents declares other numbers, with its own sums made right."""
    content = path.read_bytes()
    if path.suffix == ".safetensors":
        length = int.from_bytes(content[:8], "little")
        header = json.loads(content[8 : 8 + length])
        entry = header[rng.choice([name for name in header if name != "__metadata__"])]
        entry["shape"] = rng.choice([[10**12], [2**62, 2**62], [0], [-1], [], [1] * 5000])
        if rng.random() < 0.5:
            entry["data_offsets"] = rng.choice([[0, 10**13], [-1, 4], [4, 0], [0], ["a", "b"]])
        changed = json.dumps(header).encode()
        return len(changed).to_bytes(8, "little") + changed + content[8 + length :]
    if path.suffix == ".pixels":
        footer, head = pixel_store._FOOTER, len(pixel_store._MAGIC)
        count = int.from_bytes(content[-footer:][:8], "little")
        start = len(content) - footer - count * pixel_store._INDEX.itemsize
        index = np.frombuffer(content[start:-footer], pixel_store._INDEX).copy()
        row, column = rng.randrange(count), rng.choice(["offset", "length", "width", "height"])
        index[column][row] = rng.choice([0, 1, 10**6, 2**32 - 1])
        claimed = rng.choice([count, count, 0, 2**63, 10**6])
        key, rows = content[head : head + 32], index.tobytes()
        return content[:start] + rows + claimed.to_bytes(8, "little") + pixel_store._index_sum(key, rows)
    if path.suffix == ".json":
        with contextlib.suppress(ValueError, AttributeError):
            note = json.loads(content)
            note[rng.choice(list(note))] = rng.choice(damage.NASTY)
            return json.dumps(note).encode()
    return damage.of_bytes(rng, content)
