"""python -m pytest tests/test_malformed.py: a damaged official file is read or refused, never a traceback."""

from __future__ import annotations

import contextlib
import copy
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from evalkit.data import check_samples, fingerprint
from evalkit.errors import DataError
from evalkit.images import FolderImages
from evalkit.registry import resolve_task
from tests.official import GQA, coco_captions, instances, karpathy, nocaps, refs, vqa_pair

QUESTIONS, ANNOTATIONS = vqa_pair()
FILES: Mapping[str, Mapping[str, Any]] = {
    "vqav2": {"questions": QUESTIONS, "annotations": ANNOTATIONS, "answers": ["yes", "no"]},
    "okvqa": {"questions": QUESTIONS, "annotations": ANNOTATIONS},
    "vqav2/test-dev": {"questions": QUESTIONS, "test_questions": QUESTIONS},
    "gqa": {"questions": GQA, "choices": {key: {"valid": ["no"], "plausible": ["no"]} for key in GQA}},
    "textvqa": {
        "annotations": {
            "data": [{"question_id": 1, "image_id": "ab", "question": "?", "answers": ["a"] * 10}, {"question_id": 2}]
        }
    },
    "textvqa/test": {"annotations": {"data": [{"question_id": 1, "image_id": "ab", "question": "?"}]}},
    "nocaps": {"annotations": nocaps()},
    "nocaps/test": {"annotations": {"images": nocaps()["images"]}},
    "coco_caption": {"annotations": coco_captions(), "karpathy": karpathy()},
    "coco_caption/val": {"karpathy": karpathy()},
    "refcoco": {"refs": refs(), "instances": instances()},
    "retrieval": {"karpathy": karpathy()},
    "retrieval/flickr30k": {"karpathy": karpathy("flickr30k")},
}
ODD = [None, True, 0, -1, 1.5, float("nan"), "", "x", "../x", [], [1], ["x"], {}, {"x": 1}, [[]], [None], [{}]]


class Held:
    """A source whose files are in memory."""

    kind = "files"

    def __init__(self, files: Mapping[str, Any]) -> None:
        self._files = files

    def has(self, slot: str) -> bool:
        return slot in self._files

    def read(self, slot: str) -> Any:
        return self._files[slot]

    def path(self, slot: str) -> Path:
        return Path(f"{slot}.json")

    def images(self) -> FolderImages:
        return FolderImages(None)


def _damage(value: Any, data: st.DataObject) -> Any:
    """Replace or drop one node somewhere in a JSON value."""
    if isinstance(value, dict | list) and value and data.draw(st.integers(0, 5)):
        keys = list(value) if isinstance(value, dict) else list(range(len(value)))
        key = data.draw(st.sampled_from(keys))
        if data.draw(st.integers(0, 7)) == 0:
            del value[key]
        else:
            value[key] = _damage(value[key], data)
        return value
    return copy.deepcopy(data.draw(st.sampled_from(ODD)))


@pytest.mark.parametrize("name", FILES)
@given(data=st.data())
@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_a_damaged_file_is_read_or_refused(name: str, data: st.DataObject) -> None:
    files = copy.deepcopy(dict(FILES[name]))
    slot = data.draw(st.sampled_from(sorted(files)))
    for _ in range(data.draw(st.integers(1, 2))):
        files[slot] = _damage(files[slot], data)
    task = resolve_task(name)
    with contextlib.suppress(DataError):
        dataset = task.load(Held(files))  # type: ignore[arg-type]
        check_samples(dataset.samples, task.name)
        fingerprint(dataset.samples, dataset.texts)
        for sample in dataset.samples:
            json.dumps(sample.reference)
            assert isinstance(sample.id, str)
            assert all(isinstance(image_id, str) for image_id in sample.image_ids)


def test_undamaged_files_are_read() -> None:
    for name, files in FILES.items():
        if name != "textvqa":  # its second record is already damaged
            assert resolve_task(name).load(Held(files)).samples  # type: ignore[arg-type]
