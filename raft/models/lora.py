"""LoRA adapters through peft: attach, load, merge. A wrong base model is refused."""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from raft import json_file
from raft.config import LoraConfig, ModelConfig
from raft.errors import UserError
from raft.models.loading import MODEL_FLAG, _load_model, cast, fingerprint, is_adapter
from raft.models.weights import shapes

FINGERPRINT_KEY = "base_model_fingerprint"
FINGERPRINT_FILE = "raft_adapter.json"
ADAPTER_WEIGHTS = "adapter_model.safetensors"
PREFIX = "base_model.model."  # of every name in an adapter's file


def refuse_stacking(model: ModelConfig, lora: LoraConfig) -> None:
    """Raise UserError for an adapter to be trained upon another one: peft would put it on the base below both."""
    if lora.use_lora and is_adapter(base := model.model_name_or_path):
        raise UserError(
            f"{MODEL_FLAG}: found the LoRA adapter {base}, allowed with --use_lora is a whole model, since peft knows "
            f"no adapter upon an adapter; run `raft merge --adapter {base} --output_dir MERGED` first and give MERGED."
        )


def attach(model: PreTrainedModel, config: LoraConfig, *, task: str, modules_to_save: list[str] | None = None) -> Any:
    """Freeze a model and put trainable adapters beside its linear layers.

    Args:
        task: peft's task type, ``"CAUSAL_LM"`` or ``"SEQ_CLS"``.
        modules_to_save: modules that are trained and saved whole, such as a score head.

    Raises:
        UserError: if a target module does not exist in the model.
    """
    base = fingerprint(model)
    adapted = adapt(model, config, task=task, modules_to_save=modules_to_save)
    adapted.raft_base_fingerprint = base
    return adapted


def adapt(model: PreTrainedModel, config: LoraConfig, *, task: str, modules_to_save: list[str] | None = None) -> Any:
    """:func:`attach` for a model whose weights nobody needs to recognise."""
    import peft

    targets: str | list[str] = config.lora_target_modules
    if targets == ["all-linear"]:
        targets = "all-linear"
    settings = peft.LoraConfig(
        task_type=task,
        r=config.lora_r,
        lora_alpha=config.lora_alpha,  # type: ignore[arg-type]  # peft scales by any number
        lora_dropout=config.lora_dropout,
        target_modules=targets,
        modules_to_save=modules_to_save,
        bias="none",
    )
    embedding = model.get_input_embeddings().weight
    tied = [name for name, module in model.named_modules() if getattr(module, "weight", None) is embedding]
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Model has `tie_word_embeddings=True`")  # refused below
            # Where experts are one parameter, peft gives it the rank of its own pattern, then seeks it among modules.
            warnings.filterwarnings("ignore", message="The following (rank|alpha)_pattern keys did not match")
            adapted: Any = peft.get_peft_model(model, settings)
    except ValueError as error:
        raise UserError(f"--lora_target_modules: {targets}: {error}") from error
    unknown = [name for name in config.lora_target_modules if targets != "all-linear" and not _is_among(name, adapted)]
    if unknown:
        raise UserError(f"--lora_target_modules: found {unknown[0]}, but the model has no module of that name.")
    if len(tied) > 1 and (both := set(tied) & set(adapted.base_model.targeted_module_names)):
        raise UserError(
            f"--lora_target_modules: found {min(both)}, whose weights are those of {min(set(tied) - both or tied)} as "
            "well in this model (tied embeddings): an adapter of one would change both once it is merged; leave it out."
        )
    return adapted


def _is_among(name: str, adapted: Any) -> bool:
    """Whether a module or parameter of that name was adapted."""
    found = [*adapted.base_model.targeted_module_names, *adapted.base_model.targeted_parameter_names]
    return any(f".{one}".endswith(f".{name}") for one in found)


def adapter_base(adapter: str, *, base: str | None = None) -> str:
    """Name or path of the model below an adapter: ``base`` if given, else what the adapter says."""
    name = base or _settings(adapter).get("base_model_name_or_path")
    if not name or not isinstance(name, str):
        raise UserError(f"{adapter}/adapter_config.json names no base_model_name_or_path; give the base model by flag.")
    return name


def adapter_task(adapter: str) -> str | None:
    """peft's task type of an adapter, such as ``"CAUSAL_LM"``; where it names none, what its weights are for."""
    task = _settings(adapter).get("task_type")
    if task is not None and not isinstance(task, str):
        raise UserError(f"{adapter}/adapter_config.json: task_type: found {type(task).__name__}, expected a text.")
    return task or ("SEQ_CLS" if _has_score_head(adapter) else "CAUSAL_LM")


def _settings(adapter: str) -> dict[str, Any]:
    return json_file.read_object(Path(adapter) / "adapter_config.json")


def refuse_headless_adapter(adapter: str, *, flag: str) -> None:
    """Raise UserError if an adapter of a reward model holds no score head: its scores would be random."""
    if not (Path(adapter) / ADAPTER_WEIGHTS).is_file():
        raise UserError(f"{flag}: {adapter} has no {ADAPTER_WEIGHTS}.")
    if not _has_score_head(adapter):
        raise UserError(
            f"{flag}: {adapter} holds no score head, so its scores would be random. "
            'A reward adapter is saved with modules_to_save=["score"].'
        )


def num_labels(adapter: str) -> int:
    """Outputs of the head that a reward adapter holds."""
    for key, shape in shapes(Path(adapter) / ADAPTER_WEIGHTS).items():
        if key.endswith((".score.weight", ".classifier.weight", ".classifier.out_proj.weight")) and shape:
            return shape[0]
    return 1


def _has_score_head(adapter: str) -> bool:
    weights = Path(adapter) / ADAPTER_WEIGHTS
    if not weights.is_file():
        return False
    return any(".score." in key or ".classifier." in key for key in shapes(weights))


def load_adapter(model: PreTrainedModel, adapter: str) -> Any:
    """Put a saved adapter on its base model, for inference.

    Raises:
        UserError: if the adapter was trained on other weights than these, does not fit their shapes, or its file has
            other matrices than its settings ask for.
    """
    import peft

    refuse_wrong_base(model, adapter)
    shapes(Path(adapter) / ADAPTER_WEIGHTS)  # there, whole, and no adapter_model.bin, which could run code
    config = peft.PeftConfig.from_pretrained(adapter)
    body_alone = config.task_type in ("CAUSAL_LM", None) and not hasattr(model, "prepare_inputs_for_generation")
    if body_alone:
        config.task_type = None  # a classifier on top of a fine-tuned language model: the body is all that is adapted
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Found missing adapter keys")
            adapted = peft.PeftModel.from_pretrained(model, adapter, config=config)
        # Once more, for what peft tells of the file's names nowhere else.
        names = getattr(model, "_checkpoint_conversion_mapping", None)
        report = adapted.load_adapter(adapter, adapted.active_adapter, key_mapping=names)
    except KeyError as error:
        name = error.args[0]
        raise UserError(f"{adapter}: {ADAPTER_WEIGHTS} lacks {name}, a module saved with the adapter.") from error
    except (RuntimeError, ValueError) as error:
        reason = str(error).strip().splitlines()
        raise UserError(f"{adapter}: the adapter does not fit this base model: {' '.join(reason[:2])}") from error
    checked = f"{PREFIX}{model.base_model_prefix}." if body_alone else ""
    missing = [key for key in report.missing_keys if key.startswith(checked) and ".lora_" in key]
    odd = [key for key in report.unexpected_keys if key.startswith(checked)]
    refuse_other_matrices(adapter, missing, odd, name=adapted.active_adapter)
    return adapted


def refuse_other_matrices(adapter: str, missing: Sequence[str], odd: Sequence[str], *, name: str) -> None:
    """Refuse an adapter whose file has other matrices than its settings and base model: it would add something else.

    Args:
        missing, odd: what peft tells that the file lacks, and that it has beside.
        name: of the adapter in the model, and in these keys; files have none.

    Raises:
        UserError: if there are any.
    """
    told = []
    missing, odd = (sorted(key.replace(f".{name}.", ".") for key in keys) for keys in (missing, odd))
    if missing:
        told.append(f"lacks {len(missing)} matri{'ces' if missing[1:] else 'x'} of the adapter, such as {missing[0]}")
    if odd:
        have = "matrices that have" if odd[1:] else "matrix that has"
        told.append(f"holds {len(odd)} {have} no place in this base model, such as {odd[0]}")
    if told:
        raise UserError(f"{adapter}: {ADAPTER_WEIGHTS} {', and '.join(told)}.")


def refuse_wrong_base(model: nn.Module, adapter: str) -> None:
    """Raise UserError if the adapter's record of its base model differs from ``model``; no record is no objection."""
    expected = recorded_fingerprint(adapter)
    if expected is None:
        return
    found = fingerprint(model)
    if expected != found:
        raise UserError(
            f"{adapter}: this adapter was trained on another base model: its base has fingerprint {expected}, "
            f"the given one has {found}."
        )


def recorded_fingerprint(adapter: str) -> str | None:
    """Fingerprint of the base model that an adapter was trained upon, or None where there is no record."""
    record = Path(adapter) / FINGERPRINT_FILE
    found = json_file.read_object(record).get(FINGERPRINT_KEY) if record.is_file() else None
    if not isinstance(found, str | None):
        raise UserError(f"{record}: {FINGERPRINT_KEY}: found {type(found).__name__}, expected a text.")
    return found


def load_merged(
    config: ModelConfig, auto_class: Any, *, base: str | None = None, dtype: torch.dtype, **options: Any
) -> Any:
    """Load base and adapter, merge them in fp32, and give the plain model in ``dtype``."""
    adapter = config.model_name_or_path
    base_config = ModelConfig(**{**vars(config), "model_name_or_path": adapter_base(adapter, base=base)})
    model = _load_model(auto_class, base_config, torch.float32, **options)
    merged = cast(load_adapter(model, adapter).merge_and_unload(), dtype)
    return merged.requires_grad_(True)  # peft freezes what is below an adapter; this is a model as any other


def write_fingerprint(directory: Path, value: str) -> None:
    """Record the base model's identity beside an adapter."""
    (directory / FINGERPRINT_FILE).write_text(json.dumps({FINGERPRINT_KEY: value}, indent=2) + "\n")


@torch.no_grad()
def merged_weights(model: Any) -> Iterator[tuple[str, torch.Tensor]]:
    """A language model's weights as its saved files would name them, one after the other, its adapter merged.

    The model stays as it is: merging in place and taking it back would round a bf16 base a little more each time.

    Args:
        model: a plain model, or a PEFT model whose active adapter is plain LoRA; whole weights.

    Raises:
        UserError: if the adapter is of parameters instead of layers, as for the experts of a mixture.
    """
    from peft.tuners.lora import LoraLayer

    adapter = getattr(model, "active_adapter", None) if hasattr(model, "peft_config") else None
    if adapter and (parameters := getattr(model.peft_config[adapter], "target_parameters", None)):
        raise UserError(
            f"target_parameters of the adapter: found {', '.join(parameters)}, allowed are none: only adapters of "
            "linear layers are merged into the weights that are handed over."
        )
    plain = model.get_base_model() if adapter else model
    layers: dict[str, Any] = {
        name: layer for name, layer in plain.named_modules() if adapter and isinstance(layer, LoraLayer)
    }
    for name, tensor in plain.state_dict().items():
        owner, _, leaf = name.rpartition(".")
        if "lora_" in name:
            continue
        layer = layers.get(owner.removesuffix(".base_layer"))
        if layer is not None:
            owner = owner.removesuffix(".base_layer")
            if leaf == "weight" and adapter in layer.scaling:
                tensor = (tensor.float() + layer.get_delta_weight(adapter).float()).to(tensor.dtype)
        yield (f"{owner}.{leaf}" if owner else leaf), tensor
