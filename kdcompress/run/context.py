"""The objects that all steps of one run use."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from kdcompress import __version__
from kdcompress.cores import granted_cores
from kdcompress.data.dataset import Data
from kdcompress.data.loader import EvaluationLoader
from kdcompress.data.source import Source
from kdcompress.progress import Progress
from kdcompress.recipe import Recipe
from kdcompress.run_folder import RunFolder
from kdcompress.train import precision
from kdcompress.train.processes import Processes

TestSplit = Callable[[], Generator[tuple[Tensor, Tensor], None, None]]
"""Opens the test split and yields images `[B, C, H, W]` in [0, 1] and labels `[B]`."""


@dataclass(frozen=True, slots=True)
class Run:
    """Recipe, data, folder and processes of one run.

    Args:
        recipe: Resolved: its threads and its data folder are filled in.
        folder: The run folder.
        data: Opened and checked.
        processes: This process among all.
        progress: Receives progress and warnings.
        allow_code: True if `python:` networks may be built.
        command: The command as typed, for the manifest and for how to resume.
    """

    recipe: Recipe
    folder: RunFolder
    data: Data
    processes: Processes
    progress: Progress
    allow_code: bool
    command: str

    @property
    def device(self) -> torch.device:
        """Device of this process."""
        return self.processes.device

    @property
    def precision(self) -> Literal["bf16", "fp16", "fp32"]:
        """Number format of the forward passes; for a network that is trained, see `precision_of`."""
        return precision.resolve(self.recipe.train.precision, self.device)

    def precision_of(self, network: nn.Module) -> Literal["bf16", "fp16", "fp32"]:
        """Returns the number format of the passes of a network that is trained."""
        return precision.of_trained(self.recipe.train.precision, self.device, network)

    @property
    def environment(self) -> dict[str, Any]:
        """Facts that a stored result depends on beside recipe and data."""
        return {
            "kdcompress": __version__,
            "torch": torch.__version__,
            "device": self.device.type,
            "precision": self.precision,
            "processes": self.processes.world,
            # Grey images are repeated on three channels where the student takes no others.
            "channels": self.data.channels,
        }

    @property
    def workers(self) -> int:
        """Number of image-decoding processes for each process of the run.

        By default one per core for a GPU. Where the cores also train, a quarter as many: decoding a picture
        takes about a quarter of the time of a step on it even for the smallest networks.
        """
        if self.recipe.data.workers is not None:
            return self.recipe.data.workers
        cores = granted_cores() // self.processes.local_world
        return max(1, cores if self.device.type == "cuda" else cores // 4)

    @contextmanager
    def evaluation(
        self, split: Source, device: torch.device | None = None, *, shared: bool = False
    ) -> Iterator[EvaluationLoader]:
        """Opens un-augmented batches of a split; the processes that decode them end with the block.

        Args:
            split: A split of the data.
            device: Device of the batches; None: the run's.
            shared: True gives each process of the run its share of the batches; False: all of them.
        """
        rank, world = (self.processes.rank, self.processes.world) if shared else (0, 1)
        loader = EvaluationLoader(
            split, device=device or self.device, workers=self.workers, rank=rank, world=world
        )
        try:
            yield loader
        finally:
            loader.close()

    @contextmanager
    def test_split(self) -> Iterator[TestSplit]:
        """Opens the test split on the CPU, as often as wanted, through the same decoding processes."""
        with self.evaluation(self.data.test, torch.device("cpu")) as loader:
            yield lambda: ((batch.images, batch.labels) for batch in loader)
