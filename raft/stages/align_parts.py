"""What a run of RAFT is put together from before its loop starts, and what it remembers between iterations."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from raft import distributed
from raft.data.encoding import TokenRow, refuse_unknown_ids
from raft.data.loading import HELD_OUT, load_rows, split_rows
from raft.data.templates import ConversationTemplate
from raft.engine.build import build_policy, num_embeddings
from raft.engine.engine import Engine
from raft.engine.loop import count_steps
from raft.errors import UserError
from raft.functional.stopping import Evaluation
from raft.inputs import digest
from raft.models.loading import DTYPES, MODEL_FLAG, load_causal_lm, refuse_beyond_context
from raft.models.shared_base import SharedBase
from raft.precision import resolve_dtype
from raft.rewards.rewards import Rewards, Scale, Scored
from raft.rewards.rules import DiscardConfig, discard_reason
from raft.rewards.source import Candidate
from raft.rollout.backend import Backend, load_backend
from raft.rollout.backend_config import ELSE_VLLM
from raft.rollout.fitting import (
    refuse_other_tokenizer,
    refuse_unknown_tokens,
    refuse_without_cache,
    rope_warning,
)
from raft.rollout.prompts import TOO_LONG, Prompt, encode_prompts
from raft.rollout.rollout import default_rows
from raft.rollout.samples import Sample
from raft.stages.align_config import AlignConfig
from raft.stages.common import initial_weights
from raft.stages.stopping import Judgement, StoppingConfig, evaluation, judge, read_history


@dataclass
class Progress:
    """Everything a resumed run needs to know besides the engine's state. Saved with every checkpoint."""

    iteration: int = 0
    cursor: int = 0  # prompts drawn so far
    best_iteration: int = 0
    best_rewards: list[float | None] = field(default_factory=list)  # of that policy, prompt by prompt
    evaluations: list[Evaluation] = field(default_factory=list)  # from the start on
    training_reward: float | None = None  # of the last iteration's samples
    stopped: dict[str, str] | None = None  # rule and reason of an early end
    scales: dict[str, Scale] = field(default_factory=dict)  # mean and deviation of the first held-out scores, by source
    # Of the iteration at hand: steps taken, weighted losses and weights so far. Not 0 within its training alone.
    steps_taken: int = 0
    loss_sum: float = 0.0
    loss_weight: float = 0.0
    seconds: dict[str, float] = field(default_factory=dict)  # by phase, over the whole run
    seconds_told: dict[str, float] = field(default_factory=dict)  # of these, what rows of metrics.jsonl have

    @property
    def at_the_start(self) -> bool:
        """Nothing was trained so far."""
        return not self.iteration and not self.steps_taken

    def restore(self, state: Mapping[str, Any], config: StoppingConfig) -> None:
        """Take over what a checkpoint remembers. Whether the run stops is judged anew: its flags may have changed."""
        known = {key: state[key] for key in vars(self) if key in state}
        known = {"seconds_told": known.get("seconds", {})} | known  # checkpoints of before it was kept
        self.__dict__.update(known | {"evaluations": read_history(known.get("evaluations", []))})
        self.stopped = judge(config, self.evaluations).stopped if self.evaluations else None

    def evaluated(self, metrics: Mapping[str, Any], samples: Sequence[Sample], config: StoppingConfig) -> Judgement:
        """Remember a held-out evaluation and judge it: is this the best policy so far, does the run stop here?"""
        rewards = [sample.reward for sample in samples]
        found = evaluation(self.iteration, metrics, self.training_reward, rewards, self.best_rewards)
        self.evaluations.append(found)
        judgement = judge(config, self.evaluations)
        self.best_iteration, self.stopped = judgement.best_iteration, judgement.stopped
        if self.best_iteration == self.iteration:
            self.best_rewards = rewards
        return judgement

    def before_iteration(self, num_prompts: int) -> dict[str, Any]:
        """What a run that resumes within this iteration starts from: the iteration's begin, and the steps taken."""
        return vars(self) | {"iteration": self.iteration - 1, "cursor": self.cursor - num_prompts}

    def count_step(self, loss: float, weight: float) -> None:
        """An optimizer step is over; ``loss`` is its mean. One that was skipped has no weight, and no loss."""
        self.steps_taken += 1
        if not weight:
            return
        self.loss_sum += loss * weight
        self.loss_weight += weight

    def end_training(self) -> float | None:
        """The iteration's training is over: its mean loss, None if ``--max_steps`` left no step to take."""
        loss = self.loss_sum / self.loss_weight if self.loss_weight else None
        self.steps_taken, self.loss_sum, self.loss_weight = 0, 0.0, 0.0
        return loss

    @contextmanager
    def timed(self, phase: str) -> Iterator[None]:
        """Count the time spent inside towards a phase."""
        begin = time.perf_counter()
        yield
        self.seconds[phase] = self.seconds.get(phase, 0.0) + time.perf_counter() - begin

    def new_seconds(self, *phases: str) -> dict[str, float]:
        """Metrics: seconds of these phases (of all but loading) that no row of metrics.jsonl has so far."""
        now = {phase: self.seconds[phase] for phase in phases or self.seconds if phase != "loading"}
        found = {f"seconds/{phase}": value - self.seconds_told.get(phase, 0.0) for phase, value in now.items()}
        self.seconds_told |= now
        return {name: value for name, value in found.items() if value > 0}


def load_prompts(config: AlignConfig, template: ConversationTemplate) -> tuple[list[Prompt], list[Prompt]]:
    """Prompts to draw from, and held-out ones; says how many were too long."""
    flag, held_out = "--dataset_path", config.held_out
    rows = load_rows(config.raft.dataset_path, kinds={"prompt"}).rows
    if held_out.eval_dataset_path:
        flag = "--eval_dataset_path"
        held_out_rows = load_rows(held_out.eval_dataset_path, kinds={"prompt"}, flag=flag, splits=HELD_OUT).rows
    else:
        rows, held_out_rows = split_rows(rows, held_out.validation_split_percentage)
    limit = config.sampling.prompt_max_length
    prompts, counts = encode_prompts(rows, template, max_length=limit, flag="--dataset_path")
    evaluated, counts_too = encode_prompts(held_out_rows, template, max_length=limit, flag=flag)
    evaluated = evaluated[: held_out.num_eval_prompts]
    if distributed.is_main():
        counted = counts + counts_too
        num_dropped = counted.pop(TOO_LONG, 0)
        print(f"{len(prompts)} prompts, {len(evaluated)} held out; {num_dropped} dropped: over {limit} tokens")
        for remark, count in counted.items():
            print(f"{count} of the prompts: {remark}")
        seen = {tuple(prompt.tokens) for prompt in prompts}
        if shared := sum(tuple(prompt.tokens) in seen for prompt in evaluated):
            print(f"warning: {shared} of the {len(evaluated)} held-out prompts are among those that are trained on")
    return prompts, evaluated


def digests(
    config: AlignConfig,
    engine: Engine,
    rewards: Rewards,
    prompts: Sequence[Prompt],
    held_out: Sequence[Prompt],
    texts: Sequence[TokenRow],
) -> dict[str, str]:
    """What a run is made from, by the flags that name it: see ``raft.inputs``."""

    def of(some: Sequence[Prompt]) -> str:
        return digest(part for one in some for part in (one.tokens, [one.prompt_id, one.messages, one.extra]))

    found = initial_weights(config, engine) | rewards.identities()
    if config.held_out.eval_dataset_path:
        found |= {"--dataset_path": of(prompts), "--eval_dataset_path": of(held_out)}
    else:
        found["--dataset_path"] = of([*prompts, *held_out])
    if texts:
        found["--perplexity_dataset_path"] = digest(part for text in texts for part in (text.tokens, text.trained))
    return found


def build_engine(config: AlignConfig) -> Engine:
    """The policy in its one engine; the schedule spans all iterations."""
    total_steps = count_steps(config.raft.raft_batch_size, config.training, num_rounds=config.raft.num_raft_iteration)
    return build_policy(config.model, config.lora, config.training, seed=config.run.seed, total_steps=total_steps)


def put_rewards(
    samples: Sequence[Sample], scored: Scored, log_ratios: Sequence[float] | None, kl_coefficient: float
) -> None:
    """Put the scores of all sources into samples, and the reward that they make, less the KL penalty."""
    for i, sample in enumerate(samples):
        sample.scores, sample.reward, sample.discarded = scored.of(i), scored.rewards[i], scored.excluded[i]
        if log_ratios is not None:
            sample.scores["log_ratio"] = log_ratios[i]
            sample.reward -= kl_coefficient * log_ratios[i]
        if not sample.discarded and not math.isfinite(sample.reward):
            sample.discarded = "reward is not finite"
        if sample.discarded:
            sample.reward = None


def discard(
    samples: Sequence[Sample], candidates: Sequence[Candidate], scored: Scored, rules: DiscardConfig
) -> None:
    """Take the reward from samples that a rule discards.

    Rules go by what the sources said, without the penalty: "at least 1" are the right answers.
    """
    for i, sample in enumerate(samples):
        if not sample.discarded and (reason := discard_reason(rules, candidates[i], scored.rewards[i])):
            sample.discarded, sample.reward = reason, None


def refuse_unfit(config: AlignConfig, engine: Engine, tokenizer: Any, prompts: Sequence[Prompt]) -> None:
    """Refuse a policy that responses can not be drawn from, and warn where they depend on their neighbours.

    Raises:
        UserError: if the policy has no embedding for a token of its tokenizer that is needed, or, without vLLM, is no
            model that the sampler can go on with token by token.
    """
    name, num_ids = config.model.model_name_or_path, num_embeddings(engine.module)
    named: dict[str, Any] = {"name": name, "where": MODEL_FLAG}
    refuse_other_tokenizer(tokenizer, num_ids, model=engine.module, stop=config.sampling.stop, **named)
    refuse_unknown_tokens((prompt.tokens for prompt in prompts), num_ids, **named)
    if config.backend.rollout_backend != "native":
        return
    with engine.generating() as policy:
        refuse_without_cache(policy, name=name, flag=MODEL_FLAG, advice=ELSE_VLLM)
    longest = max(len(prompt.tokens) for prompt in prompts) + config.sampling.output_max_length
    flags = "--prompt_max_length and --output_max_length"
    warning = rope_warning(engine.module.config, longest, name=name, flags=flags)
    if warning and distributed.is_main():
        print(warning, file=sys.stderr)


def refuse_texts(config: AlignConfig, engine: Engine, texts: Sequence[TokenRow]) -> None:
    """Raise UserError if a reference text has a token that the policy has no embedding for."""
    name, num_ids = config.model.model_name_or_path, num_embeddings(engine.module)
    refuse_unknown_ids(texts, num_ids, name=name, flag="--perplexity_dataset_path")


def settle_sampling(config: AlignConfig, engine: Engine, prompts: Sequence[Prompt]) -> None:
    """Decide how many responses are sampled at once where no flag says it; config.yaml then has it.

    Raises:
        UserError: if a prompt and its response may have more tokens than the model reads.
    """
    sampling = config.sampling
    longest = max(len(prompt.tokens) for prompt in prompts) + sampling.output_max_length
    refuse_beyond_context(engine.module.config, longest, flags="--prompt_max_length and --output_max_length")
    if sampling.inference_batch_size_per_device is None:
        width = sampling.prompt_max_length + sampling.output_max_length
        num_samples = config.raft.num_prompts * config.raft.samples_per_prompt
        dtype = DTYPES[config.model.dtype]
        rows = default_rows(engine.module.config, width, dtype, num_samples=num_samples)
        sampling.inference_batch_size_per_device = distributed.broadcast(rows)


def start_backend(config: AlignConfig, tokenizer: Any) -> Backend:
    """What draws responses; the last to take memory, since vLLM measures what is left."""
    sampling = config.sampling
    width = sampling.prompt_max_length + sampling.output_max_length
    return load_backend(config.backend, config.model, tokenizer, width=width, num_rows=sampling.rows_per_chunk)


def share_base(config: AlignConfig, engine: Engine) -> SharedBase | None:
    """The base below the policy's adapter, for reward models to be read on; None where each is loaded apart.

    Raises:
        UserError: if ``--share_base_model`` asks for what can not be.
    """
    wanted, name, objection = config.sharing.share_base_model, config.model.model_name_or_path, None
    if not config.lora.use_lora:
        objection = "a policy trained whole (without --use_lora) leaves no base model unchanged"
    elif engine.zero_stage == 3:
        objection = "under ZeRO-3 no rank holds the base model whole"
    if objection and wanted:
        raise UserError(f"--share_base_model: {objection}.")
    if objection and config.lora.use_lora and wanted is None and distributed.is_main():
        print(f"reward models are loaded apart from the policy: {objection}")
    if objection or wanted is False:
        return None
    dtype = resolve_dtype(config.model.dtype)
    return SharedBase(engine.module, engine.generating, name, dtype, required=bool(wanted))


def load_reference(config: AlignConfig) -> Any:
    """A frozen copy of the initial policy, where something needs one; None to read it with adapters switched off.

    The ranking needs it on every rank's device. For measuring, rank 0 keeps one in host memory.
    """
    lora, ranks = config.lora.use_lora, bool(config.raft.kl_coefficient)
    measures = config.measuring.kl_num_responses > 0 and distributed.is_main() and not lora
    switched_off = lora and config.sharing.share_base_model is not False
    if switched_off or not (ranks or measures):
        return None
    model = load_causal_lm(config.model, dtype=DTYPES[config.model.dtype]).eval().requires_grad_(False)
    return model.to(distributed.device()) if ranks else model


def policy_card(config: AlignConfig, name: str, iteration: int) -> str:
    """README.md of the policy: what it is and how it was made."""
    base, raft = config.model.model_name_or_path, config.raft
    return (
        f"---\nbase_model: {base}\ntags: [raft]\n---\n# {name}\n\n"
        f"{base} aligned by RAFT (arXiv 2304.06767), iteration {iteration} of {raft.num_raft_iteration}: "
        f"b={raft.raft_batch_size}, k={raft.k}, {raft.collection_strategy}, "
        f"ranked by {', '.join(spec.target for spec in config.reward.specs())}.\n"
    )
