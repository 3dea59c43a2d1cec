"""`raft score`: texts, responses or preference pairs through a reward model, to one JSON object a line.

A row with a response gets ``score``, a preference pair ``chosen_score`` and ``rejected_score``. A plain text is scored
as the response to an empty user message, since reward models read dialogues. On pairs the last line on stdout is one
JSON object with the accuracy.

    raft score --dataset_path pairs.jsonl --output_file scores.jsonl
    raft score --dataset_path output_models/first_run/iterations/0001/samples.jsonl --reward_model_or_path my-model
"""

from __future__ import annotations

import json
import math
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from raft import distributed
from raft.data.loading import listed, load_rows
from raft.data.rows import Row
from raft.errors import UserError
from raft.models.loading import quiet_libraries
from raft.rewards.loading import load_rewards
from raft.rewards.rewards import Scored
from raft.rewards.source import Candidate
from raft.run_directory import json_line, json_safe, write_jsonl
from raft.tools.score_config import FileOptions, ScoreConfig


def main(config: ScoreConfig) -> None:
    """Score all rows on all ranks together; rank 0 writes, in the order of the data.

    Raises:
        UserError: if the data or the reward model can not be read, or no row has anything to score.
    """
    quiet_libraries()
    if distributed.world_size() > 1:
        distributed.initialize()
    rows = read_rows(config.files)
    rewards = load_rewards(config.reward, trust_remote_code=config.code.trust_remote_code)
    by_row = [candidates(row) for row in rows]
    flat = [candidate for of_one_row in by_row for candidate in of_one_row]
    found = rewards.score(flat, name="score")
    if exclusions := found.exclusions():
        _tell(exclusions)
    scores = iter(found.rewards)
    scored = [output_row(row, [next(scores) for _ in parts]) for row, parts in zip(rows, by_row, strict=True)]
    if len(rewards.sources) > 1:
        add_sources(scored, found)
    if distributed.is_main():
        write(scored, config.files.output_file)


def read_rows(files: FileOptions) -> list[Row]:
    """The rows with something to score, in the order of the data; says what was left out."""
    if files.output_file and Path(files.output_file).is_dir():
        raise UserError(f"--output_file: {files.output_file} is a directory, expected the name of a file.")
    if files.output_file and Path(files.output_file).resolve() == Path(files.dataset_path).resolve():
        raise UserError(f"--output_file: {files.output_file} is the data to score; name another file.")
    kinds = {"conversation", "preference", "text", "prompt"}
    data = load_rows(files.dataset_path, kinds=kinds, max_rows=files.num_rows)
    rows = [row for row in data.rows if row.kind != "prompt"]
    skipped = Counter(data.skipped)
    if len(rows) < len(data.rows):
        skipped["prompt without a response"] = len(data.rows) - len(rows)
    if not rows:
        raise UserError(
            f"--dataset_path {files.dataset_path}: found only prompts without a response, nothing to score."
        )
    if skipped:
        _tell(f"skipped rows: {listed(skipped)}")
    return rows


def candidates(row: Row) -> list[Candidate]:
    """What there is to score in a row: two responses of a preference pair, else one."""
    if row.text is not None:
        return [Candidate([{"role": "user", "content": ""}], row.text)]
    if row.chosen is not None and row.rejected is not None:
        return [Candidate(row.messages, text, extra=row.extra) for text in (row.chosen, row.rejected)]
    finish_reason = row.extra.get("finish_reason")  # of a run's samples
    return [
        Candidate(
            row.messages[:-1],
            row.messages[-1]["content"],
            finish_reason if isinstance(finish_reason, str) else None,
            row.extra,
            response_tokens=row.response_tokens,
        )
    ]


def output_row(row: Row, scores: Sequence[float]) -> dict[str, Any]:
    """A line of the output: where the row is from, its ids and other plain columns, its texts, its scores."""
    found: dict[str, Any] = {"source": row.source}
    if row.text is not None:
        found |= {"text": row.text, "score": scores[0]}
    elif row.kind == "preference":
        found |= {"prompt": list(row.messages), "chosen": row.chosen, "rejected": row.rejected}
        found |= {"margin": row.margin} if row.margin is not None else {}
        found |= {"chosen_score": scores[0], "rejected_score": scores[1]}
    else:
        found |= {"prompt": list(row.messages[:-1]), "response": row.messages[-1]["content"], "score": scores[0]}
    texts = [value for value in found.values() if isinstance(value, str)]
    plain = {key: value for key, value in row.extra.items() if isinstance(value, str | int | float | bool)}
    return {key: value for key, value in plain.items() if value not in texts} | found


def add_sources(scored: Sequence[dict[str, Any]], found: Scored) -> None:
    """Write beside each weighted sum what every source said, by its name."""
    candidate = 0
    for row in scored:
        for key in ("score", "chosen_score", "rejected_score"):
            if key in row:
                row[f"{key}s"] = found.of(candidate)
                candidate += 1


def write(scored: Sequence[dict[str, Any]], output_file: str | None) -> None:
    """Write the rows to a file, whole or not at all, or to stdout; then print the accuracy on pairs."""
    if output_file:
        write_jsonl(Path(output_file), scored)
        _tell(f"wrote {len(scored)} rows to {output_file}")
    else:
        for line in _lines(scored, escaped=sys.stdout.isatty()):  # JSON alone would leave C1 controls as they are
            print(line)
    pairs = [row for row in scored if "chosen_score" in row]
    if pairs:
        print(json.dumps(json_safe(pair_accuracy(pairs)), allow_nan=False), flush=True)


def _lines(rows: Sequence[dict[str, Any]], *, escaped: bool) -> Iterator[str]:
    return (json_line(row, ensure_ascii=escaped) for row in rows)


def pair_accuracy(pairs: Sequence[dict[str, Any]]) -> dict[str, float | int]:
    """Share of pairs whose chosen response scores strictly higher; a tie is wrong, and so is a pair without a score.

    The mean difference is of the pairs with both scores.
    """
    margins = [pair["chosen_score"] - pair["rejected_score"] for pair in pairs]
    known = [margin for margin in margins if math.isfinite(margin)]
    return {
        "accuracy": sum(margin > 0 for margin in margins) / len(margins),
        "num_pairs": len(margins),
        "num_ties": sum(margin == 0 for margin in margins),
        "num_unscored": len(margins) - len(known),
        "mean_margin": sum(known) / len(known) if known else math.nan,
    }


def _tell(text: str) -> None:
    """A line for the reader, beside the data on stdout."""
    if distributed.is_main():
        print(text, file=sys.stderr)
