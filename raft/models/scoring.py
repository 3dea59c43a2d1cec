"""A sequence classifier as a reward model: one score a sequence, read at its last real token, in fp32."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from raft.config import HeadInit
from raft.errors import UserError
from raft.functional.branches import branch_attention, branch_ends, branch_positions
from raft.memory import is_out_of_memory
from raft.models.loading import attends_to_all, context_of
from raft.rollout.cache import behind


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


@torch.no_grad()
def initialize_head(classifier: Any, how: HeadInit) -> None:
    """Start a new ``score`` layer: at zero, near zero, or where transformers put it.

    ``small`` is normal with deviation 1 / (hidden size + 1), so that the first scores are small beside the 1 or so
    that tells responses apart after training. ``transformers`` has the deviation of all new weights (0.02 or 0.04).
    """
    if how == "transformers":
        return
    head = getattr(classifier, "score", None)
    if head is None:
        raise UserError(f"--score_head_init: found {how}, allowed is transformers: this model has no score layer.")
    if how == "zero":
        head.weight.zero_()
    else:
        head.weight.normal_(std=1 / (head.in_features + 1))


def has_score_head(classifier: Any) -> bool:
    """True for classifiers that put a ``score`` layer on one token, as those of decoders do; encoders pool."""
    return hasattr(classifier, "score")


# What may be applied to a classifier's outputs before one is read; the names are those of transformers' pipelines.
FUNCTIONS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "none": lambda outputs: outputs,
    "softmax": lambda outputs: outputs.softmax(-1),
    "log_softmax": lambda outputs: outputs.log_softmax(-1),
    "sigmoid": torch.sigmoid,
}


class ScoringModel(nn.Module):
    """Scores sequences with a transformers classifier, with or without LoRA.

    transformers' own forward looks for the last token that is not the pad id. Where pad and EOS are the same token
    that is the one before EOS; here the attention mask alone decides.

    Args:
        label: which of the outputs is the score.
        function_to_apply: to all outputs before, one of ``FUNCTIONS``.
        second_text_after: token id whose first occurrence in a row ends the first text of a pair, for encoders that
            want token types.
    """

    def __init__(
        self, model: Any, label: int = 0, function_to_apply: str = "none", second_text_after: int | None = None
    ) -> None:
        super().__init__()
        self.model = model
        self.label, self.function_to_apply, self.second_text_after = label, function_to_apply, second_text_after

    @property
    def classifier(self) -> Any:
        """The transformers model, below a PEFT wrapper where there is one."""
        return self.model.get_base_model() if hasattr(self.model, "get_base_model") else self.model

    @property
    def dtype(self) -> torch.dtype:
        """Precision of the body's weights, which need not be submodules here: see ``raft.models.shared_base``."""
        dtype: torch.dtype = self.classifier.dtype
        return dtype

    def forward(
        self, input_ids: torch.Tensor, attention_mask: torch.Tensor, segments: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Score sequences.

        Args:
            input_ids: (B, L).
            attention_mask: (B, L), 1 for real tokens, padding on either side.
            segments: (B, L) where a row holds two responses (see ``raft.functional.branches``): then there are 2B
                scores, first those of the chosen responses.

        Returns:
            (B,) or (2B,) in fp32.
        """
        classifier = self.classifier
        if not has_score_head(classifier):
            more = {}
            if self.second_text_after is not None:
                more["token_type_ids"] = _token_types(input_ids, self.second_text_after)
            return self._score(classifier(input_ids=input_ids, attention_mask=attention_mask, **more).logits)
        if segments is None:
            hidden = _body(classifier)(input_ids=input_ids, attention_mask=attention_mask, use_cache=False)
            ends = (attention_mask * torch.arange(1, attention_mask.shape[1] + 1, device=input_ids.device)).argmax(1)
        else:
            hidden = _branched(classifier, input_ids, segments)
            ends = branch_ends(segments)
        rows = torch.arange(len(input_ids), device=input_ids.device)
        return self._score(classifier.score(hidden.last_hidden_state[rows, ends]))

    def continuations(
        self,
        prefix_ids: torch.Tensor,
        prefix_mask: torch.Tensor,
        owners: torch.Tensor,
        tail_ids: torch.Tensor,
        tail_mask: torch.Tensor,
    ) -> torch.Tensor:
        """Score sequences that begin alike, what they begin with read once; for classifiers that ``can_continue``.

        Args:
            prefix_ids, prefix_mask: (P, L), padded on the left.
            owners: (B,), for every sequence its prefix.
            tail_ids, tail_mask: (B, M), the rest of each sequence, padded on the right.

        Returns:
            (B,) in fp32, as ``forward`` gives them for the whole sequences, up to rounding.
        """
        classifier = self.classifier
        hidden = _continued(classifier, prefix_ids, prefix_mask, owners, tail_ids, tail_mask)
        rows = torch.arange(len(tail_ids), device=tail_ids.device)
        return self._score(classifier.score(hidden[rows, tail_mask.sum(1) - 1]))

    def _score(self, outputs: torch.Tensor) -> torch.Tensor:
        """(..., labels) of any float type to the label's scores, flat, in fp32."""
        return FUNCTIONS[self.function_to_apply](outputs.float())[..., self.label].flatten()

    def gradient_checkpointing_enable(self, **options: Any) -> None:
        """Recompute activations in the backward pass."""
        self.model.gradient_checkpointing_enable(**options)


def _token_types(input_ids: torch.Tensor, separator: int) -> torch.Tensor:
    """(B, L): 0 up to the first separator of a row, 1 behind it."""
    ends = (input_ids == separator).long()
    return (ends.cumsum(1) - ends).clamp(max=1)


def _body(classifier: Any) -> Any:
    return getattr(classifier, classifier.base_model_prefix)


def _branched(classifier: Any, input_ids: torch.Tensor, segments: torch.Tensor) -> Any:
    """The body's output over rows with two responses each, which do not see each other."""
    allowed = branch_attention(segments)
    if classifier.config._attn_implementation == "eager":  # adds its mask to the attention logits
        dtype = next(classifier.parameters()).dtype
        allowed = torch.zeros_like(allowed, dtype=dtype).masked_fill_(~allowed, torch.finfo(dtype).min)
    return _body(classifier)(
        input_ids=input_ids, attention_mask=allowed, position_ids=branch_positions(segments), use_cache=False
    )


def _continued(
    classifier: Any,
    prefix_ids: torch.Tensor,
    prefix_mask: torch.Tensor,
    owners: torch.Tensor,
    tail_ids: torch.Tensor,
    tail_mask: torch.Tensor,
) -> torch.Tensor:
    """The body's hidden states (B, M, H) over tails, which see their prefixes."""
    body, positions = _body(classifier), (prefix_mask.cumsum(-1) - 1).clamp(min=0)
    prefixes = body(input_ids=prefix_ids, attention_mask=prefix_mask, position_ids=positions, use_cache=True)
    steps = torch.arange(tail_ids.shape[1], device=tail_ids.device)
    hidden: torch.Tensor = body(
        input_ids=tail_ids,
        attention_mask=torch.cat([prefix_mask[owners], tail_mask], dim=1),
        position_ids=prefix_mask.sum(-1)[owners, None] + steps,
        past_key_values=behind(prefixes.past_key_values, owners),
        use_cache=True,
    ).last_hidden_state
    return hidden


def _sees_whole_texts(classifier: Any) -> bool:
    """Whether the configuration says that every layer attends to all that went before, under any mask."""
    config = classifier.config
    takes_masks = config._attn_implementation in ("sdpa", "eager")
    return attends_to_all(config) and has_score_head(classifier) and takes_masks


@torch.no_grad()
def can_continue(classifier: Any) -> bool:
    """Whether a classifier in eval mode can read texts behind what they have in common.

    What configurations do not tell (positions that the model counts itself, recurrent layers) a try shows.
    """
    if not _sees_whole_texts(classifier):
        return False
    device = classifier.get_input_embeddings().weight.device
    prefix, tails = torch.tensor([[4, 5, 6]], device=device), torch.tensor([[7, 8], [9, 10]], device=device)
    owners, ones = torch.zeros(2, dtype=torch.long, device=device), torch.ones_like(tails)
    try:
        together = _continued(classifier, prefix, torch.ones_like(prefix), owners, tails, ones)
    except (RuntimeError, TypeError, ValueError, AttributeError) as error:  # no positions, or no such cache
        if is_out_of_memory(error):
            raise
        return False
    whole = torch.cat([prefix[owners], tails], dim=1)
    apart = _body(classifier)(input_ids=whole, attention_mask=torch.ones_like(whole), use_cache=False)
    return _alike(together, apart.last_hidden_state[:, 3:])


def _alike(one: torch.Tensor, other: torch.Tensor) -> bool:
    """Equality of hidden states up to the rounding of their precision."""
    tolerance = 1e-3 if one.dtype == torch.float32 else 5e-2
    return bool((one - other).float().norm() <= tolerance * other.float().norm())


@torch.no_grad()
def can_branch(classifier: Any) -> bool:
    """Whether a classifier in eval mode can score two responses in one row.

    It needs an attention that takes a mask of any shape (sdpa, eager), and every layer has to see the whole text.
    What configurations do not tell (positions that the model counts itself, recurrent layers) a try shows.
    """
    if not _sees_whole_texts(classifier):
        return False
    # A prompt and a rejected response of two tokens; the chosen one between them is longer than many a window.
    ids = torch.arange(min(300, context_of(classifier.config)), device=classifier.get_input_embeddings().weight.device)
    row, segments = (ids % 7 + 4)[None], torch.ones_like(ids)[None]
    chosen, rejected = row[:, :-2], torch.cat([row[:, :2], row[:, -2:]], dim=1)
    segments[:, :2], segments[:, -2:] = 0, 2
    try:
        together = _branched(classifier, row, segments).last_hidden_state[0, [-3, -1]]
    except (RuntimeError, TypeError, ValueError) as error:  # no mask of this shape, or no positions
        if is_out_of_memory(error):
            raise
        return False
    apart = [_body(classifier)(input_ids=ids, use_cache=False).last_hidden_state[0, -1] for ids in (chosen, rejected)]
    return torch.allclose(together, torch.stack(apart), rtol=1e-3, atol=1e-3)
