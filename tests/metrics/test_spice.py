"""SPICE: parses that survive, captions that cannot be parsed, and the counts of the official program."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from evalkit.errors import MetricError
from evalkit.metrics import spice
from evalkit.metrics.caption import caption_scores, preflight
from evalkit.metrics.java import Failure, stop_workers
from evalkit.metrics.spice import MAX_WORDS, ParseStore, parse_version
from evalkit.types import MetricSettings
from tests.support import ROOT, environment, shared

GOLDEN = json.loads((ROOT / "tests/golden/spice_small.json").read_text(encoding="utf-8"))

# --- kept parses -----------------------------------------------------------------------------------------------------


def store(folder: Path) -> ParseStore:
    """Return a store as another process would have it: nothing in memory yet."""
    ParseStore._open.clear()
    return ParseStore.of(folder)


def only_file(folder: Path) -> Path:
    (path,) = folder.iterdir()
    return path


def test_kept_parses_are_read_again(tmp_path: Path) -> None:
    kept = store(tmp_path / "new" / "folder")
    assert kept.get("a dog") is None
    kept.add([("a dog", [["dog"]]), ("\u2028 é 😀", [])])
    again = store(tmp_path / "new" / "folder")
    assert again.get("a dog") == [["dog"]]
    assert again.get("\u2028 é 😀") == []
    assert parse_version() in only_file(tmp_path / "new" / "folder").name


def test_a_torn_line_costs_only_its_own_parse(tmp_path: Path) -> None:
    store(tmp_path).add([("a", [["a"]]), ("b", [["b"]])])
    path = only_file(tmp_path)
    path.write_bytes(path.read_bytes()[:-4])
    after = store(tmp_path)
    assert after.get("a") == [["a"]]
    assert after.get("b") is None
    after.add([("c", [["c"]])])
    assert path.read_bytes() == b'["a", [["a"]]]\n["c", [["c"]]]\n'
    assert store(tmp_path).get("c") == [["c"]]


def test_what_another_process_keeps_is_seen(tmp_path: Path) -> None:
    mine = store(tmp_path)
    mine.add([("a", [["a"]])])
    theirs = ParseStore(tmp_path, parse_version())
    theirs.add([("b", [["b"]])])
    assert ParseStore.of(tmp_path) is mine
    assert mine.get("b") == [["b"]]
    assert len(mine) == 2


def test_without_a_folder_parses_stay_in_memory() -> None:
    kept = ParseStore(None, "x")
    kept.add([("a", [["a"]])])
    assert kept.get("a") == [["a"]]


def test_a_killed_process_leaves_what_it_had_kept(tmp_path: Path) -> None:
    code = (
        "import sys\nfrom pathlib import Path\nfrom evalkit.metrics.spice import ParseStore\n"
        "kept = ParseStore.of(Path(sys.argv[1]))\n"
        "for number in range(10**9):\n"
        "    kept.add([(f'{number} {place}', [['dog']] * 50) for place in range(20)])\n"
        "    print(number, flush=True)\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code, tmp_path], stdout=subprocess.PIPE, text=True, env=environment()
    )
    assert process.stdout
    last = [int(process.stdout.readline()) for _ in range(20)][-1]
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    last = max([last, *(int(line) for line in process.stdout.read().splitlines() if line)])
    process.stdout.close()
    after = store(tmp_path)
    assert all(after.get(f"{number} {place}") for number in range(last + 1) for place in range(20))


# --- what is missing -------------------------------------------------------------------------------------------------


@pytest.mark.java
def test_without_corenlp_one_sentence_says_how_to_get_it(tmp_path: Path) -> None:
    for corenlp, what in ((None, "metrics.corenlp is not set"), (str(tmp_path), "no code jar")):
        settings = MetricSettings(corenlp=corenlp)
        reason = preflight(settings).get("SPICE", "")
        if "no Java" in reason:
            pytest.skip(reason)
        assert what in reason
        assert "mvn dependency:copy" in reason
        assert "metrics.corenlp=DIR" in reason
        scores = caption_scores(["a dog"], [["a dog"]], metrics=["SPICE", "ROUGE_L"], settings=settings)
        assert scores.aggregate == {"ROUGE_L": 1.0}
        assert scores.unavailable == {"SPICE": reason}


def test_jars_that_are_whole_are_taken_as_well(tmp_path: Path) -> None:
    for name in ("stanford-corenlp-3.6.0.jar", "stanford-corenlp-3.6.0-models.jar"):
        (tmp_path / "unzipped").mkdir(exist_ok=True)
        (tmp_path / "unzipped" / name).touch()
    with pytest.raises(MetricError, match="no folder"):
        spice.spice_jars(str(tmp_path / "nowhere"))
    jars = spice.spice_jars(str(tmp_path))
    assert [jar.name for jar in jars[-2:]] == ["stanford-corenlp-3.6.0.jar", "stanford-corenlp-3.6.0-models.jar"]


# --- scores ----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> MetricSettings:
    chosen = MetricSettings(corenlp=str(shared("corenlp")), cache=tmp_path_factory.mktemp("parses"))
    reason = preflight(chosen).get("SPICE")
    if reason:
        pytest.skip(reason)
    return chosen


CASES = GOLDEN["images"][:5] + GOLDEN["edge_cases"]


def pairs() -> list[tuple[str, list[str]]]:
    return [(case["tokenized"]["hypothesis"], case["tokenized"]["references"]) for case in CASES]


def check(results: list[Any]) -> None:
    for case, result in zip(CASES, results, strict=True):
        for name, numbers in case["expected"]["scores"].items():
            ours = result.categories[name]
            assert (ours.tp, ours.fp, ours.fn) == (numbers["tp"], numbers["fp"], numbers["fn"]), (
                case["image_id"],
                name,
            )
            assert (ours.f, ours.precision, ours.recall) == pytest.approx((numbers["f"], numbers["pr"], numbers["re"]))
        assert [list(row) for row in result.hypothesis_tuples] == case["expected"]["test_tuples"]
        assert [list(row) for row in result.matched_tuples] == case["expected"]["matched_test_tuples"]
        assert [list(row) for row in result.reference_tuples] == case["expected"]["ref_tuples"]


@pytest.mark.java
def test_counts_and_tuples_are_the_official_programs_also_from_kept_parses(
    settings: MetricSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    check(spice.spice(pairs(), settings))
    # A new process, as it were: no scores and no parses in memory, no worker; and no parser to be had.
    spice._SCORES.clear()
    ParseStore._open.clear()
    stop_workers()
    monkeypatch.setattr(spice, "_parser", None)
    begun = time.monotonic()
    check(spice.spice(pairs()[::-1], settings)[::-1])
    assert time.monotonic() - begun < 60


@pytest.mark.java
def test_odd_captions_are_scored_or_named(settings: MetricSettings) -> None:
    odd = {
        "empty": "",
        "newline": "a dog\nand a cat",
        "separator": "a dog\u2028and a cat",
        "emoji": "a 🍕 and a dog",
        "surrogate": "a dog \ud83d here",
        "bars": "a dog ||| a cat",
        "nul": "a dog \x00 here",
        "symbols": "~ ^ | \\ = * %",
        "long word": "x" * 3000,
        "500 words": "a dog and a cat " * 100,
    }
    scores = caption_scores(odd, {key: ["a dog"] for key in odd}, metrics=["SPICE", "CIDEr"], settings=settings)
    assert scores.unavailable == {}
    values = dict(zip(odd, scores.per_sample["SPICE"], strict=True))
    assert values.pop("500 words") is None
    assert [
        note for note in scores.notes if note.startswith("SPICE leaves out image 500 words: a caption of 500 words")
    ]
    assert str(MAX_WORDS) in scores.notes[-1]
    assert values["empty"] == 0
    assert all(value is not None for value in values.values()), scores.notes
    assert values["newline"] == values["separator"] == pytest.approx(2 / 3)
    assert values["bars"]
    counted = [value for value in values.values() if value is not None]
    assert scores.aggregate["SPICE"] == pytest.approx(sum(counted) / len(counted))


@pytest.mark.java
def test_a_caption_that_breaks_the_parser_is_named_and_not_kept(
    settings: MetricSettings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(living: Any, request: Any, items: list[str], **rest: Any) -> list[Any]:
        answers = [Failure("out of memory") if "zebra" in item else [["dog"]] for item in items]
        rest["done"](0, answers[:1])
        return answers

    monkeypatch.setattr(spice, "answer_each", broken)
    chosen = MetricSettings(corenlp=settings.corenlp, cache=tmp_path)
    result = spice.parse(spice.find_java(None), (), ["a dog", "a zebra"], chosen)
    assert result == {"a dog": [["dog"]], "a zebra": Failure("out of memory")}
    assert store(tmp_path).get("a zebra") is None
