"""Carries out a benchmark on the machine it lies on; beside it lie all its files.

    python3 run.py               checks the machine, measures, and writes result.json beside itself
    python3 run.py --preflight   checks the machine and prints what it found, a line of JSON
    python3 run.py --lines       measures; what it tells and the result are lines of JSON on stdout

On another machine the folder kdcompress beside it holds of kdcompress what it imports, and driver.py and
worker.py (standard library, numpy and onnxruntime; Python 3.8 and newer, and an older one is told so). The
folder of this file holds needs.json (see
preflight.py), job.json and what that names: `{"schema", "plan": as driver.py has it, "files": {path:
sha256}, ...}`. A cell's threads may be "all".

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
from typing import Any, Callable, Dict, List, Tuple

from kdcompress.bench import machine, preflight

SCHEMA = "kdcompress.bench-result/1"
RESULT = "result.json"
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
HERE = os.path.dirname(os.path.abspath(__file__))

Tell = Callable[[int, int, str], None]


class Damaged(Exception):
    """A file is not what was packed."""


def carry_out(job: Dict[str, Any], folder: str, tell: Tell) -> Dict[str, Any]:
    """Measures what a job asks for on this machine.

    Args:
        job: As above.
        folder: Where its files are.
        tell: (done, of, what is being done); called as work goes on.

    Returns:
        `{"before", "after": facts, "threads": used, "warnings", "raw": as driver.run gives it}`.

    Raises:
        Damaged: A file of the job is not as it was packed.
    """
    from kdcompress.bench import driver

    for done, name in enumerate(sorted(job["files"]), 1):
        tell(done, len(job["files"]), "checking the files")
        if sha256_of(os.path.join(folder, name)) != job["files"][name]:
            raise Damaged("%s is damaged or not the file that was packed; copy the folder again" % name)
    warnings, before = machine.load_warnings(), machine.facts()
    before["runtimes"].update(_onnxruntime())
    cells, counts, capped = granted(job["plan"]["cells"], before["granted_cores"])
    raw = driver.run(dict(job["plan"], cells=cells), folder, tell)
    after = machine.facts()
    return {
        "before": before, "after": after, "threads": counts, "warnings": capped + warnings, "raw": raw,
    }  # fmt: skip


def granted(
    cells: List[Dict[str, Any]], cores: int
) -> Tuple[List[Dict[str, Any]], List[int], List[str]]:  # fmt: skip
    """The cells with the thread counts that this machine has, those counts, and sentences on the others.

    Args:
        cells: Of a plan; threads may be "all".
        cores: That are granted here.
    """
    asked = []
    for cell in cells:
        if cell["threads"] not in asked:
            asked.append(cell["threads"])
    counts, warnings = machine.granted_threads(asked, cores)
    kept = {}  # type: Dict[Any, Dict[str, Any]]
    for cell in cells:
        count = machine.granted_threads([cell["threads"]], cores)[0][0]
        key = (cell["artefact"], cell["control"], cell["runtime"], cell["batch"], count)
        kept.setdefault(key, dict(cell, threads=count))
    return list(kept.values()), counts, warnings


def sealed(body: Dict[str, Any]) -> Dict[str, Any]:
    """A result that shows whether it has been damaged on its way."""
    return {"schema": SCHEMA, "sha256": digest(body), "body": body}


def digest(body: Dict[str, Any]) -> str:
    """Of a body."""
    text = json.dumps(body, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode("ascii")).hexdigest()


def sha256_of(path: str) -> str:
    """The file's SHA-256 in hexadecimal; empty if there is no such file."""
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


def _lines(what: str) -> None:
    """What a program at the other end of a link asked for, as lines of JSON."""
    # Libraries print on stdout; the lines go through a descriptor that they do not know.
    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)

    def say(**line: Any) -> None:
        out.write(json.dumps(line) + "\n")
        out.flush()

    threading.Thread(target=_vanish_with_the_link, daemon=True).start()
    if what == "--preflight":
        say(preflight=preflight.look(_read("needs.json"), HERE))
        return
    say(result=carry_out(_read("job.json"), HERE, lambda done, of, text: say(tell=[done, of, text])))


def _vanish_with_the_link() -> None:
    """Ends this process when the one that started it has gone, and takes the folder along."""
    while sys.stdin.readline():
        pass
    shutil.rmtree(HERE, ignore_errors=True)
    os._exit(1)


def _by_hand() -> None:
    needs, job = _read("needs.json"), _read("job.json")
    seen = preflight.look(needs, HERE)
    if seen["problems"]:
        for problem in seen["problems"]:
            sys.stderr.write(preflight.said(problem, "here") + "\n")
        sys.exit(2)
    facts = seen["facts"]
    print("%(cpu)s, %(granted_cores)d of %(logical_cores)d cores; Python %(python)s" % facts)
    print("onnxruntime " + facts["runtimes"]["onnxruntime"])
    for warning in seen["warnings"]:
        print("warning: " + warning)
    names = sorted({cell["artefact"] for cell in job["plan"]["cells"]})
    print("timing %s in %d rounds" % (", ".join(names), job["plan"]["protocol"]["rounds"]))
    last = []  # type: List[str]

    def tell(done: int, of: int, what: str) -> None:
        if what not in last[-1:]:
            print("  " + what, flush=True)
            last.append(what)

    body = dict(carry_out(job, HERE, tell), job=job)
    for failure in body["raw"]["failures"]:
        print("failed: %(stage)s: %(type)s: %(message)s" % failure)
    path = os.path.join(HERE, RESULT)
    try:
        with open(path + ".part", "w", encoding="ascii") as file:
            json.dump(sealed(body), file)
        os.replace(path + ".part", path)
    except OSError:
        if os.path.exists(path + ".part"):
            os.unlink(path + ".part")
        raise
    print("%s is written; take it back and run: kdcompress bench --merge %s" % (path, RESULT))


def main(arguments: List[str]) -> None:
    """As above."""
    if arguments and arguments != ["--preflight"] and arguments != ["--lines"]:
        sys.exit("usage: python3 run.py [--preflight | --lines]")
    try:
        if arguments:
            _lines(arguments[0])
        else:
            _by_hand()
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
