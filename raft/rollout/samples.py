"""A sample: one response to one prompt with everything that is known about it. One row of samples.jsonl."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from raft.data.encoding import TokenRow
from raft.rewards.source import Candidate
from raft.rollout.prompts import Prompt
from raft.rollout.sampler import response_text
from raft.rollout.sampling import Generated, Sampling


@dataclass
class Sample:
    """One response.

    Attributes:
        sample_id: number in its iteration.
        draw: which of the iteration's prompts it answers; a prompt drawn twice counts as two.
        response_tokens: ids exactly as sampled, EOS included. Training uses these, never the text.
        finish_reason: eos, stop or length.
        scores: what each source of reward said, by name.
        reward: what ranks: the scores after penalties; None where discarded.
        discarded: why the sample can not be selected, or None.
        selected: whether it was trained on; None before selection.
    """

    sample_id: int
    draw: int
    prompt: Prompt
    response: str
    response_tokens: list[int]
    finish_reason: str
    scores: dict[str, float] = field(default_factory=dict)
    reward: float | None = None
    discarded: str | None = None
    selected: bool | None = None

    def token_row(self) -> TokenRow:
        """Prompt and response as training data, loss on the response alone."""
        prompt = self.prompt.tokens
        return TokenRow(prompt + self.response_tokens, [False] * len(prompt) + [True] * len(self.response_tokens))

    def as_candidate(self) -> Candidate:
        """What a source of reward is given."""
        prompt = self.prompt
        return Candidate(
            prompt.messages, self.response, self.finish_reason, prompt.extra, prompt.tail, self.response_tokens
        )

    def as_json(self) -> dict[str, Any]:
        """The row of samples.jsonl."""
        return {
            "prompt_id": self.prompt.prompt_id,
            "sample_id": self.sample_id,
            "prompt": list(self.prompt.messages),
            "response": self.response,
            "response_tokens": self.response_tokens,
            "finish_reason": self.finish_reason,
            "scores": self.scores,
            "reward": self.reward,
            "discarded": self.discarded,
            "selected": self.selected,
        }


def make_samples(
    prompts: Sequence[Prompt],
    generated: Sequence[Generated],
    num_samples: int,
    sampling: Sampling,
    tokenizer: Any,
) -> list[Sample]:
    """Join the responses of a rollout with the prompts they answer."""
    return [
        Sample(
            sample_id=i,
            draw=i // num_samples,
            prompt=prompts[i // num_samples],
            response=response_text(one, sampling, tokenizer),
            response_tokens=one.tokens,
            finish_reason=one.finish_reason,
        )
        for i, one in enumerate(generated)
    ]
