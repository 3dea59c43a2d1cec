"""Rows to token rows: loss masks, length limits, packing. Everything that is dropped is counted."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Literal

from raft.data.rows import Row
from raft.data.templates import ConversationTemplate
from raft.errors import UserError

Overlong = Literal["drop", "truncate"]


@dataclass(frozen=True)
class TokenRow:
    """One row of training data.

    Attributes:
        tokens: ids, length L.
        trained: length L; True where the token is a target of the loss.
        positions: length L where documents are packed into the row (restarts at each), else None.
        source: file and line it is from, where that is one.
    """

    tokens: list[int]
    trained: list[bool]
    positions: list[int] | None = None
    source: str | None = field(default=None, compare=False)

    @property
    def is_packed(self) -> bool:
        """Whether it holds several documents."""
        return self.positions is not None and self.positions.count(0) > 1

    @property
    def num_targets(self) -> int:
        """Tokens with a loss. The first token of a row has nothing to be predicted from."""
        starts = (
            [i == 0 for i in range(len(self.tokens))] if self.positions is None else [p == 0 for p in self.positions]
        )
        return sum(t and not s for t, s in zip(self.trained, starts, strict=True))


@dataclass(frozen=True)
class PairRow:
    """A preference: two token rows that share a prompt, and by how much the first is better (0 if not said)."""

    chosen: list[int]
    rejected: list[int]
    margin: float = 0.0
    row: Row | None = None  # where it comes from

    @cached_property
    def num_shared(self) -> int:
        """Tokens that both begin with. The last token of each, where its score is read, is never among them."""
        together = zip(self.chosen[:-1], self.rejected[:-1], strict=False)
        differing = (i for i, (a, b) in enumerate(together) if a != b)
        return next(differing, min(len(self.chosen), len(self.rejected)) - 1)


@dataclass
class Encoded:
    """Encoded rows and why others are not among them."""

    rows: list[TokenRow] = field(default_factory=list)
    counts: Counter[str] = field(default_factory=Counter)


def encode_rows(
    rows: Iterable[Row],
    template: ConversationTemplate,
    *,
    max_length: int,
    overlong: Overlong = "truncate",
    packing: bool = False,
) -> Encoded:
    """Encode conversations (loss on responses) and plain text (loss on every token).

    Args:
        max_length: tokens a row may have.
        overlong: drop longer rows, or truncate them at the end (a text is cut into several rows instead).
        packing: fill rows of ``max_length`` with several plain-text documents, kept apart by their positions.

    Raises:
        UserError: if nothing is left.
    """
    encoded = Encoded()
    documents: list[list[int]] = []
    for row in rows:
        if row.kind == "text":
            documents.append(template.encode_document(row.text or ""))
            continue
        with row.named():
            segments = template.segments(row.messages) if row.response_tokens is None else []
            encoded.counts.update(template.remarks(row.messages, segments))
            if row.response_tokens is None:
                tokens, trained = template.encode_segments(segments)
            else:
                tokens, trained = template.encode(row.messages, response_tokens=row.response_tokens)
        if len(tokens) > max_length:
            encoded.counts["dropped: too long" if overlong == "drop" else "truncated"] += 1
            if overlong == "drop":
                continue
        token_row = TokenRow(tokens[:max_length], trained[:max_length], source=row.source)
        if token_row.num_targets:
            encoded.rows.append(token_row)
        else:
            encoded.counts["dropped: no response within the length limit"] += 1
    encoded.rows += _text_rows(documents, max_length, overlong, packing, encoded.counts)
    if not encoded.rows:
        raise UserError(f"--max_length {max_length}: no row is left to train on ({dict(encoded.counts)}).")
    return encoded


def _text_rows(
    documents: Sequence[list[int]], max_length: int, overlong: Overlong, packing: bool, counts: Counter[str]
) -> list[TokenRow]:
    pieces: list[list[int]] = []
    for document in documents:
        if len(document) > max_length:
            counts["dropped: too long" if overlong == "drop" else "cut into several rows"] += 1
            if overlong == "drop":
                continue
        pieces += [document[i : i + max_length] for i in range(0, len(document), max_length)]
    pieces = [piece for piece in pieces if len(piece) > 1]
    return pack(pieces, max_length) if packing else [TokenRow(piece, [True] * len(piece)) for piece in pieces]


def pack(documents: Sequence[list[int]], max_length: int) -> list[TokenRow]:
    """Put documents (each at most ``max_length`` tokens) into few rows: first fit, longest first.

    Positions restart at every document; that is what keeps attention inside it.
    """
    bins: list[list[list[int]]] = []
    room: list[int] = []
    for document in sorted(documents, key=len, reverse=True):
        index = next((i for i, free in enumerate(room) if free >= len(document)), None)
        if index is None:
            bins.append([])
            room.append(max_length)
            index = len(bins) - 1
        bins[index].append(document)
        room[index] -= len(document)
    return [
        TokenRow(
            tokens=[token for document in row for token in document],
            trained=[True] * sum(map(len, row)),
            positions=[position for document in row for position in range(len(document))],
        )
        for row in bins
    ]


def unpack(rows: Iterable[TokenRow]) -> list[TokenRow]:
    """Give every document of packed rows a row of its own."""
    return [piece for row in rows for piece in (_documents(row) if row.is_packed else [row])]


def _documents(row: TokenRow) -> list[TokenRow]:
    assert row.positions is not None
    starts = [i for i, position in enumerate(row.positions) if position == 0]
    ends = [*starts[1:], len(row.tokens)]
    return [TokenRow(row.tokens[i:end], row.trained[i:end]) for i, end in zip(starts, ends, strict=True)]


def refuse_unknown_ids(rows: Iterable[TokenRow], num_ids: int, *, name: str, flag: str = "--dataset_path") -> None:
    """Refuse rows with token ids that a model has no embedding for.

    Args:
        num_ids: rows of the model's embedding.
        name: of the model.
        flag: that the message names where a row has no source.

    Raises:
        UserError: for the first such row.
    """
    for row in rows:
        if (largest := max(row.tokens)) >= num_ids:
            raise UserError(
                f"{row.source or flag}: found token id {largest}, allowed are ids below {num_ids}, the "
                f"rows of the embedding of {name}; response_tokens may be another model's, or its tokenizer may have "
                "tokens that the model was not resized for."
            )


def encode_scored(
    template: ConversationTemplate, messages: Sequence[dict[str, str]], response: str, max_length: int
) -> list[int]:
    """Token ids a reward model reads: prompt, response, EOS. A long one loses the start of its prompt."""
    closed = template.response_text(response, end=template.eos)  # EOS also where the chat template ends turns otherwise
    return [*template.encode_prompt(messages), *template.tokenize(closed)][-max_length:]


def encode_pairs(
    rows: Iterable[Row], template: ConversationTemplate, *, max_length: int, overlong: Overlong = "truncate"
) -> tuple[list[PairRow], Counter[str]]:
    """Encode preferences for reward modelling, both candidates by :func:`encode_scored`.

    Raises:
        UserError: if nothing is left.
    """
    pairs, counts = [], Counter[str]()
    for row in rows:
        with row.named():
            sides = [encode_scored(template, row.messages, text or "", 10**9) for text in (row.chosen, row.rejected)]
        counts.update(template.remarks(row.messages))
        if max(map(len, sides)) > max_length:
            counts["dropped: too long" if overlong == "drop" else "truncated"] += 1
            if overlong == "drop":
                continue
        chosen, rejected = (side[-max_length:] for side in sides)
        pairs.append(PairRow(chosen, rejected, row.margin or 0.0, row))
    if not pairs:
        raise UserError(f"--max_length {max_length}: no pair is left to train on ({dict(counts)}).")
    return pairs, counts
