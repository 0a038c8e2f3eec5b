"""What is no regular file is never waited for, and an interrupt does not wait for threads that hang."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap

import numpy as np
import pytest
from PIL import Image

from kdcompress.data.decode import open_image, problem_of
from kdcompress.data.file_list import image_file
from kdcompress.data.image_check import broken_images, shared_images
from kdcompress.errors import DataError


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("KDCOMPRESS_CACHE", str(tmp_path / "cache"))
    (tmp_path / "a").mkdir()
    Image.fromarray(np.zeros((8, 8), np.uint8)).save(tmp_path / "a" / "good.png")
    os.mkfifo(tmp_path / "a" / "pipe.png")
    (tmp_path / "a" / "device.png").symlink_to("/dev/zero")
    return tmp_path


def test_a_pipe_or_device_in_an_image_folder_is_named_and_not_opened(folder):
    names = ["a/good.png", "a/pipe.png", "a/device.png"]
    files = [image_file(folder, name) for name in names]
    assert broken_images(folder, files, None) == dict.fromkeys(names[1:], "not a regular file")
    assert problem_of(folder / "a/pipe.png") == "not a regular file"
    with pytest.raises(DataError, match="not a regular file"):
        shared_images(folder, {"train": files[1:], "test": files[1:]})
    with pytest.raises(DataError, match=r"pipe\.png: not a regular file"), open_image(folder / "a/pipe.png"):
        pass


@pytest.mark.parametrize(
    "content",
    ["[" * 100_000, '{"schema": "kdcompress.check/1", "result": 7}', "9" * 5000, '{"a": NaN}', "\xff"],
)
def test_a_damaged_result_in_the_cache_is_made_again(folder, content):
    files = [image_file(folder, "a/good.png"), image_file(folder, "a/pipe.png")]
    first = broken_images(folder, files, None)
    for stored in list((folder / "cache" / "checks").iterdir()):
        stored.write_text(content, encoding="latin-1")
        assert broken_images(folder, files, None) == first
        stored.unlink()
        os.mkfifo(stored)
        assert broken_images(folder, files, None) == first


def test_a_result_with_a_changed_bit_or_of_another_list_is_made_again(folder):
    files = [image_file(folder, "a/good.png"), image_file(folder, "a/pipe.png")]
    first = broken_images(folder, files, None)
    assert list(first) == ["a/pipe.png"]
    assert broken_images(folder, files[:1], None) == {}
    one, other = sorted((folder / "cache" / "checks").glob("*.json"), key=lambda path: path.stat().st_size)
    whole = other.read_bytes()
    other.write_bytes(whole.replace(b"a/pipe.png", b"a/qipe.png"))
    assert broken_images(folder, files, None) == first
    other.write_bytes(one.read_bytes())
    assert broken_images(folder, files, None) == first
    assert other.read_bytes() == whole
    other.unlink()
    other.symlink_to(one)
    assert broken_images(folder, files, None) == first


def test_names_that_are_no_unicode_come_back_from_the_cache(folder):
    name = os.fsdecode(b"a/\xff.png")
    (folder / name).write_bytes(b"no image")
    files = [image_file(folder, name)]
    assert broken_images(folder, files, None) == broken_images(folder, files, None)
    assert list(broken_images(folder, files, None)) == [name]


def test_an_interrupt_does_not_wait_for_a_thread_that_hangs(tmp_path):
    code = """
        import sys, time
        from pathlib import Path
        from kdcompress.data.threads import map_in_threads
        def hang(file):
            print("hangs", flush=True)
            time.sleep(600)
        map_in_threads(hang, ["a"] * 4, "check", None)
    """
    process = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(code)], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert process.stdout.readline().startswith(b"hangs")
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=30)
    assert process.returncode != 0


def test_a_large_scan_in_16_bits_is_converted_in_strips(tmp_path):
    values = (np.arange(600 * 300) % 65536).astype(np.uint16).reshape(600, 300)
    Image.fromarray(values).save(tmp_path / "scan.png")
    from kdcompress.data.decode import decode_image, pixels

    with open_image(tmp_path / "scan.png") as image:
        got = pixels(decode_image(image, 1))
    assert np.array_equal(got[0], (values.astype(np.int64) + 128) // 257)
