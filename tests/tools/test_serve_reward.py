"""`raft serve-reward` as a process of its own, asked by the client that runs use and by hand."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import subprocess
import sys
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import pytest

from raft.arguments import parse
from raft.errors import UserError
from raft.rewards.batches import Scores
from raft.rewards.remote import RemoteSettings, RemoteSource
from raft.rewards.server import Batcher
from raft.rewards.source import Candidate
from raft.tools.serve_reward import main, refuse_open_door
from raft.tools.serve_reward_config import ServeRewardConfig
from tests.conftest import ROOT

ASKED = [{"role": "user", "content": "Why?"}]


@contextmanager
def served(*flags: str, token: str | None = None) -> Iterator[tuple[str, subprocess.Popen[str]]]:
    """The command on a free port; yields its address. It is killed at the end if it still runs."""
    environment = {name: value for name, value in os.environ.items() if name != "RAFT_REWARD_TOKEN"}
    environment |= {"RAFT_REWARD_TOKEN": token} if token else {}
    command = [sys.executable, "-m", "raft", "serve-reward", "--port", "0", *flags]
    process = subprocess.Popen(
        command, cwd=ROOT, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert process.stdout is not None
    line = process.stdout.readline()
    try:
        assert line.startswith("serving "), line + process.communicate()[1]
        yield line.split(" at ")[1].strip(), process
    finally:
        process.kill()
        process.communicate()


def post(address: str, body: bytes, **headers: str) -> tuple[int, Any]:
    request = urllib.request.Request(f"{address}/score", body, headers)
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(request, timeout=30) as response:
            return response.status, json.loads(response.read())
    except urllib.error.HTTPError as error:
        with error:
            return error.code, json.loads(error.read())


def candidates(*responses: str) -> list[Candidate]:
    return [Candidate(ASKED, response, "eos", {"answer": "xy"}) for response in responses]


def test_what_a_client_gets_is_what_the_source_said(tiny_reward_model: str) -> None:
    from raft.rewards.reward_model import load_reward_model

    texts = candidates("Fine.", "", "Bread needs flour, water, salt and time.", "xy")
    direct = load_reward_model(tiny_reward_model, base=None, dtype="fp32", batch_size=4).score(texts, name="x")
    flags = ["--reward", tiny_reward_model, "tests.rewards.sources:trl", "--reward_weights", "1,100"]
    with served(*flags, "--reward_dtype", "fp32") as (address, process):
        source = RemoteSource(address, RemoteSettings(batch_size=3), flag="--reward x")
        source.check_health()
        found = source.score(texts, name="x", progress=None)
        process.send_signal(signal.SIGTERM)
        out, err = process.communicate(timeout=30)
    assert found == pytest.approx([score + 100 * (i == 3) for i, score in enumerate(direct)], abs=1e-5)
    assert re.fullmatch("[0-9a-f]{16}", source.identity or "")  # a resumed run recognises it
    assert process.returncode == 0
    assert out == "stopped\n"
    assert "Traceback" not in err


def test_refusals_exclusions_and_the_end(tmp_path: Any) -> None:
    flags = ["--reward", "tests.rewards.sources:choosy", "--max_request_mb", "0.01"]
    with served(*flags, token="s3cret") as (address, process):
        welcome = {"Authorization": "Bearer s3cret"}
        row: dict[str, Any] = {"messages": ASKED, "response": "xx"}
        body = json.dumps({"candidates": [row, row | {"response": "bw"}, row | {"response": "v"}]}).encode()
        assert post(address, body)[0] == 401
        assert post(address, body, Authorization="Bearer s3cre")[0] == 401
        assert post(address, body, **welcome) == (
            200, {"scores": [2.0, None, None], "reasons": [None, "choosy raised ValueError", "choosy returned None"]},
        )  # fmt: skip
        status, said = post(address, b"[1]", **welcome)
        assert status == 400
        assert "expected candidates to be a list" in said["error"]
        assert post(address, b" " * 10_001, **welcome) == (413, {"error": "the request has more than 10000 bytes"})
        alone = json.dumps({"candidates": [row | {"response": "bw"}]}).encode()
        assert post(address, alone, **welcome)[1]["scores"] == [None], "one response without a score is no failure"
        status, said = post(address, json.dumps({"candidates": [row | {"response": "bw"}] * 8}).encode(), **welcome)
        assert status == 500
        assert "raised ValueError (there is a w in it) for every response of a batch" in said["error"]
        assert post(address, b'{"candidates": []}', **welcome) == (200, {"scores": [], "reasons": []})
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=30)
    assert process.returncode == 0
    assert "s3cret" not in err


def test_requests_that_wait_are_scored_together_and_fail_alone() -> None:
    batches: list[list[str]] = []
    first, go_on = threading.Event(), threading.Event()

    def score(batch: Sequence[Candidate]) -> Scores:
        batches.append([candidate.response for candidate in batch])
        first.set()
        go_on.wait(10)
        if "bad" in batches[-1]:
            raise UserError("a bad one")
        return [float(len(candidate.response)) for candidate in batch]

    async def run() -> list[Any]:
        batcher = Batcher(score, batch_size=4)
        worker = asyncio.create_task(batcher.run())
        requests = [asyncio.create_task(batcher.score(candidates("a")))]
        while not first.is_set():  # while the first is scored, the others come in
            await asyncio.sleep(0.005)
        parts = [["bb", "c"], ["bad"], ["d"], ["eee"]]
        requests += [asyncio.create_task(batcher.score(candidates(*part))) for part in parts]
        await asyncio.sleep(0.02)
        go_on.set()
        found = await asyncio.wait_for(asyncio.gather(*requests, return_exceptions=True), 30)
        worker.cancel()
        return found

    found = asyncio.run(run())
    assert found[:2] == [[1.0], [2.0, 1.0]]
    assert str(found[2]) == "a bad one"
    assert found[3:] == [[1.0], [3.0]]
    # Joined up to batch_size; after the failure, its requests one by one.
    assert batches == [["a"], ["bb", "c", "bad", "d"], ["bb", "c"], ["bad"], ["d"], ["eee"]]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--host", "0.0.0.0"], "--host 0.0.0.0: other machines can reach it; set RAFT_REWARD_TOKEN"),
        (["--reward", "rule:eos", "--reward_normalization", "batch"], "--reward_normalization batch: a server has no"),
        (["--reward", "no_such:thing"], "could not import no_such"),
        (["--port", "70000"], "--port: found 70000"),
        (["--max_request_mb", "0"], "--max_request_mb: found 0"),
    ],
)
def test_mistakes(flags: list[str], message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAFT_REWARD_TOKEN", raising=False)
    with pytest.raises(UserError) as caught:
        main(parse(ServeRewardConfig, flags, prog="raft serve-reward"))
    assert message in str(caught.value)


def test_a_port_that_is_taken() -> None:
    import socket

    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        with pytest.raises(UserError, match=rf"--host 127.0.0.1 --port {port}: Address already in use"):
            main(parse(ServeRewardConfig, ["--reward", "rule:eos", "--port", port], prog="raft serve-reward"))


def test_local_addresses_need_no_token() -> None:
    for host in ("127.0.0.1", "127.8.8.8", "::1", "localhost"):
        refuse_open_door(host, None)
    refuse_open_door("0.0.0.0", "s3cret")
    for host in ("0.0.0.0", "::", "192.168.0.7", "example.org"):
        with pytest.raises(UserError, match="RAFT_REWARD_TOKEN"):
            refuse_open_door(host, None)


def test_without_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    with pytest.raises(UserError, match=r"pip install 'raft-toolkit\[serve\]'"):
        main(parse(ServeRewardConfig, ["--reward", "rule:eos"], prog="raft serve-reward"))
