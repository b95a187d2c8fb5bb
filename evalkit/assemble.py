"""From settings to things: the model, the task, its data and prompts; the same in the launcher and in every worker.

Nothing is loaded but annotation files: what can be known to be wrong is found here, before weights are.
"""

from __future__ import annotations

import dataclasses
import importlib
import inspect
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

from evalkit import plan, registry
from evalkit.config import DataConfig, MetricsConfig, RunConfig
from evalkit.data import fingerprint, load_dataset
from evalkit.errors import ConfigError, ModelError, UnsupportedError
from evalkit.extract import preflight
from evalkit.paths import user_cache
from evalkit.prompts import clean, fill
from evalkit.types import Dataset, MetricSettings, Model, Task
from evalkit.work import Assignment


def limit_threads(threads: int) -> None:
    """Fix the number of CPU threads: the same row through one Linear differs in its last bits with another number."""
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):
        os.environ[name] = str(threads)
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    torch = sys.modules.get("torch")
    if torch is not None:
        torch.set_num_threads(threads)


def build_model(spec: Mapping[str, Any]) -> Model:
    """Return the adapter that `model._target_` names, given the other keys below `model.`.

    Raises:
        ConfigError: no such class, or keys it does not take.
    """
    arguments = {key: value for key, value in spec.items() if key not in ("_target_", "name")}
    target = spec.get("_target_")
    if not isinstance(target, str) or "." not in target:
        raise ConfigError(f"model._target_={target!r} names no class; give one like model._target_=my_package.MyModel")
    module_name, _, class_name = target.rpartition(".")
    if "" not in sys.path and os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())  # `evalkit` as a command sees a module beside you, as `python -m evalkit` does
    try:
        cls = getattr(importlib.import_module(module_name), class_name)
    except ModuleNotFoundError as error:
        if error.name and (module_name == error.name or module_name.startswith(f"{error.name}.")):
            raise ConfigError(f"model._target_={target}: there is no module {error.name!r} here") from error
        raise ModelError(f"model._target_={target} needs the package {error.name!r}: pip install it") from error
    except AttributeError as error:
        raise ConfigError(f"model._target_={target}: module {module_name} has no class {class_name!r}") from error
    parameters = inspect.signature(cls).parameters
    if not any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values()):
        for key in arguments:
            if key not in parameters:
                known = ", ".join(sorted(parameters)) or "none"
                raise ConfigError(f"{class_name} takes no model.{key}; it takes: {known}")
    missing = [
        name for name, p in parameters.items()
        if p.default is p.empty and p.kind in (p.KEYWORD_ONLY, p.POSITIONAL_OR_KEYWORD) and name not in arguments
    ]  # fmt: skip
    if missing:
        raise ConfigError(f"{class_name} needs {', '.join(f'model.{name}=' for name in missing)}")
    return cast("Model", cls(**arguments))


def assignment(spec: str, config: RunConfig, model: Model, folder: Path) -> Assignment:
    """Return a task with its data and prompts; every process of a run makes the same one.

    Raises:
        EvalkitError: an unknown name, a setting the model cannot honour, files that are missing or broken.
    """
    task = resolve(spec, config, model)
    refusal = model.refuses(task)
    if refusal:
        raise UnsupportedError(f"model {config.model.get('name')} cannot do {task.name}: {refusal}")
    if reason := preflight(task.extract):
        raise UnsupportedError(f"{task.name} with extract={task.extract}: {reason}")
    dataset = limited(dataset_of(task, config.data, images_needed=False), config.limit)
    if task.decoding.rank_candidates and not dataset.candidates:
        raise ConfigError(
            f"{task.name} has no candidates to rank: give the answer list (data.answers=FILE), or set "
            "decoding.rank_candidates=0 to let the model write its answers"
        )
    prompts: dict[str, str] = {}
    if task.kind == "retrieve":
        texts = (dataclasses.replace(text, text=clean(text.text, task.question_filter)) for text in dataset.texts)
        dataset = dataclasses.replace(dataset, texts=tuple(texts))
    else:
        prompts = {sample.id: fill(task, sample) for sample in dataset.samples}
    return Assignment(
        task=task, dataset=dataset, prompts=prompts, label=label_of(task, spec), folder=folder, engine=config.engine
    )


def resolve(spec: str, config: RunConfig, model: Model | None = None) -> Task:
    """Return the task with every setting in force: task < model < protocol < command line."""
    task = registry.resolve_task(spec)
    box = getattr(model, "box_extract", None)
    if task.kind == "ground" and box:
        task = dataclasses.replace(task, extract=box)
    asked = {
        "prompt": config.prompt,
        "prompt_style": config.prompt_style if config.style_asked else None,
        "question_filter": config.question_filter,
        "extract": config.extract,
        "metric_variant": config.metric_variant,
        "image_size": config.image_size,
        "k": config.k,
        "decoding": dict(config.decoding) or None,
    }
    return registry.apply(
        task,
        prompt_style_of_model=None if config.style_asked else config.prompt_style,
        protocol=config.protocol,
        overrides={key: value for key, value in asked.items() if value is not None},
    )


def label_of(task: Task, spec: str) -> str:
    """Return the task's name as a folder: `vqav2` for a family's default variant, else `vqav2-test-dev`."""
    default = registry.resolve_task(spec.partition(":")[0] if ".py" in spec else task.family)
    return task.family if default.name == task.name else task.name.replace("/", "-")


def dataset_of(task: Task, data: DataConfig, *, images_needed: bool) -> Dataset:
    """Return the dataset of a task as `data=` says; the picture world is drawn on first use."""
    root = Path(data.root) if data.root else None
    demo = data.kind == "demo"
    if demo:
        from evalkit.demo.world import ensure_world

        if root is not None or data.slots:
            raise ConfigError("data=demo brings its own files; with data.root= or a single file give data=files")
        root = ensure_world()
    pixels = {} if data.max_pixels is None else {"max_pixels": data.max_pixels}
    return load_dataset(
        task,
        kind="hub" if data.kind == "hub" else "files",
        root=root,
        given={name: Path(path) for name, path in data.slots.items()},
        check=data.check,
        images_needed=images_needed,
        demo=demo,
        **pixels,
    )


def limited(dataset: Dataset, limit: int | None) -> Dataset:
    """Return the first `limit` samples in plan order, with the candidate texts of their images, stamped.

    They stay in the order of the file: a mean and CIDEr's word frequencies are summed up as the official scripts do.
    """
    if limit is None or limit >= len(dataset.samples):
        return dataset
    first = {sample.id for sample in plan.in_order(dataset.samples)[:limit]}
    samples = tuple(sample for sample in dataset.samples if sample.id in first)
    images = {sample.id for sample in samples}
    texts = tuple(text for text in dataset.texts if images.intersection(text.image_ids))
    stamps = (*dataset.stamps, "limited")
    return dataclasses.replace(
        dataset, samples=samples, texts=texts, stamps=stamps, fingerprint=fingerprint(samples, texts)
    )


def metric_settings(config: MetricsConfig) -> MetricSettings:
    """Return what the metrics may use."""
    return MetricSettings(
        java=config.java,
        corenlp=config.corenlp,
        cache=Path(config.cache) if config.cache else user_cache() / "spice",
        names=config.names,
        threads=config.threads,
    )
