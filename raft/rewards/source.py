"""What every source of reward takes and gives: candidates in, one score each out, or why there is none."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol

from raft.data.dialogues import Message


@dataclass(frozen=True)
class Candidate:
    """A response to be scored, with all that a source may want to know about it.

    Attributes:
        messages: of the prompt, earlier turns included.
        response: its text.
        finish_reason: eos, stop or length; None where it is not known.
        extra: the other columns of the prompt's row, such as the right answer.
        prompt_tail: what the policy's template writes between the last message and the response, as it was rendered,
            such as ``<|im_end|>\\n<|im_start|>assistant\\n<think>``; None where no policy rendered it.
        response_tokens: the policy's token ids, EOS included; None where the response was not sampled.
    """

    messages: Sequence[Message]
    response: str
    finish_reason: str | None = None
    extra: Mapping[str, object] = field(default_factory=dict)
    prompt_tail: str | None = None
    response_tokens: Sequence[int] | None = None


def with_all_columns(candidates: Sequence[Candidate]) -> list[Candidate]:
    """The same candidates, all with the same columns: None where a row lacks one, whatever batch it comes into."""
    columns: dict[str, object] = {key: None for one in candidates for key in one.extra}
    return [
        one if len(one.extra) == len(columns) else replace(one, extra=columns | dict(one.extra)) for one in candidates
    ]


@dataclass(frozen=True)
class Excluded:
    """In place of a score: why a source gave none.

    Attributes:
        reason: a few words that equal failures share, since they are counted by it: ``raised ValueError``.
        detail: what this one said, for the screen.
    """

    reason: str
    detail: str = ""


class RewardSource(Protocol):
    """Scores candidates, in batches, on all ranks together."""

    def score(
        self, candidates: Sequence[Candidate], *, name: str, progress: str | None = "scoring"
    ) -> Sequence[float | Excluded]:
        """Score candidates.

        Args:
            candidates: the same on every rank.
            name: unique in the run; names the counter that ranks take batches from.
            progress: label of the progress bar, None for none.

        Returns:
            On every rank, the scores in the order of ``candidates``; NaN or Excluded for one that has none.

        Raises:
            UserError: on every rank, if the source does not work.
        """
        ...
