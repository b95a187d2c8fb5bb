"""Where samples come from: official files or a hub dataset, checked before anything runs.

`load_dataset` is the one entry: it builds the `Source` that a task's `load` reads, checks what came out (ids, images,
the official counts) and stamps what a reader of a table must know. No image is decoded here.
"""

from __future__ import annotations

import dataclasses
import gzip
import hashlib
import json
import zlib
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from evalkit.errors import ConfigError, DataError, unknown
from evalkit.hub import HubSource
from evalkit.images import MAX_PIXELS, FolderImages
from evalkit.pickles import load_plain
from evalkit.types import Dataset, Expected, ImageStore, Json, Sample, Slot, Task, Text

__all__ = [
    "FilesSource",
    "check_expected",
    "check_images",
    "check_samples",
    "fingerprint",
    "load_dataset",
    "read_json",
    "summarize",
]

IMAGES = "images"
"""The slot that is a folder of images, not a file of samples: giving it makes no custom set."""


def load_dataset(
    task: Task,
    *,
    kind: Literal["files", "hub"],
    root: Path | None = None,
    given: Mapping[str, Path] | None = None,
    check: bool = True,
    images_needed: bool = True,
    demo: bool = False,
    max_pixels: int = MAX_PIXELS,
) -> Dataset:
    """Load, check and stamp the dataset of a task.

    Args:
        task: Its `load`, slots, hub address and manifest are used.
        kind: Official files, or a dataset of the hub.
        root: Folder of the official files; with "hub", a local folder of the dataset's parquet files.
        given: Files named one by one, by slot; they make a set "custom", which no manifest describes.
        check: Hold the set against the task's manifest; False stamps "unchecked".
        images_needed: Whether images will be opened; scoring needs none. All must then be there.
        demo: The set is the picture world: stamped "demo", not held against the manifest.
        max_pixels: Width times height an image may have.

    Raises:
        ConfigError: A slot the task does not have; a task that is not on the hub.
        DataError: Files missing or broken, ids that clash, images missing, or not the official set.
    """
    source: FilesSource | HubSource
    if kind == "files":
        source = FilesSource(task.slots, root, given or {}, task.family, max_pixels=max_pixels)
        if demo and not all(source.has(slot.name) for slot in task.slots if slot.required):
            raise DataError(
                f"the picture world (data=demo) has nothing for {task.name}; it has the default variants of suite=all. "
                "Give the official files with data=files data.root=DIR"
            )
    else:
        source = HubSource(task, root=root, given=given or {}, max_pixels=max_pixels)
    dataset = task.load(source)
    check_samples(dataset.samples, task.name)
    stamps = [*dataset.stamps]
    if demo:
        stamps.append("demo")
    elif source.custom:
        stamps.append("custom")
    elif not check:
        stamps.append("unchecked")
    elif task.expected is not None:
        check_expected(dataset, task.expected, task)
    dataset = dataclasses.replace(
        dataset,
        fingerprint=fingerprint(dataset.samples, dataset.texts),
        stamps=tuple(dict.fromkeys(stamps)),
        source=dataset.source or source.description,
    )
    if images_needed:
        check_images(dataset, task.name)
    return dataset


class FilesSource:
    """A task's official files: those given by slot, the others under their default names.

    A default name is looked for in `root`, `root/<family>` and `root/coco` (the tasks on COCO images share that
    folder), there also gzipped. A file given by slot makes a custom set, and then a companion the task can do without
    is read only if it is given too: a stray `dataset_coco.json` must not silently cut somebody's own annotations.
    """

    kind: Literal["files"] = "files"

    def __init__(
        self,
        slots: Sequence[Slot],
        root: Path | None,
        given: Mapping[str, Path],
        family: str,
        *,
        max_pixels: int = MAX_PIXELS,
    ) -> None:
        self._slots = {slot.name: slot for slot in slots}
        for name in given:
            if name not in self._slots:
                raise ConfigError(unknown(f"file slot of {family}", name, self._slots, "as data.<slot>=FILE"))
        if root is not None and not root.is_dir():
            raise DataError(f"data.root={root} is not a folder; give the one in which the official files are")
        self._root = root
        self._given = dict(given)
        self._family = family
        self._max_pixels = max_pixels
        self._read: dict[str, Json] = {}

    @property
    def custom(self) -> bool:
        """Whether samples come from a file given by slot."""
        return any(name != IMAGES for name in self._given)

    @property
    def description(self) -> str:
        """Where the rows come from, in words without a path."""
        return "files given by hand" if self.custom else "files"

    def has(self, slot: str) -> bool:
        """Return whether this file was given or stands under its default name (see the class)."""
        self._slot(slot)
        if slot in self._given:
            return True
        if self.custom and not self._slots[slot].required:
            return False
        return self._default(slot) is not None

    def path(self, slot: str) -> Path:
        """Return the file or folder of this slot; raise `DataError` when it is missing."""
        entry = self._slot(slot)
        if slot in self._given:
            path = self._given[slot]
            if not path.exists():
                raise DataError(f"data.{slot}={path} does not exist")
            return path
        found = self._default(slot)
        if found is not None:
            return found
        what = f" ({entry.summary})" if entry.summary else ""
        if self._root is None:
            raise DataError(
                f"{self._family} needs its {slot}{what}: give data.{slot}=FILE, "
                f"or data.root=DIR with {entry.default} in it"
            )
        looked = ", ".join(str(place) for place in self._places(slot))
        raise DataError(
            f"{self._family} needs its {slot}{what}: give data.{slot}=FILE; not found: {looked} (nor with .gz)"
        )

    def read(self, slot: str) -> Json:
        """Return the parsed file of this slot, gzipped or not, parsed once: JSON, or a plain pickle (`*.p`).

        A slot whose official file is text (`*.csv`, `*.txt`) gives its lines, whatever the file given is called.
        """
        if slot not in self._read:
            path = self.path(slot)
            name = f"{path} (data.{slot})"
            if self._slots[slot].default.endswith((".csv", ".txt")):
                self._read[slot] = _lines(_bytes(path, name), name)
            elif path.name.removesuffix(".gz").endswith((".p", ".pkl", ".pickle")):
                self._read[slot] = load_plain(_bytes(path, name), name)
            else:
                self._read[slot] = read_json(path, name)
        return self._read[slot]

    def rows(self) -> Sequence[Mapping[str, Any]]:
        """Files have no rows."""
        raise AssertionError("a task reads `rows` of a hub source only")

    def images(self) -> ImageStore:
        """Return the store of this task's images; without a folder it says so when an image is asked for."""
        if IMAGES not in self._slots:
            return FolderImages(self._root, max_pixels=self._max_pixels)
        way_out = f"give data.images=DIR, or data.root=DIR with {self._slots[IMAGES].default} in it"
        folder = self.path(IMAGES) if IMAGES in self._given else self._default(IMAGES)
        if folder is None and self._root is not None and (self._root / "coco").is_dir():
            folder = self._root / "coco"  # images of another COCO split than the usual one are found by id all the same
        return FolderImages(folder, way_out=way_out, max_pixels=self._max_pixels)

    def _slot(self, name: str) -> Slot:
        assert name in self._slots, f"task {self._family} reads the slot {name!r} without declaring it"
        return self._slots[name]

    def _places(self, slot: str) -> list[Path]:
        if self._root is None:
            return []
        default = self._slots[slot].default
        return [folder / default for folder in (self._root, self._root / self._family, self._root / "coco")]

    def _default(self, slot: str) -> Path | None:
        for place in self._places(slot):
            for path in (place, place.with_name(f"{place.name}.gz")):
                if path.exists():
                    return path
        return None


def read_json(path: Path, name: str | None = None) -> Json:
    """Return a parsed JSON file, gzipped or not.

    Args:
        path: The file; gzip is recognised by its content, whatever the name.
        name: What to call it in a message.

    Raises:
        DataError: It is missing, cut short, not JSON, or a table of records by id names an id twice.
    """
    name = name or str(path)
    data = _bytes(path, name)
    if not data.strip():
        raise DataError(f"{name} is empty; fetch it again")
    try:
        return json.loads(data, object_pairs_hook=_Records(name))
    except UnicodeDecodeError as error:
        raise _no_text(name, error) from error
    except json.JSONDecodeError as error:
        cut = error.pos >= len(error.doc.rstrip()) or error.msg.startswith("Unterminated")
        state = "ends too early" if cut else "is not JSON"
        where = f"line {error.lineno}, column {error.colno} (character {error.pos:,} of {len(error.doc):,})"
        raise DataError(f"{name} {state}: {error.msg} at {where}; fetch it again") from error
    except RecursionError as error:
        raise DataError(f"{name} is nested too deeply to be an annotation file") from error


class _Records:
    """Builds objects, and refuses a table of records in which one id stands twice (a dict would keep the last)."""

    def __init__(self, name: str) -> None:
        self._name = name

    def __call__(self, pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        built = dict(pairs)
        if len(built) != len(pairs) and all(isinstance(value, dict) for value in built.values()):
            twice = [key for key, count in Counter(key for key, _ in pairs).items() if count > 1]
            raise DataError(
                f"{self._name}: id {twice[0]!r} stands {len(pairs) - len(built) + 1} times; ids must be unique"
            )
        return built


def _lines(data: bytes, name: str) -> list[str]:
    try:
        return data.decode("utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise _no_text(name, error) from error


def _no_text(name: str, error: UnicodeDecodeError) -> DataError:
    return DataError(f"{name} is not text: byte {error.start:,} is {error.object[error.start]:#04x}; fetch it again")


def _bytes(path: Path, name: str) -> bytes:
    try:
        data = path.read_bytes()
    except OSError as error:
        raise DataError(f"{name} cannot be read: {error.strerror}") from error
    if data[:2] != b"\x1f\x8b":
        return data
    try:
        return gzip.decompress(data)
    except (EOFError, OSError, zlib.error) as error:
        raise DataError(
            f"{name} is a gzip file cut short or damaged ({len(data):,} bytes): {error}; fetch it again"
        ) from error


def fingerprint(samples: Iterable[Sample], texts: Iterable[Text] = ()) -> str:
    """Return the sha256 over the sorted sample ids (and text ids): what "the official set" means.

    >>> fingerprint([Sample(id="2", image_ids=("7",)), Sample(id="1", image_ids=("7",))])[:12]
    'd20a42cd855b'
    """
    lines = [f"sample {identity}" for identity in sorted(sample.id for sample in samples)]
    lines += [f"text {identity}" for identity in sorted(text.id for text in texts)]
    return hashlib.sha256("\n".join(lines).encode("utf-8", "surrogatepass")).hexdigest()


def check_samples(samples: Sequence[Sample], name: str) -> None:
    """Refuse a set that is empty, or in which one id stands for two samples."""
    if not samples:
        raise DataError(f"{name} has no samples: the files hold no row of this split")
    twice = [identity for identity, count in Counter(sample.id for sample in samples).items() if count > 1]
    if twice:
        raise DataError(
            f"{name} has {len(twice):,} sample ids that stand more than once: {_first(twice)}; "
            "answers are joined by id, so ids must be unique"
        )


def check_images(dataset: Dataset, name: str, image_ids: Iterable[str] | None = None) -> None:
    """Refuse a set whose samples name images that are not there.

    Args:
        dataset: What was loaded.
        name: The task, for the message.
        image_ids: Those that will be opened; None: all.
    """
    if image_ids is None:
        image_ids = (image_id for sample in dataset.samples for image_id in sample.image_ids)
    wanted = list(dict.fromkeys(image_ids))
    missing = dataset.images.missing(wanted)
    if not missing:
        return
    if isinstance(dataset.images, FolderImages):
        raise DataError(f"{name}: {dataset.images.explain(missing, len(wanted))}")
    raise DataError(f"{name}: {len(missing):,} of {len(wanted):,} images are missing: {_first(missing)}")


def summarize(dataset: Dataset) -> Expected:
    """Return the counts of a loaded set in the form of a manifest."""
    groups: dict[str, Counter[str]] = {}
    for sample in dataset.samples:
        for tag, value in sample.tags.items():
            groups.setdefault(tag, Counter())[value] += 1
    captions = sum(
        len(sample.reference.get("captions", ())) for sample in dataset.samples if isinstance(sample.reference, dict)
    )
    return Expected(
        samples=len(dataset.samples),
        images=len({image_id for sample in dataset.samples for image_id in sample.image_ids}),
        texts=len(dataset.texts) or captions,
        fingerprint=fingerprint(dataset.samples, dataset.texts),
        groups={tag: dict(counts) for tag, counts in groups.items()},
    )


def check_expected(dataset: Dataset, expected: Expected, task: Task) -> None:
    """Hold a loaded set against the official numbers.

    Raises:
        DataError: They differ; the message has both numbers.
    """
    found = summarize(dataset)
    wrong = [
        f"{getattr(found, what):,} {what}, official {getattr(expected, what):,}"
        for what in ("samples", "images", "texts")
        if getattr(expected, what) is not None and getattr(expected, what) != getattr(found, what)
    ]
    for tag, counts in expected.groups.items():
        have = found.groups.get(tag)
        if have is None and task.hub is not None and not any(tag in sample.tags for sample in dataset.samples):
            continue  # a hub table without that column; the counts above still hold
        wrong += [
            f"{(have or {}).get(value, 0):,} samples with {tag}={value}, official {count:,}"
            for value, count in counts.items()
            if (have or {}).get(value, 0) != count
        ]
    ids, official = found.fingerprint or "", expected.fingerprint or ""
    if not wrong and official and official != ids:
        wrong.append(f"the counts agree, the ids do not: fingerprint {ids[:12]}, official {official[:12]}")
    if wrong:
        raise DataError(
            f"{task.name} is not the official set: {'; '.join(wrong)} ({expected.source}). Use the official files, "
            "or data.check=false to run on this set, which stamps the result"
        )


def _first(names: Sequence[str], count: int = 3) -> str:
    return ", ".join(map(repr, names[:count])) + (" ..." if len(names) > count else "")
