"""Retrieval in two phases: equal to the dense computation, whatever is interrupted, broken or tied."""

from __future__ import annotations

import shutil
import threading
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from evalkit import retrieval
from evalkit.errors import ImageError, ModelError, ResultsError
from evalkit.log import Writer, read_log
from evalkit.metrics.retrieval import recall_at_k
from evalkit.plan import cut, in_order, unfinished
from evalkit.retrieval import RetrievalJob, embed, match, missing_features, text_units
from evalkit.run import Outcome
from evalkit.types import Dataset, Metric, Sample, Scores, Task, Text

Floats = NDArray[np.float32]


class Images:
    def __init__(self) -> None:
        self.broken: set[str] = set()
        self.opened: Counter[str] = Counter()

    def open(self, image_id: str) -> Any:
        self.opened[image_id] += 1
        if image_id in self.broken:
            raise ImageError(f"image {image_id!r} ends early")
        return image_id

    def missing(self, image_ids: Sequence[str]) -> list[str]:
        return []


class Rows(tuple[str, ...]):
    def select(self, rows: Sequence[int]) -> Rows:
        return Rows(self[row] for row in rows)


class OutOfMemoryError(RuntimeError):
    """Goes by the name of torch's."""


class Matcher:
    """Similarities from two tables, so that a test knows what has to come out."""

    capabilities = frozenset({"itc", "itm"})

    def __init__(self, itc: Floats, itm: Floats | None) -> None:
        """Take ITC (I, Q, T), of which the maximum over Q counts, and ITM (I, T) or None for a dual encoder."""
        self.itc, self.table = itc, itm
        if itm is None:
            self.capabilities = frozenset({"itc"})
        self.pairs: Counter[tuple[str, str]] = Counter()
        self.embedded: list[str] = []
        self.bad_image = ""
        self.room = self.image_room = self.text_room = 10**9

    def preprocess(self, image: str) -> str:
        return image

    def encode(self, inputs: Sequence[str]) -> Rows:
        if self.bad_image in inputs:
            raise ZeroDivisionError("aspect ratio")
        return Rows(inputs)

    def itc_images(self, encoded: Any) -> Floats:
        if len(encoded) > self.image_room:
            raise OutOfMemoryError("allocate")
        self.embedded += encoded
        return self.itc[[int(name[1:]) for name in encoded]]

    def itc_texts(self, texts: Sequence[str]) -> Floats:
        if len(texts) > self.text_room:
            raise OutOfMemoryError("allocate")
        self.embedded += texts
        return np.eye(self.itc.shape[2], dtype=np.float32)[[int(text[1:]) for text in texts]]

    def itm(self, encoded: Any, texts: Sequence[str]) -> list[float]:
        assert self.table is not None
        if len(texts) > self.room:
            raise OutOfMemoryError("allocate")
        self.pairs.update(zip(encoded, texts, strict=True))
        return [float(self.table[int(image[1:]), int(text[1:])]) for image, text in zip(encoded, texts, strict=True)]


class Reports:
    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()

    def advance(self, **counts: int) -> None:
        self.counts.update(counts)


class Run:
    """A retrieval run: image i is shown by sample s<i>, text t belongs to image t % I."""

    def __init__(
        self, folder: Path, images: int, texts: int, *, k: int, image_batch: int = 2, pair_batch: int = 3
    ) -> None:
        samples = in_order([Sample(id=f"s{i}", image_ids=(f"i{i}",)) for i in range(images)])
        self.texts = tuple(Text(id=f"t{t}", text=f"c{t}", image_ids=(f"s{t % images}",)) for t in range(texts))
        self.images = Images()
        self.dataset = Dataset(samples=tuple(samples), images=self.images, texts=self.texts)
        self.units = cut(samples, image_batch=image_batch, prompt_batch=4, length=lambda sample: 0)
        self.folder, self.k, self.pair_batch = folder, k, pair_batch
        self.stop = threading.Event()
        self.reports = Reports()

    def job(self, model: Any) -> RetrievalJob:
        metric = Metric(name="m", compute=lambda answered, settings: Scores())
        return RetrievalJob(
            task=Task(
                name="r/x", kind="retrieve", summary="", load=lambda source: self.dataset, metrics=(metric,),
                primary="m", k=self.k,
            ),
            dataset=self.dataset, model=model, units=self.units, folder=self.folder, answered=self.answered(),
            pair_batch=self.pair_batch, loader_threads=2, stop=self.stop,
        )  # fmt: skip

    def answered(self) -> set[str]:
        return read_log(self.folder / "predictions").answered()

    def embed(self, model: Any) -> Outcome:
        job = self.job(model)
        todo = missing_features(self.folder, self.units, self.texts, "images")
        return embed(job, [self.units[i] for i in todo], missing_features(self.folder, self.units, self.texts, "texts"))

    def match(self, model: Any) -> Outcome:
        with Writer(self.folder / "predictions") as writer:
            return match(self.job(model), unfinished(self.units, self.answered()), writer, self.reports)

    def go(self, model: Any) -> Outcome:
        self.embed(model)
        return self.match(model)

    def pairs(self) -> dict[str, tuple[tuple[str, float, float | None], ...]]:
        found = read_log(self.folder / "predictions").predictions
        return {key: each.pairs for key, each in found.items() if each.pairs is not None}

    def num_lines(self) -> int:
        return sum(file.read_bytes().count(b"\n") for file in (self.folder / "predictions").glob("*.jsonl"))


def tables(seed: int, images: int, texts: int, *, queries: int = 2) -> tuple[Floats, Floats]:
    rng = np.random.default_rng(seed)
    itc = rng.standard_normal((images, queries, texts), dtype=np.float32)
    return itc, rng.standard_normal((images, texts), dtype=np.float32)


def dense_recall(itc: Floats, itm: Floats, *, k: int, cutoffs: Sequence[int], but: Sequence[int] = ()) -> Any:
    """Return recall as LAVIS computes it: two dense matrices, -100 where a pair is no candidate, ranked by row."""
    sim = itc.max(axis=1)
    kept = [i for i in range(len(sim)) if i not in but]
    sim, itm = sim[kept], itm[kept]
    images, texts = sim.shape
    both = []
    for matrix, other in ((sim, itm), (sim.T, itm.T)):
        final = np.full(matrix.shape, -100.0)
        for row in range(len(matrix)):
            top = np.argsort(-matrix[row], kind="stable")[:k]
            final[row, top] = other[row, top].astype(np.float64) + matrix[row, top]
        both.append(np.argsort(-final, axis=1, kind="stable"))
    owner = {t: kept.index(t % len(itc)) if t % len(itc) in kept else None for t in range(texts)}
    i2t = {
        c: np.mean([any(owner[t] == row for t in both[0][row][: min(c, k)]) for row in range(images)]) for c in cutoffs
    }
    asked = [t for t in range(texts) if owner[t] is not None]
    t2i = {c: np.mean([owner[t] in both[1][t][: min(c, k)] for t in asked]) for c in cutoffs}
    return i2t, t2i


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10**6), images=st.integers(1, 9), texts=st.integers(1, 20), k=st.integers(1, 12))
def test_recall_from_the_log_equals_the_dense_computation(
    tmp_path_factory: pytest.TempPathFactory, seed: int, images: int, texts: int, k: int
) -> None:
    itc, itm = tables(seed, images, texts)
    run = Run(tmp_path_factory.mktemp("run"), images, texts, k=k)
    run.go(Matcher(itc, itm))
    recall = recall_at_k(run.pairs(), run.texts, k=k, cutoffs=(1, 2, 5))
    i2t, t2i = dense_recall(itc, itm, k=k, cutoffs=(1, 2, 5))
    assert recall.i2t == pytest.approx(i2t)
    owned = {f"s{t % images}" for t in range(texts)}
    assert recall.t2i == pytest.approx(t2i) if owned else True


def test_candidates_are_both_top_k_lists_and_each_pair_is_scored_once(tmp_path: Path) -> None:
    itc, itm = tables(1, 7, 15)
    run, model = Run(tmp_path, 7, 15, k=3), Matcher(itc, itm)
    run.go(model)
    sim = itc.max(axis=1)
    rows = {(i, int(t)) for i in range(7) for t in np.argsort(-sim[i])[:3]}
    columns = {(int(i), t) for t in range(15) for i in np.argsort(-sim[:, t])[:3]}
    wanted = rows | columns
    assert len(wanted) < 7 * 15, "else this shows nothing"
    assert set(model.pairs) == {(f"i{i}", f"c{t}") for i, t in wanted}
    assert set(model.pairs.values()) == {1}
    logged = {(key, text): (itc, itm) for key, pairs in run.pairs().items() for text, itc, itm in pairs}
    assert logged == {(f"s{i}", f"t{t}"): (pytest.approx(sim[i, t]), pytest.approx(itm[i, t])) for i, t in wanted}
    assert all(np.float32(itc) == sim[int(key[1:]), int(text[1:])] for (key, text), (itc, _) in logged.items())


def test_equal_similarities_keep_the_order_of_the_ids(tmp_path: Path) -> None:
    run = Run(tmp_path, 6, 12, k=2)
    model = Matcher(np.ones((6, 1, 12), dtype=np.float32), np.zeros((6, 12), dtype=np.float32))
    run.go(model)
    for key, pairs in run.pairs().items():
        texts = [text for text, _, _ in pairs]
        assert texts == (["t0", "t1"] if key not in ("s0", "s1") else [f"t{t}" for t in range(12)])


def test_many_equal_similarities_keep_the_order_of_the_ids(tmp_path: Path) -> None:
    """Up to 16 values every sort of numpy is stable."""
    itc = np.random.default_rng(0).integers(0, 2, (50, 1, 60)).astype(np.float32)
    run, model = Run(tmp_path, 50, 60, k=20), Matcher(itc, np.zeros((50, 60), dtype=np.float32))
    run.go(model)
    sim = itc[:, 0]
    rows = {(i, t) for i in range(50) for t in sorted(range(60), key=lambda t: (-sim[i, t], t))[:20]}
    columns = {(i, t) for t in range(60) for i in sorted(range(50), key=lambda i: (-sim[i, t], i))[:20]}
    assert {
        (int(key[1:]), int(text[1:])) for key, pairs in run.pairs().items() for text, _, _ in pairs
    } == rows | columns


def test_a_dual_encoder_gets_lines_without_itm_and_opens_each_image_once(tmp_path: Path) -> None:
    itc, _ = tables(2, 5, 10)
    run = Run(tmp_path, 5, 10, k=10)
    run.go(Matcher(itc, None))
    assert set(run.images.opened.values()) == {1}
    assert {itm for pairs in run.pairs().values() for _, _, itm in pairs} == {None}
    recall = recall_at_k(run.pairs(), run.texts, k=10, fusion="itc", cutoffs=(1,))
    best = itc.max(axis=1).argmax(axis=1)
    assert recall.i2t[1] == np.mean(best % 5 == np.arange(5))


@pytest.mark.parametrize("stop_after", [0, 1, 2, 3])
def test_a_resume_in_phase_one_makes_only_the_features_that_are_missing(tmp_path: Path, stop_after: int) -> None:
    itc, itm = tables(3, 8, 16)
    quiet = Run(tmp_path / "quiet", 8, 16, k=4)
    quiet.go(Matcher(itc, itm))
    run, first, second = Run(tmp_path / "run", 8, 16, k=4), Matcher(itc, itm), Matcher(itc, itm)
    embed(run.job(first), run.units[:stop_after], range(len(text_units(run.texts))) if stop_after else ())
    run.go(second)
    assert Counter(first.embedded + second.embedded) == Counter(
        [*(f"i{i}" for i in range(8)), *(f"c{t}" for t in range(16))]
    )
    assert run.pairs() == quiet.pairs()


def test_stop_in_phase_one_leaves_whole_files_only(tmp_path: Path) -> None:
    itc, itm = tables(3, 8, 16)
    run = Run(tmp_path, 8, 16, k=4)

    class Stopping(Matcher):
        def itc_images(self, encoded: Any) -> Floats:
            run.stop.set()
            return super().itc_images(encoded)

    run.embed(Stopping(itc, itm))
    assert len(missing_features(run.folder, run.units, run.texts, "images")) == 3
    assert missing_features(run.folder, run.units, run.texts, "texts") == []
    assert not [path for path in run.folder.rglob("*") if path.name.startswith(".")]


def test_a_resume_in_phase_two_asks_only_what_is_missing_with_the_same_candidates(tmp_path: Path) -> None:
    itc, itm = tables(4, 8, 16)
    quiet, run = Run(tmp_path / "quiet", 8, 16, k=4), Run(tmp_path / "run", 8, 16, k=4)
    quiet.go(Matcher(itc, itm))

    class Stopping(Matcher):
        def itm(self, encoded: Any, texts: Sequence[str]) -> list[float]:
            run.stop.set()
            return super().itm(encoded, texts)

    first = Stopping(itc, itm)
    outcome = run.go(first)
    assert (outcome.asked, outcome.interrupted) == (2, True)
    run.stop.clear()
    # Similarities computed anew may differ in their last bits: the candidates are those that the first start wrote.
    shutil.rmtree(run.folder / "itc")
    second = Matcher(itc + np.float32(0.5), itm)
    assert run.match(second) == Outcome(asked=6)
    assert not set(first.pairs) & set(second.pairs)
    assert run.pairs() == quiet.pairs()
    assert run.num_lines() == 8
    assert run.reports.counts == {"samples": 8, "images": 8, "failed": 0}


def test_a_half_done_unit_writes_only_its_missing_lines(tmp_path: Path) -> None:
    itc, itm = tables(4, 6, 12)
    run = Run(tmp_path, 6, 12, k=3, image_batch=6)
    run.go(Matcher(itc, itm))
    (file,) = (run.folder / "predictions").glob("*.jsonl")
    before = run.pairs()
    file.write_bytes(b"".join(file.read_bytes().splitlines(keepends=True)[:4]))
    assert run.match(Matcher(itc, itm)).asked == 2
    assert (run.pairs(), run.num_lines()) == (before, 6)


@pytest.mark.parametrize("dual", [False, True])
def test_a_broken_image_is_a_failed_sample_and_nobodys_candidate(tmp_path: Path, dual: bool) -> None:
    itc, itm = tables(5, 6, 12)
    run = Run(tmp_path, 6, 12, k=3)
    run.images.broken = {"i2"}
    outcome = run.go(Matcher(itc, None if dual else itm))
    assert (outcome.asked, outcome.failed, run.reports.counts["failed"]) == (6, 1, 1)
    failed = read_log(run.folder / "predictions").predictions["s2"]
    assert (failed.output, failed.pairs, failed.error) == (None, None, "image 'i2' ends early")
    assert set(run.pairs()) == {"s0", "s1", "s3", "s4", "s5"}
    if not dual:
        i2t, t2i = dense_recall(itc, itm, k=3, cutoffs=(1, 3), but=[2])
        recall = recall_at_k(run.pairs(), run.texts, k=3, cutoffs=(1, 3))
        assert (recall.i2t, recall.t2i) == (pytest.approx(i2t), pytest.approx(t2i))


@pytest.mark.parametrize("dual", [False, True])
@pytest.mark.parametrize("k", [1, 3, 20])
def test_a_mended_image_is_answered_by_the_next_start_as_if_it_had_never_been_broken(
    tmp_path: Path, dual: bool, k: int
) -> None:
    itc, itm = tables(6, 6, 12)
    quiet, run = Run(tmp_path / "quiet", 6, 12, k=k), Run(tmp_path / "run", 6, 12, k=k)
    quiet.go(Matcher(itc, None if dual else itm))
    run.images.broken = {"i2"}
    run.go(Matcher(itc, None if dual else itm))
    run.images.broken = set()
    assert run.go(Matcher(itc, None if dual else itm)) == Outcome(asked=1)
    assert run.num_lines() == 7
    assert run.pairs()["s2"] == quiet.pairs()["s2"]
    for fusion in ("itc",) if dual else ("itc", "itm", "itm+itc"):
        one, other = (
            recall_at_k(each.pairs(), each.texts, k=k, fusion=fusion, cutoffs=(1, k)) for each in (run, quiet)
        )
        assert (one.i2t, one.t2i) == (other.i2t, other.t2i), fusion


def test_an_image_the_model_cannot_take_is_a_failed_sample(tmp_path: Path) -> None:
    itc, itm = tables(7, 6, 12)
    run, model = Run(tmp_path, 6, 12, k=3, image_batch=3), Matcher(itc, itm)
    model.bad_image = "i4"
    assert run.go(model).failed == 1
    assert read_log(run.folder / "predictions").predictions["s4"].error == "ZeroDivisionError: aspect ratio"
    assert len(run.pairs()) == 5


def test_a_model_that_can_take_no_image_at_all_raises_its_own_fault(tmp_path: Path) -> None:
    class Broken(Matcher):
        def itc_images(self, encoded: Any) -> Floats:
            raise KeyError("no such layer")

    with pytest.raises(KeyError, match="no such layer"):
        Run(tmp_path, 6, 12, k=3).go(Broken(*tables(7, 6, 12)))


def test_a_server_that_is_gone_ends_the_run(tmp_path: Path) -> None:
    class Gone(Matcher):
        def itm(self, encoded: Any, texts: Sequence[str]) -> list[float]:
            if "i3" in encoded:
                raise ModelError("the server is gone")
            return super().itm(encoded, texts)

    run = Run(tmp_path, 6, 12, k=3, image_batch=1)
    with pytest.raises(ModelError, match="the server is gone"):
        run.go(Gone(*tables(7, 6, 12)))
    assert set(run.pairs()) == {"s0", "s1", "s2"}


def test_out_of_memory_halves_the_pairs_and_is_counted(tmp_path: Path) -> None:
    itc, itm = tables(8, 3, 8)
    run, model = Run(tmp_path, 3, 8, k=8, pair_batch=8), Matcher(itc, itm)
    model.room = 2
    assert run.go(model) == Outcome(asked=3, memory_errors=9)
    assert len(model.pairs) == 24
    assert {np.float32(pair[2] or 0) for pairs in run.pairs().values() for pair in pairs} == set(itm.ravel())


def test_out_of_memory_in_phase_one_halves_images_and_texts_and_is_counted(tmp_path: Path) -> None:
    itc, itm = tables(8, 7, 8)
    quiet, run = Run(tmp_path / "quiet", 7, 8, k=3, image_batch=7), Run(tmp_path / "run", 7, 8, k=3, image_batch=7)
    quiet.go(Matcher(itc, itm))
    model = Matcher(itc, itm)
    model.image_room, model.text_room = 2, 4
    assert run.embed(model) == Outcome(memory_errors=3 + 1)  # 7 images into 4 and 3, each of these in two; 8 texts
    assert Counter(model.embedded) == Counter([*(f"i{i}" for i in range(7)), *(f"c{t}" for t in range(8))])
    run.match(Matcher(itc, itm))
    assert run.pairs() == quiet.pairs()


def test_an_image_that_never_fits_is_a_failed_sample_and_one_of_many_that_do_not_is_the_models_fault(
    tmp_path: Path,
) -> None:
    class Greedy(Matcher):
        greedy = ("i4",)

        def encode(self, inputs: Sequence[str]) -> Rows:
            if set(self.greedy) & set(inputs):
                raise OutOfMemoryError("allocate")
            return super().encode(inputs)

    run, model = Run(tmp_path / "one", 6, 12, k=3, image_batch=6), Greedy(*tables(7, 6, 12))
    assert run.embed(model) == Outcome(memory_errors=3)  # 6, 3 and 2 together; alone it is no matter of the batch
    assert run.match(model) == Outcome(asked=6, failed=1, memory_errors=3)
    assert read_log(run.folder / "predictions").predictions["s4"].error == "OutOfMemoryError: allocate"
    model.greedy = tuple(f"i{i}" for i in range(6))
    with pytest.raises(OutOfMemoryError):
        Run(tmp_path / "all", 6, 12, k=3, image_batch=6).embed(model)


def test_the_candidates_of_who_came_first_stay_for_everybody(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two hosts find the features complete at once; in the last bits theirs may differ, and so the k-th place."""
    itc, itm = tables(4, 8, 16)
    other, run = Run(tmp_path / "other", 8, 16, k=4), Run(tmp_path / "run", 8, 16, k=4)
    other.go(Matcher(itc[::-1].copy(), itm))
    theirs = (other.folder / "candidates.npz").read_bytes()
    real = retrieval._top_pairs

    def slowly(sims: Floats, k: int) -> Any:
        (run.folder / "candidates.npz").write_bytes(theirs)  # the other host was faster
        return real(sims, k)

    monkeypatch.setattr(retrieval, "_top_pairs", slowly)
    run.go(Matcher(itc, itm))
    assert (run.folder / "candidates.npz").read_bytes() == theirs
    assert run.pairs() == other.pairs()


def test_the_log_goes_by_the_id_of_the_sample_not_by_the_name_of_its_file(tmp_path: Path) -> None:
    run = Run(tmp_path, 3, 6, k=2)
    run.go(Matcher(*tables(9, 3, 6)))
    assert set(read_log(run.folder / "predictions").predictions) == {"s0", "s1", "s2"}


@pytest.mark.parametrize("size", [0, 100])
def test_a_damaged_feature_file_is_named_with_the_way_out(tmp_path: Path, size: int) -> None:
    run, model = Run(tmp_path, 4, 8, k=2), Matcher(*tables(9, 4, 8))
    run.embed(model)
    path = run.folder / "itc" / "images-000000.npz"
    path.write_bytes(path.read_bytes()[:size])
    with pytest.raises(ResultsError, match=r"images-000000.npz.*remove it and start again"):
        run.match(model)


def test_many_texts_are_embedded_in_units(tmp_path: Path) -> None:
    texts = [Text(id=str(t), text="", image_ids=()) for t in range(300)]
    units = text_units(texts)
    assert [text for unit in units for text in unit] == texts
    assert 1 < len(units) < 10
