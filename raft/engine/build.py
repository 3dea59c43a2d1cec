"""From settings to an engine with a language model in it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from raft import distributed
from raft.config import LoraConfig, ModelConfig, TrainingConfig
from raft.data.batching import Batching, collate, collate_joined
from raft.data.encoding import TokenRow
from raft.engine.engine import Engine
from raft.models.documents import reads_documents
from raft.models.forward import reads_packed
from raft.models.loading import load_causal_lm
from raft.models.lora import attach


def build_policy(
    model: ModelConfig,
    lora: LoraConfig,
    training: TrainingConfig,
    *,
    seed: int,
    total_steps: int | Callable[[Any], int],
) -> Engine:
    """Load a language model, attach adapters if asked for, and put it into its engine.

    Args:
        seed: decides the initial adapters.
        total_steps: optimizer steps of the whole run, which the schedule spans; or what gives them once the model is
            there.
    """
    torch.manual_seed(seed)
    bf16 = model.dtype == "bf16"
    # The engine would round a frozen base to the same weights; loading it in bf16 does so without an fp32 copy.
    module: Any = load_causal_lm(model, dtype=torch.bfloat16 if bf16 and lora.use_lora else torch.float32)
    if lora.use_lora:
        module = attach(module, lora, task="CAUSAL_LM")
    return Engine(
        module,
        training,
        total_steps=total_steps if isinstance(total_steps, int) else total_steps(module),
        bf16=bf16,
        gradient_checkpointing=model.gradient_checkpointing,
    )


def text_batching(engine: Engine, tokenizer: Any) -> Batching:
    """How rows of text become batches for this engine; on all ranks together.

    On a CPU, where padding costs what text costs, rows are joined to one, if the model can read that.
    """
    if distributed.device().type == "cpu" and not engine.recomputes:
        with engine.generating() as model:
            if reads_documents(model):
                return Batching(num_tokens, collate_joined, padded=False)
    is_known = 0 <= tokenizer.pad_token_id < num_embeddings(engine.module)
    pad_token_id = tokenizer.pad_token_id if is_known else 0  # masked, so that any id will do
    return Batching(num_tokens, lambda rows: collate(rows, pad_token_id))


def keeps_documents_apart(module: Any, training: TrainingConfig, *, recomputes: bool) -> bool:
    """Whether documents that are packed into a row will not see each other in training; on all ranks together.

    The loaded model, on its way to its engine, is tried with what :func:`text_batching` will give it.
    """
    was_training = module.training
    module.eval().to(distributed.device())
    joins = distributed.device().type == "cpu" and not recomputes and reads_documents(module)
    keeps = joins or reads_packed(module, num_rows=min(2, training.per_device_train_batch_size))
    module.train(was_training)
    return not distributed.all_reduce_max(int(not keeps))


def num_embeddings(module: Any) -> int:
    """Token ids that a language model has an embedding for; also where ZeRO-3 has taken its weights apart."""
    weight = module.get_input_embeddings().weight
    return int(getattr(weight, "ds_shape", weight.shape)[0])


def num_tokens(row: TokenRow) -> int:
    """Tokens of a row."""
    return len(row.tokens)
