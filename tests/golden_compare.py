"""Comparing what evalkit says with what a golden file expects, value by value."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

Doc = dict[str, Any]
Check = Callable[[Doc], Iterator[str]]

EXACT = 1e-9
ROUNDED = 0.005 + 1e-9
"""Half a unit of the second decimal: the official VQA code rounds percentages."""
SINGLE = 1e-5
"""Box overlaps come from single precision."""
CAPTIONS = 1e-6
"""Relative."""

DESCRIBING = frozenset({"metric", "origin", "notes"})
"""Keys of every file that hold neither cases nor expectations."""


@dataclass(frozen=True)
class GoldenFile:
    blocks: Mapping[str, Check]
    """By dotted key; a name after a space means: only what the block says about that metric."""
    inputs: frozenset[str] = frozenset()
    """Other keys: what the blocks are computed from."""
    expectations: frozenset[str] = field(
        default_factory=lambda: frozenset({"expected", "legacy_lavis_qwen", "qwen_vl", "expected_label"})
    )
    """In a block that is a list of cases, the keys of a case that hold what is expected."""
    mutations: int = 12
    """How many kinds of expectation are changed, one at a time, to see that it is noticed."""


def differences(
    where: str, actual: Any, expected: Any, tolerance: float = EXACT, relative: bool = False
) -> Iterator[str]:
    """Compare as deep as `expected` goes; every key it has must be there."""
    if isinstance(expected, Mapping):
        for key, value in expected.items():
            if not isinstance(actual, Mapping) or key not in actual:
                yield f"{where}.{key}: evalkit has no such value, expected {value!r}"
            else:
                yield from differences(f"{where}.{key}", actual[key], value, tolerance, relative)
    elif isinstance(expected, list):
        if not isinstance(actual, list | tuple) or len(actual) != len(expected):
            yield f"{where}: {actual!r}, expected {expected!r}"
        else:
            for i, (one, other) in enumerate(zip(actual, expected, strict=True)):
                yield from differences(f"{where}[{i}]", one, other, tolerance, relative)
    elif isinstance(expected, int | float) and not isinstance(expected, bool):
        allowed = tolerance * abs(expected) + 1e-12 if relative else tolerance
        is_number = isinstance(actual, int | float) and not isinstance(actual, bool)
        if not is_number or not (abs(actual - expected) <= allowed or actual == expected):
            yield f"{where}: {actual!r}, expected {expected!r}"
    elif type(actual) is not type(expected) or actual != expected:
        yield f"{where}: {actual!r}, expected {expected!r}"


def count(key: str, number: Callable[[Doc], int]) -> Check:
    def check(doc: Doc) -> Iterator[str]:
        yield from differences(key, number(doc), doc[key])

    return check
