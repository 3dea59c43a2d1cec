"""Numbers and texts of an alignment run: per iteration, held-out, and the summary at the end."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from raft.functional import ranking
from raft.functional.diversity import diversity_report
from raft.functional.statistics import paired_bootstrap_interval
from raft.reports.drift_run import drift_summary
from raft.reports.drift_text import summary_lines as drift_lines
from raft.rollout.samples import Sample
from raft.run_directory import read_jsonl, write_text
from raft.terminal import visible


def iteration_metrics(samples: Sequence[Sample]) -> dict[str, Any]:
    """Metrics of one iteration, as docs/metrics.md lists them; rewards are of samples that were not discarded."""
    valid = [sample for sample in samples if sample.reward is not None]
    chosen = [sample for sample in samples if sample.selected]
    rewards = [float(sample.reward or 0.0) for sample in valid]
    log_ratios = [sample.scores["log_ratio"] for sample in samples if "log_ratio" in sample.scores]
    return {
        "reward/all_mean": _mean(rewards),
        "reward/all_std": float(np.std(rewards)) if rewards else float("nan"),
        "reward/selected_mean": _mean([float(sample.reward or 0.0) for sample in chosen]),
        "samples/num": len(samples),
        "samples/num_discarded": len(samples) - len(valid),
        "samples/num_selected": len(chosen),
        "samples/num_prompts_skipped": len({s.draw for s in samples} - {s.draw for s in valid}),
        **ranking_metrics(samples),
        **_response_metrics("response/", samples),
        **(_response_metrics("response/selected_", chosen) if chosen else {}),
        **({"kl/log_ratio_mean": _mean(log_ratios)} if log_ratios else {}),
        **_diversity_metrics("diversity/", samples),
        **(_diversity_metrics("diversity/selected_", chosen) if chosen else {}),
    }


def kept_of(metrics: Mapping[str, Any]) -> str:
    """What ``reward/all_mean`` is the mean of: "all samples", or "the 41 of 256 samples that were not discarded"."""
    num, num_discarded = metrics["samples/num"], metrics["samples/num_discarded"]
    return f"the {num - num_discarded} of {num} samples that were not discarded" if num_discarded else "all samples"


def iteration_text(iteration: int, metrics: Mapping[str, Any]) -> str:
    """A line for the screen, and another where rewards leave nothing to rank by, as those of a broken source do."""
    line = (
        f"iteration {iteration}: reward of {kept_of(metrics)} {metrics['reward/all_mean']:.3f}, "
        f"of the selected {metrics['reward/selected_mean']:.3f}, distinct-2 {metrics['diversity/distinct-2']:.3f}, "
        f"{metrics['response/length_mean']:.0f} tokens"
    )
    if metrics["ranking/rewards_differ_share"] == 0:
        line += "\nwarning: for no prompt do the rewards of its responses differ: there is nothing to choose by"
    return line


def ranking_metrics(samples: Sequence[Sample]) -> dict[str, float]:
    """Whether ranking could make a difference: see ``raft.functional.ranking``."""
    rewards = [float("nan") if sample.reward is None else sample.reward for sample in samples]
    draws = [sample.draw for sample in samples]
    lengths = [len(sample.response_tokens) for sample in samples]
    valid = [sample for sample in samples if sample.reward is not None]
    within, between = ranking.spreads(rewards, draws)
    return {
        "ranking/random_mean": ranking.random_choice_mean(rewards, draws),
        "ranking/best_of_n_mean": ranking.best_of_n_mean(rewards, draws),
        "ranking/responses_differ_share": ranking.differ_share([sample.response for sample in samples], draws),
        "ranking/rewards_differ_share": ranking.differ_share([s.reward for s in valid], [s.draw for s in valid]),
        "ranking/within_prompt_std": within,
        "ranking/between_prompt_std": between,
        "ranking/length_correlation": ranking.correlation(rewards, lengths),
        "ranking/length_correlation_within_prompt": ranking.correlation(rewards, lengths, draws),
    }


def held_out_metrics(samples: Sequence[Sample]) -> dict[str, Any]:
    """Metrics of the held-out responses, with a 95% bootstrap interval of the mean reward over prompts."""
    rewards = [sample.reward for sample in samples if sample.reward is not None]
    return {
        "held_out/reward_mean": _mean(rewards),
        "held_out/reward_ci95": list(paired_bootstrap_interval(rewards)) if rewards else [float("nan")] * 2,
        **_response_metrics("held_out/", samples),
        **_diversity_metrics("held_out/", samples),
    }


def _mean(values: Sequence[float]) -> float:
    return float(np.mean(values)) if len(values) else float("nan")


def _response_metrics(prefix: str, samples: Sequence[Sample]) -> dict[str, float]:
    """Lengths are in tokens as sampled, EOS included."""
    lengths = [len(sample.response_tokens) for sample in samples]
    return {
        f"{prefix}length_mean": _mean(lengths),
        f"{prefix}length_std": float(np.std(lengths)),
        f"{prefix}eos_share": _mean([float(sample.finish_reason == "eos") for sample in samples]),
    }


def _diversity_metrics(prefix: str, samples: Sequence[Sample]) -> dict[str, float]:
    report = diversity_report([sample.response for sample in samples])
    return {f"{prefix}{name}": value for name, value in report.items()}


def summarize(run: Path, progress: Mapping[str, Any]) -> dict[str, Any]:
    """The summary of a finished run, from its files.

    Args:
        run: run directory.
        progress: ``iteration``, ``best_iteration`` and ``seconds`` of the run; ``stopped``, the rule and the reason, if
            it ended early.

    Returns:
        ``stopped``, ``held_out_reward``, for every other held-out metric its ``initial`` and ``final`` value, and
        ``drift``: the iterations with an alarm, and the alarms of the last of them.
    """
    rows = {row["iteration"]: row for row in read_jsonl(run / "metrics.jsonl") if "held_out/reward_mean" in row}
    initial, final = rows[0], rows[progress["iteration"]]
    before, after = (
        {row["sample_id"]: row["reward"] for row in read_jsonl(run / f"held_out/{i:04d}.jsonl")}
        for i in (0, progress["iteration"])
    )
    pairs = [(before[i], after[i]) for i in before if before[i] is not None and after.get(i) is not None]
    differences = [b - a for a, b in pairs]

    def change(key: str) -> dict[str, float]:
        # JSON has null for NaN: no pair of words in any response, say.
        values = (row[f"held_out/{key}"] for row in (initial, final))
        before_value, after_value = (float("nan") if value is None else value for value in values)
        return {"initial": before_value, "final": after_value}

    seconds = {phase: round(value, 1) for phase, value in progress["seconds"].items()}
    return {
        "num_iterations": progress["iteration"],
        "best_iteration": progress["best_iteration"],
        "stopped": progress.get("stopped"),
        "held_out_reward": {
            **change("reward_mean"),
            "difference": _mean(differences),
            "ci95": list(paired_bootstrap_interval(differences)) if differences else [float("nan")] * 2,
            "num_prompts": len(differences),
        },
        "distinct_1": change("distinct-1"),
        "distinct_2": change("distinct-2"),
        "length": change("length_mean"),
        "eos_share": change("eos_share"),
        "drift": drift_summary(run, progress["iteration"]),
        "seconds": {**seconds, "total": round(sum(seconds.values()), 1)},
    }


def write_before_after(run: Path, summary: Mapping[str, Any]) -> None:
    """Write ``before_after.md`` (every held-out prompt, largest gain first) and print the summary with three of them.

    The three stand at the 90th, 50th and 10th percentile of the change in reward: a good, a middling and a bad case.
    """
    before = {row["sample_id"]: row for row in read_jsonl(run / "held_out/0000.jsonl")}
    after = {row["sample_id"]: row for row in read_jsonl(run / f"held_out/{summary['num_iterations']:04d}.jsonl")}
    changes = sorted(
        (
            (after[i]["reward"] - before[i]["reward"], i)
            for i in before
            if before[i]["reward"] is not None and after[i]["reward"] is not None
        ),
        reverse=True,
    )
    parts = [f"# Held-out responses before and after\n\n{len(changes)} prompts, largest gain in reward first.\n"]
    parts += [_entry(change, before[i], after[i]) for change, i in changes]
    write_text(run / "before_after.md", "\n".join(parts))
    print("\n" + describe(summary))
    for share in (0.1, 0.5, 0.9) if changes else ():
        change, i = changes[int(share * (len(changes) - 1))]
        print(f"\nprompt at the {round(100 * (1 - share))}th percentile of the change in reward")
        print(visible(_plain(change, before[i], after[i])))
    print(f"\nall of them: {run}/before_after.md   curves: {run}/plots   model: {run}/final")


def describe(summary: Mapping[str, Any]) -> str:
    """The summary as a table for the screen."""
    reward = summary["held_out_reward"]
    low, high = reward["ci95"]
    lines = [f"{'held-out prompts: ' + str(reward['num_prompts']):<28}{'before':>10}{'after':>10}"]
    names = {"mean reward": "held_out_reward", "distinct-1": "distinct_1", "distinct-2": "distinct_2"}
    names |= {"tokens a response": "length", "ended by EOS": "eos_share"}
    for label, key in names.items():
        lines.append(f"{label:<28}{summary[key]['initial']:>10.3f}{summary[key]['final']:>10.3f}")
    lines.append(f"change in reward {reward['difference']:+.3f}, 95% interval {low:+.3f} to {high:+.3f}")
    lines += drift_lines(summary["drift"])
    times = ", ".join(f"{phase} {value:.0f}" for phase, value in summary["seconds"].items())
    lines.append(f"seconds: {times}")
    if summary.get("stopped"):
        lines.append(f"ended after iteration {summary['num_iterations']}: {summary['stopped']['reason']}")
    return "\n".join(lines)


def _prompt_text(row: Mapping[str, Any]) -> str:
    return "\n".join(f"{message['role']}: {message['content']}" for message in row["prompt"])


def _plain(change: float, before: Mapping[str, Any], after: Mapping[str, Any]) -> str:
    return "\n".join(
        [
            _prompt_text(before),
            f"  before ({before['reward']:.2f}): {before['response']}",
            f"  after ({after['reward']:.2f}): {after['response']}",
        ]
    )


def _entry(change: float, before: Mapping[str, Any], after: Mapping[str, Any]) -> str:
    def quoted(text: str) -> str:
        return "\n".join("    " + line for line in text.splitlines())

    return "\n".join(
        [
            f"## {change:+.2f} · {before['prompt_id']}\n",
            quoted(_prompt_text(before)),
            f"\nbefore ({before['reward']:.2f})\n",
            quoted(before["response"]),
            f"\nafter ({after['reward']:.2f})\n",
            quoted(after["response"]) + "\n",
        ]
    )
