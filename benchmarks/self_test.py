"""What the self-test of reward models costs, and the rounding that its tolerances have to leave room for.

    python benchmarks/self_test.py --dataset_path harmless-base.jsonl.gz
    python benchmarks/self_test.py --dataset_path harmless-base.jsonl.gz --store 14 24

Scores the shortest held-out pairs one at a time and in batches, in fp32 and bf16, and prints differences in standard
deviations of scores. ``--store`` puts pairs, by their numbers in the printed list, into the model's
``reward_model.json`` as the examples of its self-test, with all that a contract says about its template.
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from raft import distributed
from raft.arguments import argument, parse
from raft.config import require
from raft.data.loading import load_rows, split_rows
from raft.data.rows import Row
from raft.errors import UserError
from raft.models.loading import quiet_libraries
from raft.precision import StoredDtype, resolve_dtype
from raft.rewards.contract import RewardContract, ScoredPair
from raft.rewards.reading import with_rendering
from raft.rewards.reward_model import RewardModel, load_reward_model
from raft.rewards.self_test import STORED_TOLERANCES, TOLERANCES, self_test
from raft.run_directory import write_json


@dataclass
class Measured:
    """What is measured"""

    reward_model_or_path: str = argument("data/reward_model", "Reward model.")
    reward_base_model: str | None = argument(None, "Model below a LoRA reward adapter. Default: the one it names.")
    dataset_path: str = argument("", "Preference pairs.", required=True)
    validation_split_percentage: float = argument(10.0, "The last so many percent of the pairs are held out.")
    num_pairs: int = argument(32, "The shortest so many held-out pairs are scored.")
    store: list[int] = argument([], "Numbers of the pairs to store as examples in reward_model.json.", metavar="N")
    output_file: str | None = argument(None, "JSON to write. Default: benchmarks/results/self_test-DEVICE.json.")

    def __post_init__(self) -> None:
        require(self.num_pairs >= 4, f"--num_pairs: found {self.num_pairs}, allowed are integers from 4.")


@dataclass
class Config:
    """Measure the self-test of a reward model."""

    measured: Measured = field(default_factory=Measured)


def main(config: Measured) -> None:
    """Measure in fp32 and bf16, print a table and the pairs, write JSON, store examples where asked to."""
    quiet_libraries()
    rows = shortest_pairs(config)
    fp32, figures = measure(config, "fp32", rows)
    bf16, figures_of_bf16 = measure(config, "bf16", rows)
    std = statistics.pstdev(fp32)
    found: dict[str, Any] = {
        "device": distributed.device().type,
        "reward_model": config.reward_model_or_path,
        "num_pairs": len(rows),
        "score_std": std,
        "allowed": {"batch": TOLERANCES, "stored": STORED_TOLERANCES},
        "fp32": figures,
        "bf16": figures_of_bf16,
        "bf16_against_fp32": difference(bf16, fp32, std),
    }
    for number, row in enumerate(rows):
        chosen, rejected = fp32[2 * number : 2 * number + 2]
        print(f"{number}: {chosen:.3f} {rejected:.3f} {row.messages[-1]['content']!r}")
    print(table(found))
    path = Path(config.output_file or f"benchmarks/results/self_test-{found['device']}.json")
    write_json(path, found)
    print(f"wrote {path}")
    if config.store:
        store(config, [rows[i] for i in config.store])


def shortest_pairs(config: Measured) -> list[Row]:
    """The held-out pairs with the fewest characters."""
    rows = load_rows(config.dataset_path, kinds={"preference"}).rows
    _, held_out = split_rows(rows, config.validation_split_percentage)
    return sorted(held_out, key=lambda row: len(str(row.messages)) + 2 * max(map(len, texts(row))))[: config.num_pairs]


def texts(row: Row) -> tuple[str, str]:
    """Chosen and rejected response."""
    return row.chosen or "", row.rejected or ""


def load(config: Measured, dtype: StoredDtype) -> RewardModel:
    """The reward model, untested."""
    path, base = config.reward_model_or_path, config.reward_base_model
    return load_reward_model(path, base=base, dtype=dtype, batch_size=8, test=False)


def measure(config: Measured, dtype: StoredDtype, rows: Sequence[Row]) -> tuple[list[float], dict[str, Any]]:
    """Scores of all responses, one text at a time, and how else they come out."""
    begin = time.perf_counter()
    model = load(config, dtype)
    loading = time.perf_counter() - begin
    first, _ = timed_test(model)
    second, failure = timed_test(model)
    tokens = [model.reader.encode(row.messages, text) for row in rows for text in texts(row)]
    alone = [model.score_rows([one])[0] for one in tokens]
    batched = [score for at in range(0, len(tokens), 8) for score in model.score_rows(tokens[at : at + 8])]
    without_eos = [model.score_rows([one[:-1]])[0] for one in tokens]
    std = statistics.pstdev(alone)
    return alone, {
        "seconds": {"loading": loading, "first_test": first, "test": second},
        "failure": failure,
        "batch": difference(alone, batched, std),
        "without_eos": difference(alone, without_eos, std),
    }


def timed_test(model: RewardModel) -> tuple[float, str | None]:
    """Seconds that the self-test took, and what it found."""
    begin, failure = time.perf_counter(), None
    try:
        self_test(model, name="it", flag="--reward_model_or_path")
    except UserError as error:
        failure = str(error)
    return time.perf_counter() - begin, failure


def difference(one: Sequence[float], other: Sequence[float], std: float) -> dict[str, float]:
    """Smallest, mean and largest difference of scores, in standard deviations."""
    moved = [abs(a - b) / std for a, b in zip(one, other, strict=True)]
    return {"min": min(moved), "mean": statistics.mean(moved), "max": max(moved)}


def table(found: dict[str, Any]) -> str:
    """The figures as Markdown."""
    lines = [f"| {found['device']}, {found['num_pairs']} pairs | largest | allowed |", "|---|---|---|"]
    for dtype in ("fp32", "bf16"):
        lines.append(f"| alone or in a batch, {dtype} | {found[dtype]['batch']['max']:.2g} | {TOLERANCES[dtype]} |")
    lines.append(f"| bf16 against fp32 | {found['bf16_against_fp32']['max']:.2g} | {STORED_TOLERANCES['bf16']} |")
    seconds = ", ".join(f"{found[dtype]['seconds']['test']:.2g} s in {dtype}" for dtype in ("fp32", "bf16"))
    return "\n".join([*lines, "", f"Without EOS, at least {found['fp32']['without_eos']['min']:.2g}. Test: {seconds}."])


def store(config: Measured, rows: Sequence[Row]) -> None:
    """Complete the model's contract with its rendering and these pairs, scored in the precision of this device."""
    model = load(config, resolve_dtype("auto"))
    examples = []
    for row in rows:
        scores = model.score_rows([model.reader.encode(row.messages, text) for text in texts(row)])
        examples.append(ScoredPair(row.messages, *texts(row), *scores))
    directory = Path(config.reward_model_or_path)
    contract = RewardContract.load(str(directory)) or model.contract
    replace(with_rendering(contract, model.tokenizer), examples=tuple(examples)).save(directory)
    load_reward_model(str(directory), base=config.reward_base_model, dtype="auto", batch_size=8)
    print(f"stored {len(examples)} examples in {directory}")


if __name__ == "__main__":
    main(parse(Config, sys.argv[1:], prog="benchmarks/self_test.py").measured)
