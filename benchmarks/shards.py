"""Idle time of 8, 64 and 512 workers on VQAv2 test (81,434 images, 447,793 questions): planned shards and handed out.

    python -m benchmarks.shards

Costs are measured here: CPU seconds of units of the random BLIP-2 of `_model`, one thread, for units with few and many
questions, the least of four measurements each. Least squares give the cost of an image, a question and a batch
of prompts (each decoding step costs something however many prompts are in it); what is left over is the scatter. The
simulation draws every unit's cost from that. Questions per image are 3 (the least VQAv2 asks) and a geometric number
more, to the published totals: the test questions are not part of this repository.

Idle time is the share of all workers' time that they wait for the last one: 1 - mean / max of the shares' costs.
"""

from __future__ import annotations

import argparse
import heapq
import random
import statistics
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from evalkit import plan
from evalkit.types import Decoding, Prompt, Sample, Unit

IMAGES, QUESTIONS = 81_434, 447_793
_IMAGE_BATCH, _PROMPT_BATCH = 16, 32
_REPEATS = 4
"""The least of so many measurements is the unit's cost; what is above it is what else the machine did."""


def split_like_vqav2(images: int = IMAGES, questions: int = QUESTIONS, seed: int = 0) -> list[Unit]:
    """Return units of a split of that size, cut by the plan itself."""
    chance = random.Random(seed)
    counts = [3] * images
    stay = 1 - 1 / (1 + questions / images - 3)
    for index in range(images):
        while chance.random() < stay:
            counts[index] += 1
    while (off := questions - sum(counts)) != 0:
        for index in chance.sample(range(images), min(abs(off), images)):
            counts[index] = max(3, counts[index] + (1 if off > 0 else -1))
    samples = [
        Sample(id=f"{index}{number:03d}", image_ids=(str(index),))
        for index, count in enumerate(counts)
        for number in range(count)
    ]
    return plan.cut(
        plan.in_order(samples), image_batch=_IMAGE_BATCH, prompt_batch=_PROMPT_BATCH, length=lambda sample: 0
    )


@dataclass(frozen=True)
class Cost:
    """What units cost, in CPU seconds."""

    image: float
    question: float
    batch: float
    factors: tuple[float, ...]
    """Measured over expected, a unit each."""

    def of(self, unit: Unit) -> float:
        """Return what is expected of a unit."""
        return self.image * len(unit.image_ids) + self.question * len(unit.samples) + self.batch * len(unit.batches)


def measured_costs(num_units: int = 20, seed: int = 0) -> list[tuple[int, int, float]]:
    """Return (questions, batches, CPU seconds) of units of a BLIP-2, images preprocessed, too."""
    import torch

    from benchmarks._model import small_blip2
    from evalkit.models.blip2 import Blip2
    from tests.models import tiny

    torch.set_num_threads(1)
    chance = random.Random(seed)
    pictures = [picture.resize((640, 480)) for picture in tiny.pictures()] * _IMAGE_BATCH
    with tempfile.TemporaryDirectory() as folder:
        model = Blip2(checkpoint=str(small_blip2(Path(folder))))
        model.prepare(tiny.task())
        costs = []
        for number in range(num_units + 1):
            rows = [row for row in range(_IMAGE_BATCH) for _ in range(chance.randint(3, 12))]
            batches = [
                [
                    Prompt(sample_id=f"{number}-{i}", text=f"Question: how many {row}? Answer:", rows=(row,))
                    for i, row in enumerate(rows[first : first + _PROMPT_BATCH])
                ]
                for first in range(0, len(rows), _PROMPT_BATCH)
            ]
            times = []
            for _ in range(_REPEATS):
                start = time.process_time()
                encoded = model.encode([model.preprocess(picture) for picture in pictures[:_IMAGE_BATCH]])
                for prompts in batches:
                    model.generate(encoded, prompts, Decoding(max_new_tokens=10))
                times.append(time.process_time() - start)
            costs.append((len(rows), len(batches), min(times)))
    return costs[1:]  # the first one warms up


def fitted(costs: Sequence[tuple[int, int, float]]) -> Cost:
    """Return the cost of an image, a question and a batch by least squares, none below zero, and the scatter."""
    import numpy as np

    measured = np.array([seconds for *_, seconds in costs])
    columns = np.array([[_IMAGE_BATCH, questions, batches] for questions, batches, _ in costs], dtype=float)
    kept = [0, 1, 2]
    while True:
        solved = np.linalg.lstsq(columns[:, kept], measured, rcond=None)[0]
        if (solved >= 0).all():
            break
        del kept[int(solved.argmin())]
    parts = dict(zip(kept, solved.tolist(), strict=True))
    image, question, batch = (parts.get(column, 0.0) for column in range(3))
    return Cost(image, question, batch, tuple((measured / (columns @ [image, question, batch])).tolist()))


def idle(loads: Sequence[float]) -> float:
    """Return the share of time that is waited for the last one.

    >>> idle([1.0, 1.0, 2.0, 0.0])
    0.5
    """
    return 1 - statistics.fmean(loads) / max(loads)


def handed_out(costs: Sequence[float], workers: int) -> list[float]:
    """Return when each worker ends, units handed out in order to whoever is free.

    >>> handed_out([3.0, 1.0, 1.0, 1.0], 2)
    [3.0, 3.0]
    """
    free = [0.0] * workers
    for cost in costs:
        heapq.heapreplace(free, free[0] + cost)
    return sorted(free)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description="Simulate idle time on VQAv2 test.")
    parser.add_argument("--seeds", type=int, default=5)
    asked = parser.parse_args()
    cost = fitted(measured_costs())
    units = split_like_vqav2()
    print(
        f"measured: {cost.image * 1e3:.2f} ms an image, {cost.question * 1e3:.2f} ms a question, "
        f"{cost.batch * 1e3:.2f} ms a batch, scatter of a unit {statistics.stdev(cost.factors):.1%} "
        f"({len(cost.factors)} units)\n"
        f"{len(units)} units, {sum(len(unit.image_ids) for unit in units)} images, "
        f"{sum(len(unit.samples) for unit in units)} questions; median of {asked.seeds} draws, worst in brackets\n"
        "workers  idle, planned shards  idle, handed out"
    )
    for workers in (8, 64, 512):
        shards = plan.shard(units, workers)
        fixed, dynamic = [], []
        for seed in range(asked.seeds):
            chance = random.Random(seed)
            drawn = {unit.index: cost.of(unit) * chance.choice(cost.factors) for unit in units}
            fixed.append(idle([sum(drawn[unit.index] for unit in shard) for shard in shards]))
            dynamic.append(idle(handed_out([drawn[unit.index] for unit in units], workers)))
        print(
            f"{workers:7}  {statistics.median(fixed):8.2%} ({max(fixed):.2%})"
            f"      {statistics.median(dynamic):8.2%} ({max(dynamic):.2%})"
        )


if __name__ == "__main__":
    main()
