"""Models that misbehave on purpose, for the tests of workers: `model=custom model._target_=tests.odd_models.Odd`."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from evalkit.errors import ModelError
from evalkit.models.fake import Fake
from evalkit.types import Decoding, Encoded, Json, Prompt, Task


class Odd(Fake):
    """A fake whose answers depend on everything that stands in the batch, as last bits do on a real device.

    So a unit that was cut otherwise, or a batch that was filled otherwise after a resume, gives another answer.

    Args:
        folder: where it leaves traces: `<pid>.pid` of every process that loaded it, and what it did `once`.
        load_s: how long `prepare` takes.
        batch_s: how long a batch takes.
        sleep_on: a sample at which it sleeps for an hour.
        kill_on: a sample at which its process is killed.
        stop_on: a sample at which its process is stopped.
        bug_on: a sample at which it returns too few outputs.
        gone_on: a sample at which the model is gone, a user error; "prepare" for while it loads.
        once: do so only the first time.
        room: so many prompts fit into its memory together; 0: any number.
        seed: another number is another model.
    """

    capabilities = Fake.capabilities | {"loglikelihood"}

    def __init__(
        self,
        *,
        folder: str = "",
        load_s: float = 0.0,
        batch_s: float = 0.0,
        sleep_on: Any = "",
        kill_on: Any = "",
        stop_on: Any = "",
        bug_on: Any = "",
        gone_on: Any = "",
        once: bool = True,
        room: int = 0,
        seed: int = 0,
    ) -> None:
        super().__init__(seed=seed)
        self._room = room
        self._folder = Path(folder) if folder else None
        self._load_s, self._batch_s = load_s, batch_s
        self._on = {"sleep": sleep_on, "kill": kill_on, "stop": stop_on, "bug": bug_on, "gone": gone_on}
        self._once = once

    def identity(self, task: Task) -> Mapping[str, Json]:
        """Return the seed alone: misbehaving makes no other run."""
        return {"adapter": "odd", "seed": self._seed}

    def prepare(self, task: Task) -> None:
        super().prepare(task)
        if self._folder:
            self._folder.mkdir(parents=True, exist_ok=True)
            (self._folder / f"{os.getpid()}.pid").touch()
        time.sleep(self._load_s)
        if self._on["gone"] == "prepare":
            raise ModelError("the weights of the odd model are gone")
        if self._on["bug"] == "prepare":
            raise ZeroDivisionError("a bug in prepare")

    def generate(self, encoded: Encoded, prompts: Sequence[Prompt], decoding: Decoding) -> list[str]:
        self._act(prompts)
        batch = self._batch(encoded) + "".join(prompt.text for prompt in prompts)
        outputs = [("yes", "2", "red")[self._hash(batch, prompt.sample_id) % 3] for prompt in prompts]
        return outputs[1:] if self._now("bug", {prompt.sample_id for prompt in prompts}) else outputs

    def loglikelihood(
        self, encoded: Encoded, prompts: Sequence[Prompt], options: Sequence[Sequence[str]]
    ) -> list[list[float]]:
        self._act(prompts)
        batch = self._batch(encoded) + "".join(prompt.text for prompt in prompts)
        return [
            [-(self._hash(batch, prompt.sample_id, option) % 10**6) / 10**6 for option in each]
            for prompt, each in zip(prompts, options, strict=True)
        ]

    def _act(self, prompts: Sequence[Prompt]) -> None:
        if 0 < self._room < len(prompts):
            raise MemoryError("no room for the odd model")
        time.sleep(self._batch_s)
        ids = {prompt.sample_id for prompt in prompts}
        if self._now("sleep", ids):
            time.sleep(3600)
        if self._now("kill", ids):
            os.kill(os.getpid(), signal.SIGKILL)
        if self._now("stop", ids):
            os.kill(os.getpid(), signal.SIGSTOP)
        if self._now("gone", ids):
            raise ModelError("the odd model is gone; start it again")

    def itc_images(self, encoded: Encoded) -> Json:
        batch = self._batch(encoded)
        return self._vectors([f"{batch}{row}" for row in range(len(encoded))])[:, None, :]

    def itm(self, encoded: Encoded, texts: Sequence[str]) -> list[float]:
        time.sleep(self._batch_s)
        batch = self._batch(encoded) + "".join(texts)
        return [self._hash(batch, text) % 10**6 / 10**6 for text in texts]

    def _batch(self, encoded: Any) -> str:
        return "".join(picture.digest for picture in encoded.values)

    def _now(self, what: str, ids: set[str]) -> bool:
        if str(self._on[what]) not in ids:
            return False
        if self._once:
            assert self._folder is not None
            try:
                (self._folder / f"{what}.done").touch(exist_ok=False)
            except FileExistsError:
                return False
        return True
