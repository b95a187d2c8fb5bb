"""Scores: join predictions and references by id, extract answers, ask the metrics, add breakdowns and intervals.

Needs no model and no GPU, imports no torch, and can be done again years later. A sample that failed or is missing is
never scored: without `allow_partial` it stops the scoring, with it the denominator is what was answered, and n, missing
and failed stand in the result. What is written has no time, host or path in it: scoring twice gives the same bytes.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from evalkit import manifest
from evalkit.errors import ConfigError, IncompleteError, unknown
from evalkit.extract import extract
from evalkit.metrics.intervals import clustered_mean_interval
from evalkit.results import write_submission
from evalkit.types import Answered, Dataset, Json, MetricSettings, Prediction, Sample, Scores, Task

FORMAT = 1
_NAMED = 5


def score(
    task: Task,
    dataset: Dataset,
    predictions: Mapping[str, Prediction],
    settings: MetricSettings,
    *,
    allow_partial: bool = False,
    max_failed: int = 0,
) -> dict[str, Json]:
    """Return what stands in scores.json.

    Args:
        task: names the extraction, the metrics and the breakdowns.
        dataset: the samples that were asked, with their references.
        predictions: by sample id.
        settings: Java, CoreNLP, which metrics.
        allow_partial: score what was answered, whatever is missing.
        max_failed: so many failed samples are accepted (design: the CI of a flaky server).

    Raises:
        IncompleteError: samples failed or are missing beyond what is allowed.
    """
    missing, failed = check_complete(task, dataset, predictions, allow_partial=allow_partial, max_failed=max_failed)
    answered = [
        Answered(sample=sample, answer=_answer(task, sample, predictions[sample.id]))
        for sample in dataset.samples
        if sample.id in predictions and predictions[sample.id].error is None
    ]
    settings = dataclasses.replace(settings, texts=dataset.texts, k=task.k)
    blind = is_blind(dataset)
    scores = Scores() if blind or not answered else _compute(task, answered, settings)
    result: dict[str, Json] = {
        "format": FORMAT,
        "task": task.family,
        "split": task.name.partition("/")[2],
        "task_version": task.version,
        "n": len(answered),
        "missing": len(missing),
        "failed": len(failed),
        "num_images": len({item.sample.image_ids[0] for item in answered}),
        "primary": task.primary,
        "variant": scores.variant or task.variant,
        "extract": task.extract,
        "stamps": [*dataset.stamps, *(["partial"] if missing or failed else [])],
    }
    result |= {
        "scores": dict(scores.aggregate),
        "intervals": _intervals(task, answered, scores),
        "breakdowns": {} if blind else _breakdowns(task, answered, settings, scores),
        "unavailable": dict(scores.unavailable)
        | ({task.primary: "the references are hidden: give submission.json to the server"} if blind else {}),
        "notes": list(scores.notes),
    }
    return result


def check_complete(
    task: Task, dataset: Dataset, predictions: Mapping[str, Prediction], *, allow_partial: bool, max_failed: int
) -> tuple[list[str], list[str]]:
    """Return the ids of the samples that are missing and of those that failed.

    Raises:
        IncompleteError: they are more than is allowed.
    """
    missing = [sample.id for sample in dataset.samples if sample.id not in predictions]
    failed = [s.id for s in dataset.samples if s.id in predictions and predictions[s.id].error is not None]
    if not allow_partial and (missing or len(failed) > max_failed):
        raise IncompleteError(_incomplete(task, dataset, predictions, missing, failed))
    return missing, failed


def check_names(tasks: Iterable[Task], names: Iterable[str]) -> None:
    """Refuse a name in `metrics.names` that no metric of these tasks gives; a task without any of them is scored whole.

    Raises:
        ConfigError: the name is not known.
    """
    known = {name for task in tasks for metric in task.metrics for name in metric.names}
    for name in names:
        if name not in known:
            raise ConfigError(f"metrics.names: {unknown('metric to choose for these tasks', name, known)}")


def is_blind(dataset: Dataset) -> bool:
    """Whether the references of a split are hidden: its server scores it."""
    return all(sample.reference is None for sample in dataset.samples)


def write(
    run: Path, task: Task, dataset: Dataset, predictions: Mapping[str, Prediction], result: Mapping[str, Json]
) -> None:
    """Write scores.json of a run folder and, for a blind split, submission.json in the form its server takes.

    Raises:
        IncompleteError: the server wants an answer to every sample.
        ResultsError: the folder cannot be written, or the server would refuse the file.
    """
    manifest.write_atomically(run / "scores.json", json.dumps(result, indent=1, sort_keys=True) + "\n")
    if is_blind(dataset) and task.results is not None:
        write_submission(task, dataset, predictions, run / "submission.json")


def line(result: Mapping[str, Json]) -> str:
    """Return the one line of JSON that `score` prints."""
    return json.dumps(result)


def _answer(task: Task, sample: Sample, prediction: Prediction) -> Json:
    if prediction.pairs is not None:
        return prediction.pairs
    answer = extract(task.extract, prediction.output or "", sample)
    if task.kind not in ("generate", "choose") or isinstance(answer, str):
        return answer
    if answer is None:
        return ""  # no letter, no yes or no in what the model said: a wrong answer, not a failed sample
    raise ConfigError(f"extract={task.extract} gives no text, which the metrics of {task.name} compare")


def _compute(task: Task, answered: Sequence[Answered], settings: MetricSettings) -> Scores:
    """Return the scores of all metrics of the task, as one."""
    parts = []
    for metric in task.metrics:
        chosen = tuple(name for name in settings.names if name in metric.names)
        parts.append(metric.compute(answered, dataclasses.replace(settings, names=chosen)))
    return Scores(
        aggregate={name: value for part in parts for name, value in part.aggregate.items()},
        per_sample={name: values for part in parts for name, values in part.per_sample.items()},
        intervals={name: interval for part in parts for name, interval in part.intervals.items()},
        unavailable={name: reason for part in parts for name, reason in part.unavailable.items()},
        details={name: detail for part in parts for name, detail in part.details.items()},
        notes=tuple(dict.fromkeys(note for part in parts for note in part.notes)),
        variant=next((part.variant for part in parts if part.variant), None),
    )


def _intervals(task: Task, answered: Sequence[Answered], scores: Scores) -> dict[str, list[float]]:
    """Return 95% intervals: those the metric gives, and, clustered by image, of every score that is a mean."""
    clusters = [item.sample.image_ids[0] for item in answered]
    intervals = {name: list(interval) for name, interval in scores.intervals.items() if name in scores.aggregate}
    independent = all(metric.independent for metric in task.metrics)
    for name, values in scores.per_sample.items():
        if name not in scores.aggregate or name in intervals:
            continue
        # With few images the formula leaves [0, 1], where every score lies that is no CIDEr.
        clip = independent and all(value is None or 0 <= value <= 1 for value in values)
        interval = clustered_mean_interval(values, clusters, clip=clip)
        if interval is not None:
            intervals[name] = list(interval)
    return intervals


def _breakdowns(task: Task, answered: Sequence[Answered], settings: MetricSettings, scores: Scores) -> dict[str, Json]:
    """Return {tag: {value: {"n": ..., score: ...}}}, and what only the metric itself knows."""
    independent = all(metric.independent for metric in task.metrics)
    tables: dict[str, Any] = dict(scores.details)
    for tag in task.breakdowns:
        groups: dict[str, list[int]] = {}
        for place, item in enumerate(answered):
            if tag in item.sample.tags:
                groups.setdefault(item.sample.tags[tag], []).append(place)
        rows: dict[str, Any] = {}
        for value, places in sorted(groups.items()):
            if independent:
                part = {name: _mean([values[i] for i in places]) for name, values in scores.per_sample.items()}
            else:  # document frequencies belong to the set that is scored: a domain is scored on its own
                part = dict(_compute(task, [answered[i] for i in places], settings).aggregate)
            rows[value] = {"n": len(places)} | {name: number for name, number in part.items() if number is not None}
        if rows:
            tables[tag] = rows
    return tables


def _mean(values: Sequence[float | None]) -> float | None:
    counted = [value for value in values if value is not None]
    return sum(counted) / len(counted) if counted else None


def _incomplete(
    task: Task,
    dataset: Dataset,
    predictions: Mapping[str, Prediction],
    missing: Sequence[str],
    failed: Sequence[str],
) -> str:
    parts = []
    if failed:
        named = "; ".join(f"{sample_id}: {predictions[sample_id].error}" for sample_id in failed[:_NAMED])
        more = f"; and {len(failed) - _NAMED} more" if len(failed) > _NAMED else ""
        parts.append(f"{len(failed)} failed ({named}{more})")
    if missing:
        more = " ..." if len(missing) > _NAMED else ""
        parts.append(f"{len(missing)} are missing ({', '.join(missing[:_NAMED])}{more})")
    return (
        f"{task.name}: of {len(dataset.samples)} samples {' and '.join(parts)}; nothing is scored. The same command "
        "asks them again; max_failed=N accepts so many failed ones, and allow_partial=true scores what was answered"
    )
