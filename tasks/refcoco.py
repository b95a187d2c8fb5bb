"""RefCOCO, RefCOCO+ and RefCOCOg: find the object that an expression refers to.

Yu et al., "Modeling Context in Referring Expressions" (ECCV 2016), and Mao et al. (CVPR 2016); RefCOCO and RefCOCO+
with the UNC splits (testA: people, testB: other objects), RefCOCOg with the UMD splits. One sample is one expression.
Metric: the share of boxes with IoU of at least 0.5. Official boxes are [x, y, width, height]; here they become (x1,
y1, x2, y2), in pixels of the original image; the default extraction reads fractions of the image, as Shikra writes
them; a model that grounds declares its own. On the hub, val of lmms-lab/RefCOCO and RefCOCOg has other splits mixed in
(8,811 and 7,573 objects, not 3,811 and 2,573): its count is refused, use the official files.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from evalkit.data import IMAGES
from evalkit.errors import DataError
from evalkit.formats import need, need_id, records
from evalkit.images import FolderImages, RowImages, image_key
from evalkit.metrics.grounding import grounding_metric
from evalkit.types import Dataset, Decoding, Expected, Hub, ResultFormat, Sample, Slot, Source, Task


def load(source: Source, split: str) -> Dataset:
    """Read the expressions of a split and the boxes they refer to."""
    samples = _hub_samples(source) if source.kind == "hub" else _samples(source, split)
    return Dataset(samples=tuple(samples), images=source.images())


def _samples(source: Source, split: str) -> list[Sample]:
    instances = source.path("instances").name
    images = _by_id(source, "images")
    boxes = _by_id(source, "annotations")
    refs = source.path("refs").name
    samples = []
    for number, ref in enumerate(records(source, "refs")):
        where = f"{refs}: reference {ref.get('ref_id', number)}"
        if need(ref, "split", where, str) != split:
            continue
        box = boxes.get(need_id(ref, "ann_id", where))
        image = images.get(need_id(ref, "image_id", where))
        if box is None or image is None:
            lost = f"annotation {ref['ann_id']}" if box is None else f"image {ref['image_id']}"
            raise DataError(f"{where} names {lost}, which {instances} does not have: they belong to different sets")
        of_box, of_image = f"{instances}: annotation {box['id']}", f"{instances}: image {image['id']}"
        xyxy = _corners(need(box, "bbox", of_box, list), of_box)
        image_id = image_key(need_id(image, "id", of_image))
        size = need(image, "width", of_image, int), need(image, "height", of_image, int)
        samples += [
            _sample(need_id(each, "sent_id", where), image_id, need(each, "sent", where, str), xyxy, size=size)
            for each in need(ref, "sentences", where, list)
        ]
    return samples


def _by_id(source: Source, key: str) -> dict[str, Mapping[str, Any]]:
    where = f"{source.path('instances').name}: {key}"
    return {need_id(record, "id", where): record for record in records(source, "instances", key)}


def _hub_samples(source: Source) -> list[Sample]:
    """One row is one object with all its expressions; its size stands in the header of its image only."""
    images = source.images()
    assert isinstance(images, FolderImages | RowImages)
    samples = []
    for number, row in enumerate(source.rows()):
        where = f"row {number}"
        image_id = image_key(need(row, "file_name", where, str))
        xyxy = _corners(need(row, "bbox", where, list), where)
        size = images.size(image_id)
        for place, expression in enumerate(need(row, "answer", where, list)):
            key = f"{need_id(row, 'question_id', where)}.{place}"
            samples.append(_sample(key, image_id, str(expression), xyxy, size=size))
    return samples


def _corners(xywh: list[Any], where: str) -> list[float]:
    numbers = [float(side) for side in xywh if isinstance(side, int | float) and math.isfinite(side)]
    if len(numbers) != 4 or len(xywh) != 4:
        raise DataError(f"{where}: 'bbox' should be [x, y, width, height], but is {xywh}")
    x, y, width, height = numbers
    return [x, y, x + width, y + height]


def _sample(key: str, image_id: str, expression: str, xyxy: list[float], *, size: tuple[int, int]) -> Sample:
    return Sample(
        id=key,
        image_ids=(image_id,),
        fields={"expression": expression, "width": size[0], "height": size[1]},
        reference={"box": xyxy},
    )


def perfect(sample: Sample) -> str:
    """Return the right box as the default extraction reads it: fractions of the image."""
    return _fractions([_normalised(sample)])


def majority(samples: Sequence[Sample]) -> str:
    """Return the mean box of all, in fractions of the image: the best guess without looking."""
    return _fractions([_normalised(sample) for sample in samples])


def _normalised(sample: Sample) -> tuple[float, ...]:
    width, height = float(sample.fields["width"]), float(sample.fields["height"])
    x1, y1, x2, y2 = sample.reference["box"]
    return x1 / width, y1 / height, x2 / width, y2 / height


def _fractions(boxes: Sequence[tuple[float, ...]]) -> str:
    corners = (sum(side) / len(boxes) for side in zip(*boxes, strict=True))
    return f"[{', '.join(f'{corner:.12f}' for corner in corners)}]"


@dataclass(frozen=True, kw_only=True)
class _Split:
    variant: str
    folder: str
    refs: str
    split: str
    hub: str
    expressions: int
    images: int


_SPLITS = (
    _Split(variant="val", folder="refcoco", refs="unc", split="val", hub="RefCOCO", expressions=10_834, images=1_500),
    _Split(variant="testA", folder="refcoco", refs="unc", split="testA", hub="RefCOCO", expressions=5_657, images=750),
    _Split(variant="testB", folder="refcoco", refs="unc", split="testB", hub="RefCOCO", expressions=5_095, images=750),
    _Split(
        variant="plus-val",
        folder="refcoco+",
        refs="unc",
        split="val",
        hub="RefCOCOplus",
        expressions=10_758,
        images=1_500,
    ),
    _Split(
        variant="plus-testA",
        folder="refcoco+",
        refs="unc",
        split="testA",
        hub="RefCOCOplus",
        expressions=5_726,
        images=750,
    ),
    _Split(
        variant="plus-testB",
        folder="refcoco+",
        refs="unc",
        split="testB",
        hub="RefCOCOplus",
        expressions=4_889,
        images=750,
    ),
    _Split(
        variant="g-val", folder="refcocog", refs="umd", split="val", hub="RefCOCOg", expressions=4_896, images=1_300
    ),
    _Split(
        variant="g-test", folder="refcocog", refs="umd", split="test", hub="RefCOCOg", expressions=9_602, images=2_600
    ),
)

_REVISIONS = {
    "RefCOCO": "a5dff0b3194715fda69b2d6a0d2aaafb41eaa407",
    "RefCOCOplus": "6ff10a221309bc4791d1ff7d57f8bbcb509b9e9d",
    "RefCOCOg": "93af55545967808285637a67431e4971a6f9fd49",
}
_NAMES = {"refcoco": "RefCOCO", "refcoco+": "RefCOCO+", "refcocog": "RefCOCOg"}

TASKS = tuple(
    Task(
        name=f"refcoco/{each.variant}",
        kind="ground",
        summary=f"{_NAMES[each.folder]} {each.split} ({each.refs.upper()}): find the object an expression refers to",
        load=functools.partial(load, split=each.split),
        metrics=(grounding_metric("continuous"),),
        primary="Acc@0.5",
        variant="continuous",
        by_variant=grounding_metric,
        prompts={
            "completion": "<ref>{expression}</ref><box>",
            "bare": "<ref>{expression}</ref><box>",
            "short-answer": "Question: where is {expression}? Short answer:",
            "question": "{expression}",
            "chat": "Please provide the bounding box coordinate of the region this sentence describes: {expression}",
        },
        # A chat model may say the expression, or JSON, before its box; Qwen-VL's 28 are in its own file.
        decoding=Decoding(max_new_tokens=128),
        extract="box_0_1",
        slots=(
            Slot(name="refs", default=f"{each.folder}/refs({each.refs}).p", summary="official pickle of expressions"),
            Slot(name="instances", default=f"{each.folder}/instances.json", summary="official boxes, in COCO's format"),
            Slot(name=IMAGES, default="train2014", required=False, summary="folder of COCO images"),
        ),
        hub=Hub(
            repo=f"lmms-lab/{each.hub}",
            split=each.split,
            revision=_REVISIONS[each.hub],
            image_id_column="file_name",
        ),
        expected=Expected(
            samples=each.expressions,
            images=each.images,
            source=f"{each.folder}/refs({each.refs}).p as MiniGPT-v2 counts it",
        ),
        results=ResultFormat(id_key="sent_id", answer_key="bbox"),
        perfect=perfect,
        majority=majority,
    )
    for each in _SPLITS
)
