"""Two workers against one on this machine, one thread each: questions a second after start-up.

    python -m benchmarks.scaling --seconds 60 --pairs 5

The random BLIP-2 of `_model` answers questions about 640 x 480 pictures, read and preprocessed by loader threads, five
an image as in VQAv2. Start-up is over when every worker has written; from then on answers are counted for so many
seconds, then the run is stopped with Ctrl-C. In-process (`devices=1`) stands against two worker processes
(`devices=2`), in turns. The machine should do nothing else: the load average is printed, and CPU seconds a question,
which other processes do not move much.
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import statistics
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from benchmarks._model import small_blip2
from tests.support import start, vqa_files

_IMAGES, _PICTURES = 4000, 60


@dataclass(frozen=True)
class Measured:
    """One run."""

    rate: float
    """Questions a second of wall time."""
    cpu: float
    """CPU seconds a question, of all processes, start-up included."""
    load: float


def measure(root: Path, checkpoint: Path, devices: int, seconds: float, number: int) -> Measured:
    """Run for so long after start-up; return what was done."""
    home = root / f"run-{number}-{devices}"
    home.mkdir()
    before = os.times()
    process = start(
        "model=custom", "model._target_=evalkit.models.blip2.Blip2", "model.name=tiny", "task=vqav2",
        f"model.checkpoint={checkpoint}", "data=files", f"data.root={root / 'files'}", "data.check=false",
        f"devices={devices}", "engine.threads=1", "engine.loader_threads=2", cwd=home,
    )  # fmt: skip
    try:
        while sum(count > 0 for count in _counts(home)) < devices:
            assert process.poll() is None, process.communicate()[1]
            time.sleep(0.05)
        first, begun = sum(_counts(home)), time.monotonic()
        time.sleep(seconds)
        last, ended = sum(_counts(home)), time.monotonic()
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=300)
    finally:
        process.kill()
    if process.returncode != 130:
        raise SystemExit("all questions were answered before the time was over; give fewer --seconds")
    after = os.times()
    cpu = (after.children_user + after.children_system) - (before.children_user + before.children_system)
    return Measured((last - first) / (ended - begun), cpu / sum(_counts(home)), os.getloadavg()[0])


def _counts(home: Path) -> list[int]:
    return [path.read_bytes().count(b"\n") for path in home.glob("results/runs/*/*/*/predictions/*.jsonl")]


def make_files(root: Path) -> Path:
    """Write the questions, and pictures of noise: few, under many names."""
    from PIL import Image

    vqa_files(root, images=_IMAGES, questions=5)
    chance = random.Random(0)
    pictures = []
    for number in range(_PICTURES):
        path = root / f"picture-{number}.jpg"
        small = Image.frombytes("RGB", (64, 48), chance.randbytes(64 * 48 * 3))
        small.resize((640, 480)).save(path, quality=90)
        pictures.append(path)
    for number, path in enumerate(sorted((root / "val2014").iterdir())):
        path.unlink()
        os.link(pictures[number % _PICTURES], path)
    return root


def main() -> None:
    """Measure in pairs and print the ratios."""
    parser = argparse.ArgumentParser(description="2 workers against 1.")
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--pairs", type=int, default=5)
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="evalkit-scaling-") as folder:
        root = Path(folder)
        os.environ["EVALKIT_CACHE"] = str(root / "cache")
        make_files(root / "files")
        checkpoint = small_blip2(root / "model")
        ratios, costs = [], []
        print("pair  1 worker/s  2 workers/s  ratio  CPU ms a question  load average")
        for number in range(asked.pairs):
            one, two = (measure(root, checkpoint, devices, asked.seconds, number) for devices in (1, 2))
            ratios.append(two.rate / one.rate)
            costs.append(one.cpu / two.cpu)
            print(
                f"{number + 1:4}  {one.rate:10.1f}  {two.rate:11.1f}  {ratios[-1]:5.2f}  "
                f"{one.cpu * 1e3:7.2f} / {two.cpu * 1e3:.2f}  {one.load:.1f} / {two.load:.1f}",
                flush=True,
            )
        print(
            f"median ratio {statistics.median(ratios):.2f}; by CPU seconds a question two free cores would give "
            f"{2 * statistics.median(costs):.2f} ({os.cpu_count()} cores here)"
        )


if __name__ == "__main__":
    main()
