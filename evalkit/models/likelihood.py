"""How likely a model finds each option of a prompt: the sum of the log-probabilities of the option's tokens.

A prompt and its image pass the model once; its options, as a batch, go on from there. Prompts are taken one at a time,
and options are sorted before they are cut into chunks, so neither what is asked beside a prompt nor the order of its
options moves a value. All sums are float32.

Shapes: B options of a chunk, L tokens, V vocabulary, H hidden size.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ..errors import SampleError
from ..types import Prompt
from .generation import pad, position_limit

if TYPE_CHECKING:
    import torch

_TOKENS_AT_ONCE = 8192
"""Tokens of a chunk, the prompt's counted with each option: the keys and values held at once (4 GB at 7 B in fp16)."""

_BESIDE = ("encoder_hidden_states", "encoder_attention_mask")
"""What a decoder looks at with every token, besides the tokens before it."""


@dataclass(frozen=True, slots=True)
class Options:
    """The options of one prompt as tokens, each a row."""

    context: list[int]
    """The tokens that prompt and options begin with, in common; empty where each row is whole."""
    rows: list[list[int]]
    """What follows the context."""
    starts: list[int]
    """Where in its row an option's own tokens begin."""


def after(
    text: str, prompt: Prompt, options: Sequence[str], tokenize: Callable[[list[str]], list[list[int]]]
) -> Options:
    """Return the options as what follows a text in the tokens of both together.

    They are joined by a space, unless the text is empty or ends in whitespace. An option's own tokens are those from
    the first that differs from the text's: at the seam a tokenizer may merge them.

    Args:
        text: The prompt with all that stands around it.
        prompt: Named in errors.
        options: What could follow.
        tokenize: Texts to ids, the tokens that begin a text included.

    Raises:
        SampleError: An option has no token of its own, or no token comes before it.
    """
    seam = " " if text and not text[-1].isspace() else ""
    before, *together = tokenize([text, *(text + seam + option for option in options)])
    common = []
    for row, option in zip(together, options, strict=True):
        length = next((place for place, (a, b) in enumerate(zip(row, before, strict=False)) if a != b), len(before))
        if length >= len(row):
            raise _no_token(option, prompt)
        common.append(length)
    shared = min(common)
    if shared == 0:
        raise SampleError(
            f"the prompt of sample {prompt.sample_id} has no token before its options, and so none that they could "
            "follow; give a longer prompt template"
        )
    return Options(before[:shared], [row[shared:] for row in together], [length - shared for length in common])


def targets(tokenizer: Any, prompt: Prompt, options: Sequence[str]) -> Options:
    """Return the options as what a decoder writes by itself, begun and ended as its tokenizer does.

    Raises:
        SampleError: An option has no token of its own.
    """
    for option, own in zip(options, tokenizer(list(options), add_special_tokens=False)["input_ids"], strict=True):
        if not own:
            raise _no_token(option, prompt)
    return Options([], tokenizer(list(options))["input_ids"], [0] * len(options))


def continued(model: Any, inputs: Mapping[str, Any], prompt: Prompt, options: Options) -> list[float]:
    """Return the log-probability of each option, as a decoder-only model goes on after the context.

    Args:
        model: A transformers model with `logits` and a cache.
        inputs: What its `forward` takes for the context: one row, without padding.
        prompt: Named in errors.
        options: Their context and rows.

    Raises:
        SampleError: Prompt and option are longer than the model.
    """
    import torch

    length = inputs["attention_mask"].shape[1]
    limit = position_limit(model.config.get_text_config())
    check_room(options, prompt, None if limit is None else limit - length)
    keep_last = {"logits_to_keep": 1} if "logits_to_keep" in inspect.signature(model.forward).parameters else {}
    with torch.inference_mode():
        seen = model(**inputs, use_cache=True, **keep_last)

        def score(ids_BL: torch.Tensor, targets_BL: torch.Tensor) -> torch.Tensor:
            batch = len(ids_BL)
            values_B = log_probability(seen.logits[:, -1:].expand(batch, -1, -1), targets_BL[:, :1])
            if ids_BL.shape[1] == 1:
                return values_B
            cache = copy.deepcopy(seen.past_key_values)
            cache.batch_repeat_interleave(batch)
            beside = {name: inputs[name].expand(batch, *inputs[name].shape[1:]) for name in _BESIDE if name in inputs}
            # No mask: nothing stands before the context, and padding follows the row, where no token looks.
            logits_BLV = model(input_ids=ids_BL[:, :-1], past_key_values=cache, use_cache=True, **beside).logits
            return values_B + log_probability(logits_BLV, targets_BL[:, 1:])

        return in_chunks(options, score, length, seen.logits.device)


def written(model: Any, inputs: Mapping[str, Any], options: Options) -> list[float]:
    """Return the log-probability of each option as the output of an encoder-decoder, whose encoder runs once.

    Args:
        model: A transformers model with `get_encoder`.
        inputs: What the encoder takes: one row, without padding.
        options: See `targets`.
    """
    import torch
    from transformers.modeling_outputs import BaseModelOutput

    with torch.inference_mode():
        states_1LH = model.get_encoder()(**inputs).last_hidden_state

        def score(ids_BL: torch.Tensor, targets_BL: torch.Tensor) -> torch.Tensor:
            states_BLH = states_1LH.expand(len(ids_BL), -1, -1)
            logits_BLV = model(
                encoder_outputs=BaseModelOutput(last_hidden_state=states_BLH),
                decoder_input_ids=model.prepare_decoder_input_ids_from_labels(targets_BL),
            ).logits
            return log_probability(logits_BLV, targets_BL)

        return in_chunks(options, score, states_1LH.shape[1], states_1LH.device)


def check_room(options: Options, prompt: Prompt, room: int | None) -> None:
    """Refuse an option that does not fit the model's positions.

    Args:
        options: Their rows.
        prompt: Named in the message.
        room: Positions that are left for a row; None where the model has no limit.

    Raises:
        SampleError: It does not fit.
    """
    longest = max(map(len, options.rows))
    if room is not None and longest > room:
        raise SampleError(
            f"the longest option of sample {prompt.sample_id} has {longest} tokens, and the model has {max(room, 0)} "
            "positions left for it, after the prompt and its image. Shorten the prompt template or the options"
        )


def in_chunks(
    options: Options, score: Callable[[torch.Tensor, torch.Tensor], torch.Tensor], beside: int, device: Any
) -> list[float]:
    """Return what `score` gives each row; equal rows are scored once, short ones before long ones.

    Args:
        options: Their rows.
        score: Right-padded ids (B, L) and the same with -100 where a token does not count, to values (B,).
        beside: Tokens that each row looks at besides its own.
        device: Where the ids are to be.
    """
    rows = [(len(row), tuple(row), start) for row, start in zip(options.rows, options.starts, strict=True)]
    order = sorted(set(rows))
    size = max(1, _TOKENS_AT_ONCE // (beside + order[-1][0]))
    values: list[float] = []
    for begin in range(0, len(order), size):
        chunk = order[begin : begin + size]
        ids_BL, mask_BL = pad([row for _, row, _ in chunk], "right", device)
        for place, (_, _, start) in enumerate(chunk):
            mask_BL[place, :start] = 0
        values += score(ids_BL, ids_BL.masked_fill(mask_BL == 0, -100)).tolist()
    found = dict(zip(order, values, strict=True))
    return [found[row] for row in rows]


def log_probability(logits_BLV: torch.Tensor, targets_BL: torch.Tensor) -> torch.Tensor:
    """Return the summed log-probability (B,) of the targets, those of -100 left out."""
    import torch

    losses = torch.nn.functional.cross_entropy(
        logits_BLV.flatten(0, 1).float(), targets_BL.flatten(), reduction="none", ignore_index=-100
    )
    return -losses.view(targets_BL.shape).sum(dim=1)


def _no_token(option: str, prompt: Prompt) -> SampleError:
    return SampleError(
        f"option {option!r} of sample {prompt.sample_id} has no token of its own, so a language model cannot tell how "
        "likely it is"
    )
