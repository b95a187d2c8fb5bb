"""BLIP-2 (Li et al., 2023, arXiv 2301.12597): text with OPT or FlanT5, and matching with its first stage.

    python -m evalkit model=blip2-opt-2.7b task=vqav2

An image passes ViT, Q-Former and projection once; every question about it shares the result. The text half then equals
`Blip2ForConditionalGeneration.generate`, token for token. The retrieval half is `Blip2ForImageTextRetrieval`: ITC is
the largest cosine over the query tokens; ITM is the raw logit of class 1, averaged over the query tokens (LAVIS
blip2.py, `itm_logit[:, :, 1].mean(dim=1)`; averaging both classes first, as transformers does, is the same number).

Shapes: B rows, I images, T texts, N patches, Q query tokens, L text tokens, D features, H hidden size.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import ConfigError, UnsupportedError
from ..types import Capability, Decoding, Encoded, Json, Prompt, Task
from .abilities import sampling_with_beams, shortfall, single_row
from .checkpoints import Checkpoint, Loading
from .generation import forget_decoding
from .matching import MAX_CAPTION_TOKENS, read_captions, unit
from .pixels import patches, square, to_rgb
from .prefix import likelihoods_behind, write_behind
from .rows import Rows, own

if TYPE_CHECKING:
    import torch
    from PIL.Image import Image


@dataclass(frozen=True, slots=True)
class _Seen:
    """One image: for text (Q, H) in front of the language model; for matching (N, D) out of the ViT."""

    features: torch.Tensor


class Blip2:
    """One checkpoint of BLIP-2, or a folder with both halves of it.

    Args:
        checkpoint: Folder, hub name or "demo:NAME".
        generate: Sub-folder of the half that writes text; None: this checkpoint has none.
        retrieve: Sub-folder of the half that matches; None: this checkpoint has none.
        revision: Of a hub name.
        box_extract: Name of the extraction of its box syntax, for a checkpoint that was trained to ground.
        pair_batch: Pairs scored at once by ITM, texts embedded at once for ITC.
        **loading: See `checkpoints.Loading`.
    """

    def __init__(
        self,
        *,
        checkpoint: str,
        generate: str | None = ".",
        retrieve: str | None = None,
        revision: str | None = None,
        box_extract: str | None = None,
        pair_batch: int = 64,
        **loading: Any,
    ) -> None:
        if generate is None and retrieve is None:
            raise ConfigError(
                "model.generate and model.retrieve are both null: name the half that the checkpoint holds"
            )
        self._loading = Loading.of(loading)
        self._text = None if generate is None else Checkpoint(checkpoint, revision, generate)
        self._matching = None if retrieve is None else Checkpoint(checkpoint, revision, retrieve)
        self._pair_batch = pair_batch
        self._halves: dict[bool, _Half] = {}
        self._half: _Half | None = None
        self._image_size: int | None = None
        self.box_extract = box_extract
        can: list[Capability] = []
        if self._text is not None:
            can += ["generate", "loglikelihood", *(["ground"] if box_extract else [])]  # type: ignore[list-item]
        if self._matching is not None:
            can += ["itc", "itm"]
        self.capabilities: frozenset[Capability] = frozenset(can)

    def refuses(self, task: Task) -> str | None:
        """Return why not: the half is missing, or the decoding samples among beams."""
        return shortfall(self.capabilities, task) or sampling_with_beams(task.decoding)

    def identity(self, task: Task) -> Mapping[str, Json]:
        """Return adapter, loading and image size; matching adds where texts are cut."""
        settings = {"adapter": "blip2", **self._loading.identity(), "image_size": task.image_size}
        if _matching(task):
            settings |= {"max_caption_tokens": MAX_CAPTION_TOKENS}
        return settings

    def files(self, task: Task) -> Mapping[str, Path]:
        """Return the files of the half that this task needs."""
        return self._checkpoint(task).files

    def prepare(self, task: Task) -> None:
        """Load the half, once, and set the image size."""
        matching = _matching(task)
        if matching not in self._halves:
            self._halves[matching] = _Half.load(self._checkpoint(task), self._loading, matching=matching)
        self._half = self._halves[matching]
        self._image_size = task.image_size

    def preprocess(self, image: Image) -> torch.Tensor:
        """Return pixels (3, S, S): squashed to a square, bicubic, as LAVIS does."""
        half = self._ready()
        return square(half.image_processor, to_rgb(image), self._image_size)

    def encode(self, inputs: Sequence[torch.Tensor]) -> Encoded:
        """Return one row per image."""
        return Rows(tuple(_Seen(features) for features in self._ready().see(inputs)))

    def generate(self, encoded: Encoded, prompts: Sequence[Prompt], decoding: Decoding) -> list[str]:
        """Return the new text for each prompt.

        Raises:
            SampleError: A prompt refers to several images or is longer than the model.
        """
        seen = own(encoded, _Seen)
        return self._ready().write([seen[single_row(prompt)].features for prompt in prompts], prompts, decoding)

    def loglikelihood(
        self, encoded: Encoded, prompts: Sequence[Prompt], options: Sequence[Sequence[str]]
    ) -> list[list[float]]:
        """Return the log-probability of each option after its image and prompt.

        Raises:
            SampleError: A prompt refers to several images; an option has no token, or does not fit the model.
        """
        seen, half = own(encoded, _Seen), self._ready()
        return [
            half.judge(seen[single_row(prompt)].features, prompt, each)
            for prompt, each in zip(prompts, options, strict=True)
        ]

    def itc_images(self, encoded: Encoded) -> Json:
        """Return unit vectors (I, Q, D) as float32."""
        return self._ready().embed_images([row.features for row in own(encoded, _Seen).values])

    def itc_texts(self, texts: Sequence[str]) -> Json:
        """Return unit vectors (T, D) as float32."""
        return self._ready().embed_texts(texts, self._pair_batch)

    def itm(self, encoded: Encoded, texts: Sequence[str]) -> list[float]:
        """Return the matching logit of row i with texts[i]."""
        features = [row.features for row in own(encoded, _Seen).values]
        return self._ready().match(features, texts, self._pair_batch)

    def _checkpoint(self, task: Task) -> Checkpoint:
        checkpoint = self._matching if _matching(task) else self._text
        if checkpoint is None:
            raise UnsupportedError(self.refuses(task) or f"no half of this checkpoint does {task.name}")
        return checkpoint

    def _ready(self) -> _Half:
        assert self._half is not None, "prepare() comes first"
        return self._half


def _matching(task: Task) -> bool:
    """Whether a task needs the half that compares images with texts."""
    return task.kind == "retrieve" or task.matches


@dataclass(frozen=True)
class _Half:
    """The loaded model of one half, with its tokenizer and image processor."""

    model: Any
    tokenizer: Any
    image_processor: Any
    name: str

    @classmethod
    def load(cls, checkpoint: Checkpoint, loading: Loading, *, matching: bool) -> _Half:
        class_name = "Blip2ForImageTextRetrieval" if matching else "Blip2ForConditionalGeneration"
        checkpoint.expect({"blip-2"}, {class_name})
        tokenizer = loading.load_tokenizer(checkpoint, "right")
        image_processor = loading.load_image_processor(checkpoint)
        model = loading.load(checkpoint, class_name)
        if not matching:
            forget_decoding(model.language_model)
            if not model.language_model.config.is_encoder_decoder:
                # Generation continues at the right end. A matching Q-Former reads its class token at the left end:
                # padded there, recall fell from 100 to 84 without an error.
                tokenizer.padding_side = "left"
        return cls(model, tokenizer, image_processor, checkpoint.name)

    def see(self, pixels: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """Return the features of each image: (Q, H) for text, (N, D) for matching."""
        import torch

        model = self.model
        patches_IND = patches(model, pixels)
        if not hasattr(model, "language_model"):
            return list(patches_IND)
        with torch.inference_mode():
            queries_IQD = self._queries(patches_IND).to(patches_IND.dtype)
            return list(model.language_projection(queries_IQD))

    def write(self, features: Sequence[torch.Tensor], prompts: Sequence[Prompt], decoding: Decoding) -> list[str]:
        """Return the text that the language model writes after image and prompt."""
        import torch

        return write_behind(self.model, self.tokenizer, torch.stack(list(features)), prompts, decoding)

    def judge(self, features_QH: torch.Tensor, prompt: Prompt, options: Sequence[str]) -> list[float]:
        """Return how likely each option is after an image and a prompt."""
        return likelihoods_behind(self.model, self.tokenizer, features_QH[None], prompt, options)

    def embed_images(self, features: Sequence[torch.Tensor]) -> Json:
        """Return the query vectors (I, Q, D) of the images, normalised."""
        import torch

        with torch.inference_mode():
            queries_IQD = self._queries(torch.stack(list(features)))
            projected_IQD = self.model.vision_projection(queries_IQD.to(self.model.vision_projection.weight.dtype))
            return unit(projected_IQD)

    def embed_texts(self, texts: Sequence[str], batch: int) -> Json:
        """Return the vectors (T, D) of the texts' class tokens, normalised."""
        import numpy as np
        import torch

        model = self.model
        vectors = []
        for start in range(0, len(texts), batch):
            ids_TL, mask_TL = read_captions(self.tokenizer, texts[start : start + batch], model.device)
            with torch.inference_mode():
                hidden_TLD = model.qformer(
                    query_embeds=model.embeddings(input_ids=ids_TL), query_length=0, attention_mask=mask_TL
                ).last_hidden_state
                weight = model.text_projection.weight
                vectors.append(unit(model.text_projection(hidden_TLD[:, 0].to(weight.dtype))))
        return np.concatenate(vectors)

    def match(self, features: Sequence[torch.Tensor], texts: Sequence[str], batch: int) -> list[float]:
        """Return the logit of class 1 ("they match") for each pair of an image and a text."""
        import torch

        model = self.model
        scores: list[float] = []
        for start in range(0, len(texts), batch):
            ids_BL, text_mask_BL = read_captions(self.tokenizer, texts[start : start + batch], model.device)
            patches_BND = torch.stack(list(features[start : start + batch]))
            with torch.inference_mode():
                queries_BQD = model.query_tokens.expand(len(ids_BL), -1, -1)
                query_mask_BQ = text_mask_BL.new_ones(queries_BQD.shape[:2])
                hidden_BLD = model.qformer(
                    query_embeds=model.embeddings(input_ids=ids_BL, query_embeds=queries_BQD),
                    query_length=queries_BQD.shape[1],
                    attention_mask=torch.cat([query_mask_BQ, text_mask_BL], dim=1),
                    encoder_hidden_states=patches_BND,
                    encoder_attention_mask=torch.ones(patches_BND.shape[:2], dtype=torch.long, device=model.device),
                ).last_hidden_state
                logits_BQ2 = model.itm_head(hidden_BLD[:, : queries_BQD.shape[1]].to(model.itm_head.weight.dtype))
                scores += logits_BQ2[:, :, 1].mean(dim=1).float().tolist()
        return scores

    def _queries(self, patches_IND: torch.Tensor) -> torch.Tensor:
        """Return what the query tokens took from the patches, (I, Q, D)."""
        import torch

        model = self.model
        hidden_IQD: torch.Tensor = model.qformer(
            query_embeds=model.query_tokens.expand(len(patches_IND), -1, -1),
            encoder_hidden_states=patches_IND,
            encoder_attention_mask=torch.ones(patches_IND.shape[:2], dtype=torch.long, device=patches_IND.device),
            return_dict=True,
        ).last_hidden_state
        return hidden_IQD
