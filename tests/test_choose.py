"""A `choose` task of one's own, end to end: a file with a task, a file with questions, and models of all kinds."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from tests.models import tiny
from tests.support import Ran, answers, only_run, run_evalkit, runs, scores

Command = Callable[..., Ran]

TASK = """
from evalkit.data import IMAGES
from evalkit.metrics.text import accuracy_metric
from evalkit.types import Dataset, Sample, Slot, Task


def load(source):
    samples = tuple(
        Sample(
            id=key,
            image_ids=(row["image"],),
            fields={"question": row["question"]},
            options=tuple(row["options"]),
            reference={"option": row["right"]},
        )
        for key, row in source.read("questions").items()
    )
    return Dataset(samples=samples, images=source.images())


TASKS = (
    Task(
        name="mine/val",
        kind="choose",
        summary="Questions with options",
        load=load,
        metrics=(accuracy_metric(),),
        primary="accuracy",
        prompts={
            "completion": "Question: {question} Answer:",
            "short-answer": "Question: {question} Short answer:",
            "chat": "{question}",
            "match": "a photo of {option}\\n{question} {option}",
        },
        slots=(
            Slot(name="questions", default="questions.json"),
            Slot(name=IMAGES, default="images"),
        ),
        perfect=lambda sample: sample.options[sample.reference["option"]],
    ),
)
"""
WORDS = ("task=./mine.py", "data=files", "data.root=root", "data.check=false")
KINDS = (
    ("is it red?", ("yes", "no"), (0, 1, 1, 1, 0, 1)),
    ("what is the colour?", ("red", "cat", "the colour"), (1, 0, 1, 2, 1, 0)),
    ("how many cats?", ("1", "2", "many", "no cat"), (1, 1, 0, 3, 2, 1)),
)
"""Question, options, and the right one on each of six pictures."""


def rows() -> dict[str, dict[str, Any]]:
    """Return three questions on each picture."""
    return {
        f"{image}-{number}": {
            "image": str(image),
            "question": question,
            "options": options,
            "right": right[image - 1],
        }
        for image in range(1, 7)
        for number, (question, options, right) in enumerate(KINDS)
    }


def write(root: Path, table: Mapping[str, Any]) -> None:
    (root / "questions.json").write_text(json.dumps(table))


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "mine.py").write_text(TASK)
    (tmp_path / "root" / "images").mkdir(parents=True)
    for image in range(1, 7):
        tiny.pictures()[image % 4].rotate(90 * (image // 4)).save(tmp_path / "root" / "images" / f"{image}.png")
    write(tmp_path / "root", rows())
    return tmp_path / "root"


@pytest.mark.usefixtures("root")
def test_a_models_choices_are_the_same_on_two_devices(command: Command, tmp_path: Path) -> None:
    checkpoint = tiny.blip2_text(tmp_path / "twin")
    model = ("model=blip2-opt", f"model.checkpoint={checkpoint}", "model.revision=null", *WORDS, "engine.image_batch=2")
    for ran in (
        command(*model, "devices=1", "out=one/runs"),
        run_evalkit(*model, "devices=2", "out=two/runs", cwd=tmp_path),
    ):
        assert ran.code == 0, ran.err
        assert "18/18 samples" in ran.err
    (one,), (two,) = runs(tmp_path / "one" / "runs"), runs(tmp_path / "two" / "runs")
    table, prompts = rows(), {f"Question: {text} Answer:" for text, *_ in KINDS}
    assert {prompt for prompt, *_ in answers(one).values()} == prompts
    chosen = {key: output for key, (_, output, _, _) in answers(one).items()}
    assert all(output in table[key]["options"] for key, output in chosen.items())
    assert {chosen[f"{image}-1"] for image in range(1, 7)} == {"red", "cat"}, "the choice follows the picture"
    right = sum(table[key]["options"].index(output) == table[key]["right"] for key, output in chosen.items())
    assert scores(one)["scores"]["accuracy"] == pytest.approx(right / 18)
    assert one.name == two.name
    assert answers(one) == answers(two)
    assert (one / "scores.json").read_bytes() == (two / "scores.json").read_bytes()


@pytest.mark.usefixtures("root")
@pytest.mark.parametrize("style", ["completion", "match"])
def test_bounds_and_fake(command: Command, tmp_path: Path, style: str) -> None:
    """By likelihood and by similarity; three questions on one picture have three right texts."""
    for model in ("oracle", "majority", "fake"):
        ran = command(f"model={model}", f"prompt_style={style}", *WORDS)
        assert ran.code == 0, ran.err
    found = {model: scores(only_run(tmp_path, "mine", model))["scores"]["accuracy"] for model in ("oracle", "majority")}
    # "no" is the most frequent right option, 4 times; of the other questions' the second, 6 times.
    assert found == {"oracle": 1.0, "majority": pytest.approx((4 + 6) / 18)}
    chosen = [output for _, output, _, _ in answers(only_run(tmp_path, "mine", "fake")).values()]
    assert len(set(chosen)) > 4


def test_other_options_are_another_run(command: Command, tmp_path: Path, root: Path) -> None:
    table = rows()
    assert command("model=fake", *WORDS).code == 0
    assert "all 18 samples were answered before" in command("model=fake", *WORDS).err
    table["1-0"]["options"] = ("no", "yes")
    write(root, table)
    assert command("model=fake", *WORDS).code == 0
    assert len(runs(tmp_path / "results" / "runs")) == 2
    table["1-0"]["right"] = 1 - table["1-0"]["right"]
    write(root, table)
    ran = command("model=fake", *WORDS)
    assert ran.code == 0, "a reference is no part of what was asked"
    assert len(runs(tmp_path / "results" / "runs")) == 2


@pytest.mark.usefixtures("root")
@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (("model=api", "model.base_url=http://localhost:9/v1", "model.served_name=x"), "no likelihood of an option"),
        (("model=clip", "prompt_style=completion"), "no likelihood of an option"),
        (("model=llava-1.5-7b", "prompt_style=match"), "no embeddings"),
        (("model=blip-itm-coco", "prompt_style=completion"), "no likelihood of an option"),
        (("model=blip2-opt", "decoding.num_beams=5"), "decoding.num_beams=5 has nothing to act on"),
    ],
    ids=lambda value: value[0] if isinstance(value, tuple) else "",
)
def test_a_model_that_cannot_choose_is_refused_before_it_loads(
    command: Command, tmp_path: Path, words: tuple[str, ...], reason: str
) -> None:
    nowhere = () if words[0] == "model=api" else (f"model.checkpoint={tmp_path / 'nowhere'}",)
    ran = command(*words, *nowhere, *WORDS)
    assert ran.code == 2
    assert reason in ran.paragraph
    assert not (tmp_path / "results").exists()


def test_an_option_without_words_fails_its_sample_alone(command: Command, tmp_path: Path, root: Path) -> None:
    table = rows()
    table["3-1"]["options"] = ("red", "")
    table["4-1"]["options"] = ()
    table["3-1"]["right"] = table["4-1"]["right"] = 0
    write(root, table)
    checkpoint = tiny.chat(tmp_path / "twin", "llava")
    ran = command("model=llava-1.5-7b", f"model.checkpoint={checkpoint}", "model.revision=null", *WORDS)
    assert ran.code == 3, ran.err
    failed = {key: error for key, (_, _, error, _) in answers(only_run(tmp_path)).items() if error}
    assert failed.keys() == {"3-1", "4-1"}
    assert "option '' of sample 3-1 has no token of its own" in failed["3-1"]
    assert "sample 4-1 has no options" in failed["4-1"]
