"""ImageNet zero-shot: the protocol's own texts, classes by place and not by name, and files that are damaged."""

from __future__ import annotations

import contextlib
import dataclasses
import gzip
import hashlib
import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from evalkit.data import check_samples, fingerprint, load_dataset
from evalkit.errors import ConfigError, DataError
from evalkit.registry import resolve_task
from evalkit.tasks import imagenet
from evalkit.testing import check_task
from evalkit.types import Answered, Dataset, MetricSettings, Sample
from tests.official import SOLUTION, SYNSETS, write_imagenet

TEMPLATES = "243621ad7b89de8a7168384b644f5d8d2b4950aa23f9e5bda60b9da5896c9b63"
"""sha256 of the 80 templates of the notebook of openai/CLIP (d05afc4), sorted, with {option} for its {}."""


@pytest.fixture
def root(tmp_path: Path) -> Path:
    write_imagenet(tmp_path)
    return tmp_path


def load(root: Path, name: str = "imagenet", **given: Path) -> Dataset:
    return load_dataset(resolve_task(name), kind="files", root=root, given=given, check=False, images_needed=False)


def right(dataset: Dataset) -> dict[str, str]:
    return {sample.id: sample.options[sample.reference["option"]] for sample in dataset.samples}


def accuracy(dataset: Dataset, answers: Mapping[str, str]) -> float:
    [metric] = resolve_task("imagenet").metrics
    answered = [Answered(sample=sample, answer=answers[sample.id]) for sample in dataset.samples]
    return metric.compute(answered, MetricSettings()).aggregate["accuracy"]


def test_the_templates_are_those_of_the_paper() -> None:
    prompts = resolve_task("imagenet").prompts
    lines = prompts["match"].split("\n")
    assert hashlib.sha256("\n".join(sorted(lines)).encode()).hexdigest() == TEMPLATES
    assert set(prompts["match-best"].split("\n")) < set(lines)
    assert prompts["match-bare"].split("\n") == [*lines, "{option}"]


def test_the_manifest_is_of_fifty_thousand_numbers() -> None:
    ids = (Sample(id=f"ILSVRC2012_val_{number:08d}", image_ids=("",)) for number in range(1, 50_001))
    expected = resolve_task("imagenet").expected
    assert expected is not None
    assert expected.fingerprint == fingerprint(ids)


def test_names_and_labels(root: Path) -> None:
    assert right(load(root)) == {
        "ILSVRC2012_val_00000003": "hen",
        "ILSVRC2012_val_00000001": "tench",
        "ILSVRC2012_val_00000002": "hen",
    }
    assert load(root).samples[0].options == ("tench", "rooster", "hen")
    assert load(root, "imagenet/wordnet").samples[0].options == ("tench", "cock", "hen")
    assert load(root).images.open("ILSVRC2012_val_00000002").size == (40, 30)


def test_classes_are_in_the_order_of_their_ids_whatever_the_order_of_the_file(root: Path) -> None:
    before = right(load(root))
    (root / "LOC_synset_mapping.txt").write_text("\r\n".join(SYNSETS[::-1]) + "\r\n\r\n")
    assert right(load(root)) == before


def test_files_may_be_zipped_and_lists_plain(root: Path) -> None:
    before = right(load(root))
    for name in ("LOC_val_solution.csv", "LOC_synset_mapping.txt"):
        (root / f"{name}.gz").write_bytes(gzip.compress((root / name).read_bytes()))
        (root / name).unlink()
    (root / "en_classnames.json").write_text(json.dumps(["tench", "rooster", "hen"]))
    assert right(load(root)) == before


def test_other_names_than_the_published_ones_are_custom(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert load(root).stamps == ("custom", "unchecked")
    assert load(root, "imagenet/wordnet").stamps == ("unchecked",)
    monkeypatch.setattr(imagenet, "PUBLISHED_NAMES", hashlib.sha256(b"tench\nrooster\nhen").hexdigest())
    assert load(root).stamps == ("unchecked",)


def test_classes_of_one_name_are_told_apart_by_place(root: Path) -> None:
    """The answer counts for the first of them, as an argmax takes it: the other cannot be right."""
    (root / "en_classnames.json").write_text(json.dumps(["hen", "rooster", "hen"]))
    dataset = load(root)
    assert [sample.reference["option"] for sample in dataset.samples] == [2, 0, 2]
    assert accuracy(dataset, dict.fromkeys(right(dataset), "hen")) == pytest.approx(1 / 3)
    assert accuracy(dataset, dict.fromkeys(right(dataset), "rooster")) == 0
    assert accuracy(dataset, dict.fromkeys(right(dataset), "no class")) == 0
    check_task(resolve_task("imagenet"), dataset, maximum={"accuracy": 1 / 3})


def test_the_contract_of_choosing_can_fail(root: Path) -> None:
    task, dataset = resolve_task("imagenet"), load(root)
    bare = dataclasses.replace(dataset, samples=tuple(dataclasses.replace(s, options=()) for s in dataset.samples))
    with pytest.raises(AssertionError, match="no options to choose from"):
        check_task(dataclasses.replace(task, prompts={"match": "a photo"}), bare)
    with pytest.raises(AssertionError, match="an option is empty"):
        check_task(task, _with_options(dataset, ("tench", " ", "hen")))
    with pytest.raises(AssertionError, match="'elsewhere' is none of the options"):
        check_task(dataclasses.replace(task, perfect=lambda sample: "elsewhere"), dataset)
    with pytest.raises(AssertionError, match=r"'match' does not fill: .* line 'a photo' has no \{option\}"):
        check_task(dataclasses.replace(task, prompts={"match": "a {option}\na photo"}), dataset)
    with pytest.raises(AssertionError, match="has options, but the task is to generate"):
        check_task(dataclasses.replace(task, kind="generate"), dataset)


def _with_options(dataset: Dataset, options: tuple[str, ...]) -> Dataset:
    samples = tuple(dataclasses.replace(sample, options=options) for sample in dataset.samples)
    return dataclasses.replace(dataset, samples=samples)


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        (
            "LOC_synset_mapping.txt",
            "n01440764 tench\nn01440764 carp",
            r"mapping\.txt: line 2 .* is 'n01440764 carp'",
        ),
        ("LOC_synset_mapping.txt", "n01440764", "line 1 should be a synset and its names"),
        ("LOC_synset_mapping.txt", "\n \n", r"data\.synsets\) is empty"),
        ("LOC_val_solution.csv", "image,label\n", "should begin with the line 'ImageId,PredictionString'"),
        (
            "LOC_val_solution.csv",
            f"{SOLUTION[0]}\n\nx,n99999999 1\n",
            "line 3 should be an image and a synset of",
        ),
        ("LOC_val_solution.csv", f"{SOLUTION[0]}\n,n01440764", "line 2 should be an image"),
        ("LOC_val_solution.csv", SOLUTION[0], "imagenet/val has no samples"),
        ("LOC_val_solution.csv", "\n".join([*SOLUTION, SOLUTION[1]]), "stand more than once"),
        ("en_classnames.json", '["tench", "hen"]', "has 2 names for the 3 synsets"),
        ("en_classnames.json", '{"cifar10": ["cat"]}', r"data\.classes\) should be a list of names"),
        ("en_classnames.json", '["tench", "", "hen"]', "should be a list of names"),
    ],
)
def test_what_is_wrong_is_named(root: Path, name: str, text: str, message: str) -> None:
    (root / name).write_text(text)
    with pytest.raises(DataError, match=message):
        load(root)


def test_bytes_that_are_no_text(root: Path) -> None:
    (root / "LOC_val_solution.csv").write_bytes(b"ImageId,PredictionString\n\xff\xd8")
    with pytest.raises(DataError, match="is not text: byte 25 is 0xff"):
        load(root)


def test_the_names_are_asked_for_and_the_hub_is_not_read(root: Path) -> None:
    (root / "en_classnames.json").unlink()
    with pytest.raises(DataError, match=r"imagenet needs its classes \(OpenAI's names, from LAION-AI/CLIP_benchmark\)"):
        load(root)
    assert load(root, "imagenet/wordnet").samples
    with pytest.raises(ConfigError, match="use data=files"):
        load_dataset(resolve_task("imagenet"), kind="hub")


LINES = st.lists(
    st.one_of(
        st.sampled_from([*SYNSETS, *SOLUTION, "", " ", ",", "n01440764", "../x,n01440764 1", "\u2028", "a,b,c"]),
        st.text(max_size=20),
    ),
    max_size=6,
)
ODD: list[Any] = [
    None,
    True,
    0,
    "x",
    [],
    ["x"],
    [1],
    {"imagenet1k": 5},
    {"imagenet1k": ["a", "b", "c"]},
    [[]],
    ["a"] * 3,
]


@given(solution=LINES, synsets=LINES, classes=st.sampled_from(ODD))
@example(solution=[], synsets=[], classes=["a", "b", "\ud800"])
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_damaged_files_are_read_or_refused(
    solution: list[str], synsets: list[str], classes: Any, tmp_path_factory: pytest.TempPathFactory
) -> None:
    root = tmp_path_factory.mktemp("damaged")
    files = {"LOC_val_solution.csv": [*SOLUTION, *solution], "LOC_synset_mapping.txt": [*SYNSETS, *synsets]}
    try:
        for name, lines in files.items():
            (root / name).write_text("\n".join(lines), encoding="utf-8", errors="replace")
        (root / "en_classnames.json").write_text(json.dumps(classes))
        for variant in ("imagenet/val", "imagenet/wordnet"):
            with contextlib.suppress(DataError):
                check_samples(load(root, variant).samples, variant)
    finally:
        shutil.rmtree(root)
