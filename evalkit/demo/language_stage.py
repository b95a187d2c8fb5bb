"""Second stage: the whole model learns to answer, to caption and to point, all tasks at once."""

from __future__ import annotations

import time
from collections import defaultdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from evalkit.demo.dense import SlotTeacher, Teacher, look
from evalkit.demo.lessons import Lesson, lessons, pack, training_scene
from evalkit.demo.network import Trainer, make_config, pixel_values, start_weights, use_float_attention
from evalkit.demo.vision_stage import SAVE_EVERY, Say, keep
from evalkit.demo.vocabulary import make_tokenizer

BATCH = 64
FIRST_SEED = 10_000_000
CHECK_SEED = 40_000_000
"""Scenes on which progress is measured; neither trained on nor part of the written-out world."""
_DENSE_SHARE, _SLOT_SHARE = 0.2, 0.3
_AVERAGE = 0.98


def blank_model(tokenizer: Any) -> Any:
    """Return the generation half with its starting weights."""
    from transformers import Blip2ForConditionalGeneration, GenerationConfig

    config = make_config(tokenizer, retrieval=False)
    model = Blip2ForConditionalGeneration(config)
    start_weights(model)
    model.generation_config = GenerationConfig(
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        max_new_tokens=30,
    )
    return model


class Pupil(nn.Module):
    """The generation half with the teachers of its vision tower and its Q-Former beside it."""

    def __init__(self, model: Any, teacher: Teacher):
        super().__init__()
        self.model, self.teacher, self.slots = model, teacher, SlotTeacher()

    def read(self, pixels: Any) -> tuple[Tensor, Tensor]:
        """Return what the vision tower (B, N, D) and then the Q-Former (B, Q, D) make of uint8 pixels."""
        seen_BND = self.model.vision_model(pixel_values(torch.from_numpy(pixels))).last_hidden_state
        queries_BQD = self.model.query_tokens.expand(len(seen_BND), -1, -1)
        return seen_BND, self.model.qformer(query_embeds=queries_BQD, encoder_hidden_states=seen_BND).last_hidden_state

    def answers(self, read_BQD: Tensor, packed: Any) -> tuple[Tensor, Tensor, Tensor]:
        """Return logits (A, V), targets (A,) and weights (A,) of all answer tokens."""
        model = self.model
        prefix_BQD = model.language_projection(read_BQD)
        words_BLD = model.language_model.get_input_embeddings()(packed.ids_BL)
        hidden_BTD = model.language_model.model.decoder(
            inputs_embeds=torch.cat([prefix_BQD, words_BLD], 1),
            attention_mask=packed.mask_B1TT,
            position_ids=packed.positions_BT,
            use_cache=False,
        ).last_hidden_state
        wanted = packed.targets_BL >= 0
        hidden_AD = hidden_BTD[:, prefix_BQD.shape[1] :][wanted]
        return model.language_model.lm_head(hidden_AD), packed.targets_BL[wanted], packed.weights_BL[wanted]


def progress(pupil: Pupil, tokenizer: Any, scenes: int = 128) -> dict[str, float]:
    """Return, per task, how many answers greedy decoding gets right to the letter (percent)."""
    right: dict[str, list[bool]] = defaultdict(list)
    with torch.no_grad():
        for first in range(0, scenes, BATCH):
            drawn = [training_scene(CHECK_SEED + first + i) for i in range(BATCH)]
            asked: list[list[Lesson]] = [lessons(scene) for scene in drawn]
            packed = pack(asked, tokenizer)
            logits, targets, _ = pupil.answers(pupil.read(look(drawn).pixels)[1], packed)
            hits = iter((logits.argmax(-1) == targets).tolist())
            for lesson in (lesson for row in asked for lesson in row):
                length = len(tokenizer(lesson.answer, add_special_tokens=False)["input_ids"]) + 1
                right[lesson.task].append(all([next(hits) for _ in range(length)]))
    return {task: 100 * sum(values) / len(values) for task, values in sorted(right.items())}


def train_language(folder: Path, steps: int, say: Say, *, seed: int = 2, stop_at: int | None = None) -> Path:
    """Train the generation half on top of `folder/vision.pt`; go on from `folder/language.pt`.

    Every 100 steps an average of the recent weights is kept as `folder/language-<step>.pt`.

    Args:
        folder: Where the states are.
        steps: Steps in all, of 64 pictures with 8 lessons each.
        say: Called with a line of progress now and then.
        seed: Of the weights.
        stop_at: Stop after this step, as if killed (for tests).

    Returns:
        The file with the last weights.
    """
    torch.manual_seed(seed)
    tokenizer = make_tokenizer()
    pupil = Pupil(blank_model(tokenizer), Teacher())
    path = folder / "language.pt"
    vision = torch.load(folder / "vision.pt", weights_only=True)
    pupil.model.vision_model.load_state_dict(vision["vision"])
    pupil.teacher.load_state_dict(vision["teacher"])
    use_float_attention(pupil.model)
    trainer = Trainer(pupil, steps)
    seconds = 0.0
    average = {name: value.detach().clone() for name, value in pupil.model.state_dict().items()}
    if path.exists():
        state = torch.load(path, weights_only=True)
        pupil.model.load_state_dict(state["model"])
        pupil.teacher.load_state_dict(state["teacher"])
        pupil.slots.load_state_dict(state["slots"])
        trainer.restore(state["trainer"])
        average, seconds = state["average"], state["cpu_seconds"]
    began = time.process_time() - seconds
    while trainer.step_number < min(steps, stop_at or steps):
        first = FIRST_SEED + trainer.step_number * BATCH
        drawn = [training_scene(first + i) for i in range(BATCH)]
        packed = pack([lessons(scene) for scene in drawn], tokenizer)
        seen = look(drawn)
        with torch.autocast("cpu", torch.bfloat16):
            seen_BND, read_BQD = pupil.read(seen.pixels)
            logits, targets, weights = pupil.answers(read_BQD, packed)
        dense_loss, _ = pupil.teacher(seen_BND.float(), seen)
        slot_loss, told = pupil.slots(read_BQD.float(), seen)
        loss = (F.cross_entropy(logits.float(), targets, reduction="none") * weights).sum() / weights.sum()
        trainer.step(loss + _DENSE_SHARE * dense_loss + _SLOT_SHARE * slot_loss)
        with torch.no_grad():
            for name, value in pupil.model.state_dict().items():
                average[name].lerp_(value, 1 - _AVERAGE)
        number = trainer.step_number
        if number % 25 == 0:
            line = "  ".join(f"{name} {value:.1f}" for name, value in told.items())
            say(f"language {number}/{steps}  loss {loss.item():.3f}  dense {dense_loss.item():.3f}  {line}")
        if number % SAVE_EVERY == 0 or number == steps:
            scores = progress(pupil, tokenizer)
            say(f"language {number}/{steps}  " + "  ".join(f"{task} {score:.1f}" for task, score in scores.items()))
            state = {
                "model": pupil.model.state_dict(),
                "teacher": pupil.teacher.state_dict(),
                "slots": pupil.slots.state_dict(),
                "trainer": trainer.state(),
                "average": average,
                "cpu_seconds": time.process_time() - began,
            }
            keep(state, path)
            shown = average if number < steps else pupil.model.state_dict()
            keep({"model": shown, "cpu_seconds": state["cpu_seconds"]}, folder / f"language-{number:05d}.pt")
    return path
