"""The verbs of the command line. All but `check`, which asks the model itself, need no weights and import no torch."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from evalkit import config, log, manifest, pairs, registry, score
from evalkit.assemble import build_model, dataset_of, limit_threads, limited, metric_settings, resolve
from evalkit.config import DataConfig, RunConfig
from evalkit.errors import ConfigError, EvalkitError, ResultsError
from evalkit.paths import bundled
from evalkit.prompts import in_short
from evalkit.types import Dataset, Json, Prediction, Task


def run(verb: str, words: Sequence[str], extra: Path | None) -> int:
    """Run a verb with the words behind it; return the exit code."""
    verbs: dict[str, Callable[[Sequence[str], Path | None], int]] = {
        "list": _list,
        "score": _score,
        "leaderboard": _leaderboard,
        "status": _status,
        "show": _show,
        "check": _check,
    }
    return verbs[verb](words, extra)


def _list(words: Sequence[str], extra: Path | None) -> int:
    """Print what can stand behind task=, model= and suite=, one line each."""
    if words:
        raise ConfigError(f"list takes no options, but was given {' '.join(words)}")
    print("tasks (the first variant of a family is the default)")
    for family in registry.known_tasks():
        try:
            tasks = registry.load_tasks(family)
        except ConfigError as error:  # one broken plug-in must not hide the others
            print(f"  {family:24} cannot be loaded: {error}")
            continue
        for number, task in enumerate(tasks):
            name = f"{family} = {task.name}" if number == 0 else task.name
            print(f"  {name:36} {task.summary}")
    for group in ("model", "suite"):
        print(f"\n{group}s")
        for name in config.options(group, extra):
            print(f"  {name:24} {_first_comment(group, name, extra)}")
    return 0


def _show(words: Sequence[str], extra: Path | None) -> int:
    """Print what a model would be asked: every setting in force for each task, or why the model refuses it.

    Without a model: which one does which task.
    """
    if not words:
        print("\n".join(pairs.table(extra)))
        print(
            f"\n{pairs.OF_MODEL}: settings in the model's file, with their source; {pairs.OF_TASK}: the task's own; "
            "empty: refused. Every setting: show model=NAME task=NAME"
        )
        return 0
    run = config.compose(config.parse(words, extra), extra)
    model = build_model(run.model)
    for spec in run.task:
        task = resolve(spec, run, model)
        print(f"{run.model.get('name')} on {task.name}")
        if refusal := model.refuses(task):
            print(f"  refused: {refusal}")
            continue
        settings = {
            "prompt": repr(in_short(task.template)) if task.kind != "retrieve" else None,
            "question_filter": task.question_filter,
            "decoding": ", ".join(f"{name}={value}" for name, value in dataclasses.asdict(task.decoding).items())
            if task.kind in ("generate", "ground")
            else None,
            "image_size": task.image_size or "the model's own",
            "extract": task.extract if task.kind != "retrieve" else None,
            "metric": task.primary + (f" [{task.variant}]" if task.variant else ""),
            "k": task.k if task.kind == "retrieve" else None,
        }
        for name, value in settings.items():
            if value is not None:
                print(f"  {name:16} {value}")
    return 0


def _check(words: Sequence[str], extra: Path | None) -> int:
    """Run the contract suite on a model; exit code 1 when it breaks a promise."""
    from evalkit.contracts import check_model

    run = config.compose(config.parse(words, extra), extra)
    limit_threads(run.engine.threads)
    findings = check_model(build_model(run.model), distinct=False)
    for finding in findings:
        print(finding)
    return int(any(finding.passed is False for finding in findings))


def _first_comment(group: str, name: str, extra: Path | None) -> str:
    """Return the first line of explanation in a YAML file of `configs/`."""
    folders = [folder / group for folder in (*([extra] if extra else []), bundled("configs"))]
    path = next(path for folder in folders if (path := folder / f"{name}.yaml").is_file())
    comments = (line[1:].strip() for line in path.read_text(encoding="utf-8").splitlines() if line.startswith("#"))
    return next((comment for comment in comments if not comment.startswith("@package")), "")


def _leaderboard(words: Sequence[str], extra: Path | None) -> int:
    from evalkit import leaderboard

    overrides = config.parse(words, extra, needs_model=False)
    wrong = [override.key for override in overrides if override.key != "out"]
    if wrong:
        raise ConfigError(f"leaderboard takes out=DIR, not {', '.join(wrong)}")
    out = Path(next((override.value for override in overrides), RunConfig.out))
    if not out.is_dir():
        raise ResultsError(f"there is no folder of runs at {out}; give the one runs were written to with out=DIR")
    entries = leaderboard.collect(out)
    if not entries:
        raise ResultsError(f"no scored run below {out}; a run is <task>/<model>/<key> with a scores.json in it")
    print(leaderboard.summary(entries))
    print("written: " + ", ".join(str(path) for path in leaderboard.write(out)), file=sys.stderr)
    return 0


def _status(words: Sequence[str], extra: Path | None) -> int:
    """Print how far run folders are; a broken one does not hide the others."""
    from evalkit import status

    if not words or any("=" in word and not Path(word).exists() for word in words):
        raise ConfigError("status takes run folders: status results/runs/vqav2/my-model/*")
    code = 0
    for word in words:
        try:
            for line in status.lines(Path(word)):
                print(line)
        except EvalkitError as error:
            if len(words) == 1:
                raise
            print(f"evalkit: {error}", file=sys.stderr)
            code = max(code, error.exit_code)
    return code


def _score(words: Sequence[str], extra: Path | None) -> int:
    """Score run folders again, or a result file in a benchmark's official format; one line of JSON each."""
    own = {"predictions": "", "format": ""}
    runs: list[Path] = []
    rest: list[str] = []
    for word in words:
        key, equals, value = word.partition("=")
        if equals and key in own:
            own[key] = value
        elif equals and not Path(word).exists():
            rest.append(word)
        else:
            runs.append(Path(word))
    asked = config.compose(config.parse(rest, extra, needs_model=False), extra)
    if bool(runs) == bool(own["predictions"]):
        raise ConfigError(
            "score takes run folders (score results/runs/vqav2/my-model/*), or task=NAME predictions=FILE"
        )
    if own["predictions"]:
        print(score.line(_score_file(Path(own["predictions"]), own["format"], asked)))
        return 0
    code = 0
    for run_folder in runs:
        try:
            result = _score_run(run_folder, asked, given={word.partition("=")[0].partition(".")[0] for word in rest})
        except EvalkitError as error:
            if len(runs) == 1:
                raise
            print(f"evalkit: {run_folder}: {error}", file=sys.stderr)  # the others are still scored
            code = max(code, error.exit_code)
        else:
            print(score.line(result))
    return code


def _score_file(path: Path, form: str, asked: RunConfig) -> dict[str, Json]:
    from evalkit.results import read_predictions

    if form not in ("", "json", "jsonl"):
        raise ConfigError(f"format={form}: the official result formats are read as json or jsonl (also gzipped)")
    if len(asked.task) != 1:
        raise ConfigError("score predictions=FILE needs one task=NAME, to know the benchmark and its format")
    task = resolve(asked.task[0], asked)
    dataset = limited(dataset_of(task, asked.data, images_needed=False), asked.limit)
    predictions = read_predictions(path, task, dataset, allow_partial=asked.allow_partial)
    return _scored(task, dataset, predictions, asked)


def _score_run(folder: Path, asked: RunConfig, given: set[str]) -> dict[str, Json]:
    """Score a run folder again and write its scores.json.

    The run's manifest says which task, files and limit it had; extract, metric_variant, metrics.* and data.* on the
    command line replace what it says.
    """
    facts = manifest.read(folder)
    then, data = facts["task"], facts["data"]
    task = registry.apply(
        registry.resolve_task(facts["spec"]),
        overrides={
            "extract": asked.extract or then["extract"],
            "metric_variant": asked.metric_variant or then["metric_variant"],
            "k": facts["identity"].get("k"),
        },
    )
    if fixed := sorted(given - _SCORING):
        raise ConfigError(
            f"{fixed[0]}= is settled for a run that is stored; to score it again give {'=, '.join(sorted(_SCORING))}="
        )
    where = asked.data if "data" in given else DataConfig(
        kind=data["kind"], root=data["root"], check=data["check"], slots=data["slots"]
    )  # fmt: skip
    dataset = limited(dataset_of(task, where, images_needed=False), facts["limit"])
    if dataset.fingerprint != facts["identity"]["dataset"]:
        raise ResultsError(
            f"{folder} was run on other samples than those that are there now ({len(dataset.samples)} samples, "
            f"then {facts['identity']['samples']}): give data.root= or the files it was run on"
        )
    predictions = log.read_log(folder / "predictions").predictions
    result = _scored(task, dataset, predictions, asked)
    score.write(folder, task, dataset, predictions, result)
    return result


_SCORING = {"extract", "metric_variant", "metrics", "data", "allow_partial", "max_failed"}
"""Keys that mean something when a stored run is scored again; any other would be ignored."""


def _scored(task: Task, dataset: Dataset, predictions: Mapping[str, Prediction], asked: RunConfig) -> dict[str, Json]:
    score.check_names((task,), asked.metrics.names)
    return score.score(
        task,
        dataset,
        predictions,
        metric_settings(asked.metrics),
        allow_partial=asked.allow_partial,
        max_failed=asked.max_failed,
    )
