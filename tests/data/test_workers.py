from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import subprocess
import sys
import time

import psutil
import pytest
import torch
from PIL import Image

from kdcompress.data.loader import EvaluationLoader, TrainingLoader
from kdcompress.data.orders import ShuffledOrder
from kdcompress.data.source import FolderSource
from kdcompress.errors import DataError, WorldError


@pytest.fixture
def photos(tmp_path):
    for number in range(24):
        Image.new("RGB", (24, 20), (10 * number, number, 0)).save(tmp_path / f"{number}.png")
    return FolderSource(tmp_path, tuple(f"{n}.png" for n in range(24)), torch.arange(24) % 2, side=8)


def loader(source, workers, **more):
    settings = {"batch_size": 4, "views": 2, "seed": 0, "augment": "resized_crop_flip", "device": "cpu"}
    return TrainingLoader(source, workers=workers, **{**settings, **more})


def processes():
    return [child for child in multiprocessing.active_children() if child.daemon]


def until(condition, seconds=20):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.05)


def test_workers_change_nothing_but_the_speed(photos):
    plain, helped = loader(photos, 0), loader(photos, 2)
    rng, on_child = torch.get_rng_state(), signal.getsignal(signal.SIGCHLD)
    try:
        iterator = helped.epoch(0)
        next(iterator)  # left in the middle, as a run that reaches its last step does
        iterator.close()
        first = [child.pid for child in processes()]
        assert len(first) == 2
        for epoch, start in ((0, 0), (1, 2)):
            pairs = list(zip(plain.epoch(epoch, start), helped.epoch(epoch, start), strict=True))
            assert len(pairs) == 6 - start
            for a, b in pairs:
                assert torch.equal(a.indices, b.indices)
                assert all(torch.equal(x.images, y.images) for x, y in zip(a.views, b.views, strict=True))
        assert [child.pid for child in processes()] == first  # kept over the epochs
        for pid in first:
            os.kill(pid, signal.SIGINT)  # what Ctrl-C sends to the whole group
        assert len(list(helped.epoch(2))) == 6
    finally:
        helped.close()
    until(lambda: not processes())
    assert torch.equal(torch.get_rng_state(), rng)
    assert signal.getsignal(signal.SIGCHLD) is on_child
    assert signal.SIGINT not in signal.pthread_sigmask(signal.SIG_BLOCK, set())


def test_workers_begin_the_next_epoch_before_it_is_asked_for(photos):
    """And give the right images whether it comes next or another one does."""
    asked = []

    class Recorded(ShuffledOrder):
        def __call__(self, epoch):
            asked.append(epoch)
            return super().__call__(epoch)

    order = Recorded(len(photos), batch_size=4, seed=0)
    plain, helped = loader(photos, 0), loader(photos, 2, order=order)
    try:
        assert len(list(helped.epoch(0))) == plain.steps
        assert asked == [0, 1]
        for epoch, start in ((1, 0), (2, 0), (7, 0), (8, 1), (9, 0)):
            for a, b in zip(plain.epoch(epoch, start), helped.epoch(epoch, start), strict=True):
                assert torch.equal(a.indices, b.indices)
                assert all(torch.equal(x.images, y.images) for x, y in zip(a.views, b.views, strict=True))
        assert asked == [0, 1, 2, 3, 7, 8, 9, 10], "each order is drawn once"
    finally:
        helped.close()


def test_a_worker_that_dies_is_one_sentence(photos):
    helped = loader(photos, 1)
    try:
        iterator = helped.epoch(0)
        next(iterator)
        iterator.close()
        (worker,) = processes()
        os.kill(worker.pid, signal.SIGKILL)
        with pytest.raises(WorldError, match=r"a process that decodes images died.*--resume") as caught:
            all(len(list(helped.epoch(epoch))) == 6 for epoch in range(1, 100))
        assert "\n" not in str(caught.value)
    finally:
        helped.close()


def test_more_workers_than_cores_are_the_users_to_choose(photos, monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0}, raising=False)
    helped = loader(photos, 2)  # warnings are errors here
    try:
        assert len(list(helped.epoch(0))) == 6
    finally:
        helped.close()


def test_an_image_that_vanishes_is_one_sentence_naming_it(photos):
    (photos.root / "17.png").unlink()
    evaluation = EvaluationLoader(photos, batch_size=8, device="cpu", workers=1)
    try:
        with pytest.raises(DataError, match=r"17\.png: No such file") as caught:
            list(evaluation)
        assert "\n" not in str(caught.value)
    finally:
        evaluation.close()


@pytest.mark.parametrize("workers", [0, 1])
def test_a_small_split_of_files_is_decoded_once(photos, workers):
    evaluation = EvaluationLoader(photos, batch_size=8, device="cpu", workers=workers)
    with contextlib.closing(evaluation):
        next(iter(evaluation))  # an iteration that stops early keeps nothing
        first = list(evaluation)
        for file in photos.files:
            (photos.root / file).unlink()
        second = list(evaluation)
    assert [b.labels.tolist() for b in first] == [b.labels.tolist() for b in second]
    assert all(torch.equal(a.images, b.images) for a, b in zip(first, second, strict=True))


def test_a_large_split_of_files_is_decoded_again(photos, monkeypatch):
    monkeypatch.setattr("kdcompress.data.loader.KEPT_BYTES", 100)
    evaluation = EvaluationLoader(photos, batch_size=8, device="cpu")
    list(evaluation)
    (photos.root / photos.files[3]).unlink()
    with pytest.raises(DataError, match="No such file"):
        list(evaluation)


@pytest.mark.parametrize("world", [1, 2, 3, 7])
def test_processes_that_share_a_split_get_whole_batches_of_it_and_all_labels(photos, world):
    whole = [batch.images for batch in EvaluationLoader(photos, batch_size=5, device="cpu")]
    shares = [
        EvaluationLoader(photos, batch_size=5, device="cpu", rank=rank, world=world) for rank in range(world)
    ]
    assert all(torch.equal(share.labels, photos.labels) for share in shares)
    for _ in range(2):  # decoded, and from the kept pixels
        got = [[batch.images for batch in share] for share in shares]
        assert got[0]
        together = [images for each in got for images in each]
        assert all(torch.equal(a, b) for a, b in zip(together, whole, strict=True))


SCRIPT = """
import multiprocessing, sys, time, torch
from pathlib import Path
from kdcompress.data.loader import TrainingLoader
from kdcompress.data.orders import ShuffledOrder
from kdcompress.data.source import FolderSource
if __name__ == "__main__":
    files = tuple(f"{n}.png" for n in range(24))
    source = FolderSource(Path(sys.argv[1]), files, torch.arange(24) % 2, side=8)
    loader = TrainingLoader(source, batch_size=4, seed=0, augment="crop", device="cpu", workers=2)
    batches = loader.epoch(0)
    next(batches)
    print(*(child.pid for child in multiprocessing.active_children()), flush=True)
    time.sleep(60)
"""


def test_workers_end_when_their_parent_is_killed(photos, tmp_path):
    script = tmp_path / "train.py"
    script.write_text(SCRIPT)
    command = [sys.executable, script, photos.root]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as parent:
        workers = [int(pid) for pid in parent.stdout.readline().split()]
        assert len(workers) == 2
        assert all(psutil.pid_exists(pid) for pid in workers)
        parent.kill()
    until(lambda: not any(_alive(pid) for pid in workers))


def _alive(pid):
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
