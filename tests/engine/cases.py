"""Every case of the engine tests. All of them run in one launch for each number of processes."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from tests.conftest import ROOT
from tests.engine.scenarios import MAX_GRAD_NORM, Case

FULL = [Case(f"zero{s}-accumulation{a}", stage=s, accumulation=a) for s in (0, 2, 3) for a in (1, 4)]
FULL += [Case(f"parted-by-length-zero{s}", stage=s, pass_cost=0) for s in (0, 2, 3)]
FULL += [Case(f"joined-zero{s}", stage=s, accumulation=a, joined=True) for s, a in ((0, 1), (2, 4), (3, 1))]
BF16 = [
    Case(f"bf16-zero{s}-accumulation{a}", stage=s, accumulation=a, dtype="bf16")
    for s, a in ((0, 1), (0, 4), (1, 1), (2, 1), (2, 4), (3, 1), (3, 4))
]
LORA = [
    Case("lora-zero0", lora=True),
    Case("lora-zero2", stage=2, lora=True, accumulation=4),
    Case("lora-zero3", stage=3, lora=True),
    Case("lora-joined", lora=True, joined=True),
]
CHECKPOINTING = [
    Case("checkpointing-zero0", checkpointing=True),
    Case("checkpointing-zero3", checkpointing=True, stage=3),
    Case("checkpointing-lora-zero0", checkpointing=True, lora=True),
    Case("checkpointing-lora-zero3", checkpointing=True, lora=True, stage=3),
]
GENERATING = [
    Case(f"generating-zero{s}{'-lora' * lora}", stage=s, lora=lora, checkpointing=True, generate_after=2)
    for s in (0, 3)
    for lora in (False, True)
]
OFFLOAD = [
    Case("zero2-offload", stage=2, offload_optimizer=True),
    Case("zero3-offload", stage=3, offload_optimizer=True, offload_param=True),
]
SHIPPED = [
    Case(f"shipped-{file.stem}", settings=str(file)) for file in sorted((ROOT / "scripts/deepspeed").glob("*.json"))
]
POISONED = [
    Case(f"poisoned-{poison}-zero{s}-{d}", stage=s, dtype=d, poison=poison, max_grad_norm=MAX_GRAD_NORM * (d == "bf16"))
    for s in (0, 2, 3)
    for d in ("fp32", "bf16")
    for poison in ("loss", "gradient")
]
POISONED += [
    Case("poisoned-gradient-zero1-fp32", stage=1, poison="gradient"),
    Case("poisoned-gradient-zero2-offload", stage=2, poison="gradient", offload_optimizer=True),
    Case("poisoned-loss-zero2-offload", stage=2, poison="loss", offload_optimizer=True),
    Case("poisoned-gradient-zero3-offload", stage=3, poison="gradient", offload_optimizer=True, offload_param=True),
]
STOPPING = [
    Case("stopping-loss-zero0-fp32", poison="loss", nonfinite_steps="stop"),
    Case("stopping-gradient-zero2-bf16", stage=2, dtype="bf16", poison="gradient", nonfinite_steps="stop"),
]
UNCLIPPED = [Case(f"unclipped-zero{s}", stage=s, max_grad_norm=0.0) for s in (0, 2, 3)]
SCHEDULES = [
    Case("linear-warmup", schedule="linear", warmup_ratio=0.5),
    Case("cosine-warmup-zero3", stage=3, schedule="cosine", warmup_ratio=0.25),
    Case("constant-bf16", dtype="bf16", schedule="constant"),
    Case("constant-warmup", stage=2, schedule="constant_with_warmup", warmup_ratio=0.5),
]
EXPORTED = [
    Case(f"exported-{dtype}-zero{stage}{'-lora' * lora}", stage=stage, dtype=dtype, lora=lora, export=True)
    for stage in (0, 2, 3)
    for dtype in ("fp32", "bf16")
    for lora in (False, True)
]
# With dropout, the steps after resuming are the same only if the random state is.
SAVED = [
    Case(
        f"saved-{dtype}-zero{stage}{'-lora' * lora}",
        stage=stage,
        dtype=dtype,
        lora=lora,
        lora_dropout=0.2 * lora,
        schedule="cosine",
        warmup_ratio=0.25,
        save_after=(2,),
    )
    for stage in (0, 2, 3)
    for dtype in ("fp32", "bf16")
    for lora in (False, True)
]
SAVED.append(replace(SAVED[6], name="saved-bf16-zero2-offload", offload_optimizer=True))
SAVED.append(replace(SAVED[0], name="saved-fp32-zero1", stage=1))
NEVER_SAVED = [replace(case, name=f"never-{case.name}", save_after=()) for case in (SAVED[3], SAVED[10])]

ON_ONE = [*FULL, *BF16, *LORA, *CHECKPOINTING, *GENERATING, *OFFLOAD, *SHIPPED, *POISONED, *UNCLIPPED, *SCHEDULES]
ON_ONE += [*STOPPING, *EXPORTED, *SAVED, *NEVER_SAVED]
ON_TWO = [*FULL, *BF16[1:], *LORA, GENERATING[0], GENERATING[3], OFFLOAD[1], *STOPPING]
ON_TWO += [POISONED[1], POISONED[6], POISONED[9]]
ON_TWO += [case for case in EXPORTED if case.name in ("exported-fp32-zero3", "exported-bf16-zero2")]
ON_TWO += [case for case in EXPORTED if case.stage != 2 and case.lora and case.dtype == "fp32"]
ON_TWO += [case for case in SAVED if case.name in ("saved-fp32-zero0", "saved-bf16-zero2", "saved-fp32-zero3-lora")]
Found = dict[int, dict[str, dict[str, Any]]]
"""Results by number of processes and name of the case."""


def on_both(cases: list[Case]) -> list[Any]:
    """(world size, name) of every case, for parametrize."""
    return [
        pytest.param(world_size, case.name, id=f"{case.name}-ranks{world_size}")
        for case in cases
        for world_size, launched in ((1, ON_ONE), (2, ON_TWO))
        if case in launched
    ]
