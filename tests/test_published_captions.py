"""Caption scores that others published, from the captions they published.

A test an entry of `data/expected_scores.json` of the shared evaluation data that is about captions. What needs Java,
and what parses 30,000 captions, stands apart.
"""

from __future__ import annotations

import gzip
import json
import os
from pathlib import Path
from typing import Any

import pytest

from evalkit.metrics.caption import caption_scores, preflight
from evalkit.types import MetricSettings, Scores
from tests.support import shared

RL, DEMO, GOOD, BAD = "coco_caption show_edit_tell RL", "coco_caption demo (fakecap)", "clipscore good", "clipscore bad"
ENTRIES = (RL, DEMO, GOOD, BAD)
PARSES_MUCH = [pytest.param(RL, marks=pytest.mark.long), pytest.param(DEMO, marks=pytest.mark.long), GOOD, BAD]
NGRAMS = ("Bleu_1", "Bleu_2", "Bleu_3", "Bleu_4", "ROUGE_L", "CIDEr")


def read(name: str) -> Any:
    path = shared(f"data/{name}")
    with gzip.open(path, "rt", encoding="utf-8") if path.suffix == ".gz" else open(path, encoding="utf-8") as file:
        return json.load(file)


def entry(name: str) -> dict[str, Any]:
    return {each["name"]: each for each in read("expected_scores.json")}[name]


def captions(name: str) -> tuple[dict[Any, str], dict[Any, list[str]]]:
    """Return the captions and references of an entry, in the order of the annotation file's images."""
    said, told = (read(file) for file in entry(name)["files"])
    if isinstance(told, dict) and "annotations" in told:
        references: dict[Any, list[str]] = {image["id"]: [] for image in told["images"]}
        for annotation in told["annotations"]:
            references[annotation["image_id"]].append(annotation["caption"])
        hypotheses = {each["image_id"]: each["caption"] for each in said}
        # The official evaluation scores the images of the annotation file that the results name.
        references = {key: group for key, group in references.items() if key in hypotheses}
        return {key: hypotheses[key] for key in references}, references
    return said, told


def scored(name: str, metrics: tuple[str, ...], settings: MetricSettings | None = None) -> Scores:
    settings = settings or MetricSettings()
    missing = preflight(settings)
    for metric in metrics:
        if metric in missing:
            pytest.skip(missing[metric])
    scores = caption_scores(*captions(name), metrics=metrics, settings=settings)
    assert scores.unavailable == {}
    assert not [note for note in scores.notes if "leaves out" in note]
    return scores


def agrees(value: float, number: float) -> bool:
    """Return whether a score is the published number, to the digits it was published with."""
    digits = len(str(number).partition(".")[2])
    return (
        value == pytest.approx(number, rel=1e-13) if digits > 10 else abs(value - number) <= 0.5 * 10**-digits + 1e-12
    )


def check(name: str, scores: Scores) -> None:
    expected = entry(name)
    for metric, value in scores.aggregate.items():
        for source in ("published", "recomputed"):
            if metric in expected[source]:
                assert agrees(value, expected[source][metric]), (metric, source, value, expected[source][metric])


def test_every_caption_entry_has_its_test() -> None:
    named = {each["name"] for each in read("expected_scores.json")}
    assert {name for name in named if name.startswith(("coco_caption", "clipscore"))} == set(ENTRIES)


@pytest.mark.parametrize("name", ENTRIES)
def test_bleu_rouge_and_cider_are_those_published(name: str) -> None:
    scores = scored(name, NGRAMS)
    assert set(scores.aggregate) == set(NGRAMS)
    check(name, scores)


def test_captions_of_show_edit_tell_equal_their_authors_file_in_every_digit() -> None:
    published = read("coco_caption_results/show_edit_tell/rl_results.json")
    scores = scored(RL, NGRAMS)
    assert len(scores.per_sample["CIDEr"]) == 5000
    for metric in ("Bleu_1", "Bleu_2", "Bleu_3", "Bleu_4", "ROUGE_L"):
        assert scores.aggregate[metric] == published[metric]
    assert scores.aggregate["CIDEr"] == pytest.approx(published["CIDEr"], rel=1e-13)


@pytest.mark.java
@pytest.mark.parametrize("name", ENTRIES)
def test_meteor_is_the_official_programs(name: str) -> None:
    scores = scored(name, ("METEOR",))
    assert "METEOR" in entry(name)["recomputed"]
    check(name, scores)


@pytest.mark.java
@pytest.mark.parametrize("name", PARSES_MUCH)
def test_spice_is_that_published(name: str, tmp_path: Path) -> None:
    # With EVALKIT_SPICE_CACHE=FOLDER, parses are kept from one test run to the next.
    cache = Path(os.environ.get("EVALKIT_SPICE_CACHE", tmp_path))
    scores = scored(name, ("SPICE",), MetricSettings(corenlp=str(shared("corenlp")), cache=cache))
    assert "SPICE" in entry(name)["published"]
    check(name, scores)
    assert scores.aggregate["SPICE"] == pytest.approx(entry(name)["recomputed"]["SPICE"], rel=1e-14)
