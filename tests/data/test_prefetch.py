"""The order in which batches are loaded and trained on, with stand-ins for CUDA streams."""

from __future__ import annotations

from contextlib import contextmanager
from types import SimpleNamespace

import torch

from kdcompress.data import prefetch
from kdcompress.data.batch import Batch, View
from kdcompress.data.prefetch import moved, prefetched


def batch(number):
    numbers = torch.full((2,), number)
    return Batch((View(torch.zeros(2, 3, 4, 4), numbers, number),), numbers, numbers)


def test_on_a_cpu_each_batch_is_made_when_it_is_taken():
    made = []
    batches = prefetched((made.append(n) or batch(n) for n in range(3)), torch.device("cpu"))
    assert [int(next(batches).labels[0]) for _ in range(2)] == [0, 1]
    assert made == [0, 1]


def test_on_cuda_a_batch_is_made_on_the_side_stream_after_the_step_before_was_launched(monkeypatch):
    events = []

    class Stream:
        def __init__(self, name):
            self.name = name

        def wait_stream(self, other):
            events.append(f"{self.name} waits for {other.name}")

    @contextmanager
    def stream(used):
        events.append("on side")
        yield
        events.append("off side")

    main = Stream("main")
    cuda = SimpleNamespace(
        Stream=lambda device: Stream("side"), current_stream=lambda device: main, stream=stream
    )
    monkeypatch.setattr(prefetch.torch, "cuda", cuda)
    made = (events.append(f"make {n}") or batch(n) for n in range(2))
    for each in prefetched(made, torch.device("cuda")):
        events.append(f"train {int(each.labels[0])}")
    assert events == [
        "side waits for main",
        "on side", "make 0", "off side", "main waits for side", "train 0",
        "on side", "make 1", "off side", "main waits for side", "train 1",
        "on side", "off side",
    ]  # fmt: skip


def test_a_tensor_that_is_there_already_is_not_copied():
    tensor = torch.arange(3)
    assert moved(tensor, torch.device("cpu")) is tensor
