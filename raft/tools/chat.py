"""`raft chat`: talk to a model, or to several at once, as raft align samples from it.

In a terminal an answer appears as it is drawn, Ctrl-C ends it, and control characters in it are spelled out. Over a
pipe every line of stdin is a message and only answers go to stdout, so that a conversation can be scripted.

    raft chat output_models/first_run
    raft chat output_models/SmolLM2-135M-Instruct --compare output_models/first_run
    printf 'Hello!\\nAnd in French?\\n' | raft chat output_models/first_run --temperature 0
"""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from raft import distributed
from raft.config import require
from raft.data.dialogues import Message
from raft.errors import UserError
from raft.models.loading import quiet_libraries
from raft.rollout.responder import Answer, Responder, find_sources, load_responder, sampling_of
from raft.run_directory import write_jsonl
from raft.terminal import side_by_side, visible
from raft.tools.chat_config import ChatConfig

COMMANDS = {
    "/again": "another answer to the last message",
    "/reset": "forget the conversation",
    "/system [TEXT]": "set the system message; `none` removes it, without TEXT it is shown",
    "/save FILE": "write the conversation as JSON lines, a format that raft sft reads",
    "/help": "these lines; //text sends a message that begins with /",
    "/quit": "leave, as Ctrl-D does",
}


def main(config: ChatConfig) -> None:
    """Load the models and answer until the input ends.

    Raises:
        UserError: if a model can not be loaded, or there are several processes.
    """
    require(distributed.world_size() == 1, "raft chat: found several processes, expected one; start it by itself.")
    quiet_libraries()
    models = config.models
    paths = [("--model_name_or_path", models.model_name_or_path), *(("--compare", path) for path in models.compare)]
    responders = [load_responder(source, config.loading) for source in find_sources(paths, models.adapter)]
    Chat(config, responders).run()


class Chat:
    """One conversation with each model; all get the same messages."""

    def __init__(self, config: ChatConfig, responders: list[Responder]) -> None:
        self.config, self.responders = config, responders
        self.sampling, self.system = sampling_of(config.answers), config.answers.system
        self.turns: list[list[Message]] = [[] for _ in responders]
        self.attempt = 0  # answers that the last message had before
        self.is_terminal = sys.stdout.isatty()
        self.is_interactive = sys.stdin.isatty() and self.is_terminal
        self.saved: set[Path] = set()

    def run(self) -> None:
        """Read messages and commands, answer and obey."""
        if self.is_interactive:
            self.say(f"talking to {', '.join(one.name for one in self.responders)}; /help lists the commands")
        self.name_deaf()
        for line in read_lines(self.is_interactive):
            try:
                if line.startswith("/") and not line.startswith("//"):
                    if not self.obey(line):
                        return
                else:
                    self.hear(line.removeprefix("/"))
            except UserError as error:
                if not self.is_interactive:
                    raise
                self.say(str(error))

    # ---------------------------------------------------------------- messages

    def hear(self, message: str) -> None:
        """Answer a user's message."""
        num_turns = len(self.turns[0])
        for turns in self.turns:
            turns.append({"role": "user", "content": message})
        self.attempt = 0
        try:
            self.answer(message)
        except UserError:  # the message is too long, say: as if it had not been sent
            for turns in self.turns:
                del turns[num_turns:]
            raise

    def answer(self, message: str) -> None:
        """Let every model answer what it heard last, and show the answers."""
        whole = self.config.models.json or (self.is_interactive and len(self.responders) > 1)
        answers = []
        for number, responder in enumerate(self.responders):
            if whole and self.is_interactive:
                print(f"{visible(responder.name)} ...", end="", flush=True)
            answers.append(self.answer_of(number, silently=whole))
            if whole and self.is_interactive:
                print("\r\x1b[K", end="", flush=True)
        for turns, answer in zip(self.turns, answers, strict=True):
            turns.append({"role": "assistant", "content": answer.text})
        names = [one.name for one in self.responders]
        if self.config.models.json:
            shown = {name: describe(answer) for name, answer in zip(names, answers, strict=True)}
            print(json.dumps({"message": message, "answers": shown}, ensure_ascii=self.is_terminal), flush=True)
        elif whole:
            print(side_by_side(names, [one.text for one in answers], shutil.get_terminal_size().columns), flush=True)

    def answer_of(self, number: int, *, silently: bool) -> Answer:
        """One model's answer, shown as it is drawn unless ``silently``. In a terminal Ctrl-C cuts it short."""
        responder, pieces = self.responders[number], list[str]()

        def show(piece: str) -> None:
            pieces.append(piece)
            if not silently:
                print(self.clean(piece), end="", flush=True)

        if not silently and len(self.responders) > 1:
            print(f"{self.clean(responder.name)}:")
        turn = sum(message["role"] == "user" for message in self.turns[number])
        seed = (self.config.answers.seed, turn, self.attempt)
        try:
            answer = responder.answer(self.conversation(number), self.sampling, seed, show)
        except KeyboardInterrupt:
            if not self.is_interactive:
                raise
            answer = Answer("".join(pieces), [], "interrupted")
        if not silently:
            print(flush=True)
        return answer

    def clean(self, text: str) -> str:
        """Text of a model's as it may be written to stdout."""
        return visible(text) if self.is_terminal else text

    def conversation(self, number: int) -> list[Message]:
        """Everything that a model is given, its system message first."""
        system = [{"role": "system", "content": self.system}] if self.system else []
        return system + self.turns[number]

    # ---------------------------------------------------------------- commands

    def obey(self, line: str) -> bool:
        """Carry out a command; False ends the conversation.

        Raises:
            UserError: if there is no such command, or it can not be done.
        """
        name, _, rest = line.partition(" ")
        rest = rest.strip()
        if name in ("/quit", "/exit"):
            return False
        actions = {
            "/again": self.again,
            "/reset": self.reset,
            "/system": lambda: self.set_system(rest),
            "/save": lambda: self.save(rest),
            "/help": self.help,
        }
        if name not in actions:
            raise UserError(f"there is no command {visible(name)}; /help lists them, and //... sends a message.")
        actions[name]()
        return True

    def again(self) -> None:
        """Answer the last message once more, by other random numbers."""
        if not self.turns[0]:
            raise UserError("/again: nothing was said yet.")
        before = [turns.pop() for turns in self.turns]
        self.attempt += 1
        try:
            self.answer(self.turns[0][-1]["content"])
        except UserError:  # a longer system message leaves no room, say: the answers that were given stay
            for turns, answer in zip(self.turns, before, strict=True):
                turns.append(answer)
            self.attempt -= 1
            raise

    def reset(self) -> None:
        """Forget the conversation, but not the system message."""
        for turns in self.turns:
            turns.clear()
        self.say("the conversation is forgotten")

    def set_system(self, text: str) -> None:
        """Set the system message from here on, or show it."""
        if text:
            self.system = None if text.lower() == "none" else text
        self.say(f"system message: {visible(self.system)}" if self.system else "no system message")
        self.name_deaf()

    def name_deaf(self) -> None:
        """Say which models will not see the system message."""
        deaf = [one.name for one in self.responders if not one.reads_system]
        if self.system and deaf:
            self.say(f"not read by {', '.join(deaf)}: the chat template passes over system messages")

    def save(self, name: str) -> None:
        """Write one line for each model: who it is, and the conversation. A file from elsewhere is not replaced."""
        if not name:
            raise UserError("/save: needs the name of a file, such as /save talk.jsonl")
        path = Path(name).expanduser()
        if path.exists() and path.resolve() not in self.saved:
            raise UserError(f"/save: {path} is there already; name another file.")
        rows = [
            {"model": responder.name, "messages": self.conversation(number)}
            for number, responder in enumerate(self.responders)
        ]
        try:
            write_jsonl(path, rows)
        except OSError as error:
            raise UserError(f"/save: {path}: {error.strerror}") from error
        self.saved.add(path.resolve())
        self.say(f"saved to {path.resolve()}")

    def help(self) -> None:
        """List the commands."""
        self.say("\n".join(f"  {name:<16}{text}" for name, text in COMMANDS.items()))

    def say(self, text: str) -> None:
        """A line beside the answers: on stderr where a program reads stdout."""
        print(text, file=sys.stdout if self.is_interactive else sys.stderr, flush=True)


def describe(answer: Answer) -> dict[str, Any]:
    """An answer as JSON."""
    return {"text": answer.text, "finish_reason": answer.finish_reason, "num_tokens": len(answer.tokens)}


def read_lines(interactive: bool) -> Iterator[str]:
    """Lines of input that are not blank; in a terminal with a prompt, editing and history."""
    if interactive:
        with suppress(ImportError):  # Windows has none
            import readline  # noqa: F401  # input() uses it once it is imported
    elif hasattr(sys.stdin, "reconfigure"):
        sys.stdin.reconfigure(errors="replace")
    while True:
        try:
            line = input("> ") if interactive else sys.stdin.readline()
        except EOFError:
            print()
            return
        if not interactive and not line:
            return
        if line.strip():
            yield line.strip()
