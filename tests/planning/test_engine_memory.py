"""Bytes of an engine, by hand: ten parameters of which four are trained."""

from __future__ import annotations

import pytest

from raft.functional.engine_memory import Engine, EngineBytes, engine_bytes, logits_bytes


def bytes_of(**options: int | bool) -> EngineBytes:
    return engine_bytes(Engine(10, 4, **options))  # type: ignore[arg-type]


def test_without_sharding_in_fp32() -> None:
    found = bytes_of()
    assert (found.weights, found.masters, found.moments, found.buffers) == (10 * 4, 0, 4 * 8, 0)
    assert found.resting == 72
    assert found.reducing == 4 * 4 + 4 * 4, "gradients, and all of them joined in one piece"
    assert found.stepping == 4 * 4
    assert found.building == 0, "moments come with the first step"


def test_without_sharding_in_bf16_masters_and_fp32_gradients_come_in() -> None:
    found = bytes_of(width=2)
    assert (found.weights, found.masters, found.moments) == (10 * 2, 4 * 4, 4 * 8)
    assert found.reducing == 4 * 2 + 4 * 2
    assert found.stepping == 4 * 2 + 4 * 4
    assert found.building == 4 * 4 + 4 * 8 + 4 * 2 + 4 * 4, "a whole step without real gradients"


@pytest.mark.parametrize("stage", [1, 2])
def test_optimizer_state_is_shared_by_processes(stage: int) -> None:
    alone, shared = bytes_of(stage=stage), bytes_of(stage=stage, num_processes=2)
    assert (alone.weights, alone.masters, alone.moments) == (40, 4 * 4, 4 * 8)
    assert (shared.weights, shared.masters, shared.moments) == (40, 2 * 4, 2 * 8)
    assert alone.reducing == shared.reducing == 4 * 4 + 4 * 4, "the bucket holds all gradients, and is copied"
    assert (alone.stepping, shared.stepping) == (4 * 4 + 4 * 4, 2 * 4 + 2 * 4)


def test_in_bf16_a_share_of_the_gradients_becomes_fp32_for_the_step() -> None:
    found = bytes_of(stage=2, width=2, num_processes=2)
    assert found.stepping == 2 * 2 + 2 * 2 + 2 * 4


def test_a_share_is_rounded_up() -> None:
    assert bytes_of(stage=1, num_processes=3).moments == 2 * 8


def test_weights_are_shared_at_stage_3_and_whole_while_sampling() -> None:
    found = bytes_of(stage=3, num_processes=2)
    assert (found.weights, found.masters, found.moments) == (5 * 4, 2 * 4, 2 * 8)
    assert found.gathered == 5 * 4
    assert bytes_of(stage=3).gathered == 0


def test_on_a_gpu_a_bucket_has_its_full_size() -> None:
    small = bytes_of(stage=2, bucket=100)
    whole = bytes_of(stage=2, bucket=100, whole_bucket=True)
    assert (small.bucket, whole.bucket) == (0, 400)
    assert whole.reducing == 400 + 4 * 4
    assert bytes_of(stage=3, bucket=100, whole_bucket=True).buffers == 4 * 4 + 400


def test_gradients_of_earlier_micro_batches_stay() -> None:
    assert bytes_of(accumulates=True).first_pass == 4 * 4
    assert bytes_of(stage=1, num_processes=2, accumulates=True).first_pass == 4 * 4 + 4 * 4, "all, and the bucket"
    assert bytes_of(stage=2, num_processes=2, accumulates=True).first_pass == 2 * 4, "the share"


def test_offloading_moves_the_optimizer_to_the_host() -> None:
    found = bytes_of(stage=2, offloads=True)
    assert found.host == 4 * 4 + 4 * 8
    assert (found.resting, found.stepping) == (40, 0)


def test_logits() -> None:
    assert logits_bytes(2, 3, 5, 4) == 2 * 3 * 5 * 4
