"""Turn training states into checkpoints that plain `from_pretrained` loads: fp16 safetensors, tokenizer, processor."""

from __future__ import annotations

from pathlib import Path

import torch

from evalkit.demo.language_stage import blank_model
from evalkit.demo.retrieval_stage import blank_matcher
from evalkit.demo.vocabulary import make_processor


def ship(state: Path, folder: Path, *, retrieval: bool) -> None:
    """Write one half.

    Args:
        state: File of a stage's weights under "model".
        folder: The checkpoint's folder; made where it is not there.
        retrieval: Whether it is the retrieval half.
    """
    processor = make_processor(retrieval=retrieval)
    model = (blank_matcher if retrieval else blank_model)(processor.tokenizer)
    model.load_state_dict(torch.load(state, weights_only=True)["model"])
    folder.mkdir(parents=True, exist_ok=True)
    model.to(torch.float16).save_pretrained(folder)
    processor.save_pretrained(folder)
    for path in folder.iterdir():
        path.chmod(0o644)  # safetensors are written for the owner only; a wheel is for everybody
