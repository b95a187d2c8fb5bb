"""The vocabulary: what passes between the parts of evalkit. Frozen, keyword-only, standard library only.

A sample's way, and the type it has there:

    Dataset.samples -> Sample -> (plan) Unit -> Prompt -> (model) Prediction -> (extract) Answered -> (metric) Scores
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol, TypeAlias, runtime_checkable

if TYPE_CHECKING:
    from PIL.Image import Image

Json: TypeAlias = Any
"""A value that survives `json.loads(json.dumps(value))` unchanged."""

Kind: TypeAlias = Literal["generate", "choose", "ground", "retrieve"]
Capability: TypeAlias = Literal["generate", "rank", "loglikelihood", "ground", "itc", "itm"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Sample:
    """One question about one or more images. Pure data, never pixels."""

    id: str
    """The dataset's own id, as a string; unique within a task."""
    image_ids: tuple[str, ...]
    """Ids that `Dataset.images` can open; the first one owns the sample (it clusters the intervals)."""
    fields: Mapping[str, str | int] = field(default_factory=dict)
    """What a prompt template and an extraction may use: {question}, {expression}, {width} ..."""
    reference: Json = None
    """What a metric compares with; None on a blind test split."""
    options: tuple[str, ...] = ()
    """A `choose` task: what the model chooses from, in the order in which ties are broken."""
    tags: Mapping[str, str] = field(default_factory=dict)
    """Keys for breakdowns: {"answer_type": "yes/no"}."""


class ImageStore(Protocol):
    """Opens images by id; `missing` looks without decoding."""

    def open(self, image_id: str) -> Image:
        """Return the decoded image, RGB or as stored; raise `ImageError` when it cannot be had whole."""

    def missing(self, image_ids: Sequence[str]) -> list[str]:
        """Return those of `image_ids` that the store has no image for."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Text:
    """A candidate caption of a retrieval task."""

    id: str
    text: str
    image_ids: tuple[str, ...]
    """The images it was written for, by the ids of their samples."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Dataset:
    """One split, loaded: samples and where its images are. Nothing is decoded yet."""

    samples: tuple[Sample, ...]
    images: ImageStore
    texts: tuple[Text, ...] = ()
    """Retrieval only: all candidate captions, in file order."""
    unasked: tuple[str, ...] = ()
    """Ids a submission must also hold, with an empty answer: the server of VQAv2 test-dev wants all of test."""
    candidates: tuple[str, ...] = ()
    """The answer list that `Decoding.rank_candidates` ranks."""
    fingerprint: str = ""
    """sha256 over the sorted sample ids (and text ids), see `data.fingerprint`."""
    stamps: tuple[str, ...] = ()
    """What a reader of a table must know: "custom", "demo", "unchecked"."""
    source: str = ""
    """Where the rows came from, in words, without a path of this machine: "files", "hub lmms-lab/VQAv2@rev"."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Decoding:
    """How text is generated. An adapter honours every field or refuses; none is ignored."""

    max_new_tokens: int = 10
    """Tokens generated at most, the prompt not counted."""
    min_new_tokens: int = 0
    num_beams: int = 1
    length_penalty: float = 1.0
    """Exponent on the length by which a beam's log-probability is divided; matters with beams only."""
    repetition_penalty: float = 1.0
    temperature: float = 0.0
    """0 is greedy (or beam) search; above 0 it samples, with noise drawn per row from (seed, sample id)."""
    top_p: float = 1.0
    top_k: int = 0
    """0: no limit."""
    seed: int = 0
    stop: tuple[str, ...] = ()
    """The output ends before the first of these strings."""
    rank_candidates: int = 0
    """Above 0: rank the task's answer list, this many after the first token, as BLIP's VQA does."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Prompt:
    """What one sample asks of the model."""

    sample_id: str
    text: str
    rows: tuple[int, ...]
    """Rows of the `Encoded` given beside it, in the order in which the text refers to them."""


@runtime_checkable
class Encoded(Protocol):
    """Encoded images, opaque to the engine. Rows may differ in size."""

    def __len__(self) -> int: ...

    def select(self, rows: Sequence[int]) -> Encoded:
        """Return these rows, in this order; a row may be named twice."""


class Model(Protocol):
    """What every adapter has. A model implements the methods of the capabilities it declares.

    The constructor is cheap: it checks its settings and finds the checkpoint. `refuses`, `identity` and `files` work
    without weights; `prepare` loads them.
    """

    capabilities: frozenset[Capability]

    def refuses(self, task: Task) -> str | None:
        """Return why this model cannot do this task as it stands (a decoding field, a kind), or None."""

    def identity(self, task: Task) -> Mapping[str, Json]:
        """Return the settings that change answers: adapter, dtype, attention, quantisation, image backend and size."""

    def files(self, task: Task) -> Mapping[str, Path]:
        """Return the checkpoint's files for this task by relative name; the engine hashes them."""

    def prepare(self, task: Task) -> None:
        """Load the weights this task needs (once) and set its image size. Called in the process that predicts."""

    def preprocess(self, image: Image) -> Any:
        """Return what `encode` takes for one image. CPU only; called in loader threads."""

    def encode(self, inputs: Sequence[Any]) -> Encoded:
        """Encode images once; every question about them shares the result."""


class GeneratingModel(Model, Protocol):
    """Capabilities "generate", "rank" and "ground"."""

    def generate(self, encoded: Encoded, prompts: Sequence[Prompt], decoding: Decoding) -> list[str]:
        """Return the new text for each prompt, the prompt itself left out."""

    def rank(self, encoded: Encoded, prompts: Sequence[Prompt], candidates: Sequence[str], keep: int) -> list[str]:
        """Return the likeliest candidate for each prompt, `keep` of them scored in full ("rank" only)."""

    def loglikelihood(
        self, encoded: Encoded, prompts: Sequence[Prompt], options: Sequence[Sequence[str]]
    ) -> list[list[float]]:
        """Return the summed log-probability of each option after each prompt ("loglikelihood" only).

        Prompt and option are joined by a space unless the prompt ends in one, and tokenized together; what is summed
        are the option's tokens (and, in an encoder-decoder, the end token that T5's own targets have).

        Raises:
            SampleError: An option has no token of its own, or does not fit the model's positions.
        """


class MatchingModel(Model, Protocol):
    """Capability "itc", and "itm" where `itm` is implemented. Arrays are numpy float32.

    "itc" also serves `choose` tasks: the option nearest to the image, see `choice.py`.
    """

    def itc_images(self, encoded: Encoded) -> Any:
        """Return normalised image features (I, Q, D); the similarity is the maximum over Q."""

    def itc_texts(self, texts: Sequence[str]) -> Any:
        """Return normalised text features (T, D)."""

    def itm(self, encoded: Encoded, texts: Sequence[str]) -> list[float]:
        """Return the matching score of row i with texts[i]."""


class StudyingModel(Model, Protocol):
    """A baseline that is told the references before it runs (`majority`, `oracle`)."""

    def study(self, task: Task, dataset: Dataset) -> None:
        """Learn what the baseline needs from the references."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Unit:
    """What is done in one go: images, the samples that ask about them, and their batches."""

    index: int
    image_ids: tuple[str, ...]
    batches: tuple[tuple[Sample, ...], ...]
    """Prompt batches; they belong to the unit, so what stands beside a sample never changes."""

    @property
    def samples(self) -> tuple[Sample, ...]:
        """All samples of the unit, in batch order."""
        return tuple(sample for batch in self.batches for sample in batch)


@dataclass(frozen=True, kw_only=True, slots=True)
class Prediction:
    """One line of the log."""

    sample_id: str
    output: str | None
    """The raw text the model gave; None where there is none (an error, a retrieval line)."""
    prompt: str | None = None
    """None where all samples share it: the 80 templates of a classifier stand in the manifest alone."""
    error: str | None = None
    """Why there is no answer; such a sample is failed, never scored, and tried again on resume."""
    seconds: float = 0.0
    """Wall time of the batch it was in, divided by its samples."""
    pairs: tuple[tuple[str, float, float | None], ...] | None = None
    """Retrieval: (text id, ITC, ITM or None) for the candidates of this image."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Answered:
    """A sample with the answer extracted from its output: what a metric is given."""

    sample: Sample
    answer: Json
    """Text; a box (x1, y1, x2, y2) or None; retrieval: the `pairs` of the prediction."""


@dataclass(frozen=True, kw_only=True, slots=True)
class MetricSettings:
    """What a metric may need from this machine."""

    java: str | None = None
    """Path of a `java` program or a JAVA_HOME; None: JAVA_HOME, then PATH."""
    corenlp: str | None = None
    """Folder with the CoreNLP 3.6.0 jars that SPICE needs."""
    cache: Path | None = None
    """Folder for SPICE parses; None keeps them in memory."""
    names: tuple[str, ...] = ()
    """Only these metrics, by the names that stand in the result; empty: all."""
    texts: tuple[Text, ...] = ()
    """Retrieval: the candidate captions."""
    k: int = 0
    """Retrieval: candidates in each direction that the pairs were made with; 0: all pairs count both ways."""
    threads: int = 0
    """0: as many as there are cores."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Scores:
    """What a metric says: a pure function of answers, references and its version."""

    aggregate: Mapping[str, float] = field(default_factory=dict)
    """Fractions, unrounded (CIDEr with its x10): {"vqa_accuracy": 0.653}."""
    per_sample: Mapping[str, tuple[float | None, ...]] = field(default_factory=dict)
    """For metrics whose aggregate is the mean of these: a value a sample, in input order (None: not counted)."""
    intervals: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    """95 % intervals of what is no mean of samples, such as the recall of texts: {"t2i_R@1": (0.64, 0.68)}."""
    unavailable: Mapping[str, str] = field(default_factory=dict)
    """{metric: why it could not be computed}."""
    details: Mapping[str, Json] = field(default_factory=dict)
    """Breakdowns that only the metric knows, such as GQA's accuracy per structural type."""
    notes: tuple[str, ...] = ()
    """What a reader should know: "12 captions outside the tokenizer's guard"."""
    variant: str | None = None
    """The variant that was computed, where the answers allow no other: "itc" for pairs without ITM scores."""


@dataclass(frozen=True, kw_only=True)
class Metric:
    """A metric as a task uses it; the pure function itself is in `evalkit.metrics`."""

    name: str
    compute: Callable[[Sequence[Answered], MetricSettings], Scores]
    names: tuple[str, ...] = ()
    """The scores that `metrics.names` can choose among; empty: the metric always gives all it has."""
    preflight: Callable[[MetricSettings], Mapping[str, str]] | None = None
    """Tells before a run what cannot be computed on this machine, {score: why}."""
    independent: bool = True
    """A sample's value does not depend on the others, so the score of a group is a mean. CIDEr is not."""


class Source(Protocol):
    """Where a task's rows come from: official files or a hub dataset. See `data.py`."""

    @property
    def kind(self) -> Literal["files", "hub"]:
        """Official files, or a dataset of the hub."""

    def has(self, slot: str) -> bool:
        """Return whether this file was given or stands under its default name."""

    def read(self, slot: str) -> Json:
        """Return the parsed file of this slot; raise `DataError` when it is missing or not whole."""

    def path(self, slot: str) -> Path:
        """Return the file or folder of this slot; raise `DataError` when it is missing."""

    def rows(self) -> Sequence[Mapping[str, Any]]:
        """Return the rows of the hub split, image columns left out."""

    def images(self) -> ImageStore:
        """Return the store of this task's images."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Slot:
    """A file a task reads: `data.<name>=FILE`, or `default` below `data.root`."""

    name: str
    default: str
    """The official file name, relative to `data.root`; images: a folder."""
    required: bool = True
    summary: str = ""


@dataclass(frozen=True, kw_only=True, slots=True)
class Hub:
    """A Hugging Face dataset, pinned."""

    repo: str
    split: str
    config: str | None = None
    revision: str = "main"
    image_column: str = "image"
    image_id_column: str = ""
    """The column that names the image; empty: the split holds no images."""
    image_config: str | None = None
    """The config whose rows hold the images, where it is another one (GQA)."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Expected:
    """The dataset manifest of an official split; None where no source states the number."""

    samples: int | None = None
    images: int | None = None
    texts: int | None = None
    fingerprint: str | None = None
    groups: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    """Samples per tag value: {"domain": {"in-domain": 417, ...}}."""
    source: str = ""


@dataclass(frozen=True, kw_only=True, slots=True)
class ResultFormat:
    """The official result file of a benchmark: a list of {id_key: id, answer_key: answer}."""

    id_key: str
    answer_key: str
    integer_ids: bool = True
    records: int | None = None
    """How many the server wants, where that is not the number of samples (VQAv2 test-dev)."""


@dataclass(frozen=True, kw_only=True)
class Task:
    """The single truth about a benchmark split."""

    name: str
    """family/variant, such as "vqav2/val"; the family is the stem of the file in `tasks/`."""
    kind: Kind
    summary: str
    """One line for `list`."""
    load: Callable[[Source], Dataset]
    """Rows to samples. Decodes no image."""
    metrics: tuple[Metric, ...]
    primary: str
    """The name in `Scores.aggregate` that stands in the leaderboard."""
    prompts: Mapping[str, str] = field(default_factory=dict)
    """Template by style (never by model name): {"completion": "Question: {question} Answer:"}."""
    prompt_style: str = "completion"
    prompt: str | None = None
    """A template that replaces that of the style: set by a protocol or the command line."""
    decoding: Decoding = field(default_factory=Decoding)
    extract: str = "strip"
    """Name of a function in `evalkit.extract`, or several joined by "+"."""
    question_filter: str | None = None
    """Name of a cleaning of the question text before it enters the prompt (LAVIS's "blip"), or None."""
    variant: str | None = None
    """The metric's variant, named in the result: "official", "legacy", "m4c" ..."""
    by_variant: Callable[[str], Metric] | None = None
    """The metric under a variant; None where there is only one."""
    image_size: int | None = None
    """Pixels a side that the protocol feeds the model; None: the model's own."""
    k: int = 128
    """Retrieval: candidates re-ranked by ITM in each direction."""
    slots: tuple[Slot, ...] = ()
    hub: Hub | None = None
    expected: Expected | None = None
    results: ResultFormat | None = None
    breakdowns: tuple[str, ...] = ()
    """Tag keys for which the score is also given per value."""
    perfect: Callable[[Sample], str] | None = None
    """The output of a model that is right; the oracle says it, and the contract suite scores it."""
    majority: Callable[[Sequence[Sample]], str] | None = None
    """The one output that scores best without looking; None: the most frequent perfect output."""
    version: int = 1
    """Raised when numbers move."""

    @property
    def matches(self) -> bool:
        """Whether a `choose` task compares each option's text with the image: its template holds {option}."""
        return self.kind == "choose" and "{option}" in self.template

    @property
    def family(self) -> str:
        """The part before the slash."""
        return self.name.partition("/")[0]

    @property
    def template(self) -> str:
        """The prompt template in force."""
        return self.prompt if self.prompt is not None else self.prompts[self.prompt_style]
