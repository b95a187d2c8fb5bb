"""Checkpoints: where they are, whether they are whole, and how they are loaded.

Only safetensors are read, and only when every weight of the architecture is in them: a checkpoint that loads with
random parts gives numbers, too.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass, fields
from functools import cached_property
from pathlib import Path
from typing import Any

from ..errors import ConfigError, ModelError, UnsupportedError, unknown
from ..types import Json

_BUNDLED = Path(__file__).resolve().parents[1] / "demo"
_HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")
_READ = ("*.json", "*.safetensors", "*.txt", "*.model", "*.jinja", "*.tiktoken")
_CODE = "*.py"
_PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl")
_DTYPES = ("auto", "float32", "float16", "bfloat16")
_QUANTIZATIONS = ("int8", "int4")
_BACKENDS = ("pil", "torchvision")


@dataclass(frozen=True)
class Checkpoint:
    """A folder of files, found when it is first needed (a hub name is downloaded then)."""

    name: str
    """A folder, a hub name such as "Salesforce/blip2-opt-2.7b", or "demo:NAME" for a bundled one."""
    revision: str | None = None
    """Branch, tag or commit of a hub name."""
    part: str = "."
    """The sub-folder that is the model."""
    code: bool = False
    """Whether its Python files may be run (and so belong to it)."""
    folders: tuple[str, ...] = ()
    """Sub-folders that belong to it, such as a second tokenizer."""

    @cached_property
    def folder(self) -> Path:
        """The folder, checked.

        Raises:
            ModelError: It cannot be had, is no model, or its weights are not whole safetensors.
        """
        folder = self._root() / self.part
        if not (folder / "config.json").is_file():
            raise ModelError(self._no_config(folder))
        _check_weights(folder, self.name)
        return folder

    @property
    def files(self) -> dict[str, Path]:
        """The files that make up the model, by name: weights, configuration, tokenizer, processor."""
        weights = _weight_names(self.folder)
        found = {
            path.relative_to(self.folder).as_posix(): path
            for folder in (self.folder, *(self.folder / name for name in self.folders))
            for pattern in self._patterns()
            for path in folder.glob(pattern)
            if path.is_file()
        }
        return {name: found[name] for name in sorted(found) if name in weights or not name.endswith(".safetensors")}

    @cached_property
    def config(self) -> dict[str, Any]:
        """The parsed config.json."""
        path = self.folder / "config.json"
        try:
            value = json.loads(path.read_text(encoding="utf-8"))
        except ValueError as error:
            raise ModelError(f"config.json of checkpoint {self.name} is not valid JSON: {error}") from error
        if not isinstance(value, dict):
            raise ModelError(f"config.json of checkpoint {self.name} holds a {type(value).__name__}, not an object")
        return value

    @property
    def family(self) -> str:
        """The `model_type` of config.json.

        Raises:
            ModelError: There is none.
        """
        found = self.config.get("model_type")
        if not isinstance(found, str):
            raise ModelError(
                f"config.json of checkpoint {self.name} names no family (model_type), so nobody knows what it is; copy "
                "it again, or give the folder that `save_pretrained` wrote"
            )
        return found

    def expect(self, model_types: Collection[str], architectures: Collection[str] = ()) -> None:
        """Check that this is a checkpoint of a family.

        Args:
            model_types: Values of `model_type` that the adapter reads.
            architectures: Classes it can load; a configuration that names none is taken at its word.

        Raises:
            ModelError: It is of another family, or the other half of it.
        """
        found = self.family
        if found not in model_types:
            raise ModelError(
                f"checkpoint {self.name} is of the family {found!r}, and this adapter reads "
                f"{' or '.join(repr(name) for name in sorted(model_types))}; choose the model=... of its family "
                "(`python -m evalkit list` shows them) or another model.checkpoint"
            )
        named = self.config.get("architectures") or []
        if architectures and named and not set(named) & set(architectures):
            raise ModelError(
                f"checkpoint {self.name} holds {', '.join(named)}, and this task needs "
                f"{' or '.join(sorted(architectures))}"
            )

    def _root(self) -> Path:
        scheme, _, rest = self.name.partition(":")
        if scheme == "demo" and rest:
            return self._bundled(rest)
        folder = Path(self.name).expanduser()
        if folder.is_dir():
            return folder
        if not _HUB_NAME.fullmatch(self.name) or self.name.startswith("."):
            raise ModelError(
                f"checkpoint {self.name!r} is neither a folder nor a name on the hub (owner/name); "
                "set model.checkpoint to one of these"
            )
        return self._download()

    def _bundled(self, name: str) -> Path:
        folder = _BUNDLED / name
        if not re.fullmatch(r"[\w-]+", name) or not folder.is_dir():
            known = [path.name for path in _BUNDLED.iterdir() if (path / "generate").is_dir()]
            raise ModelError(unknown("bundled checkpoint", name, known))
        return folder

    def _download(self) -> Path:
        from huggingface_hub import snapshot_download
        from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

        folders = [Path(self.part), *(Path(self.part) / name for name in self.folders)]
        patterns = [(folder / pattern).as_posix() for folder in folders for pattern in self._patterns()]
        try:
            return Path(snapshot_download(self.name, revision=self.revision, allow_patterns=patterns))
        except LocalEntryNotFoundError as error:
            raise ModelError(
                f"checkpoint {self.name}{self._at()} is no folder here and not in the hub's cache, and the hub cannot "
                f"be reached. Correct the name, or download it where there is a network (`hf download {self.name}`) "
                "and give the folder: model.checkpoint=DIR"
            ) from error
        except HfHubHTTPError as error:
            raise ModelError(
                f"checkpoint {self.name}{self._at()} is no folder here, and the hub does not give it: {error}. Check "
                "the name and the revision; for a gated model accept its terms and run `hf auth login`"
            ) from error

    def _patterns(self) -> tuple[str, ...]:
        return (*_READ, _CODE) if self.code else _READ

    def _at(self) -> str:
        return f" (revision {self.revision})" if self.revision else ""

    def _no_config(self, folder: Path) -> str:
        where = self.name if self.part == "." else f"{self.name} (sub-folder {self.part})"
        if self.part != "." and (folder.parent / "config.json").is_file():
            return (
                f"checkpoint {self.name} has no sub-folder {self.part!r}, but is a model itself; say so with "
                f"model.{self.part}=."
            )
        return (
            f"checkpoint {where} is not a model: it has no config.json. Give the folder that `save_pretrained` wrote, "
            "or a hub name"
        )


@dataclass(frozen=True)
class Loading:
    """How weights and images are loaded: the settings every local adapter takes."""

    dtype: str = "auto"
    """"auto": float32 on a CPU, elsewhere what the checkpoint was saved in; or float32, float16, bfloat16."""
    device: str = "auto"
    """"auto": the first GPU, else the CPU; or cpu, cuda, cuda:1, mps."""
    attention: str | None = None
    """eager, sdpa, flash_attention_2 ...; None: transformers' choice."""
    quantization: str | None = None
    """int8 or int4 (bitsandbytes, needs a GPU)."""
    trust_remote_code: bool = False
    """Whether Python files of the checkpoint may be run."""
    image_backend: str = "pil"
    """pil (as the published numbers) or torchvision, which gives other pixels."""

    @classmethod
    def of(cls, settings: Mapping[str, Any]) -> Loading:
        """Return the settings, checked.

        Raises:
            ConfigError: A name or a value that is not known.
            UnsupportedError: A value that needs a package which is not installed.
        """
        names = [field.name for field in fields(cls)]
        for name in settings:
            if name not in names:
                raise ConfigError(unknown("model setting", name, names))
        loading = cls(**settings)
        _one_of("dtype", loading.dtype, _DTYPES)
        _one_of("image_backend", loading.image_backend, _BACKENDS)
        if loading.quantization is not None:
            _one_of("quantization", loading.quantization, _QUANTIZATIONS)
            _installed("bitsandbytes", f"model.quantization={loading.quantization}")
        if loading.image_backend == "torchvision":
            _installed("torchvision", "model.image_backend=torchvision")
        return loading

    def identity(self) -> dict[str, Json]:
        """Return what of this changes answers, with the minor versions of the libraries that compute them."""
        return {
            "dtype": self.resolved_dtype(),
            "attention": self.attention or "default",
            "quantization": self.quantization,
            "image_backend": self.image_backend,
            "torch": _minor("torch"),
            "transformers": _minor("transformers"),
        }

    def resolved_device(self) -> str:
        """Return the device "auto" stands for on this machine.

        Raises:
            UnsupportedError: The device that was asked for is not there.
        """
        import torch

        if self.device != "auto":
            _check_device(self.device)
            return self.device
        return "cuda" if torch.cuda.is_available() else "cpu"

    def resolved_dtype(self) -> str:
        """Return the dtype "auto" stands for; "checkpoint": as it was saved."""
        if self.dtype != "auto":
            return self.dtype
        return "float32" if self.resolved_device() == "cpu" else "checkpoint"

    def load(self, checkpoint: Checkpoint, class_name: str) -> Any:
        """Return the model, whole, on its device, in evaluation mode.

        Args:
            checkpoint: Where it is.
            class_name: Its class in transformers.

        Raises:
            ModelError: Weights are missing or do not fit the architecture, or it cannot be read.
            UnsupportedError: This machine or model cannot do what the settings ask.
        """
        import torch
        import transformers
        from safetensors import SafetensorError

        quiet()
        self._check_config(checkpoint)
        cls = getattr(transformers, class_name)
        try:
            model, report = cls.from_pretrained(
                checkpoint.folder, output_loading_info=True, **self._arguments(checkpoint)
            )
        except (OSError, SafetensorError) as error:
            raise ModelError(f"checkpoint {checkpoint.name} cannot be read as {class_name}: {error}") from error
        except (ValueError, ImportError) as error:
            raise UnsupportedError(
                f"checkpoint {checkpoint.name} cannot be loaded as asked (model.dtype={self.dtype}, model.attention="
                f"{self.attention or 'null'}, model.quantization={self.quantization or 'null'}): "
                f"{_first_sentence(error)}. Change that setting or leave it out, or install what it needs"
            ) from error
        except torch.OutOfMemoryError as error:
            raise self._too_large(checkpoint) from error
        _check_whole(report, checkpoint.name, class_name)
        if self.quantization is None:
            try:
                model = model.to(self.resolved_device())
            except torch.OutOfMemoryError as error:
                raise self._too_large(checkpoint) from error
        return model.eval()

    def load_tokenizer(self, checkpoint: Checkpoint, padding_side: str, part: str = ".") -> Any:
        """Return the tokenizer, padding on this side and never truncating by itself.

        Args:
            checkpoint: Where it is.
            padding_side: "left" or "right".
            part: Its sub-folder.

        Raises:
            ModelError: The checkpoint has none, or it cannot be read.
            UnsupportedError: It needs a package that is not installed.
        """
        from transformers import AutoTokenizer

        quiet()
        self._check_config(checkpoint)
        folder = checkpoint.folder / part
        if not any((folder / name).is_file() for name in _TOKENIZER_FILES):
            where = "" if part == "." else f" in its sub-folder {part}"
            raise ModelError(
                f"checkpoint {checkpoint.name} has no tokenizer{where} "
                f"({', '.join(_TOKENIZER_FILES)}): copy these files from "
                "the model it was made from, or save it with `processor.save_pretrained(DIR)`"
            )
        try:
            tokenizer = AutoTokenizer.from_pretrained(
                folder, local_files_only=True, trust_remote_code=self.trust_remote_code
            )
        except ImportError as error:
            raise _lacks("the tokenizer", checkpoint, error) from error
        except Exception as error:  # tokenizers raises bare ones at a file that it cannot parse
            raise ModelError(
                f"the tokenizer of checkpoint {checkpoint.name} cannot be read ({type(error).__name__}: {error}); copy "
                "its files again from the model it was made from"
            ) from error
        tokenizer.padding_side = padding_side
        return tokenizer

    def load_image_processor(self, checkpoint: Checkpoint) -> Any:
        """Return the image processor with the asked backend.

        Raises:
            ModelError: The checkpoint has none, or it cannot be read.
        """
        from transformers import AutoImageProcessor

        quiet()
        self._check_config(checkpoint)
        if not any((checkpoint.folder / name).is_file() for name in _PROCESSOR_FILES):
            raise ModelError(
                f"checkpoint {checkpoint.name} has no image processor ({' or '.join(_PROCESSOR_FILES)}): copy the file "
                "from the model it was made from, or save it with `processor.save_pretrained(DIR)`"
            )
        try:
            return AutoImageProcessor.from_pretrained(
                checkpoint.folder,
                backend=self.image_backend,
                local_files_only=True,
                trust_remote_code=self.trust_remote_code,
            )
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            names = " or ".join(name for name in _PROCESSOR_FILES if (checkpoint.folder / name).is_file())
            raise ModelError(
                f"the image processor of checkpoint {checkpoint.name} cannot be read from {names} "
                f"({type(error).__name__}: {_first_sentence(error)}); copy it again from the model it was made from"
            ) from error

    def _check_config(self, checkpoint: Checkpoint) -> None:
        """Read the configuration as transformers does, so that what is wrong with it is not said of another file."""
        from huggingface_hub.errors import StrictDataclassError
        from transformers import AutoConfig

        family = checkpoint.family
        try:
            AutoConfig.from_pretrained(
                checkpoint.folder, local_files_only=True, trust_remote_code=self.trust_remote_code
            )
        except ImportError as error:
            raise _lacks("the code", checkpoint, error) from error
        except (OSError, ValueError, KeyError, TypeError, AttributeError, StrictDataclassError) as error:
            raise ModelError(
                f"config.json of checkpoint {checkpoint.name} (family {family!r}) cannot be read by transformers "
                f"{importlib.metadata.version('transformers')} ({_first_sentence(error)}); copy it again, or install "
                f"the version it was saved with ({checkpoint.config.get('transformers_version', 'not said')}) or a "
                "newer one"
            ) from error

    def _too_large(self, checkpoint: Checkpoint) -> UnsupportedError:
        return UnsupportedError(
            f"checkpoint {checkpoint.name} does not fit into the memory of {self.resolved_device()} as "
            f"{self.resolved_dtype()}; use model.dtype=bfloat16, model.quantization=int8 (or int4), or another "
            "model.device"
        )

    def _arguments(self, checkpoint: Checkpoint) -> dict[str, Any]:
        import torch

        dtype = self.resolved_dtype()
        arguments: dict[str, Any] = {
            "dtype": "auto" if dtype == "checkpoint" else getattr(torch, dtype),
            "use_safetensors": True,
            # Not ignored: so that the report names them, and `_check_whole` refuses.
            "ignore_mismatched_sizes": True,
            "local_files_only": True,
            "trust_remote_code": self.trust_remote_code,
        }
        if self.attention is not None:
            arguments["attn_implementation"] = self.attention
        if self.quantization is not None:
            from transformers import BitsAndBytesConfig

            arguments["device_map"] = {"": self.resolved_device()}
            arguments["quantization_config"] = BitsAndBytesConfig(
                load_in_8bit=self.quantization == "int8", load_in_4bit=self.quantization == "int4"
            )
        return arguments


_TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "tokenizer.model",
    "spiece.model",
    "vocab.txt",
    "vocab.json",
)
_PROCESSOR_FILES = ("preprocessor_config.json", "processor_config.json")


def quiet() -> None:
    """Keep transformers' progress bars and advice out of our own progress line."""
    import transformers

    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()


def _one_of(name: str, value: str, known: Collection[str]) -> None:
    if value not in known:
        raise ConfigError(unknown(f"model.{name}", str(value), known))


def _installed(package: str, setting: str) -> None:
    if importlib.util.find_spec(package) is None:
        raise UnsupportedError(f"{setting} needs the package {package}, which is not installed: pip install {package}")


def _check_device(name: str) -> None:
    import torch

    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ConfigError(f"model.device={name} is no device; say auto, cpu, cuda, cuda:1 or mps") from error
    if device.type == "cuda" and (device.index or 0) >= (number := torch.cuda.device_count()):
        seen = f"{number} GPUs" if number else "no GPU"
        raise UnsupportedError(
            f"model.device={name}: torch {torch.__version__} sees {seen} on this machine; use model.device=cpu, or "
            "install a torch that was built for its driver"
        )
    if device.type == "mps" and not torch.backends.mps.is_available():
        raise UnsupportedError(f"model.device={name}: torch sees no Apple GPU on this machine; use model.device=cpu")


def _lacks(part: str, checkpoint: Checkpoint, error: ImportError) -> UnsupportedError:
    return UnsupportedError(
        f"{part} of checkpoint {checkpoint.name} needs a package that is not installed: {_first_sentence(error)}"
    )


def _first_sentence(error: Exception) -> str:
    """Return what a library says is wrong, without its advice."""
    return re.split(r"[.!]\s", f"{error} ", maxsplit=1)[0].strip()


def _minor(package: str) -> str:
    return ".".join(importlib.metadata.version(package).split(".")[:2])


def _weight_names(folder: Path) -> set[str]:
    """Return the names of the safetensors files that transformers reads from this folder."""
    if (folder / "model.safetensors").is_file():
        return {"model.safetensors"}
    index = folder / "model.safetensors.index.json"
    if not index.is_file():
        return set()
    try:
        return set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ModelError(f"{index.name} of checkpoint folder {folder.name} is broken: {error!r}") from error


def _check_weights(folder: Path, name: str) -> None:
    weights = _weight_names(folder)
    if not weights:
        pickles = sorted(path.name for pattern in _PICKLES for path in folder.glob(pattern))
        if pickles:
            raise ModelError(
                f"checkpoint {name} holds its weights as pickle ({', '.join(pickles[:3])}), which can run code when it "
                "is opened; evalkit reads safetensors only. If you trust the file, convert it once: "
                f"model = <its transformers class>.from_pretrained({name!r}); model.save_pretrained(DIR), copy the "
                "tokenizer and processor files beside it, and give model.checkpoint=DIR"
            )
        raise ModelError(f"checkpoint {name} has no weights: neither model.safetensors nor its index is there")
    for weight in sorted(weights):
        if Path(weight).name != weight:
            raise ModelError(f"the index of checkpoint {name} names a file outside its folder: {weight!r}")
        _check_safetensors(folder / weight, name)


def _check_safetensors(path: Path, name: str) -> None:
    """Compare the header of a safetensors file with its size (format: 8 bytes length, JSON, data)."""
    if not path.is_file():
        raise ModelError(f"checkpoint {name} lacks {path.name}, which its index names; copy it again")
    size = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        header = file.read(length) if length <= size else b""
    try:
        entries = json.loads(header)
        end = max((entry["data_offsets"][1] for key, entry in entries.items() if key != "__metadata__"), default=0)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ModelError(
            f"{path.name} of checkpoint {name} is not a whole safetensors file ({size} bytes); copy it again"
        ) from error
    if size != 8 + length + end:
        raise ModelError(
            f"{path.name} of checkpoint {name} is not whole: {size} bytes, its header says {8 + length + end}; "
            "copy it again"
        )


def _check_whole(report: Mapping[str, Any], name: str, class_name: str) -> None:
    missing = [str(key) for key in report.get("missing_keys", ())]
    mismatched = [str(key[0] if isinstance(key, tuple) else key) for key in report.get("mismatched_keys", ())]
    random = sorted(missing) + sorted(mismatched)
    if random:
        raise ModelError(
            f"checkpoint {name} does not fill {class_name}: {len(random)} of its weights, such as "
            f"{', '.join(random[:3])}, are missing or have another shape and would be random. It belongs to another "
            "architecture or was saved in part"
        )
