"""Messages to text to tokens, with the same boundaries in training as in sampling.

A conversation becomes *segments*: stretches of text that are either context or a response. A response ends with the
token that the chat template closes an answer with, or with EOS where it has none. Each segment is tokenised by itself,
because at sampling time the prompt is tokenised alone and the response appended token by token. A prompt rendered for
sampling is therefore a prefix, token for token, of the row trained on.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import Any, Literal

from raft.config import Template
from raft.data.dialogues import Message
from raft.data.turns import PROBE, AnswerTurn, answer_turn
from raft.errors import UserError

MARKUP = {"system": "{}\n", "user": "###Human: {}\n", "assistant": "###Assistant:{}\n"}

THINK, THOUGHT = "<think>", "</think>"


@dataclass(frozen=True)
class Segment:
    """A stretch of a conversation; ``is_response`` says whether the model is to learn to write it."""

    text: str
    is_response: bool


class ConversationTemplate:
    """Turns messages into token ids for one tokenizer.

    Args:
        tokenizer: a transformers tokenizer with an EOS token.
        template: ``chat`` (the tokenizer's own), ``human_assistant`` (``###Human: ... ###Assistant: ...``), ``raw``
            (contents one after the other), or ``auto``: chat where the tokenizer has one, else human_assistant. In the
            latter two every response ends with EOS, in a prompt's earlier turns as well.
    """

    def __init__(self, tokenizer: Any, template: Template = "auto") -> None:
        if template == "auto":
            template = "chat" if tokenizer.chat_template else "human_assistant"
        if template == "chat" and not tokenizer.chat_template:
            raise UserError(
                "--template chat: this tokenizer has no chat template; use --template human_assistant or raw."
            )
        self.tokenizer = tokenizer
        self.template = template
        # Chat templates write their own BOS; for plain text it is added where the tokenizer itself would.
        bos = tokenizer.bos_token_id
        self._bos = [bos] if bos is not None and tokenizer("a").input_ids[:1] == [bos] else []
        self._prefix = [] if template == "chat" else self._bos

    def render_prompt(self, messages: Sequence[Message]) -> str:
        """Text up to the point where the model is to answer."""
        if self.template == "chat":
            return self._apply(messages, add_generation_prompt=True) + self._answer.header
        # An earlier answer as it was written, EOS included: else it could not be trained on together with later ones.
        texts = [self.response_text(m["content"]) if m["role"] == "assistant" else m["content"] for m in messages]
        if self.template == "raw":
            return "".join(texts)
        return "".join(MARKUP[m["role"]].format(t) for m, t in zip(messages, texts, strict=True)) + "###Assistant:"

    def render_whole(self, messages: Sequence[Message]) -> str:
        """Text of a whole conversation as the chat template writes it, whatever it puts after the last answer."""
        assert self.template == "chat", "only a chat template knows how a conversation ends"
        return self._apply(messages, add_generation_prompt=False)

    def _apply(self, messages: Sequence[Message], *, add_generation_prompt: bool) -> str:
        from jinja2.exceptions import TemplateError

        merged = _merge_system(messages) if self.system_messages == "merged" else messages
        begun = _num_before_user(messages)
        try:
            return self.tokenizer.apply_chat_template(
                list(merged), tokenize=False, add_generation_prompt=add_generation_prompt
            )
        except (TemplateError, ValueError) as error:
            others = [message for message in messages[:begun] if message["role"] != "assistant"]
            if len(others) < begun:
                # Many templates let nobody but the user begin. The assistant's greeting is context at most.
                return self._apply([*others, *messages[begun:]], add_generation_prompt=add_generation_prompt)
            roles, said = ", ".join(message["role"] for message in messages[:8]), " ".join(str(error).split())[:200]
            raise UserError(f"the chat template refuses a conversation of {roles or 'no messages'}: {said}") from error

    @cached_property
    def system_messages(self) -> Literal["rendered", "merged", "dropped"]:
        """What becomes of a system message: rendered; merged into the first user message, where the chat template
        refuses system messages; or dropped, where it passes over them."""
        from jinja2.exceptions import TemplateError

        if self.template != "chat":
            return "rendered"
        try:
            text = self.tokenizer.apply_chat_template(
                [{"role": "system", "content": PROBE}, {"role": "user", "content": "Hello"}], tokenize=False
            )
        except TemplateError:
            return "merged"
        return "rendered" if PROBE in text else "dropped"

    @cached_property
    def greetings_are_rendered(self) -> bool:
        """Whether the assistant may begin; where the chat template refuses that, its first turn is left out."""
        from jinja2.exceptions import TemplateError

        if self.template != "chat":
            return True
        turns = [{"role": "assistant", "content": PROBE}, {"role": "user", "content": "Hello"}]
        try:
            return PROBE in self.tokenizer.apply_chat_template(turns, tokenize=False)
        except (TemplateError, ValueError):
            return False

    def remarks(self, messages: Sequence[Message], segments: Sequence[Segment] = ()) -> Iterator[str]:
        """What a user should know, and count, of how a conversation is rendered and of its segments, if it has some."""
        if self.system_messages == "dropped" and any(message["role"] == "system" for message in messages):
            yield "system message passed over by the chat template"
        begun = _num_before_user(messages)
        if any(message["role"] == "assistant" for message in messages[:begun]) and not self.greetings_are_rendered:
            yield "assistant's turn before the first user's left out: the chat template refuses it"
        answers = sum(message["role"] == "assistant" for message in messages[begun:])
        if 0 < sum(segment.is_response for segment in segments) < answers:
            yield "earlier answers not trained on: the chat template rewrites them"
        behind = [other for one, other in pairwise(segments) if one.text.rstrip().endswith(THINK)]
        if any(THOUGHT not in response.text for response in behind):
            yield f"answer without {THOUGHT}, where the chat template's prompt ends with {THINK}"

    @cached_property
    def default_system_prompt(self) -> str:
        """What the template writes where a conversation has no system message; empty where it writes nothing."""
        if self.system_messages != "rendered":
            return ""
        without = self.render_prompt([{"role": "user", "content": "Hello"}])
        given = self.render_prompt([{"role": "system", "content": PROBE}, {"role": "user", "content": "Hello"}])
        before, after = given.split(PROBE, 1)
        start, end = _num_shared(before, without), len(without) - _num_shared(after[::-1], without[::-1])
        return without[start:end]

    def segments(self, messages: Sequence[Message], *, last_only: bool = False) -> list[Segment]:
        """Split a conversation into context and responses. An assistant turn before the first user turn is context.

        Args:
            messages: roles and contents; the last one is the assistant's.
            last_only: only the last assistant turn is a response, the others are context.
        """
        begun = _num_before_user(messages)
        answers = [i for i, message in enumerate(messages) if message["role"] == "assistant" and i >= begun]
        found: list[Segment] = []
        rendered = ""
        for i in answers[-1:] if last_only else answers:
            prompt = self.render_prompt(messages[:i])
            if not prompt.startswith(rendered):
                # The template rewrites earlier turns once more follow (it drops their reasoning, say): what the
                # model saw when it wrote them is not in this text, so only the last answer can be trained on.
                return self.segments(messages, last_only=True)
            response = self.response_text(_continued(prompt, self._answer.trimmed(messages[i]["content"])))
            found += [Segment(prompt[len(rendered) :], False), Segment(response, True)]
            rendered = prompt + response
        return found

    def response_text(self, content: str, *, end: str | None = None) -> str:
        """A response as the model should write it: its text, then ``end``, by default what ends a response here."""
        space = "" if content.startswith((" ", "\n")) else self._answer.before
        return space + content + (self.end if end is None else end)

    @cached_property
    def end(self) -> str:
        """What ends a response: the token that the chat template closes an answer with, else EOS."""
        end = self._answer.end
        return self.eos if end is None else self._answer.behind + self.tokenizer.decode([end])

    @property
    def eos(self) -> str:
        """The tokenizer's EOS token; empty where it has none, as with encoders."""
        return self.tokenizer.eos_token or ""

    @cached_property
    def _answer(self) -> AnswerTurn:
        """How an answer is written."""
        if self.template == "human_assistant":
            return AnswerTurn(before=" ")
        return (answer_turn(self.tokenizer) if self.template == "chat" else None) or AnswerTurn()

    def tokenize(self, text: str) -> list[int]:
        """Token ids of a stretch of text; special tokens only where the text spells them out."""
        return self.tokenizer(text, add_special_tokens=False).input_ids

    def encode_document(self, text: str) -> list[int]:
        """Token ids of a plain text: BOS where the tokenizer itself would put one, the text, EOS."""
        return [*self._bos, *self.tokenize(text), self.tokenizer.eos_token_id]

    def encode_prompt(self, messages: Sequence[Message]) -> list[int]:
        """Token ids up to the point where the model is to answer."""
        return self.encode_rendered(self.render_prompt(messages))

    def encode_rendered(self, text: str) -> list[int]:
        """Token ids of what ``render_prompt`` gave."""
        return self._prefix + self.tokenize(text)

    def encode(
        self, messages: Sequence[Message], *, response_tokens: Sequence[int] | None = None
    ) -> tuple[list[int], list[bool]]:
        """Token ids of a whole conversation, and which of them belong to a response.

        Args:
            response_tokens: the last answer's ids as they were sampled; used instead of tokenising its text again.
        """
        if response_tokens is not None:
            tokens = self.encode_prompt(messages[:-1])
            return tokens + list(response_tokens), [False] * len(tokens) + [True] * len(response_tokens)
        return self.encode_segments(self.segments(messages))

    def encode_segments(self, segments: Iterable[Segment]) -> tuple[list[int], list[bool]]:
        """:meth:`encode` of what :meth:`segments` gave."""
        tokens, is_response = list(self._prefix), [False] * len(self._prefix)
        for segment in segments:
            ids = self.tokenize(segment.text)
            tokens += ids
            is_response += [segment.is_response] * len(ids)
        return tokens, is_response


def _merge_system(messages: Sequence[Message]) -> list[Message]:
    """A conversation whose leading system message has become the start of the first user message."""
    if len(messages) < 2 or messages[0]["role"] != "system" or messages[1]["role"] != "user":
        return list(messages)
    system, first, *others = messages
    return [{**first, "content": f"{system['content']}\n\n{first['content']}"}, *others]


def _continued(prompt: str, answer: str) -> str:
    """An answer without the ``<think>`` that the prompt has written already."""
    if not (prompt.rstrip().endswith(THINK) and answer.lstrip().startswith(THINK)):
        return answer
    rest = answer.lstrip().removeprefix(THINK)
    return rest.removeprefix("\n") if prompt.endswith("\n") else rest


def _num_before_user(messages: Sequence[Message]) -> int:
    """Messages before the first of the user's; 0 where there is none."""
    return next((i for i, message in enumerate(messages) if message["role"] == "user"), 0)


def _num_shared(one: str, other: str) -> int:
    """Characters that two texts both begin with."""
    differing = (i for i, (a, b) in enumerate(zip(one, other, strict=False)) if a != b)
    return next(differing, min(len(one), len(other)))
