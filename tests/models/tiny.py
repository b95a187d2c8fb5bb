"""Tiny checkpoints of the true architectures: random weights, seeded, saved as a user's checkpoint folder is.

The weights are spread wide enough that different images and prompts give different text: a test that compares outputs
could not fail otherwise (`assert_distinct`).
"""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import (
    Blip2Config,
    Blip2ForConditionalGeneration,
    Blip2ForImageTextRetrieval,
    Blip2Processor,
    BlipConfig,
    BlipForConditionalGeneration,
    BlipForImageTextRetrieval,
    BlipForQuestionAnswering,
    BlipImageProcessor,
    BlipProcessor,
    CLIPConfig,
    CLIPModel,
    CLIPProcessor,
    InstructBlipConfig,
    InstructBlipForConditionalGeneration,
    InstructBlipProcessor,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaNextConfig,
    LlavaNextForConditionalGeneration,
    LlavaNextProcessor,
    LlavaProcessor,
    PreTrainedTokenizerFast,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2VLConfig,
    Qwen2VLForConditionalGeneration,
    Qwen3VLConfig,
    Qwen3VLForConditionalGeneration,
    SiglipConfig,
    SiglipModel,
    SiglipProcessor,
)
from transformers.models.blip.image_processing_pil_blip import BlipImageProcessorPil
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
from transformers.models.llava_next.image_processing_pil_llava_next import LlavaNextImageProcessorPil
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil
from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil

from evalkit.contracts import sample_images as pictures
from evalkit.contracts import sample_prompts as prompts
from evalkit.types import Decoding, Kind, Task

__all__ = ["pictures", "prompts"]

torch.set_num_threads(1)

SPECIAL = ["<pad>", "<s>", "</s>", "<unk>"]
WORDS = ("what", "is", "the", "colour", "of", "how", "many", "question", "answer", "photo", "yes", "no", "cat", "red")


def tokenizer(template: str, extra: Sequence[str] = (), marks: Sequence[str] = ()) -> PreTrainedTokenizerFast:
    """A tokenizer of a few words and all printable characters; `template` says which special tokens it adds."""
    characters = [chr(code) for code in range(33, 127)]
    tokens = [*SPECIAL, *extra, *marks, "\u2581", *WORDS, *(word for word in characters if word not in WORDS)]
    vocabulary = {token: place for place, token in enumerate(dict.fromkeys(tokens))}
    core = Tokenizer(models.WordPiece(vocabulary, unk_token="<unk>", continuing_subword_prefix=""))
    core.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Whitespace(), pre_tokenizers.Punctuation()])
    core.decoder = decoders.WordPiece(prefix="", cleanup=False)
    core.post_processor = processors.TemplateProcessing(
        single=template, special_tokens=[("<s>", vocabulary["<s>"]), ("</s>", vocabulary["</s>"])]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        bos_token="<s>",
        eos_token="</s>",
        pad_token="<pad>",
        unk_token="<unk>",
        additional_special_tokens=list(extra),
    )


def scatter(model: Any, seed: int = 0, spread: float = 0.35) -> Any:
    """Give every weight matrix normal values; BLIP-2's own start leaves the ViT and the query tokens at zero."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, value in model.named_parameters():
            # LLaVA-NeXT's vector for the end of a row of patches is drawn too, or it would follow what ran before.
            if value.dim() > 1 or name.endswith("image_newline"):
                value.normal_(0, spread, generator=generator)
            elif name.endswith("bias"):
                value.normal_(0, 0.02, generator=generator)
    return model.eval()


def end_sooner(language_model: Any, token: int = 2, factor: float = 2.0) -> None:
    """Make the end of text likelier, so that lengths and their penalties have something to act on."""
    with torch.no_grad():
        language_model.get_output_embeddings().weight[token] *= factor


_VISION = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "image_size": 28,
    "patch_size": 7,
}
_QFORMER = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "cross_attention_frequency": 1,
    "max_position_embeddings": 64,
}
_OPT = {
    "model_type": "opt",
    "hidden_size": 32,
    "word_embed_proj_dim": 32,
    "ffn_dim": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "max_position_embeddings": 2048,
    "dropout": 0.0,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
T5 = {
    "model_type": "t5",
    "d_model": 32,
    "d_kv": 16,
    "d_ff": 48,
    "num_layers": 2,
    "num_heads": 2,
    "dropout_rate": 0.0,
    "pad_token_id": 0,
    "eos_token_id": 2,
    "decoder_start_token_id": 0,
}


def blip2_text(folder: Path, language: str = "opt", image_size: int = 28) -> Path:
    """A `Blip2ForConditionalGeneration` with OPT or T5, and its processor."""
    words = tokenizer("<s> $A" if language == "opt" else "$A </s>", extra=["<image>"])
    text = dict(_OPT if language == "opt" else T5, vocab_size=len(words))
    config = Blip2Config(
        vision_config={**_VISION, "image_size": image_size},
        qformer_config={**_QFORMER, "vocab_size": len(words)},
        text_config=text,
        num_query_tokens=4,
        image_token_index=words.convert_tokens_to_ids("<image>"),
    )
    # Seeds and spreads are those of several tried with which nearly all outputs differ.
    seed, spread = (0, 0.35) if language == "opt" else (4, 0.5)
    model = scatter(Blip2ForConditionalGeneration(config), seed, spread)
    end_sooner(model.language_model)
    model.save_pretrained(folder)
    Blip2Processor(square_processor(image_size), words, num_query_tokens=4).save_pretrained(folder)
    return folder


def blip2_matching(folder: Path, image_size: int = 28) -> Path:
    """A `Blip2ForImageTextRetrieval` and its processor."""
    words = tokenizer("<s> $A </s>", extra=["<image>"])
    config = Blip2Config(
        vision_config={**_VISION, "image_size": image_size},
        qformer_config={**_QFORMER, "vocab_size": len(words), "use_qformer_text_input": True},
        text_config=dict(_OPT, vocab_size=len(words)),
        num_query_tokens=4,
        image_text_hidden_size=16,
        image_token_index=words.convert_tokens_to_ids("<image>"),
    )
    scatter(Blip2ForImageTextRetrieval(config)).save_pretrained(folder)
    Blip2Processor(square_processor(image_size), words, num_query_tokens=4).save_pretrained(folder)
    return folder


LLAMA = {
    "model_type": "llama",
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "max_position_embeddings": 2048,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}


def instructblip(folder: Path, language: str) -> Path:
    """An `InstructBlipForConditionalGeneration` with T5 or Llama (Vicuna), and its processor with two tokenizers."""
    words = tokenizer("$A </s>" if language == "t5" else "<s> $A", extra=["<image>"])
    question_words = tokenizer("<s> $A </s>")
    config = InstructBlipConfig(
        vision_config=_VISION,
        qformer_config={**_QFORMER, "vocab_size": len(question_words), "max_position_embeddings": 512},
        text_config=dict(T5 if language == "t5" else LLAMA, vocab_size=len(words)),
        num_query_tokens=4,
        image_token_index=words.convert_tokens_to_ids("<image>"),
    )
    model = scatter(InstructBlipForConditionalGeneration(config), 0 if language == "t5" else 2, 0.5)
    end_sooner(model.language_model)
    model.save_pretrained(folder)
    InstructBlipProcessor(square_processor(28), words, question_words, num_query_tokens=4).save_pretrained(folder)
    return folder


_BLIP_HEADS = {
    "vqa": BlipForQuestionAnswering,
    "caption": BlipForConditionalGeneration,
    "retrieve": BlipForImageTextRetrieval,
}


def blip(folder: Path, head: str) -> Path:
    """A BLIP with one of its three heads, and its processor. [DEC] and [ENC] are ids 4 and 5."""
    words = tokenizer("<s> $A </s>", extra=["[DEC]", "[ENC]"])
    config = BlipConfig(
        vision_config=_VISION,
        text_config={
            "vocab_size": len(words),
            "hidden_size": 32,
            "encoder_hidden_size": 32,
            "intermediate_size": 48,
            "projection_dim": 16,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "max_position_embeddings": 512,
            "hidden_dropout_prob": 0.0,
            "attention_probs_dropout_prob": 0.0,
            "bos_token_id": 4,
            "eos_token_id": 6,
            "pad_token_id": 0,
            "sep_token_id": 2,
        },
        projection_dim=16,
        image_text_hidden_size=16,
    )
    seed, spread = {"vqa": (7, 0.35), "caption": (6, 0.6), "retrieve": (0, 0.35)}[head]
    model = scatter(_BLIP_HEADS[head](config), seed, spread)
    if head != "retrieve":
        end_sooner(model.text_decoder, factor=4.0 if head == "vqa" else 2.0)
    model.save_pretrained(folder)
    BlipProcessor(square_processor(28), words).save_pretrained(folder)
    return folder


def dual(folder: Path, family: str) -> Path:
    """A `CLIPModel` or a `SiglipModel`, and its processor."""
    # CLIP takes an end with id 2 for OpenAI's first files, where the largest id ends a text: so the two are swapped.
    words = tokenizer("</s> $A <s>" if family == "clip" else "$A </s>")
    words.model_max_length = 77
    text = {
        "vocab_size": len(words),
        "hidden_size": 32,
        "intermediate_size": 48,
        "projection_dim": 16,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "max_position_embeddings": 77,
        "bos_token_id": 2 if family == "clip" else 1,
        "eos_token_id": 1 if family == "clip" else 2,
        "pad_token_id": 0,
    }
    if family == "clip":
        model = CLIPModel(CLIPConfig(text_config=text, vision_config=_VISION, projection_dim=16))
        images = CLIPImageProcessorPil(size={"shortest_edge": 28}, crop_size={"height": 28, "width": 28})
        processor = CLIPProcessor(images, words)
    else:
        model = SiglipModel(SiglipConfig(text_config={**text, "projection_size": 32}, vision_config=_VISION))
        processor = SiglipProcessor(SiglipImageProcessorPil(size={"height": 28, "width": 28}), words)
    scatter(model).save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


_LLAVA_TEMPLATE = (
    "{% for turn in messages %}{% if turn.role == 'system' %}{{ turn.content[0].text }} {% else %}USER: "
    "{% for part in turn.content %}{% if part.type == 'image' %}<image>\n{% else %}{{ part.text }}{% endif %}"
    "{% endfor %} ASSISTANT:{% endif %}{% endfor %}"
)
_QWEN_TEMPLATE = (
    "{% for turn in messages %}<|im_start|>{{ turn.role }}\n{% for part in turn.content %}{% if part.type == 'image' %}"
    "<|vision_start|><|image_pad|><|vision_end|>{% else %}{{ part.text }}{% endif %}{% endfor %}<|im_end|>\n"
    "{% endfor %}<|im_start|>assistant\n"
)
QWEN_TOKENS = ("<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>")
CHATS = ("llava", "llava_next", "qwen2_vl", "qwen2_5_vl", "qwen3_vl")


def chat(folder: Path, family: str) -> Path:
    """A chat model with its processor and template: LLaVA (CLIP and Llama), LLaVA-NeXT, or one of three Qwen-VL."""
    return _llava(folder, family) if family.startswith("llava") else _qwen(folder, family)


def _llava(folder: Path, family: str) -> Path:
    words = tokenizer("<s> $A", extra=["<image>"])
    shape = {
        "vision_config": {"model_type": "clip_vision_model", "projection_dim": 16, **_VISION},
        "text_config": dict(LLAMA, vocab_size=len(words)),
        "image_token_index": words.convert_tokens_to_ids("<image>"),
    }
    crop = {"size": {"shortest_edge": 28}, "crop_size": {"height": 28, "width": 28}}
    parts = {"patch_size": 7, "vision_feature_select_strategy": "default", "num_additional_image_tokens": 1}
    parts["chat_template"] = _LLAVA_TEMPLATE
    if family == "llava":
        model = LlavaForConditionalGeneration(LlavaConfig(**shape))
        processor = LlavaProcessor(CLIPImageProcessorPil(**crop), words, **parts)
    else:
        grid = [[28, 56], [56, 28], [56, 56]]
        model = LlavaNextForConditionalGeneration(LlavaNextConfig(**shape, image_grid_pinpoints=grid))
        images = LlavaNextImageProcessorPil(**crop, image_grid_pinpoints=grid)
        processor = LlavaNextProcessor(images, words, **parts)
    scatter(model, *_CHAT_SEEDS[family])
    end_sooner(model)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


def _qwen(folder: Path, family: str) -> Path:
    words = tokenizer("$A", extra=QWEN_TOKENS)
    words.chat_template = _QWEN_TEMPLATE
    text = {
        "vocab_size": len(words),
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
        "max_position_embeddings": 2048,
        "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 3, 3]},
        "pad_token_id": 0,
        "bos_token_id": 1,
        "eos_token_id": 2,
    }
    sight = {"depth": 2, "num_heads": 2, "patch_size": 7, "temporal_patch_size": 2, "spatial_merge_size": 2}
    classes: dict[str, tuple[Any, Any, dict[str, Any]]] = {
        "qwen2_vl": (
            Qwen2VLForConditionalGeneration,
            Qwen2VLConfig,
            {"embed_dim": 32, "hidden_size": 32, "mlp_ratio": 2},
        ),
        "qwen2_5_vl": (
            Qwen2_5_VLForConditionalGeneration,
            Qwen2_5_VLConfig,
            {
                "hidden_size": 32,
                "out_hidden_size": 32,
                "intermediate_size": 48,
                "window_size": 28,
                "fullatt_block_indexes": [1],
            },
        ),
        "qwen3_vl": (
            Qwen3VLForConditionalGeneration,
            Qwen3VLConfig,
            {
                "hidden_size": 32,
                "out_hidden_size": 32,
                "intermediate_size": 48,
                "deepstack_visual_indexes": [0, 1],
                "num_position_embeddings": 64,
            },
        ),
    }
    cls, config_cls, extra = classes[family]
    if family == "qwen3_vl":
        text["head_dim"] = 16
    ids = {name: words.convert_tokens_to_ids(token) for name, token in zip(_QWEN_IDS, QWEN_TOKENS[2:], strict=True)}
    config = config_cls(text_config=text, vision_config={**sight, **extra}, **ids)
    model = scatter(cls(config), *_CHAT_SEEDS[family])
    end_sooner(model)
    model.save_pretrained(folder)
    words.save_pretrained(folder)
    images = Qwen2VLImageProcessorPil(patch_size=7, merge_size=2, min_pixels=28 * 28, max_pixels=70 * 70)
    images.save_pretrained(folder)
    return folder


def qwen_vl(folder: Path) -> Path:
    """A stand-in with the interface of the first Qwen-VL's remote code, which comes with its checkpoint."""
    code = Path(__file__).parent / "qwen_standin"
    for path in code.glob("*.py"):
        shutil.copy(path, folder)
    sys.path.insert(0, str(code))
    try:
        from modeling_qwen import QWenConfig, QWenLMHeadModel
    finally:
        sys.path.remove(str(code))
    config = QWenConfig(
        **{**LLAMA, "model_type": "qwen", "vocab_size": 264, "pad_token_id": None, "bos_token_id": None},
        visual={"image_size": 28, "patch_size": 7, "image_start_id": 257},
    )
    model = scatter(QWenLMHeadModel(config), 2, 0.35)
    end_sooner(model, 256)
    model.save_pretrained(folder)
    auto = {"AutoConfig": "modeling_qwen.QWenConfig", "AutoModelForCausalLM": "modeling_qwen.QWenLMHeadModel"}
    saved = json.loads((folder / "config.json").read_text()) | {"model_type": "qwen", "auto_map": auto}
    (folder / "config.json").write_text(json.dumps(saved))
    tokens = {"auto_map": {"AutoTokenizer": ["tokenization_qwen.QWenTokenizer", None]}}
    (folder / "tokenizer_config.json").write_text(json.dumps(tokens))
    return folder


_QWEN_IDS = ("vision_start_token_id", "vision_end_token_id", "image_token_id", "video_token_id")
_CHAT_SEEDS = {
    "llava": (2, 0.35),
    "llava_next": (1, 0.25),
    "qwen2_vl": (0, 0.35),
    "qwen2_5_vl": (0, 0.35),
    "qwen3_vl": (1, 0.35),
}


def square_processor(size: int) -> BlipImageProcessor:
    return BlipImageProcessorPil(size={"height": size, "width": size})


def task(kind: Kind = "generate", *, image_size: int | None = None, decoding: Decoding | None = None) -> Task:
    """A task that asks for nothing in particular."""
    return Task(
        name="tiny/test",
        kind=kind,
        summary="",
        load=lambda source: (_ for _ in ()).throw(AssertionError("not loaded here")),
        metrics=(),
        primary="none",
        prompts={"completion": "{question}"},
        image_size=image_size,
        decoding=decoding or Decoding(),
    )


def assert_distinct(outputs: Sequence[str]) -> None:
    """Nine outputs in ten are distinct, so that comparing them means something."""
    assert len(set(outputs)) >= 0.9 * len(outputs), sorted(outputs)
