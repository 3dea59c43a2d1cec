"""What ``raft align`` will need, from its flags and prompts: the loop of ``raft.stages.align`` in bytes."""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import ceil
from pathlib import Path
from typing import Any

from raft.data.loading import HELD_OUT, load_rows, split_rows
from raft.functional.engine_memory import Engine, engine_bytes, logits_bytes
from raft.models.forward import next_token_loss
from raft.models.loading import DTYPES, MODEL_FLAG, is_adapter
from raft.planning import passes
from raft.planning.estimate import Phase, Plan, Work, training_phases
from raft.planning.models import frozen_classifier, language_model, shape_of
from raft.planning.parts import (
    WIDTHS,
    Ground,
    checkpoint_bytes,
    disk,
    engine_of,
    export_bytes,
    find_template,
    joins,
    num_steps,
    tokenizer_bytes,
)
from raft.planning.shapes import num_bytes
from raft.precision import StoredDtype, resolve_dtype
from raft.rewards.contract import RewardContract
from raft.rollout.backend_config import ELSE_VLLM
from raft.rollout.cache import cache_bytes
from raft.rollout.fitting import refuse_recurrent
from raft.rollout.prompts import encode_prompts
from raft.rollout.rollout import default_rows
from raft.stages.align_config import AlignConfig
from raft.stages.align_measures import ROWS_AT_ONCE
from raft.stages.plans import engine_parts, loading_phase

READING = ("evaluating", "sampling", "scoring", "measuring")
"""Phases without gradients."""
BYTES_OF_A_TOKEN = 10
"""Of samples.jsonl: a token's text and its id. 9.7 in the run of docs/drift.md, in English."""


@dataclass(frozen=True)
class Prompts:
    """Tokens of the prompts to draw from and of the held-out ones, most first; how many are held out.

    Where they are not measured, the limit is the length of all.
    """

    lengths: list[int]
    held_out: list[int]
    num_held_out: int
    measured: bool

    @property
    def longest(self) -> int:
        """Tokens of the longest to draw from."""
        return self.lengths[0]


@dataclass(frozen=True)
class Readers:
    """Models beside the policy, on the device.

    Attributes:
        classifiers: reward models, on the meta device.
        lengths: tokens that each reads of a text at most.
        bytes: of those that are apart from the policy, and of adapters beside its own.
        largest_in_fp32: of the reward models loaded apart; that is how they are read from disk.
        reference: bytes of a frozen copy of the policy.
    """

    classifiers: list[Any]
    lengths: list[int]
    bytes: int
    largest_in_fp32: int
    reference: int


def plan_align(config: AlignConfig, ground: Ground) -> Plan:
    """RAFT."""
    config = _until_stopped(config, ground)
    dtype = resolve_dtype(config.model.dtype)
    shape = shape_of(config.model, list(ground.model_shape))
    if config.backend.rollout_backend == "native":
        refuse_recurrent(shape, name=config.model.model_name_or_path, flag=MODEL_FLAG, advice=ELSE_VLLM)
    policy = language_model(shape, config.model, config.lora, dtype)
    engine, prompts = engine_of(policy, config.training, dtype, ground), _prompts(config, ground)
    readers = _readers(config, policy, engine, dtype)
    at_once = _rows_per_chunk(config, shape, dtype, ground)
    chunk = min(at_once, _num_samples(config))
    held, others = engine_bytes(engine), readers.bytes + readers.reference
    usages = _usages(config, policy, readers, prompts, at_once, ground)
    reading = held.resting + others + held.gathered
    export = export_bytes(
        engine, adapter=config.lora.use_lora, tokenizer=tokenizer_bytes(config.model.model_name_or_path)
    )
    loaded = held.weights + held.masters + held.buffers + readers.bytes
    phases = [
        loading_phase(config, engine, held),
        Phase("loading", loaded + max(readers.largest_in_fp32, readers.reference)),
        *(Phase(name, reading, usages[name]) for name in READING if name in usages),
        *training_phases(held, others, usages["training"]),
        Phase("saving", reading + export),
    ]
    rows, length, room = _micro_batch(config, prompts, ground)
    parts = engine_parts(engine, held) | {
        "reward models": readers.bytes,
        "reference": readers.reference,
        "key-value cache of sampling": chunk * cache_bytes(shape, prompts.longest + room, DTYPES[dtype]),
        "activations of a micro-batch": usages["training"].live_alone,
        "logits of a micro-batch": logits_bytes(rows, room, shape.get_text_config().vocab_size, WIDTHS[dtype]),
    }
    raft = config.raft
    return Plan(
        _facts(config, engine, prompts, chunk, rows, length),
        {name: size for name, size in parts.items() if size},
        phases,
        disk(
            _files(config, prompts, export),
            checkpoint=checkpoint_bytes(engine, policy),
            keep=raft.save_total_limit if raft.save_every_n_iterations else 0,
            export=export,
        ),
        _work(config, prompts, at_once, ground),
        {
            "sample_rows": chunk,
            "sample_prompts": _num_prompts(config, chunk),
            "prompt_length": prompts.longest,
            "room": room,
            "score_rows": _score_rows(config, ground),
            "train_rows": rows,
            "train_length": length,
            "train_columns": room,
        },
    )


def _until_stopped(config: AlignConfig, ground: Ground) -> AlignConfig:
    """The flags with the iterations that ``--max_steps`` allows, the one in which they end included."""
    raft, limit = config.raft, config.training.max_steps
    if limit < 0:
        return config
    allowed = ceil(limit / num_steps(raft.raft_batch_size, config.training, ground.num_processes))
    return replace(config, raft=replace(raft, num_raft_iteration=min(raft.num_raft_iteration, allowed)))


def _facts(config: AlignConfig, engine: Engine, prompts: Prompts, chunk: int, rows: int, length: int) -> list[str]:
    """What the plan is of, in words."""
    raft, room = config.raft, config.sampling.output_max_length
    facts = [
        f"{raft.num_raft_iteration} iterations: {raft.num_prompts} prompts, {_num_samples(config)} responses, "
        f"{raft.raft_batch_size} kept; {chunk} responses are sampled at once",
        f"prompts of up to {prompts.longest} tokens"
        + ("" if prompts.measured else " (the limit: without a tokenizer, they are not measured)")
        + f", responses of up to {room}; a micro-batch has {rows} rows of {length}",
        f"{engine.num_processes} process(es), ZeRO-{engine.stage}",
    ]
    if config.backend.rollout_backend == "vllm":
        facts.append("vLLM samples with memory and at a speed of its own; neither is in this plan")
    return facts


def _num_samples(config: AlignConfig) -> int:
    return config.raft.num_prompts * config.raft.samples_per_prompt


def _num_prompts(config: AlignConfig, rows: int) -> int:
    """Different prompts of a chunk."""
    return min(config.raft.num_prompts, -(-rows // config.raft.samples_per_prompt))


def _rows_per_chunk(config: AlignConfig, shape: Any, dtype: StoredDtype, ground: Ground) -> int:
    """Responses that are sampled at once at most: what a flag says, or what the run would settle on."""
    sampling = config.sampling
    width = sampling.prompt_max_length + sampling.output_max_length
    return sampling.inference_batch_size_per_device or default_rows(
        shape,
        width,
        DTYPES[dtype],
        num_samples=_num_samples(config),
        num_processes=ground.num_processes,
        memory=ground.memory,
    )


def _micro_batch(config: AlignConfig, prompts: Prompts, ground: Ground) -> tuple[int, int, int]:
    """Rows, tokens and response tokens of the largest micro-batch; of joined rows their mean."""
    room = config.sampling.output_max_length
    of_a_rank = ceil(config.raft.raft_batch_size / ground.num_processes)
    rows = min(config.training.per_device_train_batch_size, of_a_rank)
    longest = prompts.lengths[: rows if joins(config.model, ground) else 1]
    return rows, ceil(sum(longest) / len(longest)) + room, room


def _prompts(config: AlignConfig, ground: Ground) -> Prompts:
    """Prompts as the run would read them; their limit where there is no tokenizer."""
    held_out, limit = config.held_out, config.sampling.prompt_max_length
    rows = load_rows(config.raft.dataset_path, kinds={"prompt"}).rows
    if held_out.eval_dataset_path:
        flag = "--eval_dataset_path"
        others = load_rows(held_out.eval_dataset_path, kinds={"prompt"}, flag=flag, splits=HELD_OUT).rows
    else:
        flag = "--dataset_path"
        rows, others = split_rows(rows, held_out.validation_split_percentage)
    template = find_template(config.model, ground)
    if template is None:
        return Prompts([limit], [limit], len(others[: held_out.num_eval_prompts]), measured=False)
    drawn, _ = encode_prompts(rows, template, max_length=limit, flag="--dataset_path")
    evaluated = encode_prompts(others, template, max_length=limit, flag=flag)[0][: held_out.num_eval_prompts]
    lengths, others_lengths = (
        sorted((len(prompt.tokens) for prompt in found), reverse=True) for found in (drawn, evaluated)
    )
    return Prompts(lengths, others_lengths, len(evaluated), measured=True)


def _readers(config: AlignConfig, policy: Any, engine: Engine, dtype: StoredDtype) -> Readers:
    """Reward models and reference, shared with the policy where the run would share them."""
    lora, reward = config.lora.use_lora, config.reward
    may_share = lora and engine.stage < 3 and config.sharing.share_base_model is not False
    classifiers, lengths, held, largest = [], [], 0, 0
    for spec in reward.specs():
        if spec.kind != "model":
            continue
        base = spec.options.get("base", reward.reward_base_model)
        score_dtype = dtype if reward.reward_dtype == "auto" else reward.reward_dtype
        trusted = config.model.trust_remote_code
        classifier = frozen_classifier(spec.target, base, score_dtype, flag=spec.flag, trust_remote_code=trusted)
        contract = RewardContract.load(spec.target) or RewardContract()
        classifiers.append(classifier)
        lengths.append(contract.max_length)
        if may_share and is_adapter(spec.target) and reward.reward_dtype in ("auto", dtype):
            held += _adapter_bytes(spec.target)
            continue
        held += num_bytes(classifier)
        largest = max(largest, 4 * sum(one.numel() for one in classifier.parameters()) - num_bytes(classifier))
    ranks, measures = bool(config.raft.kl_coefficient), config.measuring.kl_num_responses > 0 and not lora
    switched_off = lora and config.sharing.share_base_model is not False
    copied = (ranks or measures) and not switched_off
    reference = engine.width * (engine.num_parameters - (engine.num_trained if lora else 0)) if copied else 0
    return Readers(classifiers, lengths, held, largest, reference)


def _adapter_bytes(path: str) -> int:
    return sum(file.stat().st_size for file in Path(path).glob("adapter_model.*"))


def _usages(
    config: AlignConfig, policy: Any, readers: Readers, prompts: Prompts, at_once: int, ground: Ground
) -> dict[str, passes.Usage]:
    """What each phase needs beside what is held, with so many responses at once at most."""
    sampling, room = config.sampling, config.sampling.output_max_length
    draw = {"temperature": sampling.temperature, "top_p": sampling.top_p, "top_k": sampling.top_k}
    options: dict[str, Any] = {"room": room, "draw": draw, "graphs": ground.on_gpu}
    chunk, held_out = min(at_once, _num_samples(config)), min(at_once, prompts.num_held_out)
    num_prompts = _num_prompts(config, chunk)
    drawn = passes.sampling(policy, prompts=num_prompts, rows=chunk, length=prompts.longest, **options)
    rows = _score_rows(config, ground)
    longest = prompts.longest + room
    read = [
        passes.scoring(one, rows, min(limit, longest))
        for one, limit in zip(readers.classifiers, readers.lengths, strict=True)
    ]
    if config.raft.kl_coefficient:
        rows = min(config.reward.texts_at_once(on_gpu=False), _num_samples(config))
        read.append(passes.logprobs(policy, rows, longest, room))
    found = {"sampling": drawn, "scoring": max(read, key=lambda one: one.resident, default=passes.Usage())}
    if held_out:  # one response a prompt; a CPU reads prompts of similar length together
        lengths = prompts.held_out[: 1 if ground.on_gpu else held_out]
        length = ceil(sum(lengths) / len(lengths))
        found["evaluating"] = passes.sampling(policy, prompts=held_out, rows=held_out, length=length, **options)
    if count := min(config.measuring.kl_num_responses, ROWS_AT_ONCE, _num_samples(config)):
        found["measuring"] = passes.statistics(policy, count, longest, room)
    batch = passes.text_batch(*_micro_batch(config, prompts, ground))
    return found | {"training": passes.training(policy, batch, next_token_loss)}


def _score_rows(config: AlignConfig, ground: Ground) -> int:
    """Texts scored at once."""
    return min(config.reward.texts_at_once(on_gpu=ground.on_gpu), _num_samples(config))


def _files(config: AlignConfig, prompts: Prompts, export: int) -> dict[str, int]:
    """Bytes by what they are, beside checkpoints."""
    raft, room = config.raft, config.sampling.output_max_length
    sample = BYTES_OF_A_TOKEN * room + 5 * prompts.longest + 300
    evaluations = _num_evaluations(config)
    return {
        "final, best": 2 * export,
        "samples.jsonl, selected.jsonl": sample
        * raft.num_raft_iteration
        * (_num_samples(config) + raft.raft_batch_size),
        "held_out": sample * evaluations * prompts.num_held_out,
        "journal (one iteration)": 8 * room * _num_samples(config),
        "metrics, plots, page": (2 << 20) + 4000 * raft.num_raft_iteration,
    }


def _num_evaluations(config: AlignConfig) -> int:
    """Held-out evaluations: at the start, at the end, and every so many iterations between."""
    total, every = config.raft.num_raft_iteration, config.held_out.eval_every_n_iterations
    return 2 + ((total - 1) // every if every else 0)


def _work(config: AlignConfig, prompts: Prompts, at_once: int, ground: Ground) -> Work:
    """Chunks, batches, micro-batches and steps: one process's share."""
    raft, n, samples = config.raft, ground.num_processes, _num_samples(config)
    steps, evaluations = num_steps(raft.raft_batch_size, config.training, n), _num_evaluations(config)

    def shares(num_items: int, at_once: int) -> int:
        return ceil(ceil(num_items / at_once) / n)

    batch = config.reward.texts_at_once(on_gpu=ground.on_gpu)
    return Work(
        once={
            "loading": 1,
            "saving": 1,
            "chunk": evaluations * shares(prompts.num_held_out, at_once),
            "batch": evaluations * shares(prompts.num_held_out, batch),
        },
        iteration={
            "chunk": shares(samples, at_once),
            "batch": shares(samples, batch),
            "micro-batch": steps * config.training.gradient_accumulation_steps,
            "step": steps,
        },
        num_iterations=raft.num_raft_iteration,
        unit="iteration",
    )
