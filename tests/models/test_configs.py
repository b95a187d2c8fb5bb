"""Every file of `configs/model/`: what it may set, that its class takes it, and that its protocol fits the tasks."""

from __future__ import annotations

import pytest
import yaml

from evalkit.assemble import build_model
from evalkit.errors import ConfigError
from evalkit.paths import bundled
from evalkit.registry import apply, known_tasks, resolve_task

from .configs import MODELS

NEED = {"api": r"model\.served_name", "custom": r"model\._target_"}
"""Files that are forms: what they want to be told."""


@pytest.mark.parametrize("name", MODELS)
def test_sets_nothing_but_the_model(name: str) -> None:
    text = (bundled("configs") / "model" / f"{name}.yaml").read_text()
    assert text.startswith("# @package _global_\n")
    values = yaml.safe_load(text)
    assert set(values) <= {"defaults", "model", "prompt_style", "protocol"}
    assert "name" in values["model"], "a model that is made of another one has a name of its own"


@pytest.mark.parametrize("name", MODELS)
def test_builds_without_weights_or_network(name: str) -> None:
    spec = MODELS[name].model
    if None in spec.values() and name in NEED:
        with pytest.raises(ConfigError, match=NEED[name]):
            build_model(spec)
        return
    assert build_model(spec).capabilities


@pytest.mark.parametrize("name", MODELS)
def test_protocol_fits_the_tasks_and_the_model(name: str) -> None:
    run = MODELS[name]
    for key in run.protocol:
        assert key.partition("/")[0] in known_tasks()
        task = apply(resolve_task(key), prompt_style_of_model=run.prompt_style, protocol=run.protocol)
        if run.prompt_style and task.prompts:
            assert task.prompt_style == run.prompt_style
        spec = run.model
        if "trust_remote_code" in spec:
            assert "trust_remote_code" in str(build_model(spec).refuses(task))
            spec = {**spec, "trust_remote_code": True}
        assert build_model(spec).refuses(task) is None


def test_labels_are_unique() -> None:
    labels = [run.model["name"] for run in MODELS.values()]
    assert len(set(labels)) == len(labels)
