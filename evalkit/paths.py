"""Where `tasks/`, `configs/` and `results/published/` are: beside evalkit/ in a checkout, inside it in a wheel."""

from __future__ import annotations

import os
from pathlib import Path

_ROOT = Path(__file__).resolve().parents[1]


def bundled(folder: str) -> Path:
    """Return the folder of that name that belongs to this evalkit."""
    return (_ROOT if (_ROOT / "pyproject.toml").is_file() else _ROOT / "evalkit") / folder


def user_cache() -> Path:
    """Return the folder for what can be made again: EVALKIT_CACHE, or `evalkit` in the user's cache folder."""
    given = os.environ.get("EVALKIT_CACHE")
    if given:
        return Path(given)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "evalkit"
