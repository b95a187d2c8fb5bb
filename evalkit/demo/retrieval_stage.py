"""Third stage: the Q-Former learns to match texts and images, by contrast (ITC) and pair by pair (ITM)."""

from __future__ import annotations

import random
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from evalkit.demo.draw import paint
from evalkit.demo.language import captions
from evalkit.demo.network import QUERIES, Trainer, make_config, pixel_values, start_weights, use_float_attention
from evalkit.demo.scenes import Scene, make_scene
from evalkit.demo.vision_stage import Say, keep
from evalkit.demo.vocabulary import make_tokenizer

BATCH = 96
FIRST_SEED = 20_000_000
CHECK_SEED = 45_000_000
SAVE_EVERY = 50


def blank_matcher(tokenizer: Any) -> Any:
    """Return the retrieval half with its starting weights."""
    from transformers import Blip2ForImageTextRetrieval

    config = make_config(tokenizer, retrieval=True)
    model = Blip2ForImageTextRetrieval(config)
    start_weights(model)
    return model


class Matcher(nn.Module):
    """The retrieval half with the temperature of its contrast, which is not part of the checkpoint."""

    def __init__(self, model: Any):
        super().__init__()
        self.model = model
        self.temperature_head = nn.Parameter(torch.tensor(2.5))

    def images(self, seen_BND: Tensor) -> Tensor:
        """Return normalised features of the query tokens (B, Q, D)."""
        queries = self.model.query_tokens.expand(len(seen_BND), -1, -1)
        read = self.model.qformer(query_embeds=queries, encoder_hidden_states=seen_BND).last_hidden_state
        return F.normalize(self.model.vision_projection(read), dim=-1)

    def texts(self, ids_BL: Tensor, mask_BL: Tensor) -> Tensor:
        """Return normalised features of the texts (B, D)."""
        words = self.model.embeddings(input_ids=ids_BL)
        read = self.model.qformer(query_embeds=words, query_length=0, attention_mask=mask_BL).last_hidden_state
        return F.normalize(self.model.text_projection(read[:, 0]), dim=-1)

    def match(self, seen_BND: Tensor, ids_BL: Tensor, mask_BL: Tensor) -> Tensor:
        """Return the logits (B, 2) of "does not match" and "matches", pair by pair."""
        queries = self.model.query_tokens.expand(len(seen_BND), -1, -1)
        both = self.model.embeddings(input_ids=ids_BL, query_embeds=queries)
        mask = torch.cat([torch.ones(len(seen_BND), QUERIES, dtype=mask_BL.dtype), mask_BL], 1)
        read = self.model.qformer(
            query_embeds=both, query_length=QUERIES, attention_mask=mask, encoder_hidden_states=seen_BND
        ).last_hidden_state
        return self.model.itm_head(read[:, :QUERIES]).mean(dim=1)  # type: ignore[no-any-return]


def _pixels(scenes: list[Scene]) -> Tensor:
    return pixel_values(torch.stack([torch.from_numpy(paint(scene)[0]) for scene in scenes]))


def _pairs(first_seed: int, number: int) -> tuple[list[Scene], list[str]]:
    """Return familiar scenes with one caption each."""
    scenes = [make_scene(first_seed + i, "in") for i in range(number)]
    return scenes, [random.Random(f"pair {s.seed}").choice(captions(s, random.Random(s.seed))) for s in scenes]


def _tokens(tokenizer: Any, texts: list[str]) -> tuple[Tensor, Tensor]:
    found = tokenizer(texts, padding=True, return_tensors="pt")
    return found["input_ids"], found["attention_mask"]


def _others(similar: Tensor, hardness: float) -> Tensor:
    """Return for each row another column: any (hardness 0), or the likelier the more similar (1)."""
    chances = (hardness * similar.float()).softmax(dim=1).clone()
    chances.fill_diagonal_(0)
    return torch.multinomial(chances + 1e-6 * (1 - torch.eye(len(chances))), 1)[:, 0]


def matching_loss(
    matcher: Matcher, seen_BND: Tensor, ids_BL: Tensor, mask_BL: Tensor, hardness: float
) -> tuple[Tensor, float]:
    """Return ITC + ITM loss of a batch of pairs, and ITM's accuracy (percent; a third of the pairs are true)."""
    similar = torch.einsum("iqd,td->itq", matcher.images(seen_BND), matcher.texts(ids_BL, mask_BL)).max(-1).values
    logits = similar.float() * matcher.temperature_head.exp()
    own = torch.arange(len(logits))
    contrast = (F.cross_entropy(logits, own) + F.cross_entropy(logits.T, own)) / 2
    with torch.no_grad():
        text_for_image, image_for_text = _others(logits, hardness), _others(logits.T, hardness)
    answers = matcher.match(
        torch.cat([seen_BND, seen_BND, seen_BND[image_for_text]]),
        torch.cat([ids_BL, ids_BL[text_for_image], ids_BL]),
        torch.cat([mask_BL, mask_BL[text_for_image], mask_BL]),
    ).float()
    truth = torch.cat([torch.ones(len(own)), torch.zeros(2 * len(own))]).long()
    weight = torch.where(truth == 1, 1.0, 0.5)
    pairwise = (F.cross_entropy(answers, truth, reduction="none") * weight).sum() / weight.sum()
    return contrast + 2 * pairwise, 100 * (answers.argmax(1) == truth).float().mean().item()


def recall(matcher: Matcher, tokenizer: Any, number: int = 200) -> dict[str, float]:
    """Return R@1 of ITC in both directions, one caption an image (percent)."""
    scenes, texts = _pairs(CHECK_SEED, number)
    with torch.no_grad():
        seen_BND = matcher.model.vision_model(_pixels(scenes)).last_hidden_state
        ids_BL, mask_BL = _tokens(tokenizer, texts)
        similar = torch.einsum("iqd,td->itq", matcher.images(seen_BND), matcher.texts(ids_BL, mask_BL)).max(-1).values
    own = torch.arange(number)
    return {
        "i2t": 100 * (similar.argmax(1) == own).float().mean().item(),
        "t2i": 100 * (similar.argmax(0) == own).float().mean().item(),
    }


def train_retrieval(folder: Path, start: str, steps: int, say: Say, *, seed: int = 3) -> Path:
    """Train the retrieval half from the vision tower and Q-Former of `folder/<start>.pt`; the tower stays as it is.

    Args:
        folder: Where the states are.
        start: Name of a state of the language stage.
        steps: Steps in all, of 96 pairs.
        say: Called with a line of progress now and then.
        seed: Of the new weights and of the choice of negatives.

    Returns:
        The file with the last weights; every 50 steps are kept as `folder/retrieval-<step>.pt`.
    """
    torch.manual_seed(seed)
    tokenizer = make_tokenizer()
    tokenizer.padding_side = "right"
    matcher = Matcher(blank_matcher(tokenizer))
    learned = torch.load(folder / f"{start}.pt", weights_only=True)["model"]
    own = matcher.model.state_dict()
    kept = {name: value for name, value in learned.items() if name in own}
    kept["embeddings.word_embeddings.weight"] = learned["language_model.model.decoder.embed_tokens.weight"]
    matcher.model.load_state_dict({**own, **kept})
    matcher.model.vision_model.requires_grad_(False)
    use_float_attention(matcher.model)
    trainer = Trainer(matcher, steps)
    path = folder / "retrieval.pt"
    seconds = 0.0
    if path.exists():
        state = torch.load(path, weights_only=True)
        matcher.load_state_dict(state["matcher"])
        trainer.restore(state["trainer"])
        torch.set_rng_state(state["random"])
        seconds = state["cpu_seconds"]
    began = time.process_time() - seconds
    while trainer.step_number < steps:
        scenes, texts = _pairs(FIRST_SEED + trainer.step_number * BATCH, BATCH)
        ids_BL, mask_BL = _tokens(tokenizer, texts)
        with torch.autocast("cpu", torch.bfloat16):
            with torch.no_grad():
                seen_BND = matcher.model.vision_model(_pixels(scenes)).last_hidden_state
            # hard negatives from the start taught ITM nothing: first any other pair, by and by the similar ones
            hardness = min(1.0, max(0.0, 2 * trainer.step_number / steps - 0.5))
            loss, accuracy = matching_loss(matcher, seen_BND, ids_BL, mask_BL, hardness)
        trainer.step(loss)
        number = trainer.step_number
        if number % 25 == 0:
            say(f"retrieval {number}/{steps}  loss {loss.item():.3f}  itm {accuracy:.1f}")
        if number % SAVE_EVERY == 0 or number == steps:
            scores = recall(matcher, tokenizer)
            say(f"retrieval {number}/{steps}  " + "  ".join(f"{name} {score:.1f}" for name, score in scores.items()))
            state = {
                "matcher": matcher.state_dict(),
                "trainer": trainer.state(),
                "random": torch.get_rng_state(),
                "cpu_seconds": time.process_time() - began,
            }
            keep(state, path)
            keep({"model": matcher.model.state_dict()}, folder / f"retrieval-{number:05d}.pt")
    return path
