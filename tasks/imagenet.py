"""ImageNet-1k: which of 1,000 names fits a photograph, without having been trained on them (zero-shot).

Russakovsky et al., "ImageNet Large Scale Visual Recognition Challenge" (IJCV 2015), validation: 50,000 photographs, 50
a class, read as the Kaggle release unpacks them. Protocol: Radford et al., "Learning Transferable Visual Models"
(ICML 2021), 3.1.4; openai/CLIP `notebooks/Prompt_Engineering_for_ImageNet.ipynb`. Metric: top-1 accuracy; only the
best name is kept, so there is no top-5.

What a class is called decides several points, so there are two variants. Published numbers (CLIP ViT-L/14 at 336 pixels
76.55 in CLIP_benchmark) were made with 1,000 names chosen by OpenAI, which `imagenet/val` needs beside the release:
`en_classnames.json` of LAION-AI/CLIP_benchmark (48de38c, `clip_benchmark/datasets/`) in `data.root`, or any list of
names in the order of the synsets; other names than OpenAI's are stamped "custom". `imagenet/wordnet` takes the first
name of each synset, which the release brings itself, and is not comparable with published numbers.

Two of OpenAI's names stand for two classes each ("missile", "sunglasses"; in WordNet "crane", "maillot"). The answer is
a name, and counts for the first class of that name, as the argmax of equal similarities does: nobody reaches more than
99.8 %. The hub's copy (ILSVRC/imagenet-1k) names no image in its rows, so it is not read.
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Mapping

from evalkit.data import IMAGES
from evalkit.errors import DataError
from evalkit.metrics.text import accuracy_metric
from evalkit.prompts import VQA_PROMPTS
from evalkit.types import Dataset, Expected, Sample, Slot, Source, Task

QUESTION = "What is the main object in the photo?"
"""For language models, which no paper asked by likelihood: the question in the forms that they were trained with."""

PUBLISHED_NAMES = "571ae1c583b4be7da87519494c52bf405a46af05d5815627c7a0dee997068b60"
"""sha256 of OpenAI's 1,000 names, a line each: one list in openai/CLIP, open_clip, CLIP_benchmark and big_vision."""


def templates() -> tuple[str, ...]:
    """Return the 80 templates whose embeddings the CLIP paper averages.

    >>> len(set(templates()))
    80
    """
    views = (
        *("bad", "good", "low resolution", "cropped", "bright", "dark", "blurry", "close-up", "pixelated"),
        *("black and white", "jpeg corrupted"),
    )
    kinds = ("hard to see", "clean", "dirty", "cool", "nice", "weird", "large", "small")
    works = ("photo", "sculpture", "rendering", "tattoo", "drawing", "painting", "doodle", "sketch", "rendition")
    makes = ("embroidered", "plastic", "origami", "toy", "cartoon", "plushie")
    both = [
        *(f"a {view} photo of * {{option}}." for view in views),
        *(f"a photo of * {kind} {{option}}." for kind in kinds),
        *(f"a {work} of * {{option}}." for work in works),
        *(f"{work} of * {{option}}." for work in ("art", "graffiti", "itap")),
        *(f"* {make} {{option}}." for make in makes),
        "* {option} in a video game.",
    ]
    one = [f"a photo of {word} {{option}}." for word in ("many", "my", "one")] + ["itap of my {option}."]
    return (*(text.replace("*", article) for text in both for article in ("a", "the")), *one)


BEST = (
    *("itap of a {option}.", "a bad photo of the {option}.", "a origami {option}.", "a photo of the large {option}."),
    *("a {option} in a video game.", "art of the {option}.", "a photo of the small {option}."),
)
"""The seven that the notebook's forward selection kept of the 80; by its text a bit better than all of them."""


def load(source: Source, *, curated: bool) -> Dataset:
    """Read the labels and the names of the classes.

    Args:
        source: Official files.
        curated: Take the names of the slot `classes`, not the release's own.

    Raises:
        DataError: A row without a known synset, or not one name a synset.
    """
    release = _synsets(source)
    names = _curated(source, len(release)) if curated else tuple(release.values())
    places = {synset: place for place, synset in enumerate(release)}
    samples = tuple(
        Sample(
            id=image,
            image_ids=(image,),
            fields={"question": QUESTION},
            reference={"option": places[synset]},
            options=names,
        )
        for image, synset in _labels(source, places)
    )
    digest = hashlib.sha256("\n".join(names).encode("utf-8", "surrogatepass")).hexdigest()
    known = not curated or digest == PUBLISHED_NAMES
    return Dataset(samples=samples, images=source.images(), stamps=() if known else ("custom",))


def _synsets(source: Source) -> dict[str, str]:
    """Return {synset: its first name}, sorted by synset, which is the order of the classes everywhere."""
    file = source.path("synsets").name
    found: dict[str, str] = {}
    for number, line in _lines(source, "synsets"):
        synset, _, words = line.partition(" ")
        name = words.partition(",")[0].strip()
        if not name or synset in found:
            raise DataError(
                f"{file}: line {number} should be a synset and its names, like 'n01440764 tench, Tinca tinca', a "
                f"synset a line, but is {line[:80]!r}"
            )
        found[synset] = name
    return dict(sorted(found.items()))


def _labels(source: Source, synsets: Mapping[str, int]) -> list[tuple[str, str]]:
    """Return (image, synset): a row is `ILSVRC2012_val_00048981,n03995372 85 1 499 272`, with a box or several."""
    file = source.path("solution").name
    (_, head), *rows = _lines(source, "solution")
    if head != "ImageId,PredictionString":
        raise DataError(f"{file} should begin with the line 'ImageId,PredictionString', but begins with {head[:80]!r}")
    found = []
    for number, row in rows:
        image, _, boxes = row.partition(",")
        synset = boxes.strip().partition(" ")[0]
        if not image or synset not in synsets:
            raise DataError(
                f"{file}: line {number} should be an image and a synset of {source.path('synsets').name}, like "
                f"'ILSVRC2012_val_00048981,n03995372 85 1 499 272', but is {row[:80]!r}"
            )
        found.append((image, synset))
    return found


def _lines(source: Source, slot: str) -> list[tuple[int, str]]:
    """Return (number, text) of each line that is not blank."""
    found = [(number, line.strip()) for number, line in enumerate(source.read(slot), 1) if line.strip()]
    if not found:
        raise DataError(f"{source.path(slot)} (data.{slot}) is empty; fetch it again")
    return found


def _curated(source: Source, number: int) -> tuple[str, ...]:
    """Return the names of the slot `classes`: a list, or CLIP_benchmark's object with one under "imagenet1k"."""
    found = source.read("classes")
    if isinstance(found, dict):
        found = found.get("imagenet1k")
    if not isinstance(found, list) or not all(isinstance(name, str) and name.strip() for name in found):
        raise DataError(
            f"{source.path('classes')} (data.classes) should be a list of names, in the order of the synsets, or an "
            "object with such a list under 'imagenet1k'"
        )
    if len(found) != number:
        raise DataError(
            f"{source.path('classes')} (data.classes) has {len(found):,} names for the {number:,} synsets of "
            f"{source.path('synsets').name}; a name a synset, in the order of their ids"
        )
    return tuple(found)


def _right(sample: Sample) -> str:
    return str(sample.options[sample.reference["option"]])


_RELEASE = (
    Slot(name="solution", default="LOC_val_solution.csv", summary="image and synset, the release's CSV"),
    Slot(name="synsets", default="LOC_synset_mapping.txt", summary="synset and names, the release's text"),
    Slot(name=IMAGES, default="ILSVRC/Data/CLS-LOC/val", required=False, summary="folder of the validation images"),
)
_CLASSES = Slot(name="classes", default="en_classnames.json", summary="OpenAI's names, from LAION-AI/CLIP_benchmark")

TASKS = tuple(
    Task(
        name=f"imagenet/{variant}",
        kind="choose",
        summary=f"ImageNet-1k validation, zero-shot: one of 1,000 names ({note})",
        load=functools.partial(load, curated=curated),
        metrics=(accuracy_metric(),),
        primary="accuracy",
        prompts={
            "match": "\n".join(templates()),
            "match-best": "\n".join(BEST),
            "match-bare": "\n".join((*templates(), "{option}")),
            **VQA_PROMPTS,
        },
        prompt_style="match",
        extract="none",
        slots=(*_RELEASE, _CLASSES) if curated else _RELEASE,
        expected=Expected(
            samples=50_000,
            images=50_000,
            fingerprint="1e364656b2016f2359f41a2ff18bad3dfbbe937598dc7907dca471c155d9e921",
            source="ILSVRC2012 validation: ILSVRC2012_val_00000001 to ILSVRC2012_val_00050000",
        ),
        perfect=_right,
    )
    for variant, note, curated in (
        ("val", "OpenAI's names, as published", True),
        ("wordnet", "the release's own names", False),
    )
)
