"""Served models: against a scripted server for what goes wrong, and a real one for what goes right."""

from __future__ import annotations

import base64
import contextlib
import dataclasses
import io
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx2
import numpy as np
import pytest
from PIL import Image

from evalkit.errors import ConfigError, ModelError, SampleError
from evalkit.models.api import Api
from evalkit.models.chat import Chat
from evalkit.types import Decoding, Prompt, Task

from . import tiny

Script = Callable[[int, dict[str, Any], dict[str, str]], tuple[int, Any, dict[str, str]]]


class Server:
    """Answers as a script says: (number of the request, body, headers) -> (status, reply, headers)."""

    def __init__(self, script: Script) -> None:
        self.bodies: list[dict[str, Any]] = []
        self.at_once = self.most_at_once = 0
        lock = threading.Lock()
        server = self

        class Handler(BaseHTTPRequestHandler):
            def log_message(self, *args: Any) -> None: ...

            def do_GET(self) -> None:
                self.reply(*((200, {"version": "9.9"}, {}) if self.path == "/version" else (200, MODELS, {})))

            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                with lock:
                    number = len(server.bodies)
                    server.bodies.append(body)
                    server.at_once += 1
                    server.most_at_once = max(server.most_at_once, server.at_once)
                try:
                    answer = script(number, body, dict(self.headers))
                finally:
                    with lock:
                        server.at_once -= 1
                self.reply(*answer)

            def reply(self, status: int, value: Any, headers: dict[str, str]) -> None:
                data = value if isinstance(value, bytes) else json.dumps(value).encode()
                self.send_response(status)
                for name, text in headers.items():
                    self.send_header(name, text)
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.http.server_address[1]}/v1"
        threading.Thread(target=self.http.serve_forever, daemon=True).start()


MODELS = {"data": [{"id": "tiny"}]}


def said(text: str | None, finish: str = "stop") -> dict[str, Any]:
    return {"choices": [{"message": {"content": text}, "finish_reason": finish}]}


def echo(number: int, body: dict[str, Any], headers: dict[str, str]) -> tuple[int, Any, dict[str, str]]:
    return 200, said(f"you said {body['messages'][-1]['content'][-1]['text']}"), {}


@contextlib.contextmanager
def serving(script: Script) -> Iterator[Server]:
    server = Server(script)
    try:
        yield server
    finally:
        server.http.shutdown()
        server.http.server_close()


def ask(model: Api, prompts: list[Prompt] | None = None, decoding: Decoding | None = None) -> list[str]:
    encoded = model.encode([model.preprocess(image) for image in tiny.pictures()])
    return model.generate(encoded, prompts or tiny.prompts(), decoding or Decoding())


def chat_task(**settings: Any) -> Task:
    return dataclasses.replace(tiny.task(), prompts={"chat": "{question}"}, prompt_style="chat", **settings)


def test_prompts_and_pixels_arrive_and_replies_keep_their_order() -> None:
    def slow_at_first(number: int, body: dict[str, Any], headers: dict[str, str]) -> tuple[int, Any, dict[str, str]]:
        time.sleep(0.2 if number == 0 else 0.01)
        return echo(number, body, headers)

    with serving(slow_at_first) as server:
        model = Api(base_url=server.url, served_name="tiny", concurrency=4, system="be brief")
        outputs = ask(model)
    assert outputs == [f"you said {prompt.text}" for prompt in tiny.prompts()]
    assert 2 <= server.most_at_once <= 4
    body = next(body for body in server.bodies if body["messages"][1]["content"][1]["text"] == "dog")
    assert body["messages"][0] == {"role": "system", "content": "be brief"}
    assert body["max_tokens"] == 10
    assert body["temperature"] == 0
    seen = {body["messages"][1]["content"][0]["image_url"]["url"] for body in server.bodies}
    assert len(seen) == 4
    decoded = [Image.open(io.BytesIO(base64.b64decode(url.partition(",")[2]))) for url in seen]
    for picture in tiny.pictures():
        assert any(image.size == picture.size and np.array_equal(image, picture) for image in decoded)


def test_the_server_is_asked_again_while_it_may_answer() -> None:
    def shaky(number: int, body: dict[str, Any], headers: dict[str, str]) -> tuple[int, Any, dict[str, str]]:
        if number < 3:
            return (429, 503, 500)[number], {"error": "busy"}, {"Retry-After": "0.2"} if number == 0 else {}
        return echo(number, body, headers)

    with serving(shaky) as server:
        started = time.monotonic()
        assert ask(Api(base_url=server.url, served_name="tiny"), tiny.prompts()[:1]) == [
            f"you said {tiny.prompts()[0].text}"
        ]
        assert len(server.bodies) == 4
        assert time.monotonic() - started > 0.2 + 0.5 + 1.0


def test_patience_ends() -> None:
    with serving(lambda *_: (503, {"error": "loading"}, {})) as server:
        model = Api(base_url=server.url, served_name="tiny", patience=1.5)
        with pytest.raises(ModelError, match=r"status 503.*goes on from there"):
            ask(model, tiny.prompts()[:1])
        assert len(server.bodies) >= 2


def test_a_wrong_key_ends_the_run_and_is_not_repeated(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TINY_KEY", "very-secret")

    def locked(number: int, body: dict[str, Any], headers: dict[str, str]) -> tuple[int, Any, dict[str, str]]:
        return 401, {"error": f"bad key {headers['Authorization']}"}, {}

    with serving(locked) as server:
        model = Api(base_url=server.url, served_name="tiny", key_env="TINY_KEY")
        with pytest.raises(ModelError, match="TINY_KEY") as caught:
            ask(model, tiny.prompts()[:1])
        assert "very-secret" not in str(caught.value)
        assert "very-secret" not in json.dumps(model.identity(chat_task()))
        monkeypatch.delenv("TINY_KEY")
        with pytest.raises(ModelError, match="is not set"), serving(lambda *_: (401, {}, {})) as other:
            ask(Api(base_url=other.url, served_name="tiny", key_env="TINY_KEY"), tiny.prompts()[:1])


def test_the_key_goes_into_the_header_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "very-secret")
    keys: list[str] = []

    def listen(number: int, body: dict[str, Any], headers: dict[str, str]) -> tuple[int, Any, dict[str, str]]:
        keys.append(headers["Authorization"])
        return echo(number, body, headers)

    with serving(listen) as server:
        ask(Api(base_url=server.url, served_name="tiny"), tiny.prompts()[:1])
    assert keys == ["Bearer very-secret"]
    assert "very-secret" not in json.dumps(server.bodies)


@pytest.mark.parametrize(
    ("status", "reply", "error", "words"),
    [
        (400, {"error": "prompt is too long"}, SampleError, "0-0.*too long"),
        (413, {"error": "too large"}, SampleError, "0-0"),
        (404, {"error": "no such model"}, ModelError, "served_name"),
        (200, said(None), SampleError, "no text"),
        (200, said("", "content_filter"), SampleError, "content_filter"),
        (200, {"choices": []}, SampleError, "no choice"),
        (200, b"<html>", SampleError, "no JSON"),
    ],
)
def test_what_is_no_answer_is_an_error_never_an_empty_text(
    status: int, reply: Any, error: type[Exception], words: str
) -> None:
    with serving(lambda *_: (status, reply, {})) as server, pytest.raises(error, match=words):
        ask(Api(base_url=server.url, served_name="tiny"), tiny.prompts()[:1])


@pytest.mark.parametrize(
    ("status", "reply", "headers", "words"),
    [
        (200, b"<html>Welcome</html>", {}, r"no JSON: '<html>Welcome.*model\.base_url ends with the version"),
        (302, b"", {"Location": "https://elsewhere/v1"}, r"to https://elsewhere/v1.*model\.base_url"),
        (503, b"loading", {}, "is busy or broken .status 503: loading.*model.patience"),
    ],
)
def test_what_is_no_server_of_completions_is_said_at_the_start(
    status: int, reply: bytes, headers: dict[str, str], words: str
) -> None:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(reply)

        def log_message(self, *args: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        model = Api(base_url=f"http://127.0.0.1:{server.server_port}/v1", served_name="tiny", patience=0.5)
        with pytest.raises(ModelError, match=words):
            model.prepare(chat_task())
    finally:
        server.shutdown()
        server.server_close()


@pytest.mark.parametrize("key", ["schl\u00fcssel", "two\nlines"])
def test_a_key_that_no_header_can_carry_is_refused_and_not_repeated(key: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TINY_KEY", key)
    with serving(echo) as server, pytest.raises(ConfigError, match="TINY_KEY") as caught:
        ask(Api(base_url=server.url, served_name="tiny", key_env="TINY_KEY"), tiny.prompts()[:1])
    assert key not in str(caught.value)


def test_an_empty_reply_is_an_answer() -> None:
    with serving(lambda *_: (200, said(""), {})) as server:
        assert ask(Api(base_url=server.url, served_name="tiny"), tiny.prompts()[:1]) == [""]


def test_an_unreachable_server_says_so_soon() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    model = Api(base_url=f"http://127.0.0.1:{port}/v1", served_name="tiny")
    started = time.monotonic()
    with pytest.raises(ModelError, match="cannot be reached"):
        model.prepare(chat_task())
    assert time.monotonic() - started < 15


def test_identity_names_the_server() -> None:
    with serving(echo) as server:
        identity = Api(base_url=server.url + "/", served_name="tiny").identity(chat_task())
        assert identity["base_url"] == server.url
        assert identity["served_name"] == "tiny"
        assert identity["version"] == "9.9"


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"base_url": "localhost:8000"}, "no address"),
        ({"base_url": "http://host:port/v1"}, "no address"),
        ({"base_url": "https://me:secret@host/v1"}, "no user name"),
        ({"served_name": None}, "model.served_name"),
        ({"base_url": None}, "model.base_url"),
        ({"dialect": "vlm"}, "did you mean 'vllm'"),
        ({"image_format": "gif"}, "image_format"),
    ],
)
def test_settings_are_checked(settings: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words) as caught:
        Api(**{"base_url": "http://host/v1", "served_name": "tiny", **settings})
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize(
    ("decoding", "dialect", "sent"),
    [
        (Decoding(num_beams=2), "vllm", None),
        (Decoding(min_new_tokens=3), "openai", None),
        (Decoding(min_new_tokens=3), "vllm", {"min_tokens": 3}),
        (Decoding(repetition_penalty=1.2), "openai", None),
        (Decoding(repetition_penalty=1.2), "sglang", {"repetition_penalty": 1.2}),
        (Decoding(temperature=0.5), "openai", None),
        (Decoding(temperature=0.5, top_p=0.9, top_k=4), "vllm", {"temperature": 0.5, "top_p": 0.9, "top_k": 4}),
        (Decoding(stop=("\n",), max_new_tokens=7), "openai", {"stop": ["\n"], "max_tokens": 7}),
        (Decoding(rank_candidates=8), "vllm", None),
        (Decoding(length_penalty=2.0, top_k=5, seed=3), "openai", {}),
    ],
)
def test_each_field_is_said_or_refused(decoding: Decoding, dialect: str, sent: dict[str, Any] | None) -> None:
    with serving(echo) as server:
        model = Api(base_url=server.url, served_name="tiny", dialect=dialect)
        refusal = model.refuses(chat_task(decoding=decoding))
        assert (refusal is not None) == (sent is None)
        if sent is not None:
            ask(model, tiny.prompts()[:2], decoding)
            assert sent.items() <= server.bodies[0].items()
            if decoding.temperature:
                assert server.bodies[0]["seed"] != server.bodies[1]["seed"]


def test_text_to_be_continued_is_refused() -> None:
    model = Api(base_url="http://host/v1", served_name="tiny")
    assert "prompt_style=chat" in str(model.refuses(tiny.task()))
    assert model.refuses(chat_task()) is None
    assert model.refuses(dataclasses.replace(tiny.task(), prompt="What is it?")) is None
    assert "image_size" in str(model.refuses(chat_task(image_size=224)))


def test_stop_strings_are_cut_whatever_the_server_does() -> None:
    with serving(echo) as server:
        model = Api(base_url=server.url, served_name="tiny")
        assert ask(model, tiny.prompts()[:1], Decoding(stop=("said",))) == ["you "]


class Real:
    """`transformers serve` in a process of its own."""

    def __init__(self, folder: Path) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.folder = folder
        self.url = f"http://127.0.0.1:{self.port}/v1"
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        command = [str(Path(sys.executable).with_name("transformers")), "serve", str(self.folder)]
        self.process = subprocess.Popen(
            [*command, "--host", "127.0.0.1", "--port", str(self.port), "--device", "cpu", "--dtype", "float32"],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            env={**os.environ, "HF_HUB_OFFLINE": "1", "HF_HUB_CACHE": str(self.folder.parent), "OMP_NUM_THREADS": "1"},
        )

    def wait(self, seconds: float = 240) -> None:
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            with contextlib.suppress(httpx2.TransportError):
                if httpx2.get(f"{self.url}/models", timeout=5).status_code == 200:
                    return
            assert self.process is not None
            assert self.process.poll() is None, "transformers serve ended by itself"
            time.sleep(0.5)
        raise AssertionError("transformers serve did not start")

    def kill(self) -> None:
        assert self.process is not None
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()


@pytest.mark.slow
def test_a_real_server_answers_as_the_model_does_and_may_be_killed(tmp_path: Path) -> None:
    pytest.importorskip("fastapi", reason="`transformers serve` needs fastapi, uvicorn and openai")
    folder = tiny.chat(tmp_path, "llava")
    local = Chat(checkpoint=str(folder))
    local.prepare(chat_task())
    prompts = tiny.prompts()
    expected = local.generate(local.encode([local.preprocess(image) for image in tiny.pictures()]), prompts, Decoding())
    server = Real(folder)
    server.start()
    try:
        server.wait()
        model = Api(base_url=server.url, served_name=str(folder), concurrency=2, patience=300)
        model.prepare(chat_task())
        assert ask(model, prompts) == expected
        killed, restarted = threading.Timer(0.5, server.kill), threading.Timer(2, server.start)
        started = time.monotonic()
        killed.start()
        restarted.start()
        assert ask(model, prompts * 10) == expected * 10
        assert time.monotonic() - started > 2, "it was over before the server was killed"
        restarted.join()
    finally:
        server.kill()
