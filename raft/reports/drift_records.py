"""What the drift watch reads (the samples of an iteration) and what it finds (features that have risen)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any

from raft import json_file
from raft.errors import UserError
from raft.functional.text_features import KINDS, Lengths, response_features


@dataclass
class Records:
    """The responses of an iteration, an entry each.

    features: by kind, the names of what every response has; empty before :meth:`analyse`.
    counts: by kind, how many responses have a feature.
    """

    texts: list[str]
    prompts: list[str]
    finish_reasons: list[str]
    selected: list[bool]
    features: dict[str, list[set[str]]] = field(default_factory=dict)
    counts: dict[str, Counter[str]] = field(default_factory=dict)

    @classmethod
    def read(cls, path: Path) -> Records:
        """Of a samples.jsonl, or of held-out responses, which have not been selected."""
        rows = list(json_file.read_lines(path))
        if not rows:
            raise UserError(f"{path}: found no responses in it.")
        return cls(
            texts=[_text(row, "response", where) for where, row in rows],
            prompts=[_text(row, "prompt_id", where) for where, row in rows],
            finish_reasons=[_text(row, "finish_reason", where) for where, row in rows],
            selected=[row.get("selected") is True for _, row in rows],
        )

    def analyse(self, lengths: Lengths) -> None:
        """Find the features of every response, once."""
        if not self.features:
            found = [response_features(*one, lengths) for one in zip(self.texts, self.finish_reasons, strict=True)]
            self.features = {kind: [features[kind] for features in found] for kind in KINDS}
            self.counts = {kind: Counter(chain.from_iterable(self.features[kind])) for kind in KINDS}

    def frequent(self, kind: str, least: float) -> set[str]:
        """Features that at least so many responses have."""
        return {name for name, count in self.counts[kind].items() if count >= least}

    def having(self, kind: str, name: str) -> list[int]:
        """Numbers of the responses that have a feature."""
        return [i for i, features in enumerate(self.features[kind]) if name in features]


def mean_length(parts: Sequence[Records]) -> float:
    """Characters a response has on average."""
    texts = [text for part in parts for text in part.texts]
    return sum(map(len, texts)) / len(texts)


def _text(row: dict[str, Any], key: str, where: str) -> str:
    value = row.get(key)
    if not isinstance(value, str):
        found = f"found {type(value).__name__}" if key in row else "found nothing"
        raise UserError(f'{where}: "{key}": {found}, expected a text as `raft align` writes it.')
    return value.encode("utf-8", "replace").decode()  # half of a surrogate pair can not be written again


@dataclass
class Finding:
    """A feature that was tested.

    Attributes:
        share_start, share_now: of the responses at the start and of this iteration that have it.
        selection_ratio: share of the selected responses that have it / share of all, over the iterations so far;
            None where nothing was selected.
        ratio, ratio_low: times as frequent as at the start, with the prior; lower end of its 90% interval.
        z: of the rise beyond what longer responses explain (:class:`raft.functional.drift.Rise`).
        p: corrected for all features of all kinds and for looking after every iteration; None where selection does
            not favour the feature, which is then not tested.
        num_prompts: whose responses have it.
        also: of an alarm, kind and name of the features that are in the same responses.
        first_iteration: of an alarm, when it was first raised.
        examples: of an alarm, excerpts of responses.
        rule: of an alarm, what would discard it (:func:`raft.reports.drift_rules.countering_rule`).
    """

    kind: str
    feature: str
    share_start: float
    share_now: float
    selection_ratio: float | None
    ratio: float
    ratio_low: float
    log_odds: float
    z: float
    p: float | None
    num_prompts: int
    also: list[tuple[str, str]] = field(default_factory=list)
    first_iteration: int | None = None
    examples: list[dict[str, Any]] = field(default_factory=list)
    rule: dict[str, Any] | None = None

    @property
    def members(self) -> list[tuple[str, str]]:
        """Kind and name of the feature and of those merged into it."""
        return [(self.kind, self.feature), *self.also]
