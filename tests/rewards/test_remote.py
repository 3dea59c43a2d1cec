from __future__ import annotations

import json
import socket
import threading
import time
from types import SimpleNamespace
from typing import Any

import pytest

from raft.errors import UserError
from raft.rewards import remote
from raft.rewards.protocol import decode_request, encode_request
from raft.rewards.remote import RemoteSettings, RemoteSource
from raft.rewards.source import Candidate, Excluded
from tests.rewards.sources import Answer, by_length, server, slowly

ASKED = [{"role": "user", "content": "Why?"}]
CANDIDATES = [Candidate(ASKED, "x" * i, "eos", {"answer": i}, "<tail>", [5] * i) for i in range(7)]


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """No waiting between tries; what would have been waited."""
    pauses: list[float] = []
    monkeypatch.setattr(remote, "time", SimpleNamespace(sleep=pauses.append, monotonic=time.monotonic))
    monkeypatch.delenv("RAFT_REWARD_TOKEN", raising=False)
    return pauses


def ask(address: str, candidates: list[Candidate] = CANDIDATES, **settings: Any) -> list[float | Excluded]:
    source = RemoteSource(address, RemoteSettings(**settings), flag="--reward http://x")
    return source.score(candidates, name="test", progress=None)


def test_batches_in_order_with_everything_that_is_known() -> None:
    with server(by_length) as (address, seen):
        found = ask(address, batch_size=3, requests=2)
    assert found == [Excluded("gave no score"), 1.0, 2.0, 3.0, 4.0, 5.0, 6.0]
    assert [path for path, _, _ in seen] == ["/score"] * 3
    bodies = sorted((json.loads(body)["candidates"] for _, _, body in seen), key=lambda rows: len(rows[0]["response"]))
    assert [len(rows) for rows in bodies] == [3, 3, 1]
    assert bodies[1][0] == {
        "messages": ASKED, "response": "xxx", "finish_reason": "eos", "prompt_tail": "<tail>",
        "response_tokens": [5, 5, 5], "columns": {"answer": 3},
    }  # fmt: skip


def test_a_path_below_the_host_is_kept() -> None:
    def answer(number: int, path: str, body: bytes) -> tuple[int, bytes]:
        return by_length(number, path.removeprefix("/v1"), body)

    with server(answer) as (address, seen):
        RemoteSource(f"{address}/v1", RemoteSettings(), flag="").check_health()
        ask(f"{address}/v1")
    assert {path for path, _, _ in seen} == {"/v1/health", "/v1/score"}


def test_requests_run_at_the_same_time(monkeypatch: pytest.MonkeyPatch) -> None:
    most = at_once = 0
    lock = threading.Lock()
    all_there = threading.Barrier(4, timeout=20)

    def answer(number: int, path: str, body: bytes) -> tuple[int, bytes]:
        nonlocal most, at_once
        with lock:
            at_once += 1
            most = max(most, at_once)
        all_there.wait()
        with lock:
            at_once -= 1
        return by_length(number, path, body)

    with server(answer) as (address, _):
        ask(address, CANDIDATES[:4], batch_size=1, requests=4)
    assert most == 4


@pytest.mark.parametrize("status", [429, 500, 503])
def test_failures_that_may_pass_are_tried_again_after_growing_pauses(status: int, short_pauses: list[float]) -> None:
    def answer(number: int, path: str, body: bytes) -> tuple[int, bytes]:
        return (status, b"not now") if number < 3 else by_length(number, path, body)

    with server(answer) as (address, seen):
        assert ask(address, CANDIDATES[1:2], retries=3) == [1.0]
    assert len(seen) == 4
    assert short_pauses == [0.5, 1.0, 2.0]


def test_tries_are_bounded(short_pauses: list[float]) -> None:
    message = r"--reward http://x: no answer to POST /score after 3 tries: status 500"
    with server(lambda *_: (500, b"the model is gone")) as (address, seen), pytest.raises(UserError, match=message):
        ask(address, retries=2, requests=1, batch_size=9)
    assert len(seen) == 3


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (lambda *_: (200, b"<html>hello</html>"), "the answer is no scores: expected JSON, found b'<html>"),
        (lambda *_: (200, b'{"scores": [1.0]}'), "it gave 1 scores for 7 responses"),
        (lambda *_: (200, b'{"scores": ["a", 1, 1, 1, 1, 1, 1]}'), "its scores are not all numbers or null"),
        (lambda *_: (200, b"[1, 2, 3, 4, 5, 6, 7]"), "expected scores to be a list"),
        (lambda *_: (200, b'{"scores": [1, 1, 1, 1, 1, 1, 1], "reasons": [null]}'), "it gave 1 reasons for 7"),
        (lambda *_: (401, b"who are you"), "it refused POST /score with status 401 Unauthorized: 'who are you'"),
        (lambda *_: (302, b""), "it refused POST /score with status 302"),
        (lambda *_: (200, b" " * (1 << 21)), "the answer has more than"),
    ],
)
def test_garbage_and_refusals_are_told_at_once(answer: Answer, message: str) -> None:
    with server(answer) as (address, seen), pytest.raises(UserError) as caught:
        ask(address, batch_size=9)
    assert message in str(caught.value)
    assert str(caught.value).startswith("--reward http://x: ")
    assert len(seen) == 1


def test_nobody_there() -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    source = RemoteSource(f"http://127.0.0.1:{port}", RemoteSettings(retries=1), flag="--reward http://x")
    with pytest.raises(UserError, match=r"no answer to GET /health after 2 tries: ConnectionRefusedError"):
        source.check_health()


def test_a_slow_answer_is_given_up() -> None:
    message = r"after one try: it took more than 0\.2 s"
    with server(slowly(by_length, 0.6)) as (address, _), pytest.raises(UserError, match=message):
        ask(address, CANDIDATES[:1], timeout=0.2, retries=0)


def test_an_answer_that_drips_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every piece comes in time, the whole does not."""
    stop = threading.Event()

    def drip(listener: socket.socket) -> None:
        connection, _ = listener.accept()
        with connection:
            connection.recv(1 << 16)
            connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n")
            while not stop.wait(0.05):
                try:
                    connection.sendall(b" ")
                except OSError:
                    return

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=drip, args=(listener,))
        thread.start()
        begin = time.monotonic()
        with pytest.raises(UserError, match=r"it took more than 0\.3 s"):
            ask(f"http://127.0.0.1:{listener.getsockname()[1]}", CANDIDATES[:1], timeout=0.3, retries=0)
        assert time.monotonic() - begin < 5
        stop.set()
        thread.join()


def test_the_token_comes_from_the_environment_and_is_not_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAFT_REWARD_TOKEN", "s3cret")
    with server(lambda *_: (403, b"no")) as (address, seen), pytest.raises(UserError) as caught:
        ask(address, CANDIDATES[:1])
    assert seen[0][1]["Authorization"] == "Bearer s3cret"
    assert "s3cret" not in str(caught.value)


def test_requests_read_back() -> None:
    assert decode_request(encode_request(CANDIDATES)) == CANDIDATES


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b"{", "expected JSON"),
        (b"[]", "expected candidates to be a list"),
        (b'{"candidates": [{"messages": [], "response": 3}]}', r"candidates\[0\]: expected response to be a text"),
        (b'{"candidates": [{"messages": [{"role": "user"}], "response": ""}]}', r"candidates\[0\].messages: expected"),
        (b'{"candidates": [7]}', r"candidates\[0\]: expected messages to be a list"),
    ],
)
def test_what_is_no_request(body: bytes, message: str) -> None:
    with pytest.raises(UserError, match=message):
        decode_request(body)
