"""What the ranks of the engine tests run: one launch, many engines one after the other.

Starting Python and DeepSpeed takes seconds, a tiny engine and its four steps a fraction of one. So a launch gets a
list of cases, and writes what each of them did to a file for the tests to compare.
"""

from __future__ import annotations

import json
import logging
import random
import sys
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

PAD = 0
GLOBAL_BATCH = 8
NUM_STEPS = 4
LEARNING_RATE = 2e-3
WEIGHT_DECAY = 0.1
MAX_GRAD_NORM = 4.0  # amid the gradient norms of the four steps: some are clipped, one is not


@dataclass(frozen=True)
class Case:
    """One engine and what is done with it."""

    name: str
    stage: int = 0
    settings: str | None = None  # DeepSpeed JSON to use instead of one made of the stage
    accumulation: int = 1
    pass_cost: int = 64  # positions of padding that are worth another micro-batch
    joined: bool = False  # rows of a micro-batch are documents of one row
    dtype: str = "fp32"
    lora: bool = False
    lora_dropout: float = 0.0
    checkpointing: bool = False
    offload_optimizer: bool = False
    offload_param: bool = False
    max_grad_norm: float = MAX_GRAD_NORM
    schedule: str = "linear"
    warmup_ratio: float = 0.0
    generate_after: int | None = None
    export: bool = False
    poison: str | None = None  # what is not finite in step 2, on the last rank alone: "loss" or "gradient"
    nonfinite_steps: str = "skip"
    save_after: tuple[int, ...] = ()
    keep: int = 1
    load: str | None = None  # name of the case whose checkpoint to continue
    load_from: int | None = None  # number of ranks that wrote it, if another
    forget: bool = False  # Adam's moments, once it is loaded


def rows_of(seed: int, num_rows: int) -> list[Any]:
    """Rows whose lengths, and shares of targets, differ a lot."""
    from raft.data.encoding import TokenRow

    draw = random.Random(seed)
    rows = []
    for _ in range(num_rows):
        num_context, num_targets = draw.randint(1, 9), draw.choice([1, 2, 5, 14])
        tokens = [draw.randint(3, 300) for _ in range(num_context + num_targets)]
        rows.append(TokenRow(tokens, [False] * num_context + [True] * num_targets))
    return rows


def rounds() -> list[list[Any]]:
    """The rows of two rounds, which are trained on one after the other as the iterations of align are.

    That makes steps of 8 and 3 rows, then of 8 and 1. The second of two ranks has an empty micro-batch in step 2
    where it accumulates, and nothing at all in step 4.
    """
    return [rows_of(seed, num_rows) for num_rows, seed in ((11, 1), (9, 2))]


def training_config(case: Case, world_size: int, directory: Path) -> Any:
    """The flags of a case: the same global batch for each."""
    from raft.config import TrainingConfig

    zero: dict[str, Any] = {"stage": case.stage}
    if case.stage == 3:
        zero["stage3_param_persistence_threshold"] = 0  # else such small weights stay whole
    if case.offload_optimizer:
        zero["offload_optimizer"] = {"device": "cpu"}
    if case.offload_param:
        zero["offload_param"] = {"device": "cpu"}
    settings = directory / f"zero-{case.name}.json"
    settings.write_text(Path(case.settings).read_text() if case.settings else json.dumps({"zero_optimization": zero}))
    return TrainingConfig(
        per_device_train_batch_size=GLOBAL_BATCH // case.accumulation // world_size,
        gradient_accumulation_steps=case.accumulation,
        learning_rate=LEARNING_RATE,
        weight_decay=WEIGHT_DECAY,
        max_grad_norm=case.max_grad_norm,
        lr_scheduler_type=case.schedule,
        warmup_ratio=case.warmup_ratio,
        nonfinite_steps=case.nonfinite_steps,  # type: ignore[arg-type]
        max_nonfinite_steps=2,
        deepspeed=str(settings),
    )


def build(case: Case, model_directory: str, training: Any) -> Any:
    """The tiny model in an engine."""
    from raft.config import LoraConfig, ModelConfig
    from raft.engine.engine import Engine
    from raft.models.loading import load_causal_lm
    from raft.models.lora import attach

    torch.manual_seed(0)
    model: Any = load_causal_lm(ModelConfig(model_name_or_path=model_directory))
    if case.lora:
        settings = LoraConfig(use_lora=True, lora_r=4, lora_alpha=32.0, lora_dropout=case.lora_dropout)
        model = attach(model, settings, task="CAUSAL_LM")
    return Engine(
        model,
        training,
        total_steps=NUM_STEPS,
        bf16=case.dtype == "bf16",
        gradient_checkpointing=case.checkpointing,
    )


def state_of(engine: Any) -> dict[str, Any]:
    """What ``generating`` changes and must put back."""
    module = engine.module
    return {
        "training": module.training,
        "grad": torch.is_grad_enabled(),
        "checkpointing": any(getattr(m, "gradient_checkpointing", False) for m in module.modules()),
        "num_values": sum(p.numel() for p in module.parameters()),
        "hooks": sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in module.modules()),
        "outer_hooks": len(module._forward_hooks) + len(module._forward_pre_hooks),
    }


PROBE = torch.tensor([[5, 17, 200, 31, 8, 120, 44]])


def generate(engine: Any, rank: int) -> dict[str, Any]:
    """Use ``generating`` as the sampler does, and once with an exception."""
    engine.deepspeed.train()
    before = state_of(engine)
    with engine.generating() as module:
        inside = state_of(engine)
        # Ranks that run different numbers of forward passes must not wait for each other.
        for _ in range(1 + rank):
            tokens = module.generate(
                input_ids=PROBE, attention_mask=torch.ones_like(PROBE), max_new_tokens=6 + 3 * rank, do_sample=False
            )
        output = module(input_ids=PROBE, use_cache=True)
        split = module(input_ids=PROBE[:, -1:], past_key_values=module(PROBE[:, :-1], use_cache=True).past_key_values)
    caught = False
    try:
        with engine.generating():
            raise KeyError("a bug in a reward function")
    except KeyError:
        caught = True
    return {
        "before": before,
        "inside": inside,
        "after": state_of(engine),
        "caught": caught,
        "tokens": tokens,
        "logits": output.logits.float(),
        "cached_logits": split.logits.float(),
    }


def trained_weights(engine: Any) -> dict[str, torch.Tensor]:
    """The fp32 weights that the optimizer holds, whole, whatever the precision and ZeRO stage."""
    from deepspeed.utils import safe_get_full_fp32_param

    trained = {name: p for name, p in engine.module.named_parameters() if p.requires_grad}
    if engine.zero_stage:
        return {name: safe_get_full_fp32_param(p).detach().float().clone() for name, p in trained.items()}
    masters = [p for group in engine.optimizer.param_groups for p in group["params"]]
    return {name: p.detach().clone() for name, p in zip(trained, masters, strict=True)}


def moments(engine: Any, key: str, *, forget: bool) -> dict[str, torch.Tensor]:
    """One of Adam's moments, whole; it may be forgotten then."""
    from deepspeed.utils import safe_get_full_optimizer_state

    trained = {name: p for name, p in engine.module.named_parameters() if p.requires_grad}
    if engine.zero_stage:
        assert not forget
        if engine.zero_stage < 3:
            engine.optimizer._lazy_init_hp_params_optimizer_state()  # as its first step would
        return {name: safe_get_full_optimizer_state(p, key).detach().clone() for name, p in trained.items()}
    optimizer = getattr(engine.optimizer, "optimizer", engine.optimizer)  # bf16: DeepSpeed's is around torch's
    masters = [p for group in optimizer.param_groups for p in group["params"]]
    found = {name: optimizer.state[p][key].clone() for name, p in zip(trained, masters, strict=True)}
    for p in masters if forget else ():
        optimizer.state[p][key].zero_()
    return found


class Spelling:
    """A tokenizer whose texts show the ids."""

    def decode(self, tokens: list[int]) -> str:
        return " ".join(map(str, tokens))


def train(engine: Any, case: Case, run: Any) -> Iterator[dict[str, float]]:
    """Both rounds, less the steps that a loaded checkpoint has taken."""
    from raft.data.batching import Batching, collate, collate_joined
    from raft.engine import loop
    from raft.engine.nonfinite import NonfiniteSteps

    loop.PASS_COST = case.pass_cost
    make_batch = collate_joined if case.joined else lambda some: collate(some, PAD)
    batching = Batching(lambda row: len(row.tokens), make_batch, padded=not case.joined)
    num_done = engine.num_steps
    for i, rows in enumerate(rounds()):
        yield from loop.train_steps(
            engine,
            rows,
            poisoned_loss(engine, case.poison),
            batching,
            epochs=range(1),
            seed=3,
            save=lambda: None,
            nonfinite=NonfiniteSteps(run, Spelling()),
            skip_steps=min(max(num_done - 2 * i, 0), 2),
        )


def poisoned_loss(engine: Any, poison: str | None) -> Any:
    """The loss function; in step 2, on the last rank, with a loss or a gradient that is not a number."""
    from raft import distributed
    from raft.models.forward import next_token_loss

    def loss_fn(model: Any, batch: Any) -> Any:
        loss, others = next_token_loss(model, batch)
        if torch.is_grad_enabled() and engine.num_steps == 1 and distributed.rank() == distributed.world_size() - 1:
            if poison == "loss":
                loss = loss + float("nan")  # its gradient is as it was
            elif poison == "gradient":
                loss.register_hook(lambda gradient: gradient * float("nan"))
        return loss, others

    return loss_fn


def run_case(case: Case, spec: dict[str, Any]) -> dict[str, Any]:
    """Build the case's engine, train, and give everything that happened."""
    from transformers import AutoTokenizer

    from raft import distributed
    from raft.engine.checkpoint import load_latest, save_checkpoint
    from raft.engine.export import export
    from raft.errors import UserError
    from raft.run_directory import RunDirectory

    directory, world_size = Path(spec["directory"]), distributed.world_size()
    engine = build(case, spec["model"], training_config(case, world_size, directory))
    found: dict[str, Any] = {"metrics": []}
    place = run_directory(directory, case.load or case.name, case.load_from or world_size)
    run = RunDirectory(place, writes=distributed.is_main())
    if case.load:
        state = load_latest(engine, run)
        found |= {"state": state, "resumed_at": engine.num_steps, "loaded": trained_weights(engine)}
        found["moments"] = {key: moments(engine, key, forget=case.forget) for key in ("exp_avg", "exp_avg_sq")}
    try:
        for metrics in train(engine, case, run):
            found["metrics"].append(metrics)
            if case.generate_after == engine.num_steps:
                found["generated"] = generate(engine, distributed.rank())
            if engine.num_steps in case.save_after:
                save_checkpoint(engine, run, engine.num_steps, {"cursor": [1, 2]}, keep=case.keep)
    except UserError as error:
        found["stopped"] = str(error)
    found["weights"] = trained_weights(engine)
    if case.export:
        with engine.generating() as module:
            found["logits"] = module(input_ids=PROBE).logits.float()
        tokenizer = AutoTokenizer.from_pretrained(spec["model"])
        target = export_directory(directory, case.name, world_size)
        export(engine, tokenizer, target, card="# A card\n", base_model=spec["model"])
    return found


def run_directory(directory: Path, name: str, world_size: int) -> Path:
    """Where a case keeps its checkpoints."""
    return directory / f"run-{name}-{world_size}"


def export_directory(directory: Path, name: str, world_size: int) -> Path:
    """Where a case exports its model."""
    return directory / f"export-{name}-{world_size}"


def main() -> None:
    """Run the cases of the specification whose path is the first argument; rank 0 writes the results."""
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    from raft import distributed

    spec = json.loads(Path(sys.argv[1]).read_text())
    distributed.initialize()
    results = {case["name"]: run_case(Case(**case), spec) for case in spec["cases"]}
    if distributed.is_main():
        torch.save(results, spec["results"])
    distributed.barrier()
    distributed.shutdown()


SCRIPT = "from tests.engine.scenarios import main\nmain()\n"


def launch(directory: Path, model: str, num_processes: int, cases: Sequence[Case]) -> dict[str, dict[str, Any]]:
    """Run cases on so many ranks, in new processes; gives what rank 0 found, by the cases' names."""
    from tests.conftest import run_ranks

    number = len(list(directory.glob("spec-*.json")))
    spec, results = directory / f"spec-{number}.json", directory / f"results-{number}.pt"
    values = {"directory": str(directory), "model": model, "results": str(results), "cases": list(map(asdict, cases))}
    spec.write_text(json.dumps(values))
    run_ranks(SCRIPT, num_processes, spec)
    return torch.load(results, weights_only=True)
