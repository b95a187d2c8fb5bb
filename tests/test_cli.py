"""The command line, end to end with the fake model on small official files."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support import Ran, answers, caption_files, lines, only_run, run_evalkit, runs, scores, vqa_files

Command = Callable[..., Ran]
FILES = ("data=files", "data.root=root", "data.check=false")
FAKE = ("model=fake", *FILES)

MODEL = """
from collections.abc import Sequence

class Rows(tuple):
    def select(self, rows):
        return Rows(self[row] for row in rows)

class MyModel:
    capabilities = frozenset({"generate"})

    def __init__(self, *, word: str = "hello", times: int = 1) -> None:
        self.output = " ".join([word] * times)

    def refuses(self, task):
        return None if task.kind == "generate" else "it only talks"

    def identity(self, task):
        return {"output": self.output}

    def files(self, task):
        return {}

    def prepare(self, task):
        pass

    def preprocess(self, image):
        return image.size

    def encode(self, inputs):
        return Rows(inputs)

    def generate(self, encoded, prompts, decoding):
        return [f"{self.output} {encoded[prompt.rows[0]]}" for prompt in prompts]
"""

TASK = """
import dataclasses
from evalkit.registry import resolve_task

ONE = dataclasses.replace(resolve_task("vqav2"), name="mine/one", prompts={"completion": "Look: {question}"})
TASKS = (ONE, dataclasses.replace(ONE, name="mine/two", prompts={"completion": "Again: {question}"}))
"""


@pytest.fixture
def files(tmp_path: Path) -> Path:
    """Official files of VQAv2 and of a Karpathy split below ./root."""
    return caption_files(vqa_files(tmp_path / "root"))


@pytest.mark.usefixtures("files")
def test_a_run_leaves_log_manifest_scores_and_tables(command: Command, tmp_path: Path) -> None:
    ran = command(*FAKE, "task=vqav2")
    assert ran.code == 0, ran.err
    run = only_run(tmp_path)
    assert run.relative_to(tmp_path).parts[:4] == ("results", "runs", "vqav2", "fake")
    assert {line["sample_id"] for line in lines(run)} == {f"{image}00{number}" for image in "1234" for number in "012"}
    assert all(line["output"] and line["error"] is None for line in lines(run))
    assert lines(run)[0]["prompt"].startswith("Question: What is number")
    found = scores(run)
    assert (found["n"], found["failed"], found["missing"], found["num_images"]) == (12, 0, 0, 4)
    assert set(found["breakdowns"]["answer_type"]) == {"yes/no", "number", "other"}
    assert json.loads((run / "manifest.json").read_text())["run_key"] == run.name
    assert {path.name for path in (tmp_path / "results").iterdir()} == {
        "runs", "leaderboard-unchecked.md", "leaderboard-unchecked.csv",
    }  # fmt: skip
    assert "vqav2" in ran.out
    assert "12/12 samples" in ran.err
    assert {path.name for path in tmp_path.iterdir()} == {"root", "results"}, "Hydra leaves nothing behind"


@pytest.mark.usefixtures("files")
def test_a_second_start_asks_nothing_and_writes_the_same_scores(command: Command, tmp_path: Path) -> None:
    command(*FAKE, "task=vqav2")
    run = only_run(tmp_path)
    before = (run / "scores.json").read_bytes(), len(lines(run))
    again = command(*FAKE, "task=vqav2")
    assert again.code == 0
    assert "all 12 samples were answered before" in again.err
    assert ((run / "scores.json").read_bytes(), len(lines(run))) == before
    assert only_run(tmp_path) == run


@pytest.mark.usefixtures("files")
def test_several_tasks_run_in_one_go(command: Command, tmp_path: Path) -> None:
    ran = command(*FAKE, "task=[vqav2,retrieval]")
    assert ran.code == 0, ran.err
    assert (scores(only_run(tmp_path, "vqav2"))["n"], scores(only_run(tmp_path, "retrieval"))["n"]) == (12, 4)


@pytest.mark.usefixtures("files")
def test_a_suite_of_ones_own_and_a_model_of_ones_own(command: Command, tmp_path: Path) -> None:
    for group, text in (
        ("suite", "task: [vqav2]"),
        ("model", "model: {_target_: evalkit.models.fake.Fake, name: two, seed: 2}"),
    ):
        (tmp_path / "more" / group).mkdir(parents=True)
        (tmp_path / "more" / group / "mine.yaml").write_text(f"# @package _global_\n# All of mine\n{text}\n")
    ran = command("--config-dir", "more", "model=mine", "suite=mine", *FILES)
    assert ran.code == 0, ran.err
    assert scores(only_run(tmp_path, "vqav2", "two"))["n"] == 12
    listed = command("list", "--config-dir=more")
    assert listed.out.count("All of mine") == 2
    assert "--config-dir nowhere is not a folder" in command("list", "--config-dir", "nowhere").paragraph


@pytest.mark.usefixtures("files")
def test_limit_takes_the_first_ids_in_plan_order_and_shares_no_table(command: Command, tmp_path: Path) -> None:
    command(*FAKE, "task=vqav2", "model.name=full")
    assert command(*FAKE, "task=vqav2", "limit=4").code == 0
    run = only_run(tmp_path, "vqav2", "fake")
    assert set(answers(run)) == {"1000", "1001", "1002", "2000"}
    assert scores(run)["stamps"] == ["unchecked", "limited"]
    tables = {path.name: path.read_text() for path in (tmp_path / "results").glob("*.md")}
    assert set(tables) == {"leaderboard-unchecked.md", "leaderboard-limited-unchecked.md"}
    assert "fake" not in tables["leaderboard-unchecked.md"]
    assert "full" not in tables["leaderboard-limited-unchecked.md"]


@pytest.mark.usefixtures("files")
def test_a_limit_above_the_number_of_samples_is_the_full_run(command: Command, tmp_path: Path) -> None:
    command(*FAKE, "task=vqav2")
    assert "answered before" in command(*FAKE, "task=vqav2", "limit=12").err
    assert scores(only_run(tmp_path))["stamps"] == ["unchecked"]


@pytest.mark.usefixtures("files")
def test_limit_in_retrieval_takes_images_with_their_texts(command: Command, tmp_path: Path) -> None:
    assert command(*FAKE, "task=retrieval", "limit=2").code == 0
    run = only_run(tmp_path)
    assert {key: {text for text, _, _ in pairs or ()} for key, (_, _, _, pairs) in answers(run).items()} == {
        "1": {"10", "11", "20", "21"}, "2": {"10", "11", "20", "21"},
    }  # fmt: skip
    assert "limited" in scores(run)["stamps"]


@pytest.mark.usefixtures("files")
def test_files_given_one_by_one_are_read_and_stamped(command: Command, tmp_path: Path) -> None:
    odd = tmp_path / "refs(unc), 'odd' = {name}"
    odd.mkdir()
    for path in (tmp_path / "root").glob("v2_*.json"):
        shutil.move(path, odd / path.name)
    ran = command(
        "model=fake", "task=vqav2", "data=files", "data.images=root/val2014",
        f"data.questions={odd}/v2_OpenEnded_mscoco_val2014_questions.json",
        f"data.annotations={odd}/v2_mscoco_val2014_annotations.json",
    )  # fmt: skip
    assert ran.code == 0, ran.err
    run = only_run(tmp_path)
    assert scores(run)["stamps"] == ["custom"]
    assert command("score", str(run)).code == 0, "the manifest knows where the files are"


@pytest.mark.usefixtures("files")
def test_out_names_the_folder_of_runs_and_tables_stand_beside_it(command: Command, tmp_path: Path) -> None:
    assert command(*FAKE, "task=vqav2", "out=deep/er/runs (1)").code == 0
    assert len(runs(tmp_path / "deep/er/runs (1)")) == 1
    assert (tmp_path / "deep/er/leaderboard-unchecked.md").is_file()
    assert not (tmp_path / "results").exists()
    shown = command("leaderboard", "out=deep/er/runs (1)")
    assert (shown.code, "vqav2  fake" in shown.out) == (0, True)


@pytest.mark.usefixtures("files")
def test_what_the_model_is_asked_decides_the_run_and_how_it_is_scored_does_not(
    command: Command, tmp_path: Path
) -> None:
    def key(*words: str) -> str:
        out = tmp_path / "out" / str(len(list((tmp_path / "out").glob("*"))))
        ran = command(*FAKE, "task=vqav2", f"out={out}/runs", *words)
        assert ran.code == 0, ran.err
        (run,) = runs(out / "runs")
        return run.name

    (tmp_path / "out").mkdir()
    plain = key()
    assert key() == plain
    for words in (
        ["prompt=Q {question}"], ["prompt_style=chat"], ["decoding.num_beams=2"], ["decoding.stop=[a]"], ["limit=3"],
        ["model.seed=1"], ["question_filter=blip"], ["model=oracle"], ["image_size=64"],
    ):  # fmt: skip
        assert key(*words) != plain, words
    for words in (
        ["extract=lower"], ["metric_variant=legacy"], ["model.name=other"], ["engine.prompt_batch=1"],
        ["allow_partial=true"], ["metrics.threads=1"],
    ):  # fmt: skip
        assert key(*words) == plain, words


@pytest.mark.usefixtures("files")
@pytest.mark.parametrize(
    "prompt",
    ["Question: {question} Answer:", 'It\'s "a, b" = \\{{x}} {question}\\', "${{oc.env:HOME}} {question}", "[1,2]"],
)
def test_a_prompt_reaches_the_model_as_typed(command: Command, tmp_path: Path, prompt: str) -> None:
    ran = command(*FAKE, "task=vqav2", "limit=1", f"prompt={prompt}")
    assert ran.code == 0, ran.err
    (line,) = lines(only_run(tmp_path))
    assert line["prompt"] == prompt.replace("{question}", "What is number 0 of 1?").replace("{{", "{").replace(
        "}}", "}"
    )


@pytest.mark.usefixtures("files")
def test_a_task_file_of_ones_own(command: Command, tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(TASK)
    assert command(*FAKE, "task=[./mine.py,./mine.py:two]").code == 0
    (one, two) = runs(tmp_path / "results/runs")
    assert (one.parts[-3], two.parts[-3]) == ("mine", "mine-two")
    assert lines(two)[0]["prompt"].startswith("Again: What")
    (tmp_path / "elsewhere").mkdir()
    again = run_evalkit("score", str(one), str(two), cwd=tmp_path / "elsewhere")
    assert again.code == 0, again.err
    assert [json.loads(line)["split"] for line in again.out.splitlines()] == ["one", "two"]


@pytest.mark.usefixtures("files")
def test_a_model_class_of_ones_own_beside_you(tmp_path: Path) -> None:
    (tmp_path / "my_model.py").write_text(MODEL)
    words = ("model=custom", "model._target_=my_model.MyModel", "model.word=hey", "model.times=2", "task=vqav2", *FILES)
    ran = run_evalkit(*words, cwd=tmp_path)
    assert ran.code == 0, ran.err
    assert {output for _, output, _, _ in answers(only_run(tmp_path, "vqav2", "custom")).values()} == {
        "hey hey (12, 10)"
    }


@pytest.mark.usefixtures("files")
@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["model._target_=my_model.MyModel", "model.wrd=x"], "MyModel takes no model.wrd; it takes: times, word"),
        (["model._target_=my_model.MyModl"], "module my_model has no class 'MyModl'"),
        (["model._target_=no_such.Model"], "there is no module 'no_such' here"),
        (["model._target_=MyModel"], "names no class"),
        ([], "model._target_"),
        (
            ["model._target_=my_model.MyModel", "model.name=../evil"],
            "model.name='../evil' becomes the name of a folder",
        ),
        (["model._target_=my_model.MyModel", "task=retrieval"], "cannot do retrieval/coco: it only talks"),
    ],
)
def test_a_model_of_ones_own_that_does_not_fit(command: Command, tmp_path: Path, words: list[str], says: str) -> None:
    (tmp_path / "my_model.py").write_text(MODEL)
    ran = command("model=custom", "task=vqav2", *FILES, *words)
    assert (ran.code, says in ran.paragraph) == (2, True), ran.err
    assert not (tmp_path / "results").exists()


@pytest.mark.usefixtures("files")
def test_a_sweep_runs_every_combination_and_leaves_only_its_record(tmp_path: Path) -> None:
    ran = run_evalkit("-m", "model=fake,majority", "task=vqav2,retrieval", "prompt=a, {question}", *FILES, cwd=tmp_path)
    assert ran.code == 0, ran.err
    found = {(run.parts[-3], run.parts[-2]) for run in runs(tmp_path / "results/runs")}
    assert found == {(task, model) for task in ("vqav2", "retrieval") for model in ("fake", "majority")}
    assert lines(only_run(tmp_path, "vqav2", "fake"))[0]["prompt"].startswith("a, What")
    assert {path.name for path in tmp_path.iterdir()} <= {"root", "results", "multirun.yaml"}


@pytest.mark.usefixtures("files")
def test_a_sweep_goes_on_after_a_wrong_job_and_exits_with_the_worst_code(tmp_path: Path) -> None:
    ran = run_evalkit("-m", "model=fake", "task=gqa,vqav2", *FILES, cwd=tmp_path)
    assert ran.code == 2
    assert "gqa needs its questions" in ran.paragraph
    assert scores(only_run(tmp_path, "vqav2"))["n"] == 12


@pytest.mark.parametrize("words", [["-m", "model=fke", "task=vqav2"], ["-m", "model=fake", "task=vqav2", "limit=["]])
def test_a_sweep_that_cannot_be_read_exits_2(words: list[str], tmp_path: Path) -> None:
    ran = run_evalkit(*words, cwd=tmp_path)
    assert ran.code == 2
    assert "Traceback" not in ran.err


@pytest.mark.usefixtures("files")
def test_score_prints_one_line_of_json_a_run_and_writes_the_same_bytes(command: Command, tmp_path: Path) -> None:
    command(*FAKE, "task=[vqav2,retrieval]", "k=3")
    folders = runs(tmp_path / "results/runs")
    before = [(run / "scores.json").read_bytes() for run in folders]
    ran = command("score", *map(str, folders))
    assert ran.code == 0, ran.err
    assert [json.loads(line) for line in ran.out.splitlines()] == [scores(run) for run in folders]
    assert [(run / "scores.json").read_bytes() for run in folders] == before


@pytest.mark.usefixtures("files")
def test_score_takes_another_extraction_and_variant(command: Command, tmp_path: Path) -> None:
    command(*FAKE, "task=vqav2", "model=oracle")
    run = only_run(tmp_path, "vqav2", "oracle")
    assert scores(run)["scores"]["vqa_accuracy"] == 1.0
    ran = command("score", str(run), "extract=option_letter", "metric_variant=legacy")
    assert ran.code == 0, ran.err
    found = json.loads(ran.out)
    assert (found["extract"], found["variant"]) == ("option_letter", "legacy")
    assert found["scores"]["vqa_accuracy"] < 1.0


@pytest.mark.usefixtures("files")
@pytest.mark.parametrize(
    "word", ["limit=3", "prompt=x", "decoding.num_beams=5", "model=fake", "k=5", "image_size=3", "out=x"]
)
def test_score_refuses_what_is_settled_by_the_run(command: Command, tmp_path: Path, word: str) -> None:
    command(*FAKE, "task=vqav2")
    run = only_run(tmp_path)
    before = (run / "scores.json").read_bytes()
    ran = command("score", str(run), word)
    assert (ran.code, ran.out) == (2, "")
    assert "settled" in ran.paragraph
    assert (run / "scores.json").read_bytes() == before


@pytest.mark.usefixtures("files")
def test_score_without_the_files_it_was_run_on_is_refused(command: Command, tmp_path: Path) -> None:
    command(*FAKE, "task=vqav2")
    run = only_run(tmp_path)
    vqa_files(tmp_path / "root", images=3)
    ran = command("score", str(run))
    assert ran.code == 2
    assert "was run on other samples" in ran.paragraph


@pytest.mark.usefixtures("files")
def test_one_wrong_folder_does_not_keep_the_others_from_being_scored(command: Command, tmp_path: Path) -> None:
    command(*FAKE, "task=vqav2")
    ran = command("score", "root", str(only_run(tmp_path)))
    assert ran.code == 2
    assert "root is not a run folder" in ran.paragraph
    assert json.loads(ran.out)["n"] == 12


def test_list_names_every_task_model_and_suite_in_a_line_each(command: Command) -> None:
    ran = command("list")
    assert (ran.code, ran.err) == (0, "")
    for name in (
        "vqav2 = vqav2/val",
        "vqav2/test-dev",
        "refcoco/plus-testA",
        "retrieval/flickr30k",
        "blip2-opt",
        "zero-shot",
    ):
        (line,) = [line for line in ran.out.splitlines() if line.strip().startswith(f"{name} ")]
        assert len(line.strip()) > len(name) + 10, "with a word of explanation"
    assert command("list", "tasks").code == 2


@pytest.mark.parametrize("task", ["imagenet", "retrieval/flickr30k"])
def test_the_picture_world_says_which_tasks_it_has(command: Command, task: str) -> None:
    ran = command("model=fake", f"task={task}", "data=demo", "limit=1")
    assert (ran.code, f"nothing for {task}" in ran.paragraph, "suite=all" in ran.paragraph) == (2, True, True)


def test_leaderboard_without_runs_says_so(command: Command, tmp_path: Path) -> None:
    assert "there is no folder of runs at results/runs" in command("leaderboard").paragraph
    (tmp_path / "empty").mkdir()
    ran = command("leaderboard", "out=empty")
    assert (ran.code, "no scored run below empty" in ran.paragraph) == (2, True)
    assert command("leaderboard", "task=vqav2").code == 2


def test_help_and_version(command: Command) -> None:
    for words in (["--help"], ["-h"], ["help"], ["score", "--help"]):
        ran = command(*words)
        assert (ran.code, ran.err) == (0, "")
        assert "python -m evalkit model=NAME task=NAME" in ran.out
    from evalkit import __version__

    assert command("--version").out == f"evalkit {__version__}\n"


@pytest.mark.usefixtures("files")
def test_a_reader_that_leaves_is_no_error(tmp_path: Path) -> None:
    import subprocess
    import sys

    from tests.support import environment

    ran = subprocess.run(
        f"{sys.executable} -m evalkit list | head -n 1", shell=True, cwd=tmp_path, env=environment(), text=True,
        capture_output=True, check=False,
    )  # fmt: skip
    assert (ran.returncode, ran.err if hasattr(ran, "err") else ran.stderr) == (0, "")


@pytest.mark.usefixtures("files")
def test_failed_samples_exit_3_unless_they_are_allowed(command: Command, tmp_path: Path) -> None:
    words = (*FAKE, "task=vqav2", "model.fail_on=[2001]")
    ran = command(*words)
    assert ran.code == 3
    assert "1 failed (2001: RuntimeError: fake: told to fail on '2001'" in ran.err
    run = only_run(tmp_path)
    assert not (run / "scores.json").exists()
    assert command("score", str(run)).code == 3
    allowed = command(*words, "max_failed=1")
    assert allowed.code == 0, allowed.err
    assert (scores(run)["n"], scores(run)["failed"], scores(run)["stamps"]) == (11, 1, ["unchecked", "partial"])
    assert len(lines(run)) == 13, "the failed one, and it alone, was asked again each time"


@pytest.mark.usefixtures("files")
def test_oracle_and_majority_bound_a_task(command: Command, tmp_path: Path) -> None:
    for model in ("oracle", "majority"):
        assert command(f"model={model}", "task=vqav2", *FILES).code == 0
    found = {
        model: scores(only_run(tmp_path, "vqav2", model))["scores"]["vqa_accuracy"] for model in ("oracle", "majority")
    }
    assert found == {"oracle": 1.0, "majority": pytest.approx(1 / 3)}
