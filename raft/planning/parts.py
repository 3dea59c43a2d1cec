"""What the plans of all stages put together in the same way: engine, files, the largest micro-batch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import ceil
from pathlib import Path
from typing import Any

from raft.config import ModelConfig, TrainingConfig
from raft.data.encoding import TokenRow
from raft.data.templates import ConversationTemplate
from raft.engine.settings import deepspeed_config
from raft.errors import UserError
from raft.functional.engine_memory import REDUCED_AT_ONCE, Engine
from raft.models.loading import load_tokenizer
from raft.planning.estimate import Disk
from raft.planning.models import has_weights
from raft.planning.shapes import count
from raft.precision import StoredDtype

WIDTHS = {"fp32": 4, "bf16": 2}


@dataclass(frozen=True)
class Ground:
    """What a plan is made for.

    Attributes:
        model_shape: numbers in place of a config.json; empty reads that.
        num_processes: of the run.
        on_gpu: whether the run computes on GPUs.
        memory: bytes that a process has; None is what it has on this machine.
    """

    model_shape: tuple[str, ...] = ()
    num_processes: int = 1
    on_gpu: bool = False
    memory: int | None = None


def engine_of(model: Any, training: TrainingConfig, dtype: StoredDtype, ground: Ground) -> Engine:
    """The engine that a model on the meta device would be in.

    Raises:
        UserError: if ``--deepspeed`` can not be read.
    """
    zero = deepspeed_config(training, bf16=dtype == "bf16")["zero_optimization"]
    offload = zero.get("offload_optimizer") or {}
    return Engine(
        num_parameters=count(model),
        num_trained=count(model, trained=True),
        width=WIDTHS[dtype],
        stage=int(zero.get("stage", 0)),
        num_processes=ground.num_processes,
        accumulates=training.gradient_accumulation_steps > 1,
        bucket=int(zero.get("reduce_bucket_size", REDUCED_AT_ONCE)),
        whole_bucket=ground.on_gpu,
        offloads=ground.on_gpu and offload.get("device", "none") != "none",
    )


def find_template(config: ModelConfig, ground: Ground) -> ConversationTemplate | None:
    """The template of a model's tokenizer; None where a model is a shape alone, so that limits stand for lengths."""
    if ground.model_shape:
        return None
    try:
        return ConversationTemplate(load_tokenizer(config), config.template)
    except UserError:
        if has_weights(config.model_name_or_path) or not Path(config.model_name_or_path).is_dir():
            raise  # not a shape: the run itself would say the same
        return None


def joins(model: ModelConfig, ground: Ground) -> bool:
    """Whether rows of text are joined without padding (``raft.engine.build.text_batching``), as far as flags tell."""
    return not (ground.on_gpu or model.gradient_checkpointing) and model.attn_implementation in ("auto", "sdpa")


def largest_text_batch(rows: Sequence[TokenRow], size: int, *, joined: bool) -> tuple[int, int, int]:
    """Rows, tokens and columns with targets of the micro-batch with the longest rows, as ``collate`` makes it.

    Args:
        joined: rows of their mean length instead, which are as many positions as ``collate_joined`` makes.
    """
    longest = sorted(rows, key=lambda row: -len(row.tokens))[:size]
    if joined:
        tokens, targets = sum(len(row.tokens) for row in longest), sum(row.num_targets for row in longest)
        return len(longest), ceil(tokens / len(longest)), ceil(targets / len(longest))
    first = [0 if row.positions is not None else row.trained.index(True) for row in longest]
    behind = max(len(row.tokens) - f for row, f in zip(longest, first, strict=True))
    return len(longest), max(first) + behind, behind


def checkpoint_bytes(engine: Engine, model: Any) -> int:
    """Bytes of a checkpoint: trained weights, fp32 masters where there are any, Adam's moments; of all ranks.

    A frozen weight that has a second name is there too: DeepSpeed leaves out frozen ones by their first name.
    """
    masters = 4 if engine.stage or engine.width < 4 else 0
    first = {name for name, _ in model.named_parameters()}
    named = model.named_parameters(remove_duplicate=False)
    again = sum(one.numel() for name, one in named if name not in first and not one.requires_grad)
    return engine.num_trained * (engine.width + masters + 8) + engine.width * again


def export_bytes(engine: Engine, *, adapter: bool, tokenizer: int) -> int:
    """Bytes of an exported model, or of an adapter alone."""
    return engine.width * (engine.num_trained if adapter else engine.num_parameters) + tokenizer


def tokenizer_bytes(name: str) -> int:
    """Bytes of a tokenizer's files beside a model; a hub name has none here."""
    return sum(path.stat().st_size for path in Path(name).glob("*token*") if path.is_file())


def disk(files: Mapping[str, int], *, checkpoint: int, keep: int, export: int) -> Disk:
    """What a run leaves, where ``keep`` checkpoints stay and a new one, or a new model, is written beside the old."""
    return Disk({"checkpoints": keep * checkpoint, **files}, passing=max(checkpoint if keep else 0, export))


def num_steps(num_rows: int, training: TrainingConfig, num_processes: int) -> int:
    """Optimizer steps of all epochs over some rows."""
    at_once = training.per_device_train_batch_size * training.gradient_accumulation_steps * num_processes
    return -(-num_rows // at_once) * training.num_train_epochs
