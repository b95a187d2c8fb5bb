"""What was run: the identity of a run, its key, and the facts that stand beside it.

The identity is what the model was asked and what the model is, not the source text of a task: a comment or a metric
may change and the predictions stay valid; a changed prompt, id, decoding value or weight opens a new folder by itself.

    <run>/manifest.json     identity, and how to load the same references again; written once
    <run>/segments/*.json   one file a start: command, versions, geometry; never part of the identity
"""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import hashlib
import importlib.metadata
import json
import platform
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from evalkit import __version__, log
from evalkit.disk import way_out, write_whole
from evalkit.errors import ResultsError
from evalkit.types import Dataset, Json, Task

FORMAT = 1


def identity(
    task: Task, dataset: Dataset, prompts: Mapping[str, str], model: Mapping[str, Json], files: Mapping[str, str]
) -> dict[str, Json]:
    """Return what decides the predictions of a run.

    Args:
        task: as resolved, with every override applied.
        dataset: the samples that are asked, `limit` applied.
        prompts: sample id -> the prompt it gets.
        model: the adapter's own `identity`.
        files: relative name -> sha256 of the checkpoint's files.
    """
    asked = sorted((sample.id, sample.image_ids, prompts.get(sample.id, "")) for sample in dataset.samples)
    facts: dict[str, Json] = {
        "task": task.name,
        "task_version": task.version,
        "kind": task.kind,
        "dataset": dataset.fingerprint,
        "samples": len(dataset.samples),
        "asked": digest(asked),
        "decoding": dataclasses.asdict(task.decoding),
        "image_size": task.image_size,
        "model": dict(model),
        "files": dict(files),
        "software": {name: _minor(name) for name in ("torch", "transformers")},
    }
    if task.kind == "choose":
        # Each list once: classifiers give all samples the same thousand names.
        lists = {options: digest(options) for options in {sample.options for sample in dataset.samples}}
        facts["options"] = digest(sorted((sample.id, lists[sample.options]) for sample in dataset.samples))
    if task.kind == "retrieve":
        facts["k"] = task.k
        facts["texts"] = digest(sorted((text.id, text.text) for text in dataset.texts))
    if task.decoding.rank_candidates:
        facts["candidates"] = digest(dataset.candidates)
    return json.loads(json.dumps(facts))  # type: ignore[no-any-return]


def run_key(facts: Mapping[str, Json]) -> str:
    """Return the folder name of an identity: 12 hex digits.

    >>> run_key({"b": 1, "a": 2}) == run_key({"a": 2, "b": 1})
    True
    """
    return digest(facts)[:12]


def digest(value: Json) -> str:
    """Return the sha256 of a value's canonical JSON."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def hash_files(files: Mapping[str, Path], cache: Path) -> dict[str, str]:
    """Return the sha256 of each file; `cache` remembers it by path, size, mtime and inode, so weights are read once."""
    table = cache / "file-hashes.json"
    known = _read_cache(table)
    hashes: dict[str, str] = {}
    for name, path in sorted(files.items()):
        stat = path.stat()
        key = f"{path.resolve()}|{stat.st_size}|{stat.st_mtime_ns}|{stat.st_ino}"
        if key not in known:
            with path.open("rb") as stream:
                known[key] = hashlib.file_digest(stream, "sha256").hexdigest()
        hashes[name] = known[key]
    with contextlib.suppress(ResultsError):  # a cache that cannot be kept costs time, not correctness
        write_atomically(table, json.dumps(known))
    return hashes


def _read_cache(table: Path) -> dict[str, str]:
    try:
        known = json.loads(table.read_text())
    except (OSError, ValueError):
        return {}  # made anew: it only saves time
    return known if isinstance(known, dict) else {}


def write_once(run: Path, manifest: Mapping[str, Json]) -> None:
    """Write manifest.json unless a start before this one has; the identity is the same, or the folder would differ.

    Raises:
        ResultsError: it cannot be written; the one that is there is damaged, or of a later format.
    """
    path = run / "manifest.json"
    if path.exists():
        read(run)  # a run that a later evalkit has begun is not gone on with
        return
    write_atomically(path, json.dumps(manifest, indent=1, sort_keys=True) + "\n", first_wins=True)


class Segment:
    """What is known of one start of a run: where, with what, how it ended. No end in it: it was killed."""

    def __init__(self, run: Path, argv: Sequence[str], geometry: Mapping[str, Json]) -> None:
        """Write the file."""
        start = datetime.datetime.now(datetime.UTC)
        self._path = run / "segments" / f"{start:%Y%m%dT%H%M%S}-{uuid.uuid4().hex[:8]}.json"
        self._facts = {"start": start.isoformat(), **environment(argv), "engine": dict(geometry)}
        self._write()

    def close(self, outcome: Mapping[str, Json]) -> None:
        """Add when and how it ended."""
        self._facts |= {"end": datetime.datetime.now(datetime.UTC).isoformat(), "outcome": dict(outcome)}
        self._write()

    def _write(self) -> None:
        write_atomically(self._path, json.dumps(self._facts, indent=1, sort_keys=True) + "\n")


def read(run: Path) -> dict[str, Any]:
    """Return the manifest of a run folder. Raises ResultsError when it is not one."""
    path = run / "manifest.json"
    try:
        manifest = json.loads(path.read_text())
    except FileNotFoundError:
        raise ResultsError(
            f"{run} is not a run folder: it has no manifest.json; "
            "give one like results/runs/vqav2/my-model/0a1b2c3d4e5f"
        ) from None
    except (OSError, ValueError) as error:
        raise ResultsError(f"cannot read {path}: {error}; {_MENDED}") from error
    if not isinstance(manifest, dict):
        raise ResultsError(f"{path} is not the manifest of a run: it holds no object; {_MENDED}")
    for key, ours in (("format", FORMAT), ("log_format", log.FORMAT)):
        version = manifest.get(key, 1 if key == "log_format" else None)
        if not isinstance(version, int) or version > ours:
            raise ResultsError(
                f"{path} has {key} {version}; this evalkit ({__version__}) reads up to {ours}: update it"
            )
    absent = [key for key in ("spec", "task", "data", "identity", "limit") if key not in manifest]
    if absent:
        raise ResultsError(f"{path} is not the manifest of a run: it has no {absent[0]!r}; {_MENDED}")
    return manifest


_MENDED = "remove it, and the command that made the run writes it anew"


def segments(run: Path) -> list[dict[str, Json]]:
    """Return the starts of a run, in order. Raises ResultsError when one cannot be read."""
    found = []
    for path in sorted((run / "segments").glob("*.json")):
        try:
            found.append(json.loads(path.read_text()))
        except (OSError, ValueError) as error:
            raise ResultsError(f"cannot read {path}: {error}; it only says how a start went: remove it") from error
    return found


def environment(argv: Sequence[str]) -> dict[str, Json]:
    """Return the facts about this machine and call that may explain a difference but decide nothing."""
    packages = ("torch", "transformers", "datasets", "numpy", "pillow", "tokenizers", "pycocoevalcap")
    return {
        "evalkit": __version__,
        "command": list(argv),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "host": platform.node(),
        "packages": {name: _version(name) for name in packages},
    }


def write_atomically(path: Path, text: str, *, first_wins: bool = False) -> None:
    """Write a file so that a reader sees the old one or the whole new one. Raises ResultsError."""
    try:
        write_whole(path, lambda stream: stream.write(text.encode()), first_wins=first_wins)
    except OSError as error:
        raise ResultsError(f"cannot write {path}: {error.strerror or error}; {way_out(error)}") from error


def describe(
    task: Task,
    dataset: Dataset,
    facts: Mapping[str, Json],
    *,
    model: Mapping[str, Json],
    data: Mapping[str, Json],
    limit: int | None,
) -> dict[str, Json]:
    """Return the whole manifest of a run: its identity, and what is needed to load the same references again."""
    return {
        "format": FORMAT,
        "log_format": log.FORMAT,
        "run_key": run_key(facts),
        "identity": facts,
        "task": {
            "name": task.name,
            "prompt": task.template if task.prompts or task.prompt else None,
            "prompt_style": task.prompt_style,
            "question_filter": task.question_filter,
            "extract": task.extract,
            "metric_variant": task.variant,
        },
        "model": model,
        "data": data,
        "stamps": list(dataset.stamps),
        "source": dataset.source,
        "limit": limit,
    }


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _minor(package: str) -> str | None:
    version = _version(package)
    return ".".join(version.split(".")[:2]) if version else None
