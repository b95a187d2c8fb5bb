"""Text out of a transformers model: every field of `Decoding` honoured, whatever the checkpoint's own settings say.

Shapes: B rows of a batch, L tokens, V vocabulary.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

from ..errors import SampleError
from ..types import Decoding, Prompt

if TYPE_CHECKING:
    import numpy as np
    import torch


Side: TypeAlias = Literal["left", "right"]


def cut_at(text: str, stop: Sequence[str]) -> str:
    r"""Return the text before the first stop string.

    >>> cut_at("two cats\nQuestion: why", ["\n", "cats"])
    'two '
    """
    ends = [place for place in (text.find(string) for string in stop) if place >= 0]
    return text[: min(ends)] if ends else text


def forget_decoding(model: Any, end: int | None = None) -> None:
    """Remove the decoding settings that came with the checkpoint, keeping its special tokens.

    `generate` takes whatever a call leaves open from there: Qwen2-VL's files set sampling and a repetition penalty,
    others a `max_length`. Here `Decoding` is the only place that says how text is generated.

    Args:
        model: The part that generates.
        end: The token that ends a text, where the checkpoint's own settings do not say it.
    """
    from transformers import GenerationConfig

    own = model.generation_config
    model.generation_config = GenerationConfig(
        bos_token_id=own.bos_token_id,
        eos_token_id=own.eos_token_id if end is None else end,
        pad_token_id=own.pad_token_id,
        decoder_start_token_id=own.decoder_start_token_id,
    )


def generate_texts(
    model: Any,
    tokenizer: Any,
    inputs: Mapping[str, Any],
    prompts: Sequence[Prompt],
    decoding: Decoding,
) -> list[str]:
    """Return the new text of each row, cut at the stop strings.

    Args:
        model: A transformers model with `generate`, its own settings forgotten.
        tokenizer: Its tokenizer.
        inputs: What `generate` takes. A decoder-only model is left-padded and given `input_ids`, beside
            `inputs_embeds` where these are used: the repetition penalty looks at them.
        prompts: What each row asks; its sample id seeds the row's noise.
        decoding: How to decode. The penalties see the prompt's tokens of a decoder-only model, as transformers'
            own `generate` does.
    """
    import torch
    from transformers import GenerationConfig

    config = GenerationConfig(
        max_new_tokens=decoding.max_new_tokens,
        min_new_tokens=decoding.min_new_tokens or None,
        num_beams=decoding.num_beams,
        length_penalty=decoding.length_penalty if decoding.num_beams > 1 else None,
        early_stopping=False if decoding.num_beams > 1 else None,
        repetition_penalty=decoding.repetition_penalty,
        do_sample=False,
        pad_token_id=_pad_token(model, tokenizer),
    )
    # What precedes the new text: the prompt, or the one start token of an encoder-decoder.
    start = 1 if model.config.is_encoder_decoder else inputs["input_ids"].shape[1]
    stopping = [_StopStrings(tokenizer, start, decoding.stop)] if decoding.stop and decoding.num_beams == 1 else []
    with torch.inference_mode():
        ids_BL = model.generate(
            **inputs,
            generation_config=config,
            logits_processor=_sampling(prompts, decoding),
            stopping_criteria=_criteria(stopping),
        )
    texts: list[str] = tokenizer.batch_decode(ids_BL[:, start:], skip_special_tokens=True)
    return [cut_at(text, decoding.stop) for text in texts]


def pad(rows: Sequence[Sequence[int]], side: Side, device: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """Return ids and mask (B, L), padded on one side with zeros."""
    import torch

    length = max(len(row) for row in rows)
    ids, mask = [], []
    for row in rows:
        fill = [0] * (length - len(row))
        real = [1] * len(row)
        ids.append([*fill, *row] if side == "left" else [*row, *fill])
        mask.append([*fill, *real] if side == "left" else [*real, *fill])
    return torch.tensor(ids, device=device), torch.tensor(mask, device=device)


def first_tokens(mask_BL: torch.Tensor, number: int) -> torch.Tensor:
    """Return where the first `number` real tokens of each row are, as a boolean mask (B, L)."""
    places_BL = mask_BL.cumsum(dim=1)
    return mask_BL.bool() & (places_BL <= number)


def position_limit(config: Any) -> int | None:
    """Return how many positions a language model has; None for relative positions (T5)."""
    limit = getattr(config, "max_position_embeddings", None)
    return None if limit is None else int(limit)


def hide_padding(ids_BL: torch.Tensor, mask_BL: torch.Tensor, never: int | None = None) -> torch.Tensor:
    """Return left-padded ids with each row's padding replaced by the row's own last token.

    A mask hides these places from attention, so nothing reads them but the repetition penalty. It would penalise the
    padding token in padded rows only, and some models' padding token is their end of text.

    Args:
        ids_BL: Left-padded ids.
        mask_BL: Their mask.
        never: A token that must not be multiplied; where it is the last one, the one before it is taken.
    """
    last_B1, before_B1 = ids_BL[:, -1:], ids_BL[:, -2:-1]
    fill_B1 = last_B1 if never is None else before_B1.where(last_B1 == never, last_B1)
    return ids_BL.where(mask_BL.bool(), fill_B1)


def check_length(limit: int | None, length: int, prompts: Sequence[Prompt], decoding: Decoding) -> None:
    """Refuse a batch that does not fit the model's positions: nothing is cut off silently.

    Args:
        limit: Positions of the model, None where it has no limit.
        length: Tokens of the longest row, image included.
        prompts: The rows, named in the message.
        decoding: Its `max_new_tokens` need a place, too.

    Raises:
        SampleError: It does not fit.
    """
    if limit is not None and length + decoding.max_new_tokens > limit:
        longest = max(prompts, key=lambda prompt: len(prompt.text))
        raise SampleError(
            f"the prompt of sample {longest.sample_id} has {length} tokens with its image; with "
            f"decoding.max_new_tokens={decoding.max_new_tokens} that is beyond the model's {limit} positions. "
            "Shorten the prompt template or generate fewer tokens"
        )


def _pad_token(model: Any, tokenizer: Any) -> int:
    """Return the id that fills rows which ended early; it is never decoded, so the end token will do."""
    eos = model.generation_config.eos_token_id
    for token in (model.generation_config.pad_token_id, tokenizer.pad_token_id, eos):
        if token is not None:
            return int(token[0] if isinstance(token, list) else token)
    return 0


def _sampling(prompts: Sequence[Prompt], decoding: Decoding) -> Any:
    """Return processors under which the arg max is a sample, or none for temperature 0."""
    from transformers import LogitsProcessorList, TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

    processors = LogitsProcessorList()
    if decoding.temperature > 0:
        processors.append(TemperatureLogitsWarper(decoding.temperature))
        if decoding.top_k > 0:
            processors.append(TopKLogitsWarper(decoding.top_k))
        if decoding.top_p < 1:
            processors.append(TopPLogitsWarper(decoding.top_p))
        processors.append(_GumbelNoise([prompt.sample_id for prompt in prompts], decoding.seed))
    return processors


class _GumbelNoise:
    """Adds Gumbel noise to the logits: their arg max is then a draw from the softmax.

    The noise of a row comes from (seed, sample id) alone, so neither the batch nor the device moves it.
    """

    def __init__(self, sample_ids: Sequence[str], seed: int) -> None:
        self._generators = [_generator(seed, sample_id) for sample_id in sample_ids]

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        import numpy as np
        import torch

        noise_BV = np.stack([generator.gumbel(size=scores.shape[-1]) for generator in self._generators])
        return scores.float() + torch.from_numpy(noise_BV).to(scores.device, torch.float32)


def _generator(seed: int, sample_id: str) -> np.random.Generator:
    import numpy as np

    digest = hashlib.sha256(f"{seed}\0{sample_id}".encode()).digest()
    return np.random.Generator(np.random.Philox(key=int.from_bytes(digest[:16], "little")))


def _criteria(criteria: Sequence[Any]) -> Any:
    from transformers import StoppingCriteriaList

    return StoppingCriteriaList(criteria)


class _StopStrings:
    """Ends a row once its new text holds a stop string; the text is cut afterwards."""

    def __init__(self, tokenizer: Any, start: int, stop: Sequence[str]) -> None:
        self._tokenizer, self._start, self._stop = tokenizer, start, stop

    def __call__(self, input_ids: torch.Tensor, scores: Any, **unused: Any) -> torch.Tensor:
        import torch

        texts = self._tokenizer.batch_decode(input_ids[:, self._start :], skip_special_tokens=True)
        done = [any(string in text for string in self._stop) for text in texts]
        return torch.tensor(done, dtype=torch.bool, device=input_ids.device)
