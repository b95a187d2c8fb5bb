"""First stage: the vision tower learns to see. It plays the role of BLIP-2's pre-trained EVA tower."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

from evalkit.demo.dense import Teacher, look
from evalkit.demo.network import Trainer, make_config, pixel_values, start_weights, use_float_attention
from evalkit.demo.scenes import make_scene
from evalkit.demo.vocabulary import make_tokenizer

BATCH = 64
FIRST_SEED = 1_000_000
"""Scenes of this stage count up from here; those of the written-out world start at 50 million."""
SAVE_EVERY = 100

Say = Callable[[str], None]


def train_vision(folder: Path, steps: int, say: Say, *, seed: int = 1, autocast: bool = False) -> Path:
    """Train the vision tower on what each patch shows; go on from `folder/vision.pt` when it is there.

    Args:
        folder: Where the state is kept.
        steps: Steps in all, of 64 new pictures each.
        say: Called with a line of progress now and then.
        seed: Of the weights.
        autocast: Use bfloat16 where that is safe.

    Returns:
        The file with the tower's weights ("vision") and those of its teaching head ("teacher").
    """
    from transformers import Blip2VisionModel

    path = folder / "vision.pt"
    torch.manual_seed(seed)
    config = make_config(make_tokenizer(), retrieval=False)
    tower, teacher = Blip2VisionModel(config.vision_config), Teacher()
    start_weights(tower)
    use_float_attention(tower)
    trainer = Trainer(nn.ModuleList([tower, teacher]), steps)
    seconds = 0.0
    if path.exists():
        state = torch.load(path, weights_only=True)
        tower.load_state_dict(state["vision"])
        teacher.load_state_dict(state["teacher"])
        trainer.restore(state["trainer"])
        seconds = state["cpu_seconds"]
    began = time.process_time() - seconds
    while trainer.step_number < steps:
        first = FIRST_SEED + trainer.step_number * BATCH
        seen = look([make_scene(first + i) for i in range(BATCH)])
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            seen_BND = tower(pixel_values(torch.from_numpy(seen.pixels))).last_hidden_state
        loss, scores = teacher(seen_BND, seen)
        trainer.step(loss)
        if trainer.step_number % 50 == 0 or trainer.step_number == steps:
            line = "  ".join(f"{name} {value:.1f}" for name, value in scores.items())
            say(f"vision {trainer.step_number}/{steps}  loss {loss.item():.3f}  {line}")
        if trainer.step_number % SAVE_EVERY == 0 or trainer.step_number == steps:
            state = {
                "vision": tower.state_dict(),
                "teacher": teacher.state_dict(),
                "trainer": trainer.state(),
                "cpu_seconds": time.process_time() - began,
            }
            keep(state, path)
    return path


def keep(state: dict[str, Any], path: Path) -> None:
    """Write a training state so that a kill never leaves half a file."""
    partial = path.with_suffix(".partial")
    torch.save(state, partial)
    partial.replace(path)
