"""What the language model is taught about a scene: prompts as the tasks put them, and what to say next."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from evalkit.demo.graph import graph_questions
from evalkit.demo.language import captions, expressions
from evalkit.demo.network import QUERIES
from evalkit.demo.questions import knowledge_questions, text_questions, vqa_questions
from evalkit.demo.scenes import Scene, familiar, make_scene
from evalkit.demo.vocabulary import grid

PER_SCENE = 8


@dataclass(frozen=True, slots=True)
class Lesson:
    """A prompt, and what should follow it."""

    task: str
    prompt: str
    answer: str
    weight: float = 1.0
    """Of each of the answer's tokens in the loss."""


def box_text(box: tuple[int, int, int, int]) -> str:
    """Return a box in pixels as Qwen-VL writes it.

    >>> box_text((0, 8, 32, 64))
    '(0,125),(500,999)</box>'
    """
    x1, y1, x2, y2 = (grid(value) for value in box)
    return f"({x1},{y1}),({x2},{y2})</box>"


def training_scene(seed: int) -> Scene:
    """Return a scene of the training split: two thirds familiar, half with a sign."""
    rng = random.Random(f"lesson {seed}")
    return make_scene(seed, "in" if rng.random() < 0.65 else "any", rng.random() < 0.5)


def lessons(scene: Scene) -> list[Lesson]:
    """Return `PER_SCENE` lessons about the scene, all tasks mixed; captions for familiar scenes only."""
    rng = random.Random(f"lessons {scene.seed}")
    found: list[Lesson] = []

    def ask(task: str, text: str, answer: str) -> None:
        found.append(Lesson(task, f"Question: {text} Answer:", answer))

    for question in text_questions(scene, rng):
        ask("textvqa", question.text, question.answer)
    if familiar(scene):
        found.append(Lesson("caption", "a photo of", rng.choice(captions(scene, rng)), 0.4))
    for thing in rng.sample(scene.things, min(len(scene.things), 1 if scene.sign else 2)):
        for text, _ in expressions(scene, thing, rng, 1):
            found.append(Lesson("refcoco", f"<ref>{text}</ref><box>", box_text(thing.box)))
    for question in knowledge_questions(scene, rng, 1):
        ask("okvqa", question.text, question.answer)
    rest = PER_SCENE - len(found)
    for graph in graph_questions(scene, rng, rest // 2):
        ask("gqa", graph.text, graph.answer)
    for question in vqa_questions(scene, rng, PER_SCENE - len(found)):
        ask("vqav2", question.text, question.answer)
    return found


@dataclass(frozen=True, slots=True)
class Packed:
    """Several lessons of one image in one sequence, behind the image's query tokens (B rows, Q + L columns)."""

    ids_BL: Tensor
    positions_BT: Tensor
    """Q + L: each lesson counts on from the last query token."""
    mask_B1TT: Tensor
    """True where a token may look: at the image, and back within its own lesson."""
    targets_BL: Tensor
    """The next token where it belongs to an answer, else -100."""
    weights_BL: Tensor


def pack(scenes_lessons: list[list[Lesson]], tokenizer: Any) -> Packed:
    """Tokenise the lessons of each image and put them side by side."""
    flat = [lesson for lessons_ in scenes_lessons for lesson in lessons_]
    prompts = tokenizer([lesson.prompt for lesson in flat])["input_ids"]
    answers = tokenizer([lesson.answer for lesson in flat], add_special_tokens=False)["input_ids"]
    rows: list[list[tuple[list[int], int, float]]] = []
    at = 0
    for lessons_ in scenes_lessons:
        row = []
        for lesson in lessons_:
            row.append((prompts[at] + answers[at] + [tokenizer.eos_token_id], len(prompts[at]), lesson.weight))
            at += 1
        rows.append(row)
    length = max(sum(len(ids) for ids, _, _ in row) for row in rows)
    size = len(rows)
    ids = torch.full((size, length), tokenizer.pad_token_id)
    owner = torch.full((size, QUERIES + length), -1)
    owner[:, :QUERIES] = 0
    positions = torch.zeros((size, QUERIES + length), dtype=torch.long)
    positions[:, :QUERIES] = torch.arange(QUERIES)
    targets = torch.full((size, length), -100)
    weights = torch.zeros((size, length))
    for b, row in enumerate(rows):
        start = 0
        for number, (tokens, prompt, weight) in enumerate(row, start=1):
            end = start + len(tokens)
            ids[b, start:end] = torch.tensor(tokens)
            owner[b, QUERIES + start : QUERIES + end] = number
            positions[b, QUERIES + start : QUERIES + end] = QUERIES + torch.arange(len(tokens))
            targets[b, start + prompt - 1 : end - 1] = torch.tensor(tokens[prompt:])
            weights[b, start + prompt - 1 : end - 1] = weight
            start = end
    causal = torch.ones(QUERIES + length, QUERIES + length, dtype=torch.bool).tril()
    mask = causal & ((owner[:, :, None] == owner[:, None, :]) | (owner[:, None, :] == 0))
    mask |= torch.eye(QUERIES + length, dtype=torch.bool)  # padding sees itself, so that its softmax is defined
    return Packed(ids, positions, mask[:, None], targets, weights)
