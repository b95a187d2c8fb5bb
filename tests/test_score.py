"""The tables: what cannot be compared never shares one, and every number has what belongs to it beside it."""

from __future__ import annotations

import dataclasses
import json
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from evalkit import score
from evalkit.errors import ConfigError, IncompleteError
from evalkit.metrics.intervals import clustered_mean_interval
from evalkit.types import Answered, Dataset, Metric, MetricSettings, Prediction, Sample, Scores, Task, Text


class NoImages:
    """Scoring opens none."""

    def open(self, image_id: str) -> Any:
        raise AssertionError("scoring needs no image")

    missing = open


def exact(answered: Sequence[Answered], settings: MetricSettings) -> Scores:
    """The share of answers that equal the reference."""
    values = tuple(float(each.answer == each.sample.reference) for each in answered)
    return Scores(aggregate={"exact": sum(values) / len(values)}, per_sample={"exact": values})


def relative(answered: Sequence[Answered], settings: MetricSettings) -> Scores:
    """A metric of the whole set, as CIDEr is: the number of different answers over that of samples."""
    return Scores(aggregate={"variety": len({each.answer for each in answered}) / len(answered)})


def task(**changes: Any) -> Task:
    return dataclasses.replace(
        Task(
            name="made/up",
            kind="generate",
            summary="",
            load=lambda source: dataset(0),
            metrics=(Metric(name="exact", compute=exact),),
            primary="exact",
            extract="strip+lower",
            breakdowns=("kind",),
        ),
        **changes,
    )


def dataset(num: int, *, per_image: int = 3, blind: bool = False) -> Dataset:
    samples = tuple(
        Sample(
            id=str(i),
            image_ids=(f"i{i // per_image}",),
            reference=None if blind else ("yes" if i % 2 else "no"),
            tags={"kind": "odd" if i % 2 else "even"},
        )
        for i in range(num)
    )
    return Dataset(samples=samples, images=NoImages(), stamps=("custom",))


def replies(outputs: Sequence[str | None]) -> dict[str, Prediction]:
    """An answer for each output; None is a failed sample."""
    return {
        str(i): Prediction(sample_id=str(i), output=output, error="torn picture" if output is None else None)
        for i, output in enumerate(outputs)
    }


def scored(outputs: Sequence[str | None], data: Dataset | None = None, made: Task | None = None, **more: Any) -> Any:
    data = data or dataset(len(outputs))
    return score.score(made or task(), data, replies(outputs), MetricSettings(), **more)


def test_answers_are_extracted_joined_by_id_and_counted() -> None:
    result = scored([" No ", "yes", "yes", "YES", "no", "no"])
    assert result["scores"] == {"exact": pytest.approx(4 / 6)}
    assert (result["n"], result["missing"], result["failed"], result["num_images"]) == (6, 0, 0, 2)
    assert (result["task"], result["split"], result["primary"]) == ("made", "up", "exact")
    assert (result["extract"], result["stamps"]) == ("strip+lower", ["custom"])


@given(st.lists(st.sampled_from(["yes", "no", "", "?"]), min_size=1, max_size=20), st.randoms())
def test_the_order_of_predictions_does_not_matter(outputs: list[str], chance: random.Random) -> None:
    data, found = dataset(len(outputs)), replies(outputs)
    shuffled = dict(chance.sample(list(found.items()), len(found)))
    one, other = (score.score(task(), data, each, MetricSettings()) for each in (found, shuffled))
    assert one == other


@given(st.lists(st.sampled_from(["yes", "no"]), min_size=2, max_size=20), st.randoms())
def test_the_order_of_samples_does_not_matter(outputs: list[str], chance: random.Random) -> None:
    data = dataset(len(outputs))
    shuffled = dataclasses.replace(data, samples=tuple(chance.sample(data.samples, len(outputs))))
    one, other = scored(outputs, data), scored(outputs, shuffled)
    assert one["scores"] == pytest.approx(other["scores"])
    assert one["breakdowns"] == other["breakdowns"]
    if one["intervals"]:
        assert one["intervals"]["exact"] == pytest.approx(other["intervals"]["exact"])


def test_predictions_of_samples_that_are_not_asked_are_left_out() -> None:
    found = replies(["no", "yes", "no", "no"])
    result = score.score(task(), dataset(2), found, MetricSettings())
    assert (result["n"], result["scores"]["exact"]) == (2, 1.0)


def test_intervals_are_clustered_by_the_first_image() -> None:
    outputs = ["no", "no", "no", "yes", "yes", "yes", "no", "yes", "no"]
    data = dataset(9)
    result = scored(outputs, data)
    values = [float(output == sample.reference) for output, sample in zip(outputs, data.samples, strict=True)]
    wanted = clustered_mean_interval(values, [sample.image_ids[0] for sample in data.samples], clip=True)
    alone = clustered_mean_interval(values, [sample.id for sample in data.samples])
    assert result["intervals"]["exact"] == list(wanted or ())
    assert wanted != alone, "else this shows nothing"


def test_intervals_of_shares_stay_between_nothing_and_all() -> None:
    result = scored(["no", "no"], dataset(2, per_image=1))
    assert (result["scores"]["exact"], result["intervals"]["exact"]) == (0.5, [0.0, 1.0])


def test_a_metrics_own_interval_stands_and_only_for_scores_that_are_there() -> None:
    def own(answered: Sequence[Answered], settings: MetricSettings) -> Scores:
        return Scores(aggregate={"m": 0.5}, intervals={"m": (0.25, 0.75), "ghost": (0, 1)}, unavailable={"ghost": "no"})

    result = scored(["no", "yes"], made=task(metrics=(Metric(name="m", compute=own),), primary="m"))
    assert result["intervals"] == {"m": [0.25, 0.75]}
    assert result["unavailable"] == {"ghost": "no"}


def test_metrics_are_told_the_texts_and_the_k_of_the_run() -> None:
    seen: list[MetricSettings] = []

    def look(answered: Sequence[Answered], settings: MetricSettings) -> Scores:
        seen.append(settings)
        return Scores(aggregate={"m": 0.0})

    texts = (Text(id="t", text="a", image_ids=("0",)),)
    data = dataclasses.replace(dataset(2), texts=texts)
    score.score(
        task(metrics=(Metric(name="m", compute=look),), primary="m", k=7, breakdowns=()),
        data, replies(["no", "yes"]), MetricSettings(java="j"),
    )  # fmt: skip
    assert seen == [MetricSettings(java="j", texts=texts, k=7)]


def test_pairs_reach_the_metric_as_they_are() -> None:
    pairs = (("t", 0.5, None),)
    found = {"0": Prediction(sample_id="0", output=None, pairs=pairs)}
    got: list[Any] = []

    def look(answered: Sequence[Answered], settings: MetricSettings) -> Scores:
        got.extend(each.answer for each in answered)
        return Scores(aggregate={"m": 0.0})

    score.score(task(metrics=(Metric(name="m", compute=look),), primary="m"), dataset(1), found, MetricSettings())
    assert got == [pairs]


def test_several_metrics_stand_side_by_side() -> None:
    both = (Metric(name="exact", compute=exact), Metric(name="variety", compute=relative, independent=False))
    result = scored(["no", "yes", "no", "no"], made=task(metrics=both))
    assert result["scores"] == {"exact": 0.75, "variety": 0.5}


@pytest.mark.parametrize(("computed", "named"), [(None, "asked"), ("other", "other")])
def test_the_variant_is_the_one_that_was_computed(computed: str | None, named: str) -> None:
    def compute(answered: Sequence[Answered], settings: MetricSettings) -> Scores:
        return Scores(aggregate={"m": 0.5}, variant=computed)

    both = (Metric(name="m", compute=compute), Metric(name="exact", compute=exact))
    assert scored(["no"], made=task(metrics=both, primary="m", variant="asked"))["variant"] == named


def test_breakdowns_of_an_independent_metric_are_means_of_its_samples() -> None:
    result = scored(["no", "yes", "yes", "yes", "no", "no"])
    assert result["breakdowns"] == {
        "kind": {"even": {"n": 3, "exact": pytest.approx(2 / 3)}, "odd": {"n": 3, "exact": pytest.approx(2 / 3)}}
    }


def test_breakdowns_of_a_metric_of_the_set_are_computed_anew() -> None:
    made = task(metrics=(Metric(name="variety", compute=relative, independent=False),), primary="variety")
    result = scored(["a", "b", "a", "c", "a", "d"], made=made)
    assert result["scores"]["variety"] == pytest.approx(4 / 6)
    assert result["breakdowns"]["kind"] == {
        "even": {"n": 3, "variety": pytest.approx(1 / 3)},
        "odd": {"n": 3, "variety": 1.0},
    }


def test_breakdowns_are_over_those_that_have_the_tag() -> None:
    data = dataset(4)
    bare = dataclasses.replace(data.samples[3], tags={})
    result = scored(["no"] * 4, dataclasses.replace(data, samples=(*data.samples[:3], bare)))
    assert {value: row["n"] for value, row in result["breakdowns"]["kind"].items()} == {"even": 2, "odd": 1}


def test_a_failed_sample_stops_the_scoring_and_is_named() -> None:
    with pytest.raises(
        IncompleteError, match=r"made/up: of 4 samples 1 failed \(2: torn picture\).*max_failed"
    ) as caught:
        scored(["no", "yes", None, "yes"])
    assert caught.value.exit_code == 3


def test_a_missing_sample_stops_the_scoring_and_is_named() -> None:
    with pytest.raises(IncompleteError, match=r"of 5 samples 2 are missing \(3, 4\).*allow_partial"):
        scored(["no", "yes", "no"], dataset(5))


def test_many_failures_are_counted_and_some_named() -> None:
    with pytest.raises(IncompleteError, match=r"9 failed \(0: torn picture; .*4: torn picture; and 4 more\)") as caught:
        scored([None] * 9)
    assert "5: torn" not in str(caught.value)


@pytest.mark.parametrize("allowed", [{"max_failed": 2}, {"allow_partial": True}])
def test_what_failed_is_never_scored_and_stands_in_the_result(allowed: dict[str, Any]) -> None:
    result = scored(["no", None, "no", None, "no", "yes"], **allowed)
    assert (result["n"], result["failed"], result["missing"]) == (4, 2, 0)
    assert result["scores"]["exact"] == 1.0, "the denominator is what was answered"
    assert result["stamps"] == ["custom", "partial"]


def test_max_failed_allows_so_many_and_nothing_missing() -> None:
    with pytest.raises(IncompleteError):
        scored(["no", None, None, "yes"], max_failed=1)
    with pytest.raises(IncompleteError):
        scored(["no", None], dataset(3), max_failed=5)
    assert scored(["no", None], dataset(3), allow_partial=True)["missing"] == 1


def test_an_empty_output_is_an_answer() -> None:
    result = scored(["", "yes"])
    assert (result["n"], result["scores"]["exact"]) == (2, 0.5)


def test_an_output_without_an_answer_in_it_is_wrong_not_failed() -> None:
    result = scored(["dunno", "no"], made=task(extract="yes_no"))
    assert (result["n"], result["failed"], result["scores"]["exact"]) == (2, 0, 0.0)


def test_an_extraction_that_gives_no_text_is_refused_where_text_is_compared() -> None:
    with pytest.raises(ConfigError, match="extract=box_0_1 gives no text"):
        score.score(
            task(extract="box_0_1"),
            Dataset(
                samples=(Sample(id="0", image_ids=("i",), fields={"width": 10, "height": 10}, reference="yes"),),
                images=NoImages(),
            ),
            replies(["[0.1, 0.1, 0.5, 0.5]"]),
            MetricSettings(),
        )


def test_with_nothing_answered_there_is_no_score() -> None:
    result = scored([None, None], allow_partial=True)
    assert (result["n"], result["scores"], result["intervals"], result["breakdowns"]) == (0, {}, {}, {})


def test_a_blind_split_has_no_score_and_says_why() -> None:
    result = scored(["no", "yes"], dataset(2, blind=True))
    assert (result["n"], result["scores"], result["intervals"]) == (2, {}, {})
    assert "hidden" in result["unavailable"]["exact"]


def test_scored_twice_the_bytes_are_equal_and_hold_no_time_or_place(tmp_path: Path) -> None:
    results = [scored(["no", "yes", "no", "no"]) for _ in range(2)]
    for name, result in zip("ab", results, strict=True):
        score.write(tmp_path / name, task(), dataset(4), {}, result)
    one, other = ((tmp_path / name / "scores.json").read_bytes() for name in "ab")
    assert one == other
    assert json.loads(one) == results[0]
    assert set(json.loads(one)) == {
        "format", "task", "split", "task_version", "n", "missing", "failed", "num_images", "primary", "variant",
        "extract", "stamps", "scores", "intervals", "breakdowns", "unavailable", "notes",
    }, "a time, host or path would differ between two machines that agree"  # fmt: skip


def test_the_line_for_pipes_is_one_line_of_json() -> None:
    result = scored(["no\u2028", "yes\n"])
    assert "\n" not in score.line(result)
    assert json.loads(score.line(result)) == result
