"""The tiny model's tokenizer and processor: whole words of the world, letters and digits for everything else."""

from __future__ import annotations

import random
from typing import Any

from evalkit.demo.graph import graph_questions
from evalkit.demo.language import captions, expressions
from evalkit.demo.network import MEAN, QUERIES, STD
from evalkit.demo.questions import knowledge_questions, text_questions, vqa_questions
from evalkit.demo.scenes import BACKGROUNDS, COLORS, SIDE, make_scene
from evalkit.demo.shapes import SHAPES
from evalkit.demo.words import (
    ANIMALS,
    FRUITS,
    HOMES,
    JEWELS,
    MIXTURES,
    PLACES,
    SOUNDS,
    WORDS,
)

_SPECIAL = ("<pad>", "<s>", "</s>", "<unk>", "<image>")
_TAGS = ("<ref>", "</ref>", "<box>", "</box>")
_LETTERS = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"
_SPACE = "▁"


def grid(pixel: int) -> int:
    """Return a pixel coordinate of the world on Qwen-VL's grid of 0 to 999.

    >>> grid(0), grid(32), grid(64)
    (0, 500, 999)
    """
    return round(pixel * 999 / SIDE)


def _words() -> list[str]:
    """Return every word that the world's questions, answers, captions and expressions use, sorted."""
    texts: list[str] = ["Question: Answer: a photo of", *WORDS, *COLORS, *BACKGROUNDS, *SHAPES, *SOUNDS.values()]
    texts += [*HOMES.values(), *MIXTURES.values()]
    texts += [word for facts in (FRUITS, ANIMALS, JEWELS, PLACES) for pair in facts.values() for word in pair]
    rng = random.Random("words")
    for seed in range(400):
        scene = make_scene(seed)
        texts += [q.text for q in vqa_questions(scene, rng, 12) + knowledge_questions(scene, rng, 4)]
        texts += [f"{q.text} {q.answer}" for q in graph_questions(scene, rng, 12)]
        texts += [q.text for q in text_questions(scene, rng)] + captions(scene, rng)
        texts += [text for thing in scene.things for text, _ in expressions(scene, thing, rng, 6)]
    return sorted({word.strip("?,:.") for text in texts for word in text.split()})


def make_tokenizer() -> Any:
    """Return the tokenizer, the same each time: greedy longest match, left padding, `<s>` in front."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    marks = [*"?,.:;!'\"()-/&%+=", "),("]
    places = sorted({str(grid(pixel)) for pixel in range(SIDE + 1)}, key=int)
    words = [_SPACE + word for word in _words() if not word.isdigit() and len(word) > 1]
    single = [mark + char for char in (*_LETTERS, *"0123456789") for mark in ("", _SPACE)]
    tokens = [*_SPECIAL, *_TAGS, _SPACE, *marks, f"{_SPACE}(", *single, *places, *words]
    vocabulary = {token: i for i, token in enumerate(dict.fromkeys(tokens))}
    tokenizer = Tokenizer(
        models.WordPiece(vocabulary, unk_token="<unk>", continuing_subword_prefix="", max_input_chars_per_word=200)
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(replacement=_SPACE, prepend_scheme="always")
    tokenizer.decoder = decoders.Metaspace(replacement=_SPACE, prepend_scheme="always")
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    tokenizer.add_special_tokens([AddedToken(token, normalized=False) for token in _SPECIAL])
    tokenizer.add_tokens([AddedToken(token, normalized=False) for token in _TAGS])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
        pad_token="<pad>",
        padding_side="left",
        model_max_length=112,
        clean_up_tokenization_spaces=False,
    )


def make_processor(*, retrieval: bool) -> Any:
    """Return the processor of one half: padding to the left for generation, to the right for retrieval."""
    from transformers import Blip2Processor
    from transformers.models.blip.image_processing_pil_blip import BlipImageProcessorPil

    tokenizer = make_tokenizer()
    tokenizer.padding_side = "right" if retrieval else "left"
    images = BlipImageProcessorPil(
        size={"height": SIDE, "width": SIDE},
        image_mean=list(MEAN),
        image_std=list(STD),
        resample=3,
        do_convert_rgb=True,
    )
    return Blip2Processor(images, tokenizer, num_query_tokens=QUERIES)
