"""What a reward model was trained to read, saved beside its weights so that scoring reads the same."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, fields
from pathlib import Path

from raft.errors import UserError
from raft.run_directory import write_json

FILE = "reward_model.json"


@dataclass(frozen=True)
class RewardContract:
    """How texts become scores.

    Attributes:
        template: how messages become text (see ConversationTemplate).
        max_length: tokens read; longer texts lose the start of their prompt.
        score_token: the token whose hidden state is scored: ``eos``, the one that closes the response.
        label: index of the classifier's output that is the score.
        base_model: model below the adapter, as a name or path (null for a whole model).
        base_model_fingerprint: identity of its weights.
        accuracy: share of held-out pairs whose chosen response scores strictly higher.
        num_pairs: held-out pairs that was measured on.
        score_mean: mean score of the held-out responses.
        score_std: their standard deviation.
    """

    template: str = "auto"
    max_length: int = 512
    score_token: str = "eos"
    label: int = 0
    base_model: str | None = None
    base_model_fingerprint: str | None = None
    accuracy: float | None = None
    num_pairs: int | None = None
    score_mean: float | None = None
    score_std: float | None = None

    def save(self, directory: Path) -> None:
        """Write ``reward_model.json``."""
        write_json(directory / FILE, asdict(self))

    @classmethod
    def load(cls, directory: str) -> RewardContract | None:
        """Read ``reward_model.json``; None where there is none.

        Raises:
            UserError: if it is broken or from a toolkit that knows more fields.
        """
        path = Path(directory) / FILE
        if not path.is_file():
            return None
        try:
            values = json.loads(path.read_text(encoding="utf-8"))
        except json.JSONDecodeError as error:
            raise UserError(f"{path}: not JSON: {error}") from error
        known = {f.name for f in fields(cls)}
        unknown = sorted(set(values) - known) if isinstance(values, dict) else ["(not an object)"]
        if unknown:
            raise UserError(f"{path}: unknown fields {', '.join(unknown)}; known are {', '.join(sorted(known))}.")
        return cls(**values)
