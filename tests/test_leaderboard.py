"""The tables: what cannot be compared never shares one, and every number has what belongs to it beside it."""

from __future__ import annotations

import csv
import io
import json
import os
from pathlib import Path
from typing import Any

import pytest

from evalkit import leaderboard
from evalkit.errors import ResultsError


def run(
    out: Path, task: str = "vqav2", model: str = "m", key: str = "0a", *, value: float | None = 0.625, when: int = 0,
    prompt: str = "Question: {question} Answer:", **changes: Any,
) -> Path:  # fmt: skip
    """Write a run folder as the engine leaves it."""
    folder = out / task / model / key
    folder.mkdir(parents=True)
    scores = {
        "format": 1, "task": task, "split": "val", "task_version": 1, "n": 90, "missing": 0, "failed": 0,
        "num_images": 11, "primary": "acc", "variant": "official", "extract": "strip", "stamps": [],
        "scores": {} if value is None else {"acc": value, "acc[legacy]": 0.5},
        "intervals": {} if value is None else {"acc": [0.5, 0.75]},
        "breakdowns": {}, "unavailable": {}, "notes": [],
    } | changes  # fmt: skip
    facts = {
        "format": 1, "spec": task, "data": {}, "limit": None, "identity": {"decoding": {"num_beams": 1}},
        "task": {"name": task, "prompt": prompt},
    }  # fmt: skip
    (folder / "scores.json").write_text(json.dumps(scores))
    (folder / "manifest.json").write_text(json.dumps(facts))
    os.utime(folder / "scores.json", (when, when))
    return folder


def tables(out: Path) -> dict[str, str]:
    return {path.name: path.read_text() for path in leaderboard.write(out)}


def grid(text: str) -> list[list[str]]:
    """Return the cells of the first table of a Markdown file."""
    lines = text.split("\n## ")[0].splitlines()
    return [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines if line.startswith("|")]


def test_a_full_run_stands_in_the_leaderboard_with_its_interval_and_counts(tmp_path: Path) -> None:
    run(tmp_path / "runs", failed=2)
    written = tables(tmp_path / "runs")
    assert set(written) == {"leaderboard.md", "leaderboard.csv"}
    assert {path.name for path in tmp_path.iterdir()} == {"runs", "leaderboard.md", "leaderboard.csv"}
    assert grid(written["leaderboard.md"]) == [["model", "vqav2"], ["---", "---"], ["m", "62.5 [50.0, 75.0]"]]
    row = written["leaderboard.md"].split("## Runs")[1]
    for cell in ("acc [official]", "62.5", "[50.0, 75.0]", "| 90 | 11 | 0 | 2 |", "Question: {question} Answer:", "0a"):
        assert cell in row


def test_the_csv_has_every_score_unrounded_with_what_it_was_made_with(tmp_path: Path) -> None:
    run(tmp_path / "runs", value=1 / 3)
    rows = list(csv.DictReader(io.StringIO(tables(tmp_path / "runs")["leaderboard.csv"])))
    assert [(row["metric"], row["primary"]) for row in rows] == [("acc", "True"), ("acc[legacy]", "False")]
    assert float(rows[0]["score"]) == 1 / 3
    assert (rows[0]["low95"], rows[0]["high95"], rows[1]["low95"]) == ("0.5", "0.75", "")
    wanted = {"task": "vqav2", "model": "m", "n": "90", "variant": "official", "extract": "strip", "run": "0a"}
    assert wanted.items() <= rows[0].items()
    assert (rows[0]["prompt"], rows[0]["decoding"]) == ("Question: {question} Answer:", '{"num_beams": 1}')


@pytest.mark.parametrize(
    "stamps", [["demo"], ["custom"], ["limited"], ["unchecked"], ["partial"], ["custom", "limited"]]
)
def test_a_run_that_is_not_the_full_official_split_has_a_table_of_its_own(tmp_path: Path, stamps: list[str]) -> None:
    run(tmp_path / "runs", model="full")
    run(tmp_path / "runs", model="other", stamps=stamps)
    written = tables(tmp_path / "runs")
    name = f"leaderboard-{'-'.join(stamps)}"
    assert set(written) == {"leaderboard.md", "leaderboard.csv", f"{name}.md", f"{name}.csv"}
    for suffix in (".md", ".csv"):
        assert "other" not in written[f"leaderboard{suffix}"]
        assert "full" not in written[f"{name}{suffix}"].replace("full ones", "")
    assert all(f"*{stamp}*" in written[f"{name}.md"] for stamp in stamps)


def test_rows_and_columns_are_sorted_by_name_so_that_a_new_run_changes_few_lines(tmp_path: Path) -> None:
    for model, value in (("c", 0.1), ("a", 0.2), ("b", 0.9)):
        run(tmp_path / "runs", task="gqa", model=model, value=value)
    before = tables(tmp_path / "runs")["leaderboard.md"].splitlines()
    assert [row[0] for row in grid("\n".join(before))[2:]] == ["a", "b", "c"]
    run(tmp_path / "runs", task="gqa", model="bb")
    after = tables(tmp_path / "runs")["leaderboard.md"].splitlines()
    assert set(before) <= set(after)
    assert len(after) == len(before) + 2


def test_a_model_without_a_run_of_a_task_has_an_empty_cell(tmp_path: Path) -> None:
    run(tmp_path / "runs", task="gqa", model="a")
    run(tmp_path / "runs", task="okvqa", model="b", value=0.5)
    assert grid(tables(tmp_path / "runs")["leaderboard.md"]) == [
        ["model", "gqa", "okvqa"], ["---"] * 3, ["a", "62.5 [50.0, 75.0]", ""], ["b", "", "50.0 [50.0, 75.0]"],
    ]  # fmt: skip


def test_of_two_runs_for_one_cell_the_newer_is_shown_and_both_are_listed(tmp_path: Path) -> None:
    run(tmp_path / "runs", key="0a", value=0.25, when=200, prompt="new")
    run(tmp_path / "runs", key="0b", value=0.5, when=100, prompt="old")
    text = tables(tmp_path / "runs")["leaderboard.md"]
    assert grid(text)[2] == ["m", "25.0 [50.0, 75.0] (newest of 2)"]
    assert text.count("| vqav2 | m |") == 2


def test_a_score_that_could_not_be_computed_is_a_dash_and_its_reason_stands_below(tmp_path: Path) -> None:
    run(tmp_path / "runs", value=None, unavailable={"SPICE": "no Java: set metrics.java"})
    text = tables(tmp_path / "runs")["leaderboard.md"]
    assert grid(text)[2] == ["m", "-"]
    assert "- SPICE (vqav2/m): no Java: set metrics.java" in text


def test_a_prompt_cannot_break_the_table(tmp_path: Path) -> None:
    run(tmp_path / "runs", prompt="a | b\n<script>alert(1)</script>\n## Heading & more")
    text = tables(tmp_path / "runs")["leaderboard.md"]
    assert r"a \| b &lt;script&gt;alert(1)&lt;/script&gt; ## Heading &amp; more" in text
    assert "<script>" not in text
    (row,) = [line for line in text.splitlines() if "alert" in line]
    head = next(line for line in text.splitlines() if line.startswith("| task |"))
    assert row.replace(r"\|", "").count("|") == head.count("|")


def test_written_twice_nothing_changes(tmp_path: Path) -> None:
    run(tmp_path / "runs")
    assert tables(tmp_path / "runs") == tables(tmp_path / "runs")


def test_the_summary_for_the_terminal_is_aligned(tmp_path: Path) -> None:
    run(tmp_path / "runs", model="a-long-name")
    run(tmp_path / "runs", model="b", failed=3)
    head, one, other = leaderboard.summary(leaderboard.collect(tmp_path / "runs")).splitlines()
    for name, cells in (("score", ("62.5", "62.5")), ("n", ("90", "90")), ("failed", ("0", "3"))):
        column = head.index(f" {name}") + 1
        assert (one[column:].split()[0], other[column:].split()[0]) == cells


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"stamps": []}'])
def test_a_damaged_scores_file_is_named_with_the_way_out(tmp_path: Path, text: str) -> None:
    folder = run(tmp_path / "runs")
    (folder / "scores.json").write_text(text)
    with pytest.raises(ResultsError, match=r"0a/scores.json.*score the run again"):
        leaderboard.collect(tmp_path / "runs")


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"format": 99}', '{"format": "x"}', '{"format": 1}'])
def test_a_damaged_manifest_is_named(tmp_path: Path, text: str) -> None:
    folder = run(tmp_path / "runs")
    (folder / "manifest.json").write_text(text)
    with pytest.raises(ResultsError, match=r"0a/manifest.json"):
        leaderboard.collect(tmp_path / "runs")


def test_a_run_that_is_not_scored_yet_is_in_no_table(tmp_path: Path) -> None:
    run(tmp_path / "runs")
    (run(tmp_path / "runs", model="half") / "scores.json").unlink()
    assert [entry.model for entry in leaderboard.collect(tmp_path / "runs")] == ["m"]


def test_a_table_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    run(tmp_path / "runs")
    (tmp_path / "leaderboard.md").mkdir()
    with pytest.raises(ResultsError, match=r"cannot write .*leaderboard.md"):
        leaderboard.write(tmp_path / "runs")
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")], "no half-written file is left"
