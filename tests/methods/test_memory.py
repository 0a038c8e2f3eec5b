from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from small_training import Small
from torch import nn

from kdcompress.methods import base
from kdcompress.methods.memory import SampleMemory

PROCESS = """
import sys, torch, torch.distributed as dist
from kdcompress.methods.memory import SampleMemory
folder, rank = sys.argv[1], int(sys.argv[2])
dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
memory = SampleMemory(6, 2, dtype=torch.float32)
memory.write(torch.tensor([rank, 2 + rank]), torch.full((2, 2), 1.0 + rank))
torch.save(memory.rows, f"{folder}/{rank}.pt")
dist.destroy_process_group()
"""


def test_rows_are_read_as_written_and_others_stay_zero():
    memory = SampleMemory(4, 2, dtype=torch.float32)
    memory.write(torch.tensor([3, 1]), torch.tensor([[1.0, 2.0], [3.0, 4.0]]))
    assert memory.read(torch.tensor([1, 0, 3])).tolist() == [[3, 4], [0, 0], [1, 2]]


def test_rows_are_rounded_to_the_stored_type():
    memory = SampleMemory(2, 1)
    memory.write(torch.tensor([0]), torch.tensor([[1 / 3]]))
    row = memory.read(torch.tensor([0]))
    assert row.dtype == torch.float16
    assert row.item() == torch.tensor(1 / 3).half().item() != 1 / 3


def test_what_is_written_has_no_gradient():
    memory = SampleMemory(2, 1, dtype=torch.float32)
    memory.write(torch.tensor([0]), torch.ones(1, 1, requires_grad=True) * 2)
    assert not memory.rows.requires_grad


@pytest.mark.parametrize(("device", "moves"), [("cpu", False), ("method", True)])
def test_a_cpu_memory_stays_where_and_as_it_is_and_another_moves_with_the_method(device, moves):
    method = nn.ModuleDict({"memory": SampleMemory(3, 2, device=device), "head": nn.Linear(2, 2)})
    method.to("meta").double()
    assert method["head"].weight.device.type == "meta"
    rows = method["memory"].rows
    assert (rows.device.type, rows.dtype) == (("meta", torch.float64) if moves else ("cpu", torch.float16))


def test_the_announced_size_is_that_of_the_rows():
    assert SampleMemory(1000, 10).bytes == 20_000
    assert SampleMemory(1000, 10, dtype=torch.float32).bytes == 40_000


def test_the_state_is_one_ordinary_tensor_and_comes_back():
    one, other = (nn.ModuleDict({"memory": SampleMemory(3, 2)}) for _ in range(2))
    one["memory"].write(torch.tensor([2]), torch.tensor([[0.5, 0.25]]))
    assert list(one.state_dict()) == ["memory.rows"]
    other.load_state_dict(one.state_dict(), strict=True)
    assert torch.equal(other["memory"].rows, one["memory"].rows)


def test_two_processes_have_equal_memories_with_the_rows_of_both(tmp_path):
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    started = [
        subprocess.Popen([sys.executable, "-c", PROCESS, str(tmp_path), str(rank)], env=environment)
        for rank in range(2)
    ]
    assert [process.wait(timeout=600) for process in started] == [0, 0]
    rows = [torch.load(tmp_path / f"{rank}.pt") for rank in range(2)]
    assert torch.equal(*rows)
    assert rows[0].tolist() == [[1, 1], [2, 2], [1, 1], [2, 2], [0, 0], [0, 0]]


def test_a_large_memory_is_announced_with_its_size_and_place(tmp_path, monkeypatch):
    small = Small(tmp_path, "pskd", config={"memory": "cpu"})
    assert small.method.notices() == ()
    monkeypatch.setattr(base, "LEAST_NOTICED", 1)
    (notice,) = small.method.notices()
    assert "numbers for the training images, on the CPU, and in every checkpoint" in notice
    assert Small(tmp_path, "kd").method.notices() == ()
