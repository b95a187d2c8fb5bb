"""The log of predictions: append-only JSON lines, safe to kill at any byte, any number of writers.

Each writer process appends to a file of its own, `predictions/<start>-<random>.jsonl`, so a torn last line can only be
the end of a file that nobody writes any more, or that another machine shows in part. Readers take the union of all
files.

What outlives what. Every batch is handed to the operating system at once: a process that is killed loses nothing it has
written. A file's name is synced to the disk when the file is made, its lines with the first batch that comes
`SYNC_SECONDS` or more after the last sync, and at the end: a power cut loses the batches since, which the next start
asks again, and never an older line.
"""

from __future__ import annotations

import json
import os
import time
import uuid
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

from evalkit.disk import make_folder, sync_folder, way_out
from evalkit.errors import ResultsError
from evalkit.types import Prediction

FORMAT = 1
"""Version of the line format, kept in the manifest."""

SYNC_SECONDS = 2.0


class Writer:
    """Appends predictions to a new file of the run's `predictions` folder. Use as a context manager."""

    def __init__(self, folder: Path) -> None:
        now = time.time_ns()  # microseconds in the name: of two quick starts the later one must still sort last
        start = f"{time.strftime('%Y%m%dT%H%M%S', time.gmtime(now // 10**9))}.{now // 1000 % 10**6:06d}"
        self.path = folder / f"{start}-{uuid.uuid4().hex[:8]}.jsonl"
        self._synced = time.monotonic()
        try:
            make_folder(folder)
            self._fd = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND, 0o644)
            sync_folder(folder)
        except OSError as error:
            raise ResultsError(_cannot_write(folder, error)) from error

    def append(self, predictions: Iterable[Prediction]) -> None:
        """Write these lines in one call. Raises ResultsError when the disk is full or gone; whole lines stay."""
        data = "".join(_line(prediction) for prediction in predictions).encode()
        try:
            while data:
                data = data[os.write(self._fd, data) :]
            if time.monotonic() - self._synced >= SYNC_SECONDS:
                self._sync()
        except OSError as error:
            raise ResultsError(_cannot_write(self.path, error)) from error

    def _sync(self) -> None:
        os.fsync(self._fd)
        self._synced = time.monotonic()

    def __enter__(self) -> Writer:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self._sync()
        except OSError as sync_error:
            if error is None:
                raise ResultsError(_cannot_write(self.path, sync_error)) from sync_error
        finally:
            os.close(self._fd)


@dataclass(frozen=True, kw_only=True, slots=True)
class Log:
    """All predictions of a run, one a sample id."""

    predictions: Mapping[str, Prediction]
    torn: int
    """Lines that are no prediction (cut off by a kill, as a rule); their samples are asked again."""

    def answered(self) -> set[str]:
        """Return the ids that have an output; failed ones are tried again."""
        return {sample_id for sample_id, prediction in self.predictions.items() if prediction.error is None}


def read_log(folder: Path) -> Log:
    r"""Return the union of all files of a `predictions` folder.

    Bytes are split on `\n` alone (a text split would also cut at U+2028). An answer beats an error; among answers the
    one of the file started last wins.
    """
    predictions: dict[str, Prediction] = {}
    torn = 0
    try:
        files = sorted(folder.glob("*.jsonl"))
        for file in files:
            try:
                data = file.read_bytes()
            except FileNotFoundError:
                continue  # a network file system may list the log of another machine some seconds before it opens it
            for line in data.split(b"\n"):
                if not line:
                    continue
                prediction = _parse(line)
                if prediction is None:
                    torn += 1
                    continue
                before = predictions.get(prediction.sample_id)
                if before is None or prediction.error is None or before.error is not None:
                    predictions[prediction.sample_id] = prediction
    except OSError as error:
        raise ResultsError(f"cannot read the predictions in {folder}: {error.strerror or error}") from error
    return Log(predictions=predictions, torn=torn)


def _line(prediction: Prediction) -> str:
    record: dict[str, Any] = {
        "sample_id": prediction.sample_id,
        "output": prediction.output,
        "prompt": prediction.prompt,
        "error": prediction.error,
        "seconds": round(prediction.seconds, 6),
    }
    if prediction.pairs is not None:
        record["pairs"] = prediction.pairs
    return json.dumps(record) + "\n"  # ASCII: no separator or lone surrogate can reach the file


def _parse(line: bytes) -> Prediction | None:
    """Return the prediction of a line, or None for one that is torn or says nothing: no output, pairs or error."""
    try:
        record = json.loads(line)
        pairs = record.get("pairs")
        prediction = Prediction(
            sample_id=record["sample_id"],
            output=record["output"],
            prompt=record.get("prompt"),
            error=record.get("error"),
            seconds=float(record.get("seconds", 0.0)),
            pairs=None if pairs is None else tuple(_pair(*pair) for pair in pairs),
        )
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None
    texts = (prediction.output, prediction.prompt, prediction.error)
    if not isinstance(prediction.sample_id, str) or not all(isinstance(text, str | None) for text in texts):
        return None
    said = prediction.output is not None or prediction.pairs is not None or prediction.error is not None
    return prediction if said else None


def _pair(text_id: Any, itc: Any, itm: Any) -> tuple[str, float, float | None]:
    if not isinstance(text_id, str):
        raise TypeError(f"a text id should be text, but is {text_id!r}")
    return text_id, float(itc), None if itm is None else float(itm)


def _cannot_write(path: Path, error: OSError) -> str:
    return (
        f"cannot write predictions to {path}: {error.strerror or error}; {way_out(error)}. "
        "Everything written so far is kept, and the same command continues from it"
    )
