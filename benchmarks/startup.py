"""How long until the command line answers: help, a typo, the list, scoring a stored run. Medians over whole processes.

python -m benchmarks startup
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

_RUNS = 7


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        run = ["model=fake", "task=vqav2", "data=demo", "limit=50"]
        _seconds(run, folder)  # draws the picture world, writes the run that is scored below
        (stored,) = Path(folder).glob("results/runs/vqav2/fake/*")
        commands = {
            "python -c pass": None,
            "--help": ["--help"],
            "a typo in a key": ["model=fake", "tsak=vqav2"],
            "a typo in a model": ["model=fakee"],
            "a typo in a task": ["model=fake", "task=vqav3", "data=demo"],
            "list": ["list"],
            "score RUN (50 samples)": ["score", str(stored)],
            "run 50 samples with model=fake": [*run, "out=again/runs"],
        }
        for name, words in commands.items():
            times = [_seconds(words, folder) for _ in range(_RUNS)]
            print(f"{name:32} {statistics.median(times):6.2f} s  (min {min(times):.2f}, max {max(times):.2f})")


def _seconds(words: list[str] | None, folder: str) -> float:
    command = [sys.executable, "-c", "pass"] if words is None else [sys.executable, "-m", "evalkit", *words]
    start = time.perf_counter()
    subprocess.run(command, cwd=folder, capture_output=True, check=False)
    return time.perf_counter() - start


if __name__ == "__main__":
    main()
