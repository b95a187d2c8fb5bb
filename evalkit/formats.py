"""The official file formats that several benchmarks share: VQA's pair of files, COCO captions, Karpathy's splits.

Only the fields a metric or a prompt needs are required; a file that lacks one is named with the record's number.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

from evalkit.errors import DataError
from evalkit.images import image_key
from evalkit.types import Json, Sample, Source, Text

_T = TypeVar("_T")


def records(source: Source, slot: str, key: str | None = None) -> list[Mapping[str, Any]]:
    """Return the list of records in a file: the file itself, or what stands under `key`.

    Raises:
        DataError: The file has another shape; the message says what it has.
    """
    found = source.read(slot)
    name = f"{source.path(slot)} (data.{slot})"
    if key is not None:
        if not isinstance(found, Mapping) or key not in found:
            raise DataError(f"{name} is not the file it should be: no {key!r} at its top level, {_shape(found)}")
        found = found[key]
        name = f"{name}, {key!r}"
    if not isinstance(found, list):
        raise DataError(f"{name} should be a list of records, but is {_shape(found)}")
    for number, record in enumerate(found):
        if not isinstance(record, dict):
            raise DataError(f"{name}: record {number} should be an object, but is {_shape(record)}")
    return found


def need(record: Any, key: str, where: str, kind: type[_T]) -> _T:
    """Return a field of a record that cannot be done without.

    Raises:
        DataError: The record is no object, or the field is absent, null or of another kind.
    """
    if not isinstance(record, dict):
        raise DataError(f"{where} should be an object with {key!r}, but is {_shape(record)}")
    if record.get(key) is None:
        raise DataError(f"{where} has no {key!r}; it has {', '.join(map(str, record)) or 'no fields'}")
    return _of_kind(record[key], key, where, kind)


def maybe(record: Mapping[str, Any], key: str, where: str, kind: type[_T]) -> _T | None:
    """Return a field of a record that may be absent or null."""
    return None if record.get(key) is None else _of_kind(record[key], key, where, kind)


def need_id(record: Any, key: str, where: str) -> str:
    """Return an id as text; files have them as numbers or texts."""
    value = need(record, key, where, object)
    if isinstance(value, bool) or not isinstance(value, int | str):
        raise DataError(f"{where}: {key!r} should be a whole number or a text, but is {value!r}")
    return str(value)


def _of_kind(value: Any, key: str, where: str, kind: type[_T]) -> _T:
    if not isinstance(value, kind) or (isinstance(value, bool) and kind is int):
        raise DataError(f"{where}: {key!r} should be {_KINDS.get(kind, kind.__name__)}, but is {_shape(value)}")
    return value


_KINDS: Mapping[type, str] = {str: "a text", int: "a whole number", list: "a list", dict: "an object"}


def _shape(value: Json) -> str:
    if isinstance(value, Mapping):
        keys = ", ".join(map(repr, list(value)[:5]))
        return f"an object with {keys}{' ...' if len(value) > 5 else ''}" if value else "an empty object"
    return f"a list of {len(value)}" if isinstance(value, list) else type(value).__name__


def human_answers(values: Json, where: str) -> list[dict[str, Json]]:
    """Return people's answers as the VQA metric reads them.

    Plain texts are numbered by position; records without `answer_id` stay so, and the metric treats them as the
    official script does (it then cannot tell two people apart who agree).

    Args:
        values: Texts, or objects with "answer" (and "answer_id"), or such objects column by column.
        where: The record, for a message.

    >>> human_answers(["yes", "no"], "question 1")
    [{'answer': 'yes', 'answer_id': 1}, {'answer': 'no', 'answer_id': 2}]
    """
    if isinstance(values, Mapping):
        columns = [name for name in ("answer", "answer_id") if name in values]
        values = [dict(zip(columns, row, strict=True)) for row in zip(*(values[name] for name in columns), strict=True)]
    if not isinstance(values, Sequence) or isinstance(values, str):
        raise DataError(f"{where}: its answers should be a list, but are {_shape(values)}")
    answers: list[dict[str, Json]] = []
    for number, value in enumerate(values, 1):
        text, key = (value, number) if isinstance(value, str) else (None, None)
        if isinstance(value, dict):
            text, key = value.get("answer"), value.get("answer_id")
        if not isinstance(text, str):
            raise DataError(f"{where}: answer {number} should have a text 'answer', but is {_shape(value)}")
        answers.append({"answer": text} if key is None else {"answer": text, "answer_id": key})
    return answers


def vqa_sample(record: Mapping[str, Any], annotation: Mapping[str, Any] | None, where: str) -> Sample:
    """Return the sample of a question; with an annotation, on an open split, also what people answered."""
    answers = None if annotation is None else human_answers(need(annotation, "answers", where, object), where)
    if answers is not None and not answers:
        raise DataError(f"{where} has an empty list of answers, but this split has people's answers")
    tags = {tag: str(annotation[tag]) for tag in ("answer_type", "question_type") if annotation and annotation.get(tag)}
    return Sample(
        id=need_id(record, "question_id", where),
        image_ids=(image_key(need_id(record, "image_id", where)),),
        fields={"question": need(record, "question", where, str)},
        reference=None if answers is None else {"answers": answers},
        tags=tags,
    )


def vqa_samples(source: Source, *, annotated: bool) -> tuple[Sample, ...]:
    """Join the VQA pair `questions` and `annotations` by question id; a blind split has questions only.

    Raises:
        DataError: A question without annotation, an annotation without question, or a pair that is not one.
    """
    questions = records(source, "questions", "questions")
    where = f"{source.path('questions').name}: question"
    if not annotated:
        return tuple(vqa_sample(record, None, f"{where} {number}") for number, record in enumerate(questions))
    name = source.path("annotations").name
    annotations: dict[str, Mapping[str, Any]] = {}
    for number, record in enumerate(records(source, "annotations", "annotations")):
        place = f"{name}: annotation {number}"
        key = need_id(record, "question_id", place)
        if key in annotations:
            raise DataError(f"{place} repeats question id {key!r}; ids must be unique")
        annotations[key] = record
    ids = [need_id(record, "question_id", f"{where} {number}") for number, record in enumerate(questions)]
    _paired(ids, annotations, "question", "annotation", source)
    samples = []
    for identity, record in zip(ids, questions, strict=True):
        annotation = annotations[identity]
        sample = vqa_sample(record, annotation, f"{where} {identity}")
        other = annotation.get("image_id")
        if other is not None and image_key(need_id(annotation, "image_id", name)) != sample.image_ids[0]:
            raise DataError(
                f"question {identity} is about image {sample.image_ids[0]} in {source.path('questions').name}, but "
                f"about {other} in {name}: the two files are not of one split"
            )
        samples.append(sample)
    return tuple(samples)


def _paired(ids: Sequence[str], others: Mapping[str, Any], one: str, other: str, source: Source) -> None:
    files = f"{source.path('questions').name} and {source.path('annotations').name}"
    have = set(ids)
    for lonely, kind, missing in (
        ([key for key in ids if key not in others], one, other),
        ([key for key in others if key not in have], other, one),
    ):
        if lonely:
            some = ", ".join(lonely[:3]) + (" ..." if len(lonely) > 3 else "")
            raise DataError(
                f"{len(lonely):,} of {len(have | set(others)):,} ids are among the {kind}s but not the {missing}s: "
                f"{some}; {files} must be of one split"
            )


def answer_list(source: Source) -> tuple[str, ...]:
    """Return the answers a model ranks instead of generating (LAVIS's answer_list.json), if the file is there."""
    if source.kind == "hub" or not source.has("answers"):
        return ()
    answers = source.read("answers")
    if not isinstance(answers, list) or not all(isinstance(answer, str) for answer in answers) or not answers:
        raise DataError(f"{source.path('answers')} (data.answers) should be a list of texts, but is {_shape(answers)}")
    return tuple(dict.fromkeys(answers))


@dataclass(frozen=True, kw_only=True, slots=True)
class CaptionedImage:
    """An image and what people wrote about it."""

    id: str
    """The dataset's own id."""
    image_id: str
    """The id its pixels are found by."""
    captions: tuple[tuple[str, str], ...] = ()
    """(caption id, text), in file order; none on a blind split."""
    tags: Mapping[str, str] = field(default_factory=dict)

    def sample(self) -> Sample:
        """Return the captioning sample: references are the captions."""
        texts = [text for _, text in self.captions]
        return Sample(
            id=self.id, image_ids=(self.image_id,), reference={"captions": texts} if texts else None, tags=self.tags
        )


def coco_captions(source: Source, slot: str, *, annotated: bool, tags: Sequence[str] = ()) -> list[CaptionedImage]:
    """Read a caption file in COCO's format, in the order of its images.

    Args:
        source: Where from.
        slot: Which file.
        annotated: Whether every image must have a caption; a blind split has none.
        tags: Fields of an image that become tags ("domain").

    Raises:
        DataError: An image without captions, or a caption of an image that the file does not list.
    """
    name = source.path(slot).name
    found = source.read(slot)
    has_images = isinstance(found, Mapping) and "images" in found
    images: dict[str, Mapping[str, Any]] = {}
    if has_images:
        for number, image in enumerate(records(source, slot, "images")):
            key = need_id(image, "id", f"{name}: image {number}")
            if key in images:
                raise DataError(f"{name}: image {number} repeats id {key!r}; ids must be unique")
            images[key] = image
    captions: dict[str, list[tuple[str, str]]] = {key: [] for key in images}
    if annotated:
        for number, record in enumerate(records(source, slot, "annotations")):
            place = f"{name}: annotation {number}"
            key = need_id(record, "image_id", place)
            if key not in captions:
                if has_images:
                    raise DataError(f"{place} captions image {key!r}, which the file does not list")
                captions[key] = []  # LAVIS writes its references without a list of images
            captions[key].append((str(record.get("id", number)), need(record, "caption", place, str)))
        bare = [key for key, texts in captions.items() if not texts]
        if bare:
            some = ", ".join(bare[:3]) + (" ..." if len(bare) > 3 else "")
            raise DataError(f"{name}: {len(bare):,} of {len(captions):,} images have no caption: {some}")
    return [
        CaptionedImage(
            id=key,
            image_id=_pixels(maybe(images.get(key, {}), "file_name", f"{name}: image {key}", str), key),
            captions=tuple(texts),
            tags={tag: str(images[key][tag]) for tag in tags if images.get(key, {}).get(tag)},
        )
        for key, texts in captions.items()
    ]


def _pixels(file_name: str | None, identity: str) -> str:
    """Return the id for the image store: the plain id where the file name only spells it out."""
    return identity if file_name is None or image_key(file_name) == identity else file_name


def karpathy_file(source: Source) -> list[Mapping[str, Any]]:
    """Return the image records of the slot `karpathy`: Karpathy's own file, or LAVIS's list of {"image", "caption"}."""
    if isinstance(source.read("karpathy"), list):
        return [{"filename": row.get("image"), "sentences": row.get("caption")} for row in records(source, "karpathy")]
    return records(source, "karpathy", "images")


def karpathy(rows: Sequence[Mapping[str, Any]], splits: Sequence[str], name: str) -> list[CaptionedImage]:
    """Read the images of a split from Karpathy's `dataset_*.json` records, or from hub rows with the same columns.

    Args:
        rows: Records with "filename" (or "cocoid"), "sentids" and "sentences" (texts, or objects with "raw" and
            "sentid"; hub tables also call them "caption"); "split" where the file holds several.
        splits: The names of the split wanted ("test").
        name: The file, for messages.
    """
    found = []
    for number, row in enumerate(rows):
        if row.get("split") is not None and row["split"] not in splits:
            continue
        where = f"{name}: image {number}"
        file_name = maybe(row, "filename", where, str)
        if row.get("cocoid") is not None:
            identity = need_id(row, "cocoid", where)
        else:
            identity = image_key(need(row, "filename", where, str))
        sentences = need(row, "sentences" if row.get("sentences") is not None else "caption", where, list)
        if not sentences:
            raise DataError(f"{where} ({identity}) has no sentences")
        ids = maybe(row, "sentids", where, list) or []
        captions = []
        for position, sentence in enumerate(sentences):
            own = ids[position] if position < len(ids) else f"{identity}#{position}"
            if isinstance(sentence, str):
                captions.append((str(own), sentence))
            else:
                text = need(sentence, "raw", f"{where}, sentence {position}", str)
                captions.append((str(sentence.get("sentid", own)), text))
        found.append(CaptionedImage(id=identity, image_id=_pixels(file_name, identity), captions=tuple(captions)))
    return found


def texts_of(images: Sequence[CaptionedImage]) -> tuple[Text, ...]:
    """Return all captions as retrieval candidates, in file order."""
    return tuple(
        Text(id=identity, text=text, image_ids=(image.id,)) for image in images for identity, text in image.captions
    )


def best_answer(sample: Sample, *, accuracy: Callable[[str, list[dict[str, Json]]], float]) -> str:
    """Return the human answer that scores best; with ten opinions, full marks are not always to be had.

    Args:
        sample: Its reference holds the answers.
        accuracy: What scores a text against them, between 0 and 1.
    """
    answers = sample.reference["answers"]
    best, best_score = "", -1.0
    for text, _ in Counter(answer["answer"] for answer in answers).most_common():
        score = accuracy(text, answers)
        if score > best_score:
            best, best_score = text, score
        if score >= 1:
            break
    return str(best)


def typical_caption(sample: Sample) -> str:
    """Return the caption of an image that shares most words with its other captions; the first of equals."""
    captions = sample.reference["captions"]
    words = [_words(caption) for caption in captions]

    def agreement(number: int) -> float:
        return sum(
            2.0 * (words[number] & other).total() / ((words[number] + other).total() or 1)
            for place, other in enumerate(words)
            if place != number
        )

    return str(captions[max(range(len(captions)), key=agreement)])


def typical_of_all(samples: Sequence[Sample]) -> str:
    """Return the caption that shares most words with the captions of all images: what says least about any one.

    The expected number of words a caption shares with a random other one is the sum of its words' document
    frequencies; an F1 against the mean length keeps long captions from winning.
    """
    captions = [caption for sample in samples if sample.reference for caption in sample.reference["captions"]]
    frequency: Counter[str] = Counter()
    length = 0
    for caption in captions:
        words = _words(caption)
        frequency.update(words.keys())
        length += words.total()
    mean = length / len(captions)

    def typical(caption: str) -> float:
        words = _words(caption)
        return sum(frequency[word] for word in words) / (words.total() + mean)

    return str(max(dict.fromkeys(captions), key=typical))


def _words(caption: str) -> Counter[str]:
    return Counter(re.findall(r"\w+", caption.lower()))
