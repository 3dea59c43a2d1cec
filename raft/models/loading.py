"""Models and tokenizers from a directory or hub name, with errors a user can act on."""

from __future__ import annotations

import hashlib
import re
import sys
import warnings
from collections.abc import Collection
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    GenerationMixin,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from raft import distributed, json_file
from raft.config import ModelConfig
from raft.errors import UserError
from raft.models.weights import refuse_damaged

DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32}
Tokenizer = PreTrainedTokenizerBase
MODEL_FLAG = "--model_name_or_path"
# What transformers says of an attention implementation that an architecture does not have.
UNSUPPORTED = re.compile(r"(\w+) does not support (an attention implementation|Flash Attention)")
# Settings of transformers configurations that limit how far back a layer sees.
WINDOWS = (
    "sliding_window", "attention_window", "attention_window_size", "window_size", "keep_window_size",
    "local_attention", "attention_chunk_size", "index_topk",
)  # fmt: skip


def quiet_libraries() -> None:
    """Leave the screen to the run: no loading bars, no advice about heads that are new on purpose."""
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    warnings.filterwarnings("ignore", category=FutureWarning, module="transformers|peft|deepspeed|torch")


def load_tokenizer(config: ModelConfig, *, flag: str = MODEL_FLAG, needs_eos: bool = True) -> Tokenizer:
    """Load the tokenizer of a model and make sure that it can pad.

    A tokenizer without a pad token borrows EOS: nothing here reads meaning from pad ids, only from masks.

    Raises:
        UserError: if it can not be loaded, or has no EOS token and ``needs_eos`` (encoders do without).
    """
    tokenizer = _load(AutoTokenizer, config.model_name_or_path, flag, trust_remote_code=config.trust_remote_code)
    if tokenizer.eos_token_id is None and needs_eos:
        raise UserError(f"{flag}: the tokenizer of {config.model_name_or_path} has no EOS token; responses need one.")
    if tokenizer.pad_token_id is None and tokenizer.eos_token_id is not None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def load_causal_lm(config: ModelConfig, *, dtype: torch.dtype = torch.float32) -> PreTrainedModel:
    """Load a language model on the CPU. A directory with a LoRA adapter gives the merged model."""
    return _load_model(AutoModelForCausalLM, config, dtype)


def load_classifier(
    config: ModelConfig, *, dtype: torch.dtype = torch.float32, flag: str = MODEL_FLAG, **options: Any
) -> PreTrainedModel:
    """Load a sequence classifier, or a language model with a newly initialised score head, on the CPU.

    Args:
        flag: what errors name as the source of the path.
        options: further ones of ``from_pretrained``.
    """
    return _load_model(AutoModelForSequenceClassification, config, dtype, flag=flag, **options)


def _load_model(
    auto_class: Any, config: ModelConfig, dtype: torch.dtype, *, flag: str = MODEL_FLAG, **options: Any
) -> Any:
    if is_adapter(config.model_name_or_path):
        # transformers would put the adapter beside the weights; whoever asks here wants one model, to build upon.
        from raft.models.lora import load_merged

        return load_merged(config, auto_class, dtype=dtype, **options)
    if Path(config.model_name_or_path).is_dir():
        refuse_damaged(Path(config.model_name_or_path), flag=flag)
    wants_report, options["ignore_mismatched_sizes"] = options.pop("output_loading_info", False), True
    model, report = _load(
        auto_class,
        config.model_name_or_path,
        flag,
        dtype=dtype,
        attn_implementation=attention_of(config),
        trust_remote_code=config.trust_remote_code,
        use_safetensors=True,
        output_loading_info=True,
        **options,
    )
    if wants_report:
        return model, report
    _refuse_other_shapes(model, report["mismatched_keys"], f"{flag}: {config.model_name_or_path}")
    _refuse_new_weights(model, report["missing_keys"], f"{flag}: {config.model_name_or_path}")
    return model


def attention_of(config: ModelConfig) -> str | None:
    """The attention to ask transformers for; None is its own choice: sdpa where an architecture has it, else eager."""
    return None if config.attn_implementation == "auto" else config.attn_implementation


def refuse_attention(error: Exception, asked: str | None, name: str) -> None:
    """Raise UserError if an error of transformers says that a model does not support the attention asked for."""
    if asked and (unsupported := UNSUPPORTED.match(str(error))):
        raise UserError(
            f"--attn_implementation: found {asked}, which {name} does not support ({unsupported[1]}); give "
            "--attn_implementation eager, or leave it at auto."
        ) from error


def _refuse_other_shapes(model: PreTrainedModel, mismatched: Collection[tuple[str, Any, Any]], where: str) -> None:
    """Refuse a model some of whose weights do not fit its configuration, or the number of outputs asked for."""
    found = sorted(mismatched)
    for key, in_file, in_model in found:
        if key.startswith(model.base_model_prefix) or isinstance(model, GenerationMixin):
            raise UserError(
                f"{where} does not fit its config.json: {key} is {tuple(in_file)} in the file, the configuration asks "
                f"for {tuple(in_model)}."
            )
    if found:
        (_, in_file, _), wanted = found[0], model.config.num_labels
        allowed = "a reward model with one output" if wanted == 1 else f"a classifier with {wanted}"
        raise UserError(
            f"{where} has a classification head of {in_file[0]} outputs; allowed are a language model, or {allowed}."
        )


def _refuse_new_weights(model: PreTrainedModel, missing: Collection[str], where: str) -> None:
    """Refuse a model some of whose weights are in no file: they would be random. A classifier's head may be new."""
    body = [key for key in missing if key.startswith(model.base_model_prefix) or isinstance(model, GenerationMixin)]
    if body:
        raise UserError(
            f"{where} lacks {len(body)} of the model's weights ({min(body)}, ...), which would be random; do "
            "weights and config.json belong together?"
        )


def refuse_architecture(error: Exception, auto_class: Any, name: str, flag: str) -> None:
    """Raise UserError if an error of transformers says that it has no model of the kind for an architecture."""
    if found := re.match(r"Unrecognized configuration class <class '[\w.]*?(\w+)'>", str(error)):
        kind = auto_class.__name__.removeprefix("AutoModelFor")
        raise UserError(f"{flag}: transformers has no {kind} model for {name} ({found[1]}).") from error


def _load(auto_class: Any, name: str, flag: str, **options: Any) -> Any:
    refuse_nowhere(name, flag)
    if options.get("trust_remote_code"):
        _announce_code(name)
    try:
        return auto_class.from_pretrained(name, **options)
    except MemoryError:
        raise
    except Exception as error:  # what libraries raise for files that are not what they seem shares no base class
        refuse_attention(error, options.get("attn_implementation"), name)
        refuse_architecture(error, auto_class, name, flag)
        kind = "" if isinstance(error, OSError | ValueError) else f"{type(error).__name__}: "
        said = (str(error).strip() or type(error).__name__).splitlines()[0][:300]
        hint = " That is --trust_remote_code; read the code first." if "trust_remote_code" in str(error) else ""
        raise UserError(f"{flag}: could not load {name}: {kind}{said}{hint}") from error


def refuse_nowhere(name: str, flag: str) -> None:
    """Refuse what is neither a directory nor a hub name, and the directory of a run in place of its models.

    Raises:
        UserError: naming the models of the run.
    """
    looks_local = Path(name).exists() or name.startswith((".", "/", "output_models/")) or name.count("/") != 1
    if looks_local and not Path(name).is_dir():
        hint = " Run `raft prepare` for the embedded model." if "SmolLM2-135M-Instruct" in name else ""
        raise UserError(f"{flag}: there is no directory {name}.{hint}")
    run = Path(name)
    if (run / "config.yaml").is_file() and not (run / "config.json").is_file():
        models = [str(run / one) for one in ("best", "final") if (run / one).is_dir()]
        there = f"; give {' or '.join(models)}" if models else " that has no model yet (best/, final/)"
        raise UserError(f"{flag}: {name} is the directory of a run{there}.")


@cache
def _announce_code(name: str) -> None:
    """Say, once for each model, that code which came with it may run."""
    settings = Path(name) / "config.json"
    if distributed.is_main() and (not settings.is_file() or "auto_map" in json_file.read_object(settings)):
        print(f"--trust_remote_code: running the Python code that comes with {name}, if any", file=sys.stderr)


def cast(model: Any, dtype: torch.dtype) -> Any:
    """Change the precision of a model's parameters, in place, and leave its buffers as they are.

    ``model.to(dtype)`` would round the frequencies of rotary position embeddings too: in bfloat16 the angles at token
    500 are off by up to 0.2 radian. transformers' own loading keeps them in fp32.
    """
    for parameter in model.parameters():
        parameter.data = parameter.data.to(dtype)
    return model


def load_config(name: str, *, trust_remote_code: bool = False, flag: str = MODEL_FLAG) -> Any:
    """Load a model's configuration alone."""
    return _load(AutoConfig, name, flag, trust_remote_code=trust_remote_code)


def context_of(config: Any) -> int:
    """Tokens that a model reads at most, by its transformers configuration."""
    return getattr(config.get_text_config(), "max_position_embeddings", None) or 10**9


def vocabulary_of(config: Any) -> int:
    """Token ids that a model has an embedding for, by its transformers configuration."""
    return getattr(config.get_text_config(), "vocab_size", None) or 10**9


def attends_to_all(config: Any) -> bool:
    """Whether every layer of a model sees all that went before, as far as its transformers configuration tells."""
    text = config.get_text_config()
    named = getattr(text, "layer_types", None) or getattr(text, "attention_layers", None)
    if named:  # what else is there may be for other layers, but sliding_window has been for all of them
        return set(named) <= {"full_attention", "global"} and not getattr(text, "sliding_window", None)
    return not any(getattr(text, window, None) for window in WINDOWS)


def refuse_beyond_context(config: Any, longest: int, *, flags: str) -> None:
    """Refuse sequences that a model has no positions for: some would fail in the middle of a run, others read nonsense.

    Args:
        longest: tokens of the longest sequence.
        flags: that limit its length, for the message.

    Raises:
        UserError: if it is longer than the model's context.
    """
    if longest > (context := context_of(config)):
        raise UserError(f"{flags}: a sequence may have {longest} tokens, the model reads {context}; set a lower limit.")


def is_adapter(name: str) -> bool:
    """True for a directory that holds a PEFT adapter instead of a whole model."""
    return (Path(name) / "adapter_config.json").is_file()


def brings_score_head(config: ModelConfig) -> bool:
    """True where a model or adapter is a reward model or classifier already; else its score head will be new."""
    if is_adapter(config.model_name_or_path):
        from raft.models.lora import adapter_task

        return adapter_task(config.model_name_or_path) == "SEQ_CLS"
    found = load_config(config.model_name_or_path, trust_remote_code=config.trust_remote_code)
    return any("SequenceClassification" in name for name in found.architectures or [])


def fingerprint(model: nn.Module, *, whole: bool = False) -> str:
    """Identity of a model's weights that does not depend on the precision they are stored in.

    SHA-256 over the name, shape and 16 evenly spaced values (rounded to bfloat16) of every parameter. LoRA weights
    and heads do not count, so the base model below an adapter has the fingerprint it has alone; they do for ``whole``.
    """
    digest = hashlib.sha256()
    for name, parameter in sorted(model.named_parameters() if whole else _base_parameters(model)):
        flat = parameter.detach().reshape(-1)
        num_sampled = min(16, flat.numel())
        sampled = flat[torch.arange(num_sampled) * (flat.numel() - 1) // max(1, num_sampled - 1)]
        digest.update(f"{name}{tuple(parameter.shape)}".encode())
        digest.update(sampled.to(torch.bfloat16).view(torch.int16).cpu().numpy().tobytes())
    return digest.hexdigest()[:16]


def _base_parameters(model: nn.Module) -> list[tuple[str, nn.Parameter]]:
    """Parameters of the transformer body under the names they have without PEFT wrappers."""
    found = []
    for name, parameter in model.named_parameters():
        plain = name.replace("base_model.model.", "").replace(".base_layer", "")
        head = plain.split(".")[0] in {"score", "classifier", "lm_head"} or "modules_to_save" in plain
        if not head and "lora_" not in plain and "original_module" not in plain:
            found.append((plain, parameter))
    return found
