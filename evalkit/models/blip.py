"""BLIP (Li et al., 2022, arXiv 2201.12086): VQA by ranking or writing answers, captions, and matching.

    python -m evalkit model=blip-vqa task=vqav2

Each published checkpoint is one head: `vqa` (a text encoder reads question and image, a decoder answers), `caption` (a
decoder continues the prompt) or `retrieve` (ITC on class tokens, ITM on an encoder that reads text and image). The ViT
is shared by all questions on an image. Two places where transformers differs from the code behind the published numbers
are settings: which token begins a text that is read beside an image, and the smoothing in the loss by which answers
are ranked. transformers (5.23) does not hide the padding of a shorter question from the decoder: BlipTextSelfAttention
drops the mask of its cross-attention, so answers would depend on the batch; here questions of one length are answered
together.

Shapes: B rows, I images, T texts, N patches, L text tokens, D features, K kept candidates, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import ConfigError, unknown
from ..types import Capability, Decoding, Encoded, Json, Prompt, Task
from .abilities import sampling_with_beams, shortfall, single_row
from .checkpoints import Checkpoint, Loading
from .generation import check_length, forget_decoding, generate_texts, hide_padding, pad, position_limit
from .likelihood import Options, after, check_room, continued, in_chunks, log_probability, targets
from .matching import MAX_CAPTION_TOKENS, read_captions, unit
from .pixels import patches, square, to_rgb
from .rows import Rows, own

if TYPE_CHECKING:
    import torch
    from PIL.Image import Image

_CLASSES = {
    "vqa": "BlipForQuestionAnswering",
    "caption": "BlipForConditionalGeneration",
    "retrieve": "BlipForImageTextRetrieval",
}
_CAN: Mapping[str, frozenset[Capability]] = {
    "vqa": frozenset({"generate", "rank", "loglikelihood"}),
    "caption": frozenset({"generate", "loglikelihood"}),
    "retrieve": frozenset({"itc", "itm"}),
}


@dataclass(frozen=True, slots=True)
class _Seen:
    """The patches (N, D) of one image."""

    patches: torch.Tensor


class Blip:
    """One checkpoint of BLIP.

    Args:
        checkpoint: Folder or hub name.
        head: "vqa", "caption" or "retrieve": what this checkpoint was trained for.
        revision: Of a hub name.
        encoder_token: Id of the token that begins a text read beside an image: BLIP puts its own [ENC] there (30523);
            None leaves the tokenizer's first token, as transformers does.
        label_smoothing: Of the loss that ranks candidates; BLIP's med.py has 0.1.
        pair_batch: Pairs scored at once by ITM, texts embedded at once for ITC.
        **loading: See `checkpoints.Loading`.
    """

    def __init__(
        self,
        *,
        checkpoint: str,
        head: str,
        revision: str | None = None,
        encoder_token: int | None = None,
        label_smoothing: float = 0.0,
        pair_batch: int = 64,
        **loading: Any,
    ) -> None:
        if head not in _CLASSES:
            raise ConfigError(unknown("model.head", str(head), _CLASSES))
        self._loading = Loading.of(loading)
        self._checkpoint = Checkpoint(checkpoint, revision)
        self._head = head
        self._encoder_token = encoder_token
        self._label_smoothing = label_smoothing
        self._pair_batch = pair_batch
        self._image_size: int | None = None
        self._model: Any = None
        self._tokenizer: Any = None
        self._image_processor: Any = None
        self.capabilities = _CAN[head]

    def refuses(self, task: Task) -> str | None:
        """Return why not: another head, or a decoding that samples among beams."""
        return shortfall(self.capabilities, task) or sampling_with_beams(task.decoding)

    def identity(self, task: Task) -> Mapping[str, Json]:
        """Return adapter, head, loading, image size and the two settings of the original code."""
        settings = {
            "adapter": "blip",
            "head": self._head,
            **self._loading.identity(),
            "image_size": task.image_size,
            "encoder_token": self._encoder_token,
        }
        if self._head == "vqa":
            settings["label_smoothing"] = self._label_smoothing
        if self._head == "retrieve":
            settings["max_caption_tokens"] = MAX_CAPTION_TOKENS
        return settings

    def files(self, task: Task) -> Mapping[str, Path]:
        """Return the files of the checkpoint."""
        return self._checkpoint.files

    def prepare(self, task: Task) -> None:
        """Load the weights, once, and set the image size."""
        self._image_size = task.image_size
        if self._model is not None:
            return
        self._checkpoint.expect({"blip"}, {_CLASSES[self._head]})
        self._tokenizer = self._loading.load_tokenizer(self._checkpoint, "right")
        self._image_processor = self._loading.load_image_processor(self._checkpoint)
        self._model = self._loading.load(self._checkpoint, _CLASSES[self._head])
        if self._head != "retrieve":
            # A decoder made from BERT ends its text with [SEP]; the configuration's `eos_token_id` is something else.
            forget_decoding(self._model.text_decoder, end=self._model.config.text_config.sep_token_id)

    def preprocess(self, image: Image) -> torch.Tensor:
        """Return pixels (3, S, S), squashed to a square."""
        return square(self._image_processor, to_rgb(image), self._image_size)

    def encode(self, inputs: Sequence[torch.Tensor]) -> Encoded:
        """Return the patches of each image."""
        return Rows(tuple(_Seen(patches_ND) for patches_ND in patches(self._model, inputs)))

    def generate(self, encoded: Encoded, prompts: Sequence[Prompt], decoding: Decoding) -> list[str]:
        """Return an answer to each prompt (`vqa`) or its continuation (`caption`).

        Raises:
            SampleError: A prompt refers to several images or is longer than the model.
        """
        patches_BND = self._patches(encoded, prompts)
        if self._head == "vqa":
            return self._answer(patches_BND, prompts, decoding)
        decoder = self._model.text_decoder
        inputs = self._caption_inputs(patches_BND, self._words([prompt.text for prompt in prompts]))
        check_length(position_limit(decoder.config), inputs["input_ids"].shape[1], prompts, decoding)
        return generate_texts(decoder, self._tokenizer, inputs, prompts, decoding)

    def rank(self, encoded: Encoded, prompts: Sequence[Prompt], candidates: Sequence[str], keep: int) -> list[str]:
        """Return the likeliest candidate for each prompt (BLIP blip_vqa.py, `rank_answer`).

        The `keep` candidates with the likeliest first token are scored in full; equal ones count in list order.
        """
        import torch

        questions = self._read_questions(self._patches(encoded, prompts), prompts, Decoding(max_new_tokens=0))
        ids_TL, text_mask_TL = self._candidates(tuple(candidates))
        decoder = self._model.text_decoder
        best: list[str] = []
        with torch.inference_mode():
            # One question at a time: its candidates are a batch already, and the same one whatever is asked beside it.
            for states_LD in questions:
                first_1V = decoder(input_ids=ids_TL[:1, :1], encoder_hidden_states=states_LD[None]).logits[:, 0]
                likely_T = first_1V[0].float().softmax(dim=-1)[ids_TL[:, 1]]
                kept_K = likely_T.sort(descending=True, stable=True).indices[:keep]
                losses_K = self._losses(ids_TL[kept_K], text_mask_TL[kept_K], states_LD)
                best.append(candidates[int(kept_K[losses_K.argmin()])])
        return best

    def loglikelihood(
        self, encoded: Encoded, prompts: Sequence[Prompt], options: Sequence[Sequence[str]]
    ) -> list[list[float]]:
        """Return the log-probability of each option: as an answer with its end (`vqa`), or after the prompt.

        Raises:
            SampleError: A prompt refers to several images; an option has no token, or does not fit the model.
        """
        judge = self._judge_answers if self._head == "vqa" else self._judge_captions
        return [
            judge(self._patches(encoded, [prompt]), prompt, each) for prompt, each in zip(prompts, options, strict=True)
        ]

    def itc_images(self, encoded: Encoded) -> Json:
        """Return unit vectors (I, 1, D) of the class patch."""
        import torch

        classes_ID = torch.stack([seen.patches[0] for seen in own(encoded, _Seen).values])
        with torch.inference_mode():
            return unit(self._model.vision_proj(classes_ID))[:, None, :]

    def itc_texts(self, texts: Sequence[str]) -> Json:
        """Return unit vectors (T, D) of the class token."""
        import numpy as np
        import torch

        vectors = []
        for start in range(0, len(texts), self._pair_batch):
            ids_TL, mask_TL = self._captions(texts[start : start + self._pair_batch])
            with torch.inference_mode():
                hidden_TLD = self._model.text_encoder(input_ids=ids_TL, attention_mask=mask_TL).last_hidden_state
                vectors.append(unit(self._model.text_proj(hidden_TLD[:, 0])))
        return np.concatenate(vectors)

    def itm(self, encoded: Encoded, texts: Sequence[str]) -> list[float]:
        """Return the logit of class 1 ("they match") of row i with texts[i]."""
        import torch

        seen = own(encoded, _Seen)
        scores: list[float] = []
        for start in range(0, len(texts), self._pair_batch):
            ids_BL, mask_BL = self._captions(texts[start : start + self._pair_batch])
            patches_BND = torch.stack([row.patches for row in seen.values[start : start + self._pair_batch]])
            hidden_BLD = self._read(self._beside_image(ids_BL), mask_BL, patches_BND)
            with torch.inference_mode():
                scores += self._model.itm_head(hidden_BLD[:, 0])[:, 1].float().tolist()
        return scores

    def _patches(self, encoded: Encoded, prompts: Sequence[Prompt]) -> torch.Tensor:
        import torch

        seen = own(encoded, _Seen)
        return torch.stack([seen[single_row(prompt)].patches for prompt in prompts])

    def _words(self, texts: Sequence[str]) -> list[list[int]]:
        """Return the ids of texts as the captioner reads them: its start token, and no end."""
        begin = self._model.text_decoder.config.bos_token_id
        return [[begin, *row] for row in self._tokenizer(list(texts), add_special_tokens=False)["input_ids"]]

    def _caption_inputs(self, patches_BND: torch.Tensor, rows: Sequence[Sequence[int]]) -> dict[str, torch.Tensor]:
        ids_BL, mask_BL = pad(rows, "left", patches_BND.device)
        return {
            "input_ids": hide_padding(ids_BL, mask_BL),
            "attention_mask": mask_BL,
            "encoder_hidden_states": patches_BND,
            "encoder_attention_mask": _all_of(patches_BND),
        }

    def _answer(self, patches_BND: torch.Tensor, prompts: Sequence[Prompt], decoding: Decoding) -> list[str]:
        """Return the decoder's answers; questions of one length go together: padding could not be hidden."""
        import torch

        decoder = self._model.text_decoder
        questions = self._read_questions(patches_BND, prompts, decoding)
        answers: dict[int, str] = {}
        for length in sorted({len(states_LD) for states_LD in questions}):
            rows = [row for row, states_LD in enumerate(questions) if len(states_LD) == length]
            states_BLD = torch.stack([questions[row] for row in rows])
            inputs = {
                "input_ids": torch.full((len(rows), 1), decoder.config.bos_token_id, device=decoder.device),
                "encoder_hidden_states": states_BLD,
                "encoder_attention_mask": _all_of(states_BLD),
            }
            texts = generate_texts(decoder, self._tokenizer, inputs, [prompts[row] for row in rows], decoding)
            answers.update(zip(rows, texts, strict=True))
        return [answers[row] for row in range(len(prompts))]

    def _judge_answers(self, patches_1ND: torch.Tensor, prompt: Prompt, options: Sequence[str]) -> list[float]:
        import torch

        decoder = self._model.text_decoder
        found = targets(self._tokenizer, prompt, options)
        check_room(found, prompt, position_limit(decoder.config))
        rows = [[decoder.config.bos_token_id, *row[1:]] for row in found.rows]
        [states_LD] = self._read_questions(patches_1ND, [prompt], Decoding(max_new_tokens=0))

        def score(ids_BL: torch.Tensor, targets_BL: torch.Tensor) -> torch.Tensor:
            states_BLD = states_LD.expand(len(ids_BL), -1, -1)
            logits_BLV = decoder(input_ids=ids_BL[:, :-1], encoder_hidden_states=states_BLD).logits
            return log_probability(logits_BLV, targets_BL[:, 1:])

        with torch.inference_mode():
            return in_chunks(Options([], rows, found.starts), score, len(states_LD), decoder.device)

    def _judge_captions(self, patches_1ND: torch.Tensor, prompt: Prompt, options: Sequence[str]) -> list[float]:
        decoder = self._model.text_decoder
        found = after(prompt.text, prompt, options, self._words)
        return continued(decoder, self._caption_inputs(patches_1ND, [found.context]), prompt, found)

    def _read_questions(
        self, patches_BND: torch.Tensor, prompts: Sequence[Prompt], decoding: Decoding
    ) -> list[torch.Tensor]:
        """Return what the encoder made of each question and its image, (L, D) without padding."""
        rows = self._tokenizer([prompt.text for prompt in prompts])["input_ids"]
        ids_BL, mask_BL = pad(rows, "right", patches_BND.device)
        check_length(position_limit(self._model.text_encoder.config), ids_BL.shape[1], prompts, decoding)
        states_BLD = self._read(self._beside_image(ids_BL), mask_BL, patches_BND)
        return [states_LD[: len(row)] for states_LD, row in zip(states_BLD, rows, strict=True)]

    def _read(self, ids_BL: torch.Tensor, mask_BL: torch.Tensor, patches_BND: torch.Tensor) -> torch.Tensor:
        import torch

        with torch.inference_mode():
            hidden_BLD: torch.Tensor = self._model.text_encoder(
                input_ids=ids_BL,
                attention_mask=mask_BL,
                encoder_hidden_states=patches_BND,
                encoder_attention_mask=_all_of(patches_BND),
            ).last_hidden_state
        return hidden_BLD

    def _beside_image(self, ids_BL: torch.Tensor) -> torch.Tensor:
        if self._encoder_token is None:
            return ids_BL
        ids_BL = ids_BL.clone()
        ids_BL[:, 0] = self._encoder_token
        return ids_BL

    def _captions(self, texts: Sequence[str]) -> tuple[torch.Tensor, torch.Tensor]:
        return read_captions(self._tokenizer, texts, self._model.device)

    def _candidates(self, candidates: tuple[str, ...]) -> tuple[torch.Tensor, torch.Tensor]:
        """Return ids and mask (T, L) of the candidates, the decoder's start token first."""
        rows = self._tokenizer(list(candidates))["input_ids"]
        begin = self._model.text_decoder.config.bos_token_id
        return pad([[begin, *row[1:]] for row in rows], "right", self._model.device)

    def _losses(self, ids_KL: torch.Tensor, mask_KL: torch.Tensor, states_LD: torch.Tensor) -> torch.Tensor:
        """Return the summed loss (K,) of each candidate after a question."""
        import torch

        logits_KLV = self._model.text_decoder(
            input_ids=ids_KL,
            attention_mask=mask_KL,
            encoder_hidden_states=states_LD.expand(len(ids_KL), -1, -1),
        ).logits
        targets_KL = ids_KL.masked_fill(mask_KL == 0, -100)[:, 1:]
        losses_KL: torch.Tensor = torch.nn.functional.cross_entropy(
            logits_KLV[:, :-1].transpose(1, 2).float(),
            targets_KL,
            reduction="none",
            label_smoothing=self._label_smoothing,
        )
        return losses_KL.sum(dim=1)


def _all_of(states_BND: torch.Tensor) -> torch.Tensor:
    """Return a mask (B, N) that hides nothing."""
    import torch

    return torch.ones(states_BND.shape[:2], dtype=torch.long, device=states_BND.device)
