"""`raft diversity`: how varied the responses in some files are, under the names of GEM-metrics.

    raft diversity output_models/first_run/iterations/0001/samples.jsonl
    raft diversity before.txt after.txt
    raft diversity responses.jsonl --json > diversity.json

A file of rows (jsonl, json, parquet) is read by its ``response`` or ``text`` column, any other file line by line. Of
the samples of a run, those that were selected are reported beside all. Needs no model.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from raft.arguments import argument
from raft.config import require
from raft.data.files import SUFFIXES, iter_values
from raft.errors import UserError
from raft.functional.diversity import length_report, token_report
from raft.functional.tokens import tokenize
from raft.run_directory import json_safe

COLUMNS = ("response", "text")


@dataclass
class DiversityOptions:
    """Responses"""

    files: list[str] = argument(
        [],
        "Files of responses. Several are compared side by side.",
        metavar="FILE",
        required=True,
        positional=True,
        commas=False,
    )
    column: str | None = argument(
        None, "Column of the responses in rows; none is response, or text where there is no response."
    )
    nopunct: bool = argument(False, "Also report every metric without punctuation, as GEM does, with -nopunct.")
    self_bleu_texts: int = argument(500, "Responses that self-BLEU is measured on, sampled; its value grows with them.")
    seed: int = argument(0, "Seed of that sample.")
    json: bool = argument(False, "Print one JSON object instead of a table; of several files, one object by name.")

    def __post_init__(self) -> None:
        require(self.self_bleu_texts >= 2, f"--self_bleu_texts: found {self.self_bleu_texts}, allowed is 2 or more.")
        require(self.seed >= 0, f"--seed: found {self.seed}, allowed are integers from 0.")


@dataclass
class DiversityConfig:
    """Report how varied responses are: distinct-n, entropies, MSTTR, self-BLEU, repetition, lengths."""

    diversity: DiversityOptions = field(default_factory=DiversityOptions)

    examples: ClassVar[tuple[str, ...]] = (
        "raft diversity output_models/first_run/iterations/0001/samples.jsonl",
        "raft diversity before.txt after.txt",
        "raft diversity responses.jsonl --json",
    )


def main(config: DiversityConfig) -> None:
    """Print the report of every file, as a table or as JSON.

    Raises:
        UserError: if a file cannot be read, or a row has no response.
    """
    options = config.diversity
    corpora: dict[str, Report] = {}
    for file in options.files:
        responses = read_responses(Path(file), options.column)
        corpora[file] = report(responses, options)
        chosen = [response for response in responses if response.selected]
        if chosen:
            corpora[f"{file}, selected"] = report(chosen, options)
    if not options.json:
        print(table(corpora))
        return
    found: dict[str, Any] = {file: dict(corpora[file]) for file in options.files}
    for file in options.files:
        if f"{file}, selected" in corpora:
            found[file]["selected"] = corpora[f"{file}, selected"]
    flat = found[options.files[0]] if len(found) == 1 else found
    print(json.dumps(json_safe(flat), indent=2, ensure_ascii=False, allow_nan=False))


Report = dict[str, float]


@dataclass(frozen=True)
class Response:
    """A response as far as its file tells: text, length in tokens of the model, why it ended, whether selected."""

    text: str
    num_tokens: int | None = None
    finish_reason: str | None = None
    selected: bool = False


def read_responses(path: Path, column: str | None = None) -> list[Response]:
    """The responses in a file, in its order.

    Raises:
        UserError: if there is none, or the file is missing or damaged.
    """
    if not path.is_file():
        kind = "a directory" if path.is_dir() else "no such file"
        raise UserError(f"--files {path}: found {kind}, expected a file of responses.")
    if path.name.lower().endswith(SUFFIXES):
        found = [_response(value, source, column) for source, value in iter_values(str(path))]
    else:
        found = _lines(path)
    if not found:
        raise UserError(f"--files {path}: found no response in it.")
    return found


def _lines(path: Path) -> list[Response]:
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"--files {path}: cannot be read as UTF-8 text ({error}).") from error
    found = [Response(line) for line in lines if line.strip()]
    if len(found) < len(lines):
        print(f"{path}: blank lines left out: {len(lines) - len(found)}", file=sys.stderr)
    return found


def _response(value: object, source: str, column: str | None) -> Response:
    if isinstance(value, str):
        return Response(value)
    if not isinstance(value, dict):
        raise UserError(f"{source}: found {type(value).__name__}, expected a JSON object or a string.")
    name = column or next((name for name in COLUMNS if isinstance(value.get(name), str)), None)
    if name is None or not isinstance(value.get(name), str):
        known = ", ".join(key for key in value if isinstance(value[key], str)) or "none"
        wanted = f'text in "{column}"' if column else "response or text"
        raise UserError(f"{source}: found no {wanted}; --column names another one (columns with text: {known}).")
    tokens, reason = value.get("response_tokens"), value.get("finish_reason")
    return Response(
        value[name],
        num_tokens=len(tokens) if isinstance(tokens, list) else None,
        finish_reason=reason if isinstance(reason, str) else None,
        selected=value.get("selected") is True,
    )


def report(responses: Sequence[Response], options: DiversityOptions) -> Report:
    """Every metric of one set of responses; what a file does not tell is not there."""
    found: Report = {"num_responses": len(responses), "num_empty": sum(not r.text.strip() for r in responses)}
    for suffix, keep_punctuation in (("", True), ("-nopunct", False))[: 1 + options.nopunct]:
        tokens = [tokenize(response.text, keep_punctuation=keep_punctuation) for response in responses]
        metrics = length_report(tokens)
        metrics |= token_report(tokens, self_bleu_texts=options.self_bleu_texts, seed=options.seed)
        found |= {f"{name}{suffix}": value for name, value in metrics.items()}
    found["self_bleu_texts"] = min(options.self_bleu_texts, len(responses) - int(found["num_empty"]))
    lengths = [response.num_tokens for response in responses if response.num_tokens is not None]
    if len(lengths) == len(responses):
        found |= {"mean_model_tokens": float(np.mean(lengths)), "std_model_tokens": float(np.std(lengths))}
    if all(response.finish_reason for response in responses):
        found["eos_share"] = float(np.mean([response.finish_reason == "eos" for response in responses]))
    return found


def table(corpora: Mapping[str, Report]) -> str:
    """Metrics as rows, corpora as columns; names that are long stand above, numbered."""
    names = list(dict.fromkeys(name for one in corpora.values() for name in one))
    width = max(map(len, names)) + 2
    heads = [f"[{i}]" for i in range(1, len(corpora) + 1)] if len(corpora) > 1 else [""]
    lines = [f"{head} {name}".strip() for head, name in zip(heads, corpora, strict=True)]
    lines += ["", f"{'':<{width}}" + "".join(f"{head:>12}" for head in heads)] if len(corpora) > 1 else [""]
    for name in names:
        lines.append(f"{name:<{width}}" + "".join(f"{_shown(one.get(name)):>12}" for one in corpora.values()))
    return "\n".join(lines)


def _shown(value: float | None) -> str:
    if value is None:
        return ""
    return f"{value:,}" if isinstance(value, int) else "-" if value != value else f"{value:.4f}"
