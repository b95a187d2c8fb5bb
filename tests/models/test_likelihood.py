"""The likelihood of options against plain transformers: pixels, one option at a time, one pass over all of it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    AutoModelForImageTextToText,
    AutoProcessor,
    AutoTokenizer,
    Blip2ForConditionalGeneration,
    BlipForConditionalGeneration,
    BlipForQuestionAnswering,
    InstructBlipForConditionalGeneration,
)

from evalkit.errors import SampleError
from evalkit.models import likelihood
from evalkit.models.blip import Blip
from evalkit.models.blip2 import Blip2
from evalkit.models.chat import Chat
from evalkit.models.instructblip import InstructBlip
from evalkit.types import Decoding, Encoded, Prompt

from . import tiny
from .test_chat import documented_inputs

OPTIONS = ("yes", "the red cat", "no", "2", "how many of the answer is yes", "two", "the red photo")


def summed(logits_LV: torch.Tensor, ids_L: torch.Tensor) -> float:
    """The log-probability of ids whose first is predicted by the first row of logits."""
    return float(logits_LV.log_softmax(-1).gather(1, ids_L[:, None]).sum())


def continuation(logits: torch.Tensor, ids: torch.Tensor, context: int) -> float:
    return summed(logits[0, context - 1 : -1], ids[0, context:])


def prefixed(model_class: Any) -> Callable[[Path], Callable[[Prompt, str], float]]:
    """BLIP-2 and InstructBLIP: the processor's inputs, with the option behind the prompt or as labels."""

    def load(folder: Path) -> Callable[[Prompt, str], float]:
        processor, model = AutoProcessor.from_pretrained(folder), model_class.from_pretrained(folder).eval()

        def judge(prompt: Prompt, option: str) -> float:
            image = tiny.pictures()[prompt.rows[0]]
            asked = processor(images=image, text=prompt.text, return_tensors="pt")
            with torch.no_grad():
                if model.language_model.config.is_encoder_decoder:
                    labels = processor.tokenizer(option, return_tensors="pt")["input_ids"]
                    assert labels[0, -1] == processor.tokenizer.eos_token_id
                    return summed(model(**asked, labels=labels).logits[0], labels[0])
                whole = processor(images=image, text=f"{prompt.text} {option}", return_tensors="pt")
                # InstructBLIP's Q-Former reads the question, not the answer.
                whole |= {name: asked[name] for name in asked if name.startswith("qformer")}
                return continuation(model(**whole).logits, whole["input_ids"], asked["input_ids"].shape[1])

        return judge

    return load


def chat(folder: Path) -> Callable[[Prompt, str], float]:
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForImageTextToText.from_pretrained(folder).eval()

    def judge(prompt: Prompt, option: str) -> float:
        inputs = documented_inputs(folder, prompt)
        context = inputs["input_ids"].shape[1]
        own = tokenizer(option, add_special_tokens=False, return_tensors="pt")["input_ids"]
        longer = {"input_ids": own, "attention_mask": own * 0 + 1, "mm_token_type_ids": own * 0}
        for name in longer.keys() & inputs.keys():
            inputs[name] = torch.cat([inputs[name], longer[name]], dim=1)
        with torch.no_grad():
            return continuation(model(**inputs).logits, inputs["input_ids"], context)

    return judge


def blip_caption(folder: Path) -> Callable[[Prompt, str], float]:
    processor, model = AutoProcessor.from_pretrained(folder), BlipForConditionalGeneration.from_pretrained(folder)

    def judge(prompt: Prompt, option: str) -> float:
        image = tiny.pictures()[prompt.rows[0]]
        asked = processor(images=image, text=prompt.text, return_tensors="pt")["input_ids"]
        whole = processor(images=image, text=f"{prompt.text} {option}", return_tensors="pt")
        ids = whole["input_ids"][:, :-1]  # without [SEP]
        ids[:, 0] = 4
        with torch.no_grad():
            logits = model(pixel_values=whole["pixel_values"], input_ids=ids).logits
        return continuation(logits, ids, asked.shape[1] - 1)

    return judge


def blip_vqa(folder: Path) -> Callable[[Prompt, str], float]:
    processor, model = AutoProcessor.from_pretrained(folder), BlipForQuestionAnswering.from_pretrained(folder)

    def judge(prompt: Prompt, option: str) -> float:
        inputs = processor(images=tiny.pictures()[prompt.rows[0]], text=prompt.text, return_tensors="pt")
        answer = processor.tokenizer(option, return_tensors="pt")["input_ids"]
        answer[:, 0] = 4
        with torch.no_grad():
            patches = model.vision_model(inputs["pixel_values"]).last_hidden_state
            states = model.text_encoder(input_ids=inputs["input_ids"], encoder_hidden_states=patches).last_hidden_state
            logits = model.text_decoder(input_ids=answer, encoder_hidden_states=states).logits
        return continuation(logits, answer, 1)

    return judge


@dataclass(frozen=True)
class Twin:
    """A tiny model: how it is made, its adapter, the computation it is held against, and what it makes of a prompt."""

    make: Callable[[Path], Path]
    adapter: Callable[[str], Any]
    reference: Callable[[Path], Callable[[Prompt, str], float]]
    decoder_only: bool = True


def chat_twin(family: str, **settings: Any) -> Twin:
    return Twin(lambda folder: tiny.chat(folder, family), lambda name: Chat(checkpoint=name, **settings), chat)


TWINS = {
    "blip2-opt": Twin(tiny.blip2_text, lambda name: Blip2(checkpoint=name), prefixed(Blip2ForConditionalGeneration)),
    "blip2-t5": Twin(
        lambda folder: tiny.blip2_text(folder, "t5"),
        lambda name: Blip2(checkpoint=name),
        prefixed(Blip2ForConditionalGeneration),
        decoder_only=False,
    ),
    "instructblip-llama": Twin(
        lambda folder: tiny.instructblip(folder, "llama"),
        lambda name: InstructBlip(checkpoint=name),
        prefixed(InstructBlipForConditionalGeneration),
    ),
    "instructblip-t5": Twin(
        lambda folder: tiny.instructblip(folder, "t5"),
        lambda name: InstructBlip(checkpoint=name),
        prefixed(InstructBlipForConditionalGeneration),
        decoder_only=False,
    ),
    "blip-caption": Twin(
        lambda folder: tiny.blip(folder, "caption"),
        lambda name: Blip(checkpoint=name, head="caption"),
        blip_caption,
    ),
    "blip-vqa": Twin(
        lambda folder: tiny.blip(folder, "vqa"),
        # The smoothing of its ranking loss has no place in a log-probability.
        lambda name: Blip(checkpoint=name, head="vqa", label_smoothing=0.1),
        blip_vqa,
        decoder_only=False,
    ),
    **{family: chat_twin(family) for family in tiny.CHATS},
    "qwen2_vl-pixels": chat_twin("qwen2_vl", share_images=False),
}


@dataclass(frozen=True)
class Ready:
    twin: Twin
    folder: Path
    model: Any
    encoded: Encoded

    def judge(self, prompts: Sequence[Prompt], options: Sequence[str] = OPTIONS) -> list[list[float]]:
        values: list[list[float]] = self.model.loglikelihood(self.encoded, prompts, [options] * len(prompts))
        return values


@pytest.fixture(scope="module", params=TWINS)
def ready(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Ready:
    twin = TWINS[request.param]
    folder = twin.make(tmp_path_factory.mktemp(request.param))
    model = twin.adapter(str(folder))
    model.prepare(tiny.task("choose"))
    return Ready(twin, folder, model, model.encode([model.preprocess(image) for image in tiny.pictures()]))


def passes(model: Any, call: Callable[[], Any]) -> int:
    """How often the part with the vocabulary's head runs during a call."""
    part = model._half.model.language_model if isinstance(model, Blip2) else model._model
    part = getattr(part, "text_decoder", getattr(part, "language_model", part)) if not isinstance(model, Chat) else part
    seen: list[int] = []
    hook = part.register_forward_hook(lambda *_: seen.append(1))
    try:
        call()
    finally:
        hook.remove()
    return len(seen)


def test_it_is_the_sum_that_plain_transformers_gives(ready: Ready) -> None:
    prompts = tiny.prompts()[::4]  # each prompt once, and all pictures
    found = ready.judge(prompts)
    judge = ready.twin.reference(ready.folder)
    expected = [[judge(prompt, option) for option in OPTIONS] for prompt in prompts]
    assert len({round(value, 3) for row in expected for value in row}) >= 0.9 * len(prompts) * len(OPTIONS)
    for one, other in zip(found, expected, strict=True):
        assert one == pytest.approx(other, abs=1e-4, rel=2e-6)


def test_company_and_order_move_nothing(ready: Ready) -> None:
    prompts = tiny.prompts()[::3]
    found = ready.judge(prompts)
    assert [ready.judge([prompt])[0] for prompt in prompts] == found
    assert ready.judge(prompts[::-1])[::-1] == found
    assert [row[::-1] for row in ready.judge(prompts, OPTIONS[::-1])] == found
    twice = ready.judge(prompts, [*OPTIONS, *OPTIONS])
    assert twice == [row * 2 for row in found]
    for one, other in zip(ready.judge(prompts, OPTIONS[:2]), found, strict=True):
        assert one == pytest.approx(other[:2], abs=1e-4, rel=2e-6)


def test_many_options_are_cut_and_few_are_not(ready: Ready, monkeypatch: pytest.MonkeyPatch) -> None:
    prompts = tiny.prompts()[3:5]
    found = ready.judge(prompts)
    first = 1 if ready.twin.decoder_only else 0
    assert passes(ready.model, lambda: ready.judge(prompts)) == 2 * (first + 1)
    if ready.twin.decoder_only:
        assert passes(ready.model, lambda: ready.judge(prompts, ["yes", "no"])) == 2
    monkeypatch.setattr(likelihood, "_TOKENS_AT_ONCE", 1)
    # The one-word options need no pass of their own after the prompt's.
    longer = len([option for option in OPTIONS if " " in option or option == "two"]) if first else len(OPTIONS)
    assert passes(ready.model, lambda: ready.judge(prompts)) == 2 * (first + longer)
    for one, other in zip(ready.judge(prompts), found, strict=True):
        assert one == pytest.approx(other, abs=1e-4, rel=2e-6)


def test_the_likeliest_word_is_what_greedy_search_writes(ready: Ready) -> None:
    """Of all words that are one token; an encoder-decoder's sum holds the end of the text, too."""
    if not ready.twin.decoder_only:
        pytest.skip("its options end")
    words = [*tiny.WORDS, *(chr(code) for code in range(33, 127))]
    prompts = tiny.prompts()
    written = ready.model.generate(ready.encoded, prompts, Decoding(max_new_tokens=1))
    judged = ready.judge(prompts, words)
    best = [words[max(range(len(words)), key=values.__getitem__)] for values in judged]
    pairs = [(one, other) for one, other in zip(best, written, strict=True) if other in words]
    assert len(pairs) >= 8
    assert [one for one, _ in pairs] == [other for _, other in pairs]


def test_an_option_without_a_token_is_one_samples_error(ready: Ready) -> None:
    with pytest.raises(SampleError, match=r"option '' of sample 0-0 has no token"):
        ready.judge(tiny.prompts()[:1], ["yes", ""])


def test_too_long_an_option_is_refused(ready: Ready) -> None:
    if ready.twin.make in (TWINS["blip2-t5"].make, TWINS["instructblip-t5"].make):
        pytest.skip("T5 counts distances, not positions")
    with pytest.raises(SampleError, match=r"longest option of sample 0-0 has 210\d tokens"):
        ready.judge(tiny.prompts()[:1], ["no", "yes " * 2100])


def test_too_long_a_prompt_is_refused(ready: Ready) -> None:
    prompt = Prompt(sample_id="9", text="dog " * 2100, rows=(0,))
    if ready.twin.make is TWINS["blip2-t5"].make:
        pytest.skip("T5 counts distances, not positions")
    with pytest.raises(SampleError, match=r"sample 9 .*positions"):
        ready.judge([prompt], ["yes"])


def test_an_image_token_in_an_option_is_refused(tmp_path: Path) -> None:
    model = Chat(checkpoint=str(tiny.chat(tmp_path, "llava")))
    model.prepare(tiny.task("choose"))
    encoded = model.encode([model.preprocess(tiny.pictures()[0])])
    with pytest.raises(SampleError, match="sample 5, or an option, holds '<image>'"):
        model.loglikelihood(encoded, [Prompt(sample_id="5", text="what", rows=(0,))], [["yes", "a <image>"]])


@pytest.mark.parametrize("family", tiny.CHATS)
def test_several_images_and_none(family: str, tmp_path: Path) -> None:
    """Qwen2-VL keeps where its text goes on from one call to the next."""
    folder = tiny.chat(tmp_path, family)
    found = []
    for settings in ({}, {"share_images": False}):
        model = Chat(checkpoint=str(folder), **settings)  # type: ignore[arg-type]
        model.prepare(tiny.task("choose"))
        encoded = model.encode([model.preprocess(tiny.pictures()[0]) for _ in range(2)])
        prompts = [
            Prompt(sample_id=str(rows), text="what is the colour", rows=rows) for rows in ((), (0, 1), (), (0,), ())
        ]
        found.append(model.loglikelihood(encoded, prompts, [OPTIONS] * len(prompts)))
        assert found[-1][0] == found[-1][2] == found[-1][4]
        assert found[-1][0] != pytest.approx(found[-1][1], abs=0.1)
    for one, other in zip(*found, strict=True):
        assert one == pytest.approx(other, abs=1e-4)


def tokens(text: str) -> list[int]:
    """A tokenizer that merges at seams: a space belongs to the word after it, alone it is a token of its own."""
    import re

    return [sum(ord(letter) * 7**place for place, letter in enumerate(word)) for word in re.findall(r" ?\w+|\W", text)]


def split(text: str, options: Sequence[str]) -> likelihood.Options:
    prompt = Prompt(sample_id="7", text=text, rows=(0,))
    return likelihood.after(text, prompt, options, lambda texts: [tokens(each) for each in texts])


def test_prompt_and_option_meet_in_one_space() -> None:
    for text in ("answer:", "answer: "):
        found = split(text, ["yes", "no way"])
        assert found.context == tokens("answer:")
        assert found.rows == [tokens(" yes"), tokens(" no way")]
        assert found.starts == [0, 0]
    assert split("answer:\n", ["yes"]).rows == [tokens("yes")]


def test_what_a_tokenizer_merges_at_the_seam_belongs_to_the_option() -> None:
    found = split("the answer is ", ["yes", "?"])
    # "is " ends in a lone space, which " yes" swallows and "?" does not.
    assert found.context == tokens("the answer is")
    assert found.rows == [tokens(" yes"), tokens(" ?")]
    assert found.starts == [0, 1]


def test_options_follow_something() -> None:
    with pytest.raises(SampleError, match="no token before its options"):
        split("", ["yes"])
    with pytest.raises(SampleError, match="option '' of sample 7"):
        split("answer: ", [""])


def test_half_precision_is_summed_in_full() -> None:
    logits = torch.randn(3, 40, 50, generator=torch.Generator().manual_seed(0)).to(torch.bfloat16)
    ids = torch.arange(120).reshape(3, 40) % 50
    ids[1, 7:] = -100
    found = likelihood.log_probability(logits, ids)
    assert found.dtype == torch.float32
    for row, length in enumerate((40, 7, 40)):
        exact = summed(logits[row, :length].double(), ids[row, :length])
        assert float(found[row]) == pytest.approx(exact, rel=1e-6)


def test_what_a_row_shares_with_its_prompt_does_not_count() -> None:
    def told(ids_BL: torch.Tensor, targets_BL: torch.Tensor) -> torch.Tensor:
        assert ((targets_BL == ids_BL) | (targets_BL == -100)).all()
        return targets_BL.clamp(min=0).sum(dim=1).float()

    rows = [[5, 6, 7], [8], [5, 6, 7], [5, 6, 7]]
    options = likelihood.Options([1], rows, [1, 0, 0, 2])
    assert likelihood.in_chunks(options, told, 1, "cpu") == [13, 8, 18, 7]


def test_chunks_are_cut_alike_whatever_the_order(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(likelihood, "_TOKENS_AT_ONCE", 12)
    rows = [[1, 2], [3], [4, 5, 6, 7], [8, 9], [10], [3]]
    seen: list[list[list[int]]] = []

    def told(ids_BL: torch.Tensor, targets_BL: torch.Tensor) -> torch.Tensor:
        seen.append(ids_BL.tolist())
        return ids_BL.sum(dim=1).float()

    for order in (rows, rows[::-1]):
        values = likelihood.in_chunks(likelihood.Options([1, 1], order, [0] * len(order)), told, 2, "cpu")
        assert values == [sum(row) for row in order]
    # 12 tokens are two rows of 2 and 4; short rows come first, and equal ones once.
    assert seen[:3] == seen[3:] == [[[3], [10]], [[1, 2], [8, 9]], [[4, 5, 6, 7]]]
