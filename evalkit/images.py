"""Images found by id and opened whole.

What comes out of `open` is what the published numbers were made with: the loaders of LAVIS, BLIP, Qwen-VL and LLaVA
all do `Image.open(path).convert("RGB")`. So, decided once, for every source:

- EXIF orientation is not applied: the pixels stand as they are stored.
- Grey, palette and CMYK images become RGB as Pillow converts them; an alpha channel is dropped, not blended.
- 16-bit grey keeps its upper 8 bits (Pillow alone would clip nearly all to white); floats are clipped as Pillow does.
- Of an animated image, the first frame.
- A file that ends early is an error, never a half-grey picture; so is one with more pixels than `max_pixels`.
"""

from __future__ import annotations

import io
import os
import re
import threading
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import TYPE_CHECKING, Any

from evalkit.errors import DataError, ImageError
from evalkit.types import ImageStore

if TYPE_CHECKING:
    from PIL.Image import Image

MAX_PIXELS = 89_478_485
"""Pixels an image may have: Pillow's own warning level, a quarter of a GiB as RGB."""

SUFFIXES = (".jpg", ".jpeg", ".png")

_COCO_NAME = re.compile(r"COCO_[A-Za-z]+\d{4}_(\d{12})(?:_\d+)?")
"""COCO_val2014_000000391895, and COCO_train2014_000000581857_16 as the RefCOCO files have it."""


def image_key(name: str | int) -> str:
    """Return the id an image is known by: the number in a COCO file name, any other name without its suffix.

    >>> image_key("val2014/COCO_val2014_000000391895.jpg"), image_key("COCO_train2014_000000581857_16.jpg")
    ('391895', '581857')
    >>> image_key("flickr30k-images/1007129816.jpg"), image_key(391895), image_key("000000391895.jpg")
    ('1007129816', '391895', '391895')
    >>> image_key("0013ea2087020901.jpg"), image_key("n161313")
    ('0013ea2087020901', 'n161313')
    """
    stem = str(name).replace("\\", "/").rpartition("/")[2]
    base, dot, suffix = stem.rpartition(".")
    if dot and f".{suffix.lower()}" in SUFFIXES:
        stem = base
    if match := _COCO_NAME.fullmatch(stem):
        return str(int(match[1]))
    return str(int(stem)) if len(stem) == 12 and stem.isascii() and stem.isdigit() else stem


def open_image(file: Path | bytes, name: str, *, max_pixels: int = MAX_PIXELS) -> Image:
    """Decode one image to RGB, as the module's text says.

    Args:
        file: Its path or its bytes.
        name: What to call it in a message.
        max_pixels: Width times height allowed; above Pillow's own limit (twice `MAX_PIXELS`) nothing is opened anyway.

    Raises:
        ImageError: It is missing, not an image, cut short or too large.
    """
    from PIL import Image, ImageFile

    ImageFile.LOAD_TRUNCATED_IMAGES = False  # another package may have set it; half a picture is not a sample
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # our own limit follows, and is an error
            image = Image.open(io.BytesIO(file) if isinstance(file, bytes) else file)
        with image:
            width, height = image.size
            if width * height > max_pixels:
                raise ImageError(
                    f"image {name!r} has {width} x {height} pixels, more than the {max_pixels:,} allowed; "
                    "scale it down, or raise the limit"
                )
            image.load()
            return _rgb(image)
    except Image.DecompressionBombError as error:
        raise ImageError(f"image {name!r} is refused: {error}") from error
    except FileNotFoundError as error:
        raise ImageError(f"image {name!r} is not there any more: {error.filename}") from error
    except (OSError, SyntaxError, ValueError, EOFError, MemoryError) as error:
        # Pillow's decoders raise any of these on broken files: truncated data (OSError), a bad chunk (SyntaxError) ...
        raise ImageError(f"image {name!r} cannot be decoded whole: {error}; fetch the file again") from error


def image_size(file: Path | bytes, name: str) -> tuple[int, int]:
    """Return width and height as the header says; raise `ImageError` where it cannot be read."""
    from PIL import Image

    try:
        with Image.open(io.BytesIO(file) if isinstance(file, bytes) else file) as image:
            return image.size
    except (Image.DecompressionBombError, OSError, SyntaxError, ValueError) as error:
        raise ImageError(f"image {name!r} has no header that can be read: {error}; fetch the file again") from error


def _rgb(image: Image) -> Image:
    if image.mode in ("I", "I;16", "I;16B", "I;16L"):
        import numpy as np
        from PIL import Image as images

        pixels = np.asarray(image).astype(np.int64)
        return images.fromarray(np.clip(pixels >> 8, 0, 255).astype(np.uint8)).convert("RGB")
    return image.convert("RGB")


class FolderImages:
    """Images below a folder, by id: under any COCO prefix, as `%012d`, by plain id or file name, in any subfolder."""

    def __init__(self, root: Path | None, *, way_out: str = "", max_pixels: int = MAX_PIXELS) -> None:
        self.root = root
        self._way_out = way_out or "give data.images=DIR"
        self._max_pixels = max_pixels
        self._paths: dict[str, Path] | None = None
        self._outside: list[str] = []
        self._lock = threading.Lock()

    def open(self, image_id: str) -> Image:
        """Return the decoded image; raise `ImageError` when there is none, or not whole."""
        path = self._find(image_id)
        if path is None:
            raise ImageError(self._absent([image_id]))
        return open_image(path, image_id, max_pixels=self._max_pixels)

    def size(self, image_id: str) -> tuple[int, int]:
        """Return width and height from the file's header; nothing is decoded."""
        path = self._find(image_id)
        if path is None:
            raise ImageError(self._absent([image_id]))
        return image_size(path, image_id)

    def missing(self, image_ids: Sequence[str]) -> list[str]:
        """Return those of `image_ids` that no file is found for."""
        return [image_id for image_id in image_ids if self._find(image_id) is None]

    def explain(self, missing: Sequence[str], total: int) -> str:
        """Return the sentence about missing images."""
        return self._absent(missing, total)

    def _find(self, image_id: str) -> Path | None:
        check_name(image_id)
        paths = self._index()
        name = image_id.replace("\\", "/").rpartition("/")[2]
        for key in (name, image_key(name)):
            if key in paths:
                return paths[key]
        return None

    def _absent(self, missing: Sequence[str], total: int | None = None) -> str:
        if self.root is None:
            return f"image {missing[0]!r} cannot be opened: no folder of images is known; {self._way_out}"
        names = ", ".join(missing[:3]) + (" ..." if len(missing) > 3 else "")
        count = f"{len(missing):,} of {total:,} images are" if total is not None else "image is"
        outside = f" (links that lead out of it are not followed: {', '.join(self._outside[:3])})" * bool(self._outside)
        return f"{count} missing below {self.root}{outside}: {names}; complete the folder or {self._way_out}"

    def _index(self) -> dict[str, Path]:
        with self._lock:
            if self._paths is None:
                self._paths = self._scan() if self.root is not None else {}
            return self._paths

    def _scan(self) -> dict[str, Path]:
        """Walk the folder once, in sorted order; the first file of a name wins, and a full name beats an id."""
        assert self.root is not None
        if not self.root.is_dir():
            raise DataError(f"the folder of images {self.root} does not exist; {self._way_out}")
        top = self.root.resolve()
        names: dict[str, Path] = {}
        keys: dict[str, Path] = {}
        waiting = [top]
        while waiting:
            folder = waiting.pop()
            subfolders = []
            with os.scandir(folder) as found:
                entries = sorted(found, key=lambda entry: entry.name)
            for entry in entries:
                path = Path(entry.path)
                if entry.is_symlink() and not path.resolve().is_relative_to(top):
                    self._outside.append(entry.name)
                elif entry.is_dir():
                    if not entry.is_symlink():  # its target is below the root and comes by itself; no loops
                        subfolders.append(path)
                elif path.suffix.lower() in SUFFIXES:
                    names.setdefault(entry.name, path)
                    keys.setdefault(image_key(entry.name), path)
                    keys.setdefault(path.stem, path)
            waiting.extend(reversed(subfolders))
        return {**keys, **names}


class RowImages:
    """Images in the rows of a hub dataset, as encoded bytes; a row is decoded only when its image is opened."""

    def __init__(
        self,
        ids: Iterable[Any],
        cell: Callable[[int], Mapping[str, Any] | bytes | None],
        *,
        max_pixels: int = MAX_PIXELS,
    ) -> None:
        """Take the id of each row and a function that returns the undecoded image of row i."""
        self._rows: dict[str, int] = {}
        for row, value in enumerate(ids):
            self._rows.setdefault(image_key(value), row)  # a question table repeats its image; the first row serves
        self._cell = cell
        self._max_pixels = max_pixels

    def open(self, image_id: str) -> Image:
        """Return the decoded image; raise `ImageError` when there is none, or not whole."""
        return open_image(self._bytes(image_id), image_id, max_pixels=self._max_pixels)

    def size(self, image_id: str) -> tuple[int, int]:
        """Return width and height from the file's header; nothing is decoded."""
        return image_size(self._bytes(image_id), image_id)

    def _bytes(self, image_id: str) -> bytes:
        row = self._rows.get(image_key(image_id))
        if row is None:
            raise ImageError(f"image {image_id!r} is in no row of the dataset")
        cell = self._cell(row)
        data = cell.get("bytes") if isinstance(cell, Mapping) else cell
        if not data:
            raise ImageError(f"the row of image {image_id!r} holds no image bytes")
        return bytes(data)

    def missing(self, image_ids: Sequence[str]) -> list[str]:
        """Return those of `image_ids` that are in no row."""
        return [image_id for image_id in image_ids if image_key(image_id) not in self._rows]


class AliasImages:
    """A store under other ids: where a table repeats an image under each question, its first question serves."""

    def __init__(self, store: ImageStore, names: Mapping[str, str]) -> None:
        """Take {image id: the store's own id}."""
        self._store = store
        self._names = names

    def open(self, image_id: str) -> Image:
        """Return the decoded image; raise `ImageError` when there is none, or not whole."""
        return self._store.open(self._names.get(image_id, image_id))

    def missing(self, image_ids: Sequence[str]) -> list[str]:
        """Return those of `image_ids` that the store has no image for."""
        lost = set(self._store.missing([self._names.get(image_id, image_id) for image_id in image_ids]))
        return [image_id for image_id in image_ids if self._names.get(image_id, image_id) in lost]


def check_name(name: str) -> None:
    """Refuse an image name that could leave its folder.

    >>> check_name("val2014/COCO_val2014_000000391895.jpg")
    >>> check_name("../secret.png")
    Traceback (most recent call last):
        ...
    evalkit.errors.DataError: image name '../secret.png' leaves the folder of images
    """
    windows = PureWindowsPath(name)
    if PurePosixPath(name).is_absolute() or windows.drive or windows.root or ".." in windows.parts or "\0" in name:
        raise DataError(f"image name {name!r} leaves the folder of images")
