"""Which model does which task, and whose settings it would be asked with: the table of `show` without a model."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from evalkit import config, registry
from evalkit.assemble import build_model, resolve

OF_MODEL, OF_TASK, REFUSED = "P", "t", ""
"""A protocol in the model's file; the task's own settings in the model's prompt style; the model cannot do it."""
LEFT_OUT = ("api", "custom", "fake", "majority", "oracle")
"""Baselines, and forms that must be filled in."""


def table(extra: Path | None = None) -> list[str]:
    """Return the lines of a Markdown table, a row a model, a column a task in its default variant."""
    families = registry.known_tasks()
    names = [name for name in config.options("model", extra) if name not in LEFT_OUT]
    rows = [_row(f"`{name}`", _cells(name, families, extra)) for name in names]
    return [_row("model", families), _row("---", ["---"] * len(families)), *rows]


def _cells(name: str, families: Sequence[str], extra: Path | None) -> list[str]:
    run = config.compose(config.parse([f"model={name}", f"task=[{','.join(families)}]"], extra), extra)
    # The table tells what its code can do once it may run.
    allowed = {"trust_remote_code": True} if "trust_remote_code" in run.model else {}
    model = build_model({**run.model, **allowed})
    cells = []
    for family in families:
        task = resolve(family, run, model)
        settled = any(key.partition("/")[0] == family for key in run.protocol)
        cells.append(REFUSED if model.refuses(task) else OF_MODEL if settled else OF_TASK)
    return cells


def _row(first: str, cells: Sequence[str]) -> str:
    return "| " + " | ".join([first, *cells]) + " |"
