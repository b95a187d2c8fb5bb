"""Files that outlive a kill and a power cut."""

from __future__ import annotations

import errno
import os
import stat
import threading
from pathlib import Path
from typing import IO

import pytest

from evalkit.disk import make_folder, write_whole
from evalkit.log import Writer


@pytest.fixture
def synced(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of what is synced to the disk, in order."""
    names: list[str] = []
    real = os.fsync

    def fsync(descriptor: int) -> None:
        names.append(Path(os.readlink(f"/proc/self/fd/{descriptor}")).name)
        real(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)
    return names


@pytest.mark.parametrize("first_wins", [False, True])
def test_a_file_is_whole_and_others_may_read_it(tmp_path: Path, first_wins: bool) -> None:
    path = tmp_path / "a" / "file"
    write_whole(path, lambda stream: stream.write(b"whole"), first_wins=first_wins)
    assert path.read_bytes() == b"whole"
    assert stat.S_IMODE(path.stat().st_mode) == 0o644
    assert os.listdir(path.parent) == ["file"]


@pytest.mark.parametrize("links", [True, False])
@pytest.mark.parametrize("first_wins", [True, False])
def test_who_wins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, first_wins: bool, links: bool) -> None:
    if not links:  # as FAT and some network mounts have it

        def link(*_: object) -> None:
            raise OSError(errno.EPERM, os.strerror(errno.EPERM))

        monkeypatch.setattr(os, "link", link)
    path = tmp_path / "file"
    for text in (b"first", b"second"):
        write_whole(path, lambda stream, text=text: stream.write(text), first_wins=first_wins)
    assert path.read_bytes() == (b"first" if first_wins else b"second")
    assert os.listdir(tmp_path) == ["file"]


def test_of_many_who_write_at_once_one_wins_and_is_never_replaced(tmp_path: Path) -> None:
    path = tmp_path / "file"
    ready = threading.Barrier(8)
    seen: list[bytes] = []

    def write(number: int) -> None:
        def content(stream: IO[bytes]) -> None:
            stream.write(f"{number}".encode())
            ready.wait()  # all have looked, none has finished

        write_whole(path, content, first_wins=True)
        seen.append(path.read_bytes())

    threads = [threading.Thread(target=write, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(seen) == 8
    assert len(set(seen)) == 1, "what anybody has read stays what it is"


def test_an_error_leaves_what_was_there(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"old")

    def full(stream: IO[bytes]) -> None:
        stream.write(b"ne")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with pytest.raises(OSError, match="No space left"):
        write_whole(path, full)
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["file"]


def test_content_comes_to_the_disk_before_its_name_and_new_folders_too(tmp_path: Path, synced: list[str]) -> None:
    write_whole(tmp_path / "a" / "b" / "file", lambda stream: stream.write(b"x"))
    assert synced[0:2] in (["a", tmp_path.name], [tmp_path.name, "a"])
    assert synced[2].startswith(".file.")
    assert synced[3:] == ["b"]
    synced.clear()
    make_folder(tmp_path / "a" / "b")
    assert synced == []


def test_the_name_of_a_log_comes_to_the_disk_when_it_is_made(tmp_path: Path, synced: list[str]) -> None:
    with Writer(tmp_path / "predictions") as writer:
        assert synced == [tmp_path.name, "predictions"]
    assert synced[2:] == [writer.path.name]
