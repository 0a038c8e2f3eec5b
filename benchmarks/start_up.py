"""Time of the commands that must start at once, against `python -c "import click, yaml"`.

python benchmarks/start_up.py [--rounds 15]
"""

from __future__ import annotations

import argparse
import random
import statistics
import subprocess
import sys
import time

COMMANDS = {
    "import click, yaml": [sys.executable, "-c", "import click, yaml"],
    "--help": [sys.executable, "-m", "kdcompress", "--help"],
    "recipes": [sys.executable, "-m", "kdcompress", "recipes"],
    "methods": [sys.executable, "-m", "kdcompress", "methods"],
}


def run_ms(command):
    began = time.perf_counter()
    subprocess.run(command, stdout=subprocess.DEVNULL, check=True)
    return 1e3 * (time.perf_counter() - began)


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--rounds", type=int, default=15)
    options = parser.parse_args()
    times = {name: [] for name in COMMANDS}
    for command in COMMANDS.values():
        run_ms(command)
    for _ in range(options.rounds):
        for name in random.sample(list(COMMANDS), len(COMMANDS)):
            times[name].append(run_ms(COMMANDS[name]))
    base = times["import click, yaml"]
    print("| command | median ms | ratio |\n|---|---|---|")
    for name, row in times.items():
        ratio = statistics.median(a / b for a, b in zip(row, base, strict=True))
        print(f"| {name} | {statistics.median(row):.0f} | {ratio:.2f} |")


if __name__ == "__main__":
    main()
