"""Where the picture world is: drawn into a cache folder on first use, whole or not at all."""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path

from evalkit.demo.files import VERSION, write_world
from evalkit.errors import DataError
from evalkit.paths import user_cache

_DONE = "complete"
"""A file in a world's folder that is written last."""


def ensure_world(cache: Path | None = None) -> Path:
    """Return the root folder of the picture world; draw it (some seconds) where it is not there yet.

    It is made in a folder of its own and renamed when it is whole, so that a kill leaves no half of it and two
    processes may ask at once: whoever is second takes the first one's.

    Args:
        cache: Folder to keep it in; None: `EVALKIT_CACHE` or the user's cache folder.

    Raises:
        DataError: The folder cannot be written.
    """
    home = cache if cache is not None else user_cache()
    root = home / f"picture-world-{VERSION}"
    if (root / _DONE).is_file():
        return root
    try:
        home.mkdir(parents=True, exist_ok=True)
        partial = Path(tempfile.mkdtemp(prefix=f"{root.name}.partial-", dir=home))
    except OSError as error:
        raise DataError(
            f"the picture world cannot be kept in {home}: {error.strerror or error}; "
            "set EVALKIT_CACHE to a folder that can be written"
        ) from error
    try:
        write_world(partial)
        (partial / _DONE).write_text(f"picture world, generator version {VERSION}\n", encoding="utf-8")
        _move(partial, root)
    except OSError as error:
        raise DataError(
            f"the picture world cannot be written to {home}: {error.strerror or error}; "
            "make room there, or set EVALKIT_CACHE to another folder"
        ) from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return root


def _move(partial: Path, root: Path) -> None:
    """Rename the finished folder to its place, unless somebody was quicker."""
    if root.is_dir() and not (root / _DONE).is_file():
        # not ours: nothing puts a folder there before it is whole. Set aside, never deleted.
        os.replace(root, root.with_name(f"{root.name}.broken-{os.getpid()}"))
    try:
        os.rename(partial, root)
    except OSError:
        if not (root / _DONE).is_file():
            raise
