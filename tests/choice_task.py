"""VQAv2's questions with options to choose from, for the tests: `task=tests/choice_task.py`."""

from __future__ import annotations

import dataclasses

from evalkit.registry import resolve_task
from evalkit.types import Dataset, Source

_VQAV2 = resolve_task("vqav2")


def load(source: Source) -> Dataset:
    dataset = _VQAV2.load(source)
    options = ("yes", "no", "2", "red")
    return dataclasses.replace(
        dataset, samples=tuple(dataclasses.replace(sample, options=options) for sample in dataset.samples)
    )


TASKS = (dataclasses.replace(_VQAV2, name="choice/val", kind="choose", load=load, expected=None, results=None),)
