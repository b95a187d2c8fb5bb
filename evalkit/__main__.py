"""`python -m evalkit model=... task=...` and the verbs. Errors of the user are printed without a traceback.

Exit codes: 0 done, 1 a bug (traceback), 2 user error, 3 failed or missing samples, 4 not comparable, 130 interrupted.
"""

from __future__ import annotations

import os
import sys
import tempfile
import uuid
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from evalkit import __version__
from evalkit.errors import ConfigError, EvalkitError

if TYPE_CHECKING:
    from evalkit.config import Override

HELP = """\
evalkit: evaluate vision-language models

  python -m evalkit                                    the demo: the bundled tiny BLIP-2 on a drawn world, all tasks
  python -m evalkit model=NAME task=NAME [key=value ...]
  python -m evalkit -m model=a,b task=vqav2,gqa        a sweep
  python -m evalkit list                               tasks, models, suites
  python -m evalkit show                               which model does which task
  python -m evalkit show model=NAME task=NAME          prompt, decoding, extraction ... that would be used
  python -m evalkit check model=NAME                   does the checkpoint keep the promises of an adapter
  python -m evalkit score RUN... [key=value ...]       score stored predictions again; no model is loaded
  python -m evalkit score task=T predictions=FILE      score a result file in the benchmark's official format
  python -m evalkit status RUN...                      how far runs are, who writes, how each start ended
  python -m evalkit leaderboard [out=DIR]              write the tables of all runs

keys
  model=NAME  task=NAME | [a,b] | ./mine.py  suite=NAME  data=hub | files | demo
  data.root=DIR  data.<file>=FILE  data.check=false    official files below DIR, or one by one (questions, refs ...)
  model.checkpoint=DIR  model.name=LABEL               any other argument of the adapter as model.<argument>=
  limit=N  out=DIR  devices=N | auto                   out: default results/runs; tables are written beside it
  prompt="Question: {question} Answer:"  prompt_style=  question_filter=  extract=  metric_variant=  image_size=  k=
  decoding.<field>=                                    max_new_tokens, num_beams, length_penalty, temperature, stop ...
  data.max_pixels=N                                    an image with more pixels is a failed sample
  metrics.names=[CIDEr]  metrics.java=PATH  metrics.corenlp=DIR  metrics.cache=DIR  metrics.threads=N
  allow_partial=true  max_failed=N                     score although samples are missing or failed
  engine=local  engine.image_batch=  engine.prompt_batch=  engine.loader_threads=  engine.threads=
  engine.heartbeat_s=  engine.max_restarts=            when a silent worker is replaced, and how often
  --config-dir DIR                                     more YAML files: DIR/model/mine.yaml makes model=mine

exit codes: 0 done, 1 a bug, 2 a mistake in the command or the files, 3 samples failed or missing, 130 interrupted
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; return the exit code."""
    words = list(sys.argv[1:] if argv is None else argv)
    try:
        return _guarded(lambda: _dispatch(words))
    except KeyboardInterrupt:
        print("evalkit: interrupted; what was written is kept, the same command continues", file=sys.stderr)
        return 130
    except BrokenPipeError:
        # The reader of a pipe has left; Python would complain once more when it flushes stdout at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0


def _guarded(function: Callable[[], int]) -> int:
    """Return the function's exit code; a user's error is printed as one paragraph."""
    try:
        return function()
    except EvalkitError as error:
        print(f"evalkit: {' '.join(str(error).split())}", file=sys.stderr)
        return error.exit_code


def _dispatch(words: list[str]) -> int:
    if any(word in ("-h", "--help", "help") for word in words):
        print(HELP, end="")
        return 0
    if words and words[0] in ("--version", "version"):
        print(f"evalkit {__version__}")
        return 0
    from evalkit import config

    words, extra = _config_dir(words)
    if words and words[0] in config.VERBS:
        from evalkit import verbs

        return verbs.run(words[0], words[1:], extra)
    sweep = [word for word in words if word in ("-m", "--multirun")]
    overrides = config.parse([word for word in words if word not in sweep], extra)
    if sweep:
        return _sweep(overrides, words, extra)
    run = config.compose(overrides, extra)
    from evalkit.launch import launch

    return launch(run, words)


def _config_dir(words: list[str]) -> tuple[list[str], Path | None]:
    """Take `--config-dir DIR` out of the words."""
    rest: list[str] = []
    folder: str | None = None
    left = iter(words)
    for word in left:
        if word == "--config-dir":
            folder = next(left, None)
            if folder is None:
                raise ConfigError("--config-dir needs a folder that holds model/*.yaml, suite/*.yaml ...")
        elif word.startswith("--config-dir="):
            folder = word.partition("=")[2]
        else:
            rest.append(word)
    if folder is not None and not Path(folder).is_dir():
        raise ConfigError(f"--config-dir {folder} is not a folder")
    return rest, Path(folder) if folder is not None else None


def _sweep(overrides: Sequence[Override], words: Sequence[str], extra: Path | None) -> int:
    """Run every combination of `key=a,b` values through Hydra's launcher; return the worst exit code."""
    import hydra
    from omegaconf import DictConfig, OmegaConf

    from evalkit import config
    from evalkit.paths import bundled

    lines = config.for_hydra(overrides, sweep=True)
    if extra is not None:
        lines.append(config.searchpath(extra))
    # A launcher such as submitit_slurm runs the jobs in other processes, which share this folder and no memory.
    with tempfile.TemporaryDirectory(prefix=".evalkit-sweep-", dir=".") as folder:
        notes = Path(folder).resolve()

        def job(composed: DictConfig) -> None:
            def one() -> int:
                from evalkit.launch import launch

                raw = cast("dict[str, Any]", OmegaConf.to_container(composed, resolve=True))
                return launch(config.from_mapping(raw, {override.key for override in overrides}), words)

            note = notes / uuid.uuid4().hex
            note.write_text("1")  # a bug ends the sweep with its traceback, through Hydra
            code = _guarded(one)
            note.write_text(str(code))
            if code == 130:
                raise KeyboardInterrupt

        sys.argv = [sys.argv[0], "-m", *lines]
        refused = False
        try:
            hydra.main(version_base="1.3", config_path=str(bundled("configs")), config_name="config")(job)()
        except SystemExit:
            refused = True
        codes = [int(note.read_text()) for note in notes.iterdir()]
    if refused:
        return 1 if 1 in codes else 2  # without a job that broke, Hydra refused the command line
    return max(codes, default=2)


if __name__ == "__main__":
    sys.exit(main())
