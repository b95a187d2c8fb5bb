"""InstructBLIP (Dai et al., 2023, arXiv 2305.06500) with FlanT5 or Vicuna.

    python -m evalkit model=instructblip-flant5 task=okvqa

Its Q-Former reads the question beside the image, so what it takes from an image differs from question to question: only
the ViT's patches are shared by the questions on an image, the Q-Former runs once a question.

Shapes: B rows, I images, N patches, Q query tokens, L text tokens, D features, H hidden size.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..types import Capability, Decoding, Encoded, Json, Prompt, Task
from .abilities import sampling_with_beams, shortfall, single_row
from .checkpoints import Checkpoint, Loading
from .generation import check_length, forget_decoding, pad, position_limit
from .pixels import patches, square, to_rgb
from .prefix import likelihoods_behind, write_behind
from .rows import Rows, own

if TYPE_CHECKING:
    import torch
    from PIL.Image import Image

_QFORMER_TOKENIZER = "qformer_tokenizer"


@dataclass(frozen=True, slots=True)
class _Seen:
    """The patches (N, D) of one image."""

    patches: torch.Tensor


class InstructBlip:
    """One checkpoint of InstructBLIP.

    Args:
        checkpoint: Folder or hub name.
        revision: Of a hub name.
        **loading: See `checkpoints.Loading`.
    """

    capabilities: frozenset[Capability] = frozenset({"generate", "loglikelihood"})

    def __init__(self, *, checkpoint: str, revision: str | None = None, **loading: Any) -> None:
        self._loading = Loading.of(loading)
        self._checkpoint = Checkpoint(checkpoint, revision, folders=(_QFORMER_TOKENIZER,))
        self._image_size: int | None = None
        self._model: Any = None
        self._tokenizer: Any = None
        self._qformer_tokenizer: Any = None
        self._image_processor: Any = None

    def refuses(self, task: Task) -> str | None:
        """Return why not: neither boxes nor embeddings, and no sampling among beams."""
        return shortfall(self.capabilities, task) or sampling_with_beams(task.decoding)

    def identity(self, task: Task) -> Mapping[str, Json]:
        """Return adapter, loading and image size."""
        return {"adapter": "instructblip", **self._loading.identity(), "image_size": task.image_size}

    def files(self, task: Task) -> Mapping[str, Path]:
        """Return the files of the checkpoint, the Q-Former's tokenizer among them."""
        return self._checkpoint.files

    def prepare(self, task: Task) -> None:
        """Load the weights, once, and set the image size."""
        self._image_size = task.image_size
        if self._model is not None:
            return
        self._checkpoint.expect({"instructblip"})
        self._tokenizer = self._loading.load_tokenizer(self._checkpoint, "left")
        self._qformer_tokenizer = self._loading.load_tokenizer(self._checkpoint, "right", _QFORMER_TOKENIZER)
        self._image_processor = self._loading.load_image_processor(self._checkpoint)
        self._model = self._loading.load(self._checkpoint, "InstructBlipForConditionalGeneration")
        forget_decoding(self._model.language_model)

    def preprocess(self, image: Image) -> torch.Tensor:
        """Return pixels (3, S, S), squashed to a square."""
        return square(self._image_processor, to_rgb(image), self._image_size)

    def encode(self, inputs: Sequence[torch.Tensor]) -> Encoded:
        """Return the patches of each image."""
        return Rows(tuple(_Seen(patches_ND) for patches_ND in patches(self._model, inputs)))

    def generate(self, encoded: Encoded, prompts: Sequence[Prompt], decoding: Decoding) -> list[str]:
        """Return the new text for each prompt.

        Raises:
            SampleError: A prompt refers to several images or is longer than the model.
        """
        import torch

        seen = own(encoded, _Seen)
        patches_BND = torch.stack([seen[single_row(prompt)].patches for prompt in prompts])
        image_BQH = self._ask_qformer(patches_BND, prompts)
        return write_behind(self._model, self._tokenizer, image_BQH, prompts, decoding)

    def loglikelihood(
        self, encoded: Encoded, prompts: Sequence[Prompt], options: Sequence[Sequence[str]]
    ) -> list[list[float]]:
        """Return the log-probability of each option after its image and prompt; the Q-Former reads the prompt alone.

        Raises:
            SampleError: A prompt refers to several images; an option has no token, or does not fit the model.
        """
        seen = own(encoded, _Seen)
        found = []
        for prompt, each in zip(prompts, options, strict=True):
            image_1QH = self._ask_qformer(seen[single_row(prompt)].patches[None], [prompt])
            found.append(likelihoods_behind(self._model, self._tokenizer, image_1QH, prompt, each))
        return found

    def _ask_qformer(self, patches_BND: torch.Tensor, prompts: Sequence[Prompt]) -> torch.Tensor:
        """Return what the queries took from each image, given its prompt, projected (B, Q, H)."""
        import torch

        model = self._model
        rows = self._qformer_tokenizer([prompt.text for prompt in prompts])["input_ids"]
        ids_BL, text_mask_BL = pad(rows, "right", model.device)
        check_length(position_limit(model.config.qformer_config), ids_BL.shape[1], prompts, Decoding(max_new_tokens=0))
        with torch.inference_mode():
            queries_BQD = model.query_tokens.expand(len(prompts), -1, -1)
            num_queries = queries_BQD.shape[1]
            hidden_BLD = model.qformer(
                input_ids=ids_BL,
                attention_mask=torch.cat([text_mask_BL.new_ones(len(prompts), num_queries), text_mask_BL], dim=1),
                query_embeds=queries_BQD,
                encoder_hidden_states=patches_BND,
                encoder_attention_mask=torch.ones(patches_BND.shape[:2], dtype=torch.long, device=model.device),
                return_dict=True,
            ).last_hidden_state
            weight = model.language_projection.weight
            projected_BQH: torch.Tensor = model.language_projection(hidden_BLD[:, :num_queries].to(weight.dtype))
        return projected_BQH
