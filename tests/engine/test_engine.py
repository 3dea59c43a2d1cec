"""One trajectory, whatever the ZeRO stage, accumulation and number of processes; and a plain loop that has it too."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from raft.config import TrainingConfig
from raft.data.batching import plan_epoch
from raft.errors import UserError
from tests.engine.cases import (
    BF16,
    CHECKPOINTING,
    FULL,
    GENERATING,
    LORA,
    OFFLOAD,
    POISONED,
    SCHEDULES,
    SHIPPED,
    STOPPING,
    UNCLIPPED,
    Found,
    on_both,
)
from tests.engine.scenarios import (
    LEARNING_RATE,
    MAX_GRAD_NORM,
    NUM_STEPS,
    PROBE,
    WEIGHT_DECAY,
    Case,
    rounds,
    run_directory,
)

# In fp32 only the order of additions differs between the cases: 1e-7 of a value. Four steps of Adam, which divides
# by the gradient's own size, let that grow tenfold or so: 5e-7 is the most that was seen.
RELATIVE = 2e-6
# A weight moves by about one learning rate (2e-3) a step, so this is 5e-4 of a step.
WEIGHTS = 1e-6
# bfloat16 has 8 bits: a rounded product is off by up to 1/256.
RELATIVE_BF16 = 1e-2


def next_token_loss_of_a_row(model: Any, row: Any) -> torch.Tensor:
    """Summed loss of one row, by transformers' own forward pass and torch's own cross entropy: no padding at all."""
    tokens, trained = torch.tensor(row.tokens), torch.tensor(row.trained)
    logits = model(input_ids=tokens[None]).logits[0, :-1].float()
    return torch.nn.functional.cross_entropy(logits[trained[1:]], tokens[1:][trained[1:]], reduction="sum")


def plain_loop(
    model: Any, masters: dict[str, torch.Tensor], max_grad_norm: float = MAX_GRAD_NORM, take: Sequence[int] = range(4)
) -> dict[str, Any]:
    """The four steps in plain torch. ``masters`` are the fp32 weights by name: the model's own, or copies of them.

    Of the steps that are not in ``take``, everything is computed, but the optimizer does not take them.
    """
    from raft.data.batching import plan_epoch

    named = {name: p for name, p in model.named_parameters() if p.requires_grad}
    optimizer = torch.optim.AdamW(masters.values(), lr=LEARNING_RATE, betas=(0.9, 0.999), weight_decay=WEIGHT_DECAY)
    metrics = []
    for rows in rounds():
        for step in plan_epoch(len(rows), rows_per_step=8, seed=3, epoch=0):
            num_targets = sum(sum(rows[i].trained[1:]) for i in step)
            gradients = {name: torch.zeros_like(master) for name, master in masters.items()}
            total = 0.0
            for i in step:
                loss = next_token_loss_of_a_row(model, rows[i])
                total += loss.item()
                for name, gradient in zip(named, torch.autograd.grad(loss, list(named.values())), strict=True):
                    gradients[name] += gradient.float() / num_targets
            norm = torch.cat([gradient.flatten() for gradient in gradients.values()]).norm().item()
            scale = min(1.0, max_grad_norm / norm) if max_grad_norm else 1.0
            learning_rate = LEARNING_RATE * (1 - len(metrics) / NUM_STEPS)
            for name, master in masters.items():
                master.grad = gradients[name] * scale
            optimizer.param_groups[0]["lr"] = learning_rate
            if len(metrics) in take:
                optimizer.step()
            with torch.no_grad():
                for name, p in named.items():
                    p.copy_(masters[name])
            metrics.append(
                {
                    "loss": total / num_targets,
                    "grad_norm": norm,
                    "learning_rate": learning_rate,
                    "weight": float(num_targets),
                }
            )
    return {"metrics": metrics, "weights": {name: master.detach().clone() for name, master in masters.items()}}


def load_plain(tiny_model: str, dtype: torch.dtype = torch.float32) -> Any:
    """The tiny model by transformers alone."""
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(tiny_model, dtype=dtype)


@pytest.fixture(scope="module")
def reference(tiny_model: str) -> dict[str, Any]:
    """The trajectory of the plain loop in fp32."""
    model = load_plain(tiny_model)
    return plain_loop(model, dict(model.named_parameters()))


@pytest.fixture(scope="module")
def reference_bf16(tiny_model: str) -> dict[str, Any]:
    """The trajectory of the plain loop in bf16 with fp32 masters."""
    model = load_plain(tiny_model, torch.bfloat16)
    return plain_loop(model, {name: p.detach().float().requires_grad_() for name, p in model.named_parameters()})


def assert_same_metrics(found: dict[str, Any], expected: dict[str, Any], relative: float) -> None:
    """Loss, gradient norm, learning rate and weight agree step by step."""
    assert len(found["metrics"]) == len(expected["metrics"])
    for step, (mine, other) in enumerate(zip(found["metrics"], expected["metrics"], strict=True)):
        for name in ("loss", "grad_norm"):
            assert mine[name] == pytest.approx(other[name], rel=relative), f"{name} of step {step + 1}"
        assert mine["learning_rate"] == pytest.approx(other["learning_rate"], rel=1e-12)
        assert mine["weight"] == other["weight"]


def assert_same_weights(found: dict[str, Any], expected: dict[str, Any], absolute: float = WEIGHTS) -> None:
    """All trained weights agree after the last step."""
    assert found["weights"].keys() == expected["weights"].keys()
    for name, weight in found["weights"].items():
        torch.testing.assert_close(weight, expected["weights"][name], rtol=0, atol=absolute, msg=name)


def assert_similar_weights(found: dict[str, Any], expected: dict[str, Any]) -> None:
    """In bf16: where rounding flips the sign of a tiny gradient a weight goes the other way, so the mean counts."""
    for name, weight in found["weights"].items():
        difference = (weight - expected["weights"][name]).abs().mean().item()
        assert difference < 0.05 * LEARNING_RATE, name


def test_the_rows_would_show_an_average_of_averages(reference: dict[str, Any]) -> None:
    """Guards the data: rows with different numbers of targets, a step that two ranks can't halve, active clipping."""
    for rows in rounds():
        assert len({sum(row.trained[1:]) for row in rows}) > 2
    norms = [metrics["grad_norm"] for metrics in reference["metrics"]]
    assert min(norms) < MAX_GRAD_NORM < max(norms)
    assert [metrics["weight"] for metrics in reference["metrics"]] == [57, 8, 57, 1]


@pytest.mark.parametrize(("world_size", "name"), on_both([*FULL, *OFFLOAD]))
def test_the_trajectory_is_that_of_a_plain_loop(
    found: Found, reference: dict[str, Any], world_size: int, name: str
) -> None:
    assert_same_metrics(found[world_size][name], reference, RELATIVE)
    assert_same_weights(found[world_size][name], reference)


@pytest.mark.parametrize("name", [case.name for case in SHIPPED])
def test_every_settings_file_that_is_shipped_trains(found: Found, reference: dict[str, Any], name: str) -> None:
    assert_same_metrics(found[1][name], reference, RELATIVE)


@pytest.mark.parametrize(("world_size", "name"), on_both(BF16))
def test_the_trajectory_in_bf16_is_that_of_a_plain_loop_with_fp32_masters(
    found: Found, reference_bf16: dict[str, Any], world_size: int, name: str
) -> None:
    mine = found[world_size][name]
    assert_same_metrics(mine, reference_bf16, RELATIVE_BF16)
    assert_similar_weights(mine, reference_bf16)


def test_bf16_without_accumulation_does_not_depend_on_the_zero_stage(found: Found) -> None:
    first = found[1]["bf16-zero0-accumulation1"]
    for stage in (1, 2, 3):
        other = found[1][f"bf16-zero{stage}-accumulation1"]
        for mine, theirs in zip(other["metrics"], first["metrics"], strict=True):
            assert mine["loss"] == pytest.approx(theirs["loss"], rel=1e-3)
            assert mine["grad_norm"] == pytest.approx(theirs["grad_norm"], rel=5e-3)


@pytest.mark.parametrize(("world_size", "name"), on_both(LORA))
def test_lora_does_not_depend_on_stage_accumulation_and_ranks(found: Found, world_size: int, name: str) -> None:
    mine, expected = found[world_size][name], found[1]["lora-zero0"]
    assert_same_metrics(mine, expected, RELATIVE)
    assert_same_weights(mine, expected)
    assert all("lora_" in weight for weight in mine["weights"])
    assert mine["metrics"][1]["loss"] != pytest.approx(expected["metrics"][0]["loss"], rel=1e-2)  # it does train


@pytest.mark.parametrize("name", [case.name for case in CHECKPOINTING])
def test_gradient_checkpointing_changes_nothing(found: Found, name: str) -> None:
    expected = found[1]["lora-zero0" if "lora" in name else "zero0-accumulation1"]
    assert_same_metrics(found[1][name], expected, RELATIVE)
    assert_same_weights(found[1][name], expected)


@pytest.mark.parametrize(("world_size", "name"), on_both(GENERATING))
def test_training_goes_on_after_generating_as_if_nothing_had_been(found: Found, world_size: int, name: str) -> None:
    expected = found[1]["lora-zero0" if "lora" in name else "zero0-accumulation1"]
    assert_same_metrics(found[world_size][name], expected, RELATIVE)
    assert_same_weights(found[world_size][name], expected)


@pytest.mark.parametrize(("world_size", "name"), on_both(GENERATING))
def test_generating_gives_a_plain_module_and_puts_everything_back(found: Found, world_size: int, name: str) -> None:
    generated = found[world_size][name]["generated"]
    before, inside, after = generated["before"], generated["inside"], generated["after"]
    for what in ("training", "grad", "checkpointing"):
        assert before[what] is True
        assert inside[what] is False
    assert before["outer_hooks"] > 0
    assert inside["outer_hooks"] == 0  # they wait for the GPU, which a CUDA graph does not allow
    whole = sum(weight.numel() for weight in found[1]["zero0-accumulation1"]["weights"].values())
    assert inside["num_values"] >= whole
    assert (before["num_values"] == 0) == ("zero3" in name)  # between phases ZeRO-3 keeps its weights in pieces
    assert generated["caught"]
    assert after == before  # also after an exception, and no hook more than before


@pytest.mark.parametrize(("world_size", "name"), on_both(GENERATING))
def test_generating_has_a_cache_that_works(found: Found, world_size: int, name: str) -> None:
    generated = found[world_size][name]["generated"]
    torch.testing.assert_close(generated["cached_logits"][:, 0], generated["logits"][:, -1], rtol=1e-4, atol=1e-4)
    same = "generating-zero0-lora" if "lora" in name else "generating-zero0"
    assert generated["tokens"].shape == (1, PROBE.shape[1] + 6)
    assert torch.equal(generated["tokens"], found[1][same]["generated"]["tokens"])
    torch.testing.assert_close(generated["logits"], found[1][same]["generated"]["logits"], rtol=1e-4, atol=1e-4)


def poisoned_loop(tiny_model: str, case: Case, take: Sequence[int]) -> dict[str, Any]:
    """The plain loop in a case's precision, which takes only some of the steps."""
    model = load_plain(tiny_model, torch.bfloat16 if case.dtype == "bf16" else torch.float32)
    masters: dict[str, Any] = dict(model.named_parameters())
    if case.dtype == "bf16":
        masters = {name: p.detach().float().requires_grad_() for name, p in masters.items()}
    return plain_loop(model, masters, case.max_grad_norm, take)


@pytest.mark.parametrize(("world_size", "name"), on_both(POISONED))
def test_a_step_that_is_not_finite_is_left_out_on_all_ranks(
    found: Found, tiny_model: str, world_size: int, name: str
) -> None:
    """Weights, moments and learning rates of the others are those of a loop that computes the step and leaves it."""
    (case,) = [case for case in POISONED if case.name == name]
    mine, expected = found[world_size][name], poisoned_loop(tiny_model, case, take=(0, 2, 3))
    skipped = mine["metrics"].pop(1)
    del expected["metrics"][1]
    assert math.isnan(skipped["loss"])
    assert (skipped["weight"], skipped["skipped_steps"]) == (0.0, 1)
    assert [metrics.pop("skipped_steps", 0) for metrics in mine["metrics"]] == [0, 1, 1]
    assert_same_metrics(mine, expected, RELATIVE_BF16 if case.dtype == "bf16" else RELATIVE)
    (assert_similar_weights if case.dtype == "bf16" else assert_same_weights)(mine, expected)


@pytest.mark.parametrize(("world_size", "name"), on_both(STOPPING))
def test_a_step_that_is_not_finite_stops_all_ranks_and_changes_nothing(
    found: Found, tiny_model: str, engine_directory: Path, world_size: int, name: str
) -> None:
    (case,) = [case for case in STOPPING if case.name == name]
    mine, expected = found[world_size][name], poisoned_loop(tiny_model, case, take=(0,))
    assert len(mine["metrics"]) == 1
    (assert_similar_weights if case.dtype == "bf16" else assert_same_weights)(mine, expected)
    file = run_directory(engine_directory, name, world_size) / "nonfinite/step-000002.json"
    told = f"step 2: the {case.poison} is not finite (loss {'nan' if case.poison == 'loss' else ''}"
    assert mine["stopped"].startswith(told)
    assert f"so the step was not taken; its rows are in {file}. --resume goes on from the last" in mine["stopped"]
    written, (rows, _) = json.loads(file.read_text()), rounds()
    assert (written["step"], str(written["loss"]) == "nan") == (2, case.poison == "loss")
    assert str(written["grad_norm"]) != "nan" or case.poison == "gradient"
    step = plan_epoch(11, rows_per_step=8, seed=3, epoch=0)[1]
    assert sorted(row["row"] for row in written["rows"]) == sorted(step)
    assert {row["rank"] for row in written["rows"]} == set(range(world_size))
    for row in written["rows"]:
        assert (row["tokens"], row["trained"]) == (rows[row["row"]].tokens, rows[row["row"]].trained)
        assert row["tokens_text"] == " ".join(map(str, row["tokens"]))
    counts = [rows[row["row"]].num_targets for row in written["rows"]]
    mean = sum(row["loss"] * n for row, n in zip(written["rows"], counts, strict=True)) / sum(counts)
    relative = RELATIVE_BF16 if case.dtype == "bf16" else RELATIVE
    assert mean == pytest.approx(expected["metrics"][1]["loss"], rel=relative)


def test_a_max_grad_norm_of_0_does_not_clip_and_the_norm_is_still_reported(found: Found, tiny_model: str) -> None:
    model = load_plain(tiny_model)
    expected = plain_loop(model, dict(model.named_parameters()), max_grad_norm=0.0)
    for case in UNCLIPPED:
        assert_same_metrics(found[1][case.name], expected, RELATIVE)
        assert_same_weights(found[1][case.name], expected)


@pytest.mark.parametrize("case", SCHEDULES, ids=lambda case: case.name)
def test_learning_rates_are_those_of_transformers(found: Found, case: Case) -> None:
    from transformers import get_scheduler

    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=LEARNING_RATE)
    num_warmup = {0.0: 0, 0.25: 1, 0.5: 2}[case.warmup_ratio]
    scheduler = get_scheduler(case.schedule, optimizer, num_warmup, NUM_STEPS)
    expected = []
    for _ in range(NUM_STEPS):
        expected.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    assert [metrics["learning_rate"] for metrics in found[1][case.name]["metrics"]] == expected
    assert num_warmup == 0 or expected[0] == 0.0


def test_an_unknown_schedule_is_refused_with_the_known_ones() -> None:
    from raft.engine.engine import Engine

    engine = Engine.__new__(Engine)  # the schedule is made before the engine is whole
    engine.training, engine.total_steps = TrainingConfig(lr_scheduler_type="linaer"), 4
    with pytest.raises(UserError, match=r"--lr_scheduler_type.*linaer.*linear.*cosine"):
        engine._make_scheduler(torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.1))
