"""One line that says how far a run is: rewritten in place on a terminal, one line now and then in a plain log."""

from __future__ import annotations

import sys
import time
from typing import Protocol, TextIO

_EVERY_TERMINAL = 0.2
_EVERY_PLAIN = 10.0


class Reporter(Protocol):
    """What the loop tells about its progress."""

    def advance(self, *, samples: int, images: int, failed: int = 0) -> None:
        """Count what was just finished."""


class Progress:
    """Counts samples and images, and prints rates and the time left to stderr."""

    def __init__(self, label: str, *, samples: int, images: int, done: int = 0, stream: TextIO | None = None) -> None:
        self.label, self.samples, self.images, self.done = label, samples, images, done
        self.failed = 0
        self._stream = stream or sys.stderr
        self._terminal = self._stream.isatty()
        self._start = self._shown = time.monotonic()
        self._samples_now = self._images_now = 0

    def advance(self, *, samples: int, images: int, failed: int = 0) -> None:
        """Count what was just finished, and show it when the last showing is long enough ago."""
        self.done += samples
        self._samples_now += samples
        self._images_now += images
        self.failed += failed
        now = time.monotonic()
        if now - self._shown >= (_EVERY_TERMINAL if self._terminal else _EVERY_PLAIN):
            self._shown = now
            self._write(self.line(), end=False)

    def line(self) -> str:
        """Return the line: done, rates, time left."""
        seconds = max(time.monotonic() - self._start, 1e-9)
        rate = self._samples_now / seconds
        left = _clock((self.samples - self.done) / rate) if rate > 0 else "?"
        failed = f", {self.failed} failed" if self.failed else ""
        return (
            f"{self.label}: {self.done}/{self.samples} samples{failed}, "
            f"{rate:.1f} samples/s, {self._images_now / seconds:.1f} images/s, {left} left"
        )

    def close(self) -> None:
        """Print the last line for good."""
        seconds = time.monotonic() - self._start
        failed = f", {self.failed} failed" if self.failed else ""
        rate = self._samples_now / max(seconds, 1e-9)
        self._write(
            f"{self.label}: {self.done}/{self.samples} samples{failed} in {_clock(seconds)} ({rate:.1f} samples/s)",
            end=True,
        )

    def _write(self, line: str, *, end: bool) -> None:
        if self._terminal:
            self._stream.write(f"\r\x1b[2K{line}" + ("\n" if end else ""))
        else:
            self._stream.write(line + "\n")
        self._stream.flush()


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
