"""`raft chat`: over a pipe with real models; its commands and a terminal with a model that says what it is told to."""

from __future__ import annotations

import io
import json
import os
import pty
import select
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from raft.arguments import parse
from raft.cli import main as raft_main
from raft.data.loading import load_rows
from raft.errors import UserError
from raft.rollout.answering_config import LoadingConfig
from raft.rollout.responder import Answer, find_sources, load_responder
from raft.rollout.sampling import Sampling
from raft.run_directory import read_jsonl
from raft.tools import chat
from raft.tools.chat import Chat
from raft.tools.chat_config import ChatConfig
from tests.conftest import ROOT

Message = dict[str, str]


class Parrot:
    """Answers with what it heard and by which seed, in two pieces; the words it should say instead, if any."""

    def __init__(self, name: str, says: str | None = None) -> None:
        self.name, self.says, self.reads_system = name, says, True
        self.heard: list[list[Message]] = []

    def answer(
        self, messages: Sequence[Message], sampling: Sampling, seed: Sequence[int], on_text: Callable[[str], None]
    ) -> Answer:
        self.heard.append([dict(message) for message in messages])
        if messages[-1]["content"] == "too long":
            raise UserError("the message has 999 tokens")
        text = self.says or f"{self.name} {messages[-1]['content']} {'-'.join(map(str, seed))}"
        on_text(text[:3])
        if messages[-1]["content"] == "interrupt":
            raise KeyboardInterrupt
        on_text(text[3:])
        return Answer(text, [1, 2, 3], "eos")


class Screen(io.StringIO):
    """A stdout that says it is a terminal."""

    def isatty(self) -> bool:
        return True


def talk(text: str, *flags: str, models: Sequence[Parrot] = ()) -> Chat:
    """Let models hear the lines of a text, over a pipe."""
    config = parse(ChatConfig, flags, prog="raft chat")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "stdin", io.StringIO(text))
        found = Chat(config, list(models or [Parrot("polly")]))  # type: ignore[arg-type]
        found.run()
    return found


# ------------------------------------------------------------------------------------------- with real models


def test_over_a_pipe_answers_are_those_of_the_sampler(
    talkative_model: str,
    tiny_model: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    saved = tmp_path / "talk.jsonl"
    lines = ["Hello there", "", f"/save {saved}", "And water?", "/again"]
    flags = ["--max_new_tokens", "9", "--seed", "4", "--dtype", "fp32"]
    monkeypatch.setattr(sys, "stdin", io.StringIO("\n".join(lines) + "\n"))
    assert raft_main(["chat", talkative_model, "--compare", tiny_model, *flags]) == 0
    out, err = capsys.readouterr()
    sources = find_sources([("--models", talkative_model), ("--models", tiny_model)])
    responders = [load_responder(source, LoadingConfig(dtype="fp32")) for source in sources]
    expected, turns = "", [[], []]  # type: tuple[str, list[list[Message]]]
    for message, seed in (("Hello there", (4, 1, 0)), ("And water?", (4, 2, 0)), ("And water?", (4, 2, 1))):
        for responder, said in zip(responders, turns, strict=True):
            del said[-2 if seed[2] else len(said) :]
            said.append({"role": "user", "content": message})
            answer = responder.answer(said, Sampling(temperature=0.85, max_tokens=9), seed)
            said.append({"role": "assistant", "content": answer.text})
            expected += f"{responder.name}:\n{answer.text}\n"
    assert out == expected
    rows = read_jsonl(saved)
    assert [row["model"] for row in rows] == ["talkative", "tiny"]
    assert [row["messages"] for row in rows] == [said[:2] for said in turns]
    assert err.splitlines()[-1] == f"saved to {saved}"


# ------------------------------------------------------------------------------------------- over a pipe


def test_a_line_is_a_message_and_a_line_of_answer(capsys: pytest.CaptureFixture[str]) -> None:
    parrot = Parrot("polly")
    talk("one\n\n  two  \n//three", "--system", "Be nice.", models=[parrot])
    out, err = capsys.readouterr()
    assert out.splitlines() == ["polly one 0-1-0", "polly two 0-2-0", "polly /three 0-3-0"]
    assert err == ""
    system = {"role": "system", "content": "Be nice."}
    assert parrot.heard[0] == [system, {"role": "user", "content": "one"}]
    assert [message["role"] for message in parrot.heard[2]] == ["system", *["user", "assistant"] * 2, "user"]


def test_reset_system_and_again(capsys: pytest.CaptureFixture[str]) -> None:
    parrot = Parrot("polly")
    text = "one\n/again\n/again\n/reset\none\n/system Be kind.\ntwo\n/system\n/system none\n/quit\nnever heard"
    talk(text, models=[parrot])
    out, err = capsys.readouterr()
    expected = ("one 0-1-0", "one 0-1-1", "one 0-1-2", "one 0-1-0", "two 0-2-0")
    assert out.splitlines() == [f"polly {said}" for said in expected]
    assert [len(heard) for heard in parrot.heard] == [1, 1, 1, 1, 4]
    assert parrot.heard[4][0] == {"role": "system", "content": "Be kind."}
    assert err.splitlines() == [
        "the conversation is forgotten", "system message: Be kind.", "system message: Be kind.", "no system message",
    ]  # fmt: skip


def test_models_that_do_not_read_system_messages_are_named(capsys: pytest.CaptureFixture[str]) -> None:
    polly, molly = Parrot("polly"), Parrot("molly")
    molly.reads_system = False
    talk("one\n/system none\n/system Be kind.", "--system", "Be nice.", models=[polly, molly])
    deaf = "not read by molly: the chat template passes over system messages"
    assert capsys.readouterr().err.splitlines() == [deaf, "no system message", "system message: Be kind.", deaf]


def test_json_is_one_object_a_message(capsys: pytest.CaptureFixture[str]) -> None:
    talk("né\nb\n", "--json", models=[Parrot("polly"), Parrot("molly")])
    first, second = map(json.loads, capsys.readouterr().out.splitlines())
    assert first == {
        "message": "né",
        "answers": {
            name: {"text": f"{name} né 0-1-0", "finish_reason": "eos", "num_tokens": 3} for name in ("polly", "molly")
        },
    }
    assert second["message"] == "b"


def test_what_is_saved_is_training_data_and_no_file_is_lost(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path, mine = tmp_path / "talk.jsonl", tmp_path / "mine.txt"
    mine.write_text("precious")
    talk(f"one\n/save {path}\ntwo\n/save {path}\n", models=[Parrot("a"), Parrot("b")])
    rows = load_rows(str(path), kinds={"conversation"}).rows
    assert [[message["content"] for message in row.messages] for row in rows] == [
        ["one", f"{name} one 0-1-0", "two", f"{name} two 0-2-0"] for name in "ab"
    ]
    with pytest.raises(UserError, match=r"/save: .*mine.txt is there already"):
        talk(f"one\n/save {mine}\n")
    assert mine.read_text() == "precious"
    with pytest.raises(UserError, match=r"/save: needs the name of a file"):
        talk("/save\n")


def test_mistakes_over_a_pipe_end_it_and_interrupts_do_too() -> None:
    with pytest.raises(UserError, match=r"there is no command /rest; /help lists them"):
        talk("/rest\n")
    with pytest.raises(UserError, match="999 tokens"):
        talk("too long\n")
    with pytest.raises(UserError, match="/again: nothing was said yet"):
        talk("/again\n")
    with pytest.raises(KeyboardInterrupt):
        talk("interrupt\n")


def test_help_names_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    talk("/help\n")
    err = capsys.readouterr().err
    assert all(name.split()[0] in err for name in ("/reset", "/save FILE", "/system", "/again", "/help", "/quit"))


def test_several_processes_are_refused(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("raft.distributed.world_size", lambda: 2)
    assert raft_main(["chat", "nowhere"]) == 2
    assert "found several processes, expected one" in capsys.readouterr().err


# ------------------------------------------------------------------------------------------- in a terminal

EVIL = "\x1b[2Jgone\x9b1m\rover\u202etxt"


def at_a_terminal(
    lines: Sequence[str], monkeypatch: pytest.MonkeyPatch, *models: Parrot, flags: Sequence[str] = ()
) -> str:
    """What the screen shows after these lines are typed."""
    screen, typed = Screen(), iter(lines)
    keyboard = Screen()
    monkeypatch.setattr(sys, "stdin", keyboard)
    monkeypatch.setattr(sys, "stdout", screen)
    monkeypatch.setattr("builtins.input", lambda prompt: next(typed, None) or pytest.fail("read on after /quit"))
    monkeypatch.setattr(chat.shutil, "get_terminal_size", lambda *_, **__: os.terminal_size((80, 24)))
    Chat(parse(ChatConfig, flags, prog="raft chat"), list(models)).run()  # type: ignore[arg-type]
    return screen.getvalue()


@pytest.mark.parametrize("flags", [[], ["--json"]])
@pytest.mark.parametrize("num_models", [1, 2])
def test_no_escape_sequence_of_a_model_reaches_the_terminal(
    monkeypatch: pytest.MonkeyPatch, flags: list[str], num_models: int
) -> None:
    models = [Parrot(f"m{i}", EVIL) for i in range(num_models)]
    shown = at_a_terminal(["hi", "/quit"], monkeypatch, *models, flags=flags)
    shown = shown.replace("\r\x1b[K", "")  # chat's own, which wipes "m0 ..."
    assert "gone" in shown
    assert not [character for character in shown if character in "\x1b\x9b\r\u202e"]


def test_over_a_pipe_text_comes_as_it_is(capsys: pytest.CaptureFixture[str]) -> None:
    talk("hi\n", models=[Parrot("polly", EVIL)])
    assert capsys.readouterr().out == EVIL + "\n"


def test_several_models_stand_side_by_side(monkeypatch: pytest.MonkeyPatch) -> None:
    shown = at_a_terminal(["hi", "/quit"], monkeypatch, Parrot("polly"), Parrot("molly"))
    last = shown.rsplit("\r\x1b[K", 1)[1].splitlines()
    assert [line.split("│")[0].strip() for line in last] == ["polly", "─────", "polly hi 0-1-0"]
    assert [line.split("│")[1].strip() for line in last] == ["molly", "─────", "molly hi 0-1-0"]


def test_ctrl_c_keeps_what_was_said_and_mistakes_do_not_end_the_talk(monkeypatch: pytest.MonkeyPatch) -> None:
    parrot = Parrot("polly")
    shown = at_a_terminal(["interrupt", "too long", "/nonsense", "on", "/quit"], monkeypatch, parrot)
    assert "999 tokens" in shown
    assert "there is no command /nonsense" in shown
    assert [message["content"] for message in parrot.heard[-1]] == ["interrupt", "pol", "on"]


def test_an_answer_that_fails_to_come_again_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    parrot = Parrot("polly")
    real = parrot.answer

    def answer(messages: Sequence[Message], sampling: Sampling, seed: Sequence[int], on_text: Any) -> Answer:
        if messages[0]["content"] == "long":
            raise UserError("no room is left")
        return real(messages, sampling, seed, on_text)

    monkeypatch.setattr(parrot, "answer", answer)
    lines = ["hi", "/system long", "/again", "/again", "/system none", "/again", "on", "/quit"]
    shown = at_a_terminal(lines, monkeypatch, parrot)
    assert shown.count("no room is left") == 2
    assert "polly hi 0-1-1" in shown
    assert [message["content"] for message in parrot.heard[-1]] == ["hi", "polly hi 0-1-1", "on"]


FAKE = """
import sys
from raft import cli
from raft.rollout import responder
from raft.tools import chat
class Model:
    name, reads_system = "model", True
    def answer(self, messages, sampling, seed, on_text):
        on_text("\\x1b]0;owned\\x07hello " + messages[-1]["content"])
        return responder.Answer("hello", [1], "eos")
chat.load_responder = lambda source, loading: Model()
chat.find_sources = lambda paths, adapter: [None]
sys.exit(cli.main(["chat", "model"]))
"""


def test_at_a_real_terminal() -> None:
    controller, terminal = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-c", FAKE], stdin=terminal, stdout=terminal, stderr=terminal, cwd=ROOT, close_fds=True
    )
    os.close(terminal)
    seen = everything = b""

    def wait_for(text: bytes) -> None:
        nonlocal seen, everything
        end = time.monotonic() + 240
        while text not in seen and time.monotonic() < end:
            if select.select([controller], [], [], 1)[0]:
                found = os.read(controller, 4096)
                seen, everything = seen + found, everything + found
        assert text in seen, seen

    try:
        wait_for(b"> ")
        os.write(controller, b"you\x7fu\n")  # a letter is taken back
        wait_for(b"hello you")
        seen = seen[seen.index(b"hello you") :]
        wait_for(b"> ")
        os.write(controller, b"\x04")
        assert process.wait(60) == 0
        assert rb"\x1b]0;owned\x07hello you" in everything
        assert b"\x1b]0;" not in everything
    finally:
        process.kill()
        os.close(controller)
