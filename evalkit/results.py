"""Result files of the benchmarks: what others predicted is read, what a server wants is written.

The official formats are lists of records, {id_key: id, answer_key: answer} by `Task.results`:

    vqav2, okvqa, textvqa   [{"question_id": 262148000, "answer": "down"}]
    coco_caption, nocaps    [{"image_id": 391895, "caption": "a man on a motorcycle"}]
    gqa                     [{"questionId": "201307251", "prediction": "no"}]
    refcoco                 [{"sent_id": 15, "bbox": [x1, y1, x2, y2]}]         pixels; null where no box was found
    retrieval               [{"image_id": 391895, "pairs": [[text id, itc, itm or null], ...]}]

as one JSON list or one record a line, gzipped or not; LLaVA's answer lines ({"question_id", "text"}) are read too.
What is read goes the way of our own predictions, so the task's extraction applies to it; a box is first written down
in the form that this extraction reads.
"""

from __future__ import annotations

import gzip
import json
import math
import zlib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from evalkit.errors import IncompleteError, ResultsError
from evalkit.extract import extract
from evalkit.images import image_key
from evalkit.manifest import write_atomically
from evalkit.types import Dataset, Json, Prediction, ResultFormat, Sample, Task

_ID_KEYS = ("question_id", "questionId", "image_id", "sent_id", "sample_id")
_ANSWER_KEYS = ("answer", "prediction", "caption", "text", "output", "bbox", "pairs")
_NAMED = 5


def read_predictions(path: Path, task: Task, dataset: Dataset, *, allow_partial: bool = False) -> dict[str, Prediction]:
    """Read a result file and join it to a dataset by id.

    Args:
        path: The file.
        task: Its `results` name the keys.
        dataset: What was asked; every id must be answered, none twice, and none that it does not have.
        allow_partial: Let ids be missing; they are then not scored.

    Returns:
        Predictions by sample id, in the dataset's order.

    Raises:
        ResultsError: The file is not such a list, or its ids or answers are wrong; the records are named.
    """
    records = _read(path)
    if not records:
        raise ResultsError(f"{path} holds no record")
    id_key, answer_key = _keys(records[0], task, path)
    known = {sample.id: sample for sample in dataset.samples}
    texts = {text.id for text in dataset.texts}
    found: dict[str, Prediction] = {}
    unknown: list[str] = []
    twice: list[str] = []
    for number, record in enumerate(records):
        where = f"{path}, record {number}"
        if not isinstance(record, Mapping) or id_key not in record or answer_key not in record:
            have = ", ".join(map(str, record)) if isinstance(record, Mapping) else type(record).__name__
            raise ResultsError(f"{where} should have {id_key!r} and {answer_key!r}, but has {have}")
        identity = _identity(record[id_key], known, where)
        if identity in found:
            twice.append(identity)
        if identity not in known:
            unknown.append(identity)
            continue
        where = f"{where} (id {identity})"
        found[identity] = _prediction(known[identity], record[answer_key], task, texts, where)
    missing = [sample.id for sample in dataset.samples if sample.id not in found]
    problems = [
        f"{len(ids):,} {what}: {', '.join(ids[:_NAMED])}{' ...' if len(ids) > _NAMED else ''}"
        for ids, what in (
            (twice, "ids stand twice"),
            (unknown, f"ids are not in {task.name}"),
            ([] if allow_partial else missing, "ids of the dataset are missing (allow_partial=true scores the others)"),
        )
        if ids
    ]
    if problems:
        raise ResultsError(
            f"{path} does not answer {task.name} ({len(dataset.samples):,} samples): {'; '.join(problems)}"
        )
    return {sample.id: found[sample.id] for sample in dataset.samples if sample.id in found}


def write_submission(task: Task, dataset: Dataset, predictions: Mapping[str, Prediction], path: Path) -> None:
    """Write the file that the benchmark's server takes, whole or not at all.

    The servers of VQAv2, TextVQA and NoCaps refuse a file in which an id of the split is missing or not of the split;
    that of VQAv2 wants all of test also in its test-dev phase, so those ids stand with an empty answer. Answers are
    what the task's extraction makes of the outputs.

    Raises:
        IncompleteError: A sample failed or is missing; nothing is written.
        ResultsError: The task has no result format, the server would refuse the file, or it cannot be written.
    """
    form = task.results
    if form is None or task.kind == "retrieve":
        raise ResultsError(f"{task.name} has no server that takes a file of answers")
    lost = [s.id for s in dataset.samples if s.id not in predictions or predictions[s.id].error is not None]
    if lost:
        some = ", ".join(lost[:_NAMED]) + (" ..." if len(lost) > _NAMED else "")
        raise IncompleteError(
            f"{task.name}: {len(lost):,} of {len(dataset.samples):,} samples have no answer ({some}), so no file for "
            "the server is written: it wants them all. The same command asks them again"
        )
    answers = [
        (sample.id, extract(task.extract, predictions[sample.id].output or "", sample)) for sample in dataset.samples
    ]
    records = [_record(form, identity, answer) for identity, answer in answers]
    records += [_record(form, identity, "") for identity in dataset.unasked]
    if form.records is not None and not dataset.stamps and len(records) != form.records:
        raise ResultsError(
            f"{task.name}: the server wants {form.records:,} records, also empty ones, but only {len(records):,} ids "
            "are known here; put the file of all test questions below data.root, or run the test split"
        )
    write_atomically(path, json.dumps(records, ensure_ascii=False) + "\n")


def _record(form: ResultFormat, identity: str, answer: Json) -> dict[str, Json]:
    if form.integer_ids:
        try:
            return {form.id_key: int(identity), form.answer_key: _whole(answer)}
        except ValueError as error:
            raise ResultsError(f"the server wants whole numbers as {form.id_key}, but here is {identity!r}") from error
    return {form.id_key: identity, form.answer_key: _whole(answer)}


def _whole(answer: Json) -> Json:
    """Return an answer as JSON text can hold it: half a character pair of a cut output becomes U+FFFD."""
    return answer.encode("utf-8", "replace").decode("utf-8") if isinstance(answer, str) else answer


def _read(path: Path) -> Sequence[Any]:
    try:
        data = path.read_bytes()
        if data[:2] == b"\x1f\x8b":
            data = gzip.decompress(data)
        text = data.decode("utf-8-sig")
    except FileNotFoundError as error:
        raise ResultsError(f"predictions={path} does not exist") from error
    except (OSError, EOFError, zlib.error, UnicodeDecodeError) as error:
        raise ResultsError(f"{path} cannot be read: {error}") from error
    if text.lstrip().startswith("["):
        try:
            found = json.loads(text)
        except (json.JSONDecodeError, RecursionError) as error:
            raise ResultsError(f"{path} is not whole: {error}; fetch or write it again") from error
        assert isinstance(found, list)
        return found
    records = []
    for number, line in enumerate(text.split("\n"), 1):  # not splitlines: an answer may hold U+2028
        if not line.strip():
            continue
        try:
            records.append(json.loads(line))
        except (json.JSONDecodeError, RecursionError) as error:
            raise ResultsError(f"{path}, line {number}, is not a record of JSON: {error}") from error
    if len(records) == 1 and isinstance(records[0], Mapping) and not any(key in records[0] for key in _ID_KEYS):
        raise ResultsError(f"{path} is one object, but should be a list of records, or a record a line")
    return records


def _keys(record: Any, task: Task, path: Path) -> tuple[str, str]:
    """Return the keys this file uses: the official ones where they are there, else those of known relatives."""
    form = task.results
    if form is None:
        raise ResultsError(f"{task.name} names no result format; score its run folder instead")
    have = list(record) if isinstance(record, Mapping) else []
    id_key = next((key for key in (form.id_key, *_ID_KEYS) if key in have), None)
    answer_key = next((key for key in (form.answer_key, *_ANSWER_KEYS) if key in have), None)
    if id_key is None or answer_key is None:
        raise ResultsError(
            f"{path} is no result file of {task.name}: its records should have {form.id_key!r} and "
            f"{form.answer_key!r}, but the first has {', '.join(map(repr, have)) or type(record).__name__}"
        )
    return id_key, answer_key


def _identity(value: Any, known: Iterable[str], where: str) -> str:
    if isinstance(value, bool) or not isinstance(value, int | str):
        raise ResultsError(f"{where}: an id should be a whole number or a text, but is {value!r}")
    identity = str(value)
    if identity not in known and image_key(identity) in known:
        return image_key(identity)  # captions by file name: COCO_val2014_000000391895.jpg
    return identity


def _prediction(sample: Sample, answer: Any, task: Task, texts: set[str], where: str) -> Prediction:
    if task.kind == "retrieve":
        return Prediction(sample_id=sample.id, output=None, pairs=_pairs(answer, texts, where))
    if task.kind == "ground":
        return Prediction(sample_id=sample.id, output=_box(answer, task, sample, where))
    if not isinstance(answer, str):
        raise ResultsError(f"{where}: an answer should be a text, but is {answer!r}; leave out what was not answered")
    return Prediction(sample_id=sample.id, output=answer)


_GRIDS = {"box_0_1": 1, "box_999": 999, "box_1000": 1000}
"""How far a corner at the image's edge is on the grid that an extraction reads."""


def _box(answer: Any, task: Task, sample: Sample, where: str) -> str:
    """Return pixels as the text in which the task's extraction finds them again."""
    if answer is None:
        return ""
    if not isinstance(answer, list) or len(answer) != 4 or not all(_is_number(value) for value in answer):
        raise ResultsError(f"{where}: a box should be [x1, y1, x2, y2] in pixels, or null, but is {answer!r}")
    grid = _GRIDS.get(task.extract)
    if grid is None and task.extract != "box_pixels":
        raise ResultsError(f"{where}: boxes of a result file are pixels, which extract={task.extract} does not read")
    if grid is not None:
        width, height = float(sample.fields["width"]), float(sample.fields["height"])
        answer = [value * grid / side for value, side in zip(answer, (width, height) * 2, strict=True)]
    x1, y1, x2, y2 = (f"{value:.17f}" for value in answer)
    return f"({x1},{y1}),({x2},{y2})"


def _pairs(answer: Any, texts: set[str], where: str) -> tuple[tuple[str, float, float | None], ...]:
    if not isinstance(answer, list):
        raise ResultsError(f"{where}: pairs should be a list of [text id, itc, itm or null], but are {answer!r}")
    pairs: dict[str, tuple[str, float, float | None]] = {}
    for pair in answer:
        itm = pair[2] if isinstance(pair, list) and len(pair) == 3 else None
        whole = isinstance(pair, list) and len(pair) in (2, 3) and isinstance(pair[0], int | str)
        if not whole or not _is_number(pair[1]) or not (itm is None or _is_number(itm)):
            raise ResultsError(f"{where}: a pair should be [text id, itc, itm or null], but is {pair!r}")
        key = str(pair[0])
        if key not in texts:
            raise ResultsError(f"{where}: text {key!r} is not among the {len(texts):,} captions of this set")
        if key in pairs:
            raise ResultsError(f"{where}: text {key!r} stands twice among the pairs")
        pairs[key] = (key, float(pair[1]), None if itm is None else float(itm))
    return tuple(pairs.values())


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
