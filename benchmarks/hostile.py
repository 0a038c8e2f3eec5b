"""Hands damaged inputs to the program and kills its runs, and writes a table of how they ended.

    python benchmarks/hostile.py --inputs 5000 --kills 20

The figures are those that `tests/hostile` and `tests/faults` print; a failure of theirs is one here. It goes
through one kind of input after another, then through the cases of kills. What `benchmarks/hostile.json` has
already is not measured again, unless `--again` is given.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
ROOT = HERE.parent
KINDS = (
    "recipes", "runs", "benchmarks", "far_ends", "graphs", "checkpoints", "images", "goldens", "tables",
    "shards", "cache_parts", "array_sets", "openvino_files",
)  # fmt: skip
CASES = ("kd", "crd", "ab", "hsakd", "dml", "lmcl", "mixskd", "snapshot", "sssd", "int8", "seeds", "baseline")
# pytest writes the name of the test's file before what the test writes.
INPUTS = re.compile(r"(\w+): (\d+) inputs, exit codes (\{.*?\})")
KILLS = re.compile(r"(\w+): (\d+) kills, (\d+) runs, (\d+) files of the same bits")


def main() -> int:
    """Measures what is not yet known and writes the page; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--inputs", type=int, default=200, help="damaged inputs of each kind; 0: none")
    parser.add_argument("--first", type=int, default=0, help="first of their seeds")
    parser.add_argument("--kills", type=int, default=20, help="kills of each case; 0: none")
    parser.add_argument("--kinds", default=",".join(KINDS), help="kinds of input, in the order to measure")
    parser.add_argument("--again", action="store_true", help="measure again what is known")
    options = parser.parse_args()
    file = HERE / "hostile.json"
    known: dict[str, Any] = json.loads(file.read_text()) if file.exists() and not options.again else {}
    failures = 0
    for kind in options.kinds.split(",") if options.inputs else ():
        done = known.get(kind, {})
        if done.get("inputs", 0) >= options.inputs and done.get("first", 0) == options.first:
            continue
        seeds = ["--hostile", str(options.inputs), "--hostile-from", str(options.first)]
        output, minutes, code = _pytest("hostile/test_hostile.py", f"[{kind}]", seeds)
        match = INPUTS.search(output)
        failures += code != 0
        if match is not None:
            codes = {key: int(count) for key, count in re.findall(r"(-?\d+): (\d+)", match[3])}
            known[kind] = {
                "inputs": int(match[2]), "first": options.first, "codes": codes, "minutes": minutes,
                "passed": code == 0,
            }  # fmt: skip
        _write(file, known)
    for case in CASES if options.kills else ():
        if known.get(f"kills {case}", {}).get("kills", 0) >= options.kills:
            continue
        kills = ["--kills", str(options.kills)]
        output, minutes, code = _pytest("faults/test_kills.py", f"[{case}]", kills)
        match = KILLS.search(output)
        failures += code != 0
        done = {"kills": 0, "runs": 0} if match is None else {"kills": int(match[2]), "runs": int(match[3])}
        known[f"kills {case}"] = {**done, "minutes": minutes, "passed": code == 0}
        _write(file, known)
    return min(failures, 1)


def _pytest(file: str, name: str, options: list[str]) -> tuple[str, float, int]:
    """Runs one test; returns its output, its minutes and its exit code."""
    test = {
        "hostile/test_hostile.py": "test_no_input_ends_in_a_traceback_a_hang_or_a_strange_file",
        "faults/test_kills.py": "test_a_run_that_is_killed_and_resumed_ends_in_the_same_bits",
    }[file]
    began = time.monotonic()
    done = subprocess.run(
        [
            sys.executable, "-m", "pytest", f"tests/{file}::{test}{name}", "-s", "-p", "no:xdist", *options,
        ],
        cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False,
    )  # fmt: skip
    minutes = round((time.monotonic() - began) / 60, 1)
    if done.returncode:
        sys.stdout.write(done.stdout[-20_000:])
    sys.stdout.write(f"{name[1:-1]}: {minutes} minutes, {'passed' if done.returncode == 0 else 'FAILED'}\n")
    sys.stdout.flush()
    return done.stdout, minutes, done.returncode


def _write(file: Path, known: dict[str, Any]) -> None:
    file.write_text(json.dumps(known, indent=1) + "\n")
    (HERE / "hostile.md").write_text(_page(known))


def _page(known: dict[str, Any]) -> str:
    lines = [
        "# Hostile inputs",
        "",
        "Written by `python benchmarks/hostile.py`. Exit codes: 0 done, 2 wrong input, 3 a gate failed,",
        "4 the device does not answer, 5 the world failed. An input fails if it ends in a traceback, another",
        "exit code, a signal, control characters on the terminal, a file outside the run folder, more than",
        "10 s of processor time, or 1 GiB more memory than a valid one of its kind (`tests/hostile`).",
        "",
        "| kind | inputs | exit codes | minutes | |",
        "|---|---|---|---|---|",
    ]
    for kind in KINDS:
        if kind in known:
            row = known[kind]
            codes = ", ".join(f"{code}: {count:,}" for code, count in row["codes"].items())
            verdict = "passed" if row["passed"] else "FAILED"
            name = kind.replace("_", " ")
            lines.append(f"| {name} | {row['inputs']:,} | {codes} | {row['minutes']:g} | {verdict} |")
    if not any(f"kills {case}" in known for case in CASES):
        return "\n".join(lines) + "\n"
    lines += [
        "",
        "Runs of `tests/faults`, killed (SIGKILL) at random moments and resumed until they are finished.",
        "Passed: the student's weights and ONNX file, and the teacher's and the int8 weights where there are",
        "any, are the bits of an untouched run.",
        "",
        "| case | kills | runs | minutes | |",
        "|---|---|---|---|---|",
    ]
    for case in CASES:
        if f"kills {case}" in known:
            row = known[f"kills {case}"]
            verdict = "the same bits" if row["passed"] else "FAILED"
            lines.append(f"| {case} | {row['kills']} | {row['runs']} | {row['minutes']:g} | {verdict} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    sys.exit(main())
