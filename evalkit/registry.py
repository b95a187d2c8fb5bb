"""From a name to a task: the files in `tasks/`, a path of your own, a published plug-in.

    task=vqav2            the default variant: the first in the family's TASKS
    task=vqav2/test-dev   a variant
    task=./mine.py        a file with TASKS = (Task(...), ...); ./mine.py:val names one of several
    task=docvqa           entry point `docvqa` of the group `evalkit.tasks` in an installed package

Only the family asked for is imported. `apply` then lays the settings over each other, each layer only what it names:
task default < the model's prompt style < the model's published protocol < command line.
"""

from __future__ import annotations

import dataclasses
import hashlib
import importlib
import importlib.metadata
import importlib.util
import sys
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any, TypeVar

from evalkit.errors import ConfigError, EvalkitError, unknown
from evalkit.extract import extractor
from evalkit.paths import bundled
from evalkit.prompts import FILTERS, fields_of
from evalkit.types import Decoding, Task

_T = TypeVar("_T")

GROUP = "evalkit.tasks"
"""Entry points of this group are task families: `docvqa = "my_package.docvqa:TASKS"`."""

SETTINGS = (
    "prompt",
    "prompt_style",
    "question_filter",
    "decoding",
    "image_size",
    "extract",
    "metric_variant",
    "k",
)
"""What a protocol and the command line may set of a task."""


def known_tasks() -> tuple[str, ...]:
    """Return the names of all families; imports none of them."""
    return tuple(sorted({*_bundled(), *_plugins()}))


def load_tasks(family: str) -> tuple[Task, ...]:
    """Return the tasks of a family, the default variant first.

    Raises:
        ConfigError: No such family, or a plug-in or task file that cannot be loaded.
    """
    if family in _bundled():
        module: Any = importlib.import_module(f"evalkit.tasks.{family}")
        return _tasks(module, f"tasks/{family}.py")
    plugins = _plugins()
    if family not in plugins:
        way_out = "or give a path to a .py file"
        raise ConfigError(unknown("task", family, known_tasks(), way_out))
    point = plugins[family]
    where = f"the plug-in {family!r} ({point.value})"
    try:
        found = point.load()
    except Exception as error:  # whatever a foreign package raises while it is imported, it is its fault, and named so
        raise _broken(where, error, None) from error
    return _tasks(found, where)


def resolve_task(name: str) -> Task:
    """Return the task of a name as `task=` takes it (see the module's text).

    Raises:
        ConfigError: Nothing goes by that name; what does is listed.
    """
    path, variant = _split(name)
    tasks = _from_file(Path(path)) if path.endswith(".py") else load_tasks(path)
    if not variant:
        return tasks[0]
    for task in tasks:
        if task.name.partition("/")[2] == variant:
            return task
    raise ConfigError(unknown(f"variant of {path}", variant, [task.name.partition("/")[2] for task in tasks]))


def _split(name: str) -> tuple[str, str]:
    """Return (family or path, variant or "")."""
    before, colon, variant = name.rpartition(":")
    if colon and before.endswith(".py"):
        return before, variant
    if name.endswith(".py"):
        return name, ""
    family, _, variant = name.partition("/")
    return family, variant


def apply(
    task: Task,
    *,
    prompt_style_of_model: str | None = None,
    protocol: Mapping[str, Any] | None = None,
    overrides: Mapping[str, Any] | None = None,
) -> Task:
    """Return the task with every setting in force.

    Args:
        task: The defaults.
        prompt_style_of_model: The form the model was trained with; a task without it keeps its own.
        protocol: From the model's file: settings by family or family/variant, the latter over the former.
        overrides: From the command line; None is not set. A `prompt_style` here discards a protocol's prompt.

    Raises:
        ConfigError: A setting, style, decoding field, filter, extraction or variant that does not exist.
    """
    if prompt_style_of_model in task.prompts:
        assert prompt_style_of_model is not None
        task = dataclasses.replace(task, prompt_style=prompt_style_of_model)
    for key in dict.fromkeys((task.family, task.name)):
        layer = (protocol or {}).get(key)
        if layer is None:
            continue
        if not isinstance(layer, Mapping):
            raise ConfigError(f"protocol.{key} should be a mapping of settings, but is {layer!r}")
        task = _overlay(task, layer, f"protocol.{key}")
    return _overlay(task, overrides or {}, "the command line")


def _overlay(task: Task, layer: Mapping[str, Any], where: str) -> Task:
    settings = {name: value for name, value in _nest(layer).items() if value is not None}
    for name in settings:
        if name not in SETTINGS:
            raise ConfigError(f"{where}: {unknown('task setting', name, SETTINGS)}")
    changes: dict[str, Any] = {}
    if "prompt_style" in settings:
        style = settings["prompt_style"]
        if style not in task.prompts:
            raise ConfigError(f"{where}: {unknown(f'prompt_style of {task.name}', str(style), task.prompts)}")
        changes |= {"prompt_style": style, "prompt": None}
    if "prompt" in settings:
        changes["prompt"] = str(settings["prompt"])
        _placed(where, fields_of, changes["prompt"])
    if "question_filter" in settings:
        changes["question_filter"] = _filter(str(settings["question_filter"]), where)
    if "decoding" in settings:
        changes["decoding"] = _decoding(task.decoding, settings["decoding"], where)
    if "extract" in settings:
        changes["extract"] = str(settings["extract"])
        _placed(where, extractor, changes["extract"])
    for name in ("image_size", "k"):
        if name in settings:
            changes[name] = _positive(settings[name], f"{where}: {name}")
    if "metric_variant" in settings:
        variant = str(settings["metric_variant"])
        if task.by_variant is None:
            raise ConfigError(
                f"{where}: the metric of {task.name} has no variants, so metric_variant={variant} means nothing"
            )
        changes |= {"variant": variant, "metrics": (_placed(where, task.by_variant, variant), *task.metrics[1:])}
    return dataclasses.replace(task, **changes)


def _nest(layer: Mapping[str, Any]) -> dict[str, Any]:
    """Return the layer with `decoding.num_beams` keys gathered under `decoding`."""
    nested = {name: value for name, value in layer.items() if not name.startswith("decoding.")}
    dotted = {name.partition(".")[2]: value for name, value in layer.items() if name.startswith("decoding.")}
    if dotted:
        nested["decoding"] = {**(nested.get("decoding") or {}), **dotted}
    return nested


def _filter(name: str, where: str) -> str | None:
    if name == "none":
        return None
    if name not in FILTERS:
        raise ConfigError(f"{where}: {unknown('question_filter', name, [*FILTERS, 'none'])}")
    return name


def _placed(where: str, function: Callable[[str], _T], value: str) -> _T:
    """Call a function that judges a value; its complaint is given the place the value came from."""
    try:
        return function(value)
    except ConfigError as error:
        raise ConfigError(f"{where}: {error}") from error


def _positive(value: Any, name: str) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ConfigError(f"{name} should be a whole number above 0, but is {value!r}")
    return value


_AT_LEAST: Mapping[str, float] = {
    "max_new_tokens": 1,
    "min_new_tokens": 0,
    "num_beams": 1,
    "repetition_penalty": 1e-9,
    "temperature": 0.0,
    "top_p": 1e-9,
    "top_k": 0,
    "rank_candidates": 0,
}


def _decoding(base: Decoding, values: Any, where: str) -> Decoding:
    if not isinstance(values, Mapping):
        raise ConfigError(f"{where}: decoding should be a mapping of settings, but is {values!r}")
    changes: dict[str, Any] = {}
    names = [field.name for field in dataclasses.fields(Decoding)]
    for name, value in values.items():
        if value is None:
            continue
        if name not in names:
            raise ConfigError(f"{where}: {unknown('decoding setting', str(name), names)}")
        now = getattr(base, name)
        if isinstance(now, tuple):
            value = (value,) if isinstance(value, str) else tuple(map(str, value))
        elif isinstance(value, bool) or not isinstance(value, int if isinstance(now, int) else (int, float)):
            kind = "a whole number" if isinstance(now, int) else "a number"
            raise ConfigError(f"{where}: decoding.{name} should be {kind}, but is {value!r}")
        elif value < _AT_LEAST.get(name, float("-inf")) or value != value:
            raise ConfigError(f"{where}: decoding.{name}={value} is below {_AT_LEAST.get(name, 0):g}")
        changes[name] = float(value) if isinstance(now, float) else value
    decoding = dataclasses.replace(base, **changes)
    if decoding.min_new_tokens > decoding.max_new_tokens:
        raise ConfigError(
            f"{where}: decoding.min_new_tokens={decoding.min_new_tokens} is above "
            f"decoding.max_new_tokens={decoding.max_new_tokens}"
        )
    return decoding


def _bundled() -> tuple[str, ...]:
    return tuple(sorted(path.stem for path in bundled("tasks").glob("*.py") if not path.stem.startswith("_")))


def _plugins() -> dict[str, importlib.metadata.EntryPoint]:
    return {point.name: point for point in importlib.metadata.entry_points(group=GROUP)}


def _from_file(path: Path) -> tuple[Task, ...]:
    if not path.is_file():
        raise ConfigError(f"task file {path} does not exist; known tasks: {', '.join(known_tasks())}")
    path = path.resolve()
    name = f"evalkit_task_{path.stem}_{hashlib.sha256(str(path).encode()).hexdigest()[:8]}"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses and pickle look a class's module up by name
    try:
        spec.loader.exec_module(module)
    except EvalkitError:
        raise
    except Exception as error:  # whatever the user's file raises, the file and the line are what he needs to know
        del sys.modules[name]
        raise _broken(f"task file {path}", error, path) from error
    return _tasks(module, f"task file {path}")


def _broken(where: str, error: Exception, path: Path | None) -> ConfigError:
    line = getattr(error, "lineno", None) if isinstance(error, SyntaxError) else None
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame.lineno for frame in frames if path is None or frame.filename == str(path)]
    line = line or (own[-1] if own else None)
    return ConfigError(f"{where} cannot be loaded: {type(error).__name__} at line {line}: {error}")


def _tasks(found: ModuleType | Any, where: str) -> tuple[Task, ...]:
    tasks = found.__dict__.get("TASKS") if isinstance(found, ModuleType) else found
    if isinstance(tasks, Task):
        tasks = (tasks,)
    if not isinstance(tasks, tuple | list) or not tasks or not all(isinstance(task, Task) for task in tasks):
        raise ConfigError(
            f"{where} should define TASKS = (Task(...), ...), with at least one task; see `evalkit.types.Task`"
        )
    names = [task.name for task in tasks]
    if len(set(names)) < len(names):
        raise ConfigError(f"{where} names a task twice: {', '.join(names)}")
    return tuple(tasks)
