"""The pixel cache of a run: what `auto` means, what is announced and refused, and that processes share it."""

from __future__ import annotations

import contextlib
import dataclasses
import shutil
from types import SimpleNamespace

import pytest
import torch
from PIL import Image

from kdcompress.data import pixel_cache as stored
from kdcompress.data.dataset import open_data
from kdcompress.data.pixel_cache import PixelCachedSource
from kdcompress.errors import UserError
from kdcompress.recipe import DataSection, load_recipe
from kdcompress.run.auto import keep_recorded
from kdcompress.run.pixel_cache import resolve_pixel_cache, with_pixel_cache
from kdcompress.train.processes import Processes


@pytest.fixture
def data(tmp_path, monkeypatch):
    monkeypatch.setenv("KDCOMPRESS_CACHE", str(tmp_path / "cache"))
    for number in range(24):
        path = tmp_path / "pictures" / "ab"[number % 2] / f"{number}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (60, 40), (10 * number, number, 0)).save(path)
    return open_data(DataSection(root=str(tmp_path / "pictures"), image_size=28))


def recipe(setting, epochs=10):
    return load_recipe("quickstart", [f"data.pixel_cache={setting}", f"train.epochs={epochs}"])


def resolved(setting, data, epochs=10):
    changed, notice = resolve_pixel_cache(recipe(setting, epochs), data)
    return changed.data.pixel_cache, notice


@dataclasses.dataclass(frozen=True)
class Run:
    """A stand-in with what the cache reads of a run."""

    recipe: object
    data: object
    processes: Processes
    progress: object


class Told:
    """Keeps the lines about a run."""

    def __init__(self, lines):
        self.lines = lines

    def say(self, text):
        self.lines.append(text)

    warn = say

    @contextlib.contextmanager
    def counter(self):
        yield lambda *_: None


def run_of(data, setting="raw", lines=None):
    told = Told([] if lines is None else lines)
    return Run(recipe(setting), data, Processes(0, 1, torch.device("cpu")), told)


def test_it_is_off_by_default_and_yamls_bare_off_is_off():
    assert load_recipe("quickstart").data.pixel_cache == "off"
    assert recipe("off").data.pixel_cache == "off"
    assert recipe("false").data.pixel_cache == "off"


def test_auto_goes_by_the_size_of_the_pictures_and_the_epochs(data, monkeypatch):
    assert resolved("auto", data) == ("raw", "data.pixel_cache: auto: raw, by the size of the pictures")
    kind, notice = resolved("auto", data, epochs=2)
    assert kind == "off"
    assert "2 epochs" in notice
    monkeypatch.setattr(stored, "RAW_BYTES", 100)
    assert resolved("auto", data)[0] == "jpeg"
    monkeypatch.setattr(stored, "JPEG_BYTES", 100)
    assert resolved("auto", data)[0] == "off"


def test_data_in_memory_needs_no_cache(data):
    in_memory = SimpleNamespace(name="digits", train=range(3), extra=None)
    kind, notice = resolved("auto", in_memory)
    assert kind == "off"
    assert "held in memory" in notice
    with pytest.raises(UserError, match=r"^data.pixel_cache: raw, but digits is held in memory anyway"):
        resolved("raw", in_memory)


def test_a_resume_keeps_what_auto_chose():
    assert keep_recorded(recipe("auto"), recipe("jpeg")).data.pixel_cache == "jpeg"


def test_the_size_is_announced_and_the_cache_filled_once(data):
    lines = []
    cached = with_pixel_cache(run_of(data, lines=lines)).data
    assert isinstance(cached.train, PixelCachedSource)
    assert cached.train.store.missing == []
    assert cached.test is data.test
    count = len(data.train)
    assert lines[0].startswith(f"Pixel cache: {count} pictures of side 32 as raw in ")
    assert f"about {count * 48 * 32 * 3 / 1e6:.1f} MB" in lines[0]
    with_pixel_cache(run_of(data, lines=lines))
    assert lines[1].endswith("filled already")


def test_off_changes_nothing(data):
    run = run_of(data, "off")
    assert with_pixel_cache(run) is run


def test_a_disk_without_room_is_refused_before_anything_is_stored(data, monkeypatch, tmp_path):
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=1000))
    with pytest.raises(UserError, match=r"data.pixel_cache: raw: .* needs about .* set KDCOMPRESS_CACHE"):
        with_pixel_cache(run_of(data))
    assert not (tmp_path / "cache" / "pixels").exists()


def test_a_cache_that_cannot_be_written_costs_a_warning_and_no_pixel(data, tmp_path):
    def views(run):
        train = with_pixel_cache(run).data.train
        return train.training_images(torch.arange(len(train)), 0, 0)

    expected = views(run_of(data))
    shutil.rmtree(tmp_path / "cache" / "pixels")
    (tmp_path / "cache" / "pixels").write_text("no folder")
    lines = []
    assert torch.equal(views(run_of(data, lines=lines)), expected)
    assert "made from the files at every epoch, with the same pixels. Set KDCOMPRESS_CACHE" in lines[-1]
