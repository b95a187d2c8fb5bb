"""A BLIP-2 of 29 M random weights: small enough for a CPU, heavy enough that Python is not what is timed."""

from __future__ import annotations

from pathlib import Path

from transformers import Blip2Config, Blip2ForConditionalGeneration, Blip2Processor

from tests.models.tiny import scatter, square_processor, tokenizer


def small_blip2(folder: Path) -> Path:
    """Write a random one: ViT 384 x 12 at 224 pixels, Q-Former 256 x 6 with 32 queries, OPT 256 x 4."""
    words = tokenizer("$A", extra=["<image>"])
    size = len(words)
    model = Blip2ForConditionalGeneration(
        Blip2Config(
            vision_config={
                **{"hidden_size": 384, "intermediate_size": 1536, "num_hidden_layers": 12, "num_attention_heads": 6}
            },
            qformer_config={
                **{"hidden_size": 256, "intermediate_size": 640, "num_hidden_layers": 6, "num_attention_heads": 4},
                **{"cross_attention_frequency": 2, "vocab_size": size, "encoder_hidden_size": 384},
            },
            text_config={
                **{"model_type": "opt", "hidden_size": 256, "word_embed_proj_dim": 256, "ffn_dim": 1024},
                **{"num_hidden_layers": 4, "num_attention_heads": 4, "dropout": 0.0, "vocab_size": size},
                **{"pad_token_id": 0},
                **{"bos_token_id": 1, "eos_token_id": 2},
            },
            num_query_tokens=32,
            image_token_index=words.convert_tokens_to_ids("<image>"),
        )
    )
    scatter(model, spread=0.05)
    model.save_pretrained(folder)
    Blip2Processor(square_processor(224), words, num_query_tokens=32).save_pretrained(folder)
    return folder
