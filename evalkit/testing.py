"""Contract suites, public for whoever adds a task or a model. Each raises AssertionError with what is wrong.

def test_my_task():
    task = resolve_task("./docvqa.py")
    check_task(task, load_dataset(task, kind="files", root=FIXTURES, images_needed=False))
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Callable, Mapping

from evalkit.contracts import Finding, check_model
from evalkit.errors import EvalkitError
from evalkit.extract import extract, extractor
from evalkit.images import check_name
from evalkit.prompts import fill_template
from evalkit.types import Answered, Dataset, Json, MetricSettings, Sample, Source, Task

__all__ = ["Finding", "check_model", "check_task"]

_WIDE = 25
"""Candidates beside an image's own captions in the perfect answer to a retrieval task."""


def check_task(
    task: Task,
    dataset: Dataset,
    *,
    source: Source | None = None,
    maximum: Mapping[str, float] | None = None,
    floor: float = 0.0,
    settings: MetricSettings | None = None,
) -> None:
    """Check that a task keeps its promises on a dataset of it.

    Ids are unique; every prompt style fills; options are there, the perfect output among them; references, fields and
    tags survive JSON; tags that breakdowns name are there; loading is repeatable and decodes no image; perfect outputs
    score the maximum, empty ones nothing, and the majority's no more than perfect ones.

    Args:
        task: What is checked.
        dataset: What its `load` gave, a small set will do.
        source: Where `load` can be called again; None leaves that part out.
        maximum: What perfect outputs score; None: 1 for the primary metric.
        floor: What empty outputs may score: some people's answers to TextVQA are empty once cleaned.
        settings: For the metrics; `names` keeps slow ones out.

    Raises:
        AssertionError: A promise is broken; the message says which.
    """
    _check_definition(task)
    _check_samples(task, dataset)
    if source is not None:
        _check_load(task, dataset, source)
    if all(sample.reference is None for sample in dataset.samples):
        return  # a blind split: there is nothing to score
    missing = [tag for tag in task.breakdowns if not any(tag in sample.tags for sample in dataset.samples)]
    assert not missing, f"{task.name}: breakdowns name tags that no sample has: {missing}"
    _check_scores(
        task, dataset, {task.primary: 1.0} if maximum is None else maximum, floor, settings or MetricSettings()
    )


def _check_definition(task: Task) -> None:
    assert task.family, f"{task.name!r} is no name for a task"
    assert not task.family.startswith((".", "_")), f"{task.name!r} is no name for a task"
    assert task.summary, f"{task.name} has no summary for `list`"
    assert "\n" not in task.summary, f"the summary of {task.name} has more than one line"
    assert task.metrics, f"{task.name} has no metric"
    names = [slot.name for slot in task.slots]
    assert len(set(names)) == len(names), f"{task.name} has two slots of one name: {names}"
    if task.kind != "retrieve":
        assert task.prompt_style in task.prompts, f"{task.name}: no prompt of its own style {task.prompt_style!r}"
    extractor(task.extract)


def _check_samples(task: Task, dataset: Dataset) -> None:
    assert dataset.samples, f"{task.name} has no samples"
    ids = [sample.id for sample in dataset.samples]
    assert len(set(ids)) == len(ids), f"{task.name}: sample ids are not unique"
    texts = [text.id for text in dataset.texts]
    assert len(set(texts)) == len(texts), f"{task.name}: text ids are not unique"
    for sample in dataset.samples:
        where = f"{task.name}, sample {sample.id!r}"
        assert isinstance(sample.id, str), f"{where}: the id is no text"
        assert sample.image_ids, f"{where} names no image"
        for image_id in sample.image_ids:
            check_name(image_id)
        _check_options(task, sample, where)
        _same_in_json(sample.reference, f"{where}: the reference")
        _same_in_json(dict(sample.fields), f"{where}: the fields")
        assert all(isinstance(value, str) for value in sample.tags.values()), f"{where}: a tag is no text"
        for style, template in task.prompts.items():
            try:
                prompt = fill_template(template, sample, question_filter=task.question_filter)
            except EvalkitError as error:
                raise AssertionError(f"{where}: style {style!r} does not fill: {error}") from error
            left = [
                name for name in sample.fields if f"{{{name}}}" in prompt and f"{{{name}}}" not in str(sample.fields)
            ]
            assert not left, f"{where}: style {style!r} left {left} unfilled"
    own = {sample.id for sample in dataset.samples}
    for text in dataset.texts:
        assert own.intersection(text.image_ids), f"{task.name}: text {text.id!r} belongs to no sample"


def _check_options(task: Task, sample: Sample, where: str) -> None:
    if task.kind != "choose":
        assert not sample.options, f"{where} has options, but the task is to {task.kind}"
        return
    assert sample.options, f"{where} has no options to choose from"
    assert all(isinstance(option, str) and option.strip() for option in sample.options), f"{where}: an option is empty"
    if sample.reference is not None and task.perfect is not None:
        right = task.perfect(sample)
        assert right in sample.options, f"{where}: the perfect output {right!r} is none of the options"


def _same_in_json(value: Json, what: str) -> None:
    try:
        again = json.loads(json.dumps(value, allow_nan=False))
    except (TypeError, ValueError) as error:
        raise AssertionError(f"{what} is no JSON: {error}") from error
    assert again == value, f"{what} changes in JSON: {value!r} becomes {again!r}"


def _check_load(task: Task, dataset: Dataset, source: Source) -> None:
    """Load again while decoding is made impossible."""
    from unittest import mock

    from PIL import Image, ImageFile

    refuse = AssertionError(f"{task.name}: load decodes an image; it should leave that to Dataset.images")
    with (
        mock.patch.object(Image.Image, "load", side_effect=refuse),
        mock.patch.object(ImageFile.ImageFile, "load", side_effect=refuse),
    ):
        again = task.load(source)
    assert again.samples == dataset.samples, f"{task.name}: loading twice gives other samples"
    assert again.texts == dataset.texts, f"{task.name}: loading twice gives other texts"


def _check_scores(
    task: Task, dataset: Dataset, maximum: Mapping[str, float], floor: float, settings: MetricSettings
) -> None:
    perfect = _aggregate(task, dataset, settings, _perfect_answer(task, dataset))
    for name, value in maximum.items():
        assert name in perfect, f"{task.name}: the metric gives no {name!r}, only {sorted(perfect)}"
        assert math.isclose(perfect[name], value, rel_tol=1e-6), (
            f"{task.name}: perfect outputs score {name} {perfect[name]}"
        )
    if task.kind == "retrieve":
        nothing = _aggregate(task, dataset, settings, lambda sample: ())
    else:
        nothing = _aggregate(task, dataset, settings, lambda sample: extract(task.extract, "", sample))
    assert 0 <= nothing[task.primary] <= floor, (
        f"{task.name}: empty outputs score {task.primary} {nothing[task.primary]}"
    )
    if task.majority is not None:
        output = task.majority(dataset.samples)
        guess = _aggregate(task, dataset, settings, lambda sample: extract(task.extract, output, sample))
        worse = guess[task.primary] <= perfect[task.primary] + 1e-12
        assert worse, f"{task.name}: the majority scores {guess[task.primary]}, more than perfect outputs"


def _perfect_answer(task: Task, dataset: Dataset) -> Callable[[Sample], Json]:
    if task.kind == "retrieve":
        others = [text.id for text in dataset.texts[:_WIDE]]

        def pairs(sample: Sample) -> Json:
            own = sample.reference["text_ids"]
            rest = [key for key in others if key not in own]
            return tuple((key, 1.0, None) for key in own) + tuple((key, 0.0, None) for key in rest)

        return pairs
    assert task.perfect is not None, f"{task.name} has references, but does not say what a perfect output is"
    perfect = task.perfect
    return lambda sample: extract(task.extract, perfect(sample), sample)


def _aggregate(
    task: Task, dataset: Dataset, settings: MetricSettings, answer: Callable[[Sample], Json]
) -> Mapping[str, float]:
    answered = [Answered(sample=sample, answer=answer(sample)) for sample in dataset.samples]
    settings = dataclasses.replace(settings, texts=dataset.texts)
    return {
        name: value for metric in task.metrics for name, value in metric.compute(answered, settings).aggregate.items()
    }
