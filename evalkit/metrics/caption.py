"""Caption metrics: BLEU-1..4, METEOR, ROUGE-L, CIDEr-D and SPICE, equal to the official scorer's (pycocoevalcap 1.2).

BLEU, ROUGE-L, CIDEr-D and the tokenizer are our own and need no Java. METEOR and SPICE are their authors' Java classes
in worker processes of ours; where one is missing or fails, the metric is named in `Scores.unavailable`, or the image in
`Scores.notes`, and nothing else is touched. `preflight` says before a run what will be missing.
"""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from evalkit.errors import MetricError, unknown
from evalkit.metrics import ptb
from evalkit.metrics.intervals import bootstrap_interval
from evalkit.metrics.java import Failure, find_java, scorer_file
from evalkit.types import Answered, Metric, MetricSettings, Scores

if TYPE_CHECKING:
    import numpy.typing as npt

GROUPS: Mapping[str, tuple[str, ...]] = {
    "BLEU": ("Bleu_1", "Bleu_2", "Bleu_3", "Bleu_4"),
    "METEOR": ("METEOR",),
    "ROUGE_L": ("ROUGE_L",),
    "CIDEr": ("CIDEr",),
    "SPICE": ("SPICE",),
}
"""What `metrics` may name beside the names in the result, in the official order."""
NAMES = tuple(name for names in GROUPS.values() for name in names)
VERSION = 1
"""Raised when numbers move."""
_DEFAULTS = MetricSettings()


def caption_scores(
    hypotheses: Mapping[Any, str] | Sequence[str],
    references: Mapping[Any, Sequence[str]] | Sequence[Sequence[str]],
    *,
    metrics: Sequence[str] = tuple(GROUPS),
    settings: MetricSettings = _DEFAULTS,
    context: ptb.Context = "file",
) -> Scores:
    """Score one caption an image against its references.

    Args:
        hypotheses: A caption for each image id, or captions in order.
        references: The reference captions for each image id (at least one), or lists in the same order. Their order is
            that of the official annotation file; it decides a few tokens (see `context`) and the order of `per_sample`.
        metrics: Names of the result ("Bleu_4") or groups ("BLEU").
        settings: Java, CoreNLP, the folder of kept SPICE parses, threads.
        context: The tokenizer's context rule: "file", as published numbers were computed, or "isolated"; see `ptb`.

    Returns:
        `aggregate` with fractions, CIDEr with its factor of ten; `per_sample` for ROUGE_L, CIDEr and SPICE, whose
        aggregates are means (BLEU and METEOR are statistics of the whole set); `details`: the context rule, how many
        captions were outside the tokenizer's guard and who tokenized them, SPICE's categories.

    Raises:
        MetricError: No images, ids that do not match, an image without references, something that is no text, or an
            unknown metric.

    >>> scores = caption_scores({1: "a red bus", 2: "two dogs"}, {1: ["A red bus."], 2: ["two cats", "Dogs"]},
    ...                         metrics=["Bleu_1", "ROUGE_L", "CIDEr"])
    >>> round(scores.aggregate["Bleu_1"], 6)  # all 5 words are in the references, which are not shorter
    1.0
    >>> scores.per_sample["ROUGE_L"]  # the second: precision 1/2, recall 1 (of "dogs"): 2.44 * 0.5 / (1 + 1.44 * 0.5)
    (1.0, 0.7093023255813954)
    """
    wanted = _expand(metrics)
    keys, spoken, written = _aligned(hypotheses, references)
    tokens = _Tokens.of(spoken, written, settings, context)
    return _score(keys, tokens, wanted, settings)


def caption_metric(name: str = "captions", context: ptb.Context = "file") -> Metric:
    """Return the metric for a task whose samples have reference {"captions": [...]} and whose answers are texts.

    BLEU and METEOR, which are no means, get 95 % intervals by a bootstrap over images.
    """

    def compute(answered: Sequence[Answered], settings: MetricSettings) -> Scores:
        wanted = _expand(settings.names or tuple(GROUPS))
        blind = [item.sample.id for item in answered if not (item.sample.reference or {}).get("captions")]
        if blind:
            raise MetricError(f"sample {blind[0]} (of {len(blind)} such) has no reference captions to score with.")
        keys, spoken, written = _aligned(
            {item.sample.id: item.answer for item in answered},
            {item.sample.id: item.sample.reference["captions"] for item in answered},
        )
        tokens = _Tokens.of(spoken, written, settings, context)
        clusters = [item.sample.image_ids[0] for item in answered]
        return _score(keys, tokens, wanted, settings, clusters=clusters)

    names = tuple(dict.fromkeys((*GROUPS, *NAMES)))
    return Metric(name=name, compute=compute, names=names, preflight=preflight, independent=False)


def preflight(settings: MetricSettings) -> Mapping[str, str]:
    """Return {metric: why it will be unavailable} with these settings; starts no JVM, at most `java -version`."""
    wanted = _expand(settings.names or tuple(GROUPS))
    missing: dict[str, str] = {}
    for name, check in (("METEOR", _meteor_reason), ("SPICE", _spice_reason)):
        if name in wanted and (reason := check(settings)):
            missing[name] = reason
    return missing


# --- what is scored --------------------------------------------------------------------------------------------------


def _expand(metrics: Sequence[str]) -> tuple[str, ...]:
    if isinstance(metrics, str):
        metrics = (metrics,)
    known = {**GROUPS, **{name: (name,) for name in NAMES}}
    for name in metrics:
        if name not in known:
            raise MetricError(unknown("caption metric", name, known))
    chosen = {each for name in metrics for each in known[name]}
    return tuple(name for name in NAMES if name in chosen)


def _aligned(
    hypotheses: Mapping[Any, str] | Sequence[str], references: Mapping[Any, Sequence[str]] | Sequence[Sequence[str]]
) -> tuple[list[Hashable], list[str], list[list[str]]]:
    """Return ids, hypotheses and references in the references' order."""
    if isinstance(hypotheses, Mapping) != isinstance(references, Mapping):
        raise MetricError("give both hypotheses and references by image id, or both in order.")
    if isinstance(hypotheses, Mapping) and isinstance(references, Mapping):
        for here, there, what in (
            (references, hypotheses, "no hypothesis for image"),
            (hypotheses, references, "a hypothesis but no references for image"),
        ):
            lost = [key for key in here if key not in there]
            if lost:
                raise MetricError(f"{what} {lost[0]!r} (of {len(lost)} such); every image is scored or none.")
        pairs = [(key, hypotheses[key], group) for key, group in references.items()]
    else:
        if len(hypotheses) != len(references):
            raise MetricError(f"{len(hypotheses)} hypotheses, but references for {len(references)} images.")
        pairs = [(index, hypotheses[index], references[index]) for index in range(len(references))]
    if not pairs:
        raise MetricError("caption metrics need at least one image; none was given.")
    for key, hypothesis, group in pairs:
        if isinstance(group, str) or not group or not all(isinstance(caption, str) for caption in group):
            raise MetricError(f"image {key!r}: its references must be a list of at least one text, not {group!r:.80}.")
        if not isinstance(hypothesis, str):
            raise MetricError(f"image {key!r}: its caption must be a text, not {hypothesis!r:.80}.")
    return [key for key, _, _ in pairs], [text for _, text, _ in pairs], [list(group) for _, _, group in pairs]


@dataclass(frozen=True, slots=True)
class _Tokens:
    """Everything tokenized once, for all metrics."""

    hypotheses: list[str]
    references: list[tuple[str, ...]]
    details: dict[str, Any]
    notes: tuple[str, ...]

    @classmethod
    def of(
        cls,
        hypotheses: Sequence[str],
        references: Sequence[Sequence[str]],
        settings: MetricSettings,
        context: ptb.Context,
    ) -> _Tokens:
        # Two files, as officially: one with all references, one with all hypotheses.
        flat = [caption for group in references for caption in group]
        official = _Official(settings)
        tokens = iter(official.tokens(flat, context))
        grouped = [tuple(next(tokens) for _ in group) for group in references]
        spoken = official.tokens(hypotheses, context)
        details = {
            "tokenizer": {
                "program": "PTB (CoreNLP 3.4.1)",
                "context": context,
                "captions": len(flat) + len(hypotheses),
                "outside_guard": official.outside,
                "by_java": official.asked,
            }
        }
        return cls(spoken, grouped, details, tuple(official.notes))


class _Official:
    """The Python tokenizer, with the official program for what is outside its guard, where there is Java."""

    def __init__(self, settings: MetricSettings) -> None:
        self.settings = settings
        self.outside = self.asked = 0
        self.notes: list[str] = []

    def tokens(self, captions: Sequence[str], context: ptb.Context) -> list[str]:
        result = ptb.tokenize(captions, context=context)
        outside = [index for index, caption in enumerate(captions) if not ptb.guarded(caption)]
        self.outside += len(outside)
        if outside:
            after = _next_lines(captions, context)
            try:
                living = ptb.tokenizer_worker(find_java(self.settings.java))
                answers = ptb.official(living, [(captions[index], after[index]) for index in outside])
            except MetricError as error:
                self.notes.append(
                    f"{len(outside)} of {len(captions)} captions are outside the tokenizer's guard and were tokenized "
                    f"without the official program; their tokens may differ from it ({str(error).partition('. ')[0]})"
                )
                return result
            for index, answer in zip(outside, answers, strict=True):
                if isinstance(answer, Failure):
                    self.notes.append(f"the official tokenizer failed on {captions[index]!r:.60}: {answer.reason:.200}")
                else:
                    result[index] = answer
                    self.asked += 1
        return result


def _next_lines(captions: Sequence[str], context: ptb.Context) -> list[str | None]:
    """Return what stands on the lines after each caption, as far as it can matter; None after the last."""
    after: list[str | None] = [None] * len(captions)
    if context == "file":
        following: str | None = None
        for index in range(len(captions) - 1, -1, -1):
            after[index] = following
            if ptb.one_line(captions[index]).strip():
                # White space behind an opening word matters, so a caption that is not the last keeps its line break.
                following = captions[index] if index == len(captions) - 1 else captions[index] + " "
            elif following is None:
                following = ""
    return after


# --- scores ----------------------------------------------------------------------------------------------------------


def _score(
    keys: Sequence[Hashable],
    tokens: _Tokens,
    wanted: Sequence[str],
    settings: MetricSettings,
    clusters: Sequence[Hashable] = (),
) -> Scores:
    import numpy as np

    from evalkit.metrics import ngrams
    from evalkit.metrics.meteor import meteor

    aggregate: dict[str, float] = {}
    per_sample: dict[str, tuple[float | None, ...]] = {}
    unavailable: dict[str, str] = {}
    details: dict[str, Any] = dict(tokens.details)
    notes = list(tokens.notes)
    intervals: dict[str, tuple[float, float] | None] = {}
    corpus = ngrams.Corpus.of(tokens.hypotheses, tokens.references)
    if any(name in wanted for name in GROUPS["BLEU"]):
        matched = ngrams.bleu_statistics(corpus)
        for order, value in enumerate(ngrams.bleu(matched.sum(axis=0))):
            name = GROUPS["BLEU"][order]
            if name in wanted:
                aggregate[name] = value
                intervals[name] = _interval(matched, partial(_bleu, order), clusters)
    if "METEOR" in wanted:
        try:
            value, rows = _meteor(keys, tokens, settings, notes)
            aggregate["METEOR"] = value
            kept = [index for index, row in enumerate(rows) if row is not None]
            table = np.array([rows[index] for index in kept])
            groups = [clusters[index] for index in kept] if clusters else ()
            intervals["METEOR"] = _interval(table, lambda total: meteor(total.tolist()), groups)
        except MetricError as error:
            unavailable["METEOR"] = str(error)
    for name, function in (("ROUGE_L", ngrams.rouge_l), ("CIDEr", ngrams.cider)):
        if name in wanted:
            values = function(corpus)
            aggregate[name] = float(np.mean(values))
            per_sample[name] = tuple(values.tolist())
    if "SPICE" in wanted:
        try:
            spice_values, categories = _spice(keys, tokens, settings, notes)
            counted = [each for each in spice_values if each is not None]
            aggregate["SPICE"] = math.fsum(counted) / len(counted)
            per_sample["SPICE"] = spice_values
            details["SPICE"] = categories
        except MetricError as error:
            unavailable["SPICE"] = str(error)
    return Scores(
        aggregate={name: aggregate[name] for name in wanted if name in aggregate},
        per_sample=per_sample,
        intervals={name: interval for name, interval in intervals.items() if interval},
        unavailable=unavailable,
        details=details,
        notes=tuple(notes),
    )


def _bleu(order: int, total: npt.NDArray[Any]) -> float:
    from evalkit.metrics import ngrams

    return ngrams.bleu(total)[order]


def _interval(
    rows: npt.NDArray[Any], score: Callable[[npt.NDArray[Any]], float], clusters: Sequence[Hashable]
) -> tuple[float, float] | None:
    """Return the 95 % interval of a score of added statistics, (samples, columns), over images drawn anew."""
    interval = bootstrap_interval(lambda places: score(rows[places].sum(axis=0)), clusters, seed=0, clip=True)
    return (interval.low, interval.high) if interval else None


Pair = tuple[str, tuple[str, ...]]
_METEOR_ROWS: dict[Pair, tuple[float, ...]] = {}
"""METEOR's statistics of what this process has aligned: a second score of the same captions aligns nothing."""
_MAX_KEPT = 500_000


def _meteor(
    keys: Sequence[Hashable], tokens: _Tokens, settings: MetricSettings, notes: list[str]
) -> tuple[float, list[tuple[float, ...] | None]]:
    from evalkit.metrics.meteor import meteor_worker, official_meteor, statistics

    reason = _meteor_reason(settings)
    if reason:
        raise MetricError(reason)
    pairs = list(zip(tokens.hypotheses, tokens.references, strict=True))
    living = meteor_worker(find_java(settings.java))
    new = [pair for pair in dict.fromkeys(pairs) if pair not in _METEOR_ROWS]
    if len(_METEOR_ROWS) + len(new) > _MAX_KEPT:
        _METEOR_ROWS.clear()
        new = list(dict.fromkeys(pairs))
    failed: dict[Pair, str] = {}
    for pair, row in zip(new, statistics(living, new), strict=True):
        if isinstance(row, Failure):
            failed[pair] = row.reason
        else:
            _METEOR_ROWS[pair] = row
    rows = [_METEOR_ROWS.get(pair) for pair in pairs]
    _name_failures(notes, "METEOR", keys, pairs, failed)
    counted = [row for row in rows if row is not None]
    if not counted:
        raise MetricError(f"METEOR failed on every image: {next(iter(failed.values()))}")
    return official_meteor(living, [sum(column) for column in zip(*counted, strict=True)]), rows


def _spice(
    keys: Sequence[Hashable], tokens: _Tokens, settings: MetricSettings, notes: list[str]
) -> tuple[tuple[float | None, ...], dict[str, float]]:
    from evalkit.metrics.spice import category_means, spice

    reason = _spice_reason(settings)
    if reason:
        raise MetricError(reason)
    pairs = list(zip(tokens.hypotheses, tokens.references, strict=True))
    results = spice(pairs, settings)
    failed = {pair: result.reason for pair, result in zip(pairs, results, strict=True) if isinstance(result, Failure)}
    _name_failures(notes, "SPICE", keys, pairs, failed)
    scored = [None if isinstance(result, Failure) else result for result in results]
    if all(result is None for result in scored):
        raise MetricError(f"SPICE failed on every image: {next(iter(failed.values()))}")
    values = tuple(None if result is None else result.f for result in scored)
    return values, category_means([result for result in scored if result is not None])


def _name_failures(
    notes: list[str], metric: str, keys: Sequence[Hashable], pairs: Sequence[Pair], failed: Mapping[Pair, str]
) -> None:
    left_out = [(key, failed[pair]) for key, pair in zip(keys, pairs, strict=True) if pair in failed]
    for key, reason in left_out[:20]:
        notes.append(f"{metric} leaves out image {key}: {reason}")
    if len(left_out) > 20:
        notes.append(f"{metric} leaves out {len(left_out) - 20} more images")


# --- what is missing -------------------------------------------------------------------------------------------------


def _meteor_reason(settings: MetricSettings) -> str | None:
    try:
        find_java(settings.java)
        scorer_file("meteor/meteor-1.5.jar")
        scorer_file("meteor/data/paraphrase-en.gz")
    except MetricError as error:
        return f"METEOR is computed by its authors' Java program: {error}"
    if importlib.util.find_spec("jpype") is None:
        return "METEOR needs the package jpype1: `pip install jpype1`."
    return None


def _spice_reason(settings: MetricSettings) -> str | None:
    from evalkit.metrics.spice import spice_jars

    try:
        find_java(settings.java)
        spice_jars(settings.corenlp)
    except MetricError as error:
        return f"SPICE is computed by its authors' Java program: {error}"
    if importlib.util.find_spec("jpype") is None:
        return "SPICE needs the package jpype1: `pip install jpype1`."
    return None
