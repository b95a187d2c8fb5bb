"""What several test files share."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


def shared(name: str) -> Path:
    """Return a file of the shared evaluation data; skip the test where this machine does not have it."""
    folder = Path(os.environ.get("EVALKIT_SHARED", ROOT.parent / "shared"))
    path = folder / name
    if not path.exists():
        pytest.skip(f"needs {name} of the evaluation data (EVALKIT_SHARED={folder}), which is not part of a clone")
    return path
