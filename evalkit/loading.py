"""Open and preprocess images in threads, some units ahead of the one the device works on."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from evalkit.errors import EvalkitError, ImageError
from evalkit.types import Dataset, Model, Unit

UNITS_AHEAD = 2


@dataclass(frozen=True)
class Loaded:
    """A unit's images by id: preprocessed, or why not."""

    inputs: Mapping[str, Any]
    broken: Mapping[str, str]


def load_ahead(
    dataset: Dataset,
    model: Model,
    units: Iterable[Unit],
    threads: int,
    wanted: Callable[[str], bool] = lambda image_id: True,
) -> Iterator[tuple[Unit, Loaded]]:
    """Yield each unit with those of its images that are wanted, loaded while the units before it were worked on.

    An image that cannot be opened whole, or that the model's preprocessing cannot take, is named in `Loaded.broken`.
    """
    pool = ThreadPoolExecutor(threads, thread_name_prefix="loader")
    waiting: deque[tuple[Unit, dict[str, Future[Any]]]] = deque()
    left = iter(units)

    def submit() -> None:
        unit = next(left, None)
        if unit is not None:
            ids = filter(wanted, unit.image_ids)
            futures = {image_id: pool.submit(_load, dataset, model, image_id) for image_id in ids}
            waiting.append((unit, futures))

    try:
        for _ in range(1 + UNITS_AHEAD):
            submit()
        while waiting:
            unit, futures = waiting.popleft()
            inputs: dict[str, Any] = {}
            broken: dict[str, str] = {}
            for image_id, future in futures.items():
                try:
                    inputs[image_id] = future.result()
                except ImageError as error:
                    broken[image_id] = str(error)
            yield unit, Loaded(inputs, broken)
            submit()
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


def _load(dataset: Dataset, model: Model, image_id: str) -> Any:
    image = dataset.images.open(image_id)
    try:
        return model.preprocess(image)
    except EvalkitError:
        raise
    except Exception as error:  # one odd picture must not end the run: it is named in the log
        reason = f"{type(error).__name__}: {error}"
        raise ImageError(f"image {image_id}: the model's preprocessing failed: {reason}") from error
