"""Where `tasks/`, `configs/` and `results/published/` are: beside evalkit/ in a checkout, inside it in a wheel."""

from __future__ import annotations

from pathlib import Path

_ROOT = Path(__file__).resolve().parents[1]


def bundled(folder: str) -> Path:
    """Return the folder of that name that belongs to this evalkit."""
    return (_ROOT if (_ROOT / "pyproject.toml").is_file() else _ROOT / "evalkit") / folder
