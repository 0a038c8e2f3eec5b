"""`data.decoder`: simplejpeg gives Pillow's pixels and keeps its contract; what is chosen is recorded."""

from __future__ import annotations

import dataclasses
import io
import itertools
import json
import random
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import yaml
from click.testing import CliRunner
from PIL import Image
from sklearn.datasets import load_sample_images

from kdcompress.cli import main
from kdcompress.data import fast_views
from kdcompress.data.dataset import open_data
from kdcompress.data.decode import decode_image, open_image, pixels_upright
from kdcompress.data.pixel_cache import PictureFormat, PixelCache
from kdcompress.errors import UnreadableImage, UserError
from kdcompress.recipe import DataSection, load_recipe
from kdcompress.run.auto import keep_recorded
from kdcompress.run.decoder import resolve_decoder, with_decoder

installed = pytest.mark.skipif(fast_views.version() is None, reason="simplejpeg is not installed")
SIZES = [(320, 240), (127, 255), (33, 17), (9, 8), (1, 1)]


@pytest.fixture(scope="module")
def photograph():
    return Image.fromarray(load_sample_images().images[0])


def jpeg(image, **options):
    file = io.BytesIO()
    image.save(file, "JPEG", **options)
    return file.getvalue()


def both(path, channels=3, least=10**6):
    """Decodes a file by Pillow and by simplejpeg; least: pixels that both sides keep."""
    with open_image(path) as image:
        image.draft(None, (least, least))
        expected = np.asarray(decode_image(image, channels))
    with open_image(path) as image:
        got = fast_views.OpenPicture(image, channels).pixels(least)
    return got, expected.reshape(*expected.shape[:2], channels)


@installed
@pytest.mark.parametrize("mode", ["RGB", "L"])
@pytest.mark.parametrize("progressive", [False, True])
@pytest.mark.parametrize("subsampling", ["4:4:4", "4:2:2", "4:2:0", "4:1:1"])
def test_pixels_are_those_of_pillow(tmp_path, photograph, subsampling, progressive, mode):
    path, channels = tmp_path / "a.jpg", 3 if mode == "RGB" else 1
    for size, quality, divisor in itertools.product(SIZES, (96, 50), (1, 2, 4, 8)):
        image = photograph.crop((0, 0, *size)).convert(mode)
        path.write_bytes(jpeg(image, quality=quality, subsampling=subsampling, progressive=progressive))
        got, expected = both(path, channels, max(1, min(size) // divisor))
        assert np.array_equal(got, expected), (size, quality, divisor)


def test_stored_pixels_are_set_upright_as_pillow_does(photograph):
    from kdcompress.data.decode import _TURNS

    small = photograph.crop((0, 0, 7, 5))
    for turn in range(1, 9):
        expected = small if turn == 1 else small.transpose(_TURNS[turn])
        assert np.array_equal(pixels_upright(np.asarray(small), turn), np.asarray(expected)), turn


@installed
@pytest.mark.parametrize("turn", range(1, 9))
def test_the_exif_orientation_is_applied(tmp_path, photograph, turn):
    exif = Image.Exif()
    exif[0x0112] = turn
    path = tmp_path / "a.jpg"
    path.write_bytes(jpeg(photograph.crop((0, 0, 60, 40)), exif=exif))
    assert np.array_equal(*both(path))


@installed
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
def test_every_colour_space_becomes_what_is_asked_for(tmp_path, photograph, mode, channels):
    path = tmp_path / "a.jpg"
    path.write_bytes(jpeg(photograph.crop((0, 0, 60, 40)).convert(mode)))
    assert np.array_equal(*both(path, channels))


@installed
def test_other_formats_are_decoded_by_pillow(tmp_path, photograph):
    for name in ("a.png", "a.gif", "a.webp", "a.bmp"):
        photograph.crop((0, 0, 60, 40)).save(tmp_path / name)
        assert np.array_equal(*both(tmp_path / name))


@installed
def test_damaged_files_are_read_or_refused_as_by_pillow(tmp_path, photograph):
    draw, path = random.Random(0), tmp_path / "a.jpg"
    whole = jpeg(photograph.crop((0, 0, 90, 70)), quality=85)
    refused = 0
    for number in range(300):
        content = bytearray(whole)
        for _ in range(draw.choice((0, 1, 3))):
            place = draw.randrange(8 * len(content))
            content[place // 8] ^= 1 << place % 8
        path.write_bytes(
            content[: draw.randrange(len(content) // 8, len(content))] if number % 3 else content
        )
        for channels in (3, 1):
            got, expected = both_or_errors(path, channels)
            assert isinstance(got, str) == isinstance(expected, str), number
            assert got == expected if isinstance(got, str) else np.array_equal(got, expected), number
            refused += isinstance(got, str)
    assert 100 < refused < 590


def both_or_errors(path, channels):
    results = []
    for decode in (
        lambda image: fast_views.OpenPicture(image, channels).pixels(10**6),
        lambda image: np.asarray(decode_image(image, channels)).reshape(image.height, image.width, channels),
    ):
        try:
            with open_image(path) as image:
                results.append(decode(image))
        except UnreadableImage as error:
            results.append(str(error))
    return results


@pytest.fixture
def folder(tmp_path, photograph, monkeypatch):
    monkeypatch.setenv("KDCOMPRESS_CACHE", str(tmp_path / "cache"))
    for number in range(24):
        left = 10 * number
        part = photograph.crop((left, left, left + 150 + number, left + 100))
        path = tmp_path / "pictures" / "ab"[number % 2] / f"{number}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        part.save(path, quality=90)
    return tmp_path / "pictures"


def views(source, decoder, view=0):
    source = with_decoder(Images(source), decoder).train
    return source.training_images(torch.arange(len(source)), view, 3)


@dataclasses.dataclass
class Images:
    """Stands for data with training images alone."""

    train: object
    held_out: object = None
    test: object = None
    extra: object = None


@installed
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("fit", ["crop", "whole", "pad"])
def test_views_are_nearly_those_of_pillow(folder, fit, channels):
    section = DataSection(root=str(folder), image_size=48, resize=fit, channels=channels)
    source = open_data(section, channels=frozenset({channels})).train
    # Parts of squeezed and bordered pictures begin between pixels, and are moved by up to half of one.
    most = 0.5 if fit == "crop" else 4
    for view in range(4):
        fast, slow = views(source, "simplejpeg", view), views(source, "pillow", view)
        assert (fast.shape, fast.dtype, fast.stride()) == (slow.shape, slow.dtype, slow.stride())
        assert (fast.int() - slow.int()).abs().float().mean() < most


@installed
@pytest.mark.parametrize("kind", ["raw", "jpeg"])
def test_stored_pictures_take_the_fast_way_too(folder, kind):
    source = open_data(DataSection(root=str(folder), image_size=48)).train
    cache = PixelCache(source, PictureFormat.of(source, kind))
    cache.fill(cache.open().store.missing, lambda *_: None)
    fast, slow = (views(cache.open(), decoder) for decoder in ("simplejpeg", "pillow"))
    assert (fast.int() - slow.int()).abs().float().mean() < 1.5
    assert not torch.equal(fast, slow)


@installed
def test_pictures_for_evaluation_and_the_default_are_pillows(folder):
    source = open_data(DataSection(root=str(folder), image_size=48)).train
    fast = with_decoder(Images(source), "simplejpeg").train
    every = torch.arange(len(source))
    assert torch.equal(fast.evaluation_images(every), source.evaluation_images(every))
    assert DataSection().decoder == source.decoder == "pillow"
    assert fast.subset(every[:2]).decoder == fast.with_augment("strong").decoder == "simplejpeg"


def resolved(setting, data):
    recipe, notice = resolve_decoder(load_recipe("quickstart", (f"data.decoder={setting}",)), data)
    return recipe.data.decoder, notice


def in_files(folder):
    return open_data(DataSection(root=str(folder), image_size=48))


def test_auto_goes_by_what_is_installed(folder, monkeypatch):
    data = in_files(folder)
    for version, chosen, why in (
        (None, "pillow", "simplejpeg is not installed (pip install 'kdcompress[fast]')"),
        ("1.9.0", "simplejpeg", "version 1.9.0 is installed"),
    ):
        monkeypatch.setattr(fast_views, "version", lambda version=version: version)
        assert resolved("auto", data) == (chosen, f"data.decoder: auto: {chosen}, since {why}")
        assert resolved("pillow", data) == ("pillow", None)


def test_what_is_missing_is_named(folder, monkeypatch):
    monkeypatch.setattr(fast_views, "version", lambda: None)
    with pytest.raises(UserError, match=r"needs the package simplejpeg, version 1\.7 or later \(pip install"):
        resolved("simplejpeg", in_files(folder))
    monkeypatch.setattr(fast_views, "version", lambda: "1.9.0")
    digits = open_data(DataSection(dataset="digits"))
    assert resolved("auto", digits)[0] == "pillow"
    with pytest.raises(UserError, match="digits is no set of picture files; leave it out"):
        resolved("simplejpeg", digits)


def test_an_old_package_counts_as_none(monkeypatch):
    monkeypatch.setattr(fast_views.importlib.util, "find_spec", lambda name: SimpleNamespace())
    for found, expected in (("1.6.4", None), ("1.7.0rc1", "1.7.0rc1"), ("2.0", "2.0")):
        monkeypatch.setattr(fast_views.importlib.metadata, "version", lambda name, found=found: found)
        assert fast_views.version() == expected


def test_a_resumed_run_keeps_what_it_began_with():
    begun = load_recipe("quickstart", ("data.decoder=simplejpeg",))
    assert (
        keep_recorded(load_recipe("quickstart", ("data.decoder=auto",)), begun).data.decoder == "simplejpeg"
    )
    assert keep_recorded(load_recipe("quickstart"), begun).data.decoder == "pillow"


@pytest.mark.exhaustive
@installed
def test_a_run_records_its_choice_and_resumes_with_it(folder, tmp_path, monkeypatch):
    """Also its teacher cache is another one than that of Pillow's views."""
    settings = (
        "student.model=cifar/resnet8", "teacher.model=cifar/resnet8", "teacher.weights=random",
        "student.weights=random", "teacher.min_top1=0", "teacher.epochs=1", "train.epochs=2",
        "teacher.cache.views=1", "data.image_size=32", "data.batch_size=8", "data.held_out=0.2",
        "data.workers=0", "bench.rounds=1", "export.formats=[onnx]",
    )  # fmt: skip
    command = ["distill", "--recipe", "resnet34-to-resnet18", "--data", str(folder), "--quiet"]
    command += [word for setting in settings for word in ("--set", setting)]
    for name, decoder in (("fast", "auto"), ("slow", "pillow")):
        asked = [*command, "--set", f"data.decoder={decoder}", "--out", str(tmp_path / name)]
        done = CliRunner().invoke(main, asked)
        assert done.exit_code == 0, (done.stderr, done.exception)
    recipe = yaml.safe_load((tmp_path / "fast" / "recipe.yaml").read_text())
    assert recipe["data"]["decoder"] == "simplejpeg"
    keys = [json.loads(key.read_text()) for key in tmp_path.glob("cache/teacher-outputs/*/key.json")]
    assert sorted(key["image"][5:] for key in keys) == [[], ["simplejpeg", fast_views.version()]]
    assert len({key["pixels"] for key in keys}) == 2
    monkeypatch.setattr(fast_views, "version", lambda: None)
    scored = CliRunner().invoke(main, ["evaluate", str(tmp_path / "fast"), "--quiet", "--json"])
    assert scored.exit_code == 0, (scored.stderr, scored.exception)  # its pictures are Pillow's
    again = [*command, "--set", "data.decoder=auto", "--out", str(tmp_path / "fast"), "--resume"]
    refused = CliRunner().invoke(main, again)
    assert refused.exit_code == 2
    assert "needs the package simplejpeg" in refused.stderr
