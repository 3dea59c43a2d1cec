"""What a remote scorer is sent and answers, as JSON over HTTP.

    POST /score   {"candidates": [{"messages": [{"role": "user", "content": "..."}], "response": "...",
                                   "finish_reason": "eos", "prompt_tail": "...", "response_tokens": [...],
                                   "columns": {"answer": "42"}}, ...]}
    answer        {"scores": [0.5, null, ...], "reasons": [null, "raised ValueError", ...]}
    GET /health   {"status": "ok", "identity": "3f0c1b7d52a9e684", ...}

Only ``messages`` and ``response`` are always there, and of an answer only ``scores``; null is a response that could
not be scored. Any other status than 200 is a failure; 429 and 5xx are worth another try. ``identity`` is any text that
changes when scores would: a run is not resumed with a scorer of another one.
"""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Sequence
from typing import Any

from raft import json_file
from raft.errors import UserError
from raft.rewards.batches import Scores
from raft.rewards.source import Candidate, Excluded
from raft.rewards.spec import TOKEN_VARIABLE
from raft.run_directory import json_safe
from raft.terminal import visible

_ROLES = ("system", "user", "assistant")


def token_of_environment() -> str | None:
    """What client and server show each other; None where there is none.

    Raises:
        UserError: for one that no HTTP header can hold; it is not repeated.
    """
    token = os.environ.get(TOKEN_VARIABLE) or None
    if token is not None and not re.fullmatch(r"[!-~]+", token):
        raise UserError(
            f"{TOKEN_VARIABLE}: found a space, a line break or a character beyond ASCII in it; is there one at its end?"
        )
    return token


def decode_identity(body: bytes) -> str | None:
    """The identity in an answer to GET /health; None where there is none: any answer with status 200 will do."""
    try:
        found = json_file.parse_object(body, "/health").get("identity")
    except UserError:
        return None
    return found if isinstance(found, str) else None


def encode_request(batch: Sequence[Candidate]) -> bytes:
    """The body of POST /score. Columns that JSON has no word for, such as dates, go as text."""
    rows = [
        {
            "messages": [dict(message) for message in candidate.messages],
            "response": candidate.response,
            "finish_reason": candidate.finish_reason,
            "prompt_tail": candidate.prompt_tail,
            "response_tokens": None if candidate.response_tokens is None else list(candidate.response_tokens),
            "columns": json_safe(candidate.extra),
        }
        for candidate in batch
    ]
    return json.dumps({"candidates": rows}, default=str).encode()


def decode_request(body: bytes) -> list[Candidate]:
    """The candidates of a request.

    Raises:
        UserError: naming the field, if it is not what ``encode_request`` writes.
    """
    rows = _field(_parse(body), "candidates", list, "the request")
    return [_candidate(row, f"candidates[{i}]") for i, row in enumerate(rows)]


def _candidate(row: Any, where: str) -> Candidate:
    messages = _field(row, "messages", list, where)
    for message in messages:
        if not (isinstance(message, dict) and all(isinstance(message.get(key), str) for key in ("role", "content"))):
            raise UserError(f"{where}.messages: expected objects with the texts role and content.")
        if message["role"] not in _ROLES:
            raise UserError(f"{where}.messages: found the role {message['role'][:40]!r}, expected {', '.join(_ROLES)}.")
    tokens = _field(row, "response_tokens", list, where, optional=True)
    if any(type(token) is not int or not 0 <= token < 1 << 31 for token in tokens or ()):
        raise UserError(f"{where}.response_tokens: expected token ids, integers from 0.")
    return Candidate(
        messages=messages,
        response=_field(row, "response", str, where),
        finish_reason=_field(row, "finish_reason", str, where, optional=True),
        extra=_field(row, "columns", dict, where, optional=True) or {},
        prompt_tail=_field(row, "prompt_tail", str, where, optional=True),
        response_tokens=tokens,
    )


def encode_response(scores: Scores) -> bytes:
    """The answer to POST /score."""
    numbers = [None if isinstance(score, Excluded) else score for score in scores]
    reasons = [score.reason if isinstance(score, Excluded) else None for score in scores]
    return json.dumps({"scores": json_safe(numbers), "reasons": reasons}).encode()


def decode_response(body: bytes, count: int) -> list[float | Excluded]:
    """The scores in an answer.

    Raises:
        UserError: if they are not ``count`` numbers or nulls.
    """
    found = _parse(body)
    scores = _field(found, "scores", list, "the answer")
    if len(scores) != count:
        raise UserError(f"it gave {len(scores)} scores for {count} responses")
    if any(isinstance(score, bool) or not isinstance(score, int | float | None) for score in scores):
        raise UserError("its scores are not all numbers or null")
    if any(isinstance(score, int) and abs(score) > sys.float_info.max for score in scores):
        raise UserError("one of its scores has more than 300 digits")
    reasons = _field(found, "reasons", list, "the answer", optional=True) or [None] * count
    if len(reasons) != count:
        raise UserError(f"it gave {len(reasons)} reasons for {count} responses")
    return [
        Excluded(_words(reason) or "gave no score") if score is None else float(score)
        for score, reason in zip(scores, reasons, strict=True)
    ]


def _words(reason: object) -> str:
    """A reason as it may go onto screens and into file and metric names: one line of what can be seen."""
    text = visible(str(reason or "")[:200]).encode("utf-8", "backslashreplace").decode()
    return " ".join(text.split())[:100]


def _parse(body: bytes) -> Any:
    try:
        found = json_file.parse(body, "")
    except UserError as error:
        raise UserError(f"expected JSON, found {body[:60]!r}") from error
    if b"\\ud" in body.lower():  # the escape of half a character, which no tokenizer and no file takes
        try:
            json.dumps(found, ensure_ascii=False).encode()
        except UnicodeEncodeError:
            raise UserError("expected JSON of Unicode, found half of a surrogate pair") from None
    return found


def _field(row: Any, key: str, kind: type, where: str, *, optional: bool = False) -> Any:
    value = row.get(key) if isinstance(row, dict) else None
    if isinstance(value, kind) or (optional and value is None):
        return value
    raise UserError(f"{where}: expected {key} to be a {'text' if kind is str else kind.__name__}")
