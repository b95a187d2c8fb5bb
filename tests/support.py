"""What several test files share."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[1]
CHOICE = f"{ROOT}/tests/choice_task.py"
"""A `choose` task over the files of `vqa_files`; its family is "choice"."""


def shared(name: str) -> Path:
    """Return a file of the shared evaluation data; skip the test where this machine does not have it."""
    folder = Path(os.environ.get("EVALKIT_SHARED", ROOT.parent / "shared"))
    path = folder / name
    if not path.exists():
        pytest.skip(f"needs {name} of the evaluation data (EVALKIT_SHARED={folder}), which is not part of a clone")
    return path


@dataclass(frozen=True)
class Ran:
    """What a command did."""

    code: int
    out: str
    err: str

    @property
    def paragraph(self) -> str:
        """The message of a user error: one paragraph on stderr, nothing of Python in it."""
        said = [line for line in self.err.splitlines() if line.startswith("evalkit: ")]
        assert len(said) == 1, self.err
        assert "Traceback" not in self.err
        assert 'File "' not in self.err
        return said[0]


def environment(**more: str) -> dict[str, str]:
    """Return the environment of a command: this checkout first, one thread, no hub."""
    path = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH", ""))))
    fixed = {"PYTHONPATH": path, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    return {**os.environ, **fixed, **more}


def start(*words: str, cwd: Path, **more: str) -> subprocess.Popen[str]:
    """Start `python -m evalkit` as its own process group, and return it."""
    return subprocess.Popen(
        [sys.executable, "-m", "evalkit", *words], cwd=cwd, env=environment(**more), text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True,
    )  # fmt: skip


def run_evalkit(*words: str, cwd: Path, timeout: float = 120, **more: str) -> Ran:
    """Run `python -m evalkit` in a process of its own."""
    process = start(*words, cwd=cwd, **more)
    try:
        out, err = process.communicate(timeout=timeout)
    finally:
        process.kill()
    return Ran(process.returncode, out, err)


def picture(folder: Path, name: str, seed: int, size: tuple[int, int] = (12, 10)) -> Path:
    """Write an image of one colour, another for each seed."""
    from PIL import Image

    folder.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, (seed * 37 % 256, seed * 91 % 256, seed * 13 % 256)).save(folder / name)
    return folder / name


def vqa_files(root: Path, *, images: int = 4, questions: int = 3) -> Path:
    """Write a small VQAv2 val in the official formats: question 1002 is the third one about image 1."""
    asked, answers = [], []
    for image in range(1, images + 1):
        picture(root / "val2014", f"COCO_val2014_{image:012d}.png", image)
        for number in range(questions):
            key = image * 1000 + number
            kind, answer = (("yes/no", "yes"), ("number", "2"), ("other", "red"))[number % 3]
            asked.append({"question_id": key, "image_id": image, "question": f"What is number {number} of {image}?"})
            answers.append(
                {
                    "question_id": key,
                    "image_id": image,
                    "question_type": "what is",
                    "answer_type": kind,
                    "multiple_choice_answer": answer,
                    "answers": [{"answer": answer, "answer_confidence": "yes", "answer_id": i} for i in range(1, 11)],
                }
            )
    (root / "v2_OpenEnded_mscoco_val2014_questions.json").write_text(json.dumps({"questions": asked}))
    (root / "v2_mscoco_val2014_annotations.json").write_text(json.dumps({"annotations": answers}))
    return root


def caption_files(root: Path, *, images: int = 4) -> Path:
    """Write a small Karpathy split: captions and retrieval read it; every image has two captions of its own."""
    rows = []
    for image in range(1, images + 1):
        name = f"COCO_val2014_{image:012d}.png"
        picture(root / "val2014", name, image)
        texts = (f"a picture of thing number {image}", f"thing {image} stands in a field")
        sentences = [{"raw": text, "sentid": image * 10 + i} for i, text in enumerate(texts)]
        rows.append({"filename": name, "cocoid": image, "split": "test", "sentences": sentences})
    (root / "dataset_coco.json").write_text(json.dumps({"images": rows}))
    return root


def runs(out: Path) -> list[Path]:
    """Return the run folders below a folder of runs."""
    return sorted(path.parent for path in out.glob("*/*/*/manifest.json"))


def only_run(cwd: Path, task: str = "*", model: str = "*") -> Path:
    """Return the one run folder of a task and a model."""
    (run,) = (path.parent for path in (cwd / "results/runs").glob(f"{task}/{model}/*/manifest.json"))
    return run


def lines(run: Path) -> list[dict[str, Any]]:
    """Return all lines of a run's log, in the order of the files, torn ones left out."""
    files = sorted((run / "predictions").glob("*.jsonl"))
    return [json.loads(line) for file in files for line in file.read_bytes().split(b"\n")[:-1]]


def answers(run: Path) -> dict[str, tuple[Any, ...]]:
    """Return {sample id: (prompt, output, error, pairs)} as a reader of the log sees them."""
    from evalkit.log import read_log

    found = read_log(run / "predictions").predictions
    return {key: (each.prompt, each.output, each.error, each.pairs) for key, each in found.items()}


def scores(run: Path) -> dict[str, Any]:
    """Return scores.json of a run."""
    found: dict[str, Any] = json.loads((run / "scores.json").read_text())
    return found


PATIENCE = 240.0
"""Seconds within which something must have happened, on a machine that others use too."""


def until(what: Callable[[], Any], seconds: float = PATIENCE) -> Any:
    """Wait until something is true, and return it."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if value := what():
            return value
        time.sleep(0.05)
    raise AssertionError(f"did not happen within {seconds} s")


def finish(process: subprocess.Popen[str]) -> Ran:
    """Wait for the end of a command that `start` has begun."""
    try:
        out, err = process.communicate(timeout=PATIENCE)
    finally:
        process.kill()
    return Ran(process.returncode, out, err)


def odd(files: Path, task: str = "vqav2", *more: str) -> list[str]:
    """Return the words that run `tests.odd_models.Odd`, whose answers depend on all that stands in a batch."""
    return [
        "model=custom", "model._target_=tests.odd_models.Odd", "model.name=odd", f"task={task}",
        "engine.image_batch=2", "engine.prompt_batch=3", "data=files", f"data.root={files}", "data.check=false", *more,
    ]  # fmt: skip


def found(folder: Path) -> tuple[dict[str, Any], bytes]:
    """Return what the one run of a folder came to: its answers, and the bytes of its scores."""
    run = only_run(folder)
    return answers(run), (run / "scores.json").read_bytes()


def undisturbed(words: list[str], folder: Path) -> tuple[dict[str, Any], bytes]:
    """Return what one process that nobody disturbs gives."""
    ran = run_evalkit(*words, cwd=folder)
    assert ran.code == 0, ran.err
    return found(folder)
