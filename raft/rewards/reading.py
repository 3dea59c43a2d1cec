"""Dialogues to the token ids that a reward model reads, as its contract says."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from raft.data.dialogues import Message
from raft.data.templates import ConversationTemplate
from raft.errors import UserError
from raft.rewards.contract import RewardContract

HELLO: tuple[tuple[Message, ...], str] = (({"role": "user", "content": "Hello"},), "Hi")
"""The dialogue of a contract's ``rendered_example``."""


class Reader:
    """Turns a prompt and a response into token ids.

    Args:
        tokenizer: the reward model's; where the contract has a chat template, it gets that one.
        contract: how texts become scores.

    Raises:
        UserError: if the contract asks for what the tokenizer can not do.
    """

    def __init__(self, tokenizer: Any, contract: RewardContract) -> None:
        if contract.chat_template:
            tokenizer.chat_template = contract.chat_template
        self.tokenizer, self.contract = tokenizer, contract
        self.is_pair = contract.template == "pair"
        if self.is_pair and contract.score_token != "pooled":
            raise UserError(f"template: pair is for encoders (score_token: pooled), found {contract.score_token}.")
        template = "raw" if self.is_pair else contract.template
        self.template = ConversationTemplate(tokenizer, template)  # type: ignore[arg-type]
        if contract.score_token == "template" and self.template.template != "chat":
            raise UserError("score_token: template needs a chat template, and the tokenizer has none.")
        tokenizer.truncation_side = contract.truncation_side
        # Encoders want [CLS] and [SEP] where their tokenizer puts them.
        self._by_tokenizer = contract.score_token == "pooled" and self.template.template != "chat"
        if self._by_tokenizer:
            tokenizer.split_special_tokens = True  # and nowhere else: a response that spells [SEP] has none

    def encode(self, messages: Sequence[Message], response: str) -> list[int]:
        """Token ids, at most ``max_length`` of them.

        Raises:
            UserError: if the prompt alone fills what is read, so that nothing of the response is.
        """
        return self.cut(self.encode_whole(messages, response), messages, response)

    def encode_whole(self, messages: Sequence[Message], response: str) -> list[int]:
        """Token ids of the whole dialogue, however many there are."""
        return self.encode_all([(messages, response)])[0]

    def encode_all(self, dialogues: Sequence[tuple[Sequence[Message], str]]) -> list[list[int]]:
        """:meth:`encode_whole` of each: a prompt is read once, and all texts go through the tokenizer together."""
        if not dialogues:
            return []
        where = self.contract.score_token
        if self.is_pair:
            prompts, responses = zip(*((_lines(messages), response) for messages, response in dialogues), strict=True)
            return self.tokenizer(list(prompts), list(responses)).input_ids
        if self._by_tokenizer or where in ("template", "pooled"):
            texts = [self.text(messages, response) for messages, response in dialogues]
            return self.tokenizer(texts, add_special_tokens=self._by_tokenizer).input_ids  # templates write their BOS
        closed = [self.template.response_text(response, end=self.template.eos) for _, response in dialogues]
        tails = self.tokenizer(closed, add_special_tokens=False).input_ids
        heads: dict[str, list[int]] = {}
        found = []
        for (messages, _), tail in zip(dialogues, tails, strict=True):
            name = json.dumps(messages)
            if name not in heads:
                heads[name] = self.template.encode_prompt(messages)
            found.append([*heads[name], *tail])
        return found if where == "eos" else [tokens[:-1] for tokens in found]

    def cut(self, tokens: list[int], messages: Sequence[Message], response: str) -> list[int]:
        """The part of a whole dialogue's token ids that is read; raises as :meth:`encode` does."""
        limit = self.contract.max_length
        if len(tokens) <= limit:
            return tokens
        is_left = self.contract.truncation_side == "left"
        if not is_left and (length := self.prompt_length(messages)) >= limit:
            raise UserError(
                f"a prompt has {length} tokens, and the reward model reads the first {limit} of prompt and response, "
                f"so it would not see the response to {messages[-1]['content'][:60]!r}; use shorter prompts or a "
                "reward model with a longer context."
            )
        if self.is_pair:
            prompt, special = _lines(messages), self.tokenizer.num_special_tokens_to_add(pair=True)
            from_prompt = is_left and len(tokens) - limit < self.prompt_length(messages) - special
            if is_left and not from_prompt:  # nothing of it is left
                prompt = ""
            which = "only_first" if from_prompt else "only_second"
            return self.tokenizer(prompt, response, truncation=which, max_length=limit).input_ids
        if self._by_tokenizer:  # its special tokens stay at their places
            return self.tokenizer(self.text(messages, response), truncation=True, max_length=limit).input_ids
        return tokens[-limit:] if is_left else tokens[:limit]

    def prompt_length(self, messages: Sequence[Message]) -> int:
        """Tokens of a prompt, and the special ones that the tokenizer puts around any text it is given."""
        if self.is_pair:
            special = self.tokenizer.num_special_tokens_to_add(pair=True)
            return special + len(self.tokenizer(_lines(messages), add_special_tokens=False).input_ids)
        if self._by_tokenizer:
            return len(self.tokenizer(self.template.render_prompt(messages)).input_ids)
        return len(self.template.encode_prompt(messages))

    def loses_prompt(self, tokens: Sequence[int], messages: Sequence[Message]) -> bool:
        """Whether so much of a whole dialogue's token ids is cut on the left that it begins within the response."""
        kept = self.tokenizer.num_special_tokens_to_add(pair=self.is_pair) if self._by_tokenizer else 0
        return len(tokens) - self.contract.max_length > self.prompt_length(messages) - kept

    def text(self, messages: Sequence[Message], response: str) -> str:
        """The text that becomes tokens, special ones as far as the template spells them out."""
        template, where = self.template, self.contract.score_token
        if self.is_pair:
            return f"{_lines(messages)}{self.tokenizer.sep_token or ''}{response}"
        if where == "template" or (where == "pooled" and template.template == "chat"):
            return template.render_whole([*messages, {"role": "assistant", "content": response}])
        closing = template.eos if where == "eos" else ""
        return template.render_prompt(messages) + template.response_text(response, end=closing)


def _lines(messages: Sequence[Message]) -> str:
    """The messages of a prompt, a line each."""
    return "\n".join(message["content"] for message in messages)


def with_rendering(contract: RewardContract, tokenizer: Any) -> RewardContract:
    """A contract that also says what its template makes of dialogues: what is saved with a newly trained model."""
    reader = Reader(tokenizer, contract)
    template = reader.template
    return replace(
        contract,
        template=template.template,
        chat_template=tokenizer.get_chat_template() if template.template == "chat" else None,
        system_message=template.system_messages,
        default_system_prompt=template.default_system_prompt,
        rendered_example=reader.text(*HELLO),
    )
