"""What every model adapter owes, as checks that run on any checkpoint. Public as `evalkit.testing.check_model`.

    findings = check_model(MyModel(checkpoint="tiny"))
    assert not [finding for finding in findings if finding.passed is False]

On a tiny random model they prove the adapter; on your own checkpoint they tell how much of it holds there (half
precision may flip an answer between batches). A check that could not fail says so: `passed` is then None.
"""

from __future__ import annotations

import dataclasses
import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

from evalkit.errors import ImageError, SampleError
from evalkit.types import Decoding, GeneratingModel, Kind, MatchingModel, Model, Prompt, Task

if TYPE_CHECKING:
    from PIL.Image import Image

_SIZES = ((40, 30), (64, 64), (60, 90), (33, 64))
_TEXTS = (
    "Question: what is this? Answer:",
    "Question: how many are there in the photo, and of which colour are most of them? Answer:",
    "a photo of",
    "is the cat red",
    "dog",
)
_OPTIONS = ("yes", "the red cat", "no", "2", "how many are there", "a photo of a dog", "red")
_TOLERANCE = 1e-4
"""The same row in another batch differs in its last bits; scores of pairs are compared up to this."""


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One check of one model."""

    check: str
    """What should hold."""
    passed: bool | None
    """None: it does not apply here, or could not be told."""
    detail: str = ""
    """What was seen."""

    def __str__(self) -> str:
        verdict = {True: "ok", False: "FAILED", None: "--"}[self.passed]
        return f"{verdict:7} {self.check}" + (f": {self.detail}" if self.detail else "")


def check_model(model: Model, *, image_size: int | None = None, distinct: bool = True) -> tuple[Finding, ...]:
    """Run the contract suite of everything the model declares.

    Args:
        model: An adapter; its weights are loaded here.
        image_size: Pixels a side; None: the model's own.
        distinct: Whether nine outputs in ten must differ, as a random tiny model is built to do. For a trained
            checkpoint False: that is then only reported.

    Returns:
        What was checked, in order.
    """
    findings: list[Finding] = []
    if "generate" in model.capabilities:
        generating = cast("GeneratingModel", model)
        findings += _Generation(generating, _task("generate", image_size), distinct).findings()
    if "loglikelihood" in model.capabilities:
        choosing = cast("GeneratingModel", model)
        findings += _Likelihood(choosing, _task("choose", image_size), distinct).findings()
    if "itc" in model.capabilities:
        findings += _Matching(cast("MatchingModel", model), _task("retrieve", image_size)).findings()
    return tuple(findings)


def sample_images() -> list[Image]:
    """Return pictures of coloured blocks in four sizes, each another; always the same ones."""
    import random

    from PIL import Image

    rng = random.Random(7)
    found = []
    for size in _SIZES:
        blocks = Image.new("RGB", (3, 3))
        for x in range(3):
            for y in range(3):
                blocks.putpixel((x, y), (rng.randrange(256), rng.randrange(256), rng.randrange(256)))
        found.append(blocks.resize(size, Image.Resampling.NEAREST))
    return found


def sample_prompts() -> list[Prompt]:
    """Return five prompts about each of the `sample_images`."""
    return [
        Prompt(sample_id=f"{row}-{place}", text=text, rows=(row,))
        for row in range(len(_SIZES))
        for place, text in enumerate(_TEXTS)
    ]


def odd_images() -> dict[str, tuple[Image, Image]]:
    """Return images as files hold them, each beside the plain picture that an adapter should see instead."""
    from PIL import Image

    plain = sample_images()[0]
    thin = plain.resize((1, 5000))
    flat = plain.resize((5000, 1))
    three = plain.resize((50, 3))
    dot = plain.resize((1, 1))
    grey = plain.convert("L")
    see_through = plain.copy()
    see_through.putalpha(128)
    ink = plain.convert("CMYK")
    palette = plain.quantize(16)
    deep = Image.new("I;16", grey.size)
    for x in range(grey.width):
        for y in range(grey.height):
            deep.putpixel((x, y), cast("int", grey.getpixel((x, y))) * 257)
    rotated = io.BytesIO()
    exif = plain.getexif()
    exif[0x0112] = 6
    plain.save(rotated, "PNG", exif=exif)
    moving = io.BytesIO()
    palette.save(moving, "GIF", save_all=True, append_images=[sample_images()[1].resize(palette.size).quantize(16)])
    return {
        "1x1": (dot, dot),
        "1x5000": (thin, thin),
        "5000x1": (flat, flat),
        "three pixels high": (three, three),
        "grey": (grey, grey.convert("RGB")),
        "RGBA": (see_through, plain),
        "CMYK": (ink, ink.convert("RGB")),
        "palette": (palette, palette.convert("RGB")),
        "16-bit": (deep, grey.convert("RGB")),
        "EXIF-rotated": (Image.open(rotated), plain),
        "animated": (Image.open(moving), palette.convert("RGB")),
    }


def _task(kind: Kind, image_size: int | None, decoding: Decoding | None = None) -> Task:
    def no_rows(source: Any) -> Any:
        raise AssertionError("the contract suite brings its own samples")

    return Task(
        name=f"contract/{kind}",
        kind=kind,
        summary="the contract suite's own",
        load=no_rows,
        metrics=(),
        primary="none",
        prompts={"completion": "{question}"},
        image_size=image_size,
        decoding=decoding or Decoding(),
    )


def _opening(model: Model, task: Task, check: str) -> Finding:
    """Prepare a task that the model does not refuse."""
    refusal = model.refuses(task)
    if refusal is None:
        model.prepare(task)
    return Finding(check=check, passed=refusal is None, detail=refusal or "")


class _Prompted:
    """What is asked of a model that reads prompts."""

    def __init__(self, model: GeneratingModel, task: Task, distinct: bool) -> None:
        self.model, self.task, self.distinct = model, task, distinct
        self.images = sample_images()
        self.prompts = sample_prompts()


class _Generation(_Prompted):
    """The checks of text."""

    def findings(self) -> Iterator[Finding]:
        opening = _opening(self.model, self.task, "a greedy task is not refused")
        yield opening
        if not opening.passed:
            return
        plain = self.ask(self.prompts)
        share = len(set(plain)) / len(plain)
        yield Finding(
            check="nine outputs in ten are distinct",
            passed=share >= 0.9 if self.distinct else None,
            detail=f"{len(set(plain))} of {len(plain)}",
        )
        yield self.same("two calls in a row", plain, self.ask(self.prompts))
        yield from self.geometry(Decoding(), "greedy")
        if self.refused(Decoding(num_beams=5)) is None:
            yield from self.geometry(Decoding(num_beams=5), "5 beams")
        yield from self.lengths()
        yield from self.decoding(plain)
        yield from self.ranking()
        yield from self.odd()

    def geometry(self, decoding: Decoding, name: str) -> Iterator[Finding]:
        """Whatever stands beside a prompt, its answer is the same."""
        together = self.ask(self.prompts, decoding)
        encoded = _encode(self.model, self.images)
        alone = [self.model.generate(encoded, [prompt], decoding)[0] for prompt in self.prompts]
        yield self.same(f"a batch of one equals a batch of {len(together)} ({name})", together, alone)
        backwards = self.ask(self.prompts[::-1], decoding)[::-1]
        yield self.same(f"the order of the samples does not matter ({name})", together, backwards)
        singly = [
            self.model.generate(
                _encode(self.model, [self.images[prompt.rows[0]]]), [dataclasses.replace(prompt, rows=(0,))], decoding
            )[0]
            for prompt in self.prompts
        ]
        yield self.same(f"shared encoding equals encoding per question ({name})", together, singly)
        rows = [prompt.rows[0] for prompt in self.prompts]
        moved = [dataclasses.replace(prompt, rows=(place,)) for place, prompt in enumerate(self.prompts)]
        selected = self.model.generate(encoded.select(rows), moved, decoding)
        yield self.same(f"`select` keeps rows and their order ({name})", together, selected)

    def lengths(self) -> Iterator[Finding]:
        """Prompts of no word and of 500 words."""
        for name, text in (
            ("an empty prompt", ""),
            ("a prompt of 500 words", "what is the colour of this " * 83 + "?"),
        ):
            prompt = Prompt(sample_id=name, text=text, rows=(1,))
            try:
                alone = self.ask([prompt])
                beside = self.ask([self.prompts[0], prompt, self.prompts[4]])
            except SampleError as error:
                # Too long for the model's positions: said, not cut.
                yield Finding(check=f"{name} is answered or refused", passed=name in str(error), detail=str(error))
                continue
            yield self.same(f"{name} is answered alike alone and beside others", alone, beside[1:2])
            expected = self.ask([self.prompts[0]]) + self.ask([self.prompts[4]])
            yield self.same(f"{name} does not change its neighbours", expected, beside[::2])

    def decoding(self, plain: Sequence[str]) -> Iterator[Finding]:
        """Each field is honoured or refused."""
        long = Decoding(max_new_tokens=24)
        beams = Decoding(max_new_tokens=24, num_beams=5)
        shorter = self.either("max_new_tokens", Decoding(max_new_tokens=1))
        if shorter is not None:
            fine = all(len(one) <= len(many) for one, many in zip(shorter, plain, strict=True))
            yield self.changed("max_new_tokens shortens", plain, shorter, also=fine)
        yield from self.field("min_new_tokens", long, dataclasses.replace(long, min_new_tokens=24))
        yield from self.field("num_beams", long, beams)
        yield from self.field(
            "length_penalty",
            dataclasses.replace(beams, length_penalty=-8.0),
            dataclasses.replace(beams, length_penalty=8.0),
        )
        yield from self.field("repetition_penalty", long, dataclasses.replace(long, repetition_penalty=5.0))
        yield from self.sampling(plain)
        yield from self.stopping()

    def sampling(self, plain: Sequence[str]) -> Iterator[Finding]:
        """Sampling is a function of (seed, sample id)."""
        warm = Decoding(temperature=1.0)
        drawn = self.either("temperature", warm)
        if drawn is None:
            yield Finding(check="temperature is refused", passed=True, detail=str(self.refused(warm)))
            return
        yield self.changed("temperature", plain, drawn)
        yield self.changed("seed", drawn, self.ask(self.prompts, dataclasses.replace(warm, seed=1)))
        yield self.same("sampling twice", drawn, self.ask(self.prompts, warm))
        alone = [self.ask([prompt], warm)[0] for prompt in self.prompts]
        yield self.same("a sample's noise is its own, whatever the batch", drawn, alone)
        renamed = [dataclasses.replace(prompt, sample_id=f"again-{prompt.sample_id}") for prompt in self.prompts]
        yield self.changed("noise per sample id", drawn, self.ask(renamed, warm))
        for name, narrow in (("top_k", {"top_k": 1}), ("top_p", {"top_p": 1e-6})):
            only_best = self.either(name, dataclasses.replace(warm, **narrow))
            if only_best is not None:
                yield self.same(f"{name} that leaves one token is greedy", plain, only_best)

    def stopping(self) -> Iterator[Finding]:
        """Text ends before the first stop string."""
        for name, base in (("greedy", Decoding()), ("5 beams", Decoding(num_beams=5))):
            if self.refused(base) is not None:
                continue
            free = self.ask(self.prompts, base)
            stop = next((text[1:3] for text in free if len(text) > 3 and text[1:3].strip()), None)
            if stop is None:
                yield Finding(check=f"stop ({name})", passed=None, detail="no output is long enough")
                continue
            ended = self.either("stop", dataclasses.replace(base, stop=(stop,)))
            if ended is not None:
                yield self.same(f"stop cuts ({name})", [text.partition(stop)[0] for text in free], ended)

    def ranking(self) -> Iterator[Finding]:
        """Ranked candidates, or a refusal."""
        if "rank" not in self.model.capabilities:
            refusal = self.refused(Decoding(rank_candidates=3))
            yield Finding(check="rank_candidates is refused", passed=refusal is not None, detail=refusal or "")
            return
        candidates = ["yes", "no", "red", "a cat", "the blue dog", "2", "how many", "photo"]
        encoded = _encode(self.model, self.images)
        for keep in (3, len(candidates)):
            together = self.model.rank(encoded, self.prompts, candidates, keep)
            alone = [self.model.rank(encoded, [prompt], candidates, keep)[0] for prompt in self.prompts]
            yield Finding(check="ranking gives candidates", passed=set(together) <= set(candidates))
            yield self.same(f"ranking {keep} candidates, a batch of one equals a batch of many", together, alone)
        # Only where all are kept: which of those with the same first token are dropped may follow the list.
        backwards = self.model.rank(encoded, self.prompts, candidates[::-1], len(candidates))
        yield self.same("ranking: the candidates' order does not matter", together, backwards)

    def odd(self) -> Iterator[Finding]:
        """Every kind of image is read, and read as RGB."""
        for name, (odd, plain) in odd_images().items():
            prompts = [Prompt(sample_id="odd", text=_TEXTS[0], rows=(0,))]
            try:
                found = self.model.generate(_encode(self.model, [odd]), prompts, Decoding())
                expected = self.model.generate(_encode(self.model, [plain]), prompts, Decoding())
            except (ImageError, SampleError) as error:
                yield Finding(check=f"image: {name}", passed=None, detail=f"refused: {error}")
                continue
            yield self.same(f"image: {name}", expected, found)

    def field(self, name: str, without: Decoding, with_it: Decoding) -> Iterator[Finding]:
        """The field changes something, or is refused."""
        before, after = self.either(name, without), self.either(name, with_it)
        if before is None or after is None:
            refusal = self.refused(with_it) or self.refused(without)
            yield Finding(check=f"{name} is refused", passed=bool(refusal), detail=refusal or "")
            return
        yield self.changed(name, before, after)

    def either(self, name: str, decoding: Decoding) -> list[str] | None:
        """The outputs, or None where the decoding is refused."""
        return None if self.refused(decoding) is not None else self.ask(self.prompts, decoding)

    def refused(self, decoding: Decoding) -> str | None:
        return self.model.refuses(dataclasses.replace(self.task, decoding=decoding))

    def changed(self, name: str, before: Sequence[str], after: Sequence[str], also: bool = True) -> Finding:
        different = sum(one != other for one, other in zip(before, after, strict=True))
        detail = f"{different} of {len(before)} outputs changed"
        # A trained model may well give the same answers; a random one that does has not been told the field.
        passed = also if different else (False if self.distinct else None)
        return Finding(check=f"{name} is honoured", passed=passed, detail=detail)

    def same(self, check: str, expected: Sequence[str], found: Sequence[str]) -> Finding:
        pairs = [(one, other) for one, other in zip(expected, found, strict=True) if one != other]
        detail = f"{len(pairs)} of {len(expected)} differ, such as {pairs[0]!r}" if pairs else ""
        return Finding(check=check, passed=not pairs, detail=detail)

    def ask(self, prompts: Sequence[Prompt], decoding: Decoding | None = None) -> list[str]:
        return self.model.generate(_encode(self.model, self.images), prompts, decoding or Decoding())


class _Likelihood(_Prompted):
    """The checks of options and how likely each is.

    That greedy search writes the likeliest option is none of them: of several tokens it finds the first likeliest, not
    the likeliest whole, and an encoder-decoder's options end where its output may go on.
    """

    def findings(self) -> Iterator[Finding]:
        import numpy as np

        opening = _opening(self.model, self.task, "a choice by likelihood is not refused")
        yield opening
        if not opening.passed:
            return
        encoded = _encode(self.model, self.images)
        together = self.ask(encoded, self.prompts)
        fits = together.shape == (len(self.prompts), len(_OPTIONS))
        yield Finding(check="options have a number each", passed=fits, detail=f"an array {together.shape}")
        if not fits:
            return
        number = bool(np.isfinite(together).all()) and bool((together <= 0).all())
        yield Finding(
            check="numbers are logarithms of probabilities", passed=number, detail=f"at most {together.max():.3g}"
        )
        different = len(np.unique(together.round(3)))
        yield Finding(
            check="nine likelihoods in ten are distinct",
            passed=different >= 0.9 * together.size if self.distinct else None,
            detail=f"{different} of {together.size}",
        )
        yield _close("likelihoods twice", together, self.ask(encoded, self.prompts))
        alone = np.concatenate([self.ask(encoded, [prompt]) for prompt in self.prompts])
        yield _close("likelihoods: a batch of one equals a batch of many", together, alone)
        backwards = self.ask(encoded, self.prompts[::-1])[::-1]
        yield _close("likelihoods: the order of the samples does not matter", together, backwards)
        singly = np.concatenate(
            [
                self.ask(_encode(self.model, [self.images[row]]), [dataclasses.replace(prompt, rows=(0,))])
                for prompt in self.prompts
                for row in prompt.rows
            ]
        )
        yield _close("likelihoods: shared encoding equals encoding per question", together, singly)
        selected = encoded.select([prompt.rows[0] for prompt in self.prompts])
        moved = [dataclasses.replace(prompt, rows=(place,)) for place, prompt in enumerate(self.prompts)]
        yield _close("likelihoods: `select` keeps rows", together, self.ask(selected, moved))
        turned = self.ask(encoded, self.prompts, _OPTIONS[::-1])[:, ::-1]
        yield _close("the order of the options does not matter", together, turned)
        one_by_one = np.concatenate([self.ask(encoded, self.prompts, [option]) for option in _OPTIONS], axis=1)
        yield _close("an option alone is as likely as beside others", together, one_by_one)
        mixed = [_OPTIONS if place % 2 else _OPTIONS[:2] for place in range(len(self.prompts))]
        some = self.model.loglikelihood(encoded, self.prompts, mixed)
        expected = [number for row, each in zip(together, mixed, strict=True) for number in row[: len(each)]]
        found = [number for row in some for number in row]
        yield _close("prompts may have options of their own", np.array(expected), np.array(found))
        yield from self.without_words(encoded)

    def without_words(self, encoded: Any) -> Iterator[Finding]:
        """An option of no word has a likelihood, or is refused; the prompts of no word and of 500 as well."""
        for name, text, options in (
            ("an option of no word", _TEXTS[0], ("yes", "")),
            ("options of an empty prompt", "", _OPTIONS),
            ("options of a prompt of 500 words", "what is the colour of this " * 83 + "?", _OPTIONS),
        ):
            try:
                (values,) = self.model.loglikelihood(encoded, [Prompt(sample_id=name, text=text, rows=(1,))], [options])
            except SampleError as error:
                yield Finding(check=f"{name}: judged or refused", passed=name in str(error), detail=str(error))
                continue
            judged = len(values) == len(options) and all(float("-inf") < value <= 0 for value in values)
            yield Finding(check=f"{name}: judged or refused", passed=judged, detail=f"{values}")

    def ask(self, encoded: Any, prompts: Sequence[Prompt], options: Sequence[str] = _OPTIONS) -> Any:
        """Return the numbers as float64 (prompts, options)."""
        import numpy as np

        return np.array(self.model.loglikelihood(encoded, prompts, [options] * len(prompts)))


class _Matching:
    """The checks of ITC and ITM."""

    def __init__(self, model: MatchingModel, task: Task) -> None:
        self.model, self.task = model, task
        self.images = sample_images()
        self.texts = [*_TEXTS, "what is the colour of this " * 83]

    def findings(self) -> Iterator[Finding]:
        import numpy as np

        opening = _opening(self.model, self.task, "retrieval is not refused")
        yield opening
        if not opening.passed:
            return
        encoded = _encode(self.model, self.images)
        images_IQD, texts_TD = self.model.itc_images(encoded), self.model.itc_texts(self.texts)
        shapes = f"images {images_IQD.shape}, texts {texts_TD.shape}"
        fits = images_IQD.ndim == 3 and texts_TD.ndim == 2 and images_IQD.shape[2] == texts_TD.shape[1]
        fits = fits and len(images_IQD) == len(self.images) and len(texts_TD) == len(self.texts)
        yield Finding(check="embeddings have the shapes (I, Q, D) and (T, D)", passed=fits, detail=shapes)
        if not fits:
            return
        for name, vectors in (("image", images_IQD), ("text", texts_TD)):
            lengths = np.linalg.norm(vectors, axis=-1)
            unit = vectors.dtype == np.float32 and bool(np.allclose(lengths, 1, atol=1e-3))
            yield Finding(check=f"{name} embeddings are float32 of length 1", passed=unit)
        similarity_IT = np.einsum("iqd,td->iqt", images_IQD, texts_TD).max(axis=1)
        yield Finding(
            check="similarities differ", passed=len(np.unique(similarity_IT.round(4))) >= 0.9 * similarity_IT.size
        )
        alone_IQD = np.concatenate([self.model.itc_images(_encode(self.model, [image])) for image in self.images])
        yield _close("image embeddings alone equal those in a batch", images_IQD, alone_IQD)
        alone_TD = np.concatenate([self.model.itc_texts([text]) for text in self.texts])
        yield _close("text embeddings alone equal those in a batch", texts_TD, alone_TD)
        yield _close("two calls in a row", texts_TD, self.model.itc_texts(self.texts))
        yield _close("`select` keeps rows", images_IQD[[2, 0, 0]], self.model.itc_images(encoded.select([2, 0, 0])))
        empty = self.model.itc_texts([""])
        yield Finding(check="an empty text has an embedding", passed=bool(np.isfinite(empty).all()))
        for name, (odd, plain) in odd_images().items():
            expected = self.model.itc_images(_encode(self.model, [plain]))
            yield _close(f"image: {name}", expected, self.model.itc_images(_encode(self.model, [odd])))
        if "itm" in self.model.capabilities:
            yield from self.pairs(encoded)

    def pairs(self, encoded: Any) -> Iterator[Finding]:
        """Each pair is scored by itself."""
        import numpy as np

        rows = [row for row in range(len(self.images)) for _ in self.texts]
        texts = self.texts * len(self.images)
        together = np.array(self.model.itm(encoded.select(rows), texts))
        yield Finding(check="matching scores differ", passed=len(set(together.round(4))) >= 0.9 * len(texts))
        alone = [self.model.itm(encoded.select([row]), [text])[0] for row, text in zip(rows, texts, strict=True)]
        yield _close("a pair alone scores as in a batch", together, np.array(alone))
        backwards = self.model.itm(encoded.select(rows[::-1]), texts[::-1])[::-1]
        yield _close("the order of the pairs does not matter", together, np.array(backwards))


def _encode(model: Model, images: Sequence[Image]) -> Any:
    return model.encode([model.preprocess(image) for image in images])


def _close(check: str, expected: Any, found: Any) -> Finding:
    """Compare numbers up to the last bits that another batch moves."""
    import numpy as np

    if expected.shape != found.shape:
        return Finding(check=check, passed=False, detail=f"shapes {expected.shape} and {found.shape}")
    scale = max(1.0, float(np.abs(expected).max()))
    gap = float(np.abs(expected - found).max()) / scale
    return Finding(check=check, passed=gap <= _TOLERANCE, detail=f"largest difference {gap:.1e}")
