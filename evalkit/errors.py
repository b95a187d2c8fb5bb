"""What can go wrong through no bug of ours. Printed as one paragraph, without a traceback.

    EvalkitError             exit 2
    ├── ConfigError          a key, a value or a name that evalkit does not know
    │   └── UnsupportedError a setting that this model or machine cannot honour
    ├── DataError            annotation files and datasets
    │   └── ImageError       one image; while running it makes a failed sample, not an end
    ├── ModelError           a checkpoint, a processor or a server
    ├── SampleError          one sample, such as a prompt the server refuses; makes a failed sample, not an end
    ├── ResultsError         run folders, logs and prediction files
    ├── MetricError          a metric that cannot be computed here
    ├── IncompleteError      exit 3: samples failed or are missing
    └── NotComparableError   exit 4: two runs that did not answer the same questions

A message names the thing, its value and the way out.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class EvalkitError(Exception):
    """A user's mistake or a fault of the surroundings."""

    exit_code = 2


class ConfigError(EvalkitError):
    """A key, a value or a name that evalkit does not know."""


class UnsupportedError(ConfigError):
    """A setting that this model or machine cannot honour; it is refused, never ignored."""


class DataError(EvalkitError):
    """An annotation file or a dataset is missing, broken or not the official one."""


class ImageError(DataError):
    """One image cannot be had whole."""


class ModelError(EvalkitError):
    """A checkpoint, a processor or a server cannot be used."""


class SampleError(EvalkitError):
    """One sample cannot be answered; the others can."""


class ResultsError(EvalkitError):
    """A run folder, a log or a prediction file cannot be read or written."""


class MetricError(EvalkitError):
    """A metric cannot be computed here; the others still are."""


class IncompleteError(EvalkitError):
    """Samples failed or are missing beyond what was allowed."""

    exit_code = 3


class NotComparableError(EvalkitError):
    """Two runs that did not answer the same questions."""

    exit_code = 4


def unknown(kind: str, name: str, known: Iterable[str], way_out: str = "") -> str:
    """Return the sentence for a name that is not known: what was meant, what there is.

    >>> unknown("task", "vqa2", ["gqa", "vqav2"], "or give a path to a .py file")
    "no task 'vqa2'; did you mean 'vqav2'? Known: gqa, vqav2 (or give a path to a .py file)"
    """
    names = sorted(known)
    close = difflib.get_close_matches(name, names, n=1)
    hint = f"did you mean {close[0]!r}? Known" if close else "known"
    more = f" ({way_out})" if way_out else ""
    return f"no {kind} {name!r}; {hint}: {', '.join(names)}{more}"
