"""Worker processes: whatever becomes of them, nothing is lost and the numbers stay the same.

python -m pytest tests/test_workers.py
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import signal
import struct
import subprocess
import time
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from evalkit.log import SYNC_SECONDS
from tests.support import (
    CHOICE,
    PATIENCE,
    answers,
    caption_files,
    finish,
    found,
    odd,
    only_run,
    run_evalkit,
    start,
    undisturbed,
    until,
    vqa_files,
)

IMAGES, QUESTIONS = 30, 4
TASKS, KINDS = ("vqav2", "retrieval", CHOICE), ("generate", "retrieve", "choose")


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = vqa_files(tmp_path_factory.mktemp("files"), images=IMAGES, questions=QUESTIONS)
    return caption_files(root, images=IMAGES)


@pytest.fixture(scope="module")
def quiet(files: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], tuple[dict[str, Any], bytes]]:
    """What an undisturbed run of a task in one process gives."""
    return cache(lambda task: undisturbed(odd(files, task), tmp_path_factory.mktemp("quiet")))


def pids(folder: Path) -> list[int]:
    return sorted(int(path.stem) for path in folder.glob("*.pid"))


def alive(pid: int) -> bool:
    """Whether a process runs; one that was killed and waits for its parent to notice does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except FileNotFoundError:
        return False


@contextlib.contextmanager
def started(*line: str, cwd: Path) -> Iterator[subprocess.Popen[str]]:
    process = start(*line, cwd=cwd)
    try:
        yield process
    finally:
        process.kill()
        process.communicate(timeout=PATIENCE)


def written(folder: Path) -> int:
    """Bytes of the logs below a folder."""
    return sum(path.stat().st_size for path in folder.glob("results/runs/*/*/*/predictions/*.jsonl"))


# -- the same numbers whatever the geometry


@pytest.mark.parametrize("devices", [2, 3, 5])
@pytest.mark.parametrize("task", TASKS, ids=KINDS)
def test_any_number_of_workers_gives_the_same_answers_and_scores(
    files: Path, quiet: Any, tmp_path: Path, task: str, devices: int
) -> None:
    ran = run_evalkit(*odd(files, task, f"devices={devices}"), cwd=tmp_path)
    assert ran.code == 0, ran.err
    assert found(tmp_path) == quiet(task)


def test_the_stand_in_would_show_another_batch(files: Path, quiet: Any, tmp_path: Path) -> None:
    # The tests above compare nothing unless another composition of batches gives other answers.
    ran = run_evalkit(*odd(files), "engine.prompt_batch=2", cwd=tmp_path)
    assert ran.code == 0, ran.err
    others, scores = found(tmp_path)
    assert others != quiet("vqav2")[0]
    assert scores != quiet("vqav2")[1]


def test_the_last_line_of_progress_counts_all_workers(files: Path, tmp_path: Path) -> None:
    ran = run_evalkit(*odd(files, "vqav2", "devices=3"), cwd=tmp_path)
    assert f"vqav2 odd: {IMAGES * QUESTIONS}/{IMAGES * QUESTIONS} samples in" in ran.err


@pytest.mark.parametrize("devices", [1, 2])
def test_batches_that_had_no_room_are_told(files: Path, tmp_path: Path, devices: int) -> None:
    words = odd(files, "vqav2", f"devices={devices}", "model.room=2")
    ran = run_evalkit(*words, cwd=tmp_path)
    assert ran.code == 0, ran.err
    batches = IMAGES // 2 * 3  # of the 8 prompts of a unit: 3, 3 and 2
    assert f"out of memory {batches - IMAGES // 2} times" in ran.err
    assert len(answers(only_run(tmp_path))) == IMAGES * QUESTIONS


# -- a worker that is lost


@pytest.mark.parametrize("task", TASKS, ids=KINDS)
def test_a_killed_worker_is_replaced_alone(files: Path, quiet: Any, tmp_path: Path, task: str) -> None:
    traces = tmp_path / "traces"
    line = odd(files, task, "devices=2", f"model.folder={traces}", "model.batch_s=0.05")
    with started(*line, cwd=tmp_path) as process:
        until(lambda: len(pids(traces)) == 2 and written(tmp_path) > 0)
        first, second = pids(traces)
        os.kill(first, signal.SIGKILL)
        # All the work may be done before the replacement has loaded: it is not waited for then.
        ran = finish(process)
    assert ran.code == 0, ran.err
    assert second in pids(traces)
    assert len(pids(traces)) <= 3
    assert ran.err.count("was killed by SIGKILL") == 1
    assert f"(process {second})" not in ran.err
    assert found(tmp_path) == quiet(task)


def test_a_worker_that_does_nothing_for_a_heartbeat_is_replaced(files: Path, quiet: Any, tmp_path: Path) -> None:
    options = (f"model.folder={tmp_path / 'traces'}", "model.stop_on=1002", "engine.heartbeat_s=8")
    ran = run_evalkit(*odd(files, "vqav2", "devices=2", *options), cwd=tmp_path)
    assert ran.code == 0, ran.err
    assert "did nothing for" in ran.err
    assert "engine.heartbeat_s" in ran.err
    assert found(tmp_path) == quiet("vqav2")


def test_a_worker_that_only_beats_is_replaced_too(files: Path, quiet: Any, tmp_path: Path) -> None:
    options = (f"model.folder={tmp_path / 'traces'}", "model.sleep_on=1002", "engine.heartbeat_s=8")
    ran = run_evalkit(*odd(files, "vqav2", "devices=2", *options), cwd=tmp_path)
    assert ran.code == 0, ran.err
    assert "did nothing for" in ran.err
    assert found(tmp_path) == quiet("vqav2")


def test_loading_may_take_longer_than_a_heartbeat(files: Path, quiet: Any, tmp_path: Path) -> None:
    options = ("model.load_s=12", "engine.heartbeat_s=8", "engine.max_restarts=0")
    ran = run_evalkit(*odd(files, "vqav2", "devices=2", *options), cwd=tmp_path)
    assert ran.code == 0, ran.err
    assert found(tmp_path) == quiet("vqav2")


def test_workers_that_always_die_end_the_run_and_keep_what_is_finished(files: Path, quiet: Any, tmp_path: Path) -> None:
    options = (f"model.folder={tmp_path / 'traces'}", "model.kill_on=29002", "model.once=false")
    ran = run_evalkit(*odd(files, "vqav2", "devices=2", "engine.max_restarts=2", *options), cwd=tmp_path)
    assert ran.code == 1
    assert "after 2 restarts (engine.max_restarts=2)" in ran.err
    assert ran.err.count("was killed by SIGKILL") == 3
    kept = answers(only_run(tmp_path))
    assert kept
    assert kept.items() <= quiet("vqav2")[0].items()
    again = run_evalkit(*odd(files, "vqav2", "devices=2"), cwd=tmp_path)
    assert again.code == 0, again.err
    assert found(tmp_path) == quiet("vqav2")


def test_a_bug_ends_the_run_with_the_workers_own_traceback(files: Path, tmp_path: Path) -> None:
    options = ("model.bug_on=1002", "model.once=false", "engine.max_restarts=1")
    ran = run_evalkit(*odd(files, "vqav2", "devices=2", *options), cwd=tmp_path)
    assert ran.code == 1
    assert "AssertionError: the model gave 2 outputs for 3 prompts" in ran.err
    assert "WorkerError" in ran.err
    assert "in _check" in ran.err


def test_a_bug_while_loading_ends_the_run_at_once(files: Path, tmp_path: Path) -> None:
    traces = tmp_path / "traces"
    options = (f"model.folder={traces}", "model.bug_on=prepare", "engine.max_restarts=50")
    ran = run_evalkit(*odd(files, "vqav2", "devices=2", *options), cwd=tmp_path)
    assert ran.code == 1
    assert "ZeroDivisionError: a bug in prepare" in ran.err
    assert len(pids(traces)) <= 2


@pytest.mark.parametrize(("where", "says"), [("prepare", "the weights of the odd model are gone"),
                                             ("1002", "the odd model is gone; start it again")])  # fmt: skip
def test_a_users_error_in_a_worker_is_one_of_the_run(files: Path, tmp_path: Path, where: str, says: str) -> None:
    options = (f"model.gone_on={where}", "model.once=false")
    ran = run_evalkit(*odd(files, "vqav2", "devices=2", *options), cwd=tmp_path)
    assert ran.code == 2
    assert says in ran.paragraph


# -- a supervisor that is lost


@pytest.mark.parametrize("doing", ["working", "loading", "stuck", "stopped"])
def test_workers_leave_within_ten_seconds_of_their_supervisor(
    files: Path, quiet: Any, tmp_path: Path, doing: str
) -> None:
    traces = tmp_path / "traces"
    options = {
        "working": ["model.batch_s=0.2"],
        "loading": ["model.load_s=3600"],
        "stuck": ["model.sleep_on=1002"],
        "stopped": ["model.stop_on=1002"],
    }[doing]
    with started(*odd(files, "vqav2", "devices=2", f"model.folder={traces}", *options), cwd=tmp_path) as process:
        until(lambda: len(pids(traces)) == 2)
        if doing in ("stuck", "stopped"):
            until(lambda: list(traces.glob("*.done")))
        if doing == "working":
            until(lambda: written(tmp_path))
        workers = pids(traces)
        assert all(alive(pid) for pid in workers)
        process.kill()
        process.wait(timeout=PATIENCE)
        until(lambda: not any(alive(pid) for pid in workers), seconds=10)
    again = run_evalkit(*odd(files, "vqav2", "devices=3"), cwd=tmp_path)
    assert again.code == 0, again.err
    assert found(tmp_path) == quiet("vqav2")


# -- Ctrl-C


@pytest.mark.parametrize("devices", [1, 2])
def test_ctrl_c_finishes_the_batch_and_says_how_to_go_on(files: Path, quiet: Any, tmp_path: Path, devices: int) -> None:
    line = odd(files, "vqav2", f"devices={devices}")
    with started(*line, "model.batch_s=0.3", cwd=tmp_path) as process:
        until(lambda: written(tmp_path))
        os.killpg(process.pid, signal.SIGINT)  # a terminal sends it to the whole foreground group
        ran = finish(process)
    assert ran.code == 130, ran.err
    assert "stopping after the batch in hand" in ran.err
    assert "the same command continues" in ran.err
    assert "Traceback" not in ran.err
    kept = answers(only_run(tmp_path))
    assert 0 < len(kept) < IMAGES * QUESTIONS
    again = run_evalkit(*line, cwd=tmp_path)
    assert again.code == 0, again.err
    assert found(tmp_path) == quiet("vqav2")


@pytest.mark.parametrize("devices", [1, 2])
def test_a_second_ctrl_c_leaves_at_once(files: Path, quiet: Any, tmp_path: Path, devices: int) -> None:
    traces = tmp_path / "traces"
    line = odd(files, "vqav2", f"devices={devices}")
    with started(*line, f"model.folder={traces}", "model.sleep_on=29002", cwd=tmp_path) as process:
        until(lambda: (traces / "sleep.done").exists() and written(tmp_path))
        workers = pids(traces)
        os.killpg(process.pid, signal.SIGINT)
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(timeout=2)  # the batch in hand takes an hour
        os.killpg(process.pid, signal.SIGINT)
        ran = finish(process)
    assert ran.code == 130, ran.err
    assert "Traceback" not in ran.err
    until(lambda: not any(alive(pid) for pid in workers))
    again = run_evalkit(*line, cwd=tmp_path)
    assert again.code == 0, again.err
    assert found(tmp_path) == quiet("vqav2")


def test_ctrl_c_does_not_wait_for_models_that_load(files: Path, tmp_path: Path) -> None:
    traces = tmp_path / "traces"
    line = odd(files, "vqav2", "devices=2", f"model.folder={traces}", "model.load_s=3600")
    with started(*line, cwd=tmp_path) as process:
        until(lambda: len(pids(traces)) == 2)
        os.killpg(process.pid, signal.SIGINT)
        ran = finish(process)
    assert ran.code == 130, ran.err


# -- two starts, no room, no permission


@pytest.mark.parametrize("task", ["vqav2", "retrieval"])
def test_two_starts_on_one_folder_both_finish(files: Path, quiet: Any, tmp_path: Path, task: str) -> None:
    line = odd(files, task, "devices=2", "model.batch_s=0.02")
    with started(*line, cwd=tmp_path) as one, started(*line, cwd=tmp_path) as other:
        first, second = finish(one), finish(other)
    assert first.code == 0, first.err
    assert second.code == 0, second.err
    assert found(tmp_path) == quiet(task)


@contextlib.contextmanager
def mounted(folder: Path, *words: str) -> Iterator[Path]:
    """A file system of its own, `mount` being given these words; skips where this process may not mount one."""
    folder.mkdir(exist_ok=True)
    if shutil.which("mount") is None or os.geteuid() != 0:
        pytest.skip("a file system is mounted by root alone")
    ran = subprocess.run(["mount", *words, str(folder)], capture_output=True, text=True)
    if ran.returncode:
        pytest.skip(f"mounting is not permitted here: mount {' '.join(words)}: {ran.stderr.strip()}")
    try:
        yield folder
    finally:
        # Not lazily: while a last worker has it open it would live on, shut down as it is, under the next mount.
        until(lambda: subprocess.run(["umount", str(folder)], capture_output=True).returncode == 0)


def small_disk(folder: Path, *options: str) -> contextlib.AbstractContextManager[Path]:
    """A file system in memory."""
    return mounted(folder, "-t", "tmpfs", "-o", ",".join(options), "none")


@pytest.mark.parametrize("devices", [1, 2])
def test_a_full_disk_stops_the_run_cleanly_and_it_resumes(tmp_path: Path, devices: int) -> None:
    files = vqa_files(tmp_path / "files", images=150, questions=4)  # 600 lines, more than the disk has room for
    quiet = run_evalkit(*odd(files), cwd=tmp_path)
    assert quiet.code == 0, quiet.err
    line = odd(files, "vqav2", f"devices={devices}", "out=disk/runs")
    with small_disk(tmp_path / "disk", "size=512k") as disk:
        ballast = disk / "ballast"
        ballast.write_bytes(b"x" * (512 - 52) * 1024)
        full = run_evalkit(*line, cwd=tmp_path)
        assert full.code == 2, full.err
        assert "No space left on device" in full.paragraph
        assert "make room" in full.paragraph
        (run,) = (path.parent for path in (disk / "runs").glob("*/*/*/manifest.json"))
        kept = answers(run)
        assert 0 < len(kept) < 600
        ballast.unlink()
        again = run_evalkit(*line, cwd=tmp_path)
        assert again.code == 0, again.err
        assert (answers(run), (run / "scores.json").read_bytes()) == found(tmp_path)
        assert kept.items() <= answers(run).items()


@pytest.mark.parametrize("devices", [1, 2])
def test_a_folder_that_cannot_be_written_is_named(files: Path, tmp_path: Path, devices: int) -> None:
    with small_disk(tmp_path / "disk", "size=64k", "ro") as disk:
        ran = run_evalkit(*odd(files, "vqav2", f"devices={devices}", f"out={disk}/runs"), cwd=tmp_path)
    assert ran.code == 2
    assert "Read-only file system" in ran.paragraph
    assert "out=DIR" in ran.paragraph


@pytest.mark.slow
@pytest.mark.parametrize("task", ["vqav2", pytest.param("retrieval", marks=pytest.mark.long)])
def test_a_power_cut_loses_no_line_older_than_the_sync(files: Path, quiet: Any, tmp_path: Path, task: str) -> None:
    """An ext4 of its own, shut down as xfstests does: from one moment to the next nothing reaches the disk any more."""
    if shutil.which("mkfs.ext4") is None:
        pytest.skip("needs mkfs.ext4 (e2fsprogs)")
    image = tmp_path / "image"
    image.touch()
    os.truncate(image, 64 << 20)
    subprocess.run(["mkfs.ext4", "-q", str(image)], check=True)
    line = odd(files, task, "out=disk/runs", "devices=2")
    # Only what evalkit syncs is to reach the disk: ext4 by itself would write its journal every 5 s.
    with mounted(tmp_path / "disk", "-o", "loop,commit=300", str(image)) as disk:
        with started(*line, "model.batch_s=0.4", cwd=tmp_path) as process:
            until(lambda: sum(path.stat().st_size > 0 for path in disk.glob("runs/*/*/*/predictions/*.jsonl")) == 2)
            (run,) = (path.parent for path in disk.glob("runs/*/*/*/manifest.json"))
            time.sleep(1)
            before = answers(run)
            time.sleep(SYNC_SECONDS + 2)  # and a batch
            shut_down(disk)
            ran = finish(process)
        assert ran.code == 2, ran.err
        assert "Input/output error" in ran.paragraph
    with mounted(tmp_path / "disk", "-o", "loop", str(image)) as disk:
        (run,) = (path.parent for path in disk.glob("runs/*/*/*/manifest.json"))
        kept = answers(run)
        assert before
        assert before.items() <= kept.items()
        assert len(kept) < len(quiet(task)[0])
        again = run_evalkit(*line, cwd=tmp_path)
        assert again.code == 0, again.err
        assert (answers(run), (run / "scores.json").read_bytes()) == quiet(task)


def shut_down(disk: Path) -> None:
    """Drop everything that has not reached the disk, as a power cut does."""
    shutdown, without_the_journal = 0x8004587D, 2  # EXT4_IOC_SHUTDOWN, EXT4_GOING_FLAGS_NOLOGFLUSH of the kernel
    folder = os.open(disk, os.O_RDONLY)
    try:
        fcntl.ioctl(folder, shutdown, struct.pack("I", without_the_journal))
    finally:
        os.close(folder)
