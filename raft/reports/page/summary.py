"""The head of the page: what each run was, what it did to the held-out numbers, and how runs compare."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime, timezone
from typing import Any

from raft.functional.statistics import paired_bootstrap_interval
from raft.reports.page.records import Records, Row, read_rows
from raft.reports.page.texts import Prompt, messages, number

Fact = tuple[str, str]

# Label -> flags whose values are shown after it, joined.
_SETTINGS: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("Model", ("model_name_or_path",)),
    ("Reward", ("reward",)),
    ("Data", ("dataset_path",)),
    ("Held-out data", ("eval_dataset_path",)),
    ("Selection", ("collection_strategy",)),
    ("Prompts kept (b)", ("raft_batch_size",)),
    ("Samples a prompt (k)", ("num_samples_per_prompt",)),
    ("Temperature", ("temperature",)),
    ("Tokens a response, at most", ("output_max_length",)),
    ("Learning rate", ("learning_rate", "lr_scheduler_type")),
    ("Epochs", ("num_train_epochs",)),
    ("Precision", ("dtype",)),
    ("LoRA rank", ("lora_r",)),
    ("Seed", ("seed",)),
)
# Key of the held-out metrics, or of the evaluation's -> label; the first one is the headline.
_RESULTS = {
    "held_out/reward_mean": "Held-out reward",
    "held_out/distinct-2": "distinct-2",
    "held_out/length_mean": "Tokens a response",
    "held_out/eos_share": "Ended by EOS",
    "held_out/perplexity": "Perplexity of held-out texts",
    "eval/accuracy": "Held-out accuracy",
    "eval/loss": "Held-out loss",
    "eval/perplexity": "Held-out perplexity",
    "train/loss": "Training loss",
}
RESULT_LABELS = tuple(_RESULTS.values())
FACT_LABELS = (*(label for label, _ in _SETTINGS), "Ended early", "Last entry", "Time", "Hardware", "Versions",
               "Commit")  # fmt: skip


def facts(records: Records) -> list[Fact]:
    """Settings and circumstances, as label and text; what is not recorded is left out."""
    found = []
    for label, flags in _SETTINGS:
        if label == "LoRA rank" and not records.config.get("use_lora"):
            continue
        if label == "Reward" and not _listed(records.config, "reward"):
            flags = ("reward_model_or_path",)
        values = [_plain(records.config[flag]) for flag in flags if records.config.get(flag) not in (None, "", [])]
        if values:
            found.append((label, ", ".join(values)))
    return found + _circumstances(records)


def _circumstances(records: Records) -> list[Fact]:
    environment, packages = records.environment, records.environment.get("packages")
    versions = packages if isinstance(packages, dict) else {}
    named = [f"raft {environment['raft']}"] if environment.get("raft") else []
    named += [f"{name} {versions[name]}" for name in ("torch", "transformers", "deepspeed") if versions.get(name)]
    gpus = environment.get("gpus")
    hardware = ", ".join(map(str, gpus)) if isinstance(gpus, list) and gpus else ""
    if not hardware and environment.get("cpu_count"):
        hardware = f"{environment['cpu_count']} CPU cores"
    if hardware and environment.get("world_size", 1) != 1:
        hardware += f", {environment['world_size']} processes"
    times = [float(row["time"]) for axis in ("iterations", "steps") for row in getattr(records.metrics, axis).values()
             if number(row.get("time")) is not None]  # fmt: skip
    seconds = records.summary.get("seconds")
    total = seconds.get("total") if isinstance(seconds, dict) else None
    stopped = records.summary.get("stopped")
    return [
        (label, text)
        for label, text in (
            ("Ended early", str(stopped.get("reason") or "") if isinstance(stopped, dict) else ""),
            ("Last entry", f"{datetime.fromtimestamp(max(times), timezone.utc):%Y-%m-%d %H:%M} UTC" if times else ""),
            ("Time", _duration(total if number(total) is not None else max(times, default=0) - min(times, default=0))),
            ("Hardware", hardware),
            ("Versions", ", ".join(named)),
            ("Commit", str(environment.get("commit") or "")[:12]),
        )
        if text
    ]


def results(records: Records) -> list[Row]:
    """Before and after of every headline number, in the order of the page.

    Returns:
        ``key, label, before, after``, ``where`` (the first and last iteration or step), and for the held-out
        reward of a finished run ``difference`` and ``ci95``.
    """
    found: list[Row] = []
    for key, label in _RESULTS.items():
        for axis in ("iterations", "steps"):
            places, values = records.metrics.series(axis, key)
            points = [(place, value) for place, value in zip(places, values, strict=True) if value == value]
            if points and not (axis == "steps" and any(row["key"] == key for row in found)):
                (first, before), (last, after) = points[0], points[-1]
                row = {"key": key, "label": label, "before": before, "after": after, "where": [first, last]}
                found.append(row | {"axis": axis})
    reward = records.summary.get("held_out_reward")
    if isinstance(reward, dict) and found and found[0]["key"] == "held_out/reward_mean":
        found[0] |= {name: reward[name] for name in ("difference", "ci95", "num_prompts") if name in reward}
    return found


def comparison(runs: Sequence[Records]) -> dict[str, Any] | None:
    """Held-out rewards of several runs on the prompts that all of them have; None where fewer than two have any.

    Returns:
        ``num_prompts``, ``same_rewards`` (whether the runs have the same sources, weights and normalisations of reward,
        without which their rewards do not compare) and ``rows``: for every run its mean reward before and after, and
        ``versus``: for the other runs, by number, the mean paired difference "after" minus their "after" with its 95%
        interval.
    """
    ends = {i: _first_and_last(run) for i, run in enumerate(runs) if run.held_out_files()}
    common = sorted(set.intersection(*(set(before) & set(after) for before, after in ends.values()))) if ends else []
    if len(ends) < 2 or not common:
        return None
    rows = []
    for i, (before, after) in ends.items():
        versus = {}
        for j, (_, other) in ends.items():
            if j != i:
                differences = [after[key] - other[key] for key in common]
                versus[j] = {"difference": _mean(differences), "ci95": list(paired_bootstrap_interval(differences))}
        rows.append({"run": i, "before": _mean([before[key] for key in common]),
                     "after": _mean([after[key] for key in common]), "versus": versus})  # fmt: skip
    scales = {_scale(runs[i].config, [before[key] for key in sorted(before)]) for i, (before, _) in ends.items()}
    return {"num_prompts": len(common), "same_rewards": len(scales) == 1, "rows": rows}


def _scale(config: Mapping[str, Any], first: Sequence[float]) -> str:
    """What a run's held-out rewards are measured with, as a text that tells it from other scales.

    Args:
        config: settings of the run, of any version.
        first: its held-out rewards before training, by which ``batch`` normalises all later ones.
    """
    sources = _listed(config, "reward") or [config.get("reward_model_or_path")]
    weights = _listed(config, "reward_weights") or [1.0] * len(sources)
    normalizations = _listed(config, "reward_normalization") or ["none"]
    normalizations = normalizations * len(sources) if len(normalizations) == 1 else normalizations
    others = [config.get(flag) for flag in ("reward_base_model", "reward_contract")]
    parts = (sources, weights, normalizations, others, first if "batch" in normalizations else [])
    return "; ".join(_plain(list(part)) for part in parts)


def _listed(config: Mapping[str, Any], flag: str) -> list[Any]:
    found = config.get(flag)
    return found if isinstance(found, list) else []


Rewards = dict[tuple[Prompt, int], float]  # by prompt, and which of its equal prompts it is


def _first_and_last(run: Records) -> tuple[Rewards, Rewards]:
    files = list(run.held_out_files().values())
    return _rewards(read_rows(files[0])), _rewards(read_rows(files[-1]))


def _rewards(rows: Any) -> Rewards:
    found: Rewards = {}
    counts: dict[Prompt, int] = {}
    for row in rows:
        prompt = messages(row.get("prompt"))
        counts[prompt] = counts.get(prompt, 0) + 1
        if number(row.get("reward")) is not None:
            found[prompt, counts[prompt]] = float(row["reward"])
    return found


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def _plain(value: Any) -> str:
    """A setting as it would be typed."""
    if isinstance(value, list):
        return ", ".join(map(_plain, value))
    if isinstance(value, float):
        return f"{value:g}"
    return str(value).lower() if isinstance(value, bool) or value is None else str(value)


def _duration(seconds: Any) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {rest} s" if minutes else f"{rest} s" if rest else ""


def alarm_count(alarms: Sequence[Mapping[str, Any]]) -> int:
    """How many different features were alarmed about."""
    return len({(str(alarm.get("kind")), str(alarm.get("feature"))) for alarm in alarms})
