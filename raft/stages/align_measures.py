"""What an alignment run measures of its policy besides rewards: entropy, KL to the initial policy, perplexity."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

from raft import distributed
from raft.data.encoding import TokenRow, encode_rows
from raft.data.loading import HELD_OUT, load_rows, split_rows
from raft.data.rows import Row
from raft.data.templates import ConversationTemplate
from raft.engine.engine import Engine
from raft.errors import UserError
from raft.rollout.logprobs import initial_policy, perplexity, policy_statistics, response_logprobs
from raft.rollout.samples import Sample
from raft.stages.align_config import AlignConfig

ROWS_AT_ONCE = 8  # logits of two models over the whole vocabulary are in memory for these


class Measures:
    """Measures a policy on samples and on reference texts.

    Args:
        template: of the policy.
        reference: the initial policy, on every rank for a KL penalty, on rank 0 where ``config.measuring`` needs one;
            None where adapters can be switched off.
        context: tokens that the policy reads at most.
    """

    def __init__(
        self, config: AlignConfig, template: ConversationTemplate, reference: Any | None, context: int
    ) -> None:
        self.num_responses = config.measuring.kl_num_responses
        self.log_ratios_count = config.raft.kl_coefficient > 0
        self.batch_size = config.reward.texts_at_once(on_gpu=False)  # logits of every token: too large for more
        self.reference, self.pad_token_id = reference, template.tokenizer.pad_token_id
        self.texts = load_reference_texts(config, template, context)

    def of_iteration(self, policy: Any, samples: Sequence[Sample]) -> dict[str, float]:
        """``entropy/policy``, ``kl/per_token``, ``kl/per_response``: of the policy that drew the samples."""
        found = self._statistics(policy, samples)
        names = {"entropy": "entropy/policy", "kl": "kl/per_token", "kl_response": "kl/per_response"}
        return {names[name]: value for name, value in found.items()}

    def of_evaluation(self, policy: Any, samples: Sequence[Sample], name: str) -> dict[str, float]:
        """``held_out/entropy``, ``held_out/kl``, and ``held_out/perplexity`` where there are reference texts.

        Args:
            name: unique in the run.
        """
        found = {f"held_out/{key}": value for key, value in self._statistics(policy, samples).items()}
        if self.texts:
            options: dict[str, Any] = {"batch_size": ROWS_AT_ONCE, "pad_token_id": self.pad_token_id}
            found["held_out/perplexity"] = perplexity(policy, self.texts, name=f"perplexity/{name}", **options)
        return found

    def log_ratios(self, engine: Engine, samples: Sequence[Sample], iteration: int) -> list[float] | None:
        """log p(response) - log p0(response), p the policy and p0 the initial one; None where it is not asked for."""
        if not self.log_ratios_count:
            return None
        rows = [sample.token_row() for sample in samples]
        options: dict[str, Any] = {"batch_size": self.batch_size, "pad_token_id": self.pad_token_id}
        with engine.generating() as policy:
            current = response_logprobs(policy, rows, name=f"policy/{iteration}", **options)
            with initial_policy(policy, self.reference) as initial:
                before = response_logprobs(initial, rows, name=f"reference/{iteration}", **options)
        return [p - p0 for p, p0 in zip(current, before, strict=True)]

    def _statistics(self, policy: Any, samples: Sequence[Sample]) -> dict[str, float]:
        """On rank 0, which alone has the initial policy: these few rows would not keep several ranks busy."""
        if not self.num_responses:
            return {}
        found: dict[str, float] = {}
        if distributed.is_main():
            rows = [sample.token_row() for sample in spread_evenly(samples, self.num_responses)]
            found = policy_statistics(
                policy, self.reference, rows, batch_size=ROWS_AT_ONCE, pad_token_id=self.pad_token_id
            )
        return distributed.broadcast(found)


def spread_evenly(samples: Sequence[Sample], count: int) -> list[Sample]:
    """At most ``count`` of the samples, evenly spaced: of different prompts where there are enough."""
    count = min(count, len(samples))
    return [samples[i * len(samples) // count] for i in range(count)]


def load_reference_texts(config: AlignConfig, template: ConversationTemplate, context: int) -> list[TokenRow]:
    """Reference texts as the flags name them, encoded; the loss is on responses, of a plain text on all tokens.

    Args:
        context: tokens that the policy reads at most.
    """
    measuring, flag = config.measuring, "--perplexity_dataset_path"
    if not measuring.perplexity_num_texts:
        return []
    if measuring.perplexity_dataset_path:
        kinds = {"conversation", "preference", "text"}
        rows = load_rows(measuring.perplexity_dataset_path, kinds=kinds, flag=flag, splits=HELD_OUT).rows
    else:
        rows = _held_out_rows(config)
    found = list(_with_response(rows))[: measuring.perplexity_num_texts]
    limit = min(config.sampling.prompt_max_length + config.sampling.output_max_length, context)
    try:
        return encode_rows(found, template, max_length=limit).rows if found else []
    except UserError:  # not one response begins within the limit
        if not measuring.perplexity_dataset_path:
            return []
        raise UserError(
            f"{flag} {measuring.perplexity_dataset_path}: none of the first {len(found)} rows has a response within "
            f"{limit} tokens (--prompt_max_length and --output_max_length)."
        ) from None


def _held_out_rows(config: AlignConfig) -> list[Row]:
    """The rows that the held-out prompts are taken from, with their responses."""
    held_out, kinds = config.held_out, {"conversation", "preference", "prompt"}
    if held_out.eval_dataset_path:
        flag = "--eval_dataset_path"
        return load_rows(held_out.eval_dataset_path, kinds=kinds, flag=flag, splits=HELD_OUT).rows
    return split_rows(load_rows(config.raft.dataset_path, kinds=kinds).rows, held_out.validation_split_percentage)[1]


def _with_response(rows: Iterable[Row]) -> Iterable[Row]:
    """Texts and conversations; of a pair the chosen response, as a conversation."""
    for row in rows:
        if row.kind == "preference":
            answer = {"role": "assistant", "content": row.chosen or ""}
            yield replace(row, messages=(*row.messages, answer), chosen=None, rejected=None, margin=None)
        elif row.kind in ("conversation", "text"):
            yield row
