"""A sequence classifier as a reward model: one score a sequence, read at its last real token, in fp32."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.nn import functional


class Float32Head(nn.Linear):
    """A linear layer that computes in fp32 whatever its weights are stored in.

    bfloat16 has steps of 1/64 at scores between 2 and 4, so that many of a prompt's samples would tie.
    """

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        """Map (..., hidden size) of any float type to (..., labels) in fp32."""
        bias = None if self.bias is None else self.bias.float()
        return functional.linear(hidden.float(), self.weight.float(), bias)


def use_float32_head(classifier: Any) -> None:
    """Replace the ``score`` layer of a transformers classifier by one that computes in fp32, weights kept."""
    old = getattr(classifier, "score", None)
    if isinstance(old, nn.Linear) and not isinstance(old, Float32Head):
        new = Float32Head(old.in_features, old.out_features, bias=old.bias is not None, device=old.weight.device)
        new.weight = old.weight
        if old.bias is not None:
            new.bias = old.bias
        classifier.score = new


class ScoringModel(nn.Module):
    """Scores sequences with a transformers classifier, with or without LoRA.

    transformers' own forward looks for the last token that is not the pad id. Where pad and EOS are the same token
    that is the one before EOS; here the attention mask alone decides.
    """

    def __init__(self, model: Any, label: int = 0) -> None:
        super().__init__()
        self.model = model
        self.label = label

    @property
    def classifier(self) -> Any:
        """The transformers model, below a PEFT wrapper where there is one."""
        return self.model.get_base_model() if hasattr(self.model, "get_base_model") else self.model

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        """Score sequences.

        Args:
            input_ids: (B, L).
            attention_mask: (B, L), 1 for real tokens, padding on either side.

        Returns:
            (B,) in fp32.
        """
        classifier = self.classifier
        if not hasattr(classifier, "score"):
            return classifier(input_ids=input_ids, attention_mask=attention_mask).logits[:, self.label].float()
        body = getattr(classifier, classifier.base_model_prefix)
        hidden = body(input_ids=input_ids, attention_mask=attention_mask, use_cache=False).last_hidden_state
        last = (attention_mask * torch.arange(1, attention_mask.shape[1] + 1, device=input_ids.device)).argmax(1)
        return classifier.score(hidden[torch.arange(len(last), device=last.device), last])[:, self.label].float()

    def gradient_checkpointing_enable(self, **options: Any) -> None:
        """Recompute activations in the backward pass."""
        self.model.gradient_checkpointing_enable(**options)
