"""A policy in its engine, a reward model and the reference on one copy of the base: as if each had its own."""

from __future__ import annotations

import json
import shutil
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from raft.config import LoraConfig, ModelConfig, TrainingConfig
from raft.data.encoding import TokenRow
from raft.engine.build import build_policy
from raft.engine.engine import Engine
from raft.engine.export import export
from raft.errors import UserError
from raft.models.loading import DTYPES, load_causal_lm, load_tokenizer
from raft.models.lora import attach
from raft.models.shared_base import BorrowingClassifier, SharedBase, active_adapter, borrow
from raft.precision import Dtype, StoredDtype
from raft.rewards.contract import RewardContract
from raft.rewards.reward_model import RewardModel, load_reward_model
from raft.rewards.source import Candidate
from raft.rollout.logprobs import response_logprobs
from tests.adapters import build_adapter
from tests.conftest import SENTENCES, build_model

WORDS = " ".join(SENTENCES).split()
CANDIDATES = [
    Candidate([{"role": "user", "content": " ".join(WORDS[i : i + 1 + 3 * i % 11])}], " ".join(WORDS[2 * i :][: 7 * i]))
    for i in range(14)
]
ROWS = [TokenRow([5, 60 + i, 61, 62, 200, 7 + i], [False] * 2 + [True] * 4) for i in range(6)]


@pytest.fixture(scope="module")
def reward(tiny_model: str, tmp_path_factory: pytest.TempPathFactory) -> str:
    return build_adapter(tiny_model, tmp_path_factory.mktemp("adapters") / "reward", reward=True, seed=5)


def build_engine(model: str, dtype: StoredDtype = "fp32", **lora: Any) -> Engine:
    """A LoRA policy that has already learned something: its adapter is not zero."""
    engine = build_policy(
        ModelConfig(model_name_or_path=model, dtype=dtype),
        LoraConfig(use_lora=True, lora_r=4, **lora),
        TrainingConfig(),
        seed=0,
        total_steps=4,
    )
    generator = torch.Generator().manual_seed(1)
    for name, parameter in engine.module.named_parameters():
        if "lora_B" in name:
            parameter.data += 0.2 * torch.randn(parameter.shape, generator=generator).to(parameter.dtype)
    return engine


def base_of(engine: Engine, model: str, dtype: StoredDtype = "fp32", *, required: bool = False) -> SharedBase:
    return SharedBase(engine.module, engine.generating, model, dtype, required)


def load(reward: str, shared: SharedBase | None, dtype: Dtype = "fp32") -> RewardModel:
    return load_reward_model(reward, base=None, dtype=dtype, batch_size=4, shared=shared)


def scores(model: RewardModel) -> list[float]:
    return model.score(CANDIDATES, name="test", progress=None)


def logprobs(model: Any) -> list[float]:
    return response_logprobs(model, ROWS, batch_size=4, pad_token_id=0, name="test")


def changed(adapter: str, directory: Path, **settings: Any) -> str:
    """A copy of an adapter with other settings in its adapter_config.json."""
    file = Path(shutil.copytree(adapter, directory)) / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | settings))
    return str(directory)


def state(engine: Engine) -> dict[str, Any]:
    """All of a module that scoring might leave changed, but for weights."""
    module: Any = engine.module
    return {
        "trained": {name for name, parameter in module.named_parameters() if parameter.requires_grad},
        "training": {name for name, part in module.named_modules() if part.training},
        "adapter": module.active_adapter,
        "adapters": {str(part.active_adapters) for part in module.modules() if hasattr(part, "lora_A")},
    }


# ------------------------------------------------------------------------------------------- the same numbers


def test_scores_equal_the_separate_models(tiny_model: str, reward: str) -> None:
    separate = scores(load(reward, None))
    shared = scores(load(reward, base_of(build_engine(tiny_model), tiny_model)))
    assert shared == pytest.approx(separate, abs=2e-5)
    assert max(separate) - min(separate) > 1, "otherwise this would show nothing"


def test_bf16_scores_are_as_near_to_fp32_as_the_separate_models(tiny_model: str, reward: str) -> None:
    """Merged in fp32 and rounded once, or two bf16 products added: neither is exact. Scores here span 4."""
    exact = torch.tensor(scores(load(reward, None)))
    separate = torch.tensor(scores(load(reward, None, "bf16")))
    model = load(reward, base_of(build_engine(tiny_model, "bf16"), tiny_model, "bf16"), "auto")
    shared = torch.tensor(scores(model))
    errors = [float((found - exact).square().mean().sqrt()) for found in (separate, shared)]
    print(errors, float((shared - separate).abs().max()), float(exact.max() - exact.min()))
    assert errors[1] < 0.05
    assert float((shared - separate).abs().max()) < 0.1
    assert model.model.dtype == torch.bfloat16
    assert len(set(shared.tolist())) == len(CANDIDATES), "the head computes in fp32: no ties"


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_policy_and_reference_say_the_same_bit_for_bit(tiny_model: str, reward: str, dtype: StoredDtype) -> None:
    engine = build_engine(tiny_model, dtype)
    with engine.generating() as policy:
        alone = logprobs(policy)
    separate = load_causal_lm(ModelConfig(model_name_or_path=tiny_model), dtype=DTYPES[dtype]).eval()
    model = load(reward, base_of(engine, tiny_model, dtype), dtype)
    scores(model)
    with engine.generating() as policy:
        assert logprobs(policy) == alone
        with policy.disable_adapter():
            assert logprobs(policy) == logprobs(separate)
        assert logprobs(policy) == alone
    assert alone != pytest.approx(logprobs(separate), abs=0.1)


def test_two_reward_models_on_one_base(tiny_model: str, reward: str, tmp_path: Path) -> None:
    other = build_adapter(tiny_model, tmp_path / "other", reward=True, seed=6)
    shared = base_of(build_engine(tiny_model, lora_target_modules=["q_proj"]), tiny_model)
    models = [load(path, shared) for path in (reward, other)]
    for path, model in zip((reward, other), models, strict=True):
        assert scores(model) == pytest.approx(scores(load(path, None)), abs=2e-5)


# ------------------------------------------------------------------------------------------- nothing is left behind


def test_training_state_is_as_before(tiny_model: str, reward: str, tmp_path: Path) -> None:
    engine, separate = build_engine(tiny_model, lora_dropout=0.3), scores(load(reward, None))
    engine.deepspeed.train()
    before, random = state(engine), torch.get_rng_state()
    trained_with_dropout = changed(reward, tmp_path / "adapter", lora_dropout=0.3)
    model = load(trained_with_dropout, base_of(engine, tiny_model))
    loaded = state(engine)
    assert {name for name in loaded["training"] if ".reward_" not in name} == before["training"]
    assert {**loaded, "training": None} == {**before, "training": None}
    assert scores(model) == pytest.approx(separate, abs=2e-5)
    assert {name: value for name, value in state(engine).items() if name != "training"} == {
        name: value for name, value in before.items() if name != "training"
    }
    assert engine.module.training
    assert torch.equal(torch.get_rng_state(), random)
    assert not any(parameter.requires_grad for parameter in model.model.parameters())


def test_training_state_is_as_before_after_an_exception(
    tiny_model: str, reward: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = build_engine(tiny_model)
    engine.deepspeed.train()
    model = load(reward, base_of(engine, tiny_model))
    before = state(engine)

    def fail(*arguments: object, **options: object) -> None:
        assert state(engine)["adapters"] == {"['reward_1']"}
        raise RuntimeError("out of memory")

    body: Any = engine.module
    monkeypatch.setattr(body.get_base_model().model.layers[1], "forward", fail)
    with pytest.raises(RuntimeError, match="out of memory"):
        scores(model)
    assert state(engine) == before


def test_only_the_head_is_the_classifiers_own(tiny_model: str, reward: str) -> None:
    """What loading does to a classifier (eval, freeze, cast, move) must not reach the policy."""
    engine = build_engine(tiny_model)
    classifier = base_of(engine, tiny_model).classifier(reward)
    assert {name for name, _ in classifier.named_parameters()} == {"score.weight"}
    before = state(engine)
    classifier.eval().requires_grad_(False).to(torch.bfloat16)
    assert state(engine) == before
    assert next(engine.module.parameters()).dtype == torch.float32


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_weights_in_memory_are_one_base_and_the_adapters(tiny_model: str, reward: str, dtype: StoredDtype) -> None:
    engine = build_engine(tiny_model, dtype)
    before = num_weights(engine.module)
    model = load(reward, base_of(engine, tiny_model, dtype), dtype)
    adapter = sum(tensor.numel() for tensor in load_file(Path(reward) / "adapter_model.safetensors").values())
    assert num_weights(engine.module) + num_weights(model.model) == before + adapter
    assert {parameter.dtype for parameter in engine.module.parameters()} == {DTYPES[dtype]}
    assert {parameter.dtype for parameter in model.model.parameters()} == {torch.float32}


def num_weights(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_a_policy_loaded_in_bf16_starts_as_one_rounded_by_the_engine(tiny_model: str, dtype: StoredDtype) -> None:
    config = ModelConfig(model_name_or_path=tiny_model, dtype=dtype)
    torch.manual_seed(0)
    module = attach(load_causal_lm(config), LoraConfig(use_lora=True), task="CAUSAL_LM")  # in fp32
    rounded = Engine(module, TrainingConfig(), total_steps=4, bf16=dtype == "bf16")
    engine = build_policy(config, LoraConfig(use_lora=True), TrainingConfig(), seed=0, total_steps=4)
    expected = dict(rounded.module.named_parameters())
    assert all(torch.equal(parameter, expected[name]) for name, parameter in engine.module.named_parameters())
    assert engine.module.raft_base_fingerprint == rounded.module.raft_base_fingerprint


def test_checkpoints_and_exports_hold_the_policy_alone(tiny_model: str, reward: str, tmp_path: Path) -> None:
    engine, tokenizer = build_engine(tiny_model), load_tokenizer(ModelConfig(model_name_or_path=tiny_model))
    export(engine, tokenizer, tmp_path / "alone", card="", base_model=tiny_model)
    model = load(reward, base_of(engine, tiny_model))
    scores(model)
    export(engine, tokenizer, tmp_path / "shared", card="", base_model=tiny_model)
    files = [sorted(path.name for path in (tmp_path / name).iterdir()) for name in ("alone", "shared")]
    assert files[0] == files[1]
    for name in ("adapter_model.safetensors", "adapter_config.json", "raft_adapter.json"):
        assert (tmp_path / "alone" / name).read_bytes() == (tmp_path / "shared" / name).read_bytes()

    engine.save_state(tmp_path / "state")
    saved = torch.load(tmp_path / "state/engine/mp_rank_00_model_states.pt", weights_only=True)["module"]
    assert not any("reward_" in name for name in saved)
    found, trained = scores(model), [p for p in engine.module.parameters() if p.requires_grad]
    expected = [parameter.detach().clone() for parameter in trained]
    for parameter in trained:
        parameter.data.zero_()
    engine.load_state(tmp_path / "state")
    assert all(map(torch.equal, trained, expected))
    assert scores(model) == found


# ------------------------------------------------------------------------------------------- where it can not be


def policy_of(model: str) -> Any:
    return attach(load_causal_lm(ModelConfig(model_name_or_path=model)), LoraConfig(lora_r=2), task="CAUSAL_LM")


def refusal(model: str, adapter: str | Path, *, base: str | None = None, dtype: StoredDtype = "fp32") -> str:
    """What the explicit mode says; the automatic one loads the reward model apart for the same reason."""
    policy = policy_of(model)
    parts = set(dict(policy.named_modules()))
    shared = SharedBase(policy, lambda: nullcontext(policy), model, "fp32")
    assert borrow(shared, str(adapter), base=base, dtype=dtype) is None
    assert set(dict(policy.named_modules())) == parts
    with pytest.raises(UserError) as caught:
        borrow(SharedBase(policy, shared.inference, model, "fp32", required=True), str(adapter), base=base, dtype=dtype)
    assert str(caught.value).startswith(f"--share_base_model: {adapter} can not be read on the policy's base model: ")
    return str(caught.value).split("base model: ", 1)[1]


def test_another_base_a_whole_model_and_another_precision_are_loaded_apart(
    tiny_model: str, tiny_reward_model: str, reward: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    build_model(tmp_path / "other", seed=7)
    assert "its base has fingerprint " in refusal(str(tmp_path / "other"), reward)
    assert "is loaded apart from the policy: its base has fingerprint" in capsys.readouterr().out
    assert refusal(tiny_model, tiny_reward_model) == "it is a whole model, not a LoRA adapter."
    shared = SharedBase(policy := policy_of(tiny_model), lambda: nullcontext(policy), tiny_model, "fp32")
    assert borrow(shared, reward, base=None, dtype="auto") is not None
    assert refusal(tiny_model, reward, dtype="bf16") == "it computes in bf16, the policy in fp32."


def test_without_a_fingerprint_the_name_of_the_base_decides(tiny_model: str, reward: str, tmp_path: Path) -> None:
    adapter = Path(shutil.copytree(reward, tmp_path / "adapter"))
    (adapter / "raft_adapter.json").unlink()
    policy = policy_of(tiny_model)
    shared = SharedBase(policy, lambda: nullcontext(policy), tiny_model, "fp32")
    assert isinstance(borrow(shared, str(adapter), base=None, dtype="fp32"), BorrowingClassifier)
    assert "raft_adapter.json" in refusal(tiny_model, adapter, base="somebody/else")


def test_the_fingerprint_may_be_in_the_contract_alone(
    tiny_model: str, reward: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    adapter = Path(shutil.copytree(reward, tmp_path / "adapter"))
    (adapter / "raft_adapter.json").unlink()
    contract = RewardContract.load(reward)
    assert contract
    right = contract.base_model_fingerprint
    policy = policy_of(tiny_model)
    shared = SharedBase(policy, lambda: nullcontext(policy), tiny_model, "fp32")

    def told(**options: Any) -> str:
        load_reward_model(str(adapter), base=None, dtype="fp32", batch_size=3, shared=shared, **options)
        return capsys.readouterr().out

    assert f"{adapter} shares the policy's base model" in told()
    replace(contract, base_model_fingerprint="0123456789abcdef").save(adapter)
    with pytest.raises(UserError):  # loaded apart, it is refused
        told()
    reason = f"its base has fingerprint 0123456789abcdef, the policy's has {right}"
    assert f"{adapter} is loaded apart from the policy: {reason}" in capsys.readouterr().out
    # A contract in a file of its own is what counts, here as in scoring.
    contract.save(tmp_path)
    assert f"{adapter} shares the policy's base model" in told(contract_file=str(tmp_path / "reward_model.json"))


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"use_dora": True}, "it is more than plain LoRA: use_dora is True."),
        ({"init_lora_weights": "pissa"}, "it is more than plain LoRA: init_lora_weights is pissa."),
        ({"bias": "all"}, "it is more than plain LoRA: bias is all."),
    ],
)
def test_more_than_plain_lora_is_loaded_apart(
    tiny_model: str, reward: str, tmp_path: Path, settings: dict[str, Any], reason: str
) -> None:
    assert refusal(tiny_model, changed(reward, tmp_path / "adapter", **settings)) == reason


def test_whole_modules_beside_the_head_are_loaded_apart(tiny_model: str, reward: str, tmp_path: Path) -> None:
    adapter = Path(shutil.copytree(reward, tmp_path / "adapter"))
    weights = load_file(adapter / "adapter_model.safetensors")
    extra = {"base_model.model.model.norm.weight": torch.ones(32)}
    save_file({**weights, **extra}, adapter / "adapter_model.safetensors")
    assert "low-rank matrices and a score head: base_model.model.model.norm.weight" in refusal(tiny_model, adapter)
    save_file({name: weights[name] for name in weights if "score" not in name}, adapter / "adapter_model.safetensors")
    assert refusal(tiny_model, adapter) == "it holds no score head."
    moved = {name.replace("layers.1", "layers.9"): tensor for name, tensor in weights.items()}
    save_file(moved, adapter / "adapter_model.safetensors")
    assert refusal(tiny_model, adapter).startswith("the policy has no model.layers.9.")
    (adapter / "adapter_model.safetensors").unlink()
    assert refusal(tiny_model, adapter) == "it has no adapter_model.safetensors."


def test_an_adapter_without_all_its_matrices_is_refused(tiny_model: str, reward: str, tmp_path: Path) -> None:
    adapter = Path(shutil.copytree(reward, tmp_path / "adapter"))
    weights = load_file(adapter / "adapter_model.safetensors")
    some = {name: weights[name] for name in weights if "layers.1.mlp.up_proj.lora_A" not in name}
    save_file(some, adapter / "adapter_model.safetensors")
    policy = policy_of(tiny_model)
    shared = SharedBase(policy, lambda: nullcontext(policy), tiny_model, "fp32")
    with pytest.raises(UserError, match=r"lacks 1 matrix of the adapter, such as .*layers\.1\.mlp\.up_proj\.lora_A"):
        borrow(shared, str(adapter), base=None, dtype="fp32")


def test_a_borrowed_adapter_is_never_trained(tiny_model: str, reward: str) -> None:
    policy = policy_of(tiny_model)
    SharedBase(policy, lambda: nullcontext(policy), tiny_model, "fp32").classifier(reward)
    with active_adapter(policy, "reward_1"):
        assert policy.base_model.active_adapter == "reward_1"
        assert not any(parameter.requires_grad for parameter in policy.parameters())
    assert policy.base_model.active_adapter == policy.active_adapter == "default"
    assert all("lora_" in name for name, parameter in policy.named_parameters() if parameter.requires_grad)
