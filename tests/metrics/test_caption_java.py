"""METEOR and the worker processes: equal to the official program, and never able to hang or to harm the run."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from evalkit.errors import MetricError
from evalkit.metrics.caption import caption_metric, caption_scores, preflight
from evalkit.metrics.java import Failure, Java, Setup, Worker, WorkerError, answer_each, find_java
from evalkit.metrics.meteor import meteor, meteor_worker, official_meteor, statistics
from evalkit.types import Answered, MetricSettings, Sample
from tests.support import ROOT, environment

pytestmark = pytest.mark.java

GOLDEN = json.loads((ROOT / "tests/golden/caption_small.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def java() -> Java:
    try:
        return find_java(None)
    except MetricError as error:
        pytest.skip(str(error))


@pytest.fixture
def living(java: Java) -> Iterator[Worker]:
    worker = Worker(Setup("tests.metrics.stalling:Stalling", java, ()))
    yield worker
    worker.stop()


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    state = Path(f"/proc/{pid}/stat")
    return not state.exists() or state.read_text().rpartition(")")[2].split()[0] != "Z"


def wait_for_end(pid: int, seconds: float = 20) -> bool:
    until = time.monotonic() + seconds
    while alive(pid) and time.monotonic() < until:
        time.sleep(0.05)
    return not alive(pid)


# --- the worker ------------------------------------------------------------------------------------------------------


def test_a_worker_answers_and_is_reused(living: Worker) -> None:
    assert living.ask(["a", "\ud800 é 😀 |||\n"], 60) == ["a", "\ud800 é 😀 |||\n"]
    pid = living.pid
    assert living.ask([1], 60) == [1]
    assert living.pid == pid


@pytest.mark.parametrize("how", ["stall", "stall in Java"])
def test_a_worker_that_is_late_is_ended_and_the_next_request_has_a_new_one(living: Worker, how: str) -> None:
    living.ask(["up"], 60)
    pid = living.pid
    assert pid
    begun = time.monotonic()
    with pytest.raises(WorkerError, match="no answer within 1 s"):
        living.ask([how], 1)
    assert time.monotonic() - begun < 10
    assert wait_for_end(pid)
    assert living.ask(["again"], 60) == ["again"]


def test_a_worker_that_is_killed_says_its_last_words(living: Worker) -> None:
    with pytest.raises(WorkerError, match=r"ended with code -9.*these were my last words"):
        living.ask(["die"], 60)
    assert living.ask(["again"], 60) == ["again"]


def test_a_worker_killed_between_requests_is_replaced(living: Worker) -> None:
    living.ask(["up"], 60)
    assert living.pid
    os.kill(living.pid, signal.SIGKILL)
    time.sleep(0.5)
    assert living.ask(["again"], 60) == ["again"]


def test_an_exception_of_java_is_told(living: Worker) -> None:
    with pytest.raises(WorkerError, match="NumberFormatException"):
        living.ask(["raise"], 60)


def test_a_service_that_does_not_start_is_told(java: Java) -> None:
    worker = Worker(Setup("tests.metrics.stalling:Stalling", java, (), arguments=(("broken", True),)))
    with pytest.raises(WorkerError, match="broken from the start"):
        worker.ask(["a"], 60)
    with pytest.raises(WorkerError, match="broken from the start"):
        answer_each(worker, list, ["a", "b"], chunk=2, seconds=60, chunk_seconds=60)


def test_what_java_prints_meets_no_answer_and_much_noise_blocks_nothing(living: Worker) -> None:
    assert living.ask(["print", "noise", "b"], 60) == ["print", "noise", "b"]


def test_one_bad_item_costs_no_other_its_answer(living: Worker) -> None:
    done: list[int] = []
    answers = answer_each(
        living,
        list,
        ["a", "b", "die", "c", "raise", "stall", "d"],
        chunk=3,
        seconds=5,
        chunk_seconds=5,
        done=lambda start, answers: done.append(len(answers)),
    )
    assert [answer for answer in answers if not isinstance(answer, Failure)] == ["a", "b", "c", "d"]
    assert [index for index, answer in enumerate(answers) if isinstance(answer, Failure)] == [2, 4, 5]
    assert sum(done) == 4


def program(body: str) -> list[str]:
    head = (
        "import signal, sys, time\n"
        # What a script starts in the background ignores Ctrl-C, and so would its children.
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "from evalkit.metrics.java import Setup, find_java, worker\n"
        "living = worker(Setup('tests.metrics.stalling:Stalling', find_java(None), ()))\n"
        "living.ask(['up'], 60)\n"
        "print(living.pid, flush=True)\n"
    )
    return [sys.executable, "-c", head + body]


def test_a_program_that_ends_takes_its_worker_with_it(java: Java) -> None:
    answer = subprocess.run(
        program("sys.exit(7)"), capture_output=True, text=True, timeout=60, env=environment(), check=False
    )
    assert answer.returncode == 7
    assert wait_for_end(int(answer.stdout))


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT, signal.SIGTERM])
def test_a_program_that_is_killed_while_java_works_leaves_nothing_behind(java: Java, how: signal.Signals) -> None:
    process = subprocess.Popen(
        program("living.ask(['stall in Java'], 600)"),
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        env=environment(),
        start_new_session=True,
    )
    assert process.stdout
    pid = int(process.stdout.readline())
    time.sleep(0.5)
    assert alive(pid)
    os.killpg(process.pid, how)  # as the terminal does with Ctrl-C: the whole group
    assert process.wait(timeout=20) != 0
    process.stdout.close()
    assert wait_for_end(pid)


# --- METEOR ----------------------------------------------------------------------------------------------------------

ODD = [
    "",
    "...",
    "a dog\nwith two\r\nlines",
    "a dog\u2028and a cat",
    "a 🍕 and a 👩‍👩‍👧",
    "a dog \ud83d with half an emoji",
    "a dog ||| and ||| a cat",
    "a dog and a cat " * 100,
    "the bus is red and " * 400,
    "x" * 5000,
    "\x00 a dog",
]


def test_meteor_is_the_official_programs(java: Java) -> None:
    images = {each["image_id"]: each for each in GOLDEN["images"]}
    scores = caption_scores(
        {key: each["hypothesis"] for key, each in images.items()},
        {key: each["references"] for key, each in images.items()},
        metrics=["METEOR"],
    )
    assert scores.unavailable == {}
    assert scores.aggregate["METEOR"] == pytest.approx(GOLDEN["expected"]["aggregate"]["METEOR"], rel=1e-14)
    assert "METEOR" not in scores.per_sample


def test_the_formula_is_the_java_classs(java: Java) -> None:
    living = meteor_worker(java)
    pairs = [(each["hypothesis"], each["references"]) for each in GOLDEN["tokenized"]]
    rows = [row for row in statistics(living, pairs) if not isinstance(row, Failure)]
    assert len(rows) == len(pairs)
    for start in range(len(rows)):
        total = [sum(column) for column in zip(*rows[start : start + 7], strict=True)]
        assert meteor(total) == pytest.approx(official_meteor(living, total), rel=1e-12)


def test_odd_captions_are_scored_and_harm_nobody(java: Java) -> None:
    said = ["a dog on a bed", *ODD]
    scores = caption_scores(
        said, [["a dog on a bed", each] for each in said], metrics=["METEOR", "BLEU", "ROUGE_L", "CIDEr"]
    )
    assert scores.unavailable == {}
    assert 0 < scores.aggregate["METEOR"] <= 1
    assert len(scores.aggregate) == 7


def test_captions_too_long_for_meteor_are_named(java: Java) -> None:
    long = "the bus is red and " * 400
    scores = caption_scores({"ok": "a dog", "long": long}, {"ok": ["a dog"], "long": [long]}, metrics=["METEOR"])
    assert scores.aggregate["METEOR"] == 1
    assert [note for note in scores.notes if note.startswith("METEOR leaves out image long: 2000 words")]


def test_a_second_score_aligns_nothing_and_a_subset_is_a_corpus_of_its_own(java: Java) -> None:
    answered = [
        Answered(
            sample=Sample(
                id=str(each["image_id"]), image_ids=(str(each["image_id"]),), reference={"captions": each["references"]}
            ),
            answer=each["hypothesis"],
        )
        for each in GOLDEN["images"]
    ]
    settings = MetricSettings(names=("METEOR",))
    whole = caption_metric().compute(answered, settings)
    low, high = whole.intervals["METEOR"]
    assert low < whole.aggregate["METEOR"] < high
    part = caption_metric().compute(answered[:3], settings)
    assert part.aggregate["METEOR"] == pytest.approx(GOLDEN["subset_first_3"]["aggregate"]["METEOR"], rel=1e-14)


def test_java_is_found_by_program_and_by_home(java: Java) -> None:
    home = java.library.parents[2]
    for setting in (str(java.program), str(home)):
        assert find_java(setting).version == java.version
    assert "METEOR" not in preflight(MetricSettings())


def test_a_java_that_is_none_is_named(tmp_path: Path, java: Java) -> None:
    fake = tmp_path / "java"
    fake.write_text("#!/bin/sh\nexit 3\n")
    fake.chmod(0o755)
    with pytest.raises(MetricError, match="answers `-version` with code 3"):
        find_java(str(fake))
    fake.write_text('#!/bin/sh\necho "    java.home = /x"\necho "    java.specification.version = 1.8"\n')
    (tmp_path / "b").mkdir()
    old = fake.rename(tmp_path / "b" / "java")
    with pytest.raises(MetricError, match="is Java 8, which is too old"):
        find_java(str(old))


def test_java_home_comes_before_path(java: Java, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("JAVA_HOME", str(java.library.parents[2]))
    assert find_java(None).version == java.version
    monkeypatch.delenv("JAVA_HOME")
    with pytest.raises(MetricError, match="no Java was found"):
        find_java(None)
