"""The tiny BLIP-2: transformers' own architecture at 1.7 million parameters, and how its weights start.

Legend of tensor suffixes: B images, N patches + 1, Q query tokens, D hidden size, L tokens, V vocabulary.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from evalkit.demo.scenes import SIDE

PATCH = 8
WIDTH = 128
QUERIES = 16
HEADS = 4
_START_STD = 0.07
MEAN = (0.48145466, 0.4578275, 0.40821073)
"""Of the pixels, as BLIP-2's processor has it."""
STD = (0.26862954, 0.26130258, 0.27577711)


def float_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    **settings: Any,
) -> tuple[Tensor, None]:
    """Run scaled-dot-product attention in fp32 whatever autocast says: its bf16 backward is slow on a CPU."""
    causal = bool(getattr(module, "is_causal", False)) and attention_mask is None and query.shape[2] > 1
    with torch.autocast("cpu", enabled=False):
        out = F.scaled_dot_product_attention(
            query.float(),
            key.float(),
            value.float(),
            attn_mask=attention_mask,
            is_causal=causal,
            scale=settings.get("scaling"),
        )
    return out.transpose(1, 2).contiguous(), None


def use_float_attention(model: nn.Module) -> None:
    """Make a model train with `float_attention`. Nothing of it is saved with the weights."""
    from transformers.masking_utils import AttentionMaskInterface, sdpa_mask
    from transformers.modeling_utils import AttentionInterface

    AttentionInterface.register("sdpa_float", float_attention)
    AttentionMaskInterface.register("sdpa_float", sdpa_mask)
    model.set_attn_implementation("sdpa_float")  # type: ignore[operator]


def make_config(tokenizer: Any, *, retrieval: bool) -> Any:
    """Return the `Blip2Config` of one of the two halves; in the retrieval half the Q-Former reads texts, too."""
    from transformers import Blip2Config

    return Blip2Config(
        vision_config={
            "hidden_size": WIDTH,
            "intermediate_size": 3 * WIDTH,
            "num_hidden_layers": 4,
            "num_attention_heads": HEADS,
            "image_size": SIDE,
            "patch_size": PATCH,
            "initializer_range": _START_STD,
        },
        qformer_config={
            "vocab_size": len(tokenizer),
            "hidden_size": WIDTH,
            "num_hidden_layers": 2,
            "num_attention_heads": HEADS,
            "intermediate_size": 2 * WIDTH,
            "hidden_dropout_prob": 0.0,
            "attention_probs_dropout_prob": 0.0,
            "max_position_embeddings": 64,
            "initializer_range": _START_STD,
            "cross_attention_frequency": 1,
            "encoder_hidden_size": WIDTH,
            "use_qformer_text_input": retrieval,
            "pad_token_id": tokenizer.pad_token_id,
        },
        text_config={
            "model_type": "opt",
            "vocab_size": len(tokenizer),
            "hidden_size": WIDTH,
            "word_embed_proj_dim": WIDTH,
            "num_hidden_layers": 3,
            "ffn_dim": 3 * WIDTH,
            "num_attention_heads": HEADS,
            "max_position_embeddings": 128,
            "dropout": 0.0,
            "attention_dropout": 0.0,
            "init_std": _START_STD,
            "pad_token_id": tokenizer.pad_token_id,
            "bos_token_id": tokenizer.bos_token_id,
            "eos_token_id": tokenizer.eos_token_id,
        },
        num_query_tokens=QUERIES,
        image_text_hidden_size=64,
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
        initializer_range=_START_STD,
    )


def _grid_positions() -> Tensor:
    """Return 2-D sin-cos positions (1, N, D), zero for the class token."""
    side = SIDE // PATCH
    quarter = WIDTH // 4
    rate = torch.exp(-math.log(100.0) * torch.arange(quarter) / quarter)
    y, x = torch.meshgrid(torch.arange(side), torch.arange(side), indexing="ij")
    waves = [
        wave(axis.reshape(-1, 1) * rate * math.pi / 2)
        for axis in (x.float(), y.float())
        for wave in (torch.sin, torch.cos)
    ]
    grid = torch.cat(waves, dim=1)
    return torch.cat([torch.zeros(1, WIDTH), grid])[None] * 0.5


def start_weights(model: nn.Module) -> None:
    """Give the parts that transformers leaves at (almost) zero a start: query tokens and the ViT's positions."""
    with torch.no_grad():
        queries = getattr(model, "query_tokens", None)
        if queries is not None:
            queries.normal_(0.0, 0.3)
        for module in model.modules():
            position = getattr(module, "position_embedding", None)
            if isinstance(position, nn.Parameter):
                position.copy_(_grid_positions())


def pixel_values(pixels: Tensor) -> Tensor:
    """Return what the processor makes of uint8 pixels (B, 64, 64, 3): (B, 3, 64, 64), normalised."""
    scaled = pixels.permute(0, 3, 1, 2).float() / 255.0
    return (scaled - torch.tensor(MEAN)[:, None, None]) / torch.tensor(STD)[:, None, None]


class Trainer:
    """Muon for the matrices, AdamW for the rest, one learning-rate curve, and an average of the weights."""

    def __init__(self, model: nn.Module, steps: int, *, warm_up: int = 100, rate: float = 3e-3, decay: float = 0.4):
        self.model, self.steps, self.warm_up, self.decay = model, steps, min(warm_up, max(1, steps // 4)), decay
        matrices: list[nn.Parameter] = []
        rest: list[nn.Parameter] = []
        for name, parameter in model.named_parameters():
            if not parameter.requires_grad:
                continue
            inner = parameter.ndim == 2 and "embed" not in name and "head" not in name.split(".")[-2:][0]
            (matrices if inner else rest).append(parameter)
        self.optimizers: list[torch.optim.Optimizer] = [
            torch.optim.Muon(matrices, lr=rate, weight_decay=0.01, adjust_lr_fn="match_rms_adamw"),
            torch.optim.AdamW(rest, lr=rate, betas=(0.9, 0.98), weight_decay=0.01),
        ]
        self.rate = rate
        self.step_number = 0

    def scale(self) -> float:
        """Return the learning rate of this step as a share of the full one: up, level, down to zero."""
        left = (self.steps - self.step_number) / max(1.0, self.decay * self.steps)
        return min(1.0, (self.step_number + 1) / self.warm_up, max(left, 0.0))

    def step(self, loss: Tensor) -> None:
        """Take one step down the gradient of the loss."""
        for optimizer in self.optimizers:
            optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = self.rate * self.scale()
            optimizer.step()
        self.step_number += 1

    def state(self) -> dict[str, Any]:
        """Return what is needed to go on later."""
        return {"step": self.step_number, "optimizers": [optimizer.state_dict() for optimizer in self.optimizers]}

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from a `state`."""
        self.step_number = state["step"]
        for optimizer, saved in zip(self.optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
