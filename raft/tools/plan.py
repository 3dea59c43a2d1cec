"""`raft plan STAGE`: what a run will need in memory and on the disk, and how long it will take; nothing is started.

raft plan align --num_raft_iteration 20 --use_lora
raft plan sft --config run.yaml --no_probe
raft align --dry_run --num_raft_iteration 20
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from copy import deepcopy
from pathlib import Path
from typing import Any

import torch

from raft import distributed
from raft.data.batching import Batch, PairBatch
from raft.models.forward import next_token_loss
from raft.models.loading import quiet_libraries
from raft.planning.estimate import Plan, verdict
from raft.planning.machine import Machine, this_machine
from raft.planning.models import shape_of
from raft.planning.parts import Ground
from raft.planning.probe import describe as describe_times
from raft.planning.probe import probe, totals
from raft.planning.report import Change, as_json, describe
from raft.precision import resolve_dtype
from raft.stages.align_config import AlignConfig
from raft.stages.align_plan import plan_align
from raft.stages.plans import plan_reward, plan_sft
from raft.stages.reward_config import RewardModelingConfig
from raft.stages.sft_config import SFTConfig
from raft.tools.plan_config import PlanOptions

PLANS: dict[Any, Callable[[Any, Ground], Plan]] = {
    SFTConfig: plan_sft,
    RewardModelingConfig: plan_reward,
    AlignConfig: plan_align,
}


def main(config: Any) -> None:
    """Print the plan, on rank 0.

    Raises:
        UserError: for what the stage itself would refuse before it loads a model.
    """
    quiet_libraries()
    if not distributed.is_main():
        return
    options: PlanOptions = config.plan
    processes = options.num_processes or distributed.world_size()
    machine = this_machine(Path(config.run.output_dir or "output_models"), processes)
    if options.device_memory:
        machine = Machine(
            machine.device, machine.on_gpu, int(options.device_memory * 2**30), machine.taken, machine.disk
        )
    make = next(make for config_class, make in PLANS.items() if isinstance(config, config_class))
    ground = Ground(tuple(options.model_shape), processes, machine.on_gpu, machine.memory)
    plan = make(config, ground)
    found = verdict(plan.peak(on_gpu=machine.on_gpu) + machine.taken, machine.memory)
    seconds: dict[str, float] = {}
    lines = ["time: not probed (--no_probe)"]
    if options.probe and found == "does not fit":
        lines = ["time: not probed, for it would not fit"]
    elif options.probe and processes > 1:
        lines = ["time: not probed; a probe is of one process"]
    elif options.probe:
        timed = _probe(config, plan, options)
        seconds, lines = timed.seconds | totals(plan.work, timed.seconds), describe_times(plan.work, timed)
    if options.json:
        print(json.dumps(as_json(plan, machine, seconds)))
        return
    changes = [] if found == "fits" else list(find_changes(config, make, ground, plan))
    print(describe(plan, machine, changes, lines))


def find_changes(config: Any, make: Callable[[Any, Ground], Plan], ground: Ground, plan: Plan) -> list[Change]:
    """Flags that lower the peak, and by how much, each alone, the most first: the plan is made anew for each."""
    peak, found = plan.peak(on_gpu=ground.on_gpu), []
    for flags, changed in _variants(config, ground, plan):
        saved = peak - make(changed, ground).peak(on_gpu=ground.on_gpu)
        if saved > peak // 50:
            found.append((flags, saved))
    return sorted(found, key=lambda change: -change[1])[:4]


def _variants(config: Any, ground: Ground, plan: Plan) -> Iterator[tuple[str, Any]]:
    """What could be changed: flags as they would be typed, and the config with them."""

    def changed(group: str, **values: Any) -> Any:
        other = deepcopy(config)
        vars(getattr(other, group)).update(values)
        return other

    training = config.training
    if not config.model.gradient_checkpointing:
        yield "--gradient_checkpointing", changed("model", gradient_checkpointing=True)
    if not config.lora.use_lora:
        yield "--use_lora", changed("lora", use_lora=True)
    if resolve_dtype(config.model.dtype) == "fp32":
        yield "--dtype bf16", changed("model", dtype="bf16")
    if (rows := training.per_device_train_batch_size) > 1:
        half, twice = rows // 2, 2 * training.gradient_accumulation_steps
        flags = f"--per_device_train_batch_size {half} --gradient_accumulation_steps {twice}"
        values = {"per_device_train_batch_size": half, "gradient_accumulation_steps": twice}
        yield flags, changed("training", **values)
    if ground.num_processes > 1 and not training.deepspeed:
        for path in ("scripts/deepspeed/zero2.json", "scripts/deepspeed/zero3.json"):
            if Path(path).is_file():
                yield f"--deepspeed {path}", changed("training", deepspeed=path)
    if not isinstance(config, AlignConfig):
        return
    if (chunk := plan.sizes["sample_rows"]) > 1:
        flags = f"--inference_batch_size_per_device {chunk // 2}"
        yield flags, changed("sampling", inference_batch_size_per_device=chunk // 2)
    if (batch := plan.sizes["score_rows"]) > 1:
        yield f"--reward_batch_size {batch // 2}", changed("reward", reward_batch_size=batch // 2)
    if config.measuring.kl_num_responses:
        yield "--kl_num_responses 0", changed("measuring", kl_num_responses=0)


def _probe(config: Any, plan: Plan, options: PlanOptions) -> Any:
    scores, sizes = isinstance(config, RewardModelingConfig), plan.sizes
    shape = shape_of(config.model, options.model_shape)
    if scores:
        shape.num_labels, shape.pad_token_id = 1, 0

    def batch(rows: int) -> Batch | PairBatch:
        ids = torch.ones(rows, sizes["train_length"], dtype=torch.long)
        if scores:
            return PairBatch(ids, ids, torch.zeros(rows), rows)
        columns = torch.arange(sizes["train_length"] - sizes["train_columns"] - 1, sizes["train_length"] - 1).clamp(
            min=0
        )
        return Batch(ids, ids, ids.cumsum(1) - 1, ids, columns.unique(), rows * len(columns.unique()))

    return probe(
        shape,
        config.model,
        config.lora,
        config.training,
        sizes,
        dtype=resolve_dtype(config.model.dtype),
        loss_fn=None if scores else next_token_loss,
        batch=batch,
        budget=options.probe_seconds,
    )
