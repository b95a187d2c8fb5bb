"""Retrieval in two phases of ordinary units: ITC over all pairs, then ITM once a pair.

    <run>/itc/images-0007.npz    normalised image features of a unit (I, Q, D), written by rename
    <run>/itc/texts-0003.npz     normalised text features (T, D)
    <run>/candidates.npz         the pairs of each image: its top k texts, and the texts that have it in their top k

Phase 2 starts when every feature file is there; whoever is first writes the candidates, so a resume never moves the
k-th place. A pair is scored once, in the unit of its image; the log has a line an image. Which of the two top-k lists a
pair came from follows from its ITC value, so `metrics.retrieval` can apply any fusion rule without a model.
"""

from __future__ import annotations

import os
import tempfile
import threading
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from evalkit.errors import ImageError, ResultsError, SampleError
from evalkit.loading import Loaded, load_ahead
from evalkit.log import Writer
from evalkit.progress import Reporter
from evalkit.run import Outcome
from evalkit.types import Dataset, Encoded, MatchingModel, Prediction, Task, Text, Unit

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

_TEXT_BATCH = 128


@dataclass(frozen=True, kw_only=True)
class RetrievalJob:
    """What both phases need to know, besides the units."""

    task: Task
    dataset: Dataset
    model: MatchingModel
    units: Sequence[Unit]
    """All units of the run, whoever does them."""
    folder: Path
    """The run folder."""
    answered: Collection[str] = ()
    """Images with a line in the log: their unit may be run again, they are not appended again."""
    pair_batch: int = 64
    loader_threads: int = 4
    stop: threading.Event = field(default_factory=threading.Event)


def text_units(texts: Sequence[Text]) -> list[tuple[Text, ...]]:
    """Cut the candidate captions into units, in file order."""
    return [tuple(texts[i : i + _TEXT_BATCH]) for i in range(0, len(texts), _TEXT_BATCH)]


def embed(
    job: RetrievalJob,
    mine: Iterable[Unit],
    my_texts: Iterable[int],
    done: Callable[[int], None] = lambda index: None,
) -> None:
    """Phase 1: write the ITC features of these image units and text units, those that are there left out.

    An image that cannot be opened gets no features: it is a failed sample in phase 2, and nobody's candidate. `done` is
    called with the index of each unit whose file is there.
    """
    import numpy as np

    texts = text_units(job.dataset.texts)
    for index in my_texts:
        path = _texts_file(job.folder, index)
        if job.stop.is_set():
            return
        if not path.exists():
            features = np.asarray(job.model.itc_texts([text.text for text in texts[index]]), dtype=np.float32)
            _save(path, features=features)
        done(index)
    for unit, loaded in load_ahead(job.dataset, job.model, mine, job.loader_threads):
        path = _images_file(job.folder, unit.index)
        if job.stop.is_set():
            return
        if not path.exists():
            ids = [image_id for image_id in unit.image_ids if image_id in loaded.inputs]
            features = np.zeros((0, 1, 1), dtype=np.float32)
            if ids:
                encoded = job.model.encode([loaded.inputs[image_id] for image_id in ids])
                features = np.asarray(job.model.itc_images(encoded), dtype=np.float32)
            names = (ids, list(loaded.broken), list(loaded.broken.values()))
            ids_A, broken_A, reasons_A = (np.array(part, dtype=str) for part in names)
            _save(path, ids=ids_A, features=features, broken=broken_A, reasons=reasons_A)
        done(unit.index)


def missing_features(folder: Path, units: Sequence[Unit], texts: Sequence[Text], kind: str) -> list[int]:
    """Return the units of phase 1 ("images" or "texts") whose feature file is not there yet."""
    if kind == "texts":
        return [index for index in range(len(text_units(texts))) if not _texts_file(folder, index).exists()]
    return [unit.index for unit in units if not _images_file(folder, unit.index).exists()]


def match(
    job: RetrievalJob,
    mine: Iterable[Unit],
    writer: Writer,
    progress: Reporter,
    done: Callable[[Unit], None] = lambda unit: None,
) -> Outcome:
    """Phase 2: score the candidate pairs of these units and append a line an image."""
    outcome = Outcome()
    candidates = _candidates(job)
    for unit, loaded in _with_pixels(job, mine):
        lines = _match_unit(job, unit, candidates, loaded)
        predictions = [line for line in lines if line.sample_id not in job.answered]
        writer.append(predictions)
        failed = sum(prediction.error is not None for prediction in predictions)
        outcome.asked += len(predictions)
        outcome.failed += failed
        progress.advance(samples=len(predictions), images=len(predictions), failed=failed)
        done(unit)
        if job.stop.is_set():
            outcome.interrupted = True
            break
    return outcome


def _with_pixels(job: RetrievalJob, units: Iterable[Unit]) -> Iterator[tuple[Unit, Loaded]]:
    """Yield the units with their images, which a dual encoder (ITC only) no longer needs."""
    if "itm" in job.model.capabilities:
        return load_ahead(job.dataset, job.model, units, job.loader_threads)
    return ((unit, Loaded({}, {})) for unit in units)


@dataclass(frozen=True, kw_only=True)
class _Candidates:
    texts_of: dict[str, list[tuple[int, float]]]
    """image id -> (index of the text, ITC) in order of the index."""
    broken: dict[str, str]


def _match_unit(job: RetrievalJob, unit: Unit, candidates: _Candidates, loaded: Loaded) -> list[Prediction]:
    texts = job.dataset.texts
    start = time.monotonic()
    broken = {image_id: candidates.broken[image_id] for image_id in unit.image_ids if image_id in candidates.broken}
    broken |= loaded.broken
    ids = [image_id for image_id in unit.image_ids if image_id not in broken]
    scores: dict[str, list[float]] = {}
    if ids and "itm" in job.model.capabilities:
        encoded = job.model.encode([loaded.inputs[image_id] for image_id in ids])
        for row, image_id in enumerate(ids):
            captions = [texts[index].text for index, _ in candidates.texts_of[image_id]]
            try:
                scores[image_id] = _itm(job, encoded, row, captions)
            except (SampleError, ImageError) as error:
                broken[image_id] = str(error)
    seconds = (time.monotonic() - start) / len(unit.image_ids)
    lines = [Prediction(sample_id=image_id, output=None, error=reason) for image_id, reason in broken.items()]
    for image_id in ids:
        if image_id in broken:
            continue
        itms = scores.get(image_id)
        pairs = tuple(
            (texts[index].id, _short(itc), None if itms is None else _short(itms[place]))
            for place, (index, itc) in enumerate(candidates.texts_of[image_id])
        )
        lines.append(Prediction(sample_id=image_id, output=None, seconds=seconds, pairs=pairs))
    return lines


def _short(value: float) -> float:
    """Return the shortest number that is still this float32: order and ties stay as they were."""
    return float(f"{value:.9g}")


def _itm(job: RetrievalJob, encoded: Encoded, row: int, captions: Sequence[str]) -> list[float]:
    scores: list[float] = []
    for i in range(0, len(captions), job.pair_batch):
        part = captions[i : i + job.pair_batch]
        scores += [float(score) for score in job.model.itm(encoded.select([row] * len(part)), part)]
    return scores


def _candidates(job: RetrievalJob) -> _Candidates:
    """Return the candidate list; the first process here writes it, the others read what it wrote."""
    import numpy as np

    path = job.folder / "candidates.npz"
    if not path.exists():
        images, features, broken, reasons = _read_images(job)
        texts = np.concatenate(
            [_read(_texts_file(job.folder, i))["features"] for i in range(len(text_units(job.dataset.texts)))]
        )
        sims = _similarity(features, texts)
        pairs = _top_pairs(sims, job.task.k)
        _save(path, images=images, rows=pairs[0], columns=pairs[1], itc=sims[pairs], broken=broken, reasons=reasons)
    data = _read(path)
    texts_of: dict[str, list[tuple[int, float]]] = {str(image_id): [] for image_id in data["images"]}
    images = [str(image_id) for image_id in data["images"]]
    for row, column, itc in zip(data["rows"].tolist(), data["columns"].tolist(), data["itc"].tolist(), strict=True):
        texts_of[images[row]].append((column, itc))
    broken = dict(zip(map(str, data["broken"]), map(str, data["reasons"]), strict=True))
    return _Candidates(texts_of=texts_of, broken=broken)


def _read_images(job: RetrievalJob) -> tuple[Any, NDArray[np.float32], Any, Any]:
    import numpy as np

    parts = [_read(_images_file(job.folder, unit.index)) for unit in job.units]
    kept = [part for part in parts if len(part["ids"])]
    features = [part["features"] for part in kept]
    return (
        np.concatenate([part["ids"] for part in parts]),
        np.concatenate(features) if features else np.zeros((0, 1, 1), dtype=np.float32),
        np.concatenate([part["broken"] for part in parts]),
        np.concatenate([part["reasons"] for part in parts]),
    )


def _similarity(image_IQD: NDArray[np.float32], text_TD: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return ITC similarities (I, T): the maximum over the query tokens (BLIP-2 paper, 3.1)."""
    import numpy as np

    if not len(image_IQD):
        return np.zeros((0, len(text_TD)), dtype=np.float32)
    return np.stack([(image_QD @ text_TD.T).max(axis=0) for image_QD in image_IQD])


def _top_pairs(sim_IT: NDArray[np.float32], k: int) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Return (rows, columns) of the union of both top-k lists; equal similarities keep the order of the ids."""
    import numpy as np

    chosen = np.zeros(sim_IT.shape, dtype=bool)
    by_row = np.argsort(-sim_IT, axis=1, kind="stable")[:, :k]
    np.put_along_axis(chosen, by_row, True, axis=1)
    by_column = np.argsort(-sim_IT, axis=0, kind="stable")[:k]
    np.put_along_axis(chosen, by_column, True, axis=0)
    rows, columns = np.nonzero(chosen)
    return rows, columns


def _images_file(folder: Path, index: int) -> Path:
    return folder / "itc" / f"images-{index:06d}.npz"


def _texts_file(folder: Path, index: int) -> Path:
    return folder / "itc" / f"texts-{index:06d}.npz"


def _save(path: Path, **arrays: Any) -> None:
    """Write arrays by rename: a file that is there is whole."""
    import numpy as np

    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        try:
            with os.fdopen(handle, "wb") as stream:
                np.savez(stream, **arrays)
                stream.flush()
                os.fsync(stream.fileno())
            os.replace(temporary, path)
        except OSError:
            Path(temporary).unlink(missing_ok=True)
            raise
    except OSError as error:
        raise ResultsError(f"cannot write {path}: {error.strerror or error}; make room, or give out=DIR") from error


def _read(path: Path) -> dict[str, Any]:
    import numpy as np

    try:
        with np.load(path, allow_pickle=False) as archive:
            return {name: archive[name] for name in archive.files}
    except (OSError, ValueError) as error:
        raise ResultsError(f"cannot read {path}: {error}; remove it and start again, it is made anew") from error
