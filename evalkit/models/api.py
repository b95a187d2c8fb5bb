"""Served models: any server of OpenAI's chat completions (vLLM, SGLang, `transformers serve`, commercial ones).

    python -m evalkit model=api model.base_url=http://localhost:8000/v1 model.served_name=NAME task=gqa

The server encodes an image with every question, so there is nothing to share but the picture's bytes. Requests go out
`concurrency` at a time; what the server may yet answer (429, 5xx, no connection) is asked again, more and more slowly,
for `patience` seconds. The key is read from the environment and written nowhere. What OpenAI's fields cannot say is
refused, unless the `dialect` of the server has a field for it.
"""

from __future__ import annotations

import base64
import io
import os
import random
import threading
import time
import urllib.parse
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import ConfigError, ModelError, SampleError, unknown
from ..types import Capability, Decoding, Encoded, Json, Prompt, Task
from .abilities import shortfall
from .generation import cut_at
from .pixels import to_rgb
from .rows import Rows, own

if TYPE_CHECKING:
    from PIL.Image import Image

_AGAIN = (408, 409, 425, 429, 500, 502, 503, 504)
_LONGEST_PAUSE = 30.0
_FIRST_PATIENCE = 5.0
_CONTINUES = ("completion", "bare")
"""Prompt styles that want a text continued; a chat server takes a turn and answers it."""

_ADDRESS = "model.base_url ends with the version, such as http://localhost:8000/v1"

_DIALECTS: Mapping[str, Mapping[str, str]] = {
    "openai": {},
    "vllm": {
        "min_new_tokens": "min_tokens",
        "repetition_penalty": "repetition_penalty",
        "top_k": "top_k",
        "seed": "seed",
    },
    "sglang": {
        "min_new_tokens": "min_tokens",
        "repetition_penalty": "repetition_penalty",
        "top_k": "top_k",
        "seed": "seed",
    },
}
"""Fields that a kind of server takes beyond OpenAI's own."""


@dataclass(frozen=True, slots=True)
class _Picture:
    """One image as a data URL."""

    url: str


class Api:
    """A model behind a chat completions server.

    Args:
        base_url: Up to and with the version: "http://localhost:8000/v1".
        served_name: The model's name on that server.
        key_env: Environment variable that holds the key; one that is not set means no key.
        dialect: "openai", "vllm" or "sglang": which fields beyond OpenAI's the server honours.
        length_field: The field for the number of new tokens: max_tokens, or max_completion_tokens where that is gone.
        concurrency: Requests under way at once.
        timeout: Seconds for one request.
        patience: Seconds for which one request is asked again before the run ends; it can be resumed.
        system: A system turn before each question.
        image_format: "png" (the pixels as they are) or "jpeg" (smaller, not the same pixels).
        box_extract: Name of the extraction of its box syntax, for a model that grounds.
    """

    def __init__(
        self,
        *,
        base_url: str | None,
        served_name: str | None,
        key_env: str = "OPENAI_API_KEY",
        dialect: str = "openai",
        length_field: str = "max_tokens",
        concurrency: int = 8,
        timeout: float = 120.0,
        patience: float = 300.0,
        system: str | None = None,
        image_format: str = "png",
        box_extract: str | None = None,
    ) -> None:
        if served_name is None:
            raise ConfigError("model.served_name is not set: the name by which the server knows the model")
        if base_url is None or not _is_address(base_url):
            raise ConfigError(f"model.base_url={base_url!r} is no address; give one like http://localhost:8000/v1")
        if "@" in base_url or "?" in base_url:
            raise ConfigError(
                "model.base_url may hold no user name, password or query, since it is written into the manifest; put "
                f"the key into the environment variable {key_env} (model.key_env names another)"
            )
        for name, value, known in (
            ("dialect", dialect, tuple(_DIALECTS)),
            ("image_format", image_format, ("png", "jpeg")),
            ("length_field", length_field, ("max_tokens", "max_completion_tokens")),
        ):
            if value not in known:
                raise ConfigError(unknown(f"model.{name}", str(value), known))
        self._base_url = base_url.rstrip("/")
        self._served_name = served_name
        self._key_env = key_env
        self._dialect = dialect
        self._length_field = length_field
        self._concurrency = concurrency
        self._timeout = timeout
        self._patience = patience
        self._system = system
        self._image_format = image_format
        self._version: str | None = None
        self._asked = False
        self._listed: tuple[str, ...] = ()
        self._client_made: Any = None
        self._lock = threading.Lock()
        self.box_extract = box_extract
        self.capabilities: frozenset[Capability] = (
            frozenset({"generate", "ground"}) if box_extract else frozenset({"generate"})
        )

    def refuses(self, task: Task) -> str | None:
        """Return why not: a form of prompt or a decoding that cannot be said to this server."""
        if lacks := shortfall(self.capabilities, task):
            return lacks
        if task.image_size is not None:
            return (
                f"{task.name} asks for image_size={task.image_size}, and a server sizes images itself; leave it unset"
            )
        if task.prompt is None and task.prompt_style in _CONTINUES:
            return (
                f"prompt_style={task.prompt_style} is a text to be continued, and a chat server answers a turn of a "
                "conversation; use prompt_style=chat, or give the prompt itself with prompt=..."
            )
        decoding = task.decoding
        if decoding.num_beams > 1:
            return f"decoding.num_beams={decoding.num_beams}: chat completions have no beam search; use num_beams=1"
        sampling = decoding.temperature > 0
        for name, asked in (
            ("min_new_tokens", decoding.min_new_tokens > 0),
            ("repetition_penalty", decoding.repetition_penalty != 1),
            ("top_k", sampling and decoding.top_k > 0),
            ("seed", sampling),
        ):
            if asked and name not in _DIALECTS[self._dialect]:
                what = (
                    "sampling needs a seed per sample that the server keeps to" if name == "seed" else "no such field"
                )
                return (
                    f"decoding.{'temperature' if name == 'seed' else name} cannot be said to this server "
                    f"(model.dialect={self._dialect}): {what}. If it is a vLLM or SGLang server, say model.dialect=vllm"
                )
        return None

    def identity(self, task: Task) -> Mapping[str, Json]:
        """Return address, name and reported version; the server is asked for them.

        Raises:
            ModelError: It cannot be reached, or refuses the key.
        """
        self._meet()
        return {
            "adapter": "api",
            "base_url": self._base_url,
            "served_name": self._served_name,
            "version": self._version,
            "dialect": self._dialect,
            "system": self._system,
            "image_format": self._image_format,
        }

    def files(self, task: Task) -> Mapping[str, Path]:
        """Return nothing: the weights are the server's."""
        return {}

    def prepare(self, task: Task) -> None:
        """Make sure that the server is there.

        Raises:
            ModelError: It cannot be reached, or refuses the key.
        """
        self._meet()

    def preprocess(self, image: Image) -> _Picture:
        """Return the image as a data URL."""
        buffer = io.BytesIO()
        to_rgb(image).save(
            buffer, self._image_format.upper(), **({"quality": 95} if self._image_format == "jpeg" else {})
        )
        return _Picture(f"data:image/{self._image_format};base64,{base64.b64encode(buffer.getvalue()).decode()}")

    def encode(self, inputs: Sequence[_Picture]) -> Encoded:
        """Return the pictures: the server encodes them with each question."""
        return Rows(tuple(inputs))

    def generate(self, encoded: Encoded, prompts: Sequence[Prompt], decoding: Decoding) -> list[str]:
        """Return the reply to each prompt.

        Raises:
            SampleError: The server refuses one of them, or gives no text.
            ModelError: The server is gone, or refuses the key.
        """
        pictures = own(encoded, _Picture)
        bodies = [self._body(prompt, [pictures[row] for row in prompt.rows], decoding) for prompt in prompts]
        with ThreadPoolExecutor(max_workers=max(1, min(self._concurrency, len(bodies)))) as pool:
            replies = pool.map(self._reply, [prompt.sample_id for prompt in prompts], bodies)
            return [cut_at(reply, decoding.stop) for reply in replies]

    def _body(self, prompt: Prompt, pictures: Sequence[_Picture], decoding: Decoding) -> dict[str, Any]:
        images = [{"type": "image_url", "image_url": {"url": picture.url}} for picture in pictures]
        messages: list[dict[str, Any]] = [{"role": "user", "content": [*images, {"type": "text", "text": prompt.text}]}]
        if self._system is not None:
            messages.insert(0, {"role": "system", "content": self._system})
        body: dict[str, Any] = {
            "model": self._served_name,
            "messages": messages,
            self._length_field: decoding.max_new_tokens,
            "temperature": decoding.temperature,
            "stream": False,
        }
        if decoding.stop:
            body["stop"] = list(decoding.stop)
        fields = _DIALECTS[self._dialect]
        if decoding.min_new_tokens > 0:
            body[fields["min_new_tokens"]] = decoding.min_new_tokens
        if decoding.repetition_penalty != 1:
            body[fields["repetition_penalty"]] = decoding.repetition_penalty
        if decoding.temperature > 0:
            # The noise belongs to the sample: (seed, sample id), whatever else the server is doing.
            body[fields["seed"]] = random.Random(f"{decoding.seed}\0{prompt.sample_id}").getrandbits(31)
            body["top_p"] = decoding.top_p
            if decoding.top_k > 0:
                body[fields["top_k"]] = decoding.top_k
        return body

    def _reply(self, sample_id: str, body: Mapping[str, Any]) -> str:
        answer = self._request("POST", "/chat/completions", body, sample_id)
        try:
            choice = answer["choices"][0]
            text = choice["message"]["content"]
        except (KeyError, IndexError, TypeError) as error:
            raise SampleError(
                f"the server's reply to sample {sample_id} has no choice in it: {str(answer)[:200]}"
            ) from error
        if not isinstance(text, str) or choice.get("finish_reason") == "content_filter":
            raise SampleError(
                f"the server gave no text for sample {sample_id} (finish_reason {choice.get('finish_reason')!r})"
            )
        return text

    def _meet(self) -> None:
        """Ask the server, once, what it serves."""
        with self._lock:
            if self._asked:
                return
            # Not all servers list what they serve, and some serve more than they list: the names are for messages only.
            listed = self._request("GET", "/models", None, None)
            entries = listed.get("data") if isinstance(listed, dict) else None
            self._listed = tuple(
                str(entry["id"]) for entry in entries or () if isinstance(entry, dict) and "id" in entry
            )
            self._version = self._reported_version()
            self._asked = True

    def _reported_version(self) -> str | None:
        """Return what a vLLM or SGLang server says of itself; OpenAI's interface has no such thing."""
        import httpx2

        address = self._base_url.removesuffix("/v1") + "/version"
        try:
            response = self._client().get(address)
            version = response.json().get("version") if response.status_code == 200 else None
        except (httpx2.HTTPError, ValueError, AttributeError):
            return None
        return None if version is None else str(version)

    def _request(self, method: str, path: str, body: Mapping[str, Any] | None, sample_id: str | None) -> Any:
        """Return the parsed reply, asking again while that may help."""
        import httpx2

        # At the start nobody wants to wait for an address that is wrong.
        patience = min(self._patience, _FIRST_PATIENCE) if sample_id is None else self._patience
        deadline = time.monotonic() + patience
        pause = 0.5
        while True:
            wait: float | None = None
            try:
                response = self._client().request(method, self._base_url + path, json=body, headers=self._headers())
            except httpx2.TransportError as error:
                state, trouble = "cannot be reached", f"{type(error).__name__}: {error}"
            else:
                if response.status_code == 200:
                    return self._parsed(response, sample_id)
                state, trouble = "is busy or broken", f"status {response.status_code}: {self._scrubbed(response.text)}"
                if response.is_redirect:
                    trouble += f"to {response.headers.get('location')}"
                if sample_id is None and response.status_code in (404, 405):
                    return {}
                if response.status_code not in _AGAIN:
                    raise self._refusal(response.status_code, trouble, sample_id)
                wait = _seconds(response.headers.get("retry-after"))
            # Half of the pause at random: requests that failed together do not come back together.
            rest = max(wait or 0.0, pause * random.uniform(0.5, 1.0))
            if time.monotonic() + rest > deadline:
                raise ModelError(
                    f"the server {self._base_url} {state} ({trouble}), asked again for {patience:g} seconds. Start it "
                    "or correct model.base_url; model.patience waits longer. What is answered is kept: the same "
                    "command goes on from there"
                )
            time.sleep(rest)
            pause = min(pause * 2, _LONGEST_PAUSE)

    def _refusal(self, status: int, trouble: str, sample_id: str | None) -> ModelError | SampleError:
        if status in (401, 403):
            given = "is not set" if not os.environ.get(self._key_env) else "holds a key it does not take"
            return ModelError(
                f"the server {self._base_url} refuses access ({trouble}): the environment variable {self._key_env} "
                f"{given}. Put the key there, or name another variable with model.key_env"
            )
        if sample_id is None or status in (404, 405):
            served = f" (it lists: {', '.join(self._listed[:10])})" if self._listed else ""
            return ModelError(
                f"the server {self._base_url} knows no such address or no model {self._served_name!r} ({trouble}); "
                f"{_ADDRESS}, and model.served_name is a model it serves{served}"
            )
        return SampleError(f"the server refuses sample {sample_id} ({trouble})")

    def _parsed(self, response: Any, sample_id: str | None) -> Any:
        try:
            return response.json()
        except ValueError as error:
            message = f"the server {self._base_url} answers with something that is no JSON: {response.text[:200]!r}"
            if sample_id is None:
                message += f". Is it a server of chat completions? {_ADDRESS}"
            raise (ModelError(message) if sample_id is None else SampleError(message)) from error

    def _headers(self) -> dict[str, str]:
        key = os.environ.get(self._key_env, "").strip()
        if not (key.isascii() and key.isprintable()):
            raise ConfigError(
                f"the environment variable {self._key_env} holds a key that no request can carry: it has a line break, "
                "or a character outside ASCII. Put the key there as it was given to you"
            )
        return {"Authorization": f"Bearer {key}"} if key else {}

    def _scrubbed(self, text: str) -> str:
        """Return the start of a message, without the key should the server repeat it."""
        key = os.environ.get(self._key_env, "").strip()
        return (text.replace(key, "***") if key else text).strip()[:300]

    def _client(self) -> Any:
        import httpx2

        if self._client_made is None:
            limits = httpx2.Limits(max_connections=max(2, self._concurrency))
            self._client_made = httpx2.Client(timeout=self._timeout, limits=limits)
        return self._client_made


def _is_address(url: str) -> bool:
    try:
        parts = urllib.parse.urlsplit(url)
        return parts.scheme in ("http", "https") and bool(parts.hostname) and (parts.port or 80) > 0
    except ValueError:
        return False


def _seconds(header: str | None) -> float | None:
    """Return the seconds of a Retry-After header; a date in it is left to the pause."""
    try:
        return None if header is None else min(float(header), _LONGEST_PAUSE * 2)
    except ValueError:
        return None
