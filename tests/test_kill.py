"""kill -9 at any moment, Ctrl-C once and twice: the same command continues, and the end equals a quiet run's."""

from __future__ import annotations

import itertools
import os
import random
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.support import answers, lines, only_run, run_evalkit, runs, start, vqa_files

IMAGES, EACH = 100, 5
WORDS = ("model=fake", "task=vqav2", "data=files", "data.check=false", "engine.image_batch=4")


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return vqa_files(tmp_path_factory.mktemp("world"), images=IMAGES, questions=EACH)


@pytest.fixture(scope="module")
def quiet(world: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of 500 samples that nobody disturbs."""
    folder = tmp_path_factory.mktemp("quiet")
    ran = run_evalkit(*WORDS, f"data.root={world}", cwd=folder)
    assert ran.code == 0, ran.err
    return only_run(folder)


def num_lines(folder: Path) -> int:
    """Return the number of whole lines in all logs below a folder."""
    files = folder.glob("results/runs/*/*/*/predictions/*.jsonl")
    return sum(file.read_bytes().count(b"\n") for file in files)


def wait_for(folder: Path, count: int, process: subprocess.Popen[str]) -> None:
    """Wait until so many lines are in the log."""
    end = time.monotonic() + 60
    while num_lines(folder) < count:
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < end, f"{num_lines(folder)} lines after a minute"
        time.sleep(0.01)


@contextmanager
def running(*words: str, cwd: Path) -> Iterator[subprocess.Popen[str]]:
    process = start(*words, cwd=cwd)
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def equal(run: Path, quiet: Path) -> None:
    """Hold a run against the quiet one: same key, same four fields, same scores to the byte, no id twice in reading."""
    assert run.name == quiet.name
    assert answers(run) == answers(quiet)
    assert (run / "scores.json").read_bytes() == (quiet / "scores.json").read_bytes()


def test_killed_three_times_at_random_the_run_ends_as_if_nothing_had_been(
    tmp_path: Path, world: Path, quiet: Path
) -> None:
    words = (*WORDS, f"data.root={world}", "model.seconds_per_image=0.02")
    chance = random.Random()
    kept = 0
    for number in range(3):
        with running(*words, cwd=tmp_path) as process:
            wait_for(tmp_path, kept + 1 + chance.randrange(100), process)
            time.sleep(chance.random() * 0.08)
            os.killpg(process.pid, signal.SIGKILL)
            assert process.wait() == -signal.SIGKILL
        now = num_lines(tmp_path)
        assert now > kept, f"kill {number} came before anything new was written"
        kept = now
    assert kept < IMAGES * EACH, "else nothing was left to do"
    before = answers(runs(tmp_path / "results/runs")[0])
    ran = run_evalkit(*words, cwd=tmp_path)
    assert ran.code == 0, ran.err
    run = only_run(tmp_path)
    equal(run, quiet)
    assert before.items() <= answers(run).items(), "what had been answered stands"
    assert len(lines(run)) == IMAGES * EACH, "and was not answered again"
    assert len(list((run / "predictions").iterdir())) == 4


def test_cut_at_any_byte_the_run_ends_as_if_nothing_had_been(tmp_path: Path, world: Path, quiet: Path) -> None:
    """What a power cut leaves: a file that ends in the middle of a line, and no scores."""
    ran = run_evalkit(*WORDS, f"data.root={world}", cwd=tmp_path)
    assert ran.code == 0
    run = only_run(tmp_path)
    (file,) = (run / "predictions").iterdir()
    data = file.read_bytes()
    file.write_bytes(data[: random.Random().randrange(1, len(data) - 1)])
    (run / "scores.json").unlink()
    assert run_evalkit(*WORDS, f"data.root={world}", cwd=tmp_path).code == 0
    equal(run, quiet)


def test_answers_are_in_the_log_while_the_run_goes_on(tmp_path: Path, world: Path) -> None:
    """Flushed at least every 32 samples or 2 seconds: with 0.2 s an image, far less than 2 s pass between writes."""
    words = (*WORDS, f"data.root={world}", "model.seconds_per_image=0.1", "engine.image_batch=2")
    with running(*words, cwd=tmp_path) as process:
        wait_for(tmp_path, 1, process)
        seen = [num_lines(tmp_path)]
        end = time.monotonic() + 3
        while time.monotonic() < end:
            time.sleep(0.05)
            seen.append(num_lines(tmp_path))
    steps = [after - before for before, after in itertools.pairwise(seen)]
    assert sum(map(bool, steps)) > 5, "in three seconds it was written several times"
    assert max(steps) <= 32
    assert max(seen) < IMAGES * EACH


def test_one_ctrl_c_finishes_the_batch_says_how_to_go_on_and_loses_nothing(
    tmp_path: Path, world: Path, quiet: Path
) -> None:
    words = (*WORDS, f"data.root={world}")
    slow = "model.seconds_per_image=0.1"
    with running(*words, slow, cwd=tmp_path) as process:
        wait_for(tmp_path, 20, process)
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=30)
    assert process.returncode == 130
    assert "Traceback" not in err
    assert "the same command continues" in err
    kept = answers(runs(tmp_path / "results/runs")[0])
    assert 20 <= len(kept) < IMAGES * EACH
    assert len(kept) == num_lines(tmp_path)
    ran = run_evalkit(*words, cwd=tmp_path)
    assert ran.code == 0, ran.err
    run = only_run(tmp_path)
    equal(run, quiet)
    assert len(lines(run)) == IMAGES * EACH


def test_a_second_ctrl_c_leaves_at_once(tmp_path: Path, world: Path, quiet: Path) -> None:
    words = (*WORDS, f"data.root={world}")
    with running(*words, "model.seconds_per_image=3", "engine.image_batch=8", cwd=tmp_path) as process:
        end = time.monotonic() + 60
        while not list(tmp_path.glob("results/runs/*/*/*/predictions/*.jsonl")):
            assert time.monotonic() < end
            time.sleep(0.01)
        time.sleep(1)  # now it encodes, for 24 seconds
        begin = time.monotonic()
        process.send_signal(signal.SIGINT)
        time.sleep(0.5)
        assert process.poll() is None, "the first one lets it finish"
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=20)
    assert time.monotonic() - begin < 15
    assert (process.returncode, "Traceback" in err) == (130, False), err
    assert run_evalkit(*words, cwd=tmp_path).code == 0
    equal(only_run(tmp_path), quiet)


def test_two_starts_on_one_folder_at_once_both_finish(tmp_path: Path, world: Path, quiet: Path) -> None:
    words = (*WORDS, f"data.root={world}", "model.seconds_per_image=0.01")
    with running(*words, cwd=tmp_path) as one, running(*words, cwd=tmp_path) as other:
        for process in (one, other):
            _, err = process.communicate(timeout=120)
            assert process.returncode == 0, err
    equal(only_run(tmp_path), quiet)
