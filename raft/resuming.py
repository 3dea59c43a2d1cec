"""Which settings a resumed run may change, and which of the first run it takes over."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

from raft import json_file
from raft.arguments import to_dict
from raft.config import TrainingConfig
from raft.errors import UserError

FREE = {
    "output_dir", "overwrite_output_dir", "resume", "report_to", "logging_steps", "share_base_model",
    "save_steps", "save_total_limit", "save_every_n_iterations", "nonfinite_steps", "max_nonfinite_steps",
    "reward_timeout", "reward_retries", "reward_requests", "reward_self_test",
    "early_stopping", "early_stopping_patience", "early_stopping_min_gain",
    "drift_ratio", "drift_share", "drift_prompts", "drift_false_alarms", "vllm_gpu_memory_utilization",
}  # fmt: skip
"""What may change: no sample, selection or step depends on it (on batch sizes, memory and sharing, up to rounding).
Rules of when to stop are applied anew to all evaluations; what to do with steps that are not finite holds for those to
come. The limits of best/ may not: other ones could make a policy the best whose weights nobody has kept."""

FROM_HERE = {
    "discard_regex", "discard_shorter_than", "discard_unfinished", "discard_rule", "discard_below",
    "reward_batch_size",  # scores are kept by batches
    "num_raft_iteration", "max_steps",  # how long it goes on; a schedule that spans the run then spans the longer one
}  # fmt: skip
"""What may change too: iterations from here on use it. What was begun after the last checkpoint is done again: later
samples of it were drawn from a policy that this run will not have."""

UNSAID = {"rollout_backend": "native"}
"""What runs of versions had that did not know the setting; any other that they did not know may take any value."""

SETTLED = ("dtype", "reward_dtype", "inference_batch_size_per_device", "attn_implementation", "reward_batch_size")
"""What a run settles by its hardware where no flag says it; a resumed one takes what was settled. Versions without an
``auto`` for attention had sdpa, those without one for ``reward_batch_size`` had 32."""

STEP = ("per_device_train_batch_size", "gradient_accumulation_steps")
"""What may change together with the number of processes, as long as an optimizer step has the rows it had."""


def take_over(config: Any, recorded: Mapping[str, Mapping[str, Any]]) -> None:
    """Put what the first run settled in place of ``auto`` and none; changes ``config``."""
    for group in fields(config):
        settings = getattr(config, group.name)
        for name in SETTLED:
            if getattr(settings, name, 0) in ("auto", None) and name in (found := _group(recorded, group.name)):
                setattr(settings, name, found[name])


def refuse_changes(config: Any, recorded: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Compare a configuration with that of the run to be resumed.

    Returns:
        What of ``FROM_HERE`` has changed. What is in ``STEP`` is for ``settle_step`` to judge.

    Raises:
        UserError: naming the first flag that would make it another run, with both values.
    """
    changed = []
    for group, settings in to_dict(config).items():
        before = (UNSAID if recorded else {}) | dict(_group(recorded, group))
        for name, value in settings.items():
            if name in FREE or name in STEP or name not in before or before[name] == value:
                continue
            if name not in FROM_HERE:
                raise UserError(
                    f"--{name}: the run to be resumed has {_shown(before[name])}, found {_shown(value)}. With another "
                    f"{name} it would not be the same run. What may change: docs/reliability.md."
                )
            changed.append(name)
    return changed


def first_start(run: Path, recorded: Mapping[str, Mapping[str, Any]], num_processes: int) -> dict[str, int]:
    """What the rows of a step were made of when a run began: the number of ``processes``, and ``STEP``.

    Args:
        recorded: settings of its last start. With them, runs of before this was kept in environment.json; without a
            number of processes there, it is taken to be the ``num_processes`` of now.

    Raises:
        UserError: if any of it is no number of rows or processes.
    """
    path = run / "environment.json"
    environment = json_file.read_object(path, "--resume") if path.exists() else {}
    found = environment.get("started_with")
    if found is None:
        training = _group(recorded, "training")
        found = {"processes": environment.get("world_size", num_processes)}
        found |= {name: training.get(name, getattr(TrainingConfig, name)) for name in STEP}
    names = ("processes", *STEP)
    if not isinstance(found, dict) or any(type(n := found.get(name)) is not int or n < 1 for name in names):
        raise UserError(
            f"--resume: {run}: what its optimizer steps were made of is not as it was written (environment.json, "
            "config.yaml)."
        )
    return {name: found[name] for name in names}


def settle_step(
    training: TrainingConfig, started: Mapping[str, int], recorded: Mapping[str, Mapping[str, Any]], num_processes: int
) -> str | None:
    """Give an optimizer step the rows it had, on whatever number of processes.

    The same command on another number of processes gets another ``gradient_accumulation_steps``; changes ``training``.

    Args:
        started: see :func:`first_start`.
        recorded: settings of the run's last start.

    Returns:
        What to tell where anything is not as in the beginning.

    Raises:
        UserError: if a step would have another number of rows, with values that would fit.
    """
    rows, now = math.prod(started.values()), {name: getattr(training, name) for name in STEP}
    before = _group(recorded, "training")
    if training.rows_per_step(num_processes) != rows:
        fits = _fitting(rows, num_processes, now[STEP[0]])
        is_same_command = any(all(one.get(name) == now[name] for name in STEP) for one in (started, before))
        if not (is_same_command and fits.get(STEP[0]) == now[STEP[0]]):
            advice = " ".join(f"--{name} {value}" for name, value in fits.items())
            raise UserError(
                f"--{STEP[1]}: an optimizer step of the run to be resumed has {rows} rows, found "
                f"{training.rows_per_step(num_processes)}: {now[STEP[0]]} (--{STEP[0]}) x {now[STEP[1]]} x "
                f"{num_processes} process{'es' * (num_processes > 1)}. "
                + (f"{advice} keeps {rows}." if fits else "Take a number of processes that divides them.")
            )
        training.gradient_accumulation_steps = fits[STEP[1]]
    if started == {"processes": num_processes} | {name: getattr(training, name) for name in STEP}:
        return None
    ranks = f"{num_processes} process{'es' * (num_processes > 1)}"
    return (
        f"on {ranks} (started on {started['processes']}) with --{STEP[0]} {now[STEP[0]]} --{STEP[1]} "
        f"{training.gradient_accumulation_steps}, which keeps {rows} rows a step: the run goes on as if undisturbed, "
        "up to rounding and what dropout draws"
    )


def _fitting(rows: int, num_processes: int, most: int) -> dict[str, int]:
    """Values of ``STEP`` that give a step its rows, with up to ``most`` in a micro-batch; {} where none do."""
    share, rest = divmod(rows, num_processes)
    if rest:
        return {}
    size = next(size for size in range(min(most, share), 0, -1) if share % size == 0)
    return {STEP[0]: size, STEP[1]: share // size}


def _group(recorded: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    """A group of the recorded settings; earlier versions may have had no such group."""
    found = recorded.get(name)
    if found is not None and not isinstance(found, Mapping):
        raise UserError(
            f"--resume: config.yaml of the run to be resumed is not as it was written: {name} is no group of settings."
        )
    return found or {}


def _shown(value: Any) -> str:
    text = "none" if value is None else str(value).lower() if isinstance(value, bool) else str(value)
    return text if len(text) <= 80 else text[:77] + "..."
