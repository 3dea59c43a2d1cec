"""Which settings a resumed run may change, and which of the first run it takes over."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from raft.arguments import to_dict
from raft.errors import UserError

FREE = {
    "output_dir", "overwrite_output_dir", "resume", "report_to", "logging_steps", "share_base_model",
    "save_steps", "save_total_limit", "save_every_n_iterations", "nonfinite_steps", "max_nonfinite_steps",
    "reward_batch_size", "reward_timeout", "reward_retries", "reward_requests", "reward_self_test",
    "best_min_distinct_2", "best_max_kl", "best_max_length_ratio",
    "early_stopping", "early_stopping_patience", "early_stopping_min_gain",
    "drift_ratio", "drift_share", "drift_prompts", "drift_false_alarms", "vllm_gpu_memory_utilization",
}  # fmt: skip
"""What may change: no sample, selection or step depends on it (on batch sizes, memory and sharing, up to rounding).
Rules of when to stop and what is best are applied anew to all evaluations; what to do with steps that are not finite
holds for those to come."""

FROM_HERE = {
    "discard_regex", "discard_shorter_than", "discard_unfinished", "discard_rule", "discard_below",
    "num_raft_iteration", "max_steps",  # how long it goes on; a schedule that spans the run then spans the longer one
}  # fmt: skip
"""What may change too: iterations from here on use it. What was begun after the last checkpoint is done again: later
samples of it were drawn from a policy that this run will not have."""

UNSAID = {"rollout_backend": "native"}
"""What runs of versions had that did not know the setting; any other that they did not know may take any value."""

SETTLED = ("dtype", "inference_batch_size_per_device")
"""What a run settles by its hardware where no flag says it; a resumed one takes what was settled."""


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
        What of ``FROM_HERE`` has changed.

    Raises:
        UserError: naming the first flag that would make it another run, with both values.
    """
    changed = []
    for group, settings in to_dict(config).items():
        before = (UNSAID if recorded else {}) | dict(_group(recorded, group))
        for name, value in settings.items():
            if name in FREE or name not in before or before[name] == value:
                continue
            if name not in FROM_HERE:
                raise UserError(
                    f"--{name}: the run to be resumed has {_shown(before[name])}, found {_shown(value)}. With another "
                    f"{name} it would not be the same run. What may change: docs/reliability.md."
                )
            changed.append(name)
    return changed


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
