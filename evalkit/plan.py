"""Cut a run into units: group by image, order, cut. Whatever the workers and whatever is already finished.

The plan is made from the samples alone, so every process that makes it gets the same units, with the same batches.
Finished units are subtracted only then: cut first and subtract second, or two workers that read a growing log cut
different shards and lose samples between them.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable, Sequence

from evalkit.types import Sample, Unit


def in_order(samples: Iterable[Sample]) -> list[Sample]:
    """Return the samples in plan order: images with most questions first, then by id; each image's by id.

    >>> samples = [Sample(id=i, image_ids=(i[0],)) for i in ("b1", "a10", "a9", "c1")]
    >>> [sample.id for sample in in_order(samples)]
    ['a9', 'a10', 'b1', 'c1']
    """
    groups: dict[str, list[Sample]] = {}
    for sample in samples:
        groups.setdefault(sample.image_ids[0], []).append(sample)
    ordered = sorted(groups.items(), key=lambda group: (-len(group[1]), _natural(group[0])))
    return [sample for _, group in ordered for sample in sorted(group, key=lambda sample: _natural(sample.id))]


def cut(
    samples: Sequence[Sample], *, image_batch: int, prompt_batch: int, length: Callable[[Sample], int]
) -> list[Unit]:
    """Cut samples in plan order into units of at most `image_batch` images, each with its prompt batches.

    Args:
        samples: in plan order (see `in_order`).
        image_batch: images of a unit; they are encoded together. A sample is never parted from its images.
        prompt_batch: prompts answered together.
        length: how long a sample's prompt is; a batch holds prompts of like length, so that little is padded.
    """
    units: list[Unit] = []
    images: dict[str, None] = {}
    members: list[Sample] = []

    def close() -> None:
        by_length = sorted(members, key=lambda sample: (-length(sample), _natural(sample.id)))
        batches = tuple(tuple(by_length[i : i + prompt_batch]) for i in range(0, len(by_length), prompt_batch))
        units.append(Unit(index=len(units), image_ids=tuple(images), batches=batches))

    for sample in samples:
        new = [image_id for image_id in sample.image_ids if image_id not in images]
        if members and len(images) + len(new) > image_batch:
            close()
            images, members = {}, []
            new = list(sample.image_ids)
        images.update(dict.fromkeys(new))
        members.append(sample)
    if members:
        close()
    return units


def shard(units: Sequence[Unit], num_shards: int) -> list[list[Unit]]:
    """Deal units out so that every shard has about the same cost (images + samples); deterministic.

    >>> units = [Unit(index=i, image_ids=("a",), batches=((Sample(id=str(i), image_ids=("a",)),),)) for i in range(5)]
    >>> [[unit.index for unit in part] for part in shard(units, 2)]
    [[0, 2, 4], [1, 3]]
    """
    shards: list[list[Unit]] = [[] for _ in range(num_shards)]
    costs = [0] * num_shards
    for unit in sorted(units, key=lambda unit: (-_cost(unit), unit.index)):
        lightest = min(range(num_shards), key=lambda i: (costs[i], i))
        shards[lightest].append(unit)
        costs[lightest] += _cost(unit)
    return [sorted(part, key=lambda unit: unit.index) for part in shards]


def unfinished(units: Iterable[Unit], answered: Collection[str]) -> list[Unit]:
    """Return the units with at least one sample that has no answer yet; each is run again whole."""
    return [unit for unit in units if any(sample.id not in answered for sample in unit.samples)]


def _cost(unit: Unit) -> int:
    # An image costs about as much as eight short answers: ViT and Q-Former against a few tokens of a language model.
    return 8 * len(unit.image_ids) + len(unit.samples)


def _natural(name: str) -> tuple[tuple[tuple[int, int, str], ...], str]:
    """Order ids as people do: a9 before a10; "01" and "1" are told apart by their text, not by the file's order."""
    parts = tuple(
        (0, int(part), "") if part.isascii() and part.isdigit() else (1, 0, part)
        for part in re.split(r"([0-9]+)", name)
        if part
    )
    return parts, name
