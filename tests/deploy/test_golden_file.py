"""The golden file gives back, anywhere, real images and what the network made of them."""

from __future__ import annotations

import io
import itertools
import math
import os
import zipfile

import numpy as np
import pytest
import torch
from small_student import CLASSES, MODEL, SPEC, batches, images, trained_student

from kdcompress.deploy.formats import onnx
from kdcompress.deploy.golden_file import NAME, Picker, read_golden, write_golden
from kdcompress.deploy.normalised import Deployed
from kdcompress.deploy.ship import Subject, ship
from kdcompress.errors import UserError
from kdcompress.tasks import CLASSIFICATION, EMBEDDING


def through(picker, count, size=7):
    """Lets `count` one-pixel images pass, whose label and pixel are their position."""
    pixels = torch.arange(count, dtype=torch.float32).div(1000).reshape(-1, 1, 1, 1)
    pairs = zip(pixels.split(size), torch.arange(count).split(size), strict=True)
    assert sum(len(labels) for _, labels in picker.through(pairs)) == count
    return picker


@pytest.mark.parametrize(
    ("count", "positions"),
    [
        (1, [0]),
        (3, [0, 1, 2]),
        (4, [0, 1, 2, 3]),
        (7, [0, 2, 4, 6]),
        (8, [0, 2, 4, 6]),
        (9, [0, 3, 5, 8]),  # of 0 2 4 6 8
        (1000, [0, 256, 512, 768]),
    ],
)
def test_the_images_are_spread_over_the_split(count, positions):
    picked, pixels, labels = through(Picker(4), count).picked()
    wide = max(1, count // 4)
    assert len(picked) == min(4, count)
    assert picked[0] == 0
    assert all(b - a >= wide // 2 for a, b in itertools.pairwise(picked))
    assert labels.tolist() == picked
    assert torch.equal(pixels.flatten(), torch.tensor(picked) / 1000)
    if count != 9:
        assert picked == positions


def test_bytes_come_back_as_the_very_same_floats(tmp_path):
    stored = torch.randint(0, 256, (5, 3, 4, 4), generator=torch.Generator().manual_seed(0))
    pixels = stored.to(torch.float32).div_(255)
    picker = Picker()
    list(picker.through([(pixels, torch.tensor([0, 1, -1, 1, 0]))]))
    outputs = torch.randn(5, 2, generator=torch.Generator().manual_seed(1))
    write_golden(tmp_path / NAME, picker, outputs, limit=0.5, task=CLASSIFICATION)
    with np.load(tmp_path / NAME, allow_pickle=False) as held:
        assert held["images"].dtype == np.uint8
        assert set(held.files) == {"schema", "images", "logits", "labels", "spread", "tolerance"}
    golden = read_golden(tmp_path / NAME)
    assert np.array_equal(golden.images, pixels.numpy())
    assert np.array_equal(golden.outputs, outputs.numpy())
    assert golden.labels.tolist() == [0, 1, -1, 1, 0]
    assert golden.spread == pytest.approx(float(outputs.std(0, correction=0).mean()))
    assert golden.tolerance == pytest.approx(0.5 * golden.spread)
    assert golden.task is CLASSIFICATION


def test_images_that_are_no_bytes_are_kept_as_floats(tmp_path):
    picker = Picker()
    list(picker.through([(images(3), torch.zeros(3, dtype=torch.int64))]))
    write_golden(tmp_path / NAME, picker, torch.ones(3, 2), limit=1, task=EMBEDDING)
    golden = read_golden(tmp_path / NAME)
    assert golden.images.dtype == np.float32
    assert np.array_equal(golden.images, images(3).numpy())
    assert golden.task is EMBEDDING


def test_a_shipped_golden_file_accepts_the_shipped_graph_and_no_other(run, student):
    folder, shipped = run
    assert NAME in shipped.files
    golden = read_golden(folder / NAME)
    assert golden.images.shape == (16, 3, 16, 16)
    assert golden.labels.tolist() == [position % len(CLASSES) for position in _positions(golden)]
    file = onnx.open_(folder / "student.onnx")
    assert golden.error(file) < golden.tolerance
    assert golden.error(Deployed(student, SPEC).eval().run) < 1e-4
    assert golden.error(Deployed(trained_student(seed=3), SPEC).eval().run) > golden.tolerance
    assert golden.error(lambda x: file(x)[:, :2]) == math.inf


def _positions(golden):
    everything = torch.cat([x for x, _ in batches()]).numpy()
    return [
        next(i for i, image in enumerate(everything) if np.array_equal(image, one)) for one in golden.images
    ]


def test_it_names_no_file_and_bears_no_date(run, tmp_path):
    folder, shipped = run
    with zipfile.ZipFile(folder / NAME) as archive:
        assert {entry.date_time for entry in archive.infolist()} == {(1980, 1, 1, 0, 0, 0)}
    again = ship(
        Subject(trained_student(), MODEL, SPEC, CLASSES, batches, {}), tmp_path, formats=["safetensors"]
    )
    assert again.files[NAME] == shipped.files[NAME]


def _without(name):
    def change(arrays):
        del arrays[name]

    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_without("logits"), "lacks the array 'logits'"),
        (_without("schema"), "schema 'None', this version of kdcompress reads 'kdcompress.golden/1'"),
        (
            lambda arrays: arrays.update(schema=np.array("kdcompress.golden/2")),
            "schema 'kdcompress.golden/2'",
        ),
        (lambda arrays: arrays.update(labels=np.array([None])), "is damaged, or no file of golden images"),
    ],
)
def test_a_file_that_is_none_or_newer_is_named(run, tmp_path, change, message):
    with np.load(run[0] / NAME) as held:
        arrays = {name: held[name] for name in held.files}
    change(arrays)
    np.savez(tmp_path / NAME, **arrays)
    with pytest.raises(UserError, match=message):
        read_golden(tmp_path / NAME)


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04rubbish", b"\x93NUMPY\x01", b"hello", None])
def test_damaged_and_missing_files_are_one_sentence(run, tmp_path, content):
    whole = (run[0] / NAME).read_bytes()
    (tmp_path / NAME).write_bytes(whole[:300] if content is None else content)
    with pytest.raises(UserError) as caught:
        read_golden(tmp_path / NAME)
    assert "\n" not in str(caught.value)
    with pytest.raises(UserError, match="cannot be read"):
        read_golden(tmp_path / "nowhere.npz")


def test_a_lone_array_is_no_golden_file(tmp_path):
    buffer = io.BytesIO()
    np.save(buffer, np.ones(3))
    (tmp_path / NAME).write_bytes(buffer.getvalue())
    with pytest.raises(UserError, match="is damaged, or no file of golden images"):
        read_golden(tmp_path / NAME)


def _npz(path, members):
    """Writes an archive whose members have a header of their own and some zeros."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, (shape, kind, held) in members.items():
            header = io.BytesIO()
            declared = {"descr": kind, "fortran_order": False, "shape": shape}
            np.lib.format.write_array_header_1_0(header, declared)
            archive.writestr(f"{name}.npy", header.getvalue() + bytes(held))


@pytest.mark.parametrize(
    "images",
    [
        ((10**6, 10**6), "<f4", 64),
        ((10**12,), "|u1", 64),
        ((2**62, 4), "<f4", 64),
        ((10**12,), "<U0", 0),
        ((1,), "<U1000000000", 64),
        ((-1, 3, 8, 8), "|u1", 64),
        ((16, 3, 2**12, 2**12), "|u1", 16 * 3 * 2**24),
    ],
    ids=["millions", "bytes", "overflow", "empty_text", "long_text", "negative", "bomb"],
)
def test_a_huge_array_is_refused_before_memory_is_taken_for_it(tmp_path, monkeypatch, images):
    _npz(tmp_path / NAME, {"images": images})
    monkeypatch.setattr(np, "load", None)  # numpy is not called
    with pytest.raises(UserError, match="is damaged, or no file of golden images") as caught:
        read_golden(tmp_path / NAME)
    assert "NoneType" not in str(caught.value)
    assert len(str(caught.value)) < 400


def test_a_pipe_in_its_place_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / NAME)
    with pytest.raises(UserError, match="cannot be read: it is no regular file"):
        read_golden(tmp_path / NAME)
