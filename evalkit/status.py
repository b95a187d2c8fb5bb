"""How far a run is, from another shell or years later: `python -m evalkit status RUN`. Reads the run folder alone.

vqav2/val fake, results/runs/vqav2/fake/0a1b2c3d4e5f
  1200 of 3000 samples answered, 2 failed, 1798 missing; 1 torn line; not scored
  writers: 2 wrote in the last minute, 3 in all; the last wrote 4 s ago
    20261122T162801.123456-0a1b2c3d.jsonl   640 lines, last write 4 s ago
  starts: 2
    2026-11-22T16:20:01 on node-1, devices=2: stopped by Ctrl-C after 560 samples, 1 worker replaced
    2026-11-22T16:28:00 on node-1, devices=2: running, or killed: it wrote no end
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from evalkit import log, manifest
from evalkit.types import Json

_RECENT_SECONDS = 60.0


def lines(run: Path, now: float | None = None) -> Iterator[str]:
    """Yield what is to be said about a run folder, line by line.

    Args:
        run: the folder with manifest.json in it.
        now: seconds since 1970; the time of the call where it is not given.

    Raises:
        ResultsError: it is no run folder, or cannot be read.
    """
    now = time.time() if now is None else now
    facts = manifest.read(run)
    identity = facts["identity"]
    name = facts["model"].get("name") or str(facts["model"].get("_target_", "")).rpartition(".")[2]
    yield f"{identity['task']} {name}, {run}"
    found = log.read_log(run / "predictions")
    answered = len(found.answered())
    failed = len(found.predictions) - answered
    missing = identity["samples"] - len(found.predictions)
    torn = f"; {_count(found.torn, 'torn line')}, asked again by the next start" if found.torn else ""
    scored = "scored" if (run / "scores.json").exists() else "not scored"
    yield f"  {answered} of {identity['samples']} samples answered, {failed} failed, {missing} missing{torn}; {scored}"
    if identity["kind"] == "retrieve":
        yield f"  {_phase(run)}"
    yield from _writers(run, now)
    yield from _starts(run)


def _phase(run: Path) -> str:
    texts, images = (len(list((run / "itc").glob(f"{kind}-*.npz"))) for kind in ("texts", "images"))
    if (run / "candidates.npz").exists():
        return "candidates are chosen; their pairs are being scored, or were"
    return f"features of {_count(texts, 'text unit')} and {_count(images, 'image unit')} so far; no candidates yet"


def _writers(run: Path, now: float) -> Iterator[str]:
    """Yield the log files, the latest write first."""
    files = [(path.stat().st_mtime, path) for path in (run / "predictions").glob("*.jsonl")]
    if not files:
        yield "  writers: none so far"
        return
    files.sort(reverse=True)
    recent = sum(now - written < _RECENT_SECONDS for written, _ in files)
    yield f"  writers: {recent} wrote in the last minute, {len(files)} in all; the last {_ago(now - files[0][0])}"
    for written, path in files:
        count = path.read_bytes().count(b"\n")
        yield f"    {path.name}  {_count(count, 'line')}, last write {_ago(now - written)}"


def _starts(run: Path) -> Iterator[str]:
    """Yield the starts of the run in order: when, where, how it ended."""
    segments = manifest.segments(run)
    yield f"  starts: {len(segments)}"
    for segment in segments:
        engine = segment.get("engine", {})
        where = f"on {segment.get('host', '?')}, devices={engine.get('devices', '?')}"
        yield f"    {str(segment.get('start', '?'))[:19]} {where}: {_end(segment)}"


def _end(segment: Mapping[str, Json]) -> str:
    outcome: Mapping[str, Any] = segment.get("outcome") or {}
    if "end" not in segment:
        return "running, or killed: it wrote no end"
    samples = _count(outcome.get("asked", 0), "sample")
    if "error" in outcome:
        how = f"failed after {samples}: {' '.join(str(outcome['error']).split())}"
    elif outcome.get("interrupted"):
        how = f"stopped by Ctrl-C after {samples}"
    else:
        how = f"ended after {samples}"
    restarts, halved = outcome.get("restarts", 0), outcome.get("memory_errors", 0)
    how += f", {_count(restarts, 'worker')} replaced" if restarts else ""
    return how + (f", out of memory {_count(halved, 'time')}" if halved else "")


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" + ("" if number == 1 else "s")


def _ago(seconds: float) -> str:
    """Return a duration as people say it; a clock of another machine may be ahead of ours.

    >>> _ago(4.2), _ago(300), _ago(7300), _ago(-1)
    ('4 s ago', '5 min ago', '2 h ago', '0 s ago')
    """
    if seconds < 120:
        return f"{max(round(seconds), 0)} s ago"
    return f"{round(seconds / 60)} min ago" if seconds < 7200 else f"{round(seconds / 3600)} h ago"
