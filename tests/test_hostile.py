"""Input that means harm: none of it runs, leaves its place, acts on a terminal, fills memory or gives a secret away."""

from __future__ import annotations

import ast
import gzip
import io
import json
import logging
import socket
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from raft import cli, manifest
from raft.arguments import load_yaml
from raft.data import files
from raft.data.loading import load_rows
from raft.errors import UserError
from raft.journal import Journal
from raft.reports.alignment import write_before_after
from raft.rewards.protocol import TOKEN_VARIABLE, decode_request, decode_response, token_of_environment
from raft.rewards.remote import RemoteSettings, RemoteSource
from raft.rewards.rewards import Scored
from raft.rewards.source import Candidate, Excluded
from raft.rewards.spec import parse_specs
from raft.run_directory import environment, write_json, write_jsonl
from raft.terminal import visible, without_passwords
from tests.conftest import ROOT

ESCAPE = "\x1b]0;owned\x07\x1b[2J\x9b31m\u202egnp"


def refused(*argv: str, capsys: pytest.CaptureFixture[str]) -> str:
    assert cli.main(list(argv)) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    return error


# ---------------------------------------------------------------- what a terminal is shown


def test_no_message_acts_on_the_terminal(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A message quotes what it is about: here a column of a data file, by its hostile name."""
    data = tmp_path / "a.jsonl"
    data.write_text(json.dumps({ESCAPE: "x"}) + "\n")
    error = refused("score", "--dataset_path", str(data), "--reward", "rule:eos", capsys=capsys)
    assert "a.jsonl:1: found a row with the keys" in error
    assert error == visible(error)
    error = refused("score", "--dataset_path", f"no{ESCAPE}such", "--reward", "rule:eos", capsys=capsys)
    assert r"\x1b]0;owned\x07" in error
    assert error == visible(error)


def test_no_response_acts_on_the_terminal_at_the_end_of_a_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    prompt = [{"role": "user", "content": f"Why?{ESCAPE}"}]
    for name, reward in (("0000", 0.0), ("0001", 1.0)):
        row = {"sample_id": 0, "prompt_id": "p", "prompt": prompt, "response": f"So.{ESCAPE}", "reward": reward}
        write_jsonl(tmp_path / f"held_out/{name}.jsonl", [row])
    pair = {"initial": 0.0, "final": 1.0}
    summary: dict[str, Any] = {name: pair for name in ("distinct_1", "distinct_2", "length", "eos_share")}
    summary |= {"held_out_reward": {**pair, "difference": 1.0, "ci95": [0.0, 1.0], "num_prompts": 1}}
    alarm = {"kind": "phrase", "feature": f"so{ESCAPE}", "share_start": 0.0, "share_now": 1.0}
    summary |= {"drift": {"iterations": [1], "alarms": [alarm]}}
    write_before_after(tmp_path, summary | {"seconds": {"total": 1.0}, "num_iterations": 1})
    printed = capsys.readouterr().out
    assert "So." in printed
    assert printed == visible(printed)


def test_no_scorer_acts_on_the_terminal_or_names_a_metric_with_it() -> None:
    body = json.dumps({"scores": [None, 1.0], "reasons": [f"a\n{ESCAPE}" + "b" * 500, None]}).encode()
    first, second = decode_response(body, 2)
    assert second == 1.0
    assert isinstance(first, Excluded)
    assert first.reason.isprintable()
    assert len(first.reason) <= 100
    said = Scored({}, [0.0], ["x raised ValueError"], {}, {"x raised ValueError": ESCAPE}).exclusions()
    assert said is not None
    assert said == visible(said)


def test_scores_on_a_terminal_are_ascii(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    (tmp_path / "a.jsonl").write_text(json.dumps({"prompt": "x", "response": f"y{ESCAPE}"}) + "\n")
    screen = Terminal()
    monkeypatch.setattr(sys, "stdout", screen)
    assert cli.main(["score", "--dataset_path", str(tmp_path / "a.jsonl"), "--reward", "rule:regex,pattern=z"]) == 0
    assert "\\u009b" in screen.getvalue()
    assert screen.getvalue().isascii()


# ---------------------------------------------------------------- code and names


def test_nothing_here_unpickles() -> None:
    """`torch.load` only with weights_only, and nothing else that builds what a file says."""
    calls = []
    for path in sorted((ROOT / "raft").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import | ast.ImportFrom):
                names = [alias.name for alias in node.names] + [getattr(node, "module", None) or ""]
                assert not {"pickle", "dill", "cloudpickle", "joblib", "marshal", "shelve"} & set(names), path.name
            if isinstance(node, ast.Call):
                called = ast.unparse(node.func)
                assert called not in ("eval", "exec", "yaml.load", "yaml.unsafe_load", "np.load"), path.name
                calls += [ast.unparse(node)] if called == "torch.load" else []
    assert len(calls) == 1
    assert all("weights_only=True" in call for call in calls)


def test_names_of_sources_lead_nowhere(tmp_path: Path) -> None:
    """A source is named after the end of its path; its units are kept in files named after it."""
    names = [spec.name for spec in parse_specs(["../../etc/pass wd"])]
    assert names == ["pass_wd"]
    for name in ("../../outside", "/etc/x", "a/b", "..", "\0"):
        journal = Journal(tmp_path / "journal")
        journal.write(f"score/{name}", 0, None, 1)
        journal.close()
    written = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert {path.parent for path in written} == {tmp_path / "journal"}
    with pytest.raises(UserError, match="found no path"):
        parse_specs([".."])


# ---------------------------------------------------------------- bombs


def test_a_gzip_file_that_unpacks_without_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "SMALL", 1 << 16)
    bomb, data = tmp_path / "bomb.jsonl.gz", tmp_path / "data.jsonl.gz"
    bomb.write_bytes(gzip.compress(b" " * (1 << 22)))
    with pytest.raises(UserError, match=r"bomb\.jsonl\.gz: found a gzip file that unpacks to more than 200 times"):
        load_rows(str(bomb), kinds={"prompt"})
    data.write_bytes(gzip.compress(b'{"prompt": "What is bread?"}\n' * 2000))  # repeats itself as much as data may
    assert len(load_rows(str(data), kinds={"prompt"}).rows) == 2000


def test_yaml_that_grows_by_merging_is_refused_at_once(tmp_path: Path) -> None:
    levels = [f"l{i}: &l{i} {{<<: [{', '.join([f'*l{i - 1}'] * 9)}]}}" for i in range(1, 30)]
    file = tmp_path / "laughs.yaml"
    file.write_text("l0: &l0 {seed: 1}\n" + "\n".join(levels))
    with pytest.raises(UserError, match=r"laughs\.yaml, line 3: merges a mapping \(<<\) that merges another"):
        load_yaml(file)
    file.write_text("l0: &l0 {seed: 1}\nl1: {<<: *l0, x: 2}\nl2: {<<: [*l0]}\n")
    assert load_yaml(file)["l1"] == {"seed": 1, "x": 2}


def test_a_huge_file_of_settings_is_refused_unread(tmp_path: Path) -> None:
    file = tmp_path / "huge.yaml"
    file.write_text("a: " + "x" * 300_000)
    with pytest.raises(UserError, match=r"huge\.yaml: found more than 262,144 bytes"):
        load_yaml(file)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: !!python/object/apply:os.system [id]", "line 1: tags such as 'tag:yaml.org,2002:python/object/apply"),
        ("a: !!python/name:os.system", "tags such as"),
        ("a: !!timestamp x", "a value does not fit its tag"),
        ("!!set {a, b}", "found a set"),
        ("a: \x01", "the character U+0001 is not allowed (character 4)"),
    ],
)
def test_yaml_builds_plain_values_alone(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "a.yaml").write_text(text)
    with pytest.raises(UserError) as caught:
        load_yaml(tmp_path / "a.yaml")
    assert str(caught.value).startswith(f"{tmp_path}/a.yaml")
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("files_listed", "fault"),
    [
        ({"/dev/zero": {"bytes": 0, "xxh3_64": "x"}}, "zero is no file"),
        ({"a\0b": {"bytes": 0}}, "lists a name that no file can have"),
        ({"weights": {"bytes": "5"}}, "weights: no size in the manifest"),
        ({"weights": 5}, "weights: no size in the manifest"),
        ([1], "manifest.json can not be read"),
    ],
)
def test_manifests_that_lie(tmp_path: Path, files_listed: Any, fault: str) -> None:
    (tmp_path / "weights").write_bytes(b"12345")
    write_json(tmp_path / manifest.NAME, {"files": files_listed})
    assert fault in str(manifest.find_fault(tmp_path))


# ---------------------------------------------------------------- HTTP


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"messages": [{"role": "tool", "content": "x"}]}, r"candidates\[0\].messages: found the role 'tool'"),
        ({"response_tokens": [1, "2"]}, "token ids, integers from 0"),
        ({"response_tokens": [1 << 40]}, "token ids, integers from 0"),
        ({"response": "\ud800"}, "half of a surrogate pair"),
        ({"columns": {"a": json.loads("[" * 200 + "]" * 200)}}, "expected JSON"),
    ],
)
def test_requests_that_a_scorer_would_stumble_over(change: dict[str, Any], message: str) -> None:
    row = {"messages": [{"role": "user", "content": "x"}], "response": "y"}
    assert decode_request(json.dumps({"candidates": [row]}).encode()) == [Candidate(row["messages"], "y")]  # type: ignore[arg-type]
    with pytest.raises(UserError, match=message):
        decode_request(json.dumps({"candidates": [row | change]}).encode())


def test_a_score_beyond_any_float() -> None:
    with pytest.raises(UserError, match="more than 300 digits"):
        decode_response(b'{"scores": [1' + b"0" * 400 + b"]}", 1)


def test_a_scorer_that_never_ends_its_headers_is_left() -> None:
    """Every line comes within the socket's own time limit, which starts anew with each."""
    stop = threading.Event()

    def drip(listening: socket.socket) -> None:
        connection, _ = listening.accept()
        with connection:
            connection.sendall(b"HTTP/1.1 200 OK\r\n")
            while not stop.wait(0.05):
                try:
                    connection.sendall(b"x: y\r\n")
                except OSError:
                    return

    with socket.create_server(("127.0.0.1", 0)) as listening:
        thread = threading.Thread(target=drip, args=[listening])
        thread.start()
        try:
            address = f"http://127.0.0.1:{listening.getsockname()[1]}"
            began = time.monotonic()
            with pytest.raises(UserError, match=r"it took more than 0\.3 s"):
                RemoteSource(address, RemoteSettings(timeout=0.3, retries=0), flag="--reward x").check_health()
            assert time.monotonic() - began < 3
        finally:
            stop.set()
            thread.join()


def test_a_client_that_never_ends_its_headers_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    uvicorn = pytest.importorskip("uvicorn")
    from raft.rewards.server import build_app
    from raft.tools import serve_reward

    monkeypatch.setattr(serve_reward, "SECONDS_TO_ASK", 0.3)
    app = build_app(lambda batch: [1.0] * len(batch), names=["x"], identity="y", batch_size=4, max_bytes=1000)
    config = uvicorn.Config(app, http=serve_reward.impatient_protocol(), log_level="critical", log_config=None)
    server = uvicorn.Server(config)
    monkeypatch.setattr(server, "install_signal_handlers", lambda: None, raising=False)
    logging.getLogger("uvicorn").setLevel(logging.CRITICAL)
    with serve_reward.listen("127.0.0.1", 0) as listening:
        address = listening.getsockname()
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]}, daemon=True)
        thread.start()
        try:
            with socket.create_connection(address, timeout=20) as connection:
                connection.sendall(b"POST /score HTTP/1.1\r\nHost: x\r\n")
                assert connection.recv(100) == b""  # closed by the server, which waits no longer
            RemoteSource(f"http://127.0.0.1:{address[1]}", RemoteSettings(), flag="").check_health()
        finally:
            server.should_exit = True
            thread.join(20)
    assert not thread.is_alive()


# ---------------------------------------------------------------- secrets


@pytest.mark.parametrize("token", ["s3cret\n", "s3 cret", "s3cr\u00e9t"])
def test_a_token_that_no_header_holds_is_not_repeated(monkeypatch: pytest.MonkeyPatch, token: str) -> None:
    monkeypatch.setenv(TOKEN_VARIABLE, token)
    with pytest.raises(UserError, match="is there one at its end") as caught:
        token_of_environment()
    assert "s3" not in str(caught.value)
    with pytest.raises(UserError, match=TOKEN_VARIABLE):
        RemoteSource("http://127.0.0.1:1", RemoteSettings(retries=0), flag="").check_health()


@pytest.mark.parametrize(
    "text",
    [
        "http://me:hunter2@host:1",
        "http://me:hunter2@host:port",
        "reward=https://hunter2@host",
        "a=http://:hunter2@[::1",
    ],
)
def test_a_password_in_an_address_is_refused_and_not_repeated(text: str) -> None:
    with pytest.raises(UserError, match="RAFT_REWARD_TOKEN") as caught:
        parse_specs([text])
    assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize(
    "text", ["http://a b", "http://h\u00f6st/", "http://" + "a" * 70, "http://a..b", "http://h/\u00fc"]
)
def test_addresses_that_a_socket_would_stumble_over(text: str) -> None:
    with pytest.raises(UserError, match="--reward http://"):
        parse_specs([text])


def test_passwords_in_other_flags_are_neither_printed_nor_recorded(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    address = "https://me:hunter2@example.org/data.jsonl"
    error = refused("score", "--dataset_path", address, "--reward", "rule:eos", capsys=capsys)
    assert "https://...@example.org/data.jsonl" in error
    monkeypatch.setattr(sys, "argv", ["raft", "sft", "--dataset_path", address])
    assert environment()["arguments"] == ["sft", "--dataset_path", "https://...@example.org/data.jsonl"]
    assert without_passwords("see http://host:1/a@b and a:b@c") == "see http://host:1/a@b and a:b@c"


def test_a_configuration_whose_name_is_no_name_of_a_file(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["align", "--config", "\ud800"]) == 2
    assert "--config: found '\\ud800', which can not be the name of a file" in capsys.readouterr().err
