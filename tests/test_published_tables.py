"""results/published/*.csv: numbers from papers, in the unit of print (percent; CIDEr times 100; points of MME)."""

from __future__ import annotations

import csv
import re
from pathlib import Path

import pytest

from evalkit.metrics.text import RELAXED_VARIANTS
from evalkit.metrics.vqa import VARIANTS
from tests.support import ROOT

FOLDER = ROOT / "results" / "published"
FILES = sorted(FOLDER.glob("*.csv"))
COLUMNS = [
    "paper", "table", "model", "task", "split", "metric", "variant", "prompt", "decoding", "image_size", "value",
    "source",
]  # fmt: skip
SPLITS = {
    "vqav2": {"val", "test-dev", "test"},
    "okvqa": {"val"},
    "gqa": {"testdev", "val", "test"},
    "textvqa": {"val", "test"},
    "nocaps": {"val", "test"},
    "coco_caption": {"test", "val"},
    "refcoco": {"val", "testA", "testB", "plus-val", "plus-testA", "plus-testB", "g-val", "g-test"},
    "retrieval": {"coco", "flickr30k"},
    "imagenet": {"val"},
}
"""Our own tasks and their variants."""
OTHERS = {
    "flickr30k_caption", "vizwiz", "scienceqa", "docvqa", "chartqa", "ai2d", "ocrvqa", "mme", "seed", "pope", "grit",
    "touchstone",
}  # fmt: skip
"""Benchmarks in the same tables that evalkit has no task for."""
METRICS = {
    "vqav2": r"vqa_accuracy", "okvqa": r"vqa_accuracy", "textvqa": r"vqa_accuracy", "gqa": r"accuracy",
    "nocaps": r"CIDEr|SPICE|Bleu_4", "coco_caption": r"Bleu_[1-4]|METEOR|ROUGE_L|CIDEr|SPICE", "refcoco": r"Acc@0\.5",
    "retrieval": r"(i2t|t2i)_R@(1|5|10)", "imagenet": r"accuracy|top5",
}  # fmt: skip
GROUP = r"(\{(domain=(in|near|out)-domain|answer_type=(other|number|yes/no))\})?"


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        reader = csv.DictReader(file, strict=True)
        assert reader.fieldnames == COLUMNS
        return list(reader)


@pytest.fixture(params=FILES, ids=lambda path: path.stem)
def table(request: pytest.FixtureRequest) -> list[dict[str, str]]:
    return rows(request.param)


def test_there_is_a_file_a_paper() -> None:
    papers = [{row["paper"] for row in rows(path)} for path in FILES]
    assert all(len(names) == 1 for names in papers)
    assert {name for names in papers for name in names} == {"BLIP-2", "BLIP", "CLIP", "Qwen-VL", "LLaVA-1.5"}


def test_a_row_says_what_where_and_from_where(table: list[dict[str, str]]) -> None:
    for row in table:
        assert None not in row, f"more cells than columns: {row}"
        assert all(row[key] for key in ("paper", "table", "model", "task", "split", "metric", "value", "source")), row
        assert all(cell == cell.strip() for cell in row.values()), row
        assert re.search(r"arXiv \d{4}\.\d{5}|[\w-]+/[\w-]+ [0-9a-f]{7}|CLIP paper Table", row["source"]), row
        assert not row["image_size"] or row["image_size"].isdigit(), row


def test_tasks_splits_and_metrics_have_the_names_evalkit_gives_them(table: list[dict[str, str]]) -> None:
    for row in table:
        if row["task"] in SPLITS:
            assert row["split"] in SPLITS[row["task"]], row
            assert re.fullmatch(rf"({METRICS[row['task']]}){GROUP}", row["metric"]), row
        else:
            assert row["task"] in OTHERS, row
        assert row["variant"] in {"", *VARIANTS, *RELAXED_VARIANTS, "itc", "itm+itc", "continuous"}, row


def test_values_are_within_their_range(table: list[dict[str, str]]) -> None:
    for row in table:
        assert re.fullmatch(r"\d+(\.\d+)?", row["value"]), row
        metric = row["metric"].partition("{")[0]
        most = {"CIDEr": 200, "perception": 2000, "cognition": 800}.get(metric, 200 if row["task"] == "mme" else 100)
        assert 0 < float(row["value"]) <= (1000 if row["task"] == "touchstone" else most), row


def test_no_number_stands_twice(table: list[dict[str, str]]) -> None:
    keys = [tuple(row[key] for key in COLUMNS[:7]) for row in table]
    assert len(keys) == len(set(keys)), {key for key in keys if keys.count(key) > 1}


def test_recall_grows_with_k(table: list[dict[str, str]]) -> None:
    found: dict[tuple[str, ...], dict[int, float]] = {}
    for row in table:
        if row["task"] == "retrieval":
            direction, _, cutoff = row["metric"].partition("_R@")
            key = (row["table"], row["model"], row["split"], direction)
            found.setdefault(key, {})[int(cutoff)] = float(row["value"])
    for key, by_cutoff in found.items():
        values = [by_cutoff[cutoff] for cutoff in sorted(by_cutoff)]
        assert values == sorted(values), key


def test_the_numbers_people_look_for_are_there() -> None:
    """Read again from the sources, by hand: a row of each file."""
    every = {tuple(row[key] for key in ("table", "model", "task", "split", "metric")): row for path in FILES for row in rows(path)}  # fmt: skip  # noqa: E501
    for key, value in (
        (("2", "BLIP-2 ViT-g OPT2.7B", "vqav2", "val", "vqa_accuracy"), "53.5"),
        (("3", "BLIP-2 ViT-g FlanT5XL (fine-tuned on COCO captions)", "nocaps", "val", "CIDEr"), "121.6"),
        (("5", "BLIP-2 ViT-g (fine-tuned on COCO)", "retrieval", "coco", "t2i_R@1"), "68.3"),
        (("LAVIS benchmark", "BLIP ViT-B (fine-tuned on OK-VQA)", "okvqa", "val", "vqa_accuracy"), "55.4"),
        (("13", "CLIP ViT-L/14@336", "retrieval", "coco", "i2t_R@10"), "88.1"),
        (("7", "Qwen-VL", "refcoco", "plus-testB", "Acc@0.5"), "77.21"),
        (("MODEL_ZOO", "LLaVA-1.5 13B", "gqa", "testdev", "accuracy"), "63.3"),
    ):
        assert every[key]["value"] == value
