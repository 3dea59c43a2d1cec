from __future__ import annotations

import platform

import pytest
import torch

from raft.config import LoraConfig, ModelConfig, TrainingConfig
from raft.engine.build import build_policy
from raft.precision import multiplies_bfloat16, resolve_dtype


def machine(
    monkeypatch: pytest.MonkeyPatch, *, name: str = "x86_64", avx512_bf16: bool = False, amx: bool = False
) -> None:
    """A machine without a GPU."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(platform, "machine", lambda: name)
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: avx512_bf16, raising=False)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: amx, raising=False)


def test_an_old_cpu_computes_in_fp32(monkeypatch: pytest.MonkeyPatch) -> None:
    machine(monkeypatch)
    assert resolve_dtype("auto") == "fp32"
    machine(monkeypatch, name="AMD64")
    assert resolve_dtype("auto") == "fp32"


@pytest.mark.parametrize("feature", ["avx512_bf16", "amx"])
def test_a_cpu_that_multiplies_bfloat16_does(feature: str, monkeypatch: pytest.MonkeyPatch) -> None:
    machine(monkeypatch, **{feature: True})  # type: ignore[arg-type]
    assert resolve_dtype("auto") == "bf16"


def test_a_torch_that_can_not_tell_computes_in_fp32(monkeypatch: pytest.MonkeyPatch) -> None:
    machine(monkeypatch)
    monkeypatch.delattr(torch.cpu, "_is_avx512_bf16_supported")
    monkeypatch.delattr(torch.cpu, "_is_amx_tile_supported")
    assert resolve_dtype("auto") == "fp32"


@pytest.mark.parametrize(("capability", "expected"), [((7, 5), "fp32"), ((8, 0), "bf16"), ((9, 0), "bf16")])
def test_gpus_from_ampere_on_multiply_bfloat16(
    capability: tuple[int, int], expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine(monkeypatch)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: capability)
    assert resolve_dtype("auto") == expected


def test_what_is_asked_for_is_what_one_gets(monkeypatch: pytest.MonkeyPatch) -> None:
    machine(monkeypatch)
    assert (resolve_dtype("bf16"), resolve_dtype("fp32")) == ("bf16", "fp32")


def test_this_machine_has_an_answer() -> None:
    assert multiplies_bfloat16() in (True, False)


def test_training_keeps_attention_away_from_cudnn(tiny_model: str) -> None:
    torch.backends.cuda.enable_cudnn_sdp(True)
    policy = ModelConfig(model_name_or_path=tiny_model, dtype="fp32")
    build_policy(policy, LoraConfig(), TrainingConfig(), seed=0, total_steps=1)
    assert not torch.backends.cuda.cudnn_sdp_enabled()
    assert torch.backends.cuda.mem_efficient_sdp_enabled()  # what it runs by with a mask (tests/test_gpu.py)
