"""Text written behind an image that enters the language model as a prefix: BLIP-2 and InstructBLIP.

Shapes: B rows, Q query tokens, L tokens, H hidden size.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from ..types import Decoding, Prompt
from .generation import Side, check_length, first_tokens, generate_texts, hide_padding, pad, position_limit
from .likelihood import after, continued, targets, written

if TYPE_CHECKING:
    import torch


def write_behind(
    model: Any, tokenizer: Any, image_BQH: torch.Tensor, prompts: Sequence[Prompt], decoding: Decoding
) -> list[str]:
    """Return what the language model writes after the image and the prompt, which begins with its own start token.

    Args:
        model: A transformers model with `language_model` (decoder-only or encoder-decoder).
        tokenizer: The language model's.
        image_BQH: The projected queries of each row's image.
        prompts: One per row.
        decoding: How to decode.

    Raises:
        SampleError: A prompt is longer than the language model.
    """
    inputs = _inputs(model, tokenizer([prompt.text for prompt in prompts])["input_ids"], image_BQH)
    ids_BL, mask_BL = inputs.pop("input_ids"), inputs["attention_mask"]
    lm = model.language_model
    check_length(position_limit(lm.config), ids_BL.shape[1], prompts, decoding)
    if not lm.config.is_encoder_decoder:
        inputs["input_ids"] = hide_padding(ids_BL, mask_BL)
    return generate_texts(lm, tokenizer, inputs, prompts, decoding)


def likelihoods_behind(
    model: Any, tokenizer: Any, image_1QH: torch.Tensor, prompt: Prompt, options: Sequence[str]
) -> list[float]:
    """Return the log-probability of each option after one image and its prompt; see `write_behind`.

    Raises:
        SampleError: An option has no token, or does not fit the language model.
    """
    lm = model.language_model
    if lm.config.is_encoder_decoder:
        inputs = _inputs(model, tokenizer([prompt.text])["input_ids"], image_1QH)
        del inputs["input_ids"]
        return written(lm, inputs, targets(tokenizer, prompt, options))
    found = after(prompt.text, prompt, options, lambda texts: tokenizer(texts)["input_ids"])
    inputs = _inputs(model, [found.context], image_1QH)
    del inputs["input_ids"]
    return continued(lm, inputs, prompt, found)


def _inputs(model: Any, rows: Sequence[Sequence[int]], image_BQH: torch.Tensor) -> dict[str, torch.Tensor]:
    """Return ids, mask and embeddings of each row, its image in front."""
    lm = model.language_model
    side: Side = "right" if lm.config.is_encoder_decoder else "left"
    num_queries = image_BQH.shape[1]
    image_ids = [model.config.image_token_id or 0] * num_queries
    # Padding goes around image and text together, never between them: OPT counts its positions from the mask, but
    # T5 measures distances, and a gap would move the question away from the image.
    ids_BL, mask_BL = pad([[*image_ids, *row] for row in rows], side, lm.device)
    embeds_BLH = lm.get_input_embeddings()(ids_BL)
    # By place, not by token: a prompt may hold the word "<image>".
    places_BL1 = first_tokens(mask_BL, num_queries)[:, :, None]
    embeds_BLH = embeds_BLH.masked_scatter(places_BL1, image_BQH.to(embeds_BLH.dtype))
    return {"input_ids": ids_BL, "attention_mask": mask_BL, "inputs_embeds": embeds_BLH}
