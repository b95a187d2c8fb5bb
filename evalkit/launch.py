"""From a RunConfig to scores: resolve, check everything, load the model once, run each task, score, write tables.

Whatever can be known to be wrong is found before weights are loaded: names, files, ids, images, what the model refuses.
"""

from __future__ import annotations

import contextlib
import dataclasses
import importlib
import inspect
import os
import re
import sys
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

from evalkit import log, manifest, plan, registry, score
from evalkit.config import DataConfig, MetricsConfig, RunConfig
from evalkit.crew import Crew, Place, crew_of
from evalkit.data import check_images, fingerprint, load_dataset
from evalkit.errors import ConfigError, IncompleteError, ModelError, ResultsError, UnsupportedError
from evalkit.extract import preflight
from evalkit.paths import user_cache
from evalkit.progress import Progress
from evalkit.prompts import clean, fill
from evalkit.run import Outcome, finish_batch_on_interrupt
from evalkit.types import Dataset, MetricSettings, Model, Task
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
    if place.rank > 0:
        return (
            0 if all(not assignment.todo(assignment.phases[-1]) for assignment in ready) else IncompleteError.exit_code
        )
    for assignment in ready:
        try:
            _score(assignment, config, told)
        except IncompleteError as error:
            _say(str(error))
            code = error.exit_code
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


def build_model(spec: Mapping[str, Any]) -> Model:
    """Return the adapter that `model._target_` names, given the other keys below `model.`.

    Raises:
        ConfigError: no such class, or keys it does not take.
    """
    arguments = {key: value for key, value in spec.items() if key not in ("_target_", "name")}
    target = spec.get("_target_")
    if not isinstance(target, str) or "." not in target:
        raise ConfigError(f"model._target_={target!r} names no class; give one like model._target_=my_package.MyModel")
    module_name, _, class_name = target.rpartition(".")
    if "" not in sys.path and os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())  # `evalkit` as a command sees a module beside you, as `python -m evalkit` does
    try:
        cls = getattr(importlib.import_module(module_name), class_name)
    except ModuleNotFoundError as error:
        if error.name and (module_name == error.name or module_name.startswith(f"{error.name}.")):
            raise ConfigError(f"model._target_={target}: there is no module {error.name!r} here") from error
        raise ModelError(f"model._target_={target} needs the package {error.name!r}: pip install it") from error
    except AttributeError as error:
        raise ConfigError(f"model._target_={target}: module {module_name} has no class {class_name!r}") from error
    parameters = inspect.signature(cls).parameters
    if not any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values()):
        for key in arguments:
            if key not in parameters:
                known = ", ".join(sorted(parameters)) or "none"
                raise ConfigError(f"{class_name} takes no model.{key}; it takes: {known}")
    missing = [
        name for name, p in parameters.items()
        if p.default is p.empty and p.kind in (p.KEYWORD_ONLY, p.POSITIONAL_OR_KEYWORD) and name not in arguments
    ]  # fmt: skip
    if missing:
        raise ConfigError(f"{class_name} needs {', '.join(f'model.{name}=' for name in missing)}")
    return cast("Model", cls(**arguments))


def dataset_of(task: Task, data: DataConfig, *, images_needed: bool) -> Dataset:
    """Return the dataset of a task as `data=` says; the picture world is drawn on first use."""
    root = Path(data.root) if data.root else None
    demo = data.kind == "demo"
    if demo:
        from evalkit.demo.world import ensure_world

        if root is not None or data.slots:
            raise ConfigError("data=demo brings its own files; with data.root= or a single file give data=files")
        root = ensure_world()
    pixels = {} if data.max_pixels is None else {"max_pixels": data.max_pixels}
    return load_dataset(
        task,
        kind="hub" if data.kind == "hub" else "files",
        root=root,
        given={name: Path(path) for name, path in data.slots.items()},
        check=data.check,
        images_needed=images_needed,
        demo=demo,
        **pixels,
    )


def limited(dataset: Dataset, limit: int | None) -> Dataset:
    """Return the first `limit` samples in plan order, with the candidate texts of their images, stamped.

    They stay in the order of the file: a mean and CIDEr's word frequencies are summed up as the official scripts do.
    """
    if limit is None or limit >= len(dataset.samples):
        return dataset
    first = {sample.id for sample in plan.in_order(dataset.samples)[:limit]}
    samples = tuple(sample for sample in dataset.samples if sample.id in first)
    images = {sample.id for sample in samples}
    texts = tuple(text for text in dataset.texts if images.intersection(text.image_ids))
    stamps = (*dataset.stamps, "limited")
    return dataclasses.replace(
        dataset, samples=samples, texts=texts, stamps=stamps, fingerprint=fingerprint(samples, texts)
    )


def metric_settings(config: MetricsConfig) -> MetricSettings:
    """Return what the metrics may use."""
    return MetricSettings(
        java=config.java,
        corenlp=config.corenlp,
        cache=Path(config.cache) if config.cache else user_cache() / "spice",
        names=config.names,
        threads=config.threads,
    )


def assignment(spec: str, config: RunConfig, model: Model, folder: Path) -> Assignment:
    """Return a task with its data and prompts; every process of a run makes the same one.

    Raises:
        EvalkitError: an unknown name, a setting the model cannot honour, files that are missing or broken.
    """
    task = resolve(spec, config, model)
    refusal = model.refuses(task)
    if refusal:
        raise UnsupportedError(f"model {config.model.get('name')} cannot do {task.name}: {refusal}")
    if reason := preflight(task.extract):
        raise UnsupportedError(f"{task.name} with extract={task.extract}: {reason}")
    dataset = limited(dataset_of(task, config.data, images_needed=False), config.limit)
    if task.decoding.rank_candidates and not dataset.candidates:
        raise ConfigError(
            f"{task.name} has no candidates to rank: give the answer list (data.answers=FILE), or set "
            "decoding.rank_candidates=0 to let the model write its answers"
        )
    prompts: dict[str, str] = {}
    if task.kind == "retrieve":
        texts = (dataclasses.replace(text, text=clean(text.text, task.question_filter)) for text in dataset.texts)
        dataset = dataclasses.replace(dataset, texts=tuple(texts))
    else:
        prompts = {sample.id: fill(task, sample) for sample in dataset.samples}
    return Assignment(
        task=task, dataset=dataset, prompts=prompts, label=label_of(task, spec), folder=folder, engine=config.engine
    )


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


def resolve(spec: str, config: RunConfig, model: Model | None = None) -> Task:
    """Return the task with every setting in force: task < model < protocol < command line."""
    task = registry.resolve_task(spec)
    box = getattr(model, "box_extract", None)
    if task.kind == "ground" and box:
        task = dataclasses.replace(task, extract=box)
    asked = {
        "prompt": config.prompt,
        "prompt_style": config.prompt_style if config.style_asked else None,
        "question_filter": config.question_filter,
        "extract": config.extract,
        "metric_variant": config.metric_variant,
        "image_size": config.image_size,
        "k": config.k,
        "decoding": dict(config.decoding) or None,
    }
    return registry.apply(
        task,
        prompt_style_of_model=None if config.style_asked else config.prompt_style,
        protocol=config.protocol,
        overrides={key: value for key, value in asked.items() if value is not None},
    )


def label_of(task: Task, spec: str) -> str:
    """Return the task's name as a folder: `vqav2` for a family's default variant, else `vqav2-test-dev`."""
    default = registry.resolve_task(spec.partition(":")[0] if ".py" in spec else task.family)
    return task.family if default.name == task.name else task.name.replace("/", "-")


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


def _score(ready: Assignment, config: RunConfig, told: set[str]) -> None:
    predictions = log.read_log(ready.predictions).predictions
    result = score.score(
        ready.task,
        ready.dataset,
        predictions,
        metric_settings(config.metrics),
        allow_partial=config.allow_partial,
        max_failed=config.max_failed,
    )
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


def limit_threads(threads: int) -> None:
    """Fix the number of CPU threads: the same row through one Linear differs in its last bits with another number."""
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):
        os.environ[name] = str(threads)
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    torch = sys.modules.get("torch")
    if torch is not None:
        torch.set_num_threads(threads)


def _say(message: str) -> None:
    print(message, file=sys.stderr)
