"""The blocks of the golden files about captions. METEOR and SPICE are Java: without it, their blocks skip."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence

import pytest

from evalkit.errors import MetricError
from evalkit.metrics import ptb
from evalkit.metrics.caption import _Official, caption_scores
from evalkit.metrics.java import Failure, find_java
from evalkit.metrics.spice import spice
from evalkit.types import MetricSettings, Scores
from tests.golden_compare import CAPTIONS, Check, Doc, GoldenFile, count, differences
from tests.support import shared

_BY_HAND = ("Bleu_1", "Bleu_2", "Bleu_3", "Bleu_4", "ROUGE_L", "CIDEr")
"""What needs no Java."""


def _no_java() -> str | None:
    try:
        find_java(None)
    except MetricError as error:
        return str(error)
    return None


def _same_tokens(captions: Sequence[str], expected: Sequence[str], context: ptb.Context) -> Iterator[str]:
    """Compare the tokens that `caption_scores` uses; those outside the guard of its own tokenizer may need Java."""
    actual = _Official(MetricSettings()).tokens(captions, context)
    missed = 0
    for caption, one, other in zip(captions, actual, expected, strict=True):
        if one != other and _no_java() and not ptb.guarded(caption):
            missed += 1
        elif one != other:
            yield f"{caption!r}: {one!r}, expected {other!r}"
    if missed:
        pytest.skip(f"{missed} captions are outside the tokenizer's guard, and there is no Java: {_no_java()}")


def _tokenized(doc: Doc) -> Iterator[str]:
    """As the official wrapper does it: all references are the lines of one file, all hypotheses of another."""
    by_id = {each["image_id"]: each for each in doc["tokenized"]}
    images = [(image, by_id[image["image_id"]]) for image in doc["images"]]
    yield from _same_tokens(
        [text for image, _ in images for text in image["references"]],
        [text for _, tokens in images for text in tokens["references"]],
        "file",
    )
    hypotheses = [image["hypothesis"] for image, _ in images]
    yield from _same_tokens(hypotheses, [tokens["hypothesis"] for _, tokens in images], "file")


def _tokenizer_cases(doc: Doc) -> Iterator[str]:
    cases = doc["tokenizer_cases"]
    yield from _same_tokens([case["raw"] for case in cases], [case["tokenized"] for case in cases], "isolated")


def _images(doc: Doc, ids: Iterable[int] | None = None) -> list[Doc]:
    wanted = None if ids is None else set(ids)
    return [image for image in doc["images"] if wanted is None or image["image_id"] in wanted]


def _caption_scores(images: Sequence[Doc], metrics: Sequence[str]) -> Scores:
    if "METEOR" in metrics and (reason := _no_java()):
        pytest.skip(f"METEOR is Java: {reason}")
    return caption_scores(
        {image["image_id"]: image["hypothesis"] for image in images},
        {image["image_id"]: image["references"] for image in images},
        metrics=metrics,
    )


def _per_image(images: Sequence[Doc], metrics: Sequence[str]) -> Doc:
    """Means as the set gives them; BLEU and METEOR, which are none, from each image alone."""
    scores = _caption_scores(images, metrics)
    values: Doc = {}
    for place, image in enumerate(images):
        alone = [name for name in metrics if name not in scores.per_sample]
        row = dict(_caption_scores([image], alone).aggregate) if alone else {}
        values[str(image["image_id"])] = row | {name: column[place] for name, column in scores.per_sample.items()}
    return values


def _captions(block: str, part: str, metrics: Sequence[str]) -> Check:
    """Check `aggregate` or `per_image` of a block, as far as it is about these metrics."""

    def check(doc: Doc) -> Iterator[str]:
        found = doc[block]
        images = _images(doc, found.get("image_ids") or ([found["image_id"]] if "image_id" in found else None))
        if part == "aggregate":
            actual: Doc = dict(_caption_scores(images, metrics).aggregate)
            expected = {name: value for name, value in found[part].items() if _is_about(name, metrics)}
        else:
            actual = _per_image(images, metrics)
            expected = {
                key: {name: value for name, value in row.items() if _is_about(name, metrics)}
                for key, row in found[part].items()
            }
        yield from differences(f"{block}.{part}", actual, expected, CAPTIONS, relative=True)

    return check


def _is_about(name: str, metrics: Sequence[str]) -> bool:
    """Return whether a metric belongs to this block; one that no block knows belongs to those without Java."""
    return name in metrics or (name != "METEOR" and metrics == _BY_HAND)


# SPICE


def _spice_settings() -> MetricSettings:
    if reason := _no_java():
        pytest.skip(f"SPICE is Java: {reason}")
    folder = os.environ.get("EVALKIT_CORENLP") or str(shared("corenlp"))
    return MetricSettings(corenlp=folder)


def _spice_cases(block: str) -> Check:
    def check(doc: Doc) -> Iterator[str]:
        cases = doc[block]
        tokens = [case["tokenized"] for case in cases]
        for key in ("references", "hypothesis"):
            raw, expected = (
                [[case[key]] if key == "hypothesis" else case[key] for case in each] for each in (cases, tokens)
            )
            yield from _same_tokens(
                [text for texts in raw for text in texts], [text for texts in expected for text in texts], "file"
            )
        scores = spice([(each["hypothesis"], each["references"]) for each in tokens], _spice_settings())
        for case, score in zip(cases, scores, strict=True):
            if isinstance(score, Failure):
                yield f"image {case['image_id']}: {score.reason}"
                continue
            actual = {
                "scores": {
                    name: {
                        "f": each.f,
                        "pr": each.precision,
                        "re": each.recall,
                        "tp": each.tp,
                        "fp": each.fp,
                        "fn": each.fn,
                    }
                    for name, each in score.categories.items()
                },
                "test_tuples": [list(each) for each in score.hypothesis_tuples],
                "matched_test_tuples": [list(each) for each in score.matched_tuples],
                "ref_tuples": [list(each) for each in score.reference_tuples],
            }
            yield from differences(f"image {case['image_id']}", actual, case["expected"])

    return check


def _spice_aggregate(doc: Doc) -> Iterator[str]:
    scores = caption_scores(
        {image["image_id"]: image["hypothesis"] for image in doc["images"]},
        {image["image_id"]: image["references"] for image in doc["images"]},
        metrics=["SPICE"],
        settings=_spice_settings(),
    )
    if reason := scores.unavailable.get("SPICE"):
        yield f"SPICE: {reason}"
    else:
        actual = {"SPICE": scores.aggregate["SPICE"], "by_category": scores.details["SPICE"]}
        yield from differences("aggregate", actual, doc["expected"]["aggregate"])


CAPTION_FILES: Mapping[str, GoldenFile] = {
    "caption_small": GoldenFile(
        inputs=frozenset({"images", "image_ids", "image_id"}),
        expectations=frozenset({"references", "hypothesis", "tokenized", "aggregate", "per_image"}),
        blocks={
            "n": count("n", lambda doc: len(doc["images"])),
            "tokenized": _tokenized,
            "tokenizer_cases": _tokenizer_cases,
            **{
                f"{block}.{part}{suffix}": _captions(block, part, metrics)
                for block in ("expected", "subset_first_3", "single_image")
                for part in ("aggregate", "per_image")
                for suffix, metrics in (("", _BY_HAND), (" METEOR", ("METEOR",)))
            },
        },
    ),
    "spice_small": GoldenFile(
        expectations=frozenset({"expected", "tokenized"}),
        blocks={
            "n": count("n", lambda doc: len(doc["images"])),
            "images": _spice_cases("images"),
            "edge_cases": _spice_cases("edge_cases"),
            "expected.aggregate": _spice_aggregate,
        },
        mutations=5,
    ),
}
