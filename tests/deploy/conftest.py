from __future__ import annotations

import pytest
from small_student import CLASSES, MODEL, SPEC, batches, trained_student

from kdcompress.deploy.ship import ship


@pytest.fixture(scope="session")
def student():
    return trained_student()


@pytest.fixture(scope="session")
def run(student, tmp_path_factory):
    """A folder with a shipped student, and what `ship` said of it; not to be changed."""
    folder = tmp_path_factory.mktemp("run")
    metadata = {"recipe": "tiny", "teacher": "none"}
    formats = ["onnx", "safetensors"]
    return folder, ship(student, MODEL, SPEC, CLASSES, batches, folder, formats=formats, metadata=metadata)
