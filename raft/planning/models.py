"""Models of a run on the meta device: from config.json, or from nothing but numbers."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSequenceClassification

from raft.config import LoraConfig, ModelConfig
from raft.errors import UserError
from raft.models.loading import (
    DTYPES,
    MODEL_FLAG,
    attention_of,
    cast,
    is_adapter,
    load_config,
    refuse_architecture,
    refuse_attention,
)
from raft.models.lora import adapt, adapter_base, refuse_stacking
from raft.models.scoring import ScoringModel, has_score_head, use_float32_head
from raft.precision import StoredDtype
from raft.rewards.fitting import refuse_other_task


def shape_of(config: ModelConfig, shape: list[str]) -> Any:
    """The configuration of the model to train: its config.json, or a Llama of the numbers in ``shape``.

    Args:
        shape: ``name=value`` as in a config.json of a Llama; where there are any, the model's directory is not read.

    Raises:
        UserError: if there is no configuration, or a number can not be read.
    """
    if not shape:
        path = config.model_name_or_path
        name = adapter_base(path) if is_adapter(path) else path
        found = load_config(name, trust_remote_code=config.trust_remote_code)
    else:
        values: dict[str, Any] = {}
        for one in shape:
            name, equals, value = one.partition("=")
            try:
                values[name] = json.loads(value)
            except json.JSONDecodeError:
                equals = ""
            if not equals or isinstance(values[name], str):
                raise UserError(f"--model_shape {one}: expected name=number, such as hidden_size=2048.")
        found = AutoConfig.for_model("llama", **values)
    found._attn_implementation = attention_of(config)
    return found


def language_model(shape: Any, config: ModelConfig, lora: LoraConfig, dtype: StoredDtype) -> Any:
    """The policy as its engine has it: in the compute precision, with trainable adapters if asked for."""
    return _trainable(_make(AutoModelForCausalLM, shape, config), config, lora, dtype, task="CAUSAL_LM")


def score_model(shape: Any, config: ModelConfig, lora: LoraConfig, dtype: StoredDtype) -> ScoringModel:
    """A reward model in training."""
    shape.num_labels, shape.pad_token_id = 1, 0
    classifier = _make(AutoModelForSequenceClassification, shape, config)
    use_float32_head(classifier)
    heads = ["score"]
    return ScoringModel(_trainable(classifier, config, lora, dtype, task="SEQ_CLS", modules_to_save=heads))


def _trainable(model: Any, config: ModelConfig, lora: LoraConfig, dtype: StoredDtype, **options: Any) -> Any:
    refuse_stacking(config, lora)
    if lora.use_lora:
        with torch.device("meta"):
            model = adapt(model, lora, **options)
    if config.gradient_checkpointing:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    return cast(model, DTYPES[dtype])


def frozen_classifier(
    path: str, base: str | None, dtype: StoredDtype, *, flag: str, trust_remote_code: bool
) -> ScoringModel:
    """A reward model for scoring: body in ``dtype``, head in fp32; an adapter is merged into its base.

    Raises:
        UserError: if it is no sequence classifier; ``flag`` is what named it.
    """
    name = adapter_base(path, base=base) if is_adapter(path) else path
    config = ModelConfig(model_name_or_path=name, trust_remote_code=trust_remote_code)
    shape = load_config(name, flag=flag, trust_remote_code=trust_remote_code)
    if is_adapter(path):
        shape.num_labels = 1
    else:
        refuse_other_task(shape, where=f"{flag}: {name}")
    classifier = _make(AutoModelForSequenceClassification, shape, config, flag)
    use_float32_head(classifier)
    if has_score_head(classifier):
        cast(classifier, DTYPES[dtype])
        cast(classifier.score, torch.float32)
    return ScoringModel(classifier.eval().requires_grad_(False))


def _make(auto_class: Any, shape: Any, config: ModelConfig, flag: str = MODEL_FLAG) -> Any:
    with torch.device("meta"), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return auto_class.from_config(
                shape,
                dtype=torch.float32,
                attn_implementation=shape._attn_implementation,
                trust_remote_code=config.trust_remote_code,
            )
        except ValueError as error:
            refuse_attention(error, shape._attn_implementation, config.model_name_or_path)
            refuse_architecture(error, auto_class, config.model_name_or_path, flag)
            raise


def has_weights(name: str) -> bool:
    """Whether a directory holds more of a model than its configuration."""
    return any(Path(name).glob("*.safetensors"))
