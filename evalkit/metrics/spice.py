"""SPICE (Anderson et al., 2016), by its authors' Java classes, without what they need a big machine and Java 8 for.

SPICE parses every caption into tuples (objects, attributes, relations) and compares the graphs of hypothesis and
references. Parsing is nearly all of its time, and a pure function of the tokenized caption, so parses are kept, in
memory and, where a folder is given, on disk: references are parsed once, later runs only parse their hypotheses.

Two workers: one parses (CoreNLP 3.6.0 without its named entities, which SPICE never reads) and lives only while there
is something to parse; the other builds graphs and scores. SPICE merges graph nodes in the order of identity hashes, so
ties can fall differently from call to call; in the scoring JVM all identity hashes are equal, which makes the score a
function of the captions.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, TypeAlias

from evalkit.errors import MetricError
from evalkit.metrics.java import Failure, Java, Progress, Setup, Worker, answer_each, find_java, scorer_file, worker
from evalkit.types import MetricSettings

Tuples: TypeAlias = list[list[str]]
"""A parse: (noun), (noun, attribute) or (subject, object, relation), in SPICE's own order."""

CATEGORIES = ("All", "Object", "Attribute", "Relation", "Cardinality", "Color", "Size")
MAX_WORDS = 100
"""A longer caption is not given to the parser, which sees one sentence, the punctuation having gone: 100 words take
it 7 s and 1.1 GB, 200 words 35 s and 2.1 GB."""
CORENLP = "3.6.0"
_ANNOTATORS = "tokenize,ssplit,parse,lemma"
_PROPERTIES = {"annotators": _ANNOTATORS, "depparse.extradependencies": "MAXIMAL"}
_CHUNK = 200


@dataclass(frozen=True, slots=True)
class Category:
    """Precision, recall and F-measure over the tuples of one kind; None where the references have none."""

    f: float | None
    precision: float | None
    recall: float | None
    tp: int
    fp: int
    fn: int


@dataclass(frozen=True, slots=True)
class SpiceScore:
    """SPICE of one image."""

    categories: Mapping[str, Category]
    hypothesis_tuples: tuple[tuple[str, ...], ...]
    matched_tuples: tuple[tuple[str, ...], ...]
    """Those of the hypothesis that the references have, synonyms counted."""
    reference_tuples: tuple[tuple[str, ...], ...]

    @property
    def f(self) -> float:
        """Return the score: F over all tuples, 0 where there are none."""
        return self.categories["All"].f or 0.0


def spice(pairs: Sequence[tuple[str, Sequence[str]]], settings: MetricSettings) -> list[SpiceScore | Failure]:
    """Return SPICE of each (hypothesis, references), all tokenized; a Failure for what cannot be scored.

    Raises:
        MetricError: Java, CoreNLP or SPICE's jars are missing or do not run.
    """
    java = find_java(settings.java)
    jars = spice_jars(settings.corenlp)
    keyed = [(hypothesis, tuple(references)) for hypothesis, references in pairs]
    new = [pair for pair in dict.fromkeys(keyed) if pair not in _SCORES]
    if len(_SCORES) + len(new) > _MAX_KEPT:
        _SCORES.clear()
        new = list(dict.fromkeys(keyed))
    failed: dict[tuple[str, tuple[str, ...]], Failure] = {}
    if new:
        parses = parse(
            java, jars, [text for hypothesis, references in new for text in (*references, hypothesis)], settings
        )
        fit = []
        for pair in new:
            wrong = next((parses[text] for text in (*pair[1], pair[0]) if isinstance(parses[text], Failure)), None)
            if isinstance(wrong, Failure):
                failed[pair] = wrong
            else:
                fit.append(pair)
        items = [[parses[pair[0]], [parses[text] for text in pair[1]]] for pair in fit]
        answers = answer_each(_scorer(java, jars), list, items, chunk=500, seconds=60.0, chunk_seconds=300.0)
        for pair, answer in zip(fit, answers, strict=True):
            if isinstance(answer, Failure):
                failed[pair] = answer
            else:
                _SCORES[pair] = _score(answer)
    return [failed[pair] if pair in failed else _SCORES[pair] for pair in keyed]


_SCORES: dict[tuple[str, tuple[str, ...]], SpiceScore] = {}
_MAX_KEPT = 500_000


def _score(entry: Mapping[str, Any]) -> SpiceScore:
    def number(value: Any) -> float | None:
        return None if value is None else float(value)

    def category(each: Mapping[str, Any]) -> Category:
        f, precision, recall = (number(each[key]) for key in ("f", "pr", "re"))
        return Category(f, precision, recall, int(each["tp"]), int(each["fp"]), int(each["fn"]))

    def tuples(rows: Iterable[Mapping[str, Any]]) -> tuple[tuple[str, ...], ...]:
        return tuple(sorted(tuple(row["tuple"]) for row in rows))

    return SpiceScore(
        categories={name: category(entry["scores"][name]) for name in CATEGORIES},
        hypothesis_tuples=tuples(entry["test_tuples"]),
        matched_tuples=tuples(row for row in entry["test_tuples"] if row["truth_value"]),
        reference_tuples=tuples(entry["ref_tuples"]),
    )


def category_means(scores: Sequence[SpiceScore]) -> dict[str, float]:
    """Return the mean F of each category over the images whose references have such tuples, as its readers do.

    >>> none, half = Category(None, None, None, 0, 1, 0), Category(0.5, 0.5, 0.5, 1, 1, 1)
    >>> one = SpiceScore({**dict.fromkeys(CATEGORIES, half), "Color": none}, (), (), ())
    >>> means = category_means([one])
    >>> means["Object"], "Color" in means
    (0.5, False)
    """
    means: dict[str, float] = {}
    for name in CATEGORIES:
        values = [value for score in scores if (value := score.categories[name].f) is not None]
        if values:
            means[name] = math.fsum(values) / len(values)
    return means


# --- jars and workers ------------------------------------------------------------------------------------------------


def spice_jars(corenlp: str | None) -> tuple[Path, ...]:
    """Return the class path: SPICE's own jars, then CoreNLP's code and models.

    Raises:
        MetricError: With one sentence on how to get what is missing.
    """
    main = scorer_file("spice/spice-1.0.jar")
    libraries = sorted(scorer_file("spice/lib").glob("*.jar"))
    way_out = (
        f"get CoreNLP {CORENLP} with `mvn dependency:copy -Dartifact=edu.stanford.nlp:stanford-corenlp:{CORENLP} "
        f"-DoutputDirectory=DIR` and again with `:jar:models` behind the version, and give metrics.corenlp=DIR"
    )
    if not corenlp:
        raise MetricError(f"metrics.corenlp is not set; {way_out}.")
    folder = Path(corenlp).expanduser()
    found = sorted(folder.glob(f"**/stanford-corenlp-{CORENLP}*.jar")) if folder.is_dir() else []
    code = [jar for jar in found if jar.name == f"stanford-corenlp-{CORENLP}.jar"]
    models = [jar for jar in found if jar.name.startswith(f"stanford-corenlp-{CORENLP}-models")]
    if not code or not models:
        lacking = "folder" if not folder.is_dir() else "code jar" if not code else "models jar"
        raise MetricError(f"metrics.corenlp={corenlp} has no {lacking} of CoreNLP {CORENLP}; {way_out}.")
    return (main, *libraries, code[0], models[-1])


def _worker(java: Java, jars: tuple[Path, ...], name: str, *options: str, **arguments: Any) -> Worker:
    common = ("-XX:+UseSerialGC", "-XX:+ExitOnOutOfMemoryError", "-Duser.language=en", "-Duser.country=US")
    quiet = "-Dorg.slf4j.simpleLogger.defaultLogLevel=error"
    service = f"evalkit.metrics.spice:{name}"
    return worker(Setup(service, java, jars, (*options, *common, quiet), tuple(sorted(arguments.items()))))


def _parser(java: Java, jars: tuple[Path, ...], threads: int) -> Worker:
    return _worker(java, jars, "ParsingService", "-Xmx2g", threads=threads)


def _scorer(java: Java, jars: tuple[Path, ...]) -> Worker:
    # hashCode=2: the same identity hash for all objects, so that ties fall the same way every time.
    return _worker(java, jars, "ScoringService", "-Xmx1g", "-XX:+UnlockExperimentalVMOptions", "-XX:hashCode=2")


class _Classes:
    """SPICE's classes and its protected members, reached through reflection."""

    def __init__(self, threads: int) -> None:
        import jpype

        self.jclass, self.string = jpype.JClass, jpype.JString
        self.list = jpype.JClass("java.util.ArrayList")
        self.json = jpype.JClass("org.json.simple.JSONValue")
        self.parser = jpype.JClass("edu.anu.spice.SpiceParser")(None, jpype.JInt(threads), True)

    def member(self, of: Any, name: str) -> Any:
        """Return the accessible field of that name."""
        field = of.getClass().getDeclaredField(self.string(name))
        field.setAccessible(True)
        return field


class ParsingService:
    """Runs in the worker: captions to tuples."""

    def __init__(self, threads: int) -> None:
        import jpype

        self._java = java = _Classes(threads)
        annotator = java.member(java.parser, "annotator").get(java.parser)
        properties = java.jclass("java.util.Properties")()
        for key, value in {**_PROPERTIES, "threads": str(threads)}.items():
            properties.setProperty(key, value)
        pipeline = java.jclass("edu.stanford.nlp.pipeline.StanfordCoreNLP")(properties)
        java.member(annotator, "pipeline").set(annotator, pipeline)
        method = java.parser.getClass().getDeclaredMethod("generateTuples", [jpype.JClass("java.util.List").class_])
        method.setAccessible(True)
        self._generate = method

    def answer(self, request: Any) -> list[Tuples]:
        """Parse distinct captions."""
        captions = self._java.list()
        for caption in request:
            captions.add(self._java.string(caption))
        answer = self._generate.invoke(self._java.parser, [captions])
        tuples = json.loads(str(self._java.json.toJSONString(answer)))
        return [tuples[caption] for caption in request]


class ScoringService:
    """Runs in the worker: tuples to scores."""

    def __init__(self) -> None:
        self._java = java = _Classes(1)
        self._synonyms = java.member(java.parser, "synonyms").get(java.parser)
        self._graph = java.jclass("edu.anu.spice.SceneGraph")
        self._stats = java.jclass("edu.anu.spice.SpiceStats")
        kinds = java.jclass("edu.anu.spice.TupleFilter")
        self._filters = java.jclass("java.util.HashMap")()
        for name in CATEGORIES[1:]:
            self._filters.put(java.string(name), getattr(kinds, f"{name.lower()}Filter"))

    def answer(self, request: Any) -> Any:
        """Score (tuples of the hypothesis, tuples of each reference) pairs."""
        stats = self._stats(self._filters, True)
        for index, (hypothesis, references) in enumerate(request):
            stats.score(self._java.string(str(index)), self._of([hypothesis]), self._of(references), True)
        return json.loads(str(stats.toJSONString()))

    def _of(self, parses: Sequence[Tuples]) -> Any:
        graph = self._graph(self._synonyms, True)
        for tuples in parses:
            for row in tuples:
                words = self._java.list()
                for word in row:
                    words.add(self._java.string(word))
                graph.addTuple(words)
        return graph


# --- parses ----------------------------------------------------------------------------------------------------------


def parse(
    java: Java, jars: tuple[Path, ...], captions: Iterable[str], settings: MetricSettings
) -> dict[str, Tuples | Failure]:
    """Return the tuples of each distinct tokenized caption, parsing only what is not kept.

    Raises:
        WorkerError: The parser does not run here.
    """
    kept = ParseStore.of(settings.cache)
    result: dict[str, Tuples | Failure] = {}
    new: list[str] = []
    for caption in dict.fromkeys(captions):
        known = kept.get(caption)
        if known is not None:
            result[caption] = known
        elif reason := _too_long(caption):
            result[caption] = Failure(reason)
        elif not caption.strip():
            result[caption] = []
        else:
            new.append(caption)
    if not new:
        return result
    living = _parser(java, jars, settings.threads or os.cpu_count() or 1)
    progress = Progress("SPICE parses captions", len(new))

    def keep(start: int, answers: Sequence[Any]) -> None:
        kept.add(zip(new[start : start + len(answers)], answers, strict=True))
        progress.add(len(answers))

    try:
        answers = answer_each(living, list, new, chunk=_CHUNK, seconds=120.0, chunk_seconds=900.0, done=keep)
    finally:
        living.stop()  # it holds more than a gigabyte, and the next captions are seconds away at the earliest
    result.update(zip(new, answers, strict=True))
    return result


def _too_long(caption: str) -> str | None:
    """Return why a caption is not given to the parser, None where it is."""
    words = len(caption.split())
    if words > MAX_WORDS:
        return (
            f"a caption of {words} words (SPICE is asked up to {MAX_WORDS}: its time and memory grow fast with length)"
        )
    return None


class ParseStore:
    """Parses by caption, in memory and, with a folder, in a file of JSON lines that survives a kill.

    The file's name carries the versions a parse depends on. Each chunk is appended and flushed under a lock, so several
    processes may share a folder; what a killed one left behind without a line end is cut off before the next append.
    """

    _open: dict[tuple[Path | None, str], ParseStore] = {}  # noqa: RUF012 - the stores of this process

    def __init__(self, folder: Path | None, version: str) -> None:
        self._parses: dict[str, Tuples] = {}
        self._path = folder / f"spice-parses-{version}.jsonl" if folder else None
        self._read = 0

    @classmethod
    def of(cls, folder: Path | None) -> ParseStore:
        """Return this process's store for the folder."""
        version = parse_version()
        store = cls._open.setdefault((folder, version), cls(folder, version))
        store._refresh()
        return store

    def get(self, caption: str) -> Tuples | None:
        """Return the kept parse, None where there is none."""
        return self._parses.get(caption)

    def __len__(self) -> int:
        return len(self._parses)

    def add(self, parses: Iterable[tuple[str, Tuples]]) -> None:
        """Keep parses, on disk before this returns."""
        new = dict(parses)
        self._parses.update(new)
        if not self._path or not new:
            return
        data = "".join(json.dumps([caption, tuples]) + "\n" for caption, tuples in new.items()).encode("ascii")
        self._path.parent.mkdir(parents=True, exist_ok=True)
        with open(self._path, "a+b") as file, _locked(file):
            file.truncate(_whole(file))
            file.seek(0, os.SEEK_END)
            file.write(data)
            file.flush()
            os.fsync(file.fileno())

    def _refresh(self) -> None:
        """Read what has been appended since the last time, by whichever process."""
        if not self._path or not self._path.is_file():
            return
        with open(self._path, "rb") as file:
            if file.seek(0, os.SEEK_END) < self._read:
                self._read = 0  # somebody began the file anew
            file.seek(self._read)
            for line in file:
                if not line.endswith(b"\n"):
                    break  # torn: its parse will be made again
                with contextlib.suppress(ValueError):  # a damaged line, too
                    caption, tuples = json.loads(line)
                    self._parses[caption] = tuples
                self._read += len(line)


def parse_version() -> str:
    """Return what a parse depends on, for a file name: SPICE, CoreNLP, its annotators and their settings."""
    settings = json.dumps(_PROPERTIES, sort_keys=True)
    return f"1.0-corenlp-{CORENLP}-{hashlib.sha256(settings.encode()).hexdigest()[:8]}"


def _whole(file: IO[bytes]) -> int:
    """Return the length of the file up to its last line end."""
    end = file.seek(0, os.SEEK_END)
    while end > 0:
        start = max(0, end - 65536)
        file.seek(start)
        place = file.read(end - start).rfind(b"\n")
        if place >= 0:
            return start + place + 1
        end = start
    return 0


@contextlib.contextmanager
def _locked(file: IO[bytes]) -> Iterator[None]:
    try:
        import fcntl
    except ImportError:  # Windows: one process a folder
        yield
        return
    fcntl.flock(file, fcntl.LOCK_EX)
    try:
        yield
    finally:
        fcntl.flock(file, fcntl.LOCK_UN)
