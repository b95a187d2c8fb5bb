"""GQA's files: questions with their programs, choices, and scene graphs."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from evalkit.demo.graph import GraphQuestion, graph_questions
from evalkit.demo.scenes import SIDE, Scene, make_scene, relation_of

IMAGES = 80
PER_IMAGE = 12


def image_id(scene: Scene) -> str:
    """Return the id of a GQA picture: "n" and a number, as those from VisualGenome's later half have it."""
    return f"n{scene.seed % 1_000_000}"


def graph_scenes(first_seed: int) -> list[Scene]:
    """Return the scenes of GQA's testdev."""
    return [make_scene(first_seed + 13 * i, "any") for i in range(IMAGES)]


def write_gqa(folder: Path, first_seed: int, write: Callable[[Path, Any], None]) -> Iterator[Scene]:
    """Write testdev's questions, choices and scene graphs; yield the scenes, whose pictures the caller saves."""
    questions: dict[str, Any] = {}
    choices: dict[str, Any] = {}
    graphs: dict[str, Any] = {}
    for scene in graph_scenes(first_seed):
        found = graph_questions(scene, random.Random(f"gqa {scene.seed}"), PER_IMAGE)
        keys = [f"20{scene.seed % 1_000_000:06d}{number:02d}" for number in range(len(found))]
        for key, question in zip(keys, found, strict=True):
            entailed = [
                other_key
                for other_key, other in zip(keys, found, strict=True)
                if other is not question and other.needs and other.needs <= question.tells
            ]
            questions[key] = _question(question, key, image_id(scene), entailed)
            choices[key] = {"valid": list(question.choices), "plausible": _plausible(scene, question)}
        graphs[image_id(scene)] = _scene_graph(scene)
        yield scene
    write(folder / "testdev_balanced_questions.json", questions)
    write(folder / "testdev_choices.json", choices)
    write(folder / "testdev_sceneGraphs.json", graphs)


def _question(question: GraphQuestion, key: str, image: str, entailed: list[str]) -> dict[str, Any]:
    steps = [
        {"operation": step.operation, "dependencies": list(step.dependencies), "argument": step.argument}
        for step in question.steps
    ]
    written = (
        f"{step.operation}: {step.argument}" + (f" {list(step.dependencies)}" if step.dependencies else "")
        for step in question.steps
    )
    return {
        "semantic": steps,
        "entailed": entailed,
        "equivalent": [key],
        "question": question.text,
        "imageId": image,
        "isBalanced": True,
        "groups": {"global": question.group, "local": question.local},
        "answer": question.answer,
        "semanticStr": "->".join(written),
        "annotations": {"answer": {}, "question": {}, "fullAnswer": {}},
        "types": {
            "detailed": question.detailed,
            "semantic": question.semantic,
            "structural": question.structural,
        },
        "fullAnswer": question.full,
    }


def _plausible(scene: Scene, question: GraphQuestion) -> list[str]:
    """Return the valid answers that something in this picture has, as plausible ones occur in pictures like it."""
    seen = {thing.get(name) for thing in scene.things for name in ("color", "shape")}
    likely = [choice for choice in question.choices if choice in seen]
    return likely if question.group in ("color", "shape") and question.structural == "query" else list(question.choices)


def _scene_graph(scene: Scene) -> dict[str, Any]:
    objects = {}
    for thing in scene.things:
        x1, y1, x2, y2 = thing.box
        related = [
            {"name": relation, "object": str(other.index)}
            for other in scene.things
            if other is not thing and (relation := relation_of(thing, other)) is not None
        ]
        objects[str(thing.index)] = {
            "name": thing.shape,
            "x": x1,
            "y": y1,
            "w": x2 - x1,
            "h": y2 - y1,
            "attributes": [thing.color, thing.size],
            "relations": related,
        }
    return {"width": SIDE, "height": SIDE, "objects": objects}
