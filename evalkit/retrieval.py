"""Retrieval in two phases of ordinary units: ITC over all pairs, then ITM once a pair.

    <run>/itc/images-0007.npz    normalised image features of a unit (I, Q, D), written by rename
    <run>/itc/texts-0003.npz     normalised text features (T, D)
    <run>/candidates.npz         the pairs of each image: its top k texts, and the texts that have it in their top k

Phase 2 starts when every feature file is there; whoever is first writes the candidates, so a resume never moves the
k-th place. A pair is scored once, in the unit of its image; the log has a line an image. Which of the two top-k lists a
pair came from follows from its ITC value, so `metrics.retrieval` can apply any fusion rule without a model.

An image that cannot be had in phase 1 has no features and is a failed sample. When a later start can open it, its own
candidates are found then: the other images keep theirs, since one image more only takes places from them, and the
metric sees by ITC which.
"""

from __future__ import annotations

import threading
import time
import zipfile
import zlib
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, TypeAlias, TypeVar

from evalkit.disk import way_out, write_whole
from evalkit.errors import ImageError, ResultsError, SampleError
from evalkit.loading import Loaded, load_ahead
from evalkit.log import Writer
from evalkit.progress import Reporter
from evalkit.run import Outcome, is_final, out_of_memory, reason_of
from evalkit.types import Dataset, Encoded, MatchingModel, Prediction, Task, Text, Unit

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

_TEXT_BATCH = 128

T = TypeVar("T")
_Pairs: TypeAlias = tuple[tuple[str, float, float | None], ...]


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
    alive: Callable[[], None] = lambda: None
    """Called after each batch of pairs: on a CPU a unit takes longer than a supervisor waits for a sign of life."""


def text_units(texts: Sequence[Text]) -> list[tuple[Text, ...]]:
    """Cut the candidate captions into units, in file order."""
    return [tuple(texts[i : i + _TEXT_BATCH]) for i in range(0, len(texts), _TEXT_BATCH)]


def embed(
    job: RetrievalJob,
    mine: Iterable[Unit],
    my_texts: Iterable[int],
    done: Callable[[int], None] = lambda index: None,
) -> Outcome:
    """Phase 1: write the ITC features of these image units and text units, those that are there left out.

    An image that cannot be opened gets no features: it is a failed sample in phase 2, and nobody's candidate. `done` is
    called with the index of each unit whose file is there.
    """
    import numpy as np

    def image_features(encoded: Encoded, ids: Sequence[str]) -> list[Any]:
        return list(_image_features(job, encoded))

    def text_features(part: Sequence[str]) -> list[Any]:
        return list(np.asarray(job.model.itc_texts(part), dtype=np.float32))

    outcome = Outcome()
    texts = text_units(job.dataset.texts)
    for index in my_texts:
        path = _texts_file(job.folder, index)
        if job.stop.is_set():
            outcome.interrupted = True
            return outcome
        if not path.exists():
            _save(path, features=np.stack(_in_halves([text.text for text in texts[index]], text_features, outcome)))
        done(index)
    for unit, loaded in load_ahead(job.dataset, job.model, mine, job.loader_threads):
        path = _images_file(job.folder, unit.index)
        if job.stop.is_set():
            outcome.interrupted = True
            return outcome
        if not path.exists():
            found = _for_each(job, unit, loaded, image_features, outcome).values
            features = np.stack(list(found.values())) if found else np.zeros((0, 1, 1), dtype=np.float32)
            _save(path, ids=np.array(list(found), dtype=str), features=features)
        done(unit.index)
    return outcome


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

    def wanted(image_id: str) -> bool:
        return "itm" in job.model.capabilities or image_id not in candidates.texts_of

    for unit, loaded in load_ahead(job.dataset, job.model, mine, job.loader_threads, wanted):
        lines = _match_unit(job, unit, candidates, loaded, outcome)
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


@dataclass(frozen=True, kw_only=True)
class _Candidates:
    texts_of: dict[str, list[tuple[int, float]]]
    """image id -> (index of the text, ITC) in order of the index."""
    floor_T: NDArray[np.float32]
    """The ITC that an image needs to be among a text's top k."""


@dataclass(frozen=True)
class _Found(Generic[T]):
    """What the model said about each image of a unit, or why not."""

    values: dict[str, T]
    broken: dict[str, str]


def _for_each(
    job: RetrievalJob,
    unit: Unit,
    loaded: Loaded,
    ask: Callable[[Encoded, Sequence[str]], Sequence[T]],
    outcome: Outcome,
) -> _Found[T]:
    """Encode the images of a unit together and ask; with less memory, in halves; after an error, each on its own.

    Raises:
        Exception: the model cannot do a single image of the unit; then the fault is the model's.
    """
    ids = [image_id for image_id in unit.image_ids if image_id in loaded.inputs]
    values: dict[str, T] = {}
    broken = dict(loaded.broken)

    def together(part: Sequence[str]) -> None:
        memory = False
        try:
            answers = ask(job.model.encode([loaded.inputs[image_id] for image_id in part]), part)
            values.update(zip(part, answers, strict=True))
            return
        except Exception as error:
            if is_final(error):
                raise
            if len(part) == 1:
                named = isinstance(error, SampleError | ImageError)
                if not named and part[0] == ids[-1] and len(ids) > 1 and not values:
                    raise
                broken[part[0]] = str(error) if named else reason_of(error)
                return
            memory = out_of_memory(error)
        # Outside of the handler: a live exception keeps the failed call's frames, and with them the memory it took.
        outcome.memory_errors += memory
        size = (len(part) + 1) // 2 if memory else 1
        for i in range(0, len(part), size):
            together(part[i : i + size])

    if ids:
        together(ids)
    return _Found(values, broken)


def _match_unit(
    job: RetrievalJob, unit: Unit, candidates: _Candidates, loaded: Loaded, outcome: Outcome
) -> list[Prediction]:
    texts = job.dataset.texts
    start = time.monotonic()

    def pairs_of(encoded: Encoded, ids: Sequence[str]) -> list[_Pairs]:
        found = []
        for row, image_id in enumerate(ids):
            listed = candidates.texts_of.get(image_id)
            if listed is None:
                listed = _late_candidates(job, encoded.select([row]), candidates.floor_T)
            captions = [texts[index].text for index, _ in listed]
            itms = _itm(job, encoded, row, captions, outcome) if "itm" in job.model.capabilities else None
            found.append(_pairs(texts, listed, itms))
        return found

    found = _for_each(job, unit, loaded, pairs_of, outcome)
    for image_id in unit.image_ids:
        if image_id not in found.values and image_id not in found.broken:  # a dual encoder: all is known already
            found.values[image_id] = _pairs(texts, candidates.texts_of[image_id], None)
    seconds = (time.monotonic() - start) / len(unit.image_ids)
    return [
        Prediction(sample_id=sample.id, output=None, error=found.broken[image_id])
        if image_id in found.broken
        else Prediction(sample_id=sample.id, output=None, seconds=seconds, pairs=found.values[image_id])
        for sample in unit.samples
        for image_id in sample.image_ids[:1]
    ]


def _pairs(texts: Sequence[Text], listed: Sequence[tuple[int, float]], itms: Sequence[float] | None) -> _Pairs:
    return tuple(
        (texts[index].id, _short(itc), None if itms is None else _short(itms[place]))
        for place, (index, itc) in enumerate(listed)
    )


def _short(value: float) -> float:
    """Return the shortest number that is still this float32: order and ties stay as they were."""
    return float(f"{value:.9g}")


def _itm(job: RetrievalJob, encoded: Encoded, row: int, captions: Sequence[str], outcome: Outcome) -> list[float]:
    """Return the ITM score of an image with each caption, `pair_batch` at a time."""

    def ask(part: Sequence[str]) -> list[float]:
        scores = [float(score) for score in job.model.itm(encoded.select([row] * len(part)), part)]
        assert len(scores) == len(part), f"the model gave {len(scores)} scores for {len(part)} pairs"
        return scores

    scores: list[float] = []
    for i in range(0, len(captions), job.pair_batch):
        scores += _in_halves(captions[i : i + job.pair_batch], ask, outcome)
        job.alive()
    return scores


def _in_halves(texts: Sequence[str], ask: Callable[[Sequence[str]], list[T]], outcome: Outcome) -> list[T]:
    """Ask about these texts together; with less memory, in halves."""
    try:
        return ask(texts)
    except Exception as error:
        if not out_of_memory(error) or len(texts) == 1:
            raise
    outcome.memory_errors += 1
    middle = len(texts) // 2
    return [answer for half in (texts[:middle], texts[middle:]) for answer in _in_halves(half, ask, outcome)]


def _candidates(job: RetrievalJob) -> _Candidates:
    """Return the candidate list; the first process here writes it, the others read what it wrote."""
    path = job.folder / "candidates.npz"
    if not path.exists():
        images, features = _read_images(job)
        texts = _read_texts(job)
        sims = _similarity(features, texts)
        pairs = _top_pairs(sims, job.task.k)
        floor_T = _floor(sims, job.task.k)
        found = {"images": images, "rows": pairs[0], "columns": pairs[1], "itc": sims[pairs], "floor": floor_T}
        _save(path, first_wins=True, **found)
    data = _read(path)
    texts_of: dict[str, list[tuple[int, float]]] = {str(image_id): [] for image_id in data["images"]}
    images = [str(image_id) for image_id in data["images"]]
    for row, column, itc in zip(data["rows"].tolist(), data["columns"].tolist(), data["itc"].tolist(), strict=True):
        texts_of[images[row]].append((column, itc))
    return _Candidates(texts_of=texts_of, floor_T=data["floor"])


def _late_candidates(job: RetrievalJob, encoded: Encoded, floor_T: NDArray[np.float32]) -> list[tuple[int, float]]:
    """Return the candidates of one image that had no features when the list was made."""
    import numpy as np

    sim_T = _similarity(_image_features(job, encoded), _read_texts(job))[0]
    chosen = sim_T >= floor_T
    chosen[np.argsort(-sim_T, kind="stable")[: job.task.k]] = True
    return [(int(index), float(sim_T[index])) for index in np.flatnonzero(chosen)]


def _image_features(job: RetrievalJob, encoded: Encoded) -> NDArray[np.float32]:
    import numpy as np

    return np.asarray(job.model.itc_images(encoded), dtype=np.float32)


def _read_texts(job: RetrievalJob) -> NDArray[np.float32]:
    import numpy as np

    units = range(len(text_units(job.dataset.texts)))
    features: NDArray[np.float32] = np.concatenate([_read(_texts_file(job.folder, i))["features"] for i in units])
    return features


def _read_images(job: RetrievalJob) -> tuple[Any, NDArray[np.float32]]:
    import numpy as np

    parts = [_read(_images_file(job.folder, unit.index)) for unit in job.units]
    kept = [part for part in parts if len(part["ids"])]
    features = [part["features"] for part in kept]
    return (
        np.concatenate([part["ids"] for part in parts]),
        np.concatenate(features) if features else np.zeros((0, 1, 1), dtype=np.float32),
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


def _floor(sim_IT: NDArray[np.float32], k: int) -> NDArray[np.float32]:
    """Return the k-th best similarity of each text (T,); with fewer images than k, any is good enough."""
    import numpy as np

    if len(sim_IT) < k:
        return np.full(sim_IT.shape[1], -np.inf, dtype=np.float32)
    kth: NDArray[np.float32] = np.partition(sim_IT, len(sim_IT) - k, axis=0)[len(sim_IT) - k]
    return kth


def _images_file(folder: Path, index: int) -> Path:
    return folder / "itc" / f"images-{index:06d}.npz"


def _texts_file(folder: Path, index: int) -> Path:
    return folder / "itc" / f"texts-{index:06d}.npz"


def _save(path: Path, *, first_wins: bool = False, **arrays: Any) -> None:
    """Write arrays by rename: a file that is there is whole."""
    import numpy as np

    try:
        write_whole(path, lambda stream: np.savez(stream, **arrays), first_wins=first_wins)
    except OSError as error:
        raise ResultsError(f"cannot write {path}: {error.strerror or error}; {way_out(error)}") from error


def _read(path: Path) -> dict[str, Any]:
    import numpy as np

    try:
        with np.load(path, allow_pickle=False) as archive:
            return {name: archive[name] for name in archive.files}
    except (OSError, ValueError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise ResultsError(f"cannot read {path}: {error}; remove it and start again, it is made anew") from error
