"""BLEU, ROUGE-L and CIDEr against the official code, and what `caption_scores` does with odd input."""

from __future__ import annotations

import math
import os
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from evalkit.errors import MetricError
from evalkit.metrics import ngrams
from evalkit.metrics.caption import NAMES, caption_metric, caption_scores, preflight
from evalkit.types import Answered, MetricSettings, Sample
from tests.strategies import any_text
from tests.support import ROOT

PLAIN = ("BLEU", "ROUGE_L", "CIDEr")
NO_JAVA = MetricSettings(java=str(Path(sys.executable).parent / "no-java-here"))


def random_corpus(draw: random.Random) -> tuple[list[str], list[list[str]]]:
    vocabulary, size = draw.choice([2, 5, 30]), draw.randint(1, 12)

    def caption() -> str:
        return " ".join(f"w{draw.randrange(vocabulary)}" for _ in range(draw.choice([0, 1, 2, 3, 5, 9, 12, 70, 130])))

    return [caption() for _ in range(size)], [[caption() for _ in range(draw.randint(1, 6))] for _ in range(size)]


def test_random_corpora_score_as_in_the_official_code() -> None:
    bleu = pytest.importorskip("pycocoevalcap.bleu.bleu").Bleu(4)
    rouge = pytest.importorskip("pycocoevalcap.rouge.rouge").Rouge()
    cider = pytest.importorskip("pycocoevalcap.cider.cider").Cider
    draw = random.Random(3)
    scored = 0
    while scored < 100:
        hypotheses, references = random_corpus(draw)
        if not any(caption for group in references for caption in group):
            continue  # the official CIDEr cannot
        scored += 1
        theirs = dict(enumerate(references)), {index: [caption] for index, caption in enumerate(hypotheses)}
        corpus = ngrams.Corpus.of(hypotheses, references)
        assert ngrams.bleu(ngrams.bleu_statistics(corpus).sum(axis=0)) == tuple(
            bleu.compute_score(*theirs, verbose=0)[0]
        )
        assert ngrams.rouge_l(corpus).tolist() == rouge.compute_score(*theirs)[1].tolist()
        assert ngrams.cider(corpus) == pytest.approx(cider().compute_score(*theirs)[1], rel=1e-12, abs=1e-15)


def test_references_that_are_all_empty_score_nothing() -> None:
    scores = caption_scores(["a dog", ""], [[""], ["", "..."]], metrics=PLAIN)
    assert scores.aggregate["CIDEr"] == 0
    assert scores.aggregate["Bleu_1"] < 1e-8
    assert scores.per_sample["ROUGE_L"] == (0.0, 1.0)  # two empty captions are one empty word each, officially


def test_a_single_image_has_no_cider() -> None:
    scores = caption_scores(["a red bus"], [["a red bus"]], metrics=PLAIN)
    assert scores.aggregate["CIDEr"] == 0
    assert scores.aggregate["ROUGE_L"] == 1


captions = st.text(alphabet="abc .'", max_size=14)


@given(
    st.dictionaries(st.integers(), st.tuples(captions, st.lists(captions, min_size=1, max_size=3)), min_size=1),
    st.randoms(),
)
@settings(max_examples=60, deadline=None)
def test_the_order_of_images_changes_nothing(images: dict[int, tuple[str, list[str]]], order: random.Random) -> None:
    shuffled = list(images)
    order.shuffle(shuffled)
    first = score_isolated(images, list(images))
    second = score_isolated(images, shuffled)
    assert first.aggregate == pytest.approx(second.aggregate, rel=1e-12)
    by_key = dict(zip(shuffled, second.per_sample["CIDEr"], strict=True))
    assert first.per_sample["CIDEr"] == pytest.approx([by_key[key] for key in images])


def score_isolated(images: dict[int, tuple[str, list[str]]], order: list[int]) -> Any:
    return caption_scores(
        {key: images[key][0] for key in order},
        {key: images[key][1] for key in order},
        metrics=PLAIN,
        settings=NO_JAVA,
        context="isolated",
    )


@given(st.lists(any_text, min_size=1, max_size=4))
@settings(max_examples=150, deadline=None)
def test_no_text_crashes_a_metric(texts: list[str]) -> None:
    scores = caption_scores(texts, [[text, "a dog"] for text in texts], metrics=PLAIN, settings=NO_JAVA)
    assert all(math.isfinite(value) for value in scores.aggregate.values())


def test_perfect_captions_score_the_maximum() -> None:
    said = [
        f"a {colour} {thing} on the {place} table" for colour, thing, place in zip("abcd", "efgh", "ijkl", strict=True)
    ]
    scores = caption_scores(said, [[caption] for caption in said], metrics=PLAIN)
    assert [scores.aggregate[name] for name in NAMES if name.startswith("Bleu")] == pytest.approx([1] * 4)
    assert scores.aggregate["ROUGE_L"] == pytest.approx(1)
    assert scores.aggregate["CIDEr"] == pytest.approx(10)


def test_only_means_have_values_per_sample() -> None:
    scores = caption_scores(["a dog", "a cat"], [["a dog"], ["a cow"]], metrics=PLAIN)
    assert set(scores.per_sample) == {"ROUGE_L", "CIDEr"}
    for name, values in scores.per_sample.items():
        assert scores.aggregate[name] == np.mean([value for value in values if value is not None])


@pytest.mark.parametrize(
    ("hypotheses", "references", "said"),
    [
        ({}, {}, "at least one image"),
        ({1: "a"}, {1: ["a"], 2: ["b"]}, "no hypothesis for image 2"),
        ({1: "a", 3: "c"}, {1: ["a"]}, "no references for image 3"),
        ({1: "a"}, {1: []}, "at least one text"),
        ({1: "a"}, {1: "a"}, "at least one text"),
        ({1: ["a"]}, {1: ["a"]}, "must be a text"),
        ({1: None}, {1: ["a"]}, "must be a text"),
        (["a"], [["a"], ["b"]], "references for 2 images"),
        (["a"], {1: ["a"]}, "both"),
    ],
)
def test_input_that_cannot_be_scored_is_named(hypotheses: Any, references: Any, said: str) -> None:
    with pytest.raises(MetricError, match=said):
        caption_scores(hypotheses, references, metrics=PLAIN)


def test_an_unknown_metric_is_named_with_its_neighbour() -> None:
    with pytest.raises(MetricError, match="did you mean 'CIDEr'"):
        caption_scores(["a"], [["a"]], metrics=["CIDer"])


def test_without_java_the_rest_is_scored_and_says_what_is_missing() -> None:
    said, references = ["a red bus", "a dog :-) www.x.com"], [["a red bus"], ["the dog"]]
    scores = caption_scores(said, references, settings=NO_JAVA)
    assert set(scores.unavailable) == {"METEOR", "SPICE"}
    assert all("metrics.java" in reason for reason in scores.unavailable.values())
    assert list(scores.aggregate) == ["Bleu_1", "Bleu_2", "Bleu_3", "Bleu_4", "ROUGE_L", "CIDEr"]
    assert [note for note in scores.notes if note.startswith("1 of 2 captions are outside the tokenizer's guard")]
    assert set(preflight(NO_JAVA)) == {"METEOR", "SPICE"}
    assert preflight(MetricSettings(java=NO_JAVA.java, names=("CIDEr",))) == {}


def test_the_context_rule_is_recorded_and_obeyed() -> None:
    said, references = ["x", "y"], [["the letter T."], ["A man"]]
    in_file = caption_scores(said, references, metrics=["BLEU"])
    alone = caption_scores(said, references, metrics=["BLEU"], context="isolated")
    assert in_file.details["tokenizer"]["context"] == "file"
    assert alone.details["tokenizer"]["context"] == "isolated"
    exact = caption_scores(["the letter t", "a man"], references, metrics=["Bleu_4", "ROUGE_L"])
    assert exact.aggregate["ROUGE_L"] == 1
    assert (
        exact.aggregate["ROUGE_L"]
        > caption_scores(["the letter t", "a man"], references, metrics=["ROUGE_L"], context="isolated").aggregate[
            "ROUGE_L"
        ]
    )


def answered(said: list[str], references: list[list[str]]) -> list[Answered]:
    return [
        Answered(sample=Sample(id=f"s{index}", image_ids=(f"i{index}",), reference={"captions": group}), answer=caption)
        for index, (caption, group) in enumerate(zip(said, references, strict=True))
    ]


def test_the_metric_of_a_task_scores_what_the_function_scores() -> None:
    said, references = (
        ["a red bus", "two dogs", "a cat"],
        [["a red bus"], ["a dog", "two brown dogs"], ["the cat sleeps"]],
    )
    settings = MetricSettings(names=PLAIN)
    metric = caption_metric()
    scores = metric.compute(answered(said, references), settings)
    plain = caption_scores(said, references, metrics=PLAIN)
    assert scores.aggregate == plain.aggregate
    assert scores.per_sample == plain.per_sample
    assert not metric.independent
    # A subset is scored as a set of its own: other document frequencies, other CIDEr.
    part = metric.compute(answered(said, references)[1:], settings)
    assert part.per_sample["CIDEr"] == caption_scores(said[1:], references[1:], metrics=PLAIN).per_sample["CIDEr"]
    assert part.per_sample["CIDEr"] != scores.per_sample["CIDEr"][1:]


def test_bleu_gets_an_interval_around_it() -> None:
    draw = random.Random(5)
    words = ["red", "blue", "bus", "dog", "cat", "on", "the", "a"]
    references = [[" ".join(draw.choices(words, k=9))] for _ in range(60)]
    said = [
        " ".join(word if draw.random() < 0.7 else draw.choice(words) for word in group[0].split())
        for group in references
    ]
    scores = caption_metric().compute(answered(said, references), MetricSettings(names=("BLEU",)))
    assert set(scores.intervals) == {"Bleu_1", "Bleu_2", "Bleu_3", "Bleu_4"}
    for name, (low, high) in scores.intervals.items():
        assert low < scores.aggregate[name] < high


def test_a_blind_sample_is_named() -> None:
    blind = Answered(sample=Sample(id="s1", image_ids=("i",)), answer="a dog")
    with pytest.raises(MetricError, match="sample s1"):
        caption_metric().compute([blind], MetricSettings())


def test_importing_the_module_loads_nothing_heavy() -> None:
    code = (
        "import sys, evalkit.metrics.caption\n"
        "print([name for name in ('numpy', 'jpype', 'pandas', 'torch', 'pycocoevalcap') if name in sys.modules])"
    )
    answer = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert answer.stdout.strip() == "[]"
