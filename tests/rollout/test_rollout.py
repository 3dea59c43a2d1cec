from __future__ import annotations

import json
import math
from collections.abc import Sequence
from contextlib import nullcontext
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig

from raft.data.encoding import TokenRow
from raft.models.forward import target_logits
from raft.rollout import sampler
from raft.rollout.backend import NativeBackend
from raft.rollout.logprobs import response_logprobs
from raft.rollout.prompts import Prompt
from raft.rollout.rollout import default_rows, plan_chunks, rollout
from raft.rollout.samples import make_samples
from raft.rollout.sampling import Generated, Sampling
from tests.conftest import run_ranks

TEXTS = ["Hello", "Bread needs flour, water, salt and time", "dog runs", "I can not", "the lazy dog jumps over it"]
# What the ranks run, and the expectation in this process: the same function, so that nothing but ranks differs.
DRAW = """
import json, sys
from transformers import AutoModelForCausalLM, AutoTokenizer
from raft import distributed
from contextlib import nullcontext
from raft.rollout.backend import NativeBackend
from raft.rollout.rollout import rollout
from raft.rollout.sampler import Sampling

TEXTS = ["Hello", "Bread needs flour, water, salt and time", "dog runs", "I can not", "the lazy dog jumps over it"]


def draw(directory, *, seed=0, iteration=1, purpose="sampling", rows_per_chunk=4, num_samples=3, attempt=""):
    tokenizer = AutoTokenizer.from_pretrained(directory)
    model = AutoModelForCausalLM.from_pretrained(directory).eval()
    prompts = [tokenizer(f"<|im_start|>user\\n{text}<|im_end|>\\n<|im_start|>assistant\\n").input_ids for text in TEXTS]
    backend = NativeBackend(tokenizer)
    with backend.drawing_from(nullcontext(model)):
        found = rollout(
            backend, prompts, num_samples=num_samples, sampling=Sampling(max_tokens=10),
            rows_per_chunk=rows_per_chunk, seed=seed, iteration=iteration, purpose=purpose, attempt=attempt,
        )
    return [[one.tokens, one.finish_reason] for one in found]
"""
namespace: dict[str, Any] = {}
exec(DRAW, namespace)
draw = namespace["draw"]


# ------------------------------------------------------------------------------------------- chunks


@given(st.lists(st.integers(1, 50), min_size=1, max_size=20), st.integers(1, 5), st.integers(1, 16))
def test_plan_chunks_against_brute_force(lengths: list[int], num_samples: int, rows_per_chunk: int) -> None:
    chunks = plan_chunks(lengths, num_samples, rows_per_chunk)
    total = len(lengths) * num_samples
    samples = [pair for chunk in chunks for pair in zip(chunk.sample_ids, chunk.prompt_indices, strict=True)]
    # Every sample once, and with the prompt that its number says.
    assert sorted(sample for sample, _ in samples) == list(range(total))
    assert all(sample // num_samples == prompt for sample, prompt in samples)
    # Full chunks, but for the last.
    assert len(chunks) == math.ceil(total / rows_per_chunk)
    assert all(len(chunk.sample_ids) == rows_per_chunk for chunk in chunks[:-1])
    # Longest prompts first, a prompt's samples side by side: no two chunks overlap in length.
    order = [lengths[prompt] for _, prompt in samples]
    assert order == sorted(order, reverse=True)
    visited = [prompt for i, (_, prompt) in enumerate(samples) if i == 0 or samples[i - 1][1] != prompt]
    assert len(visited) == len(set(visited)) == len(lengths)


def test_plan_chunks_by_hand() -> None:
    # Prompt 1 (9 tokens) goes first, then 0 and 2 (4 each) by their place. Two samples a prompt, three a chunk.
    chunks = plan_chunks([4, 9, 4], 2, 3)
    assert [chunk.sample_ids for chunk in chunks] == [[2, 3, 0], [1, 4, 5]]
    assert [chunk.prompt_indices for chunk in chunks] == [[1, 1, 0], [0, 2, 2]]


# ------------------------------------------------------------------------------------------- rollout


def test_the_same_samples_on_one_and_two_ranks(talkative_model: str) -> None:
    script = DRAW + (
        "mine = []\n"
        "take = distributed.take_chunks\n"
        "def watched(name, num_chunks):\n"
        "    for number in take(name, num_chunks):\n"
        "        mine.append(number)\n"
        "        yield number\n"
        "distributed.take_chunks = watched\n"
        "distributed.initialize()\n"
        "found = [draw(sys.argv[1]), draw(sys.argv[1], iteration=2), draw(sys.argv[1], purpose='held_out')]\n"
        "everyone = distributed.all_gather((found, mine))\n"
        "if distributed.is_main():\n"
        "    print('FOUND' + json.dumps(everyone))\n"
        "distributed.shutdown()\n"
    )
    output = run_ranks(script, 2, talkative_model)
    (first, chunks), (second, other_chunks) = json.loads(output.split("FOUND")[1])
    assert first == second, "every rank has all samples"
    assert sorted(chunks + other_chunks) == sorted([*range(4)] * 3), "a chunk is drawn by one of them"
    alone = [
        draw(talkative_model), draw(talkative_model, iteration=2), draw(talkative_model, purpose="held_out")
    ]  # fmt: skip
    assert first == alone
    assert len(alone[0]) == 15


def test_what_is_drawn_depends_on_seed_iteration_and_purpose_only(talkative_model: str) -> None:
    base = draw(talkative_model)
    assert draw(talkative_model, attempt="again") == base
    for other in ({"seed": 1}, {"iteration": 2}, {"purpose": "held_out"}):
        found = draw(talkative_model, **other)
        same = sum(a == b for a, b in zip(base, found, strict=True))
        assert same < 8, f"{other} changes what is drawn"


@pytest.mark.parametrize("rows_per_chunk", [1, 2, 7, 15])
def test_what_is_drawn_does_not_depend_on_the_chunks(talkative_model: str, rows_per_chunk: int) -> None:
    assert draw(talkative_model, rows_per_chunk=rows_per_chunk) == draw(talkative_model, rows_per_chunk=4)


def test_a_prompts_samples_differ(talkative_model: str) -> None:
    found = draw(talkative_model, num_samples=12)
    for prompt in range(len(TEXTS)):
        assert len({tuple(tokens) for tokens, _ in found[12 * prompt : 12 * prompt + 12]}) > 3


SMOLLM2 = LlamaConfig(
    hidden_size=576, num_hidden_layers=30, num_attention_heads=9, num_key_value_heads=3, vocab_size=49152
)


@pytest.mark.parametrize(
    ("total_memory", "expected"),
    # SmolLM2: 30 layers, 3 key heads of 64, bf16: 23,040 bytes a token, 8,847,360 a row of 384.
    [(80 * 2**30, 1024), (16 * 2**30, 256), (4 * 8847360 * 100, 64), (1000, 1)],
)
def test_how_many_responses_a_gpu_samples_at_once(
    total_memory: int, expected: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("raft.distributed.device", lambda: torch.device("cuda"))
    properties = SimpleNamespace(total_memory=total_memory)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: properties)
    assert default_rows(SMOLLM2, 384, torch.bfloat16, num_samples=64) == expected


@pytest.mark.parametrize(
    ("num_samples", "num_processes", "memory", "expected"),
    [
        (64, 1, 24, 256),
        (2048, 1, 24, 256),
        (256, 2, 48, 128),
        (513, 2, 48, 129),  # two chunks on each rank, and not 256, 256 and 1
        (5, 8, 999, 1),
        # A process's quarter of 2 GiB is 512 MiB: 60 rows of 8,847,360 bytes.
        (256, 1, 2, 32),
        (256, 2, 4, 32),
    ],
)
def test_how_many_responses_a_cpu_samples_at_once(
    num_samples: int, num_processes: int, memory: int, expected: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("LOCAL_WORLD_SIZE", raising=False)
    monkeypatch.setattr("raft.memory.host_memory", lambda: memory * 2**30)
    sizes = {"num_samples": num_samples, "num_processes": num_processes}
    assert default_rows(SMOLLM2, 384, torch.bfloat16, **sizes) == expected


class Repeats:
    """A stand-in for the sampler: the response to a prompt repeats the prompt's own first id."""

    def __init__(self) -> None:
        self.prompts: list[list[Sequence[int]]] = []
        self.uniforms: list[torch.Tensor] = []

    def __call__(self, model: Any, prompts: Any, rows: Any, uniforms: torch.Tensor, *others: Any) -> list[Generated]:
        self.prompts.append(list(prompts))
        self.uniforms.append(uniforms)
        return [Generated([prompts[i][0]] * 2, "length") for i in rows]


def test_every_response_belongs_to_its_prompt(monkeypatch: pytest.MonkeyPatch) -> None:
    sampler = Repeats()
    monkeypatch.setattr("raft.rollout.backend.generate", sampler)
    prompts = [[i] * length for i, length in enumerate([3, 8, 1, 8, 5, 2, 2])]
    found = rollout(
        NativeBackend(None), prompts, num_samples=3, sampling=Sampling(max_tokens=6), rows_per_chunk=4, seed=0,
        iteration=1,
    )  # fmt: skip
    assert [one.tokens for one in found] == [[i, i] for i in range(7) for _ in range(3)]
    # Within a chunk every prompt goes through the model once.
    assert all(len({id(prompt) for prompt in chunk}) == len(chunk) for chunk in sampler.prompts)
    assert [tuple(u.shape) for u in sampler.uniforms] == [(4, 6)] * 5 + [(1, 6)]
    assert len({float(number) for chunk in sampler.uniforms for number in chunk.flatten()}) > 120


def test_a_chunk_that_does_not_fit_is_drawn_in_halves_with_the_same_samples(
    tiny_model: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    model = AutoModelForCausalLM.from_pretrained(tiny_model).eval()
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    prompts = [tokenizer(text).input_ids for text in TEXTS]

    def draw() -> list[Generated]:
        backend = NativeBackend(tokenizer)
        with backend.drawing_from(nullcontext(model)):
            return rollout(
                backend, prompts, num_samples=6, sampling=Sampling(max_tokens=5), rows_per_chunk=9, seed=0, iteration=1
            )

    expected = draw()

    def small(model: Any, prompts: Any, rows: Any, *others: Any) -> list[Generated]:
        if len(rows) > 4:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return sampler.generate(model, prompts, rows, *others)

    monkeypatch.setattr("raft.rollout.backend.generate", small)
    assert draw() == expected
    assert "out of memory with 9 responses at once; going on with 5" in capsys.readouterr().err


# ------------------------------------------------------------------------------------------- samples, log-probabilities


def test_samples_join_responses_with_prompts(tiny_model: str) -> None:
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    eos = tokenizer.eos_token_id
    prompts = [Prompt(name, ({"role": "user", "content": name},), [5, 6, 7], {}) for name in ("a", "b")]
    texts = ["Hello", "dog", "the end###Human:", "water"]
    generated = [Generated(tokenizer(text).input_ids, "length") for text in texts]
    generated[0].tokens.append(eos)
    generated[0].finish_reason = "eos"
    generated[2].finish_reason = "stop"
    samples = make_samples(prompts, generated, 2, Sampling(stop=("###Human",)), tokenizer)
    assert [sample.sample_id for sample in samples] == [0, 1, 2, 3]
    assert [(sample.draw, sample.prompt.prompt_id) for sample in samples] == [(0, "a"), (0, "a"), (1, "b"), (1, "b")]
    assert [sample.response for sample in samples] == ["Hello", "dog", "the end", "water"]
    assert samples[0].token_row() == TokenRow(
        [5, 6, 7, *tokenizer("Hello").input_ids, eos], [False] * 3 + [True] * len(generated[0].tokens)
    )
    assert list(samples[0].as_json()) == [
        "prompt_id", "sample_id", "prompt", "response", "response_tokens", "finish_reason", "scores", "reward",
        "discarded", "selected",
    ]  # fmt: skip


@pytest.mark.parametrize(("batch_size", "fits"), [(1, 1), (4, 4), (32, 32), (32, 3)])
def test_response_logprobs_against_whole_unpadded_sequences(
    tiny_model: str, batch_size: int, fits: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where memory has room for 3 rows and not for 11: halves of a batch are what the whole is."""

    def small(model: Any, batch: Any) -> Any:
        if len(batch.input_ids) > fits:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return target_logits(model, batch)

    monkeypatch.setattr("raft.rollout.logprobs.target_logits", small)
    model, tokenizer = (
        AutoModelForCausalLM.from_pretrained(tiny_model).eval(),
        AutoTokenizer.from_pretrained(tiny_model),
    )
    generator = torch.Generator().manual_seed(0)
    rows, expected = [], []
    for i in range(11):
        prompt, response = (torch.randint(3, 384, (n,), generator=generator).tolist() for n in (2 + i, 1 + 3 * i % 7))
        rows.append(TokenRow(prompt + response, [False] * len(prompt) + [True] * len(response)))
        with torch.no_grad():
            logprobs = torch.log_softmax(model(torch.tensor([prompt + response])).logits[0].double(), -1)
        expected.append(sum(logprobs[len(prompt) - 1 + j, token].item() for j, token in enumerate(response)))
    found = response_logprobs(
        model, rows, batch_size=batch_size, pad_token_id=tokenizer.pad_token_id, name="test"
    )  # fmt: skip
    assert found == pytest.approx(expected, abs=1e-3)
