"""`raft evaluate-reward`: how far can a reward be trusted? Measured on preference pairs it has not seen.

Accuracy with its interval, by margin, and where length says nothing or misleads; calibration; correlation with length;
and probes: does the score go up when '#' is appended, the last sentence repeated, or the answer left empty?

    raft evaluate-reward --dataset_path pairs.jsonl --validation_split_percentage 10 \
        --reward_model_or_path output_models/reward/final --update_card output_models/reward/final/README.md
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from raft import __version__, distributed
from raft.data.loading import TEST, load_rows, split_rows
from raft.data.rows import Row
from raft.errors import UserError
from raft.functional.probes import PROBES, Probe
from raft.models.loading import quiet_libraries
from raft.reports.reward_evaluation import as_markdown, as_text, with_section
from raft.rewards.evaluation import Evaluation, ScoredPairs, evaluate, measure_probe
from raft.rewards.loading import load_rewards
from raft.rewards.reward_model import RewardModel
from raft.rewards.rewards import Rewards
from raft.rewards.source import Candidate
from raft.run_directory import write_json, write_jsonl, write_text
from raft.tools.evaluate_reward_config import EvaluateRewardConfig, PairOptions, ReportOptions


def main(config: EvaluateRewardConfig) -> None:
    """Score pairs and their changed versions on all ranks together; rank 0 writes and prints.

    Raises:
        UserError: if data, reward or a card can not be read, or no pair could be scored.
    """
    quiet_libraries()
    if distributed.world_size() > 1:
        distributed.initialize()
    check(config.report)
    rows = read_pairs(config.pairs)
    rewards = load_rewards(config.reward, trust_remote_code=config.code.trust_remote_code)
    texts = changed_texts(rows, config.measures.num_probed_pairs)
    pairs, probe_scores = score(rewards, rows, texts)
    if not len(pairs.scored.chosen):
        raise UserError(f"--dataset_path {config.pairs.dataset_path}: the reward gives no score to any pair.")
    results = [measure_probe(probe, pairs.chosen, probe_scores[probe.name]) for probe in PROBES if texts]
    measures = config.measures
    evaluation = evaluate(
        pairs, results, num_buckets=measures.num_buckets, length_tolerance=measures.length_tolerance / 100
    )
    if distributed.is_main():
        write(config, describe(config, rewards, len(rows)), rows, pairs, probe_scores, evaluation)


def check(report: ReportOptions) -> None:
    """Refuse what could not be written, before the work rather than after it."""
    if report.output_dir and Path(report.output_dir).exists() and not Path(report.output_dir).is_dir():
        raise UserError(f"--output_dir: {report.output_dir} is a file, expected a directory.")
    for path, text in read_cards(report).items():
        with_section(text, "", source=f"--update_card {path}")


def read_cards(report: ReportOptions) -> dict[Path, str]:
    """The texts of the cards to be brought up to date."""
    cards = {}
    for path in map(Path, report.update_card):
        if not path.is_file():
            raise UserError(f"--update_card: there is no file {path}.")
        try:
            cards[path] = path.read_text(encoding="utf-8")
        except UnicodeDecodeError as error:
            raise UserError(f"--update_card {path}: not UTF-8 text (byte {error.start}).") from None
    return cards


def read_pairs(options: PairOptions) -> list[Row]:
    """The pairs to evaluate on."""
    splits = ("train",) if options.validation_split_percentage else TEST  # the part that raft reward held out
    data = load_rows(options.dataset_path, kinds={"preference"}, max_rows=options.num_rows, splits=splits)
    if not options.validation_split_percentage:
        return data.rows
    return split_rows(data.rows, options.validation_split_percentage)[1]


def changed_texts(rows: Sequence[Row], num_probed: int | None = None) -> dict[str, list[str | None]]:
    """Every probe's version of the chosen responses; None where it leaves one as it is, and for pairs not probed.

    Args:
        num_probed: pairs to probe, spread evenly; None for all, 0 for no probes at all.
    """
    if num_probed == 0:
        return {}
    probed = set(np.linspace(0, len(rows) - 1, min(num_probed or len(rows), len(rows))).round().astype(int).tolist())
    answers = [row.chosen or "" for row in rows]
    others = answers[1:] + answers[:1]

    def changed(probe: Probe, i: int) -> str | None:
        text = probe.change(answers[i], others[i])
        return text if i in probed and text != answers[i] else None

    return {probe.name: [changed(probe, i) for i in range(len(rows))] for probe in PROBES}


def score(
    rewards: Rewards, rows: Sequence[Row], texts: dict[str, list[str | None]]
) -> tuple[ScoredPairs, dict[str, np.ndarray]]:
    """All scores in one go, so that batches are of similar length.

    Args:
        texts: by probe, a changed response to every row's prompt, or None.

    Returns:
        The pairs, and by probe the scores of its texts, (num_pairs,), NaN for None.
    """
    columns: dict[str, Sequence[str | None]] = {
        "chosen": [row.chosen for row in rows],
        "rejected": [row.rejected for row in rows],
        **texts,
    }
    places = [(name, i) for name, column in columns.items() for i, text in enumerate(column) if text is not None]
    candidates = [Candidate(rows[i].messages, columns[name][i] or "", extra=rows[i].extra) for name, i in places]
    scores = {name: np.full(len(rows), np.nan) for name in columns}
    scored = rewards.score(candidates, name="evaluation").rewards
    for (name, i), value in zip(places, scored, strict=True):
        scores[name][i] = value
    pairs = ScoredPairs(
        chosen=scores.pop("chosen"),
        rejected=scores.pop("rejected"),
        chosen_length=np.array([len(row.chosen or "") for row in rows], dtype=np.float64),
        rejected_length=np.array([len(row.rejected or "") for row in rows], dtype=np.float64),
        margin=np.array([np.nan if row.margin is None else row.margin for row in rows], dtype=np.float64),
    )
    return pairs, scores


def write(
    config: EvaluateRewardConfig,
    title: str,
    rows: Sequence[Row],
    pairs: ScoredPairs,
    probes: dict[str, np.ndarray],
    evaluation: Evaluation,
) -> None:
    """Files, cards and the screen."""
    from raft.reports.reward_figure import evaluation_figure, save_figure

    folder = Path(config.report.output_dir or f"output_models/evaluate-reward-{time.strftime('%Y%m%d-%H%M%S')}")
    figure = evaluation_figure(pairs, evaluation)
    write_json(folder / "evaluation.json", {"raft": __version__, "what": title, **asdict(evaluation)})
    write_jsonl(folder / "pairs.jsonl", pair_rows(rows, pairs, probes))
    write_text(folder / "evaluation.md", as_markdown(title, evaluation, "evaluation.png") + "\n")
    save_figure(figure, folder / "evaluation.png")
    cards = read_cards(config.report)
    if cards:
        picture = Path(config.report.card_figure or next(iter(cards)).parent / "evaluation.png")
        save_figure(figure, picture)
        for path, text in cards.items():
            link = Path(os.path.relpath(picture, path.parent)).as_posix()
            write_text(path, with_section(text, as_markdown(title, evaluation, link), source=str(path)))
    print(as_text(title, evaluation))
    written = [f"{folder}/evaluation.json, .md, .png and pairs.jsonl", *map(str, cards)]
    print("\nwrote " + "\n      ".join(written), file=sys.stderr)


def pair_rows(rows: Sequence[Row], pairs: ScoredPairs, probes: dict[str, np.ndarray]) -> list[dict[str, Any]]:
    """pairs.jsonl: where each pair is from, its scores, and the scores of its changed chosen responses."""
    return [
        {
            "source": row.source,
            "chosen_score": pairs.chosen[i],
            "rejected_score": pairs.rejected[i],
            "probes": {name: scores[i] for name, scores in probes.items()},
        }
        for i, row in enumerate(rows)
    ]


def describe(config: EvaluateRewardConfig, rewards: Rewards, num_pairs: int) -> str:
    """What was evaluated on what, without the directories of this machine."""
    names = " + ".join(one.name for one in rewards.sources)
    if [type(one.source) for one in rewards.sources] == [RewardModel]:
        path = Path(config.reward.specs()[0].target)
        names = path.name if path.is_absolute() else str(path)
    data = ", ".join(Path(part.strip()).name for part in config.pairs.dataset_path.split(","))
    percent = config.pairs.validation_split_percentage
    return f"{names} on {f'the last {percent:g}% of ' if percent else ''}{data} ({num_pairs} pairs)"
