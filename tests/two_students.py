"""One of two processes of a run, one of which cannot download; it writes the student's section to RANK.pt.

python tests/two_students.py FOLDER      # FOLDER/offline: the rank that cannot download
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest
import torch
from published_weights import publisher

from kdcompress import pipeline
from kdcompress.progress import Progress
from kdcompress.run.opening import Request

folder, rank = Path(sys.argv[1]), os.environ["RANK"]
if rank != (folder / "offline").read_text():
    del os.environ["KDCOMPRESS_OFFLINE"]


def write(run, **_):
    torch.save(run.recipe.student.model_dump(), folder / f"{rank}.pt")


pipeline._run_to_end = write
with pytest.MonkeyPatch.context() as patch, publisher(patch):
    recipe, images = str(folder / "small.yaml"), str(folder / "images")
    request = Request(recipe, images, folder / "run", device="cpu")
    pipeline.distill(request, Progress(quiet=True))
