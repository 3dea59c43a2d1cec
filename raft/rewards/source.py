"""What every source of reward takes and gives: candidates in, one score each out, NaN where there is none."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from raft.data.formats import Message


@dataclass(frozen=True)
class Candidate:
    """A response to be scored, with all that a source may want to know about it.

    Attributes:
        messages: of the prompt, earlier turns included.
        response: its text.
        finish_reason: eos, stop or length; None where it is not known.
        extra: the other columns of the prompt's row, such as the right answer.
    """

    messages: Sequence[Message]
    response: str
    finish_reason: str | None = None
    extra: Mapping[str, object] = field(default_factory=dict)


class RewardSource(Protocol):
    """Scores candidates, in batches, on all ranks together."""

    def score(self, candidates: Sequence[Candidate], *, name: str, progress: str | None = "scoring") -> list[float]:
        """Score candidates.

        Args:
            candidates: the same on every rank.
            name: unique in the run; names the counter that ranks take batches from.
            progress: label of the progress bar, None for none.

        Returns:
            On every rank, the scores in the order of ``candidates``; NaN for one that could not be scored.
        """
        ...
