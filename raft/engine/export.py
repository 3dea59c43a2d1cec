"""Write models that plain ``transformers`` and ``peft`` load: safetensors, tokenizer, model card."""

from __future__ import annotations

import errno
import json
import struct
from pathlib import Path
from typing import Any

from torch import nn

from raft import distributed
from raft.data.turns import end_tokens
from raft.engine.engine import Engine
from raft.models.lora import write_fingerprint
from raft.run_directory import written_whole


def save_pretrained(module: nn.Module, tokenizer: Any, directory: Path, *, card: str, base_model: str) -> None:
    """Save a module with whole weights: the adapter alone where there is one, else the model.

    Args:
        module: a transformers or PEFT model (or a ScoringModel around one), e.g. from ``Engine.gathered``.
        directory: replaced in one rename once everything is written.
        card: text of README.md.
        base_model: what an adapter records as the model it belongs to.
    """
    model: Any = getattr(module, "model", module) if hasattr(module, "classifier") else module
    stop_where_responses_end(model, tokenizer)
    with written_whole(directory) as aside:
        if hasattr(model, "peft_config"):
            trained = model.active_adapter  # others may be read beside it: see raft.models.shared_base
            model.peft_config[trained].base_model_name_or_path = base_model
            model.save_pretrained(aside, selected_adapters=[trained], save_embedding_layers=False)
            write_fingerprint(aside, model.raft_base_fingerprint)
        else:
            model.save_pretrained(aside)
        tokenizer.save_pretrained(aside)
        (aside / "README.md").write_text(card, encoding="utf-8")
        _read_back(aside)


def stop_where_responses_end(model: Any, tokenizer: Any) -> None:
    """Let ``generate`` stop at every token that ends a response: the chat template's too, where it is not EOS."""
    settings = getattr(model, "generation_config", None)
    if settings is not None:
        ends = end_tokens(tokenizer, model)
        settings.eos_token_id = ends[0] if len(ends) == 1 else ends


def _read_back(directory: Path) -> None:
    """Weights are as long as their headers say, and there are some.

    Raises:
        OSError: if not.
    """
    files = list(directory.glob("*.safetensors"))
    if not files:
        raise OSError(errno.EIO, "no weights were written", str(directory))
    for file in files:
        with open(file, "rb") as stream:
            (length,) = struct.unpack("<Q", stream.read(8))
            header = json.loads(stream.read(length))
        end = max(tensor["data_offsets"][1] for name, tensor in header.items() if name != "__metadata__")
        if file.stat().st_size != 8 + length + end:
            raise OSError(errno.EIO, "weights were not written whole", str(file))


def export(engine: Engine, tokenizer: Any, directory: Path, *, card: str, base_model: str) -> None:
    """:func:`save_pretrained` of the engine's model, on all ranks together, whatever the ZeRO stage."""
    with engine.gathered() as module:
        if distributed.is_main():
            save_pretrained(module, tokenizer, directory, card=card, base_model=base_model)
    distributed.barrier()
