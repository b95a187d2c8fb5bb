"""`python -m evalkit status RUN`: what another shell is told.

python -m pytest tests/test_status.py
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from evalkit import log, manifest, status
from evalkit.errors import ResultsError
from evalkit.types import Prediction
from tests.support import Ran, caption_files, environment, only_run, vqa_files


def run_folder(root: Path, kind: str = "generate") -> Path:
    run = root / "results/runs/gqa/fake/0a1b2c3d4e5f"
    identity = {"task": "gqa/testdev", "kind": kind, "samples": 5}
    facts = {"format": 1, "identity": identity, "model": {"name": "fake"}, "spec": "gqa", "task": {}, "data": {}}
    manifest.write_once(run, facts | {"limit": None})
    return run


def test_a_run_that_goes_on(tmp_path: Path) -> None:
    run = run_folder(tmp_path)
    manifest.Segment(run, ["task=gqa"], {"devices": "2"})
    with log.Writer(run / "predictions") as writer:
        writer.append([Prediction(sample_id=str(i), output="yes") for i in range(2)])
        writer.append([Prediction(sample_id="2", output=None, error="RuntimeError: no")])
    with writer.path.open("ab") as stream:
        stream.write(b'{"sample_id": "3", "outp')
    said = list(status.lines(run, now=writer.path.stat().st_mtime + 30))
    assert said[0] == f"gqa/testdev fake, {run}"
    assert said[1] == (
        "  2 of 5 samples answered, 1 failed, 2 missing; 1 torn line, asked again by the next start; not scored"
    )
    assert said[2] == "  writers: 1 wrote in the last minute, 1 in all; the last 30 s ago"
    assert said[3] == f"    {writer.path.name}  3 lines, last write 30 s ago"
    assert said[4] == "  starts: 1"
    assert said[5].endswith("devices=2: running, or killed: it wrote no end")


@pytest.mark.parametrize(
    ("outcome", "says"),
    [
        ({"asked": 3}, "ended after 3 samples"),
        ({"asked": 1, "interrupted": True}, "stopped by Ctrl-C after 1 sample"),
        ({"asked": 3, "restarts": 2}, "ended after 3 samples, 2 workers replaced"),
        (
            {"asked": 3, "restarts": 1, "memory_errors": 4},
            "ended after 3 samples, 1 worker replaced, out of memory 4 times",
        ),
        ({"asked": 0, "error": "ResultsError: no\nroom"}, "failed after 0 samples: ResultsError: no room"),
    ],
)
def test_how_a_start_ended(tmp_path: Path, outcome: dict[str, object], says: str) -> None:
    run = run_folder(tmp_path)
    manifest.Segment(run, [], {"devices": "2"}).close(outcome)
    assert list(status.lines(run))[-1].endswith(f"devices=2: {says}")


def test_nothing_written_yet(tmp_path: Path) -> None:
    said = list(status.lines(run_folder(tmp_path)))
    assert said[1].startswith("  0 of 5 samples answered, 0 failed, 5 missing; not scored")
    assert said[2:] == ["  writers: none so far", "  starts: 0"]


def test_a_start_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    run = run_folder(tmp_path)
    (run / "segments").mkdir()
    (run / "segments" / "x.json").write_text("{")
    with pytest.raises(ResultsError, match=r"segments/x\.json"):
        list(status.lines(run))


@pytest.mark.parametrize(("task", "more"), [("vqav2", ""), ("retrieval", "candidates are chosen")])
def test_the_verb_after_a_run(tmp_path: Path, command: Callable[..., Ran], task: str, more: str) -> None:
    files = caption_files(vqa_files(tmp_path / "files"))
    ran = command("model=fake", f"task={task}", "data=files", f"data.root={files}", "data.check=false")
    assert ran.code == 0, ran.err
    said = command("status", str(only_run(tmp_path)))
    assert said.code == 0
    total = 12 if task == "vqav2" else 4
    assert f"{total} of {total} samples answered, 0 failed, 0 missing; scored" in said.out
    assert f"ended after {total} samples" in said.out
    assert more in said.out


def test_the_verb_names_what_is_no_run_and_still_shows_the_others(tmp_path: Path, command: Callable[..., Ran]) -> None:
    run = run_folder(tmp_path)
    assert "is not a run folder" in command("status", str(tmp_path)).paragraph
    both = command("status", str(tmp_path), str(run))
    assert both.code == 2
    assert "0 of 5 samples" in both.out
    assert "is not a run folder" in both.paragraph
    assert "status takes run folders" in command("status").paragraph
    assert "status takes run folders" in command("status", "task=gqa").paragraph


def test_the_verb_imports_no_torch(tmp_path: Path) -> None:
    code = (
        "import sys; from evalkit.__main__ import main; code = main(['status', sys.argv[1]]);"
        "assert code == 0; assert 'torch' not in sys.modules; assert 'pandas' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code, str(run_folder(tmp_path))], check=True, env=environment(), cwd=tmp_path)


def test_a_writer_of_another_day_is_not_recent(tmp_path: Path) -> None:
    run = run_folder(tmp_path)
    with log.Writer(run / "predictions") as writer:
        writer.append([Prediction(sample_id="1", output="yes")])
    old = time.time() - 3 * 3600
    os.utime(writer.path, (old, old))
    assert "  writers: 0 wrote in the last minute, 1 in all; the last 3 h ago" in list(status.lines(run))
