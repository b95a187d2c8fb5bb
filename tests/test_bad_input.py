"""Bad input gets a clear answer: one paragraph that names the thing, the right exit code, and nothing is lost."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support import Ran, answers, caption_files, lines, only_run, run_evalkit, runs, scores, vqa_files

Command = Callable[..., Ran]
RUN = ("model=fake", "task=vqav2", "data=files", "data.root=root", "data.check=false")
QUESTIONS = "v2_OpenEnded_mscoco_val2014_questions.json"
WEIGHTS = "\x02" + "\x00" * 7 + "{}"
"""A safetensors file without a tensor in it."""
ANNOTATIONS = "v2_mscoco_val2014_annotations.json"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return vqa_files(tmp_path / "root")


def picture_of(root: Path, image: int) -> Path:
    return root / "val2014" / f"COCO_val2014_{image:012d}.png"


def change(path: Path, key: str, edit: Callable[[list[dict[str, object]]], object]) -> None:
    """Edit the list of records below `key` of a JSON file."""
    found = json.loads(path.read_text())
    edit(found[key])
    path.write_text(json.dumps(found))


def refused(ran: Ran, *says: str) -> None:
    """Hold a refusal: exit code 2, one paragraph with these words, nothing on stdout."""
    assert ran.code == 2, ran
    assert ran.out == ""
    for words in says:
        assert words in ran.paragraph


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["model=fake", "task=vqa2"], ("'vqa2'", "did you mean 'vqav2'", "textvqa")),
        (["model=fake", "task=vqav2/tset"], ("'tset'", "test-dev")),
        (["model=fake", "task=./nowhere.py"], ("nowhere.py does not exist",)),
        (["model=blip3", "task=vqav2"], ("'blip3'", "blip2-tiny", "oracle")),
        (["model=fake", "taks=vqav2"], ("'taks'", "did you mean 'task'", "max_failed")),
        (["model=fake", "suite=everything"], ("'everything'", "zero-shot")),
        (["model=fake", "task=vqav2", "prompt_style=shout"], ("'shout'", "short-answer")),
        (["model=fake", "task=vqav2", "extract=guess"], ("'guess'", "first_line")),
        (["model=fake", "task=vqav2", "metric_variant=mine"], ("'mine'", "legacy")),
        (["model=fake", "task=vqav2", "question_filter=x"], ("'x'", "blip")),
        (["model=fake", "task=vqav2", "decoding.num_beams=0"], ("decoding.num_beams=0",)),
        (["model=fake", "task=vqav2", "image_size=-1"], ("image_size",)),
        (["model=fake", "task=vqav2", "model.sead=1"], ("Fake takes no model.sead", "seed")),
        (["model=fake", "task=vqav2", "devices=some"], ("devices", "some")),
        (["model=fake", "task=vqav2", "data=files"], ("vqav2 needs its questions", "data.questions=FILE")),
        (["model=fake", "task=vqav2", "data=files", "data.root=nowhere"], ("data.root=nowhere is not a folder",)),
        (["model=fake", "task=vqav2", "data=files", "data.question=q"], ("'question'", "did you mean 'questions'")),
        (
            ["model=fake", "task=vqav2", "data=files", "data.questions=q.json"],
            ("data.questions=q.json does not exist",),
        ),
        (["model=fake", "task=vqav2", "data=demo", "data.root=x"], ("data=demo brings its own files",)),
        (["score"], ("score takes run folders",)),
        (["score", "nowhere"], ("nowhere is not a run folder",)),
        (
            ["score", "task=vqav2", "predictions=nowhere.json", "data=files", "data.root=."],
            ("vqav2 needs its questions",),
        ),
        (["leaderboard", "out=nowhere"], ("no folder of runs at nowhere",)),
        (["--config-dir"], ("--config-dir needs a folder",)),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_a_wrong_word_is_named_with_what_there_is(command: Command, words: list[str], says: tuple[str, ...]) -> None:
    refused(command(*words), *says)


@pytest.mark.usefixtures("root")
@pytest.mark.parametrize("prompt", ["Q: {qestion}", "{question.__class__}", "{question", "{0}"])
def test_a_template_that_cannot_be_filled_is_named_before_anything_runs(
    command: Command, tmp_path: Path, prompt: str
) -> None:
    refused(command(*RUN, f"prompt={prompt}"), prompt)
    assert not (tmp_path / "results").exists()


@pytest.mark.parametrize("name", [QUESTIONS, ANNOTATIONS])
@pytest.mark.parametrize("damage", ["missing", "empty", "truncated", "binary", "shape", "torn gzip"])
def test_a_damaged_annotation_file_is_named(
    command: Command, tmp_path: Path, root: Path, name: str, damage: str
) -> None:
    path = root / name
    data = path.read_bytes()
    if damage == "missing":
        path.unlink()
    else:
        import gzip

        path.write_bytes(
            {
                "empty": b"",
                "truncated": data[: len(data) // 2],
                "binary": b"\xff\xfe\x00\x00" + data,
                "shape": b'{"info": {}}',
                "torn gzip": gzip.compress(data)[:-40],
            }[damage]
        )
    refused(command(*RUN), name)
    assert not (tmp_path / "results").exists()


def test_duplicate_sample_ids_are_named(command: Command, root: Path) -> None:
    change(root / QUESTIONS, "questions", lambda rows: rows.append(rows[0]))
    refused(command(*RUN), "'1000'", "unique")


def test_a_question_without_annotation_is_named(command: Command, root: Path) -> None:
    change(root / ANNOTATIONS, "annotations", lambda rows: rows.pop())
    refused(command(*RUN), "annotations: 4002")


def test_a_set_that_is_not_the_official_one_is_refused_with_both_numbers(
    command: Command, tmp_path: Path, root: Path
) -> None:
    refused(command(*RUN[:-1]), "12 samples, official 214,354", "data.check=false")
    assert not (tmp_path / "results").exists()


def test_a_missing_image_is_named_before_anything_runs(command: Command, tmp_path: Path, root: Path) -> None:
    picture_of(root, 3).unlink()
    ran = command(*RUN)
    refused(ran, "1 of 4 images are missing", ": 3;", "data.images=DIR")
    assert runs(tmp_path / "results/runs") == []


def test_with_a_limit_only_the_images_that_are_needed_must_be_there(command: Command, root: Path) -> None:
    picture_of(root, 4).unlink()
    assert command(*RUN, "limit=3").code == 0


def half_jpeg(path: Path) -> None:
    from PIL import Image

    noise = Image.frombytes("RGB", (64, 64), os.urandom(64 * 64 * 3))
    noise.save(path.with_suffix(".jpg"), quality=90)
    path.unlink()
    data = path.with_suffix(".jpg").read_bytes()
    path.with_suffix(".jpg").write_bytes(data[: len(data) // 2])


def half_png(path: Path) -> None:
    from PIL import Image

    Image.frombytes("RGB", (64, 64), os.urandom(64 * 64 * 3)).save(path)
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2])


def flipped_png(path: Path) -> None:
    data = bytearray(path.read_bytes())
    place = data.index(b"IDAT") + 6
    data[place] ^= 0xFF
    path.write_bytes(bytes(data))


def large_png(path: Path) -> None:
    from PIL import Image

    Image.new("1", (1000, 1001)).save(path)


BROKEN: dict[str, Callable[[Path], object]] = {
    "truncated JPEG": half_jpeg,
    "corrupt PNG": flipped_png,
    "truncated PNG": half_png,
    "empty file": lambda path: path.write_bytes(b""),
    "no image": lambda path: path.write_text("<html>404</html>"),
    "oversized": large_png,
}


@pytest.mark.parametrize("damage", list(BROKEN))
def test_a_broken_image_makes_failed_samples_and_the_next_start_asks_only_them(
    command: Command, tmp_path: Path, root: Path, damage: str
) -> None:
    whole = picture_of(root, 2).read_bytes()
    BROKEN[damage](picture_of(root, 2))
    ran = command(*RUN, "data.max_pixels=1000000")
    assert ran.code == 3, ran.err
    assert "3 failed (2000: image '2'" in ran.err
    run = only_run(tmp_path)
    found = answers(run)
    assert {key for key, (_, output, _, _) in found.items() if output is None} == {"2000", "2001", "2002"}
    assert len(found) == 12, "the others are kept"
    assert not (run / "scores.json").exists(), "nothing failed is ever scored"
    picture_of(root, 2).with_suffix(".jpg").unlink(missing_ok=True)
    picture_of(root, 2).write_bytes(whole)
    again = command(*RUN, "data.max_pixels=1000000")
    assert again.code == 0, again.err
    assert [line["sample_id"] for line in lines(run)[12:]] == ["2000", "2001", "2002"]
    assert (scores(run)["n"], scores(run)["failed"]) == (12, 0)


@pytest.mark.parametrize("model", ["fake", "oracle"])
def test_a_broken_image_in_retrieval_is_a_failed_sample_until_it_is_mended(
    command: Command, tmp_path: Path, model: str
) -> None:
    words = (f"model={model}", "task=retrieval", "data=files", "data.root=root", "data.check=false")
    root = caption_files(tmp_path / "root")
    whole = picture_of(root, 2).read_bytes()
    flipped_png(picture_of(root, 2))
    ran = command(*words)
    assert (ran.code, "1 failed (2: image '2'" in ran.err) == (3, True), ran.err
    picture_of(root, 2).write_bytes(whole)
    again = command(*words)
    assert again.code == 0, again.err
    assert [line["sample_id"] for line in lines(only_run(tmp_path))[4:]] == ["2"]
    quiet = command(*words, "out=quiet/runs")
    assert quiet.code == 0
    (other,) = runs(tmp_path / "quiet/runs")
    assert (other / "scores.json").read_bytes() == (only_run(tmp_path) / "scores.json").read_bytes()


def test_an_image_that_leaves_its_folder_is_refused(command: Command, tmp_path: Path) -> None:
    root = caption_files(tmp_path / "root")
    change(root / "dataset_coco.json", "images", lambda rows: rows[0].update(filename="../../secret.png", cocoid=77))
    refused(
        command("model=fake", "task=retrieval", "data=files", "data.root=root", "data.check=false"), "leaves the folder"
    )


@pytest.mark.usefixtures("root")
@pytest.mark.parametrize("taken", ["results", "results/runs", "results/runs/vqav2"])
def test_a_results_folder_that_cannot_be_written_is_named(command: Command, tmp_path: Path, taken: str) -> None:
    path = tmp_path / taken
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("in the way")
    refused(command(*RUN), "results/runs/vqav2", "out=DIR")
    assert path.read_text() == "in the way"


def can_mount(folder: Path) -> bool:
    folder.mkdir()
    made = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(folder)], capture_output=True, check=False
    )
    return made.returncode == 0


@pytest.mark.usefixtures("root")
def test_a_read_only_results_folder_is_named(command: Command, tmp_path: Path) -> None:
    folder = tmp_path / "disk"
    if not can_mount(folder):
        pytest.skip("needs the right to mount a file system")
    try:
        subprocess.run(["mount", "-o", "remount,ro", str(folder)], check=True)
        refused(command(*RUN, "out=disk/runs"), "disk/runs/vqav2", "Read-only file system")
    finally:
        subprocess.run(["umount", str(folder)], check=True)


def test_a_full_disk_stops_the_run_cleanly_and_it_goes_on_when_there_is_room(command: Command, tmp_path: Path) -> None:
    vqa_files(tmp_path / "root", images=40, questions=30)
    folder = tmp_path / "disk"
    if not can_mount(folder):
        pytest.skip("needs the right to mount a file system")
    ballast = folder / "ballast"
    try:
        ballast.write_bytes(b"x" * (1024 * 1024 - 100 * 1024))
        ran = command(*RUN, "out=disk/runs")
        refused(ran, "No space left on device", "out=DIR")
        (run,) = runs(folder / "runs")
        kept = answers(run)
        assert 0 < len(kept) < 1200
        ballast.unlink()
        again = command(*RUN, "out=disk/runs")
        assert again.code == 0, again.err
        assert kept.items() <= answers(run).items()
        assert scores(run)["n"] == 1200
    finally:
        subprocess.run(["umount", str(folder)], check=True)


@pytest.mark.usefixtures("root")
def test_a_log_whose_last_line_is_torn_is_continued(command: Command, tmp_path: Path) -> None:
    command(*RUN)
    run = only_run(tmp_path)
    before, good = answers(run), (run / "scores.json").read_bytes()
    (file,) = (run / "predictions").glob("*.jsonl")
    file.write_bytes(file.read_bytes()[:-10] + b"")
    (run / "scores.json").unlink()
    ran = command(*RUN)
    assert ran.code == 0, ran.err
    assert "1 torn line" in ran.err
    assert answers(run) == before
    assert (run / "scores.json").read_bytes() == good


@pytest.mark.usefixtures("root")
@pytest.mark.parametrize(
    "line", [b"\x00" * 4096, b'{"question_id": 1000, "answer": "yes"}', b"[1, 2]", b'{"sample_id": []}']
)
def test_lines_of_another_kind_in_the_log_are_told_and_left(command: Command, tmp_path: Path, line: bytes) -> None:
    command(*RUN)
    run = only_run(tmp_path)
    before, good = answers(run), (run / "scores.json").read_bytes()
    (file,) = (run / "predictions").glob("*.jsonl")
    file.write_bytes(b"".join(file.read_bytes().splitlines(keepends=True)[1:]) + line + b"\n")
    ran = command(*RUN)
    assert (ran.code, "torn" in ran.err) == (0, True), ran.err
    assert answers(run) == before
    assert (run / "scores.json").read_bytes() == good


@pytest.mark.usefixtures("root")
@pytest.mark.parametrize("key", ["format", "log_format"])
def test_a_run_of_a_later_format_is_refused_not_misread(command: Command, tmp_path: Path, key: str) -> None:
    command(*RUN)
    run = only_run(tmp_path)
    facts = json.loads((run / "manifest.json").read_text())
    assert facts[key] == 1
    (run / "manifest.json").write_text(json.dumps(facts | {key: 2}))
    for words in (RUN, ("score", str(run))):
        refused(command(*words), f"has {key} 2", "reads up to 1")


@pytest.mark.usefixtures("root")
@pytest.mark.parametrize("name", ["manifest.json", "scores.json"])
def test_a_damaged_file_of_a_run_is_named(command: Command, tmp_path: Path, name: str) -> None:
    command(*RUN)
    run = only_run(tmp_path)
    (run / name).write_text('{"format": 1')
    if name == "manifest.json":
        refused(command("score", str(run)), "manifest.json")
    refused(command("leaderboard"), f"{run.name}/{name}")


@pytest.mark.usefixtures("root")
@pytest.mark.parametrize(
    ("content", "says"),
    [
        (None, "nowhere"),
        ({}, "folder"),
        ({"config.json": '{"model_type": "blip-2"}'}, "no weights"),
        ({"config.json": "{}", "model.safetensors": WEIGHTS}, "folder"),
        ({"config.json": "{", "model.safetensors": WEIGHTS}, "folder"),
        ({"config.json": '{"model_type": "bert"}', "model.safetensors": WEIGHTS}, "bert"),
        ({"config.json": '{"model_type": "blip-2"}', "model.safetensors": "torn"}, "folder"),
        ({"config.json": '{"model_type": "blip-2"}', "pytorch_model.bin": "pickle"}, "safetensors"),
    ],
    ids=["absent", "empty", "no weights", "no type", "torn config", "wrong family", "torn weights", "pickle"],
)
def test_a_checkpoint_folder_that_is_no_model_is_named(
    command: Command, tmp_path: Path, content: dict[str, str] | None, says: str
) -> None:
    where = "folder" if content is not None else "nowhere"
    if content is not None:
        (tmp_path / "folder").mkdir()
        for name, text in content.items():
            (tmp_path / "folder" / name).write_text(text)
    ran = command("model=blip2-opt", f"model.checkpoint=./{where}", *RUN[1:])
    refused(ran, says)
    assert not list(tmp_path.glob("results/runs/*/*/*/predictions/*.jsonl"))


@pytest.mark.usefixtures("root")
@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("TASKS = (", "SyntaxError at line 1"),
        ("import no_such_package", "no_such_package"),
        ("\n\n1 / 0", "ZeroDivisionError at line 3"),
        ("x = 1", "should define TASKS"),
        ("TASKS = (1,)", "should define TASKS"),
    ],
)
def test_a_task_file_that_cannot_be_loaded_is_named_with_its_line(
    command: Command, tmp_path: Path, text: str, says: str
) -> None:
    (tmp_path / "mine.py").write_text(text)
    refused(command("model=fake", "task=./mine.py", *RUN[2:]), "mine.py", says)


@pytest.mark.usefixtures("root")
def test_a_bug_keeps_its_traceback_and_exits_1(tmp_path: Path) -> None:
    (tmp_path / "buggy.py").write_text(
        "class Buggy:\n    capabilities = frozenset()\n    def refuses(self, task):\n        return [][1]\n"
    )
    ran = run_evalkit("model=custom", "model._target_=buggy.Buggy", *RUN[1:], cwd=tmp_path)
    assert ran.code == 1
    assert "IndexError" in ran.err
    assert "buggy.py" in ran.err


@pytest.mark.usefixtures("root")
def test_a_user_error_is_one_paragraph_in_a_process_of_its_own_too(tmp_path: Path) -> None:
    ran = run_evalkit("model=fke", "task=vqav2", cwd=tmp_path)
    assert ran.code == 2
    assert ran.err.count("\n") == 1
    assert ran.paragraph.startswith("evalkit: no model 'fke'")
