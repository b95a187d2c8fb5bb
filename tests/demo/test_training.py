"""The training script: every stage runs, goes on after a kill, and ends in checkpoints that load."""

from pathlib import Path

import pytest

from evalkit.demo import dense, files, language_stage, lessons, retrieval_stage, vision_stage
from evalkit.demo.scenes import familiar, make_scene
from evalkit.demo.train import main
from evalkit.demo.vocabulary import grid, make_tokenizer


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Batches of four and a state after each step."""
    for stage in (vision_stage, language_stage, retrieval_stage):
        monkeypatch.setattr(stage, "BATCH", 4)
        monkeypatch.setattr(stage, "SAVE_EVERY", 1)
    monkeypatch.setattr(language_stage.progress, "__defaults__", (4,))
    monkeypatch.setattr(retrieval_stage.recall, "__defaults__", (4,))


SHORT = (
    "--vision-steps 2 --language-steps 2 --retrieval-steps 2 --retrieval-from 1 --ship-retrieval 2 "
    "--early-language 1 --early-retrieval 1"
)


@pytest.mark.slow
def test_two_steps_of_each_stage_end_in_two_checkpoints(tmp_path: Path, small: None, capsys):
    from transformers import Blip2ForConditionalGeneration, Blip2ForImageTextRetrieval, Blip2Processor

    assert main(["--out", str(tmp_path), *SHORT.split()]) == 0
    said = capsys.readouterr().out
    assert all(f"{stage} 2/2" in said for stage in ("vision", "language", "retrieval"))
    for name in ("blip2-tiny", "blip2-tiny-early"):
        Blip2ForConditionalGeneration.from_pretrained(tmp_path / name / "generate")
        Blip2ForImageTextRetrieval.from_pretrained(tmp_path / name / "retrieve")
        Blip2Processor.from_pretrained(tmp_path / name / "generate")
    weights = [
        (tmp_path / n / "generate" / "model.safetensors").read_bytes() for n in ("blip2-tiny", "blip2-tiny-early")
    ]
    assert weights[0] != weights[1], "the early checkpoint is an earlier one"


@pytest.mark.slow
def test_a_stopped_stage_goes_on_where_it_was(tmp_path: Path, small: None):
    import torch

    def train(folder: Path, *stops: int) -> dict[str, torch.Tensor]:
        folder.mkdir()
        vision_stage.train_vision(folder, 1, print)
        for stop in stops:
            language_stage.train_language(folder, 3, print, stop_at=stop)
        return torch.load(folder / "language.pt", weights_only=True)["model"]

    at_once, in_two = train(tmp_path / "a", 3), train(tmp_path / "b", 2, 3)
    assert at_once.keys() == in_two.keys()
    for name, value in at_once.items():
        torch.testing.assert_close(in_two[name], value, rtol=1e-3, atol=1e-4, msg=name)


def test_no_scene_is_trained_on_and_asked_about():
    used = [
        range(vision_stage.FIRST_SEED, vision_stage.FIRST_SEED + 5_000 * vision_stage.BATCH),
        range(language_stage.FIRST_SEED, language_stage.FIRST_SEED + 5_000 * language_stage.BATCH),
        range(retrieval_stage.FIRST_SEED, retrieval_stage.FIRST_SEED + 5_000 * retrieval_stage.BATCH),
    ]
    asked = {scene.seed for scene in files.val_scenes() + files.train_scenes() + files.text_scenes()}
    asked |= {scene.seed for _, scene in files.domain_scenes()}
    assert len(asked) == 200 + 150 + 150 + 180
    assert min(asked) >= files.FIRST_SEED > max(seeds.stop for seeds in used)
    assert language_stage.CHECK_SEED not in asked


def test_captions_are_learned_from_familiar_scenes_only():
    taught = 0
    for seed in range(300):
        scene = lessons.training_scene(seed)
        found = lessons.lessons(scene)
        captioned = any(lesson.task == "caption" for lesson in found)
        assert captioned == familiar(scene)
        assert len(found) == lessons.PER_SCENE
        taught += captioned
    assert 150 < taught < 300


def test_prompts_are_those_of_the_tasks():
    import importlib

    prompts = {lesson.prompt for seed in range(60) for lesson in lessons.lessons(lessons.training_scene(seed))}
    for family, field in (
        ("vqav2", "question"),
        ("gqa", "question"),
        ("textvqa", "question"),
        ("refcoco", "expression"),
    ):
        (task, *_) = importlib.import_module(f"evalkit.tasks.{family}").TASKS
        head, _, tail = task.prompts["completion"].partition("{" + field + "}")
        assert any(prompt.startswith(head) and prompt.endswith(tail) for prompt in prompts), family
    (task, *_) = importlib.import_module("evalkit.tasks.nocaps").TASKS
    assert task.prompts["completion"] in prompts


def test_packed_lessons_do_not_see_each_other():
    tokenizer = make_tokenizer()
    rows = [lessons.lessons(lessons.training_scene(seed)) for seed in range(3)]
    packed = lessons.pack(rows, tokenizer)
    mask = packed.mask_B1TT[0, 0]
    first = len(tokenizer(rows[0][0].prompt)["input_ids"])
    start = lessons.QUERIES
    assert mask[start + first - 1, : start + first].all(), "back to the start of its lesson, and the whole picture"
    assert not mask[start, start + 1], "never ahead"
    second = start + int((packed.positions_BT[0, start + 1 :] == start).nonzero()[0]) + 1
    assert mask[second, :start].all()
    assert not mask[second, start:second].any(), "nor into the lesson before"
    answers = packed.ids_BL[0][1:][packed.targets_BL[0][:-1] >= 0]
    assert answers.equal(packed.targets_BL[0][packed.targets_BL[0] >= 0])


def test_tokens_round_trip_and_know_the_world():
    tokenizer = make_tokenizer()
    for seed in range(100, 140):
        for lesson in lessons.lessons(lessons.training_scene(seed)):
            for text in (lesson.answer, lesson.prompt):
                ids = tokenizer(text, add_special_tokens=False)["input_ids"]
                assert tokenizer.unk_token_id not in ids
                assert tokenizer.decode(ids).replace("<ref> ", "<ref>") == text


def test_the_grid_is_qwen_vls():
    assert [grid(pixel) for pixel in (0, 1, 32, 64)] == [0, 16, 500, 999]
    assert lessons.box_text((0, 0, 64, 64)) == "(0,0),(999,999)</box>"


def test_dense_targets_name_what_is_seen():
    scene = make_scene(3, "any", True)
    seen = dense.look([scene])
    assert scene.sign is not None
    assert (seen.text[0] > 0).sum() == len(scene.sign.text)
    assert (seen.cell_shape[0] >= 0).sum() == len(scene.things), "every thing has a cell of its own"
    for thing in scene.things:
        center = (thing.y // 32) * 8 + thing.x // 32
        if thing.shape in ("circle", "square", "hexagon", "diamond"):
            assert seen.shape[0, center] == dense.SHAPES.index(thing.shape)
