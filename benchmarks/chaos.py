"""Kill workers and supervisors at random until a count is reached; what is on disk must not show it.

    python -m benchmarks.chaos --kills 300 --seed 1

Each round is a run folder of its own, on a small file system in memory where one may be mounted (by root). It is
started on 1, 2, 3 or 5 workers, drawn anew for every start; `kill -9` hits a random worker (its supervisor replaces it)
or the supervisor itself (the next start resumes), at random moments, also while they load. After a supervisor's death
the end of a log is torn off at a random byte, as a crash of the machine may do; now and then a start finds almost no
room on its disk, which it must say. A round ends when a start ends by itself; then its (sample_id, prompt, output,
error, pairs) and its scores.json must equal those of a quiet run, byte for byte. The model is `tests.odd_models.Odd`:
its answers depend on all that stands in a batch, so a unit cut or filled otherwise would show. `tests/test_chaos.py` is
the short form.
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path

from tests.support import answers, caption_files, found, lines, odd, only_run, start, undisturbed, vqa_files

_GEOMETRIES = (1, 2, 3, 5)
_SUPERVISORS = 0.3
"""Share of the kills that hit the supervisor (with one worker it is the worker too)."""
_FULL_DISKS = 0.2
"""Share of the starts that find the disk almost full."""
_ROOM = 4 << 20
"""Bytes of the file system of a round."""
_BALLAST = "ballast"
_WHILE_WORKING = 0.7
"""Share of the kills just after something was written; the others come at any time."""


@dataclass
class Report:
    """What was done, and that it did not show."""

    worker_kills: int = 0
    supervisor_kills: int = 0
    torn: int = 0
    full_disks: int = 0
    """Starts that stopped because there was no room."""
    starts: int = 0
    rounds: int = 0
    starts_on: dict[int, int] = field(default_factory=lambda: dict.fromkeys(_GEOMETRIES, 0))
    lines: int = 0
    """Lines in all logs."""
    samples: int = 0
    """Samples in all logs, each once."""
    seconds: float = 0.0

    @property
    def kills(self) -> int:
        """All of them."""
        return self.worker_kills + self.supervisor_kills


def chaos(folder: Path, *, kills: int, seed: int, images: int = 40, batch_s: float = 0.05) -> Report:
    """Kill until the count is reached and the last round is over; return what was done.

    Raises:
        AssertionError: a round's answers or scores are not those of the quiet run.
    """
    chance = random.Random(seed)
    report = Report()
    begun = time.monotonic()
    files = caption_files(vqa_files(folder / "files", images=images, questions=4), images=images)
    quiet: dict[str, tuple[object, bytes]] = {}
    for task in ("vqav2", "retrieval"):
        home = folder / f"quiet-{task}"
        home.mkdir()
        quiet[task] = undisturbed(odd(files, task), home)
    while report.kills < kills:
        task = ("vqav2", "retrieval")[report.rounds % 2]
        home = folder / f"round-{report.rounds}"
        home.mkdir()
        with _small_disk(home) as small:
            _round(files, task, home, report, chance, kills, batch_s, small)
            assert found(home) == quiet[task], f"round {report.rounds} ({task}) differs from the quiet run"
            report.rounds += 1
            report.lines += len(lines(only_run(home)))
            report.samples += len(answers(only_run(home)))
    report.seconds = time.monotonic() - begun
    return report


def _round(
    files: Path, task: str, home: Path, report: Report, chance: random.Random, kills: int, batch_s: float, small: bool
) -> None:
    """Start, disturb and start again until a start ends by itself."""
    while True:
        devices = chance.choice(_GEOMETRIES)
        report.starts += 1
        report.starts_on[devices] += 1
        words = (f"model.batch_s={batch_s}", f"devices={devices}", "engine.max_restarts=1000000")
        full = small and (report.starts == 1 or chance.random() < _FULL_DISKS)
        if full:
            _fill(home, 8 if report.starts == 1 else chance.choice((4, 8, 16, 32)))  # too little for the first
        process = start(*odd(files, task, *words), cwd=home)
        if full:
            report.full_disks += _stops_for_want_of_room(process)
            (home / _BALLAST).unlink()
        elif _disturb(process, home, report, chance, kills):
            return
        elif _tear(home, chance):
            report.torn += 1


@contextmanager
def _small_disk(home: Path) -> Iterator[bool]:
    """Mount a small file system in memory; yield whether that is permitted."""
    words = ["mount", "-t", "tmpfs", "-o", f"size={_ROOM}", "none", str(home)]
    mounted = os.geteuid() == 0 and subprocess.run(words, capture_output=True).returncode == 0
    try:
        yield mounted
    finally:
        if mounted:
            subprocess.run(["umount", "-l", str(home)], check=True)


def _fill(home: Path, kib: int) -> None:
    """Leave room for a few lines, or for some files of features."""
    stat = os.statvfs(home)
    (home / _BALLAST).write_bytes(bytes(max(stat.f_bavail * stat.f_frsize - (kib << 10), 0)))


def _stops_for_want_of_room(process: subprocess.Popen[str]) -> bool:
    """Wait for a start that finds little room; return whether it was too little."""
    try:
        _, said = process.communicate(timeout=600)
    finally:
        process.kill()
    assert process.returncode == 0 or (process.returncode == 2 and "No space left on device" in said), said
    return process.returncode == 2


def _disturb(process: subprocess.Popen[str], home: Path, report: Report, chance: random.Random, kills: int) -> bool:
    """Kill at random moments until the supervisor is gone; return whether it ended by itself, with exit code 0."""
    try:
        while report.kills < kills:
            aim = chance.random() > _SUPERVISORS
            working = chance.random() < _WHILE_WORKING
            if not _moment(process, home, chance, aim=aim, working=working):
                break
            workers = _children(process.pid)
            if aim and workers:
                _kill(chance.choice(workers))
                report.worker_kills += 1
                continue
            process.kill()
            process.communicate(timeout=60)
            report.supervisor_kills += 1
            _wait_until_gone(workers)
            return False
        _, said = process.communicate(timeout=600)  # a run that nobody disturbs any more ends
        assert process.returncode == 0, said
        return True
    finally:
        process.kill()


def _moment(process: subprocess.Popen[str], home: Path, chance: random.Random, *, aim: bool, working: bool) -> bool:
    """Wait for a moment to kill: soon, or just after something was written; return False when the run ended before.

    With `aim` there must be a worker to hit; a run on one device has none.
    """
    size = _written(home)
    end = time.monotonic() + 600.0
    while process.poll() is None:
        assert time.monotonic() < end, "the run neither goes on nor ends"
        if (not aim or _children(process.pid)) and (not working or _written(home) > size):
            time.sleep(chance.uniform(0, 0.2 if working else 1.0))
            return process.poll() is None
        if aim and working and _written(home) > size and not _children(process.pid):
            return True  # one device: the process is the worker
        time.sleep(0.02)
    return False


def _written(home: Path) -> int:
    """Return the bytes of all logs and feature files."""
    return sum(
        path.stat().st_size for kind in ("jsonl", "npz") for path in home.glob(f"results/runs/*/*/*/*/[!.]*.{kind}")
    )


def _children(parent: int) -> list[int]:
    """Return the running child processes of a process."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, ppid = stat.read_text().rpartition(")")[2].split()[:2]
        except (FileNotFoundError, ProcessLookupError):
            continue  # it ended while we looked
        if int(ppid) == parent and state not in "ZX":
            found.append(int(stat.parent.name))
    return found


def _kill(pid: int) -> None:
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        return  # it ended by itself a moment ago


def _wait_until_gone(pids: list[int], seconds: float = 10.0) -> None:
    """Workers leave within ten seconds of their supervisor."""
    end = time.monotonic() + seconds
    while any(Path(f"/proc/{pid}").exists() for pid in pids):
        assert time.monotonic() < end, f"workers are still there {seconds} s after their supervisor was killed"
        time.sleep(0.02)


def _tear(home: Path, chance: random.Random) -> bool:
    """Tear the end off one log: half a line remains, or nothing of it."""
    logs = [path for path in home.glob("results/runs/*/*/*/predictions/*.jsonl") if path.stat().st_size]
    if not logs:
        return False
    path = chance.choice(logs)
    data = path.read_bytes()
    last = data.rfind(b"\n", 0, len(data) - 1) + 1
    os.truncate(path, chance.randrange(last, len(data)))
    return True


def main() -> None:
    """Run the long form and print the counts."""
    parser = argparse.ArgumentParser(description="Kill workers and supervisors at random; compare with a quiet run.")
    parser.add_argument("--kills", type=int, default=300)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--images", type=int, default=80)
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="evalkit-chaos-") as folder:
        os.environ["EVALKIT_CACHE"] = str(Path(folder) / "cache")
        report = chaos(Path(folder), kills=asked.kills, seed=asked.seed, images=asked.images)
    print(f"{report.kills} kills: every round equals the quiet run")
    for name, value in asdict(report).items():
        print(f"  {name}: {value:.0f}" if isinstance(value, float) else f"  {name}: {value}")


if __name__ == "__main__":
    main()
