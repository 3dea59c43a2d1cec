"""Functions that tests give to ``--reward``, and servers that misbehave."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

CALLS: list[dict[str, Any]] = []  # the arguments of every call, of those functions that say so


def length(prompts: list[Any], responses: list[str], **columns: Any) -> list[float]:
    """Characters of the response; remembers what it was given."""
    CALLS.append({"prompts": prompts, "responses": responses, **columns})
    return [float(len(response)) for response in responses]


def trl(prompts: list[Any], completions: list[list[dict[str, str]]], answer: list[str], **kwargs: Any) -> list[float]:
    """As users of TRL write it for conversations."""
    return [float(turns[0]["content"] == right) for turns, right in zip(completions, answer, strict=True)]


def two_arguments(responses: list[str], finish_reasons: list[str]) -> tuple[bool, ...]:
    """Takes no ``**columns``."""
    return tuple(reason == "eos" for reason in finish_reasons)


async def asynchronous(responses: list[str], **columns: Any) -> list[float]:
    """All responses at once."""

    async def one(response: str) -> float:
        await asyncio.sleep(0.05)
        return float(len(response))

    return list(await asyncio.gather(*map(one, responses)))


CLIENT: dict[str, asyncio.Event] = {}  # what belongs to one event loop, as a client's connections do


async def with_client(responses: list[str], **columns: Any) -> list[float]:
    """Keeps something between calls that only works in the loop in which it was made."""
    loop = asyncio.get_running_loop()
    event = CLIENT.setdefault("event", asyncio.Event())
    loop.call_later(0.01, event.set)
    await event.wait()  # binds the event to this loop
    event.clear()
    return [float(len(response)) for response in responses]


def leaves(responses: list[str], **columns: Any) -> list[float]:
    """Ends the process for a response with "w"."""
    if any("w" in response for response in responses):
        raise SystemExit(3)
    return [1.0 for _ in responses]


def spoils(prompts: list[Any], response_tokens: list[list[int]], tests: list[list[int]], **columns: Any) -> list[float]:
    """Changes everything that it is given."""
    for message in prompts[0]:
        message["content"] += "!"
    prompts[0].append({"role": "assistant", "content": ""})
    response_tokens[0].append(0)
    tests[0].append(0)
    return [float(columns["completion_ids"] == [[7]])]


async def cancelled(responses: list[str], **columns: Any) -> list[float]:
    """Lets the end of a task out, which is no Exception."""
    if "a" in responses:
        task = asyncio.ensure_future(asyncio.sleep(9))
        task.cancel()
        await task
    return [1.0] * len(responses)


def choosy(responses: list[str], **columns: Any) -> list[float | None]:
    """Raises for a response with "w", has no opinion on one with "v", gives NaN for an empty one."""
    if any("w" in response for response in responses):
        raise ValueError("there is a w in it")
    return [None if "v" in response else float(len(response)) or float("nan") for response in responses]


def broken(responses: list[str], **columns: Any) -> list[float]:
    """Never works."""
    raise KeyError("answer")


def one_too_many(responses: list[str], **columns: Any) -> list[float]:
    """Returns the wrong count."""
    return [0.0] * (len(responses) + 1)


def words(responses: list[str], **columns: Any) -> list[str]:
    """Returns no numbers."""
    return ["good"] * len(responses)


def nothing(responses: list[str], **columns: Any) -> None:
    """Forgets to return."""


def silent(responses: list[str], **columns: Any) -> list[None]:
    """Has no opinion on anything."""
    return [None] * len(responses)


def needs_solution(responses: list[str], solution: list[str]) -> list[float]:
    """Needs a column that may not be there."""
    return [0.0] * len(responses)


NUMBER = 3

Answer = Callable[[int, str, bytes], tuple[int, bytes]]  # number of the request, path, body -> status, body


class Gone(Exception):
    """Raised by an answer: the server is no more, and gives none."""


@contextmanager
def server(answer: Answer, port: int = 0) -> Iterator[tuple[str, list[Any]]]:
    """A web server that answers as a function says; yields its address and the requests (path, headers, body)."""
    seen: list[Any] = []
    lock = threading.Lock()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            with lock:
                number = len(seen)
                seen.append((self.path, dict(self.headers), body))
            try:
                status, said = answer(number, self.path, body)
            except Gone:
                running.shutdown()
                running.server_close()
                return
            self.send_response(status)
            self.send_header("Content-Length", str(len(said)))
            self.end_headers()
            self.wfile.write(said)

        do_POST = do_GET

        def log_message(self, *_: Any) -> None:
            pass

    running = ThreadingHTTPServer(("127.0.0.1", port), Handler)
    running.daemon_threads = True
    thread = threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield f"http://127.0.0.1:{running.server_port}", seen
    finally:
        running.shutdown()
        thread.join()
        running.server_close()


def by_length(number: int, path: str, body: bytes) -> tuple[int, bytes]:
    """A well-behaved scorer: characters of the response, none for an empty one."""
    if path == "/health":
        return 200, b'{"status": "ok"}'
    rows = json.loads(body)["candidates"]
    return 200, json.dumps({"scores": [len(row["response"]) or None for row in rows]}).encode()


def slowly(answer: Answer, seconds: float) -> Answer:
    """The same, but late."""

    def late(number: int, path: str, body: bytes) -> tuple[int, bytes]:
        time.sleep(seconds)
        return answer(number, path, body)

    return late
