"""One example in the form that every stage reads, whatever its columns were."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from raft.data.dialogues import Message, user
from raft.errors import UserError

Kind = Literal["text", "conversation", "preference", "prompt"]


@dataclass(frozen=True)
class Row:
    """One example in the form that every stage reads; ``kind`` says which of the fields are set."""

    source: str  # "file.jsonl:12", "file.json[11]", "file.parquet[11]": lines from 1, array items from 0
    messages: tuple[Message, ...] = ()  # end: conversation assistant turn; prompt and preference user turn
    text: str | None = None  # kind "text": continued pretraining
    chosen: str | None = None  # kind "preference": the two candidate assistant replies
    rejected: str | None = None
    margin: float | None = None  # optional preference margin column
    response_tokens: tuple[int, ...] | None = None  # conversation: its last turn's ids exactly as sampled
    extra: Mapping[str, Any] = field(default_factory=dict)  # the other columns, for reward functions
    is_dialogue: bool = False  # the messages were a whole conversation, not a prompt with or without its reply

    @contextmanager
    def named(self) -> Iterator[None]:
        """Within this, an error about the row says where it is from."""
        try:
            yield
        except UserError as error:
            raise UserError(f"{self.source}: {error}") from error

    @property
    def kind(self) -> Kind:
        if self.text is not None:
            return "text"
        if self.chosen is not None:
            return "preference"
        return "conversation" if self.messages[-1]["role"] == "assistant" else "prompt"

    def as_prompt(self) -> Row:
        """What comes before the reply: the messages up to the last user turn; a text as a user's words."""
        if self.kind == "prompt":
            return self
        if self.text is not None:
            return replace(self, text=None, messages=(user(self.text),))
        last = max(i for i, message in enumerate(self.messages) if message["role"] == "user")
        cut = self.messages[: last + 1]
        return replace(self, messages=cut, chosen=None, rejected=None, margin=None, response_tokens=None)

    def as_conversation(self) -> Row | None:
        """A dialogue without the turns behind its last answer; None for any other row, or where nothing is answered."""
        for end in range(len(self.messages) if self.is_dialogue else 0, 0, -1):
            *before, last = self.messages[:end]
            asked = [message["content"] for message in before if message["role"] == "user"]
            if last["role"] == "assistant" and last["content"].strip() and asked and asked[-1].strip():
                return replace(self, messages=self.messages[:end])
        return None

    @property
    def has_empty_answer(self) -> bool:
        """Whether an assistant turn before the last one, which would be trained on, is empty."""
        turns = self.messages[:-1]
        asked = next((i for i, turn in enumerate(turns) if turn["role"] == "user"), len(turns))
        return any(turn["role"] == "assistant" and not turn["content"].strip() for turn in turns[asked:])
