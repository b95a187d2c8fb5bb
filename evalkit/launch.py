"""From a RunConfig to scores: resolve, check everything, load the model once, run each task, score, write tables.

Whatever can be known to be wrong is found before weights are loaded: names, files, ids, images, what the model refuses.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import re
import sys
import threading
from collections.abc import Sequence
from pathlib import Path

from evalkit import log, manifest, score
from evalkit.assemble import assignment, build_model, limit_threads, metric_settings
from evalkit.config import MetricsConfig, RunConfig
from evalkit.crew import Crew, Place, crew_of
from evalkit.data import check_images
from evalkit.errors import ConfigError, IncompleteError, ResultsError
from evalkit.paths import user_cache
from evalkit.progress import Progress
from evalkit.run import Outcome, finish_batch_on_interrupt
from evalkit.types import Model
from evalkit.work import Assignment


def launch(config: RunConfig, argv: Sequence[str]) -> int:
    """Run every task of the configuration; return the exit code (see design: 0, 3 or 130).

    Raises:
        EvalkitError: whatever is the user's to mend; nothing already written is lost.
    """
    limit_threads(config.engine.threads)
    place = Place.from_environment(os.environ)
    if config.devices in ("1", "auto"):
        place.take_device()
    model = build_model(config.model)
    out = Path(config.out)
    ready = [_identified(spec, config, model, out) for spec in config.task]
    told = _preflight(ready, config.metrics)
    code = 0
    with crew_of(config, model, ready, place) as crew:
        for number, assignment in enumerate(ready):
            if not _run(number, assignment, config, crew, place, argv):
                _say(f"stopped; everything answered is kept in {assignment.folder}; the same command continues")
                return 130
    for assignment in ready:
        try:
            _score(assignment, config, told, write=place.rank == 0)
        except IncompleteError as error:
            _say(str(error))
            code = error.exit_code
    if place.rank == 0:
        _tables(out, ready)
    return code


def _preflight(ready: Sequence[Assignment], config: MetricsConfig) -> set[str]:
    """Say what will be missing in the scores before a model runs for hours; return the reasons given.

    Raises:
        ConfigError: a name in `metrics.names` that no metric of these tasks gives.
    """
    tasks = [assignment.task for assignment in ready]
    score.check_names(tasks, config.names)
    settings = dataclasses.replace(metric_settings(config), names=())
    told: set[str] = set()
    for ask in dict.fromkeys(metric.preflight for task in tasks for metric in task.metrics if metric.preflight):
        for name, reason in ask(settings).items():
            if not config.names or name in config.names:
                _say(f"no {name} in this run: {reason}")
                told.add(reason)
    return told


def _identified(spec: str, config: RunConfig, model: Model, out: Path) -> Assignment:
    """Return the assignment with its run folder, in which the manifest stands."""
    name = str(config.model.get("name") or config.model["_target_"].rpartition(".")[2])
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._+-]*", name):
        raise ConfigError(f"model.name={name!r} becomes the name of a folder; use letters, digits and . _ + -")
    ready = assignment(spec, config, model, out)
    task, dataset = ready.task, ready.dataset
    check_images(dataset, task.name)
    files = manifest.hash_files(model.files(task), user_cache())
    target = {"adapter": config.model["_target_"], **model.identity(task)}
    facts = manifest.identity(task, dataset, ready.prompts, target, files)
    where = {
        "kind": config.data.kind,
        "root": str(Path(config.data.root).resolve()) if config.data.root else None,
        "slots": {slot: str(Path(path).resolve()) for slot, path in config.data.slots.items()},
        "check": config.data.check,
    }
    about = manifest.describe(task, dataset, facts, model=dict(config.model), data=where, limit=config.limit)
    path, colon, variant = spec.partition(":")
    about["spec"] = f"{Path(path).resolve()}{colon}{variant}" if path.endswith(".py") else spec
    folder = out / ready.label / name / manifest.run_key(facts)
    manifest.write_once(folder, about)
    return dataclasses.replace(ready, folder=folder)


def _run(number: int, ready: Assignment, config: RunConfig, crew: Crew, place: Place, argv: Sequence[str]) -> bool:
    """Do what is left of this process's share of a task, phase by phase; return False when interrupted."""
    before = log.read_log(ready.predictions)
    answered = len(before.answered())
    label = f"{ready.label} {ready.folder.parent.name}"
    if before.torn:
        torn = "1 torn line" if before.torn == 1 else f"{before.torn} torn lines"
        _say(f"{label}: {torn} in the log, where a start was killed or the disk was full; asked again")
    if not ready.todo(ready.phases[-1]):
        _say(f"{label}: all {answered} samples were answered before, in {ready.folder}")
        return True
    images = len({image_id for sample in ready.dataset.samples for image_id in sample.image_ids})
    progress = Progress(label, samples=len(ready.dataset.samples), images=images, done=answered)
    segment = manifest.Segment(ready.folder, argv, dataclasses.asdict(config.engine) | {"devices": config.devices})
    stop = threading.Event()
    outcome = Outcome()
    try:
        with finish_batch_on_interrupt(stop):
            for phase in ready.phases:
                mine = place.share(ready, phase)
                if mine:
                    outcome.add(crew.run(number, phase, mine, progress, stop))
                if stop.is_set() or not place.wait_for_others(ready, phase, stop):
                    break
    except BaseException as error:
        with contextlib.suppress(ResultsError):  # the disk may be what failed
            segment.close(dataclasses.asdict(outcome) | {"error": f"{type(error).__name__}: {error}"})
        raise
    after = log.read_log(ready.predictions)
    # What a killed worker wrote last was not reported, and other machines report to their own.
    progress.done = len(after.predictions)
    progress.failed = len(after.predictions) - len(after.answered())
    progress.close()
    if outcome.memory_errors:
        _say(
            f"{label}: out of memory {outcome.memory_errors} times; the batches were halved, so answers may differ in "
            "last bits from those of a smaller engine.image_batch or engine.prompt_batch, which avoids this"
        )
    segment.close(dataclasses.asdict(outcome) | {"interrupted": stop.is_set(), "restarts": crew.restarts})
    return not stop.is_set()


def _score(ready: Assignment, config: RunConfig, told: set[str], *, write: bool) -> None:
    """Score a run and write it, or, beside the process that does so, see that it can."""
    predictions = log.read_log(ready.predictions).predictions
    partial, failed = config.allow_partial, config.max_failed
    if not write:
        score.check_complete(ready.task, ready.dataset, predictions, allow_partial=partial, max_failed=failed)
        return
    settings = metric_settings(config.metrics)
    result = score.score(ready.task, ready.dataset, predictions, settings, allow_partial=partial, max_failed=failed)
    score.write(ready.folder, ready.task, ready.dataset, predictions, result)
    for name, reason in result["unavailable"].items():
        if reason in told:
            continue
        _say(f"{ready.label}: no {name}: {reason}")


def _tables(out: Path, ready: Sequence[Assignment]) -> None:
    """Write all tables; print the runs that share a table with those just made."""
    from evalkit import leaderboard

    entries = leaderboard.collect(out)
    now = {entry.stamps for entry in entries for assignment in ready if entry.run_key == assignment.folder.name}
    if now:
        print(leaderboard.summary([entry for entry in entries if entry.stamps in now]))
        _say("tables: " + ", ".join(str(path) for path in leaderboard.write(out) if path.suffix == ".md"))


def _say(message: str) -> None:
    print(message, file=sys.stderr)
