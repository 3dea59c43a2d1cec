"""One copy of a base model's weights for a LoRA policy and the LoRA reward models trained upon the same base.

The policy's engine holds the base. A reward model's adapter is put beside the policy's one, frozen, after the engine
is built: optimizer, checkpoints and exports never see it. Reading a text switches adapters, runs the body, and
switches back. The score head stays outside, in fp32. (The reference needs no more than adapters switched off.)
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import nn

from raft import distributed
from raft.errors import UserError
from raft.models.loading import is_adapter
from raft.models.lora import (
    ADAPTER_WEIGHTS,
    FINGERPRINT_FILE,
    PREFIX,
    adapter_base,
    recorded_fingerprint,
    refuse_other_matrices,
)
from raft.models.scoring import Float32Head
from raft.precision import Dtype, StoredDtype

# Settings of peft in which plain LoRA adapters differ. Others (DoRA, PiSSA, ...) may compute something else, or change
# the base's own weights when they are put in place.
PLAIN = {
    "alpha_pattern", "auto_mapping", "base_model_name_or_path", "exclude_modules", "fan_in_fan_out", "inference_mode",
    "layers_pattern", "layers_to_transform", "lora_alpha", "lora_dropout", "modules_to_save", "peft_version", "r",
    "rank_pattern", "revision", "target_modules", "task_type", "use_rslora",
}  # fmt: skip


@dataclass(frozen=True)
class SharedBase:
    """The base model below a policy in training, for others to read. They and the policy take turns.

    Attributes:
        policy: the PEFT model in its engine, its own adapter active.
        inference: opens the policy for reading: eval mode, no gradients, put back afterwards (``Engine.generating``).
        name: name or path the base was loaded from.
        dtype: precision it computes in.
        required: whether it is an error if a reward model can not be read on it.
    """

    policy: Any
    inference: Callable[[], AbstractContextManager[Any]]
    name: str
    dtype: StoredDtype
    required: bool = False

    def objection(self, adapter: str, *, base: str | None, dtype: Dtype, fingerprint: str | None) -> str | None:
        """Why a reward model's scores on this base would not be its own, or None: see :func:`borrow`."""
        if not is_adapter(adapter):
            return "it is a whole model, not a LoRA adapter"
        base = adapter_base(adapter, base=base)
        if dtype not in ("auto", self.dtype):
            return f"it computes in {dtype}, the policy in {self.dtype}"
        found = self.policy.raft_base_fingerprint
        expected = [record for record in (recorded_fingerprint(adapter), fingerprint) if record is not None]
        if not expected and base != self.name and Path(base).resolve() != Path(self.name).resolve():
            return f"it is for {base}, and no {FINGERPRINT_FILE} says whether that equals {self.name}"
        if others := [record for record in expected if record != found]:
            return f"its base has fingerprint {others[0]}, the policy's has {found}"
        return _not_plain(adapter) or self._misfit(adapter)

    def _misfit(self, adapter: str) -> str | None:
        matrices, _ = _split(_read(adapter))
        modules = dict(self.policy.get_base_model().named_modules())
        missing = [name for name in map(_module_of, matrices) if name not in modules]
        return f"the policy has no {missing[0]}" if missing else None

    def classifier(self, adapter: str) -> BorrowingClassifier:
        """Put a reward model's adapter beside the policy's and give the classifier that reads with it."""
        name = f"reward_{len(self.policy.peft_config)}"
        matrices, head = _split(_read(adapter))
        model = self.policy.get_base_model()

        def body(**inputs: Any) -> Any:
            with self.inference(), active_adapter(self.policy, name):
                return getattr(model, model.base_model_prefix)(**inputs)

        with torch.random.fork_rng(devices=[]):  # initial weights are drawn, and replaced; training draws as ever
            _add(self.policy, name, adapter, matrices)
            classifier = BorrowingClassifier(body, model, head)
        _activate(self.policy, self.policy.active_adapter)  # as before: the policy's own is trained, no other is
        return classifier


class BorrowingClassifier(nn.Module):
    """A sequence classifier whose body is another model's, as :class:`raft.models.scoring.ScoringModel` reads one.

    The body is no submodule: what is done to a classifier (eval, freezing, casting, moving) does not reach it.

    Args:
        body: runs the other model's body on input_ids, attention_mask, ...; gives ``last_hidden_state``.
        model: the other model.
        head: ``weight`` (labels, hidden size) and perhaps ``bias`` (labels,).
    """

    base_model_prefix = "body"

    def __init__(self, body: Callable[..., Any], model: Any, head: dict[str, torch.Tensor]) -> None:
        super().__init__()
        num_labels, hidden_size = head["weight"].shape
        self.body, self.dtype, self.get_input_embeddings = body, model.dtype, model.get_input_embeddings
        self.config = deepcopy(model.config)
        self.config.num_labels = num_labels
        self.score = Float32Head(hidden_size, num_labels, bias="bias" in head)
        self.score.load_state_dict(head)


def borrow(
    shared: SharedBase | None, adapter: str, *, base: str | None, dtype: Dtype, fingerprint: str | None = None
) -> BorrowingClassifier | None:
    """A reward model read on a shared base, or None where it has to be loaded apart. Which, and why, is printed.

    Args:
        shared: None where there is nothing to share.
        adapter: directory of a reward model's adapter (anything else is loaded apart).
        base: model it would otherwise be loaded upon; None is the one that it names.
        dtype: precision asked for; auto is the policy's.
        fingerprint: of the weights below it by its contract; None is unknown.

    Raises:
        UserError: if it has to be loaded apart, and ``shared.required``.
    """
    if shared is None:
        return None
    reason = shared.objection(adapter, base=base, dtype=dtype, fingerprint=fingerprint)
    if reason and shared.required:
        raise UserError(f"--share_base_model: {adapter} can not be read on the policy's base model: {reason}.")
    if distributed.is_main():
        how = f"is loaded apart from the policy: {reason}" if reason else "shares the policy's base model"
        print(f"{adapter} {how}")
    return None if reason else shared.classifier(adapter)


@contextmanager
def active_adapter(model: Any, name: str) -> Iterator[None]:
    """Run a PEFT model's layers with another, frozen adapter; its own is active and trained again afterwards."""
    _activate(model, name, frozen=True)
    try:
        yield
    finally:
        _activate(model, model.active_adapter)


def _activate(model: Any, name: str, *, frozen: bool = False) -> None:
    # Below PeftModel, which goes on naming its own adapter as the active one: exports ask for that.
    model.base_model.set_adapter(name, inference_mode=frozen)


def _add(policy: Any, name: str, adapter: str, matrices: dict[str, torch.Tensor]) -> None:
    """Put a saved adapter's matrices beside those that are there, in the precision of the weights they adapt."""
    import peft

    settings = peft.PeftConfig.from_pretrained(adapter)
    # Its score head is kept apart, so below it there is what is below the policy's own.
    settings.task_type, settings.modules_to_save = policy.active_peft_config.task_type, None
    policy.add_adapter(name, settings)
    for key, parameter in policy.named_parameters():
        if f".{name}." in key:
            parameter.data = parameter.data.to(policy.get_base_model().dtype)
    report: Any = peft.set_peft_model_state_dict(policy, matrices, adapter_name=name)
    lacking = [key for key in report.missing_keys if f".{name}." in key]
    refuse_other_matrices(adapter, lacking, report.unexpected_keys, name=name)


def _not_plain(adapter: str) -> str | None:
    import peft

    if not (Path(adapter) / ADAPTER_WEIGHTS).is_file():
        return f"it has no {ADAPTER_WEIGHTS}"
    settings, plain = peft.PeftConfig.from_pretrained(adapter).to_dict(), peft.LoraConfig().to_dict()
    odd = [key for key, value in settings.items() if key not in PLAIN and value != plain.get(key)]
    if odd:
        return f"it is more than plain LoRA: {odd[0]} is {settings[odd[0]]}"
    matrices, head = _split(_read(adapter))
    if "weight" not in head:
        return "it holds no score head"
    odd = [name for name in matrices if not name.endswith((".lora_A.weight", ".lora_B.weight"))]
    return f"it holds more than low-rank matrices and a score head: {odd[0]}" if odd else None


def _read(adapter: str) -> dict[str, torch.Tensor]:
    return load_file(Path(adapter) / ADAPTER_WEIGHTS)


def _split(weights: dict[str, torch.Tensor]) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """An adapter's matrices by their names in the file, and its score head's tensors by their own."""
    head = f"{PREFIX}score."
    return (
        {name: tensor for name, tensor in weights.items() if not name.startswith(head)},
        {name.removeprefix(head): tensor for name, tensor in weights.items() if name.startswith(head)},
    )


def _module_of(name: str) -> str:
    """``base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight`` -> ``model.layers.0.self_attn.q_proj``."""
    return name.removeprefix(PREFIX).split(".lora_")[0]
