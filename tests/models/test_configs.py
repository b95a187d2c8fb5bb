"""Every file of `configs/model/`: what it may set, that its class takes it, and that its protocol fits the tasks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from evalkit.assemble import build_model
from evalkit.errors import ConfigError
from evalkit.paths import bundled
from evalkit.registry import apply, known_tasks, resolve_task

FILES = sorted((bundled("configs") / "model").glob("*.yaml"))
NAMES = [path.stem for path in FILES]

NEED = {"api": r"model\.served_name", "custom": r"model\._target_"}
"""Files that are forms: what they want to be told."""


def parsed(path: Path) -> dict[str, Any]:
    assert path.read_text().startswith("# @package _global_\n")
    values = yaml.safe_load(path.read_text())
    assert isinstance(values, dict)
    return values


@pytest.mark.parametrize("path", FILES, ids=NAMES)
def test_sets_nothing_but_the_model(path: Path) -> None:
    values = parsed(path)
    assert set(values) <= {"model", "prompt_style", "protocol"}
    assert {"_target_", "name"} <= set(values["model"])


@pytest.mark.parametrize("path", FILES, ids=NAMES)
def test_builds_without_weights_or_network(path: Path) -> None:
    spec = parsed(path)["model"]
    if None in spec.values() and path.stem in NEED:
        with pytest.raises(ConfigError, match=NEED[path.stem]):
            build_model(spec)
        return
    assert build_model(spec).capabilities


@pytest.mark.parametrize("path", FILES, ids=NAMES)
def test_protocol_fits_the_tasks_and_the_model(path: Path) -> None:
    values = parsed(path)
    protocol = values.get("protocol", {})
    for name in protocol:
        assert name.partition("/")[0] in known_tasks()
        task = apply(resolve_task(name), prompt_style_of_model=values.get("prompt_style"), protocol=protocol)
        if values.get("prompt_style") and task.prompts:
            assert task.prompt_style == values["prompt_style"]
        spec = values["model"]
        if "trust_remote_code" in spec:
            assert "trust_remote_code" in str(build_model(spec).refuses(task))
            spec = {**spec, "trust_remote_code": True}
        assert build_model(spec).refuses(task) is None


def test_labels_are_unique() -> None:
    labels = [parsed(path)["model"]["name"] for path in FILES]
    assert len(set(labels)) == len(labels)
