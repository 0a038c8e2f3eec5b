from __future__ import annotations

import dataclasses
import os
import pickle
import random
import time

import numpy as np
import pytest
import torch
from PIL import Image

from kdcompress.data import pixel_cache, pixel_store
from kdcompress.data.joined import JoinedSource
from kdcompress.data.loader import TrainingLoader
from kdcompress.data.pixel_cache import PictureFormat, PixelCache, PixelCachedSource, choose_kind
from kdcompress.data.source import FolderSource
from kdcompress.errors import DataError, UserError

SIDE = 28  # stored pictures have a short side of 32
SIZES = [(64, 48), (48, 64), (32, 32), (20, 24), (300, 32), (200, 160), (33, 90), (40, 36), (64, 64), (9, 5)]


@pytest.fixture
def files(tmp_path, monkeypatch):
    """Ten smooth pictures of several sizes, one of them smaller than what is stored."""
    monkeypatch.setenv("KDCOMPRESS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(pixel_store, "SEGMENT", 4)
    monkeypatch.setattr(pixel_cache, "SEGMENT", 4)
    root = tmp_path / "pictures"
    root.mkdir()
    names = []
    for number, (width, height) in enumerate(SIZES):
        x, y = np.meshgrid(np.linspace(0, 255, width), np.linspace(0, 255, height))
        names.append(f"{number}.jpg" if number % 2 else f"{number}.png")
        pixels = np.stack([x, y, np.full_like(x, 25 * number)], 2).astype(np.uint8)
        Image.fromarray(pixels).save(root / names[-1], **({"quality": 95} if number % 2 else {}))
    return FolderSource(root, tuple(names), torch.arange(len(names)), SIDE)


def cache_of(source, kind="raw"):
    return PixelCache(source, PictureFormat.of(source, kind))


def filled(source, kind="raw"):
    cache = cache_of(source, kind)
    cache.fill(cache.open().store.missing, lambda *_: None)
    return cache.open()


def views(source, view=3):
    return source.training_images(torch.arange(len(source)), view, 7)


def made(monkeypatch):
    """Names of the pictures that are made from their files from now on."""
    names, real = [], PictureFormat.picture

    def counted(self, root, file):
        names.append(file.name)
        return real(self, root, file)

    monkeypatch.setattr(PictureFormat, "picture", counted)
    return names


@pytest.mark.parametrize("kind", ["raw", "jpeg"])
@pytest.mark.parametrize("fit", ["crop", "whole", "pad"])
@pytest.mark.parametrize("channels", [1, 3])
def test_views_are_cut_out_of_the_stored_pictures(files, monkeypatch, kind, fit, channels):
    source = filled(dataclasses.replace(files, fit=fit, channels=channels), kind)
    from_files = made(monkeypatch)
    got = views(source)
    assert got.shape == (len(files), channels, SIDE, SIDE)
    assert torch.equal(got, views(source))
    assert not from_files
    plain = views(source.uncached())
    assert (got.float() - plain.float()).abs().mean() < 12, "the same parts of nearly the same pictures"


def test_raw_views_are_those_of_files_that_were_resized_beforehand(files, tmp_path):
    """The one thing that the cache changes: pictures are scaled before the random crop."""
    (tmp_path / "scaled").mkdir()
    names = []
    for name in files.files:
        with Image.open(files.root / name) as image:
            image.draft(None, tuple(2 * 32 * edge // min(image.size) for edge in image.size))
            if min(image.size) > 32:
                size = tuple(32 * edge // min(image.size) for edge in image.size)
                image = image.resize(size, Image.Resampling.BILINEAR)
            names.append(name.replace("jpg", "png"))
            image.save(tmp_path / "scaled" / names[-1])
    scaled = FolderSource(tmp_path / "scaled", tuple(names), files.labels, SIDE)
    assert torch.equal(views(filled(files)), views(scaled))


@pytest.mark.parametrize("kind", ["raw", "jpeg"])
def test_evaluation_always_decodes_the_files(files, kind):
    everything = torch.arange(len(files))
    assert torch.equal(filled(files, kind).evaluation_images(everything), files.evaluation_images(everything))


@pytest.mark.parametrize("preset", ["none", "crop_flip"])
def test_presets_without_a_resized_crop_take_the_stored_pictures_too(files, monkeypatch, preset):
    source = filled(files.with_augment(preset))
    from_files = made(monkeypatch)
    views(source)
    assert not from_files


def test_a_subset_or_another_split_uses_the_same_pictures(files, monkeypatch):
    whole = filled(files)
    from_files = made(monkeypatch)
    chosen = torch.tensor([8, 1, 3])
    part = cache_of(files.subset(chosen)).open()
    assert part.store.missing == []
    assert torch.equal(views(part), views(whole)[chosen])
    assert torch.equal(views(whole.subset(chosen)), views(whole)[chosen])
    assert torch.equal(views(JoinedSource((whole,))), views(whole))
    assert not from_files


@pytest.mark.parametrize("workers", [0, 2])
def test_worker_processes_read_the_cache_and_change_nothing(files, workers):
    source = filled(files)
    loader = TrainingLoader(source, batch_size=4, seed=1, augment="weak", device="cpu", workers=workers)
    plain = TrainingLoader(source, batch_size=4, seed=1, augment="weak", device="cpu")
    for one, other in zip(loader.epoch(0), plain.epoch(0), strict=True):
        assert torch.equal(one.images, other.images)
    loader.close()
    assert torch.equal(views(pickle.loads(pickle.dumps(source))), views(source))


def test_only_files_that_were_added_or_changed_are_decoded_again(files, monkeypatch):
    filled(files)
    from_files = made(monkeypatch)
    filled(files)
    assert not from_files
    os.utime(files.root / "3.jpg", (1, 1))
    Image.new("RGB", (40, 40)).save(files.root / "new.png")
    labels = torch.arange(11)
    filled(FolderSource(files.root, (*files.files, "new.png"), labels, SIDE))
    assert from_files == ["3.jpg", "new.png"]


@pytest.mark.parametrize(
    "other",
    [{"side": 35}, {"channels": 1}, {"fit": "pad"}, {"crop_share": 0.5}],
    ids=lambda other: next(iter(other)),
)
def test_pictures_of_another_form_are_not_used(files, other):
    filled(files)
    assert len(cache_of(dataclasses.replace(files, **other)).open().store.missing) == len(files)
    assert len(cache_of(files, "jpeg").open().store.missing) == len(files)


def test_pictures_of_another_pillow_are_not_used_and_those_of_another_program_version_are(files, monkeypatch):
    filled(files)
    monkeypatch.setattr("kdcompress.__version__", "99")
    assert not cache_of(files).open().store.missing
    monkeypatch.setattr("PIL.__version__", "99")
    assert len(cache_of(files).open().store.missing) == len(files)


def test_processes_fill_disjoint_segments_which_are_whole_together(files, monkeypatch):
    cache, from_files = cache_of(files), made(monkeypatch)
    missing = cache.open().store.missing
    for rank in range(2):
        cache.fill(missing, lambda *_: None, rank=rank, world=2)
    assert sorted(from_files) == sorted(files.files)
    assert not cache.open().store.missing


def test_an_interrupted_fill_goes_on_where_it_was(files, monkeypatch):
    cache, real = cache_of(files), PictureFormat.picture

    def interrupted(self, root, file):
        if file.name == "9.jpg":
            time.sleep(0.5)
            raise KeyboardInterrupt
        return real(self, root, file)

    monkeypatch.setattr(PictureFormat, "picture", interrupted)
    with pytest.raises(KeyboardInterrupt):
        cache.fill(cache.open().store.missing, lambda *_: None)
    assert cache.open().store.missing == [8, 9], "two whole segments of four are there"
    monkeypatch.setattr(PictureFormat, "picture", real)
    assert not filled(files).store.missing


@pytest.mark.parametrize("kind", ["raw", "jpeg"])
def test_damaged_segments_are_never_used(files, monkeypatch, kind):
    """Two hundred single flipped bits and truncations: each run has the right pixels."""
    expected, draw = views(filled(files, kind)), random.Random(3)
    folder = cache_of(files, kind).folder
    sound = {path: path.read_bytes() for path in sorted(folder.iterdir())}
    from_files = made(monkeypatch)
    for number in range(200):
        path = draw.choice(list(sound))
        content = bytearray(sound[path])
        if number % 4 == 0:
            del content[draw.randrange(len(content)) :]
        else:
            content[draw.randrange(len(content))] ^= 1 << draw.randrange(8)
        path.write_bytes(content)
        from_files.clear()
        assert torch.equal(views(cache_of(files, kind).open()), expected)
        assert from_files, "the damage was noticed"
        assert not path.exists()
        path.write_bytes(sound[path])
    assert torch.equal(views(filled(files, kind)), expected)


def test_a_folder_that_is_a_link_is_neither_read_nor_cleaned_nor_filled(files):
    cache = cache_of(files)
    filled(files)
    elsewhere = files.root.parent / "elsewhere"
    os.rename(cache.folder, elsewhere)
    (elsewhere / "foreign.pixels").write_bytes(b"not ours")
    cache.folder.symlink_to(elsewhere)
    there = sorted(elsewhere.iterdir())
    missing = cache.open().store.missing
    assert len(missing) == len(files)
    with pytest.raises(UserError, match="is a link, so nothing is written there"):
        cache.fill(missing, lambda *_: None)
    assert sorted(elsewhere.iterdir()) == there


@pytest.mark.parametrize("kind", ["raw", "jpeg"])
@pytest.mark.parametrize("column", ["width", "height", "length", "offset"])
@pytest.mark.parametrize("number", [0, 1, 2**32 - 1])
def test_a_picture_whose_index_declares_another_shape_is_made_from_its_file(files, kind, column, number):
    expected = views(filled(files, kind))
    cache = cache_of(files, kind)
    for path in cache.folder.iterdir():
        path.write_bytes(_with_index(path.read_bytes(), cache.form.key(files.root), column, number))
    assert torch.equal(views(cache.open()), expected)


def _with_index(content, key, column, number):
    """Returns a segment whose first picture has another number, with the sum of the index made right."""
    footer = pixel_store._FOOTER
    count = int.from_bytes(content[-footer:][:8], "little")
    start = len(content) - footer - count * pixel_store._INDEX.itemsize
    index = np.frombuffer(content[start:-footer], pixel_store._INDEX).copy()
    index[column][0] = number
    rows = index.tobytes()
    return content[:start] + rows + count.to_bytes(8, "little") + pixel_store._index_sum(key, rows)


def test_a_segment_that_vanishes_during_a_run_changes_no_pixel(files):
    source = filled(files)
    expected = views(source)
    for path in cache_of(files).folder.iterdir():
        path.unlink()
    assert torch.equal(views(source), expected)


def test_a_foreign_segment_is_not_used(files):
    filled(files)
    other = files.root.parent / "other"
    os.rename(files.root, other)
    moved = dataclasses.replace(files, root=other)
    folder = cache_of(moved).folder
    folder.mkdir(parents=True)
    for path in (*cache_of(files).folder.iterdir(),):
        (folder / path.name).write_bytes(path.read_bytes())
    assert len(cache_of(moved).open().store.missing) == len(files)


def test_a_file_that_changes_during_the_run_is_one_sentence(files):
    cache = cache_of(dataclasses.replace(files, files=files.file_list))
    listed = cache.open().file_list.image_files(files.root)
    os.utime(files.root / "3.jpg", (1, 1))
    with pytest.raises(DataError, match=r"3\.jpg: was changed after the run had listed it$"):
        cache.form.picture(files.root, listed[3])


def test_auto_keeps_small_sets_raw_and_larger_ones_as_jpeg(files, monkeypatch):
    assert choose_kind(files) == "raw"
    monkeypatch.setattr(pixel_cache, "RAW_BYTES", 1000)
    assert choose_kind(files) == "jpeg"
    monkeypatch.setattr(pixel_cache, "JPEG_BYTES", 1000)
    assert choose_kind(files) is None


def test_a_cached_source_is_a_source_of_files(files):
    source = filled(files).with_augment("moco_v2")
    assert isinstance(source, PixelCachedSource)
    assert (len(source), source.image_size, source.channels) == (10, (SIDE, SIDE), 3)
    assert torch.equal(views(source), views(source))
