"""How long a run's units of work take here: each is done once or twice, at full size where the time allows."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, PreTrainedModel

from raft import distributed
from raft.config import LoraConfig, ModelConfig, TrainingConfig
from raft.data.batching import Batch, PairBatch
from raft.engine.engine import Engine, LossFn
from raft.models.loading import DTYPES, cast
from raft.models.lora import adapt
from raft.models.scoring import ScoringModel, use_float32_head
from raft.planning.estimate import Work
from raft.planning.report import WIDTH, duration
from raft.precision import StoredDtype
from raft.rollout.sampler import generate
from raft.rollout.sampling import Sampling

Seconds = dict[str, float]
TOKENS = 3  # drawn after the first one


class Probe:
    """Times units of work within a budget.

    Attributes:
        seconds: of each unit.
        rough: units that were done with fewer rows, and their time multiplied.
    """

    def __init__(self, budget: float) -> None:
        self._end = time.perf_counter() + budget
        self.seconds: Seconds = {}
        self.rough: list[str] = []

    @contextmanager
    def timed(self, unit: str) -> Iterator[None]:
        """Take the time of what is inside."""
        begin = time.perf_counter()
        yield
        self.seconds[unit] = time.perf_counter() - begin

    def at_size(self, unit: str, work: Callable[[int], object], size: int) -> None:
        """Time ``work(size)``, or as much of it as half of the time that is left allows, and multiply."""
        work(1)  # what libraries do at first use
        with self.timed(unit):
            work(1)
        left = self._end - time.perf_counter()
        part = max(1, min(size, int(left / 2 / self.seconds[unit])))
        if part > 1:
            with self.timed(unit):
                work(part)
        if part < size:
            self.rough.append(unit)
        self.seconds[unit] *= size / part


def probe(
    shape: Any,
    model: ModelConfig,
    lora: LoraConfig,
    training: TrainingConfig,
    sizes: Mapping[str, int],
    *,
    dtype: StoredDtype,
    loss_fn: LossFn | None,
    batch: Callable[[int], Batch | PairBatch],
    budget: float,
) -> Probe:
    """Time loading, a chunk of samples, a batch of scores, a micro-batch and a step, as far as there are any.

    The weights are random: a model of that shape takes as long as the real one.

    Args:
        sizes: of the plan.
        loss_fn: None trains a classifier of scores, whose loss it is.
        batch: rows -> micro-batch with values.
        budget: seconds, beside the making of the model.
    """
    torch.manual_seed(0)
    scores = loss_fn is None
    begin = time.perf_counter()
    module = _make(AutoModelForSequenceClassification if scores else AutoModelForCausalLM, shape)
    if scores:
        use_float32_head(module)
    adapted: Any = module
    if lora.use_lora:
        cast(module, DTYPES[dtype])
        options = {"task": "SEQ_CLS", "modules_to_save": ["score"]} if scores else {"task": "CAUSAL_LM"}
        adapted = adapt(module, lora, **options)
    engine = Engine(
        ScoringModel(adapted) if scores else adapted,
        training,
        total_steps=100,
        bf16=dtype == "bf16",
        gradient_checkpointing=model.gradient_checkpointing,
    )
    found = Probe(budget)  # the clock starts here: DeepSpeed's import alone may take as long
    found.seconds["loading"] = time.perf_counter() - begin
    if "sample_rows" in sizes:
        _sample(found, engine, shape, sizes)
        _score(found, engine, sizes)
    _train(found, engine, loss_fn or _pair_loss, batch, sizes["train_rows"])
    return found


def _make(auto_class: Any, shape: Any) -> PreTrainedModel:
    return auto_class.from_config(shape, dtype=torch.float32, attn_implementation=shape._attn_implementation)


class _NoEnd:
    """In place of a tokenizer: no token ends a response, so that each has its full length."""

    pad_token_id, eos_token_id = 0, -1


def _sample(found: Probe, engine: Engine, shape: Any, sizes: Mapping[str, int]) -> None:
    """The time of a chunk: the pass over its prompts, and ``room`` tokens at the pace of the first few."""
    k = -(-sizes["sample_rows"] // sizes["sample_prompts"])

    def draw(rows: int, tokens: int) -> None:
        prompts = [[1] * sizes["prompt_length"]] * -(-rows // k)
        uniforms = torch.from_numpy(np.random.default_rng(0).random((rows, tokens), dtype=np.float32))
        generate(policy, prompts, [i // k for i in range(rows)], uniforms, Sampling(max_tokens=tokens), _NoEnd())

    with engine.generating() as policy:
        found.at_size("prompts", lambda rows: draw(rows, 1), sizes["sample_rows"])
        found.at_size("tokens", lambda rows: draw(rows, 1 + TOKENS), sizes["sample_rows"])
    prompts, tokens = found.seconds.pop("prompts"), found.seconds.pop("tokens")
    found.seconds["chunk"] = prompts + max(0.0, tokens - prompts) / TOKENS * (sizes["room"] - 1)


def _score(found: Probe, engine: Engine, sizes: Mapping[str, int]) -> None:
    """A reward model of the policy's size: its body over whole texts."""
    length = sizes["prompt_length"] + sizes["room"]

    def score(rows: int) -> None:
        ids = torch.ones(rows, length, dtype=torch.long, device=distributed.device())
        policy(input_ids=ids, attention_mask=ids, use_cache=False, logits_to_keep=1)

    with engine.generating() as policy:
        found.at_size("batch", score, sizes["score_rows"])


def _train(found: Probe, engine: Engine, loss_fn: LossFn, batch: Callable[[int], Any], rows: int) -> None:
    step, original = Probe(0), engine.deepspeed.step

    def timed_step() -> None:
        with step.timed("step"):
            original()

    engine.deepspeed.step = timed_step
    found.at_size("micro-batch", lambda size: engine.train_step([batch(size)], loss_fn), rows)
    found.seconds["step"] = step.seconds["step"]
    if "micro-batch" not in found.rough:
        found.seconds["micro-batch"] = max(0.0, found.seconds["micro-batch"] - found.seconds["step"])


def _pair_loss(model: Any, batch: Any) -> tuple[torch.Tensor, dict[str, float]]:
    scores = model(batch.input_ids, batch.attention_mask, batch.segments)
    return scores.sum(), {}


PHASES = {"chunk": "sampling", "batch": "scoring", "micro-batch": "training", "step": "training"}


def totals(work: Work, seconds: Mapping[str, float]) -> dict[str, float]:
    """Seconds of each phase in an iteration, of an iteration, of what is done once, and of the run."""
    found: dict[str, float] = {}
    for unit, times in work.iteration.items():
        phase = PHASES[unit]
        found[phase] = found.get(phase, 0.0) + times * seconds.get(unit, 0.0)
    found["iteration"] = sum(found.values())
    found["once"] = sum(times * seconds.get(unit, 0.0) for unit, times in work.once.items())
    return found | {"run": found["once"] + work.num_iterations * found["iteration"]}


def describe(work: Work, found: Probe) -> list[str]:
    """The times as lines."""
    total = totals(work, found.seconds)
    rows = [
        (f"{name} of one {work.unit}", total[name]) for name in ("sampling", "scoring", "training") if name in total
    ]
    rows += [
        (f"one {work.unit}", total["iteration"]),
        ("loading and evaluation", total["once"]),
        ("the run", total["run"]),
    ]
    rough = {PHASES[unit] for unit in found.rough if unit in PHASES}
    notes = [f"{' and '.join(sorted(rough))}: timed on fewer rows and multiplied, so it may take less"] if rough else []
    title = "time, by a probe with random weights; metrics, files and plots come on top"
    return [title, *(f"  {name:<{WIDTH}}{duration(size):>12}" for name, size in rows), *notes]
