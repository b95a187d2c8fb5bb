"""METEOR 1.5 (Denkowski and Lavie, 2014), by its authors' Java classes, as the official caption scorer configures them.

METEOR of a set is no mean: the statistics of all images are added up and scored once. `statistics` is the costly part
(aligning each hypothesis with each reference), in a worker that keeps its paraphrase table for the life of the process;
`meteor` is the formula on the sum, so a subset or a bootstrap needs no further alignment.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from evalkit.metrics.java import Failure, Java, Progress, Setup, Worker, answer_each, scorer_file, worker

NUM_STATISTICS = 23
"""Lengths, function words, then per stage the matched content and function words, then chunks and matched words.

Addable as METEOR adds them: where all words match in one piece there are no chunks.
"""
MAX_PRODUCT = 1_500_000
"""Words of a hypothesis times words of its longest reference above which METEOR is not asked: memory would run out."""
_ALPHA, _BETA, _GAMMA, _DELTA = 0.85, 0.2, 0.6, 0.75
_WEIGHTS = (1.0, 0.6, 0.8, 0.6)
_OPTIONS = ("-Xmx2g", "-XX:+UseSerialGC", "-XX:+ExitOnOutOfMemoryError", "-Duser.language=en", "-Duser.country=US")


def meteor_worker(java: Java) -> Worker:
    """Return the living METEOR worker of this process; no JVM is started yet."""
    return worker(
        Setup(
            service="evalkit.metrics.meteor:MeteorService",
            java=java,
            jars=(scorer_file("meteor/meteor-1.5.jar"),),
            options=_OPTIONS,
            arguments=(("paraphrases", str(scorer_file("meteor/data/paraphrase-en.gz"))),),
        )
    )


def statistics(living: Worker, pairs: Sequence[tuple[str, Sequence[str]]]) -> list[tuple[float, ...] | Failure]:
    """Return METEOR's statistics, (23,), for each (hypothesis, references), tokenized: those of the best reference.

    Raises:
        WorkerError: METEOR does not run here at all.
    """
    results: list[tuple[float, ...] | Failure] = [Failure("")] * len(pairs)
    fit: list[int] = []
    for index, (hypothesis, references) in enumerate(pairs):
        words = len(hypothesis.split()), max(len(reference.split()) for reference in references)
        if words[0] * words[1] > MAX_PRODUCT:
            results[index] = Failure(f"{words[0]} words against {words[1]}: more than METEOR can align")
        else:
            fit.append(index)
    progress = Progress("METEOR", len(fit))
    answers = answer_each(
        living,
        lambda part: {"pairs": list(part)},
        [(pairs[index][0], list(pairs[index][1])) for index in fit],
        chunk=500,
        seconds=60.0,
        chunk_seconds=300.0,
        done=lambda start, answers: progress.add(len(answers)),
    )
    for index, answer in zip(fit, answers, strict=True):
        results[index] = answer if isinstance(answer, Failure) else tuple(answer)
    return results


def official_meteor(living: Worker, total: Sequence[float]) -> float:
    """Return METEOR of added statistics by the Java class itself: the number that is reported."""
    return float(living.ask({"total": list(total)}, 60.0))


def meteor(total: Sequence[float]) -> float:
    """Return METEOR of added statistics, (23,), by the published formula with the English task's parameters.

    The same as `official_meteor` within rounding; for bootstraps, which ask a thousand times.

    >>> same = [2, 2, 0, 0, *[2, 2, 0, 0], *[0] * 12, 0, 2, 2]  # "red bus" for "red bus": all matched, in one piece
    >>> meteor(same)
    1.0
    >>> half = [2, 2, 0, 0, *[1, 1, 0, 0], *[0] * 12, 1, 1, 1]  # "red bus" for "red car": P = R = 1/2, one chunk
    >>> round(meteor(half), 6)  # 1/2 * (1 - 0.6 * 1 ** 0.2)
    0.2
    """
    length, reference_length, function, reference_function = total[:4]
    chunks, matched, reference_matched = total[20:]
    hit = reference_hit = 0.0
    for stage, weight in enumerate(_WEIGHTS):
        content, reference_content, small, reference_small = total[4 + 4 * stage : 8 + 4 * stage]
        hit += weight * (_DELTA * content + (1 - _DELTA) * small)
        reference_hit += weight * (_DELTA * reference_content + (1 - _DELTA) * reference_small)
    given = _DELTA * (length - function) + (1 - _DELTA) * function
    wanted = _DELTA * (reference_length - reference_function) + (1 - _DELTA) * reference_function
    precision = hit / given if given else 0.0
    recall = reference_hit / wanted if wanted else 0.0
    if not precision or not recall:
        return 0.0
    mean = 1.0 / ((1.0 - _ALPHA) / precision + _ALPHA / recall)
    fragmentation = chunks / ((matched + reference_matched) / 2)
    return float(mean * (1.0 - _GAMMA * fragmentation**_BETA))


class MeteorService:
    """Runs in the worker: METEOR's scorer with its paraphrase table. A second thread made it slower."""

    def __init__(self, paraphrases: str) -> None:
        import jpype

        self._stats = jpype.JClass("edu.cmu.meteor.scorer.MeteorStats")
        self._list = jpype.JClass("java.util.ArrayList")
        self._string = jpype.JString
        options = jpype.JArray(jpype.JString)(["-", "-", "-stdio", "-l", "en", "-norm"])
        properties = jpype.JClass("Meteor").createPropertiesFromArgs(options, 2)
        configuration = jpype.JClass("edu.cmu.meteor.scorer.MeteorConfiguration")(properties)
        configuration.setParaFileURL(jpype.JClass("java.io.File")(paraphrases).toURI().toURL())
        self._scorer = jpype.JClass("edu.cmu.meteor.scorer.MeteorScorer")(configuration)

    def answer(self, request: Any) -> Any:
        """Align `pairs`, or score the `total`."""
        if "total" in request:
            total = self._stats(self._string(" ".join(map(repr, request["total"]))))
            self._scorer.computeMetrics(total)
            return float(total.score)
        return [self._align(hypothesis, references) for hypothesis, references in request["pairs"]]

    def _align(self, hypothesis: str, references: Sequence[str]) -> list[float]:
        captions = self._list()
        for reference in references:
            captions.add(self._string(reference))
        # The official wrapper takes "|||" out of the hypothesis, where it would end a field of its protocol.
        text = hypothesis.replace("|||", "").replace("  ", " ")
        addable = self._stats()
        addable.addStats(self._scorer.getMeteorStats(self._string(text), captions))
        return [float(number) for number in str(addable.toString()).split()]
