"""Carries out a benchmark on the machine where it lies; sent there as run.py, with its files beside it.

    python3 run.py               checks the machine, measures, and writes result.json beside itself
    python3 run.py --preflight   checks the machine and prints the findings, a line of JSON
    python3 run.py --lines       measures; progress and result are lines of JSON on stdout

On another machine the folder kdcompress beside it holds the modules that it imports, and worker.py (standard
library, numpy and onnxruntime; Python 3.8 and newer, an older one gets a message). The folder of this file
holds needs.json (see check.py), job.json and the files that it names: `{"schema", "plan": see scheduler.py,
"files": {path: sha256}, ...}`. A cell's threads may be "all".

result.json is `{"schema", "sha256", "body"}`: the digest is of the body as compact JSON with sorted keys.
Exit codes: 0 done, 2 the machine lacks something, 3 a file is damaged, 5 the disk is full, 130 interrupted.
"""

import os
import sys

if sys.version_info < (3, 8):
    sys.stderr.write("this needs Python 3.8 or newer; here it is %d.%d\n" % sys.version_info[:2])
    sys.exit(2)
if os.name != "posix":
    sys.stderr.write("this needs Linux or macOS\n")
    sys.exit(2)

import errno
import hashlib
import json
import shutil
import threading
import time
from typing import Any, Callable, Dict, List, Tuple

from kdcompress.bench.device import check, machine

SCHEMA = "kdcompress.bench-result/1"
RESULT = "result.json"
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
HERE = os.path.dirname(os.path.abspath(__file__))

Progress = Callable[[int, int, str], None]


class Damaged(Exception):
    """A file differs from the one that was packed."""


def carry_out(job: Dict[str, Any], folder: str, progress: Progress) -> Dict[str, Any]:
    """Measures a job on this machine.

    Args:
        job: Content of job.json.
        folder: Folder of its files.
        progress: Called after each step with (done, total, the present step).

    Returns:
        `{"before", "after": facts, "threads": used, "warnings", "raw": the result of scheduler.run}`.

    Raises:
        Damaged: A file of the job is not as it was packed.
    """
    from kdcompress.bench.device import scheduler

    for done, name in enumerate(sorted(job["files"]), 1):
        progress(done, len(job["files"]), "checking the files")
        if sha256_of(os.path.join(folder, name)) != job["files"][name]:
            raise Damaged("%s is damaged or not the file that was packed; copy the folder again" % name)
    warnings, before = machine.load_warnings(), machine.facts()
    before["runtimes"].update(_onnxruntime())
    cells, counts, capped = with_granted_threads(job["plan"]["cells"], before["granted_cores"])
    raw = scheduler.run(dict(job["plan"], cells=cells), folder, progress)
    after = machine.facts()
    return {
        "before": before, "after": after, "threads": counts, "warnings": capped + warnings, "raw": raw,
    }  # fmt: skip


def with_granted_threads(
    cells: List[Dict[str, Any]], cores: int
) -> Tuple[List[Dict[str, Any]], List[int], List[str]]:  # fmt: skip
    """Caps the thread counts of cells; gives the cells, the counts, and warnings about what was capped.

    Args:
        cells: Cells of a plan; threads may be "all".
        cores: Number of cores that are granted here.
    """
    requests = []
    for cell in cells:
        if cell["threads"] not in requests:
            requests.append(cell["threads"])
    counts, warnings = machine.granted_threads(requests, cores)
    capped = {}  # type: Dict[Any, Dict[str, Any]]
    for cell in cells:
        count = machine.granted_threads([cell["threads"]], cores)[0][0]
        key = (cell["artefact"], cell["control"], cell["runtime"], cell["batch"], count)
        capped.setdefault(key, dict(cell, threads=count))
    return list(capped.values()), counts, warnings


def with_digest(body: Dict[str, Any]) -> Dict[str, Any]:
    """Adds the digest that shows damage on the way."""
    return {"schema": SCHEMA, "sha256": digest(body), "body": body}


def digest(body: Dict[str, Any]) -> str:
    """Hashes a result's body."""
    text = json.dumps(body, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode("ascii")).hexdigest()


def sha256_of(path: str) -> str:
    """Hashes a file with SHA-256, in hexadecimal; empty if there is no such file."""
    total = hashlib.sha256()
    try:
        with open(path, "rb") as file:
            for block in iter(lambda: file.read(1 << 20), b""):
                total.update(block)
    except OSError:
        return ""
    return total.hexdigest()


def _onnxruntime() -> Dict[str, str]:
    import onnxruntime

    return {"onnxruntime": onnxruntime.__version__}  # also where it was installed without its metadata


def _read(name: str) -> Any:
    with open(os.path.join(HERE, name), encoding="utf-8") as file:
        return json.load(file)


def _answer_over_ssh(option: str) -> None:
    """Checks the machine or measures, with lines of JSON as output."""
    # Libraries print on stdout; the lines go through a descriptor that they do not know.
    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)

    def send(**line: Any) -> None:
        out.write(json.dumps(line) + "\n")
        out.flush()

    threading.Thread(target=_exit_when_parent_exits, daemon=True).start()
    if option == "--preflight":
        send(preflight=check.look(_read("needs.json"), HERE))
        return
    job = _read("job.json")
    send(result=carry_out(job, HERE, lambda done, of, step: send(tell=[done, of, step])))


def _exit_when_parent_exits() -> None:
    """Ends this process at the end of its stdin, and removes the folder."""
    while sys.stdin.readline():
        pass
    for _ in range(50):
        shutil.rmtree(HERE, ignore_errors=True)
        if not os.path.exists(HERE):
            break
        time.sleep(0.1)  # the main thread and its workers still write into it
    os._exit(1)


def _run_by_hand() -> None:
    needs, job = _read("needs.json"), _read("job.json")
    findings = check.look(needs, HERE)
    if findings["problems"]:
        for problem in findings["problems"]:
            sys.stderr.write(check.sentence(problem, "here") + "\n")
        sys.exit(2)
    facts = findings["facts"]
    print("%(cpu)s, %(granted_cores)d of %(logical_cores)d cores; Python %(python)s" % facts)
    print("onnxruntime " + facts["runtimes"]["onnxruntime"])
    for warning in findings["warnings"]:
        print("warning: " + warning)
    names = sorted({cell["artefact"] for cell in job["plan"]["cells"]})
    print("timing %s in %d rounds" % (", ".join(names), job["plan"]["protocol"]["rounds"]))
    last = []  # type: List[str]

    def progress(done: int, of: int, step: str) -> None:
        if step not in last[-1:]:
            print("  " + step, flush=True)
            last.append(step)

    body = dict(carry_out(job, HERE, progress), job=job)
    for failure in body["raw"]["failures"]:
        print("failed: %(stage)s: %(type)s: %(message)s" % failure)
    path = os.path.join(HERE, RESULT)
    try:
        with open(path + ".part", "w", encoding="ascii") as file:
            json.dump(with_digest(body), file)
        os.replace(path + ".part", path)
    except OSError:
        if os.path.exists(path + ".part"):
            os.unlink(path + ".part")
        raise
    print("%s is written; take it back and run: kdcompress bench --merge %s" % (path, RESULT))


def main(arguments: List[str]) -> None:
    """Runs the program; its options are at the top of this file."""
    if arguments and arguments != ["--preflight"] and arguments != ["--lines"]:
        sys.exit("usage: python3 run.py [--preflight | --lines]")
    try:
        if arguments:
            _answer_over_ssh(arguments[0])
        else:
            _run_by_hand()
    except Damaged as error:
        sys.stderr.write("%s\n" % error)
        sys.exit(3)
    except OSError as error:
        if error.errno not in FULL:
            raise
        sys.stderr.write("the disk is full: %s\n" % error)
        sys.exit(5)
    except KeyboardInterrupt:
        sys.stderr.write("interrupted; no result was written\n")
        sys.exit(130)


if __name__ == "__main__":
    main(sys.argv[1:])
