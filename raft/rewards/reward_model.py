"""A reward model for scoring: a sequence classifier or a LoRA adapter, read as its contract says."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from raft import distributed, journal
from raft.bars import tqdm
from raft.config import ModelConfig
from raft.data.batching import pad_left, pad_right
from raft.data.prefixes import Continued, Plan, plan_reading
from raft.errors import UserError
from raft.journal import in_order
from raft.memory import in_halves
from raft.models.loading import DTYPES, Tokenizer, cast, fingerprint, is_adapter, load_classifier, load_config
from raft.models.loading import load_tokenizer as load_any_tokenizer
from raft.models.lora import adapter_base, load_adapter, num_labels, refuse_headless_adapter
from raft.models.scoring import ScoringModel, can_continue, has_score_head, use_float32_head
from raft.models.shared_base import SharedBase, borrow
from raft.precision import Dtype, resolve_dtype
from raft.rewards.contract import RewardContract
from raft.rewards.fitting import assume, describe, refuse_misfit, refuse_other_task, resolve_label, second_text_after
from raft.rewards.reading import Reader
from raft.rewards.self_test import self_test
from raft.rewards.source import Candidate

FLAG = "--reward_model_or_path"


class RewardModel:
    """Scores responses in batches of similar length; where it is less work, a prompt is read once for its responses.

    Args:
        model: in eval mode.
        tokenizer: its tokenizer, which need not be the policy's: candidates come as messages.
        contract: how texts become scores.
        batch_size: texts scored at once.
        flag: that the model was given by, for errors.
    """

    def __init__(
        self, model: ScoringModel, tokenizer: Tokenizer, contract: RewardContract, batch_size: int, flag: str = FLAG
    ) -> None:
        self.model, self.tokenizer, self.contract, self.batch_size = model, tokenizer, contract, batch_size
        self.flag = flag
        self.reader = Reader(tokenizer, contract)
        self.template = self.reader.template
        self._told = False

    def score(self, candidates: Sequence[Candidate], *, name: str, progress: str | None = "scoring") -> list[float]:
        """Score candidates on all ranks together: see :class:`raft.rewards.source.RewardSource`."""
        encoded = self._encode(candidates)
        prompts = [json.dumps(one.messages) for one in candidates]
        plan = plan_reading(encoded, prompts, batch_size=self.batch_size, sharing=self.shares_prompts)
        batches, hidden = plan.batches, progress is None or not distributed.is_main()

        def rows(number: int) -> list[list[int]]:
            return [encoded[i] for i in batches[number]]

        with tqdm(total=len(encoded), desc=progress, unit="text", leave=False, disable=hidden) as bar:
            found = journal.share(
                name,
                len(batches),
                lambda number: self._score_batch(encoded, prompts, plan, batches[number]),
                key=rows,
                on_done=lambda number: bar.update(len(batches[number])),
            )
        return in_order(batches, found)

    def _score_batch(
        self, rows: Sequence[Sequence[int]], prompts: Sequence[str], plan: Plan, batch: Sequence[int]
    ) -> list[float]:
        def score(places: range) -> list[float]:
            part = batch[places.start : places.stop]
            if plan.shared is None:
                return self.score_rows([rows[i] for i in part])
            return self.score_continued(plan.continued(rows, prompts, part))

        return in_halves(score, len(batch), what="texts")

    @cached_property
    def shares_prompts(self) -> bool:
        """Whether a prompt may be read once for its responses: where the model can on all ranks, which a try shows."""
        return all(distributed.all_gather(can_continue(self.model.classifier)))

    @torch.no_grad()
    def score_rows(self, rows: Sequence[Sequence[int]]) -> list[float]:
        """Scores of rows of token ids, in one batch, on this rank alone."""
        pad = pad_left if self.contract.padding_side == "left" else pad_right
        input_ids, mask = pad([list(row) for row in rows], self.tokenizer.pad_token_id or 0)
        device = next(self.model.parameters()).device
        scores = self.model(input_ids=input_ids.to(device), attention_mask=mask.to(device))
        return (self.contract.sign * scores).tolist()

    @torch.no_grad()
    def score_continued(self, batch: Continued) -> list[float]:
        """Scores of rows whose prompts go through the model once for all their responses, on this rank alone."""
        pad, device = self.tokenizer.pad_token_id or 0, next(self.model.parameters()).device
        prefixes, tails = pad_left(batch.prefixes, pad), pad_right(batch.tails, pad)
        scores = self.model.continuations(
            prefixes[0].to(device),
            prefixes[1].to(device),
            torch.tensor(batch.owners, device=device),
            tails[0].to(device),
            tails[1].to(device),
        )
        return (self.contract.sign * scores).tolist()

    def _encode(self, candidates: Sequence[Candidate]) -> list[list[int]]:
        """Token ids of candidates; says once that some are longer than what is read."""
        try:
            whole = self.reader.encode_all([(one.messages, one.response) for one in candidates])
            if not self._told and distributed.is_main() and (lost := self._lost(whole, candidates)):
                self._told = True
                print(lost, file=sys.stderr)
            return [
                self.reader.cut(tokens, one.messages, one.response)
                for tokens, one in zip(whole, candidates, strict=True)
            ]
        except UserError as error:
            raise UserError(f"{self.flag}: {error}") from error

    def _lost(self, whole: Sequence[Sequence[int]], candidates: Sequence[Candidate]) -> str | None:
        """A line for the screen on candidates that are longer than what is read; None if there are none."""
        limit, reader = self.contract.max_length, self.reader
        long = [(tokens, one) for tokens, one in zip(whole, candidates, strict=True) if len(tokens) > limit]
        if not long:
            return None
        said = f"{len(long)} of {len(whole)} texts have more than {limit} tokens"
        if self.contract.truncation_side == "right":
            return f"{said} and lose their end"
        num_answers = sum(reader.loses_prompt(tokens, one.messages) for tokens, one in long)
        if not num_answers:
            return f"{said} and lose the start of their prompt"
        return (
            f"{said}: {len(long) - num_answers} lose the start of their prompt, {num_answers} lose all of it and the "
            "start of their response"
        )


def load_reward_model(
    path: str,
    *,
    base: str | None,
    dtype: Dtype,
    batch_size: int,
    trust_remote_code: bool = False,
    label: int | str | None = None,
    said: Mapping[str, str] | None = None,
    contract_file: str | None = None,
    test: bool = True,
    shared: SharedBase | None = None,
    flag: str = FLAG,
) -> RewardModel:
    """Load a reward model onto this rank's device and test it.

    Args:
        path: directory or hub name of a sequence classifier, or directory of a LoRA adapter.
        base: model below an adapter; None takes the one the adapter names.
        dtype: compute precision; the head computes in fp32 either way.
        label: which output is the score: its index, or a text, as on the command line; None is what the contract says.
        said: further fields of the contract by name, which go before what it says.
        contract_file: contract to read the model by, instead of the one beside it.
        test: run the self-test of raft.rewards.self_test.
        shared: base model in memory, which a fitting adapter is read on instead of loading its own.
        flag: that names the model, for errors.

    Raises:
        UserError: if it can not be loaded, is no reward model, its base or head is missing, its contract does not fit
            it, or it fails the self-test.
    """
    contract = RewardContract.read(Path(contract_file)) if contract_file else RewardContract.load(path)
    config = ModelConfig(model_name_or_path=path, trust_remote_code=trust_remote_code)
    fingerprint = contract.base_model_fingerprint if contract else None
    borrowed = borrow(shared, path, base=base, dtype=dtype, fingerprint=fingerprint)
    if is_adapter(path):
        base = adapter_base(path, base=base)
        tokenizer = load_tokenizer(config, base, flag=flag)
        classifier = borrowed or load_adapted(config, base, contract, flag=flag)
    else:
        tokenizer = load_tokenizer(config, flag=flag)
        classifier = load_whole(config, flag=flag)
    contract = settle(contract, classifier, tokenizer, name=path, label=label, said=said or {}, flag=flag)
    after = second_text_after(contract, classifier, tokenizer, where=_where(flag, path))
    model = RewardModel(prepare(classifier, dtype, contract, after), tokenizer, contract, batch_size, flag)
    if test:
        self_test(model, name=path, flag=flag)
    return model


def load_tokenizer(config: ModelConfig, base: str | None = None, *, flag: str) -> Tokenizer:
    """The tokenizer beside a reward model; of an adapter that has none, its base model's."""
    if base is not None and not (Path(config.model_name_or_path) / "tokenizer_config.json").is_file():
        config = replace(config, model_name_or_path=base)
    return load_any_tokenizer(config, flag=flag, needs_eos=False)


def load_adapted(config: ModelConfig, base: str, contract: RewardContract | None, *, flag: str) -> Any:
    """Base and adapter merged into one classifier in fp32.

    Raises:
        UserError: if the adapter has no head, or was trained on another base.
    """
    adapter = config.model_name_or_path
    refuse_headless_adapter(adapter, flag=flag)
    below = replace(config, model_name_or_path=base)
    model = load_classifier(below, flag="--reward_base_model", num_labels=num_labels(adapter))
    expected = contract and contract.base_model_fingerprint
    if expected and (found := fingerprint(model)) != expected:
        raise UserError(
            f"{flag}: {adapter} was trained on another base model: its base has fingerprint {expected}, {base} has "
            f"{found}. Name the right one with --reward_base_model."
        )
    return load_adapter(model, adapter).merge_and_unload()


def load_whole(config: ModelConfig, *, flag: str) -> Any:
    """A sequence classifier in fp32, all of whose weights come from its file.

    Raises:
        UserError: if it has another head, or weights are missing or of another shape.
    """
    name = config.model_name_or_path
    settings = load_config(name, flag=flag, trust_remote_code=config.trust_remote_code)
    refuse_other_task(settings, where=f"{flag}: {name}")
    loaded: Any = load_classifier(config, flag=flag, output_loading_info=True, ignore_mismatched_sizes=True)
    classifier, report = loaded
    if missing := sorted(report["missing_keys"]):
        heads = [key for key in missing if "score" in key or "classifi" in key]
        what = f"its score head ({heads[0]})" if heads else f"{len(missing)} of its weights ({missing[0]}, ...)"
        unused = sorted(report["unexpected_keys"])
        hint = f" Its file has {unused[0]} instead, the head of another kind of model." if unused else ""
        raise UserError(f"{flag}: {name} lacks {what}, which would be newly initialised.{hint}")
    for key, in_file, in_model in sorted(report["mismatched_keys"]):
        raise UserError(
            f"{flag}: {name} does not fit its config.json: {key} is {tuple(in_file)} in the file, the configuration "
            f"asks for {tuple(in_model)}."
        )
    return classifier


def settle(
    contract: RewardContract | None,
    classifier: Any,
    tokenizer: Tokenizer,
    *,
    name: str,
    label: int | str | None,
    said: Mapping[str, str],
    flag: str,
) -> RewardContract:
    """The contract that a classifier is read by: the given one, or assumptions, which are printed in one line.

    Raises:
        UserError: if contract, label, tokenizer and classifier do not fit each other.
    """
    settled = replace(contract or assume(classifier, tokenizer), **dict[str, Any](said))
    where = _where(flag, name)
    if label is None:
        index = resolve_label(settled.label, classifier.config, name=where, source="label of its contract")
    else:
        index = resolve_label(label, classifier.config, name=where, by_text=True)
    settled = replace(settled, label=index)
    refuse_misfit(settled, classifier, tokenizer, where=where)
    if contract is None and distributed.is_main():
        print(f"{name} has no reward_model.json; assumed: {describe(settled, tokenizer)}", file=sys.stderr)
    return settled


def _where(flag: str, name: str) -> str:
    """How errors name a model: ``--reward PATH`` shows its name already."""
    return flag if " " in flag else f"{flag}: {name}"


def prepare(classifier: Any, dtype: Dtype, contract: RewardContract, second_text_after: int | None) -> ScoringModel:
    """A classifier for inference on this rank's device: body in ``dtype``, head in fp32.

    Encoders, whose head is more than a linear layer on one token, compute in fp32 throughout.
    """
    use_float32_head(classifier)
    if has_score_head(classifier):
        cast(classifier, DTYPES[resolve_dtype(dtype)])
        classifier.score.float()
    assert isinstance(contract.label, int), "settled"
    classifier.eval().requires_grad_(False)
    model = ScoringModel(classifier, contract.label, contract.function_to_apply, second_text_after)
    return model.to(distributed.device())
