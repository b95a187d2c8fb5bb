"""The contract suite: it holds for every adapter, and catches adapters that break it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from evalkit.contracts import Finding, check_model
from evalkit.models.blip import Blip
from evalkit.models.blip2 import Blip2
from evalkit.models.chat import Chat
from evalkit.models.clip import Clip
from evalkit.models.fake import Fake
from evalkit.models.instructblip import InstructBlip
from evalkit.types import Decoding, Encoded, Model, Prompt, Task

from . import tiny


def blip2_opt(folder: Path) -> Model:
    return Blip2(checkpoint=str(tiny.blip2_text(folder)))


def blip2_flant5(folder: Path) -> Model:
    return Blip2(checkpoint=str(tiny.blip2_text(folder, "t5")))


def blip2_matching(folder: Path) -> Model:
    return Blip2(checkpoint=str(tiny.blip2_matching(folder)), generate=None, retrieve=".")


def blip_vqa(folder: Path) -> Model:
    return Blip(checkpoint=str(tiny.blip(folder, "vqa")), head="vqa", encoder_token=5, label_smoothing=0.1)


def blip_caption(folder: Path) -> Model:
    return Blip(checkpoint=str(tiny.blip(folder, "caption")), head="caption")


def blip_retrieve(folder: Path) -> Model:
    return Blip(checkpoint=str(tiny.blip(folder, "retrieve")), head="retrieve", encoder_token=5)


def instructblip_flant5(folder: Path) -> Model:
    return InstructBlip(checkpoint=str(tiny.instructblip(folder, "t5")))


def instructblip_vicuna(folder: Path) -> Model:
    return InstructBlip(checkpoint=str(tiny.instructblip(folder, "llama")))


def clip(folder: Path) -> Model:
    return Clip(checkpoint=str(tiny.dual(folder, "clip")))


def siglip(folder: Path) -> Model:
    return Clip(checkpoint=str(tiny.dual(folder, "siglip")))


ADAPTERS: tuple[Callable[[Path], Model], ...] = (
    blip2_opt,
    blip2_flant5,
    blip2_matching,
    blip_vqa,
    blip_caption,
    blip_retrieve,
    instructblip_flant5,
    instructblip_vicuna,
    clip,
    siglip,
)


def chat(family: str) -> Callable[[Path], Model]:
    def build(folder: Path) -> Model:
        return Chat(checkpoint=str(tiny.chat(folder, family)))

    build.__name__ = family
    return build


@pytest.mark.parametrize("build", [*ADAPTERS, *map(chat, tiny.CHATS)], ids=lambda build: build.__name__)
def test_contract(build: Callable[[Path], Model], tmp_path: Path) -> None:
    findings = check_model(build(tmp_path))
    assert len(findings) > 15
    assert not [str(finding) for finding in findings if finding.passed is False]
    undecided = [str(finding) for finding in findings if finding.passed is None]
    # Only Qwen's image processors refuse anything: images 200 times as long as wide.
    assert all("aspect ratio" in line for line in undecided)
    assert len(undecided) <= 2


def failed(model: Model) -> list[str]:
    return [finding.check for finding in check_model(model, distinct=False) if finding.passed is False]


class BatchBound(Fake):
    """Answers differently in company, as right padding does."""

    def generate(self, encoded: Encoded, prompts: Sequence[Prompt], decoding: Decoding) -> list[str]:
        return [f"{len(prompts)} {text}" for text in super().generate(encoded, prompts, decoding)]


class Deaf(Fake):
    """Ignores its decoding."""

    def generate(self, encoded: Encoded, prompts: Sequence[Prompt], decoding: Decoding) -> list[str]:
        return super().generate(encoded, prompts, Decoding())


class Blind(Fake):
    """Looks at the first image only."""

    def generate(self, encoded: Encoded, prompts: Sequence[Prompt], decoding: Decoding) -> list[str]:
        return super().generate(encoded.select([0] * len(encoded)), prompts, decoding)


class Forgetful(Fake):
    """Changes with every call."""

    calls = 0

    def generate(self, encoded: Encoded, prompts: Sequence[Prompt], decoding: Decoding) -> list[str]:
        self.calls += 1
        return [f"{self.calls} {text}" for text in super().generate(encoded, prompts, decoding)]


class Judge(Fake):
    """A fake of which only the likelihoods are looked at; `numbers` spoils them."""

    capabilities = frozenset({"loglikelihood"})

    def loglikelihood(
        self, encoded: Encoded, prompts: Sequence[Prompt], options: Sequence[Sequence[str]]
    ) -> list[list[float]]:
        rows = [self.spoilt(prompt, each) for prompt, each in zip(prompts, options, strict=True)]
        found = super().loglikelihood(encoded, prompts, [[text for text, _ in row] for row in rows])
        return [
            [number + plus for number, (_, plus) in zip(numbers, row, strict=True)]
            for numbers, row in zip(found, rows, strict=True)
        ]

    def spoilt(self, prompt: Prompt, options: Sequence[str]) -> list[tuple[str, float]]:
        """Return what is judged in place of each option, and what is added."""
        return [(option, 0.0) for option in options]


class Padded(Judge):
    """Counts the padding that a longer option beside it brings."""

    def spoilt(self, prompt: Prompt, options: Sequence[str]) -> list[tuple[str, float]]:
        longest = max(map(len, options))
        return [(option, (len(option) - longest) / 10) for option in options]


class Placed(Judge):
    """Prefers what stands first."""

    def spoilt(self, prompt: Prompt, options: Sequence[str]) -> list[tuple[str, float]]:
        return [(option, -place / 1000) for place, option in enumerate(options)]


class Sure(Judge):
    """Gives odds where logarithms are due."""

    def spoilt(self, prompt: Prompt, options: Sequence[str]) -> list[tuple[str, float]]:
        return [(option, 10.0) for option in options]


class Indifferent(Judge):
    """Finds all options alike."""

    def spoilt(self, prompt: Prompt, options: Sequence[str]) -> list[tuple[str, float]]:
        return [("", 0.0) for _ in options]


class Crowded(Judge):
    """Is moved by what is asked beside a prompt."""

    def loglikelihood(
        self, encoded: Encoded, prompts: Sequence[Prompt], options: Sequence[Sequence[str]]
    ) -> list[list[float]]:
        found = super().loglikelihood(encoded, prompts, options)
        return [[number - len(prompts) / 10 for number in row] for row in found]


class OneImage(Judge):
    """Looks at the first image only."""

    def loglikelihood(
        self, encoded: Encoded, prompts: Sequence[Prompt], options: Sequence[Sequence[str]]
    ) -> list[list[float]]:
        return super().loglikelihood(encoded.select([0] * len(encoded)), prompts, options)


class OneList(Judge):
    """Takes the first prompt's options for everybody's."""

    def loglikelihood(
        self, encoded: Encoded, prompts: Sequence[Prompt], options: Sequence[Sequence[str]]
    ) -> list[list[float]]:
        return super().loglikelihood(encoded, prompts, [options[0]] * len(options))


class Moody(Judge):
    """Changes with every call."""

    calls = 0

    def spoilt(self, prompt: Prompt, options: Sequence[str]) -> list[tuple[str, float]]:
        self.calls += 1
        return [(option, -self.calls / 10) for option in options]


class Shy(Fake):
    """Refuses everything."""

    def refuses(self, task: Task) -> str | None:
        return "no"


def test_finds_what_is_wrong() -> None:
    assert any("batch of one" in check for check in failed(BatchBound()))
    assert any("shared encoding" in check for check in failed(Blind()))
    assert "two calls in a row" in failed(Forgetful())
    assert failed(Shy()) == [
        "a greedy task is not refused",
        "a choice by likelihood is not refused",
        "retrieval is not refused",
    ]
    deaf = {finding.check for finding in check_model(Deaf()) if finding.passed is False}
    assert {"num_beams is honoured", "length_penalty is honoured", "temperature is honoured"} <= deaf
    assert {"repetition_penalty is honoured", "min_new_tokens is honoured", "stop cuts (greedy)"} <= deaf


def test_finds_what_is_wrong_with_likelihoods() -> None:
    assert failed(Judge()) == []
    assert failed(Padded()) == [
        "an option alone is as likely as beside others",
        "prompts may have options of their own",
    ]
    assert "the order of the options does not matter" in failed(Placed())
    assert "numbers are logarithms of probabilities" in failed(Sure())
    assert "likelihoods: a batch of one equals a batch of many" in failed(Crowded())
    assert "likelihoods: shared encoding equals encoding per question" in failed(OneImage())
    assert "prompts may have options of their own" in failed(OneList())
    assert "likelihoods twice" in failed(Moody())
    alike = {finding.check for finding in check_model(Indifferent()) if finding.passed is False}
    assert alike == {"nine likelihoods in ten are distinct"}


def test_a_finding_reads_as_a_line() -> None:
    assert str(Finding(check="stop", passed=False, detail="seen")) == "FAILED  stop: seen"
    assert str(Finding(check="stop", passed=None)) == "--      stop"
