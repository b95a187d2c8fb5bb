"""GQA: compositional questions about photographs, one right answer each.

Hudson and Manning, "GQA" (CVPR 2019), version 1.2, balanced questions. testdev (12,578 questions on 398 images) is
what papers report; val (132,062) has the same form, test (95,336) is scored by a server. Metric: the answer must
equal the reference as it stands, which is lower case without a full stop, so the default extraction does to the
output what LLaVA's conversion script does. `data.choices` adds validity and plausibility.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterable, Mapping
from typing import Any

from evalkit.data import IMAGES
from evalkit.errors import DataError
from evalkit.formats import maybe, need, need_id
from evalkit.images import image_key
from evalkit.metrics.gqa import gqa_metric
from evalkit.prompts import VQA_PROMPTS
from evalkit.types import Dataset, Decoding, Expected, Hub, Json, ResultFormat, Sample, Slot, Source, Task


def load(source: Source, *, annotated: bool) -> Dataset:
    """Read the questions, and what people could have answered where `choices` is there."""
    if source.kind == "hub":
        name = "the hub table"
        choices: Mapping[str, Json] = {}
        rows: Iterable[tuple[str, Any]] = ((need_id(row, "id", name), row) for row in source.rows())
    else:
        name = source.path("questions").name
        rows = _table(source, "questions").items()
        choices = _table(source, "choices") if source.has("choices") else {}
    samples = tuple(_sample(key, row, choices.get(key), f"{name}: question {key}", annotated) for key, row in rows)
    return Dataset(samples=samples, images=source.images())


def _table(source: Source, slot: str) -> Mapping[str, Any]:
    found = source.read(slot)
    if not isinstance(found, Mapping):
        raise DataError(f"{source.path(slot)} (data.{slot}) should be an object of records by question id")
    return found


def _sample(key: str, row: Any, choices: Json, where: str, annotated: bool) -> Sample:
    image_id = image_key(need_id(row, "imageId", where))
    question = need(row, "question", where, str)
    found = maybe(row, "types", where, dict) or {}
    types = {name: str(found[name]) for name in ("structural", "semantic", "detailed") if found.get(name)}
    tags: dict[str, str] = {name: types[name] for name in ("structural", "semantic") if name in types}
    reference: dict[str, Json] | None = None
    if annotated:
        groups = maybe(row, "groups", where, dict) or {}
        reference = {
            "answer": need(row, "answer", where, str),
            "types": types,
            "groups": {name: maybe(groups, name, where, str) for name in ("global", "local")},
            "entailed": _ids(row.get("entailed"), where),
            "is_balanced": bool(row.get("isBalanced", True)),
            "choices": _choices(choices, where),
        }
        steps = maybe(row, "semantic", where, list)
        if steps is not None:
            reference["semantic"] = [
                {name: need(step, name, where, str) for name in ("operation", "argument")} for step in steps
            ]
    return Sample(id=key, image_ids=(image_id,), fields={"question": question}, reference=reference, tags=tags)


def _choices(choices: Json, where: str) -> Json:
    if choices is None:
        return None
    return {name: [str(each) for each in need(choices, name, where, list)] for name in ("valid", "plausible")}


def _ids(value: Any, where: str) -> list[str]:
    """Return question ids; the hub table writes a list as text."""
    if isinstance(value, str):
        return re.findall(r"\d+", value)
    if not isinstance(value, list | None):
        raise DataError(f"{where}: 'entailed' should be a list of question ids")
    return [str(each) for each in value or ()]


TASKS = tuple(
    Task(
        name=f"gqa/{split}",
        kind="generate",
        summary=f"GQA {split}, balanced: compositional questions, one right answer ({note})",
        load=functools.partial(load, annotated=split != "test"),
        metrics=(gqa_metric(),),
        primary="accuracy",
        prompts=VQA_PROMPTS,
        decoding=Decoding(max_new_tokens=10),
        extract="first_line+rstrip_period+lower",
        slots=(
            Slot(name="questions", default=f"{split}_balanced_questions.json", summary="official JSON"),
            Slot(
                name="choices", default=f"{split}_choices.json", required=False, summary="valid and plausible answers"
            ),
            Slot(name=IMAGES, default="images", required=False, summary="folder of images"),
        ),
        hub=Hub(
            repo="lmms-lab/GQA",
            config=f"{split}_balanced_instructions",
            split=split,
            revision="388eadb3fad5cc6818bf6e2ac7a64d809c6e59e7",
            image_config=f"{split}_balanced_images",
            image_id_column="id",
        ),
        expected=expected,
        results=ResultFormat(id_key="questionId", answer_key="prediction", integer_ids=False),
        perfect=(lambda sample: str(sample.reference["answer"])) if split != "test" else None,
    )
    for split, note, expected in (
        (
            "testdev",
            "what papers report",
            Expected(
                samples=12_578,
                images=398,
                fingerprint="540eb6aa59cedeafe6d80c8ab9d4f821a616dae92d37c8fb3dfe53bc082a6f65",
                source="testdev_balanced_questions.json",
            ),
        ),
        ("val", "public answers", Expected(samples=132_062, source="card of Mineru/GQA, a copy of the release")),
        ("test", "scored by the server", Expected(samples=95_336, images=2_987, source="card of lmms-lab/GQA")),
    )
)
