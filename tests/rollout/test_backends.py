"""One contract for whatever draws responses: the toolkit's sampler, vLLM where it is installed, a stand-in for it."""

from __future__ import annotations

import gc
import importlib.util
import random
import sys
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import peft
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

from raft.config import LoraConfig, ModelConfig
from raft.errors import UserError
from raft.journal import Journal, keeping
from raft.models.lora import attach, merged_weights
from raft.rollout.backend import Backend, NativeBackend, load_backend
from raft.rollout.backend_config import BackendConfig
from raft.rollout.rollout import rollout
from raft.rollout.sampling import Generated, Sampling
from tests.conftest import build_tokenizer
from tests.rollout import fake_vllm

WIDTH = 64
HAS_VLLM = importlib.util.find_spec("vllm") is not None
TEXTS = ["Hello", "Bread needs flour, water, salt and time.", "dog runs", "I can not help"]


def keys(rows: Sequence[int], iteration: int = 1) -> list[list[int]]:
    """What decides the random numbers of each row."""
    return [[0, 0, iteration, sample] for sample in range(len(rows))]


@pytest.fixture(scope="module")
def directories(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Two random models of one shape. vLLM's kernels for CPUs want heads of 32; EOS is made likely in places."""
    found = []
    for seed in (0, 1):
        directory = tmp_path_factory.mktemp("models")
        tokenizer = build_tokenizer(directory)
        config = LlamaConfig(
            vocab_size=len(tokenizer), hidden_size=64, intermediate_size=64, num_hidden_layers=2,
            num_attention_heads=2, num_key_value_heads=1, max_position_embeddings=128, initializer_range=0.2,
            bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id, tie_word_embeddings=True,
        )  # fmt: skip
        torch.manual_seed(seed)
        model = LlamaForCausalLM(config)
        model.get_input_embeddings().weight.data[tokenizer.eos_token_id] *= 2.5
        model.save_pretrained(directory)
        found.append(str(directory))
    return found


@pytest.fixture(scope="module")
def tokenizer(directories: list[str]) -> Any:
    return AutoTokenizer.from_pretrained(directories[0])


@pytest.fixture(scope="module")
def models(directories: list[str]) -> list[Any]:
    return [AutoModelForCausalLM.from_pretrained(directory).eval() for directory in directories]


def make_backend(name: str, directory: str, tokenizer: Any, **settings: Any) -> Backend:
    config = BackendConfig(rollout_backend="native" if name == "native" else "vllm", **settings)
    model = ModelConfig(model_name_or_path=directory, dtype="fp32")
    with fake_vllm.installed() if name == "fake" else nullcontext():
        return load_backend(config, model, tokenizer, width=WIDTH, num_rows=64)


@pytest.fixture(
    scope="module",
    params=["native", "fake", pytest.param("vllm", marks=pytest.mark.skipif(not HAS_VLLM, reason="no vLLM"))],
)
def backend(request: pytest.FixtureRequest, directories: list[str], tokenizer: Any) -> Backend:
    """Every test, with each backend that there is."""
    options: dict[str, Any] = {}
    if request.param != "native":
        options["vllm_options"] = ["enforce_eager=true", f"kv_cache_memory_bytes={64 * 2**20}"]
    return make_backend(request.param, directories[0], tokenizer, **options)


@pytest.fixture
def drawing(backend: Backend, models: list[Any]) -> Iterator[Callable[..., list[Generated]]]:
    """``backend.draw`` from the first model."""
    with backend.drawing_from(nullcontext(models[0])):
        yield backend.draw


@pytest.fixture(scope="module")
def encoded(tokenizer: Any) -> list[list[int]]:
    found = [tokenizer(f"<|im_start|>user\n{text}<|im_end|>\n<|im_start|>assistant\n").input_ids for text in TEXTS]
    assert len({len(prompt) for prompt in found}) == 4
    return found


def greedy(model: Any, prompt: Sequence[int], max_tokens: int, **options: Any) -> list[int]:
    mask = torch.ones(1, len(prompt), dtype=torch.long)
    return model.generate(
        torch.tensor([prompt]), attention_mask=mask, do_sample=False, max_new_tokens=max_tokens, **options
    )[0, len(prompt) :].tolist()


def probabilities(model: Any, prompt: Sequence[int], temperature: float = 1.0) -> torch.Tensor:
    with torch.no_grad():
        return torch.softmax(model(torch.tensor([prompt])).logits[0, -1].double() / temperature, 0)


# ------------------------------------------------------------------------------------------- what is drawn


def test_greedy_equals_generate_and_responses_are_in_order(
    drawing: Any, models: list[Any], encoded: list[list[int]], tokenizer: Any
) -> None:
    rows = [2, 0, 3, 1, 0]
    found = drawing(encoded, rows, keys(rows), Sampling(temperature=0.0, max_tokens=16))
    expected = [greedy(models[0], encoded[row], 16) for row in rows]
    assert [one.tokens for one in found] == expected
    assert found[1] == found[4]
    for one in found:
        assert one.finish_reason == ("eos" if one.tokens[-1] == tokenizer.eos_token_id else "length")


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_first_tokens_follow_the_model(
    drawing: Any, models: list[Any], encoded: list[list[int]], temperature: float
) -> None:
    count = 800
    p = probabilities(models[0], encoded[1], temperature).numpy()
    found = drawing(encoded, [1] * count, keys([1] * count), Sampling(temperature=temperature, max_tokens=1))
    drawn = np.bincount([one.tokens[0] for one in found], minlength=len(p))
    common = p * count >= 5
    observed, expected = np.append(drawn[common], drawn[~common].sum()), np.append(p[common], p[~common].sum()) * count
    statistic, freedom = ((observed - expected) ** 2 / expected).sum(), len(expected) - 1
    assert freedom > 15
    # Chi-square has mean k and variance 2k. All seeds are fixed: this either holds or does not.
    assert statistic < freedom + 4 * (2 * freedom) ** 0.5


@pytest.mark.parametrize(("top_p", "top_k"), [(1.0, 3), (0.3, 0), (0.5, 4)])
def test_top_p_and_top_k(drawing: Any, models: list[Any], encoded: list[list[int]], top_p: float, top_k: int) -> None:
    p = probabilities(models[0], encoded[0])
    order = p.argsort(descending=True)[: top_k or len(p)]
    share = p[order] / p[order].sum()
    allowed = set(order[share.cumsum(0) - share < top_p].tolist())
    assert 1 < len(allowed) < 20
    found = drawing(encoded, [0] * 400, keys([0] * 400), Sampling(top_p=top_p, top_k=top_k, max_tokens=1))
    assert {one.tokens[0] for one in found} == allowed


def test_the_same_key_draws_the_same_and_rows_differ(drawing: Any, encoded: list[list[int]]) -> None:
    rows, sampling = [0, 1, 2, 3] * 4, Sampling(max_tokens=12)
    found = drawing(encoded, rows, keys(rows), sampling)
    assert drawing(encoded, rows, keys(rows), sampling) == found
    other = drawing(encoded, rows, keys(rows, iteration=2), sampling)
    assert sum(a == b for a, b in zip(found, other, strict=True)) < 4
    for prompt in range(4):
        assert len({tuple(one.tokens) for one in found[prompt::4]}) == 4
    some = [9, 2, 14]
    assert drawing(encoded, [rows[i] for i in some], [keys(rows)[i] for i in some], sampling) == [
        found[i] for i in some
    ], "whatever it is drawn together with"


# ------------------------------------------------------------------------------------------- where responses end


def test_responses_end_at_eos_or_at_the_limit(drawing: Any, encoded: list[list[int]], tokenizer: Any) -> None:
    eos, heard = tokenizer.eos_token_id, []
    found = drawing(encoded, [0, 1, 2, 3] * 10, keys([0, 1, 2, 3] * 10), Sampling(max_tokens=12), heard.append)
    assert {one.finish_reason for one in found} == {"eos", "length"}
    for one in found:
        assert eos not in one.tokens[:-1]
        assert (one.tokens[-1] == eos) == (one.finish_reason == "eos")
        assert len(one.tokens) == 12 or one.finish_reason == "eos"
    assert sum(heard) == sum(len(one.tokens) for one in found)


def test_eos_can_not_come_before_min_tokens(drawing: Any, encoded: list[list[int]]) -> None:
    found = drawing(encoded, [0, 1, 2, 3] * 10, keys([0, 1, 2, 3] * 10), Sampling(max_tokens=12, min_tokens=5))
    assert min(len(one.tokens) for one in found) > 5
    assert "eos" in {one.finish_reason for one in found}


@pytest.mark.parametrize("min_tokens", [0, 4])
def test_stop_strings_end_a_response_with_the_token_that_completes_one(
    drawing: Any, encoded: list[list[int]], tokenizer: Any, min_tokens: int
) -> None:
    rows, options = [0, 1, 2, 3] * 6, {"max_tokens": 12, "min_tokens": min_tokens}
    free = drawing(encoded, rows, keys(rows), Sampling(**options))
    stopped = drawing(encoded, rows, keys(rows), Sampling(**options, stop=("e", "th")))
    assert "stop" in {one.finish_reason for one in stopped}
    for one, other in zip(stopped, free, strict=True):
        texts = [tokenizer.decode(other.tokens[: i + 1], skip_special_tokens=True) for i in range(len(other.tokens))]
        hits = [i for i, text in enumerate(texts) if "e" in text or "th" in text]
        assert one.tokens == other.tokens[: hits[0] + 1 if hits else None]
        assert one.finish_reason == ("stop" if hits else other.finish_reason)
    if min_tokens:
        assert min(len(one.tokens) for one in stopped) < min_tokens, "looked for from the first token on"


# ------------------------------------------------------------------------------------------- weights and memory


@contextmanager
def watched(model: Any, opened: list[bool]) -> Iterator[Any]:
    opened.append(True)
    try:
        yield model
    finally:
        opened.append(False)


def test_each_time_the_weights_of_then_are_drawn_from(
    backend: Backend, models: list[Any], encoded: list[list[int]]
) -> None:
    sampling = Sampling(temperature=0.0, max_tokens=8)
    answers = []
    for which in (1, 0, 1, 0):
        opened: list[bool] = []
        with backend.drawing_from(watched(models[which], opened)):
            answers.append([one.tokens for one in backend.draw(encoded, [0, 1, 2, 3], keys([0, 1, 2, 3]), sampling)])
            assert opened == ([True] if isinstance(backend, NativeBackend) else [True, False])
        assert opened == [True, False]
        assert answers[-1] == [greedy(models[which], prompt, 8) for prompt in encoded]
    assert answers[0] != answers[1]


def test_a_policy_with_an_adapter_is_merged_and_stays_as_it_is(
    backend: Backend, directories: list[str], models: list[Any], encoded: list[list[int]]
) -> None:
    policy = attach(
        AutoModelForCausalLM.from_pretrained(directories[0]), LoraConfig(use_lora=True, lora_r=4), task="CAUSAL_LM"
    ).eval()
    torch.manual_seed(0)
    for name, parameter in policy.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter.data, std=0.3)
    before = {name: tensor.clone() for name, tensor in policy.state_dict().items()}
    expected = [greedy(policy, prompt, 8) for prompt in encoded]
    assert expected != [greedy(models[0], prompt, 8) for prompt in encoded]
    with backend.drawing_from(nullcontext(policy)):
        found = backend.draw(encoded, [0, 1, 2, 3], keys([0, 1, 2, 3]), Sampling(temperature=0.0, max_tokens=8))
    assert [one.tokens for one in found] == expected
    assert all(torch.equal(before[name], tensor) for name, tensor in policy.state_dict().items())


def test_random_numbers_of_the_process_are_left_alone(
    backend: Backend, models: list[Any], encoded: list[list[int]]
) -> None:
    before = torch.get_rng_state(), random.getstate(), str(np.random.get_state())
    with backend.drawing_from(nullcontext(models[0])):
        backend.draw(encoded, [0, 1], keys([0, 1]), Sampling(max_tokens=2))
    assert torch.equal(torch.get_rng_state(), before[0])
    assert (random.getstate(), str(np.random.get_state())) == before[1:]


def test_nothing_is_left_in_memory_while_the_policy_trains(
    backend: Backend, directories: list[str], encoded: list[list[int]]
) -> None:
    llm: Any = getattr(backend, "_llm", None)
    if llm is not None and not isinstance(llm, fake_vllm.LLM):
        pytest.skip("vLLM on a CPU keeps its memory; on a GPU this has to be measured")
    model = AutoModelForCausalLM.from_pretrained(directories[0]).eval()
    remembered = weakref.ref(model)
    with backend.drawing_from(nullcontext(model)):
        backend.draw(encoded, [0], keys([0]), Sampling(max_tokens=2))
    del model
    gc.collect()
    assert remembered() is None
    if llm is not None:
        assert not llm.awake
        assert all(parameter.is_meta for parameter in llm.model.parameters())


# ------------------------------------------------------------------------------------------- in a rollout


def test_a_unit_of_another_backend_is_not_found_in_the_journal(
    models: list[Any], encoded: list[list[int]], tokenizer: Any, tmp_path: Path
) -> None:
    class Counting(NativeBackend):
        num_calls = 0

        def draw(self, *arguments: Any) -> list[Generated]:
            self.num_calls += 1
            return super().draw(*arguments)

    def draw(identity: list[Any]) -> int:
        backend = Counting(tokenizer)
        backend.identity = identity
        with keeping(Journal(tmp_path)), backend.drawing_from(nullcontext(models[0])):
            rollout(
                backend, encoded, num_samples=1, sampling=Sampling(max_tokens=2), rows_per_chunk=2, seed=0, iteration=1
            )
        return backend.num_calls

    assert [draw([]), draw([])] == [2, 0]
    assert [draw(["vllm", "1", {}]), draw(["vllm", "1", {}]), draw(["vllm", "2", {}])] == [2, 0, 2]


# ------------------------------------------------------------------------------------------- vLLM alone


def fake_of(directory: str, tokenizer: Any, **settings: Any) -> tuple[Any, Any]:
    backend: Any = make_backend("fake", directory, tokenizer, **settings)
    return backend, backend._llm


def test_weights_are_woken_before_they_are_handed_over_and_the_cache_after(
    directories: list[str], models: list[Any], tokenizer: Any
) -> None:
    backend, llm = fake_of(directories[0], tokenizer)
    assert llm.calls == ["sleep"], "it sleeps from its start on"
    llm.calls.clear()
    with backend.drawing_from(nullcontext(models[0])):
        assert llm.calls == ["weights", "reload_weights", "kv_cache", "generate"]
        with pytest.raises(ValueError, match="max_model_len"):
            backend.draw([[5] * WIDTH], [0], keys([0]), Sampling(max_tokens=2))
    assert llm.calls[-1] == "sleep"
    with pytest.raises(RuntimeError, match="in the middle"), backend.drawing_from(nullcontext(models[0])):
        raise RuntimeError("in the middle")
    assert llm.calls[-1] == "sleep"


@pytest.mark.parametrize("name", ["model.norm.weight", "model.layers.1.mlp.down_proj.weight", "lm_head.weight"])
def test_a_weight_that_does_not_arrive_is_noticed(
    name: str, directories: list[str], models: list[Any], tokenizer: Any
) -> None:
    backend, llm = fake_of(directories[0], tokenizer)
    llm.ignored = {name, "model.embed_tokens.weight"} if name == "lm_head.weight" else {name}
    with pytest.raises(UserError, match=r"log-probabilities are .* nats from the policy's"):  # noqa: SIM117
        with backend.drawing_from(nullcontext(models[0])):
            pytest.fail("nothing may be drawn")
    assert llm.calls[-1] == "sleep"


def test_vllm_is_identified_by_version_and_options(directories: list[str], tokenizer: Any) -> None:
    backend, _ = fake_of(directories[0], tokenizer, vllm_options=["enforce_eager=true"])
    assert backend.identity == ["vllm", fake_vllm.VERSION, {"enforce_eager": True}]
    with pytest.raises(UserError, match=r"--rollout_backend vllm: vLLM does not start: .*enforce_eagr"):
        fake_of(directories[0], tokenizer, vllm_options=["enforce_eagr=true"])


def test_without_vllm_the_error_says_how_to_get_it(
    directories: list[str], tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "vllm", None)
    with pytest.raises(UserError, match=r"pip install 'raft-toolkit\[vllm\]'"):
        make_backend("vllm", directories[0], tokenizer)


def test_weights_have_the_names_and_values_of_a_saved_model(models: list[Any], directories: list[str]) -> None:
    found = dict(merged_weights(models[0]))
    assert found.keys() == dict(models[0].named_parameters(remove_duplicate=False)).keys()
    policy = attach(
        AutoModelForCausalLM.from_pretrained(directories[0]), LoraConfig(use_lora=True, lora_r=2), task="CAUSAL_LM"
    )
    assert all(torch.equal(tensor, found[name]) for name, tensor in merged_weights(policy)), "adapters add nothing yet"
    layer = policy.get_base_model().model.layers[1].self_attn.q_proj
    layer.lora_B["default"].weight.data.fill_(0.5)
    a, scale = layer.lora_A["default"].weight.data, 32 / 2
    expected = found["model.layers.1.self_attn.q_proj.weight"] + scale * (torch.full((64, 2), 0.5) @ a)
    merged = dict(merged_weights(policy))
    assert merged.keys() == found.keys()
    torch.testing.assert_close(merged["model.layers.1.self_attn.q_proj.weight"], expected)
    changed = {name for name, tensor in merged.items() if not torch.equal(tensor, found[name])}
    assert changed == {"model.layers.1.self_attn.q_proj.weight"}


def test_adapters_of_parameters_are_refused(directories: list[str]) -> None:
    """Their matrices are neither beside a linear layer nor named as those are."""
    model = AutoModelForCausalLM.from_pretrained(directories[0])
    settings = peft.LoraConfig(task_type="CAUSAL_LM", target_modules=[], target_parameters=["q_proj.weight"])
    adapted = peft.get_peft_model(model, settings)
    with pytest.raises(UserError, match=r"target_parameters of the adapter: found q_proj\.weight, allowed are none"):
        dict(merged_weights(adapted))


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"vllm_options": ["tensor_parallel_size=2"]}, "tensor_parallel_size is not supported. Every rank has a vLLM"),
        ({"vllm_options": ["dtype=half"]}, "--vllm_options: dtype is decided by other flags."),
        ({"vllm_options": ["enforce_eager"]}, "--vllm_options: found 'enforce_eager', expected NAME=VALUE."),
        ({"vllm_gpu_memory_utilization": 1.5}, "--vllm_gpu_memory_utilization: found 1.5"),
        ({"rollout_backend": "native", "vllm_options": ["a=1"]}, "--vllm_options needs --rollout_backend vllm."),
    ],
)
def test_settings_that_can_not_be(settings: dict[str, Any], told: str) -> None:
    with pytest.raises(UserError) as error:
        BackendConfig(**{"rollout_backend": "vllm", **settings})
    assert told in str(error.value)


def test_options_are_json_or_text() -> None:
    options = ["max_num_batched_tokens=4096", "kv_cache_dtype=fp8", 'compilation_config={"mode": 0}', "a=b=c"]
    assert BackendConfig(rollout_backend="vllm", vllm_options=options).llm_arguments() == {
        "max_num_batched_tokens": 4096, "kv_cache_dtype": "fp8", "compilation_config": {"mode": 0}, "a": "b=c",
    }  # fmt: skip
