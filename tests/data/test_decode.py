from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
from PIL import Image, features

from kdcompress.data import decode
from kdcompress.data.decode import (
    FORMATS,
    SUFFIXES,
    decode_image,
    open_image,
    pixels,
    problem_of,
    upright_size,
)
from kdcompress.errors import DataError


def read(path, channels=3):
    with open_image(path) as image:
        return pixels(decode_image(image, channels))


def half_red(size=(8, 4)):
    """Left half red, right half blue."""
    image = Image.new("RGB", size, (255, 0, 0))
    image.paste((0, 0, 255), (size[0] // 2, 0, size[0], size[1]))
    return image


@pytest.mark.parametrize("orientation", range(1, 9))
def test_an_image_stands_upright_whatever_the_exif_orientation(tmp_path, orientation):
    # What a camera stores under an orientation is the upright image put through the inverse turn.
    inverse = {
        2: Image.Transpose.FLIP_LEFT_RIGHT, 3: Image.Transpose.ROTATE_180, 4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE, 6: Image.Transpose.ROTATE_90, 7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_270,
    }  # fmt: skip
    upright = half_red()
    stored = upright.transpose(inverse[orientation]) if orientation > 1 else upright
    exif = Image.Exif()
    exif[0x0112] = orientation
    for name in ("turned.png", "turned.jpg"):
        stored.save(
            tmp_path / name, exif=exif, **({"quality": 100, "subsampling": 0} if "jpg" in name else {})
        )
        with open_image(tmp_path / name) as image:
            assert upright_size(image) == (8, 4)
        difference = read(tmp_path / name).astype(int) - np.asarray(upright).transpose(2, 0, 1)
        assert abs(difference[:, :, [0, 1, 6, 7]]).max() < 12  # JPEG blurs the border of the colours


def test_grey_is_the_same_on_three_channels(tmp_path):
    Image.new("L", (5, 4), 77).save(tmp_path / "grey.png")
    assert (read(tmp_path / "grey.png") == 77).all()
    assert read(tmp_path / "grey.png").shape == (3, 4, 5)
    assert read(tmp_path / "grey.png", channels=1).shape == (1, 4, 5)


def test_sixteen_bits_are_scaled_not_clipped(tmp_path):
    values = np.array([[0, 257, 32896, 65535]], dtype=np.uint16)
    for name in ("deep.png", "deep.tif"):
        Image.fromarray(values).save(tmp_path / name)
        assert read(tmp_path / name)[0].tolist() == [[0, 1, 128, 255]]


def test_what_is_transparent_is_white(tmp_path):
    Image.new("RGBA", (2, 2), (255, 0, 0, 0)).save(tmp_path / "clear.png")
    assert (read(tmp_path / "clear.png") == 255).all()
    Image.new("RGBA", (2, 2), (0, 0, 0, 51)).save(tmp_path / "faint.png")
    assert (read(tmp_path / "faint.png") == 204).all()
    Image.new("LA", (2, 2), (0, 0)).save(tmp_path / "grey.png")
    assert (read(tmp_path / "grey.png", channels=1) == 255).all()


def _in_one_piece(image, mode):
    clear = image.convert("RGBA")
    white = Image.new("RGBA", clear.size, (255, 255, 255, 255))
    white.alpha_composite(clear)
    return np.asarray(white.convert("RGB").convert(mode))


def _see_through(mode):
    """A picture of 50 x 37 random pixels with transparency."""
    draw = np.random.default_rng(0)
    if mode == "P":
        image = Image.fromarray(draw.integers(0, 256, (37, 50), np.uint8)).convert("P")
        image.info["transparency"] = draw.integers(0, 256, 256, np.uint8).tobytes()
        return image
    if mode == "RGB":
        image = Image.fromarray(draw.integers(0, 2, (37, 50, 3), np.uint8) * 255)
        image.info["transparency"] = (255, 0, 0)
        return image
    return Image.fromarray(draw.integers(0, 256, (37, 50, len(mode)), np.uint8), mode)


@pytest.mark.filterwarnings("ignore:'mode' parameter is deprecated:DeprecationWarning")
@pytest.mark.parametrize("mode", ["RGBA", "LA", "P", "RGB"])
@pytest.mark.parametrize("channels", [1, 3])
def test_transparency_laid_on_white_in_parts_gives_the_bits_of_the_whole(
    tmp_path, monkeypatch, mode, channels
):
    _see_through(mode).save(tmp_path / "clear.png", **({} if mode in ("RGBA", "LA") else {
        "transparency": _see_through(mode).info["transparency"]
    }))  # fmt: skip
    monkeypatch.setattr(decode, "_TILE", 16)
    with open_image(tmp_path / "clear.png") as image:
        image.load()
        assert image.mode == mode
        assert "A" in mode or "transparency" in image.info
        expected = _in_one_piece(image, "RGB" if channels == 3 else "L")
        assert np.array_equal(np.asarray(decode_image(image, channels)), expected)


PEAK = """
import resource, sys
from pathlib import Path
from kdcompress.data.decode import decode_image, open_image
def decoded(name):
    with open_image(Path(name)) as image:
        return decode_image(image, 3).size
decoded(sys.argv[1])
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
decoded(sys.argv[2])
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


@pytest.mark.filterwarnings("ignore:'mode' parameter is deprecated:DeprecationWarning")
@pytest.mark.parametrize("mode", ["RGBA", "LA"])
@pytest.mark.parametrize("size", [(4000, 4000), (10**7, 1)], ids=["square", "row"])
def test_a_large_picture_with_transparency_takes_its_pixels_twice_and_no_more(tmp_path, mode, size):
    for name, extent in (("small.png", (8, 8)), ("large.png", size)):
        Image.new(mode, extent).save(tmp_path / name, compress_level=1)
    done = subprocess.run(
        [sys.executable, "-c", PEAK, tmp_path / "small.png", tmp_path / "large.png"],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    # Pillow keeps RGBA, LA and RGB in 4 bytes each; a tile takes some megabytes, 1 or 2 for each pixel here.
    assert int(done.stdout) * 1024 / (size[0] * size[1]) < 11


def test_a_palette_with_a_transparent_colour_is_read(tmp_path):
    image = half_red().convert("P")
    blue = image.getpixel((7, 0))
    image.save(tmp_path / "palette.png", transparency=blue)
    image.save(tmp_path / "palette.gif")
    assert read(tmp_path / "palette.png")[:, 0, 7].tolist() == [255, 255, 255]
    assert read(tmp_path / "palette.png")[:, 0, 0].tolist() == [255, 0, 0]
    assert read(tmp_path / "palette.gif")[:, 0, 0].tolist() == [255, 0, 0]


def test_cmyk_and_bilevel_become_rgb(tmp_path):
    Image.new("CMYK", (8, 8), (0, 255, 255, 0)).save(tmp_path / "print.jpg", quality=100)
    red, green, blue = read(tmp_path / "print.jpg")[:, 4, 4].tolist()
    assert red > 240
    assert max(green, blue) < 15
    Image.new("1", (8, 8), 1).save(tmp_path / "fax.png")
    assert (read(tmp_path / "fax.png") == 255).all()


def test_a_damaged_file_is_one_sentence_with_its_path(tmp_path):
    sound = tmp_path / "sound.jpg"
    half_red((64, 64)).save(sound)
    content = sound.read_bytes()
    broken = {"cut.jpg": content[:-200], "text.jpg": b"no image at all", "empty.png": b""}
    for name, data in broken.items():
        (tmp_path / name).write_bytes(data)
        assert problem_of(tmp_path / name)
        with pytest.raises(DataError, match=name) as caught:
            read(tmp_path / name)
        assert "\n" not in str(caught.value)
    assert problem_of(sound) is None
    assert problem_of(tmp_path / "absent.jpg") == "No such file or directory"


def test_a_damaged_png_is_found(tmp_path):
    path = tmp_path / "a.png"
    Image.effect_noise((64, 64), 90).save(path)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0xFF
    path.write_bytes(bytes(content))
    assert problem_of(path)


def test_floating_point_pixels_are_refused_with_the_reason(tmp_path):
    Image.fromarray(np.ones((4, 4), dtype=np.float32)).save(tmp_path / "float.tif")
    assert "8 or 16 bits" in problem_of(tmp_path / "float.tif")


def test_a_file_is_read_only_in_the_formats_whose_names_are_taken(tmp_path, monkeypatch):
    """Pillow would start Ghostscript for a file of PostScript, whatever its name."""
    started = []
    monkeypatch.setattr(subprocess, "Popen", lambda *_, **__: started.append("a program"))
    for kind in ("EPS", "PDF", "ICO", "PCX"):
        half_red().save(tmp_path / "x", kind)
        (tmp_path / "x.png").write_bytes((tmp_path / "x").read_bytes())
        assert problem_of(tmp_path / "x.png") == "not an image, or damaged at its start", kind
        with pytest.raises(DataError, match="not an image, or damaged at its start"):
            read(tmp_path / "x.png")
    assert not started


@pytest.mark.skipif(not features.check("avif"), reason="Pillow reads no AVIF")
def test_avif_in_a_file_of_another_name_is_read(tmp_path):
    half_red().save(tmp_path / "x.avif")
    (tmp_path / "x.avif").rename(tmp_path / "x.jpg")
    assert read(tmp_path / "x.jpg").shape == pixels(half_red()).shape


def test_every_format_whose_names_are_taken_is_read(tmp_path):
    known = Image.registered_extensions()
    assert {known[suffix] for suffix in SUFFIXES} == set(FORMATS) - {"AVIF"}
    for suffix in sorted(SUFFIXES):
        image = half_red().convert("1" if suffix == ".pbm" else "RGB")
        image.save(tmp_path / f"x{suffix}", known[suffix])
        assert read(tmp_path / f"x{suffix}").shape == (3, 4, 8), suffix
        assert problem_of(tmp_path / f"x{suffix}") is None
