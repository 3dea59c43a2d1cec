"""`raft align` with a scorer behind HTTP that fails: the run stops in one line, and a resumed one loses nothing."""

from __future__ import annotations

import json
import socket
import threading
from pathlib import Path
from typing import Any

import pytest

from benchmarks.same_run import differences
from raft import cli
from raft.rewards import remote
from raft.rollout.backend import NativeBackend
from raft.run_directory import read_jsonl
from tests.rewards.sources import Answer, Gone, by_length, server, slowly

Told = tuple[int, str]  # exit code, what is said on stderr


def score(number: int, path: str, body: bytes) -> tuple[int, bytes]:
    """A scorer that has something to say of an empty response as well."""
    if path == "/health":
        return by_length(number, path, body)
    return 200, json.dumps({"scores": [len(row["response"]) for row in json.loads(body)["candidates"]]}).encode()


class Runs:
    """``raft align``, again and again in one directory, each time with the scorer answering as a test says.

    Attributes:
        scored: bodies of the requests that got scores.
        drawn: chunks of responses that were drawn.
    """

    def __init__(self, flags: list[str], capsys: pytest.CaptureFixture[str]) -> None:
        self.flags, self.capsys, self.scored, self.drawn = flags, capsys, [], 0
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.port = free.getsockname()[1]

    def __call__(self, directory: Path, answer: Answer | None, **changes: Any) -> Told:
        """One start, on its own or with no server at all."""

        def listening(number: int, path: str, body: bytes) -> tuple[int, bytes]:
            status, said = answer(number, path, body)  # type: ignore[misc]
            if path == "/score" and said == score(number, path, body)[1]:
                self.scored.append(body)
            return status, said

        settings = {"reward_retries": 0, "reward_requests": 1} | changes
        flags = [text for name, value in settings.items() for text in (f"--{name}", str(value))]
        flags += ["--reward", f"http://127.0.0.1:{self.port}", "--output_dir", str(directory), "--resume", "auto"]
        if answer is None:
            code = cli.main(["align", *self.flags, *flags])
        else:
            with server(listening, self.port):
                code = cli.main(["align", *self.flags, *flags])
        errors = [line for line in self.capsys.readouterr().err.splitlines() if "error:" in line]
        assert len(errors) == (code == 2)
        return code, "".join(errors)


@pytest.fixture
def runs(
    talkative_model: str, prompts: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> Runs:
    """b=4, k=3, two iterations: batches of 3 (held out), 5, 5, 2, 5, 5, 2 and 3 responses, in that order."""
    settings = {
        "model_name_or_path": talkative_model, "dataset_path": prompts, "eval_dataset_path": "none",
        "validation_split_percentage": 25, "num_raft_iteration": 2, "raft_batch_size": 4, "num_samples_per_prompt": 3,
        "output_max_length": 8, "inference_batch_size_per_device": 5, "reward_batch_size": 5,
        "per_device_train_batch_size": 2, "num_train_epochs": 1, "learning_rate": 3e-3,
        "eval_every_n_iterations": 0, "dtype": "fp32",
    }  # fmt: skip
    monkeypatch.setattr("raft.reports.curves.draw_align_curves", lambda directory: None)
    monkeypatch.setattr("raft.reports.page.page.write_page", lambda runs: None)
    monkeypatch.setattr(remote, "FIRST_PAUSE", 0.01)
    runs = Runs([text for name, value in settings.items() for text in (f"--{name}", str(value))], capsys)
    draw = NativeBackend.draw

    def counted(*arguments: Any) -> Any:
        runs.drawn += 1
        return draw(*arguments)

    monkeypatch.setattr(NativeBackend, "draw", counted)
    return runs


def after(good: int, answer: Answer) -> Answer:
    """An answer from the batch after ``good`` of them on; before, and to /health, that of a scorer that works."""
    batches = 0

    def answered(number: int, path: str, body: bytes) -> tuple[int, bytes]:
        nonlocal batches
        batches += path == "/score"
        return answer(number, path, body) if batches > good else score(number, path, body)

    return answered


def garbage(said: bytes) -> Answer:
    """The same answer to everything."""
    return lambda number, path, body: (200, said)


def test_a_scorer_that_fails_in_every_way_stops_the_run_and_a_resumed_one_loses_nothing(
    runs: Runs, tmp_path: Path
) -> None:
    """Every start but the last gets a batch or two further. In the end all is as with a scorer that never failed."""
    assert runs(tmp_path / "whole/run", score) == (0, "")
    expected, runs.scored, drawn, runs.drawn = runs.scored, [], runs.drawn, 0
    run, released = tmp_path / "run", threading.Event()

    def gone(number: int, path: str, body: bytes) -> tuple[int, bytes]:
        raise Gone

    def hanging(number: int, path: str, body: bytes) -> tuple[int, bytes]:
        released.wait(20)
        return 200, b""

    def dead_after(good: int, answer: Answer, told: str, **changes: Any) -> None:
        """A start that ends in a line which names the address, and what came back from it."""
        code, line = runs(run, after(good, answer), **changes)
        assert code == 2
        assert line.startswith(f"raft align: error: --reward http://127.0.0.1:{runs.port}: {told}")
        assert line.endswith(f"Go on with --output_dir {run} --resume.")

    silent = json.dumps({"scores": [float("nan")] * 3}).encode()
    dead_after(0, garbage(silent), "no score for any of 3 responses: ")
    dead_after(2, gone, "no answer to POST /score after 2 tries: Connection", reward_retries=1)
    code, line = runs(run, None)  # nobody there
    assert (code, "no answer to GET /health after one try: ConnectionRefusedError" in line) == (2, True)
    dead_after(1, hanging, "no answer to POST /score after one try: it took more than 0.3 s.", reward_timeout=0.3)
    released.set()
    dead_after(0, garbage(b"<html>busy</html>"), "the answer is no scores: expected JSON, found b'<html>busy")
    dead_after(1, garbage(b'{"scores": [1, 2, 3, 4]}'), "the answer is no scores: it gave 4 scores for 5 responses.")
    words = b'{"scores": ["good", 1, 1, 1, 1]}'
    dead_after(1, garbage(words), "the answer is no scores: its scores are not all numbers or null.")
    dead_after(0, garbage(b" " * (1 << 21)), "the answer has more than")
    assert runs(run, slowly(score, 0.05)) == (0, "")
    assert differences(tmp_path / "whole/run", run) == []
    assert sorted(runs.scored) == sorted(expected)  # no batch twice
    assert runs.drawn == drawn == 1 + 3 + 3 + 1  # no chunk twice


def test_a_score_that_is_no_finite_number_is_left_out(runs: Runs, tmp_path: Path) -> None:
    """It is no failure of the scorer: the response is discarded, counted, and told."""

    def some_nan(number: int, path: str, body: bytes) -> tuple[int, bytes]:
        if path == "/health":
            return score(number, path, body)
        rows = json.loads(body)["candidates"]
        return 200, json.dumps({"scores": [float("nan"), *(len(row["response"]) for row in rows[1:])]}).encode()

    assert runs(tmp_path / "run", some_nan, num_raft_iteration=1)[0] == 0
    rows = read_jsonl(tmp_path / "run/iterations/0001/samples.jsonl")
    reasons = [row["discarded"] for row in rows]
    assert [reason for reason in reasons if reason] == ["remote gave no finite score"] * 3
    assert reasons[0::5] == ["remote gave no finite score"] * 3
    assert not any(row["selected"] for row in rows if row["discarded"])
