"""Runs one artefact in one runtime at one thread count, and times calls on commands in JSON lines.

This file stands alone (standard library, numpy and the runtime; Python 3.8 and newer), so that it can be
copied to a board that has no kdcompress. `torch` and kdcompress are imported only by the torch runtimes.

Started by scheduler.py as `python worker.py '{"threads": 1, "parent": 4711, "allow_code": false, "scratch":
"/a/folder"}'`. Each line on stdin is a command, each line on stdout its answer: `{"ok": true, ...}`, or
`{"ok": false, "type", "message"}` and the worker ends.

- `load`: runtime, file, batch, shape ([C, H, W] or null), images (an .npy file of [N, C, H, W] in [0, 1],
  or null), seed
- `block`: seconds, min_calls -> every call's duration, CPU time, switches and memory
- `logits`: count -> the logits of the first `count` images, one batch after another

A runtime is a class with `load(path, threads, batch, shape)`, `run(images)` and `info()`. Beside those
built in, `/path/to/file.py:ClassName` names one of the user's. It may have `start()`, which imports what it
needs and is timed apart from loading; `prepare(images)`, which is not timed; and a clock of its own (a
device with an event timer) as `clock_ns()`.
"""

from __future__ import annotations

import os
import sys

if __name__ == "__main__":
    # Where this file lies in kdcompress, its neighbours would shadow other modules.
    _own = os.path.dirname(os.path.realpath(__file__))
    sys.path[:] = [folder for folder in sys.path if os.path.realpath(folder or ".") != _own]

import json
from typing import Any, Dict, List, Optional

SETTINGS = json.loads(sys.argv[1]) if __name__ == "__main__" else {}
for _variable in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
    # Read once, when the library is loaded: it must be set before the first import of anything that computes.
    if "threads" in SETTINGS:
        os.environ[_variable] = str(SETTINGS["threads"])

import ctypes  # noqa: E402
import importlib.util  # noqa: E402
import queue  # noqa: E402
import resource  # noqa: E402
import signal  # noqa: E402
import threading  # noqa: E402
import time  # noqa: E402

import numpy as np  # noqa: E402

INPUTS = 8
"""Number of different batches that a block uses in turn; they are prepared before it."""
MOST_VALUES = 1 << 27
"""Largest number of values of all these batches, unless a single one has more."""


class OnnxRuntime:
    """ONNX Runtime on the CPU, with the asked-for number of threads and its default spinning."""

    def start(self) -> None:
        """Imports the library."""
        import onnxruntime

        self._library = onnxruntime

    def load(self, path: str, threads: int, batch: int, shape: Optional[List[int]]) -> List[int]:
        """Opens a session; gives the images' shape [C, H, W]."""
        options = self._library.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.log_severity_level = 3
        provider = "CPUExecutionProvider"
        self._session = self._library.InferenceSession(path, options, providers=[provider])
        self._provider = self._session.get_providers()[0]
        if self._provider != provider:
            raise RuntimeError("asked for %s, got %s" % (provider, self._provider))
        first = self._session.get_inputs()[0]
        _check_input(first.shape, batch)
        self._name = first.name
        types = {"tensor(float)": np.float32, "tensor(float16)": np.float16, "tensor(uint8)": np.uint8}
        self._type = types.get(first.type)
        if self._type is None:
            raise ValueError("the model's input is %s, not images" % first.type)
        own = list(first.shape[1:])
        # Bytes as a decoder gives them, with the channels last: [batch, H, W, C].
        self._last = self._type is np.uint8 and own[2] in (1, 3) and own[0] not in (1, 3)
        return _resolved([own[2], own[0], own[1]] if self._last else own, shape)

    def prepare(self, images: Any) -> Any:
        """Converts images to the model's input; not timed."""
        if self._type is np.uint8:
            images = np.rint(np.asarray(images) * 255)
        if self._last:
            images = np.transpose(images, (0, 2, 3, 1))
        return np.ascontiguousarray(images, dtype=self._type)

    def run(self, images: Any) -> Any:
        """Runs one call; gives the first output."""
        return self._session.run(None, {self._name: images})[0]

    def info(self) -> Dict[str, str]:
        """Names the provider that really ran, and the version."""
        return {"provider": self._provider, "version": self._library.__version__}


class OpenVino:
    """OpenVINO on the CPU, compiled for this batch and image size, for latency, in float32.

    Left to itself it computes in bfloat16 where the processor can, and would be compared with others that do
    not. An int8 file runs in int8 either way: this says what its remaining floats are computed in.
    """

    PRECISION = "f32"

    def start(self) -> None:
        """Imports OpenVINO without its telemetry, which reports home from a forked copy of the process."""
        sys.modules["openvino_telemetry"] = None  # type: ignore[assignment]
        import openvino

        self._library = openvino

    def load(self, path: str, threads: int, batch: int, shape: Optional[List[int]]) -> List[int]:
        """Reads and compiles the file; gives the images' shape [C, H, W]."""
        core = self._library.Core()
        if self.PRECISION == "bf16" and "BF16" not in core.get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
            raise RuntimeError("this processor has no bf16 instructions; leave openvino-bf16 out")
        model = core.read_model(path)
        partial = model.input(0).get_partial_shape()
        own = [axis.get_length() if axis.is_static else None for axis in partial]
        _check_input(own, batch)
        resolved = _resolved(own[1:], shape)
        model.reshape([batch, *resolved])
        self._type = model.input(0).get_element_type().to_dtype()
        if not np.issubdtype(self._type, np.floating):
            raise ValueError("the model's input is %s, not floating-point images" % self._type)
        settings = {
            "PERFORMANCE_HINT": "LATENCY",
            "NUM_STREAMS": "1",
            "INFERENCE_NUM_THREADS": threads,
            "INFERENCE_PRECISION_HINT": self.PRECISION,
        }
        compiled = core.compile_model(model, "CPU", settings)
        used = compiled.get_property("INFERENCE_PRECISION_HINT").get_type_name()
        if used != self.PRECISION:
            raise RuntimeError("asked for %s, got %s" % (self.PRECISION, used))
        self._provider = ",".join(compiled.get_property("EXECUTION_DEVICES"))
        self._request = compiled.create_infer_request()
        return resolved

    def prepare(self, images: Any) -> Any:
        """Converts images to the model's input; not timed."""
        return np.ascontiguousarray(images, dtype=self._type)

    def run(self, images: Any) -> Any:
        """Runs one call; gives the first output, which the next call overwrites."""
        self._request.infer([images], share_inputs=True)
        return self._request.get_output_tensor(0).data

    def info(self) -> Dict[str, str]:
        """Names the provider that really ran, and the version."""
        return {"provider": self._provider, "version": self._library.__version__.split("-")[0]}


class OpenVinoBf16(OpenVino):
    """OpenVINO in bfloat16, its own choice on processors that have the instructions."""

    PRECISION = "bf16"


class Torch:
    """PyTorch in eager mode on the CPU, normalisation included, as in the exported file."""

    def start(self) -> None:
        """Imports PyTorch and the reader of networks."""
        import torch

        from kdcompress.deploy.formats.safetensors import read

        self._torch, self._read = torch, read

    def load(self, path: str, threads: int, batch: int, shape: Optional[List[int]]) -> List[int]:
        """Builds the network and loads its weights; gives the images' shape [C, H, W]."""
        from pathlib import Path

        self._torch.set_num_threads(threads)
        self._network, config = self._read(Path(path), allow_code=SETTINGS["allow_code"])
        self._network.eval()
        spec = config.spec
        self._mean = self._torch.tensor(spec.mean).reshape(1, -1, 1, 1)
        self._std = self._torch.tensor(spec.std).reshape(1, -1, 1, 1)
        return _resolved([spec.channels, None, None], shape or [spec.channels, spec.height, spec.width])

    def prepare(self, images: Any) -> Any:
        """Converts images to a tensor; not timed."""
        return self._torch.from_numpy(np.ascontiguousarray(images, dtype=np.float32))

    def run(self, images: Any) -> Any:
        """Runs one call; gives the logits."""
        with self._torch.inference_mode():
            return self._network((images - self._mean) / self._std).numpy()

    def info(self) -> Dict[str, str]:
        """Names the provider that really ran, and the version."""
        return {"provider": "cpu", "version": self._torch.__version__}


class TorchCompile(Torch):
    """PyTorch compiled by inductor: weights frozen into the code, channels last, one batch size.

    The first call compiles, from nothing: what earlier runs left in the cache is not used.
    """

    def start(self) -> None:
        """Imports PyTorch, with a compilation cache of this process."""
        if SETTINGS.get("scratch"):
            os.environ["TORCHINDUCTOR_CACHE_DIR"] = SETTINGS["scratch"]
        os.environ["TORCHINDUCTOR_COMPILE_THREADS"] = "1"  # else idle processes stay beside the timed one
        super().start()

    def load(self, path: str, threads: int, batch: int, shape: Optional[List[int]]) -> List[int]:
        """Builds the network, loads its weights and wraps it; gives the images' shape [C, H, W]."""
        resolved = super().load(path, threads, batch, shape)
        network, mean, std = self._network, self._mean, self._std

        def normalised(images: Any) -> Any:
            return network((images - mean) / std)

        network.to(memory_format=self._torch.channels_last)
        self._compiled = self._torch.compile(normalised, dynamic=False, options={"freezing": True})
        return resolved

    def prepare(self, images: Any) -> Any:
        """Converts images to a tensor, channels last; not timed."""
        return super().prepare(images).contiguous(memory_format=self._torch.channels_last)

    def run(self, images: Any) -> Any:
        """Runs one call; gives the logits."""
        with self._torch.no_grad():  # weights are frozen into code only where no gradient is wanted
            return self._compiled(images).numpy()


class ExecuTorch:
    """ExecuTorch on the CPU, with a pool of its own of the asked-for number of threads."""

    def start(self) -> None:
        """Imports ExecuTorch, and PyTorch for its tensors."""
        import torch
        from executorch.extension.pybindings import portable_lib
        from executorch.runtime import Runtime

        self._torch, self._library, self._runtime = torch, portable_lib, Runtime.get()

    def load(self, path: str, threads: int, batch: int, shape: Optional[List[int]]) -> List[int]:
        """Loads the program and its method; gives the images' shape [C, H, W]."""
        self._torch.set_num_threads(threads)
        self._library._unsafe_reset_threadpool(threads)
        with open(path, "rb") as file:
            self._program = self._runtime.load_program(file.read())
        self._method = self._program.load_method("forward")
        own = list(self._method.metadata.input_tensor_meta(0).sizes())
        _check_input([None, *own[1:]], batch)
        if batch > own[0]:
            raise ValueError("the model takes at most %d images at once, asked for %d" % (own[0], batch))
        return _resolved(own[1:], shape)

    def prepare(self, images: Any) -> Any:
        """Converts images to a tensor; not timed."""
        return self._torch.from_numpy(np.ascontiguousarray(images, dtype=np.float32))

    def run(self, images: Any) -> Any:
        """Runs one call; gives the first output."""
        return self._method.execute([images])[0].numpy()

    def info(self) -> Dict[str, str]:
        """Names the provider that really ran, and the version."""
        from importlib import metadata

        return {"provider": "xnnpack", "version": metadata.version("executorch")}


RUNTIMES = {
    "onnxruntime": OnnxRuntime,
    "torch": Torch,
    "torch-compile": TorchCompile,
    "openvino": OpenVino,
    "openvino-bf16": OpenVinoBf16,
    "executorch": ExecuTorch,
}


class Worker:
    """Carries out commands; holds the runtime and the inputs between them."""

    images: Any

    def load(self, command: Dict[str, Any]) -> Dict[str, Any]:
        """Loads the artefact, makes the inputs and runs the first call; durations in ms."""
        self.runtime = _find_runtime(command["runtime"])()
        self.clock_ns = getattr(self.runtime, "clock_ns", time.perf_counter_ns)
        start_s = time.perf_counter()
        getattr(self.runtime, "start", lambda: None)()
        import_ms = (time.perf_counter() - start_s) * 1e3
        base_mb = peak_mb()
        start = self.clock_ns()
        shape = self.runtime.load(command["file"], SETTINGS["threads"], command["batch"], command["shape"])
        load_ms = (self.clock_ns() - start) / 1e6
        self.batch, self.images = command["batch"], None
        if command["images"] is not None:
            # Mapped: only the rows that are used count as this process's memory.
            images = np.load(command["images"], mmap_mode="r", allow_pickle=False)
            # A network of another input size (a teacher at 224) is timed on noise of its own size, and it
            # says so.
            self.images = images if list(images.shape[1:]) == list(shape) else None
        is_real = self.images is not None
        largest = max(1, MOST_VALUES // max(1, int(np.prod(shape))))
        if not is_real:
            drawn = np.random.RandomState(command["seed"])
            # Image by image, and fewer of them where they are large: the memory is not all noise.
            count = max(self.batch, min(INPUTS * self.batch, largest))
            self.images = np.stack([drawn.random_sample(shape).astype(np.float32) for _ in range(count)])
        # The same images for every batch size, whose outputs are compared.
        self.distinct = len(self.images) if is_real else min(INPUTS, largest)
        prepare = getattr(self.runtime, "prepare", lambda images: images)
        inputs = max(1, min(INPUTS, largest // self.batch))
        rows = np.arange(inputs * self.batch).reshape(inputs, self.batch) % len(self.images)
        self.prepare, self.inputs = prepare, [prepare(self.images[row]) for row in rows]
        start = self.clock_ns()
        logits = self.runtime.run(self.inputs[0])
        first_ms = (self.clock_ns() - start) / 1e6
        wrong = np.size(logits) - int(np.isfinite(logits).sum())
        if wrong:
            raise ValueError("%d of %d outputs are not finite (NaN or infinite)" % (wrong, np.size(logits)))
        answer = {"import_ms": import_ms, "load_ms": load_ms, "first_ms": first_ms, "base_mb": base_mb}
        answer["shape"] = list(shape)
        answer["images"] = "real" if is_real else "noise"
        answer["outputs"] = list(np.shape(logits))
        answer.update(self.runtime.info())
        return answer

    def block(self, command: Dict[str, Any]) -> Dict[str, Any]:
        """Runs and times calls for at least `seconds` and `min_calls`."""
        run, clock_ns, inputs = self.runtime.run, self.clock_ns, self.inputs
        # The first calls after a pause wake threads and refill caches; they are not recorded. One does where
        # a call takes long.
        pause_end = time.perf_counter() + 0.01
        for i in range(2):
            run(inputs[i % len(inputs)])
            if time.perf_counter() > pause_end:
                break
        samples: List[int] = []
        before, steal_before = resource.getrusage(resource.RUSAGE_SELF), _steal_s()
        wall_start, begin = time.perf_counter(), clock_ns()
        end = begin + command["seconds"] * 1e9
        while True:
            images = inputs[len(samples) % len(inputs)]
            start = clock_ns()
            run(images)
            stop = clock_ns()
            samples.append(stop - start)
            if stop >= end and len(samples) >= command["min_calls"]:
                break
        wall_s = time.perf_counter() - wall_start
        after, steal_after = resource.getrusage(resource.RUSAGE_SELF), _steal_s()
        return {
            "samples_ns": samples,
            "wall_s": wall_s,
            "cpu_s": after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime,
            "involuntary_switches": after.ru_nivcsw - before.ru_nivcsw,
            "steal_s": None if steal_before is None or steal_after is None else steal_after - steal_before,
            "peak_mb": peak_mb(),
        }

    def logits(self, command: Dict[str, Any]) -> Dict[str, Any]:
        """Computes the logits of the first images, for the parity check."""
        rows = np.arange(-(-command["count"] // self.batch) * self.batch) % self.distinct
        batches = [
            np.asarray(self.runtime.run(self.prepare(self.images[part])), dtype=np.float64)
            for part in rows.reshape(-1, self.batch)
        ]
        return {"logits": np.concatenate(batches)[: command["count"]].tolist()}


def peak_mb() -> float:
    """Reads the greatest resident memory of this process so far, in MB of 1e6 bytes."""
    try:
        # ru_maxrss would also count the parent's memory at the moment of the fork.
        with open("/proc/self/status") as status:
            for line in status:
                if line.startswith("VmHWM:"):
                    return int(line.split()[1]) * 1024 / 1e6
    except OSError:
        pass  # no Linux
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6  # bytes on macOS


def _steal_s() -> Optional[float]:
    """Reads the seconds of all cores that the hypervisor gave to other machines; None if not shown."""
    try:
        with open("/proc/stat") as stat:
            fields = stat.readline().split()
    except OSError:
        return None
    return int(fields[8]) / os.sysconf("SC_CLK_TCK") if len(fields) > 8 else None


def _check_input(shape: List[Any], batch: int) -> None:
    """Checks that a model takes batches of images, and of this size if it fixes the size."""
    if len(shape) != 4:
        raise ValueError("the model's input has %d axes, not 4 (batch, C, H, W)" % len(shape))
    if isinstance(shape[0], int) and shape[0] != batch:
        raise ValueError("the model's batch is fixed at %d, asked for %d" % (shape[0], batch))


def _resolved(own: List[Any], requested: Optional[List[int]]) -> List[int]:
    """Resolves the images' shape: the model's fixed axes, and the given size for those it leaves open."""
    own = [size if isinstance(size, int) else None for size in own]
    if requested is None:
        if None in own:
            raise ValueError("the model leaves its image size open (%s); give one" % own)
        return own
    if any(own[i] is not None and own[i] != requested[i] for i in range(3)):
        raise ValueError("the model takes images of %s, asked for %s" % (own, list(requested)))
    return list(requested)


def _find_runtime(name: str) -> Any:
    if name in RUNTIMES:
        return RUNTIMES[name]
    path, _, class_name = name.rpartition(":")
    spec = importlib.util.spec_from_file_location("user_runtime", path)
    if spec is None or spec.loader is None or not os.path.isfile(path):
        raise ValueError("unknown runtime %r; choices: %s" % (name, ", ".join(sorted(RUNTIMES))))
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return getattr(module, class_name)


def _die_with_parent(parent: int) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
        if os.getppid() != parent:  # it died before the line above
            os._exit(1)


def _read_commands(commands: Any) -> None:
    for line in sys.stdin:
        commands.put(json.loads(line))
    os._exit(0)  # end of file: the scheduler is gone; at once, even if a call hangs


def _answer(stream: Any, document: Dict[str, Any]) -> None:
    stream.write(json.dumps(document) + "\n")
    stream.flush()


def main() -> None:
    """Answers commands until stdin ends."""
    # Libraries print on stdout; the answers go through a descriptor that they do not know.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    _die_with_parent(SETTINGS["parent"])
    commands: Any = queue.Queue()
    threading.Thread(target=_read_commands, args=(commands,), daemon=True).start()
    sys.excepthook = lambda kind, error, trace: _answer(
        answers, {"ok": False, "type": kind.__name__, "message": str(error) or kind.__name__}
    )
    worker = Worker()
    stages = {"load": worker.load, "block": worker.block, "logits": worker.logits}
    while True:
        command = commands.get()
        answer = stages[command["cmd"]](command)
        answer["ok"] = True
        _answer(answers, answer)


if __name__ == "__main__":
    main()
