"""Encoded images as rows: what `encode` of every adapter returns."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Rows(Generic[T]):
    """One value per image. Rows are kept apart, never stacked: images of one unit may differ in size.

    >>> rows = Rows(("cat", "dog"))
    >>> rows.select([1, 1, 0])
    Rows(values=('dog', 'dog', 'cat'))
    """

    values: tuple[T, ...]

    def __len__(self) -> int:
        return len(self.values)

    def __getitem__(self, row: int) -> T:
        return self.values[row]

    def select(self, rows: Sequence[int]) -> Rows[T]:
        """Return these rows, in this order; a row may be named twice."""
        return Rows(tuple(self.values[row] for row in rows))


def own(encoded: object, kind: type[T]) -> Rows[T]:
    """Return `encoded` as rows of `kind`: an adapter is only ever given back what it encoded itself."""
    assert isinstance(encoded, Rows), f"encoded by another adapter: {type(encoded).__name__}"
    assert all(isinstance(value, kind) for value in encoded.values), f"rows are not {kind.__name__}"
    return encoded
