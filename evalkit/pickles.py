"""The one pickle evalkit reads, RefCOCO's `refs(*).p` of Python 2: containers, numbers and text, nothing else."""

from __future__ import annotations

import io
import pickle
from typing import NoReturn

from evalkit.errors import DataError
from evalkit.types import Json


class _Containers(pickle.Unpickler):
    """Builds lists, dicts, tuples, numbers and text; refuses to look up any class or function."""

    def find_class(self, module: str, name: str) -> NoReturn:
        raise pickle.UnpicklingError(f"it asks for {module}.{name}, which plain data does not need")

    def persistent_load(self, pid: object) -> NoReturn:
        raise pickle.UnpicklingError(f"it asks for the outside object {pid!r}")


def load_plain(data: bytes, name: str) -> Json:
    r"""Return the plain data in a pickle of any protocol; bytes of Python 2 are read as Latin-1.

    Raises:
        DataError: It is cut short, not a pickle, or asks for anything but containers, numbers and text.

    >>> load_plain(pickle.dumps([{"ref_id": 1, "split": "val"}], protocol=2), "refs(unc).p")
    [{'ref_id': 1, 'split': 'val'}]
    >>> load_plain(b"cos\nsystem\n(S'true'\ntR.", "refs(unc).p")
    Traceback (most recent call last):
        ...
    evalkit.errors.DataError: refs(unc).p is not a safe pickle: it asks for os.system, which plain data does not need
    """
    unpickler = _Containers(io.BytesIO(data), encoding="latin-1")
    try:
        return unpickler.load()
    except pickle.UnpicklingError as error:
        raise DataError(f"{name} is not a safe pickle: {error}") from error
    except (EOFError, ValueError, IndexError, KeyError, AttributeError, TypeError, OverflowError, MemoryError) as error:
        # what the unpickler raises on cut or foreign bytes depends on the opcode it stumbles over
        where = f"{len(data):,} bytes"
        raise DataError(f"{name} is cut short or not a pickle ({where}): {error or type(error).__name__}") from error
