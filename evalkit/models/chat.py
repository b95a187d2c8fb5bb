"""Chat models of transformers through one adapter: LLaVA, LLaVA-NeXT, Qwen2-VL, Qwen2.5-VL, Qwen3-VL and their like.

    python -m evalkit model=llava-1.5-7b task=gqa

Anything that `AutoModelForImageTextToText` loads and that has a chat template. The prompt becomes one user turn, images
first. An image is encoded once: its features enter `generate` as `mm_encoder_outputs` beside the ids, from which the
model takes its positions (with `inputs_embeds` Qwen2-VL's are lost, and its answers wrong without an error). A model
whose `forward` does not take them is given its pixels with every question, and a warning says so.

Shapes: B rows, L tokens.
"""

from __future__ import annotations

import functools
import inspect
import json
import logging
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import ConfigError, ImageError, ModelError, SampleError, UnsupportedError
from ..types import Capability, Decoding, Encoded, Json, Prompt, Task
from .abilities import sampling_with_beams, shortfall
from .checkpoints import Checkpoint, Loading
from .generation import check_length, forget_decoding, generate_texts, hide_padding, pad, position_limit
from .likelihood import after, continued
from .pixels import padded, to_rgb
from .rows import Rows, own

if TYPE_CHECKING:
    import torch
    from PIL.Image import Image

_TEXT_INPUTS = ("input_ids", "attention_mask", "token_type_ids", "mm_token_type_ids")
_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class _Input:
    """One image as the processor gives it."""

    tensors: Mapping[str, torch.Tensor]
    """pixel_values and what describes them, each with a first axis for images or patches."""
    span: tuple[int, ...]
    """The tokens that stand for it in a prompt."""


@dataclass(frozen=True, slots=True)
class _Seen:
    """One image, encoded (for Qwen3-VL with its `deepstack`), or with no features: to be encoded with each question."""

    input: _Input
    features: torch.Tensor | None = None
    deepstack: tuple[torch.Tensor, ...] = ()


class Chat:
    """One chat model.

    Args:
        checkpoint: Folder or hub name.
        revision: Of a hub name.
        system: A system turn before each question; None: whatever the template does by itself.
        image_options: Settings of the image processor to change, such as Qwen-VL's
            {size: {shortest_edge: 3136, longest_edge: 1003520}} (pixels).
        pad_to_square: Put images on a square of the mean colour first, as LLaVA-1.5 was trained and evaluated.
        share_images: Encode an image once for all its questions; None: where the model allows it.
        box_extract: Name of the extraction of its box syntax, for a model that grounds. `box_resized:28` (pixels of
            the resized image, both sides multiples of 28) is completed from the limits in `image_options`.
        **loading: See `checkpoints.Loading`.
    """

    def __init__(
        self,
        *,
        checkpoint: str,
        revision: str | None = None,
        system: str | None = None,
        image_options: Mapping[str, Any] | None = None,
        pad_to_square: bool = False,
        share_images: bool | None = None,
        box_extract: str | None = None,
        **loading: Any,
    ) -> None:
        self._loading = Loading.of(loading)
        self._checkpoint = Checkpoint(checkpoint, revision, code=self._loading.trust_remote_code)
        self._system = system
        self._image_options = dict(image_options or {})
        self._pad_to_square = pad_to_square
        self._share_images = share_images
        self._model: Any = None
        self._processor: Any = None
        self.box_extract = _box_extraction(box_extract, self._image_options, pad_to_square)
        can: set[Capability] = {"generate", "loglikelihood"}
        self.capabilities: frozenset[Capability] = frozenset(can | {"ground"} if box_extract else can)

    def refuses(self, task: Task) -> str | None:
        """Return why not: neither embeddings nor ranking, and no image size but its processor's."""
        if task.image_size is not None:
            return (
                f"{task.name} asks for image_size={task.image_size}, and a chat model sizes images by its own "
                "processor; leave image_size unset and use model.image_options"
            )
        return shortfall(self.capabilities, task) or sampling_with_beams(task.decoding)

    def identity(self, task: Task) -> Mapping[str, Json]:
        """Return adapter, loading, system turn and image options; the chat template is one of the hashed files."""
        return {
            "adapter": "chat",
            **self._loading.identity(),
            "system": self._system,
            "image_options": self._image_options,
            "pad_to_square": self._pad_to_square,
        }

    def files(self, task: Task) -> Mapping[str, Path]:
        """Return the files of the checkpoint."""
        return self._checkpoint.files

    def prepare(self, task: Task) -> None:
        """Load the weights, once."""
        if self._model is not None:
            return
        self._processor = _load_processor(self._checkpoint, self._loading)
        _check_grid(self.box_extract, self._processor.image_processor)
        self._check_template()
        self._model = self._loading.load(self._checkpoint, "AutoModelForImageTextToText")
        forget_decoding(self._model)
        takes = "mm_encoder_outputs" in _parameters(self._model.forward)
        takes = takes and hasattr(self._model.base_model, "get_image_features")
        if self._share_images and not takes:
            raise UnsupportedError(
                f"model.share_images=true: {type(self._model).__name__} does not take encoded images; leave it unset"
            )
        if self._share_images is None:
            self._share_images = takes
            if not takes:
                _log.warning("%s encodes an image again for each question", type(self._model).__name__)

    def preprocess(self, image: Image) -> _Input:
        """Return what the processor makes of one image.

        Raises:
            ImageError: The processor cannot read an image of this shape.
        """
        processor = self._processor
        rgb = to_rgb(image)
        if self._pad_to_square:
            rgb = padded(rgb, processor.image_processor.image_mean)
        try:
            made = processor(
                images=[rgb],
                text=[processor.image_token],
                add_special_tokens=False,
                return_tensors="pt",
                # Without it an image of height 3 is taken for one whose channels come first.
                input_data_format="channels_last",
                **self._image_options,
            )
        except ValueError as error:
            raise ImageError(
                f"the image processor cannot read an image of {rgb.width}x{rgb.height}: {error}"
            ) from error
        span = tuple(made["input_ids"][0].tolist())
        return _Input({name: value for name, value in made.items() if name not in _TEXT_INPUTS}, span)

    def encode(self, inputs: Sequence[_Input]) -> Encoded:
        """Return the features of each image; images of one shape go through the model together.

        Raises:
            UnsupportedError: The model gives no features per image.
        """
        if not self._share_images:
            return Rows(tuple(_Seen(one) for one in inputs))
        seen: dict[int, _Seen] = {}
        for rows in _alike(inputs):
            seen.update(zip(rows, self._see([inputs[row] for row in rows]), strict=True))
        return Rows(tuple(seen[row] for row in range(len(inputs))))

    def generate(self, encoded: Encoded, prompts: Sequence[Prompt], decoding: Decoding) -> list[str]:
        """Return the reply to each prompt.

        Raises:
            SampleError: A prompt holds the model's image token, or is longer than the model.
        """
        seen = own(encoded, _Seen)
        images = [[seen[row] for row in prompt.rows] for prompt in prompts]
        if not self._share_images and len(_alike([one.input for each in images for one in each])) > 1:
            # Pixels of different shapes have no batch.
            return [
                text
                for prompt, each in zip(prompts, images, strict=True)
                for text in self._reply([prompt], [each], decoding)
            ]
        return self._reply(prompts, images, decoding)

    def loglikelihood(
        self, encoded: Encoded, prompts: Sequence[Prompt], options: Sequence[Sequence[str]]
    ) -> list[list[float]]:
        """Return the log-probability of each option as the reply to its prompt, or the beginning of one.

        Raises:
            SampleError: A prompt or an option holds the model's image token, or they do not fit the model; an option
                has no token.
        """
        seen = own(encoded, _Seen)
        found = []
        for prompt, each in zip(prompts, options, strict=True):
            images = [seen[row] for row in prompt.rows]
            split = after(self._text(prompt), prompt, each, functools.partial(self._ids, prompt))
            inputs = self._inputs([_filled(split.context, images, self._processor.image_token_id)], [images])
            if hasattr(self._model.base_model, "rope_deltas"):
                # Where Qwen2-VL's text goes on after its last image; a prompt without one does not set it anew.
                self._model.base_model.rope_deltas = None
            found.append(continued(self._model, inputs, prompt, split))
        return found

    def _reply(self, prompts: Sequence[Prompt], images: Sequence[Sequence[_Seen]], decoding: Decoding) -> list[str]:
        rows = [
            _filled(self._ids(prompt, [self._text(prompt)])[0], each, self._processor.image_token_id)
            for prompt, each in zip(prompts, images, strict=True)
        ]
        limit = position_limit(self._model.config.get_text_config())
        check_length(limit, max(map(len, rows)), prompts, decoding)
        return generate_texts(self._model, self._processor.tokenizer, self._inputs(rows, images), prompts, decoding)

    def _inputs(self, rows: Sequence[Sequence[int]], images: Sequence[Sequence[_Seen]]) -> dict[str, Any]:
        """Return what the model takes for some rows of ids and the images in each."""
        import torch

        model = self._model
        ids_BL, mask_BL = pad(rows, "left", model.device)
        ids_BL = hide_padding(ids_BL, mask_BL)
        inputs: dict[str, Any] = {"input_ids": ids_BL, "attention_mask": mask_BL}
        if "mm_token_type_ids" in _parameters(model.forward):
            inputs["mm_token_type_ids"] = (ids_BL == self._processor.image_token_id).long()
        flat = [one for each in images for one in each]
        for name in flat[0].input.tensors if flat else ():
            if not self._share_images or not name.startswith("pixel"):
                inputs[name] = torch.cat([one.input.tensors[name] for one in flat]).to(model.device)
        if self._share_images and flat:
            inputs["mm_encoder_outputs"] = {"image": _outputs(flat)}
        return inputs

    def _see(self, inputs: Sequence[_Input]) -> list[_Seen]:
        import torch

        encode = self._model.base_model.get_image_features
        tensors = {
            name: torch.cat([one.tensors[name] for one in inputs]).to(self._model.device)
            for name in inputs[0].tensors
            if name in _parameters(encode)
        }
        tensors["pixel_values"] = tensors["pixel_values"].to(self._model.dtype)
        with torch.inference_mode():
            outputs = encode(**tensors, return_dict=True)
        features = outputs.pooler_output
        if len(features) != len(inputs):
            raise UnsupportedError(
                f"{type(self._model).__name__} gives {len(features)} feature blocks for {len(inputs)} images, so they "
                "cannot be shared; set model.share_images=false"
            )
        layers = getattr(outputs, "deepstack_features", None) or ()
        return [_Seen(one, features[row], tuple(layer[row] for layer in layers)) for row, one in enumerate(inputs)]

    def _check_template(self) -> None:
        """Ask once, so that a chat template which cannot be used ends the run before its first sample.

        Raises:
            ModelError: It is broken, refuses the system turn, or loses the image or the question.
        """
        from jinja2 import TemplateError

        place = f"the chat template of checkpoint {self._checkpoint.name}"
        probe = Prompt(sample_id="", text="What is this?", rows=(0,))
        try:
            text = self._text(probe)
        except (TemplateError, TypeError, ValueError, KeyError, AttributeError) as error:
            system = "" if self._system is None else ", or set model.system=null if it knows no system turn"
            raise ModelError(
                f"{place} cannot be used ({type(error).__name__}: {error}); copy the file again from the model it was "
                f"made from{system}"
            ) from error
        for what in (self._processor.image_token, probe.text):
            if text.count(what) != 1:
                raise ModelError(
                    f"{place} should put one image and the question into a turn, but {what!r} stands in it "
                    f"{text.count(what)} times: {text[:200]!r}. It is for text only, or of another model"
                )

    def _text(self, prompt: Prompt) -> str:
        """Return the conversation as far as the reply, each image a token in it."""
        user = [*({"type": "image"} for _ in prompt.rows), {"type": "text", "text": prompt.text}]
        turns = [{"role": "user", "content": user}]
        if self._system is not None:
            turns.insert(0, {"role": "system", "content": [{"type": "text", "text": self._system}]})
        text: str = self._processor.apply_chat_template(turns, add_generation_prompt=True, tokenize=False)
        return text

    def _ids(self, prompt: Prompt, texts: Sequence[str]) -> list[list[int]]:
        """Return the ids of conversations with this prompt.

        Raises:
            SampleError: One holds the image token in its words.
        """
        processor, tokenizer = self._processor, self._processor.tokenizer
        begun = tokenizer.bos_token is not None and texts[0].startswith(tokenizer.bos_token)
        rows: list[list[int]] = tokenizer(list(texts), add_special_tokens=not begun)["input_ids"]
        if any(row.count(processor.image_token_id) != len(prompt.rows) for row in rows):
            raise SampleError(
                f"the prompt of sample {prompt.sample_id}, or an option, holds {processor.image_token!r}, by which "
                "this model means an image; reword it"
            )
        return rows


def _filled(ids: Sequence[int], images: Sequence[_Seen], image_token: int) -> list[int]:
    """Return the ids with each image token replaced by its image's span."""
    spans = iter(images)
    found: list[int] = []
    for token in ids:
        found += next(spans).input.span if token == image_token else [token]
    return found


def _box_extraction(name: str | None, options: Mapping[str, Any], padded: bool) -> str | None:
    """Return the extraction with what it must know of how images are sized, before any file is looked for.

    Raises:
        ConfigError: The settings of images do not fit it.
    """
    if name == "box_square" and not padded:
        raise ConfigError(
            "model.box_extract=box_square reads fractions of the image padded to a square; say "
            "model.pad_to_square=true, too, or model.box_extract=null to do without boxes"
        )
    if name is None or not re.fullmatch(r"box_resized:\d+", name):
        return name
    size = options.get("size") or {}
    if not {"shortest_edge", "longest_edge"} <= set(size):
        raise ConfigError(
            f"model.box_extract={name} reads pixels of the resized image, so the limits of resizing must be said: "
            "model.image_options={size: {shortest_edge: 3136, longest_edge: 12845056}} (in pixels of area)"
        )
    return f"{name}:{size['shortest_edge']}:{size['longest_edge']}"


def _check_grid(extraction: str | None, images: Any) -> None:
    """Check that the image processor resizes as the extraction of boxes assumes.

    Raises:
        ModelError: It makes the sides multiples of something else.
    """
    if extraction is None or not extraction.startswith("box_resized:"):
        return
    said = int(extraction.split(":")[1])
    found = getattr(images, "patch_size", 0) * getattr(images, "merge_size", 0)
    if said != found:
        raise ModelError(
            f"model.box_extract={extraction} reads pixels of an image with sides that are multiples of {said}, but "
            f"{type(images).__name__} of this checkpoint "
            + (f"makes them multiples of {found}: say box_resized:{found}" if found else "does not resize like that")
        )


def _outputs(images: Sequence[_Seen]) -> Any:
    """Return encoded images as a model gives them. Made anew for each call: beam search changes it in place."""
    from transformers.modeling_outputs import BaseModelOutputWithPooling

    outputs = BaseModelOutputWithPooling(pooler_output=[one.features for one in images])
    if images[0].deepstack:
        layers = zip(*(one.deepstack for one in images), strict=True)
        outputs.deepstack_features = [list(layer) for layer in layers]
    return outputs


def _alike(inputs: Sequence[_Input]) -> list[list[int]]:
    """Return the rows of inputs grouped by the shapes of their tensors, in order."""
    groups: dict[tuple[Any, ...], list[int]] = {}
    for row, one in enumerate(inputs):
        groups.setdefault(tuple(tuple(value.shape) for value in one.tensors.values()), []).append(row)
    return list(groups.values())


def _parameters(function: Any) -> Iterable[str]:
    return inspect.signature(function).parameters


def _load_processor(checkpoint: Checkpoint, loading: Loading) -> Any:
    """Return the processor, its images read by the backend that was asked for.

    Raises:
        ModelError: The checkpoint has no processor, no image token or no chat template.
    """
    from transformers import AutoProcessor

    tokenizer = loading.load_tokenizer(checkpoint, "left")
    images = loading.load_image_processor(checkpoint)
    try:
        processor = AutoProcessor.from_pretrained(
            checkpoint.folder, local_files_only=True, trust_remote_code=loading.trust_remote_code
        )
    except ImportError:
        # A combined processor loads its part for videos first, which needs torchvision; images do not.
        processor = _without_videos(checkpoint, images, tokenizer)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ModelError(
            f"the processor of checkpoint {checkpoint.name} cannot be read ({type(error).__name__}: {error}); copy its "
            "files again from the model it was made from"
        ) from error
    if not hasattr(processor, "image_token") or not hasattr(processor, "image_token_id"):
        raise ModelError(
            f"checkpoint {checkpoint.name} is of the family {checkpoint.family!r}, whose {type(processor).__name__} "
            "knows no image token, and this adapter is for chat models; choose the model=... of its family "
            "(`python -m evalkit list` shows them) or another model.checkpoint"
        )
    processor.image_processor, processor.tokenizer = images, tokenizer
    if processor.chat_template is None:
        processor.chat_template = tokenizer.chat_template
    if processor.chat_template is None:
        raise ModelError(
            f"checkpoint {checkpoint.name} has no chat template (chat_template.jinja, or in tokenizer_config.json), so "
            "nobody knows how it wants to be asked; copy the file from the model it was made from"
        )
    return processor


def _without_videos(checkpoint: Checkpoint, images: Any, tokenizer: Any) -> Any:
    """Return the checkpoint's processor with nothing in the place of its video part."""
    from transformers import AutoConfig
    from transformers.models.auto.processing_auto import PROCESSOR_MAPPING

    cls = PROCESSOR_MAPPING[type(AutoConfig.from_pretrained(checkpoint.folder, local_files_only=True))]
    lenient = type(cls.__name__, (cls,), {"check_argument_for_proper_class": lambda self, name, part: None})
    path = checkpoint.folder / "processor_config.json"
    settings = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    known = {
        name: settings[name]
        for name in inspect.signature(cls.__init__).parameters
        if name in settings and not isinstance(settings[name], dict)
    }
    parts = {"image_processor": images, "tokenizer": tokenizer, "video_processor": None}
    return lenient(**{**known, **parts, "chat_template": _template(checkpoint)})


def _template(checkpoint: Checkpoint) -> str | None:
    """Return the template of older checkpoints, which have it in a JSON file of its own."""
    path = checkpoint.folder / "chat_template.json"
    if not path.is_file():
        return None
    template = json.loads(path.read_text(encoding="utf-8")).get("chat_template")
    return None if template is None else str(template)
