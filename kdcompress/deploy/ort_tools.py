"""The graph tools that come with onnxruntime, imported without what their import does to this process."""

from __future__ import annotations

import io
import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout

import onnxruntime

_path = list(sys.path)
from onnxruntime.quantization import (  # noqa: E402
    CalibrationDataReader,
    CalibrationMethod,
    QDQQuantizer,
    QuantType,
    create_calibrator,
)
from onnxruntime.quantization.onnx_model import ONNXModel  # noqa: E402
from onnxruntime.quantization.registry import QDQRegistry, QLinearOpsRegistry  # noqa: E402
from onnxruntime.transformers.float16 import convert_float_to_float16  # noqa: E402

from kdcompress.deploy.formats.onnx import ORT_ERRORS  # noqa: E402
from kdcompress.errors import NetworkError  # noqa: E402

# It appends its own folder, whose `models`, `benchmark` and others would then answer to anybody's import.
sys.path[:] = _path

# Its calibrators open sessions that warn on stderr; our own sessions set their level themselves.
onnxruntime.set_default_logger_severity(3)

__all__ = [
    "CalibrationDataReader",
    "CalibrationMethod",
    "ONNXModel",
    "QDQQuantizer",
    "QDQRegistry",
    "QLinearOpsRegistry",
    "QuantType",
    "convert_float_to_float16",
    "create_calibrator",
    "quiet_ort_tools",
]


@contextmanager
def quiet_ort_tools() -> Iterator[None]:
    """Silences onnxruntime's tools within the block and translates their errors.

    Raises:
        NetworkError: They cannot do it with this graph.
    """
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with redirect_stdout(io.StringIO()):
            yield
    except (ValueError, TypeError, LookupError, AttributeError, RuntimeError, *ORT_ERRORS) as error:
        # Not one of them is documented; whatever they stumble over, it is the graph that they were given.
        message = str(error).strip().split("\n", 1)[0]
        raise NetworkError(f"onnxruntime's tools fail on it ({type(error).__name__}: {message})") from error
    finally:
        logging.disable(before)
