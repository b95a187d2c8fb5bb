"""All scores.json below a folder of runs -> tables in Markdown and CSV, beside that folder.

Runs that are not comparable never share a table: full official runs stand in `leaderboard.md`; demo, custom, limited,
unchecked and partial ones in `leaderboard-demo.md`, `leaderboard-custom-limited.md` and so on. Rows are sorted by name,
not by score, so a new run changes few lines.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from evalkit import manifest
from evalkit.errors import ResultsError
from evalkit.manifest import write_atomically
from evalkit.prompts import in_short

if TYPE_CHECKING:
    import pandas as pd

_MEANING = {
    "demo": "the picture world, drawn by evalkit itself: compare with other demo runs only",
    "custom": "annotation files given by hand: not the official split",
    "limited": "only the first samples (limit=)",
    "unchecked": "not held against the official counts (data.check=false)",
    "partial": "some samples failed or are missing",
}


_COLUMNS = frozenset(
    {"stamps", "scores", "intervals", "unavailable", "primary", "variant", "extract"}
    | {"n", "missing", "failed", "num_images"}
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Entry:
    """A scored run."""

    task: str
    model: str
    run_key: str
    stamps: tuple[str, ...]
    scores: Mapping[str, Any]
    manifest: Mapping[str, Any]
    when: float
    """mtime of scores.json: of two runs for one cell, the newer one is shown."""


def collect(out: Path) -> list[Entry]:
    """Return every scored run below `out`, sorted by task and model."""
    entries = []
    for path in sorted(out.glob("*/*/*/scores.json")):
        try:
            scores = json.loads(path.read_text())
            when = path.stat().st_mtime
        except (OSError, ValueError) as error:
            raise ResultsError(f"cannot read {path}: {error}; score the run again to replace it") from error
        if not isinstance(scores, dict) or not scores.keys() >= _COLUMNS:
            raise ResultsError(f"{path} is not the scores of a run; score the run again to replace it")
        facts = manifest.read(path.parent)
        entries.append(
            Entry(
                task=path.parents[2].name,
                model=path.parents[1].name,
                run_key=path.parent.name,
                stamps=tuple(sorted(scores["stamps"])),
                scores=scores,
                manifest=facts,
                when=when,
            )
        )
    return entries


def write(out: Path) -> list[Path]:
    """Write the leaderboards of all runs below `out` beside it; return the files."""
    tables: dict[tuple[str, ...], list[Entry]] = {}
    for entry in collect(out):
        tables.setdefault(entry.stamps, []).append(entry)
    written = []
    for stamps, entries in sorted(tables.items()):
        stem = "-".join(("leaderboard", *stamps))
        for suffix, text in ((".md", markdown(entries)), (".csv", frame(entries).to_csv(index=False))):
            path = out.parent / (stem + suffix)
            write_atomically(path, text)
            written.append(path)
    return written


def frame(entries: Iterable[Entry]) -> pd.DataFrame:
    """Return one row a run and score, unrounded fractions, as it stands in the CSV."""
    import pandas as pd

    rows = []
    for entry in entries:
        scores, asked = entry.scores, entry.manifest["task"]
        for name, value in scores["scores"].items():
            low, high = scores["intervals"].get(name, (None, None))
            rows.append(
                {
                    "task": entry.task,
                    "model": entry.model,
                    "metric": name,
                    "primary": name == scores["primary"],
                    "score": value,
                    "low95": low,
                    "high95": high,
                    "n": scores["n"],
                    "missing": scores["missing"],
                    "failed": scores["failed"],
                    "images": scores["num_images"],
                    "variant": scores["variant"],
                    "extract": scores["extract"],
                    "prompt": asked["prompt"],
                    "decoding": json.dumps(entry.manifest["identity"]["decoding"], sort_keys=True),
                    "run": entry.run_key,
                }
            )
    return pd.DataFrame(rows)


def markdown(entries: Sequence[Entry]) -> str:
    """Return the table models x tasks, and below it a row a run with what belongs to the number."""
    stamps = entries[0].stamps
    title = "# Leaderboard" + (f": {', '.join(stamps)} runs" if stamps else "")
    lines = [title, ""]
    lines += [f"*{stamp}*: {_MEANING.get(stamp, 'see the runs')}.  " for stamp in stamps]
    lines += [] if stamps else ["Full official splits."]
    lines += ["", "Percent (CIDEr x 100), with 95% intervals clustered by image.", ""]
    lines += [*_grid(entries), "", "## Runs", "", *_runs(entries)]
    unavailable = _unavailable(entries)
    if unavailable:
        lines += ["", "## Not computed", "", *unavailable]
    return "\n".join(lines) + "\n"


def summary(entries: Sequence[Entry]) -> str:
    """Return the runs as an aligned table for the terminal."""
    head = ["task", "model", "metric", "score", "95% interval", "n", "failed"]
    rows = [head]
    for entry in entries:
        scores = entry.scores
        value, interval = _cell(scores)
        rows.append(
            [entry.task, entry.model, _metric(scores), value, interval, str(scores["n"]), str(scores["failed"])]
        )
    widths = [max(len(row[i]) for row in rows) for i in range(len(head))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
    )


def _grid(entries: Sequence[Entry]) -> list[str]:
    cells: dict[tuple[str, str], list[Entry]] = {}
    for entry in entries:
        cells.setdefault((entry.model, entry.task), []).append(entry)
    tasks = sorted({entry.task for entry in entries})
    rows = [["model", *tasks]]
    for model in sorted({entry.model for entry in entries}):
        row = [model]
        for task in tasks:
            runs = sorted(cells.get((model, task), []), key=lambda entry: entry.when)
            more = f" (newest of {len(runs)})" if len(runs) > 1 else ""
            row.append(" ".join(filter(None, _cell(runs[-1].scores))) + more if runs else "")
        rows.append(row)
    return _table(rows)


def _runs(entries: Sequence[Entry]) -> list[str]:
    rows = [["task", "model", "metric", "score", "95% interval", "n", "images", "missing", "failed", "prompt", "run"]]
    for entry in entries:
        scores = entry.scores
        value, interval = _cell(scores)
        counts = [str(scores[name]) for name in ("n", "num_images", "missing", "failed")]
        prompt = in_short(entry.manifest["task"]["prompt"] or "")
        rows.append([entry.task, entry.model, _metric(scores), value, interval, *counts, prompt, entry.run_key])
    return _table(rows)


def _unavailable(entries: Sequence[Entry]) -> list[str]:
    reasons: dict[tuple[str, str], list[str]] = {}
    for entry in entries:
        for name, reason in entry.scores["unavailable"].items():
            reasons.setdefault((name, reason), []).append(f"{entry.task}/{entry.model}")
    return [
        f"- {_escape(name)} ({', '.join(map(_escape, where))}): {_escape(reason)}"
        for (name, reason), where in sorted(reasons.items())
    ]


def _metric(scores: Mapping[str, Any]) -> str:
    return f"{scores['primary']} [{scores['variant']}]" if scores["variant"] else str(scores["primary"])


def _cell(scores: Mapping[str, Any]) -> tuple[str, str]:
    value = scores["scores"].get(scores["primary"])
    interval = scores["intervals"].get(scores["primary"])
    shown = "-" if value is None else f"{100 * value:.1f}"
    return shown, f"[{100 * interval[0]:.1f}, {100 * interval[1]:.1f}]" if interval else ""


def _table(rows: Sequence[Sequence[str]]) -> list[str]:
    head, *body = [[_escape(cell) for cell in row] for row in rows]
    return [f"| {' | '.join(row)} |" for row in (head, ["---"] * len(head), *body)]


def _escape(text: str) -> str:
    r"""Return the text as one Markdown table cell.

    >>> print(_escape("a|b\n<i>c</i>"))
    a\|b &lt;i&gt;c&lt;/i&gt;
    """
    text = " ".join(text.split())
    for mark, safe in (("&", "&amp;"), ("<", "&lt;"), (">", "&gt;"), ("|", "\\|")):
        text = text.replace(mark, safe)
    return text
