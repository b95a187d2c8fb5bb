"""Files that outlive a kill and a power cut: written whole, synced, and so are the names they go by."""

from __future__ import annotations

import contextlib
import errno
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import IO


def write_whole(path: Path, write: Callable[[IO[bytes]], object], *, first_wins: bool = False) -> None:
    """Write a file so that a reader sees nothing or the old file before, and the whole new one after.

    Args:
        path: the file; its folder is made.
        write: puts the content into a stream.
        first_wins: a file that is there stays as it is, also when several processes write at once.

    Raises:
        OSError: nothing was written, or not to the disk.
    """
    make_folder(path.parent)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as stream:
            write(stream)
            stream.flush()
            os.fsync(stream.fileno())
        os.chmod(temporary, 0o644)  # others who share the folder read it
        if first_wins:
            _name_once(temporary, path)
        else:
            os.replace(temporary, path)
    finally:
        Path(temporary).unlink(missing_ok=True)
    sync_folder(path.parent)


def make_folder(folder: Path) -> None:
    """Make a folder and those above it, their names synced. Raises OSError."""
    new = [each for each in (folder, *folder.parents) if not each.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    for each in new:
        sync_folder(each.parent)


def sync_folder(folder: Path) -> None:
    """Bring the names in a folder to the disk: a file that is synced is lost all the same when its name is not.

    Some network file systems refuse this; a disk that fails says so when the next file is written.
    """
    with contextlib.suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def way_out(error: OSError) -> str:
    """Return what one can do when a run folder cannot be written."""
    full = error.errno in (errno.ENOSPC, errno.EDQUOT)
    return ("make room, or " if full else "") + "give another folder with out=DIR"


def _name_once(temporary: str, path: Path) -> None:
    try:
        os.link(temporary, path)
    except FileExistsError:
        return
    except OSError:
        # No hard links here (FAT, some network mounts): the moment between these two calls is all that is left open.
        if not path.exists():
            os.replace(temporary, path)
