"""Every key the command line accepts, and how a line of `key=value` becomes a `RunConfig`.

Hydra composes the groups (`model=`, `suite=`, `data=`, `engine=`) and knows sweeps; it stays in this file and in
`__main__`: below there are only frozen dataclasses. A typo is found before Hydra is imported, and lists what was meant.
"""

from __future__ import annotations

import dataclasses
import re
import types
import typing
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from evalkit import registry
from evalkit.errors import ConfigError, unknown
from evalkit.paths import bundled
from evalkit.types import Decoding

GROUPS = ("model", "suite", "data", "engine")
"""Folders of `configs/`: `model=blip2-tiny` names a file there."""


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """Where the rows come from. Any other key below `data.` names a file: `data.questions=FILE`."""

    kind: str = "hub"
    """files, hub or demo."""
    root: str | None = None
    """The folder in which official files lie under their official names."""
    check: bool = True
    """Stop when a split is not the official one; false lifts it and stamps the result."""
    max_pixels: int | None = None
    """An image with more pixels is a failed sample; null: the default of `evalkit.images`."""
    slots: Mapping[str, str] = field(default_factory=dict)
    """Files by slot."""


@dataclass(frozen=True, kw_only=True)
class EngineConfig:
    """How the work is done; changes no answer in fp32."""

    kind: str = "local"
    """local or ray."""
    image_batch: int = 16
    """Images encoded together: a unit of the plan."""
    prompt_batch: int = 32
    """Prompts answered together."""
    loader_threads: int = 4
    """Threads that open and preprocess images."""
    threads: int = 1
    """CPU threads of torch in each worker. Another number may change last bits."""
    heartbeat_s: float = 600.0
    """A worker that shows no sign of life for so long is replaced."""
    max_restarts: int = 3
    """So often a worker is replaced."""


@dataclass(frozen=True, kw_only=True)
class MetricsConfig:
    """What metrics may use on this machine."""

    java: str | None = None
    """A java program or a JAVA_HOME; null: JAVA_HOME, then PATH."""
    corenlp: str | None = None
    """The folder with CoreNLP 3.6.0, for SPICE."""
    cache: str | None = None
    """Folder for SPICE's parses; null: the user's cache folder."""
    names: tuple[str, ...] = ()
    """Only these metrics; empty: all."""
    threads: int = 0
    """0: one a core."""


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """Every key the command line accepts."""

    task: tuple[str, ...] = ()
    """Names, `family/variant`, or paths of .py files."""
    model: Mapping[str, Any] = field(default_factory=dict)
    """`_target_`, `name`, and the keyword arguments of the adapter."""
    protocol: Mapping[str, Any] = field(default_factory=dict)
    """From the model's file: settings published for a task, where they differ from the task's own."""
    data: DataConfig = field(default_factory=DataConfig)
    decoding: Mapping[str, Any] = field(default_factory=dict)
    """Fields of `Decoding` that replace the task's and the protocol's."""
    prompt: str | None = None
    """A template with {fields}; replaces every other prompt."""
    prompt_style: str | None = None
    """The form of prompt: completion, short-answer, chat ..."""
    question_filter: str | None = None
    """Cleaning of question texts: "blip", as LAVIS does, or "none"."""
    extract: str | None = None
    """How an output becomes an answer: names of `evalkit.extract`, joined by "+"."""
    metric_variant: str | None = None
    """The variant of the metric: official, legacy, m4c, vizwiz."""
    image_size: int | None = None
    """Pixels a side that the model is fed."""
    k: int | None = None
    """Retrieval: candidates re-ranked in each direction."""
    limit: int | None = None
    """Only the first so many samples in plan order; such a run never stands in a table of full ones."""
    out: str = "results/runs"
    """The folder of runs; leaderboards are written beside it."""
    devices: str = "1"
    """How many workers, one a device; "auto" is all GPUs. 1 runs in this process."""
    allow_partial: bool = False
    """Score what was answered although samples failed or are missing."""
    max_failed: int = 0
    """So many failed samples are accepted in a score."""
    engine: EngineConfig = field(default_factory=EngineConfig)
    metrics: MetricsConfig = field(default_factory=MetricsConfig)
    style_asked: bool = False
    """Whether `prompt_style` came from the command line, not from the model's file. Not a key."""


_NESTED: dict[str, type] = {"engine": EngineConfig, "metrics": MetricsConfig, "data": DataConfig, "decoding": Decoding}
_HIDDEN = ("data.slots", "data.kind", "engine.kind")
"""Fields that the files of `configs/` set, not keys: `data=files` is how to say it."""
_FREE = ("model", "data", "protocol", "hydra")
"""Below these any key is allowed here: an adapter, a task or Hydra itself judges it."""


def keys() -> list[str]:
    """Return every key of the command line, groups first."""
    top = [
        f.name for f in dataclasses.fields(RunConfig) if f.name not in (*_NESTED, "model", "protocol", "style_asked")
    ]
    nested = [f"{name}.{f.name}" for name, cls in _NESTED.items() for f in dataclasses.fields(cls)]
    return [*GROUPS, *top, *(key for key in nested if key not in _HIDDEN)]


def options(group: str, extra: Path | None = None) -> list[str]:
    """Return the names that can stand behind `model=`, `suite=`, `data=` or `engine=`."""
    folders = [bundled("configs") / group, *([extra / group] if extra else [])]
    return sorted({path.stem for folder in folders for path in folder.glob("*.yaml")})


@dataclass(frozen=True, kw_only=True)
class Override:
    """One `key=value` of the command line, as it was typed."""

    key: str
    value: str


def parse(argv: Sequence[str], extra: Path | None = None, *, needs_model: bool = True) -> list[Override]:
    """Split and check the overrides; a wrong key or group name is an error that lists the known ones.

    Args:
        argv: words of the form key=value.
        extra: a folder with more YAML files, laid out as `configs/`.
        needs_model: fill in the demo where nothing is named, ask for a model where only a task is.

    Raises:
        ConfigError: a word that is no `key=value`, an unknown key, an unknown model, suite, data or engine.
    """
    known = keys()
    overrides = []
    for word in argv:
        key, equals, value = word.partition("=")
        key = key.lstrip("+")
        if not equals or not key:
            raise ConfigError(
                f"{word!r} is not an option of the form key=value, nor a verb; verbs: {', '.join(VERBS)}; "
                f"keys: {', '.join(known)}"
            )
        top = key.partition(".")[0]
        free = key.startswith("hydra/") or (top in _FREE and "." in key and key not in _HIDDEN)
        if key not in known and not free:
            raise ConfigError(unknown("key", key, known, "python -m evalkit --help explains them"))
        overrides.append(Override(key=key, value=value))
    for override in overrides:
        if override.key in GROUPS:
            names = options(override.key, extra)
            for value in override.value.split(","):
                if value not in names:
                    raise ConfigError(unknown(override.key, value, names, _GROUP_HINTS[override.key]))
        elif override.key == "task":
            if not _names(override.value):
                raise ConfigError(f"task= names no task; known: {', '.join(registry.known_tasks())}")
            for name in _names(override.value):
                if ".py" not in name and name.partition("/")[0] not in registry.known_tasks():
                    raise ConfigError(unknown("task", name, registry.known_tasks(), "or give a path to a .py file"))
    return _with_defaults(overrides) if needs_model else overrides


VERBS = ("list", "show", "check", "score", "status", "leaderboard")
_GROUP_HINTS = {
    "model": "or bring your own: model=custom model._target_=my_package.MyModel; more YAML files with --config-dir DIR",
    "suite": "or name tasks with task=",
    "data": "files need data.root=DIR or single files such as data.questions=FILE",
    "engine": "",
}


def _with_defaults(overrides: list[Override]) -> list[Override]:
    """Without model, task and data the demo is meant: the bundled model on the bundled world."""
    given = {override.key for override in overrides}
    if {"task", "suite"} <= given:
        raise ConfigError("task= and suite= both name tasks; give one of them")
    if not given & {"model", "task", "suite", "data"}:
        overrides = [Override(key="model", value="blip2-tiny"), Override(key="data", value="demo"), *overrides]
    elif "model" not in given:
        names = ", ".join(options("model"))
        raise ConfigError(f"which model? Give model=NAME; known: {names} ({_GROUP_HINTS['model']})")
    if not given & {"task", "suite"}:
        overrides = [*overrides, Override(key="suite", value="all")]
    return overrides


def for_hydra(overrides: Iterable[Override], *, sweep: bool) -> list[str]:
    """Return the overrides in Hydra's grammar. Text values are quoted, so file names and prompts need no escapes.

    >>> for_hydra([Override(key="data.refs", value="/d/refs(unc).p"), Override(key="limit", value="5")], sweep=False)
    ["++data.refs='/d/refs(unc).p'", '++limit=5']
    """
    lines = []
    for override in overrides:
        if override.key in GROUPS or override.key.startswith(("hydra.", "hydra/")):
            lines.append(f"{override.key}={override.value}")
        elif _is_text(override.key) and not (sweep and override.key in ("task", "model.name", "model.checkpoint")):
            lines.append(f"++{override.key}={_quoted(override.value)}")
        else:
            lines.append(f"++{override.key}={override.value}")
    return lines


def searchpath(extra: Path) -> str:
    """Return the override that lets Hydra look into a folder of more YAML files, whatever its name holds."""
    return f"hydra.searchpath=[{_quoted(str(extra.resolve()))}]"


def _quoted(text: str) -> str:
    """Return the text so that Hydra and OmegaConf give it back as it is.

    Backslashes count only before what they could escape: an interpolation, a quote, the closing quote.
    """
    literal = re.sub(r"(\\*)\$\{", lambda m: m[1] * 2 + "\\${", text)
    return "'" + re.sub(r"(\\*)('|\Z)", lambda m: m[1] * 2 + (m[2] and "\\'"), literal) + "'"


def _is_text(key: str) -> bool:
    """Whether the value of a key is plain text, never a number or a list."""
    if key.startswith("data.") and key not in ("data.check", "data.max_pixels"):
        return True
    return key in (
        *("task", "out", "prompt", "prompt_style", "question_filter", "extract", "metric_variant", "devices"),
        *("model.name", "model.checkpoint", "model._target_", "metrics.java", "metrics.corenlp", "metrics.cache"),
    )


def compose(overrides: Sequence[Override], extra: Path | None = None) -> RunConfig:
    """Return the configuration of a run. Hydra's own errors become ConfigError."""
    from hydra import compose as hydra_compose
    from hydra import initialize_config_dir
    from hydra.errors import HydraException
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    lines = for_hydra(overrides, sweep=False)
    if extra is not None:
        lines.append(searchpath(extra))
    try:
        with initialize_config_dir(str(bundled("configs")), version_base="1.3"):
            composed = hydra_compose("config", lines)
        raw = OmegaConf.to_container(composed, resolve=True)
    except (HydraException, OmegaConfBaseException) as error:
        raise ConfigError(f"the command line cannot be read: {' '.join(str(error).split())}") from error
    return from_mapping(typing.cast("Mapping[str, Any]", raw), asked={override.key for override in overrides})


def from_mapping(raw: Mapping[str, Any], asked: Iterable[str]) -> RunConfig:
    """Return the RunConfig of a composed mapping, every value checked against its type.

    Args:
        raw: what Hydra composed: plain dicts, lists and numbers.
        asked: keys that stood on the command line.
    """
    values = dict(raw)
    values.pop("suite", None)
    task = values.pop("task", ())
    values["task"] = _names(task) if isinstance(task, str) else tuple(task)
    data = dict(values.pop("data", {}))
    fixed = {f.name for f in dataclasses.fields(DataConfig)} - {"slots"}
    slots = {name: str(data.pop(name)) for name in list(data) if name not in fixed}
    values["data"] = (
        _build(DataConfig, data, "data")
        if not slots
        else dataclasses.replace(_build(DataConfig, data, "data"), slots=slots)
    )
    values["engine"] = _build(EngineConfig, values.pop("engine", {}), "engine")
    values["metrics"] = _build(MetricsConfig, values.pop("metrics", {}), "metrics")
    values["devices"] = str(values.get("devices", "1"))
    values["style_asked"] = "prompt_style" in asked
    config = _build(RunConfig, values, "")
    if config.limit is not None and config.limit < 1:
        raise ConfigError(f"limit={config.limit} leaves no sample; give a number from 1")
    if config.devices != "auto" and not (config.devices.isdecimal() and int(config.devices) > 0):
        raise ConfigError(f"devices={config.devices}: give the number of workers, from 1, or auto (all GPUs)")
    if config.max_failed < 0:
        raise ConfigError(f"max_failed={config.max_failed}: give a number from 0")
    for name in ("image_batch", "prompt_batch", "loader_threads", "threads"):
        if getattr(config.engine, name) < 1:
            raise ConfigError(f"engine.{name}={getattr(config.engine, name)}: give a number from 1")
    _build(Decoding, dict(config.decoding), "decoding")
    return config


def to_mapping(config: RunConfig) -> dict[str, Any]:
    """Return what `from_mapping` makes the same configuration of: how a worker process is told it."""
    values = dataclasses.asdict(config)
    values.pop("style_asked")
    values["data"] |= values["data"].pop("slots")
    return values


def _names(value: str) -> tuple[str, ...]:
    """Return the names in `a`, `a,b` or `[a,b]`."""
    inner = value.strip()
    if inner.startswith("[") and inner.endswith("]"):
        inner = inner[1:-1]
    return tuple(name.strip() for name in inner.split(",") if name.strip())


T = TypeVar("T")


def _build(cls: type[T], values: Mapping[str, Any], prefix: str) -> T:
    """Return `cls(**values)` with every value checked against the type of its field."""
    hints = typing.get_type_hints(cls)
    for name in values:
        if name not in hints:
            dotted = f"{prefix}.{name}" if prefix else name
            raise ConfigError(unknown("key", dotted, [f"{prefix}.{n}" if prefix else n for n in hints]))
    checked = {
        name: _check(value, hints[name], f"{prefix}.{name}" if prefix else name) for name, value in values.items()
    }
    return cls(**checked)


def _check(value: Any, hint: Any, key: str) -> Any:
    """Return the value as its type wants it: an int serves as float, a list as tuple, a word as a tuple of one."""
    kinds = typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
    for kind in kinds:
        origin = typing.get_origin(kind)
        if origin is tuple and isinstance(value, str):
            return _names(value)
        if origin is tuple and isinstance(value, list | tuple):
            return tuple(value)
        if origin is not None and origin is not tuple and isinstance(value, Mapping):
            return dict(value)
        if origin is None and isinstance(kind, type):
            if kind is float and isinstance(value, int) and not isinstance(value, bool):
                return float(value)
            if isinstance(value, kind) and not (kind is int and isinstance(value, bool)):
                return value
    wanted = " or ".join("null" if kind is type(None) else getattr(kind, "__name__", str(kind)) for kind in kinds)
    raise ConfigError(f"{key}={value!r} is not of the right kind: it takes {wanted}")
