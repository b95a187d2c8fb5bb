"""The plan: the same units whatever the order of the file, nothing lost, nothing twice, batches that never change."""

from __future__ import annotations

import random
from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from evalkit.plan import cut, in_order, shard, unfinished
from evalkit.types import Sample, Unit

ids = st.text("ab019", min_size=1, max_size=4)
samples = st.lists(
    st.builds(Sample, id=ids, image_ids=st.lists(ids, min_size=1, max_size=3).map(tuple)),
    max_size=30,
    unique_by=lambda sample: sample.id,
)
sizes = st.integers(1, 6)


def length(sample: Sample) -> int:
    return len(sample.id)


def planned(samples: list[Sample], images: int, prompts: int) -> list[Unit]:
    return cut(in_order(samples), image_batch=images, prompt_batch=prompts, length=length)


@given(samples, st.randoms())
def test_the_order_of_the_file_does_not_matter(samples: list[Sample], chance: random.Random) -> None:
    shuffled = samples[:]
    chance.shuffle(shuffled)
    assert in_order(shuffled) == in_order(samples)


def test_images_with_most_questions_come_first_then_ids_as_people_count() -> None:
    asked = [("9", "i10"), ("10", "i10"), ("1", "i9"), ("3", "i2"), ("4", "i2"), ("5", "i2")]
    ordered = in_order([Sample(id=key, image_ids=(image,)) for key, image in asked])
    assert [sample.id for sample in ordered] == ["3", "4", "5", "9", "10", "1"]


@given(samples, sizes, sizes)
def test_every_sample_is_in_one_batch_of_one_unit_with_its_images(
    samples: list[Sample], images: int, prompts: int
) -> None:
    units = planned(samples, images, prompts)
    assert Counter(sample.id for unit in units for sample in unit.samples) == Counter(sample.id for sample in samples)
    assert [unit.index for unit in units] == list(range(len(units)))
    for unit in units:
        assert len(set(unit.image_ids)) == len(unit.image_ids)
        assert {image for sample in unit.samples for image in sample.image_ids} == set(unit.image_ids)
        assert all(0 < len(batch) <= prompts for batch in unit.batches)
        most = max(len(set(sample.image_ids)) for sample in unit.samples)
        assert len(unit.image_ids) <= max(images, most), "a sample is never parted from its images"


@given(st.lists(st.builds(Sample, id=ids, image_ids=st.tuples(ids)), max_size=30, unique_by=lambda s: s.id), sizes)
def test_an_image_is_in_one_unit_only(samples: list[Sample], images: int) -> None:
    """Encode once, ask many: with one image a sample, no image is ever encoded for two units."""
    owners = Counter(image for unit in planned(samples, images, 2) for image in unit.image_ids)
    assert set(owners.values()) <= {1}


@given(samples, sizes, sizes)
def test_a_batch_holds_prompts_of_like_length(samples: list[Sample], images: int, prompts: int) -> None:
    for unit in planned(samples, images, prompts):
        lengths = [length(sample) for sample in unit.samples]
        assert lengths == sorted(lengths, reverse=True)


@given(samples, sizes, st.sets(ids))
def test_what_is_finished_changes_no_batch(samples: list[Sample], images: int, answered: set[str]) -> None:
    """Cut first, subtract second: a half-done unit comes back whole, a done one not at all."""
    units = planned(samples, images, 3)
    left = unfinished(units, answered)
    assert [unit for unit in units if unit in left] == left
    for unit in units:
        assert (unit in left) == any(sample.id not in answered for sample in unit.samples)


@given(samples, sizes, st.integers(1, 8))
def test_shards_hold_every_unit_once_and_about_the_same_work(samples: list[Sample], images: int, num: int) -> None:
    units = planned(samples, images, 3)
    shards = shard(units, num)
    assert len(shards) == num
    assert sorted(unit.index for part in shards for unit in part) == [unit.index for unit in units]
    assert shard(units, num) == shards
    costs = [sum(8 * len(unit.image_ids) + len(unit.samples) for unit in part) for part in shards]
    biggest = max((8 * len(unit.image_ids) + len(unit.samples) for unit in units), default=0)
    assert max(costs) - min(costs) <= biggest, "the unit dealt last goes to the shard with least work"
