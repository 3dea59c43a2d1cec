from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from raft.errors import UserError
from raft.rollout import sampler
from raft.rollout.cache import is_plain
from raft.rollout.decoding import GraphDecoder, Graphs, GrowingDecoder
from raft.rollout.sampler import generate, response_text, similar_lengths
from raft.rollout.sampling import Generated, Sampling

Loaded = tuple[Any, Any]
TEXTS = ["Hello", "Bread needs flour, water, salt and time. Bake it until it is brown.", "dog runs", "I can not help"]


def load(directory: str) -> Loaded:
    return AutoModelForCausalLM.from_pretrained(directory).eval(), AutoTokenizer.from_pretrained(directory)


@pytest.fixture(autouse=True, params=["growing", "graph"])
def decoder(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Every test, with either way of taking steps. Without a GPU the graph's step is run as it is."""
    if request.param == "graph":
        monkeypatch.setattr(sampler, "can_graph", lambda model, cache: hasattr(model, "config") and is_plain(cache))
    return request.param


@pytest.fixture(scope="module")
def tiny(tiny_model: str) -> Loaded:
    return load(tiny_model)


@pytest.fixture(scope="module")
def talkative(talkative_model: str) -> Loaded:
    return load(talkative_model)


def encode(tokenizer: Any, texts: Sequence[str] = TEXTS) -> list[list[int]]:
    return [
        tokenizer(f"<|im_start|>user\n{text}<|im_end|>\n<|im_start|>assistant\n").input_ids for text in texts
    ]  # fmt: skip


def uniforms(rows: int, columns: int, seed: int = 0) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(seed).random((rows, columns), dtype=np.float32))


def draw(loaded: Loaded, prompts: list[list[int]], rows: list[int], numbers: torch.Tensor, **options: Any) -> Any:
    sampling = Sampling(max_tokens=numbers.shape[1], **options)
    return generate(loaded[0], prompts, rows, numbers, sampling, loaded[1])


# ------------------------------------------------------------------------------------------- prompts of any length


def test_groups_of_similar_length() -> None:
    assert similar_lengths([10, 40, 31, 29, 8, 7, 40]) == [[1, 2, 6], [3], [0, 4], [5]]
    assert similar_lengths([5, 5]) == [[0, 1]]
    assert similar_lengths([8, 10, 9]) == [[0, 1, 2]]


def test_padding_does_not_go_through_the_model(tiny: Loaded, monkeypatch: pytest.MonkeyPatch) -> None:
    """Four prompts in groups of their own on a CPU: as many positions as they have tokens, in order of length."""
    prompts, seen = encode(tiny[1]), []
    forward = tiny[0].forward

    def counting(input_ids: torch.Tensor, **options: Any) -> Any:
        seen.append(tuple(input_ids.shape))
        return forward(input_ids=input_ids, **options)

    monkeypatch.setattr(tiny[0], "forward", counting)
    draw(tiny, prompts, [0, 1, 2, 3], uniforms(4, 1))
    groups = similar_lengths([len(prompt) for prompt in prompts])
    assert len(groups) > 1
    assert seen == [(len(group), max(len(prompts[i]) for i in group)) for group in groups]


# ------------------------------------------------------------------------------------------- greedy, beside generate


@pytest.mark.parametrize("min_tokens", [0, 6])
@pytest.mark.parametrize("which", ["tiny", "talkative"])
def test_temperature_0_equals_generate_token_for_token(
    which: str, min_tokens: int, request: pytest.FixtureRequest
) -> None:
    model, tokenizer = loaded = request.getfixturevalue(which)
    prompts = encode(tokenizer)
    assert len({len(prompt) for prompt in prompts}) == 4
    found = draw(loaded, prompts, [0, 1, 2, 3], uniforms(4, 24), temperature=0.0, min_tokens=min_tokens)
    for prompt, response in zip(prompts, found, strict=True):
        # One at a time, so that their padding plays no part in what is expected.
        expected = model.generate(
            torch.tensor([prompt]),
            attention_mask=torch.ones(1, len(prompt), dtype=torch.long),
            do_sample=False,
            max_new_tokens=24,
            min_new_tokens=min_tokens,
        )[0, len(prompt) :].tolist()
        assert response.tokens == expected
        assert response.finish_reason == ("eos" if expected[-1] == tokenizer.eos_token_id else "length")
    if which == "talkative" and not min_tokens:
        assert {response.finish_reason for response in found} == {"eos"}
        assert len({len(response.tokens) for response in found}) > 1


@pytest.mark.parametrize(
    "texts",
    [
        ["Hello", "Bread needs flour", "dog runs"],  # one group of similar lengths, the longest in the middle
        ["dog runs away", "Hello", "Bread needs flour, water, salt and time.", "I can", "The quick brown fox jumps"],
    ],
)
def test_every_response_is_to_its_own_prompt(talkative: Loaded, texts: list[str]) -> None:
    """A cache in another order than the prompts would go on with the neighbour's response after the first token."""
    model, tokenizer = talkative
    prompts = encode(tokenizer, texts)
    rows = [i for i in range(len(prompts)) for _ in range(2)][::-1]
    found = draw(talkative, prompts, rows, uniforms(len(rows), 16), temperature=0.0)
    for row, response in zip(rows, found, strict=True):
        ids = torch.tensor([prompts[row]])
        expected = model.generate(ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=16)
        assert response.tokens == expected[0, len(prompts[row]) :].tolist()


def test_a_stop_string_that_is_a_special_token_ends_a_response(tiny: Loaded) -> None:
    prompts, rows, numbers = encode(tiny[1]), [0, 1, 2, 3] * 8, uniforms(32, 64)
    free = draw(tiny, prompts, rows, numbers)
    stopped = draw(tiny, prompts, rows, numbers, stop=("<|im_start|>",))
    going_on = [one for one in free if 1 in one.tokens[:-1]]
    assert going_on, "otherwise this would show nothing"
    for one, other in zip(free, stopped, strict=True):
        length = one.tokens.index(1) + 1 if 1 in one.tokens else len(one.tokens)
        assert other.tokens == one.tokens[:length]
        assert other.finish_reason == ("eos" if 1 in one.tokens else one.finish_reason)


# ------------------------------------------------------------------------------------------- the distribution


@pytest.mark.parametrize("options", [{}, {"temperature": 0.7, "top_k": 20, "top_p": 0.9}])
def test_first_tokens_follow_the_model_with_left_padding(tiny: Loaded, options: dict[str, Any]) -> None:
    model, tokenizer = tiny
    prompts, count = encode(tokenizer), 2000
    evenly = (torch.arange(count, dtype=torch.float32) + 0.5) / count
    rows = [prompt for prompt in range(4) for _ in range(count)]
    found = draw(tiny, prompts, rows, evenly.repeat(4)[:, None], **options)
    for i, prompt in enumerate(prompts):
        with torch.no_grad():
            logits = model(torch.tensor([prompt])).logits[0, -1].double() / options.get("temperature", 1.0)
        p = torch.softmax(logits, 0)
        if options:
            order = p.argsort(descending=True)[:20]
            p = torch.zeros_like(p).scatter(0, order, p[order] / p[order].sum())
            order = order[p[order].cumsum(0) - p[order] < 0.9]
            p = torch.zeros_like(p).scatter(0, order, p[order] / p[order].sum())
        drawn = np.bincount([one.tokens[0] for one in found[i * count : (i + 1) * count]], minlength=len(p)) / count
        # Evenly spaced numbers: every token gets its share to within one draw, and a little for fp32.
        np.testing.assert_allclose(drawn, p, atol=1.1 / count)


def test_every_token_is_the_one_its_number_points_at(talkative: Loaded) -> None:
    """All steps, not only the first: recomputed from whole unpadded sequences without any cache."""
    model, tokenizer = talkative
    prompts, rows, numbers = encode(tokenizer), [0, 1, 2, 3, 3, 2, 1, 0], uniforms(8, 16, seed=3)
    found = draw(talkative, prompts, rows, numbers)
    assert len({len(one.tokens) for one in found}) > 2
    for row, prompt in enumerate(rows):
        tokens = found[row].tokens
        with torch.no_grad():
            logits = model(torch.tensor([prompts[prompt] + tokens]), use_cache=False).logits[0]
        cumulative = torch.softmax(logits[len(prompts[prompt]) - 1 : -1].double(), -1).cumsum(-1)
        for step, token in enumerate(tokens):
            low = cumulative[step, token - 1] if token else 0.0
            assert low - 1e-5 <= numbers[row, step] <= cumulative[step, token] + 1e-5


# ------------------------------------------------------------------------------------------- sharing and leaving


def test_k_responses_share_the_prompt_pass_and_equal_separate_calls(
    talkative: Loaded, decoder: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, tokenizer = talkative
    for kind in (GrowingDecoder, GraphDecoder):
        monkeypatch.setattr(kind, "compacts_below", 0.0)
    prompts, numbers = encode(tokenizer), uniforms(12, 20)
    rows = [2, 0, 0, 3, 1, 1, 2, 2, 3, 0, 1, 3]
    widths: list[tuple[int, ...]] = []
    handle = model.register_forward_pre_hook(
        lambda module, args, kwargs: widths.append(tuple(kwargs["input_ids"].shape)), with_kwargs=True
    )
    together = draw(talkative, prompts, rows, numbers)
    handle.remove()
    assert sum(num_rows for num_rows, width in widths if width > 1) == 4  # each prompt once
    assert set(widths) - {one for one in widths if one[1] > 1} == {(12 if decoder == "growing" else 32, 1)}
    separate = [
        draw(talkative, [prompts[prompt]], [0], numbers[i : i + 1])[0] for i, prompt in enumerate(rows)
    ]  # fmt: skip
    assert together == separate
    assert len({len(one.tokens) for one in together}) > 3


def test_rows_that_leave_do_not_change_the_others(
    talkative: Loaded, decoder: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    prompts, rows, numbers = encode(talkative[1]), [i % 4 for i in range(24)], uniforms(24, 24, seed=1)
    results, widths = {}, {}
    for share in (0.0, 0.5, 7 / 8, 1.0):  # never leave, ..., leave at once
        for kind in (GrowingDecoder, GraphDecoder):
            monkeypatch.setattr(kind, "compacts_below", share)
        seen: list[Any] = []
        handle = talkative[0].register_forward_pre_hook(
            lambda module, args, kwargs, seen=seen: seen.append(kwargs["input_ids"].shape), with_kwargs=True
        )
        results[share] = draw(talkative, prompts, rows, numbers)
        handle.remove()
        widths[share] = [num_rows for num_rows, width in seen if width == 1]  # steps, not the prompts
    assert results[0.0] == results[0.5] == results[7 / 8] == results[1.0]
    if decoder == "graph":
        assert set(widths[1.0]) == {32}, "the smallest size"
        return
    assert set(widths[0.0]) == {24}
    assert len(set(widths[1.0])) > 4
    # At once: a pass has exactly the rows that still run.
    lengths = [len(one.tokens) for one in results[1.0]]
    assert widths[1.0] == [sum(length > step for length in lengths) for step in range(1, max(lengths))]
    assert sum(widths[1.0]) <= sum(widths[7 / 8]) <= sum(widths[0.5]) < sum(widths[0.0])


def test_a_graph_takes_over_at_half_the_rows(talkative: Loaded, decoder: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if decoder == "growing":
        pytest.skip("about graphs")
    prompts, rows, numbers = encode(talkative[1]), [i % 4 for i in range(150)], uniforms(150, 24, seed=1)
    shapes: list[Any] = []
    handle = talkative[0].register_forward_pre_hook(
        lambda module, args, kwargs: shapes.append(kwargs["input_ids"].shape), with_kwargs=True
    )
    found = draw(talkative, prompts, rows, numbers)
    handle.remove()
    seen = [4, *(num_rows for num_rows, width in shapes if width == 1)]  # the prompts, then the steps
    assert list(dict.fromkeys(seen[1:])) == [160, 80, 40]
    running = [sum(len(one.tokens) > step for one in found) for step in range(1, len(seen))]
    assert all(count <= size for count, size in zip(running, seen[1:], strict=True))
    assert all(count > 75 for count, size in zip(running, seen[1:], strict=True) if size == 160)
    monkeypatch.setattr(sampler, "can_graph", lambda model, cache: False)
    assert draw(talkative, prompts, rows, numbers) == found


def test_the_buffers_of_graphs_serve_chunk_after_chunk(talkative: Loaded, decoder: str) -> None:
    if decoder == "growing":
        pytest.skip("about graphs")
    model, tokenizer = talkative
    graphs, found, prompts = Graphs(model), [], encode(tokenizer)
    for rows in ([1] * 40, [0, 2, 3], [1, 1, 1]):  # the longest prompt first, then fewer rows
        arguments = (model, prompts, rows, uniforms(len(rows), 20, seed=len(rows)), Sampling(max_tokens=20), tokenizer)
        found.append(generate(*arguments, graphs=graphs))
        assert found[-1] == generate(*arguments)
        assert model.config._attn_implementation == "sdpa", "put back"


def test_on_tokens_hears_of_every_token(talkative: Loaded) -> None:
    model, tokenizer = talkative
    heard: list[int] = []
    numbers = uniforms(8, 16)
    found = generate(
        model, encode(tokenizer), [0, 0, 1, 1, 2, 2, 3, 3], numbers, Sampling(max_tokens=16), tokenizer, heard.append
    )
    assert sum(heard) == sum(len(one.tokens) for one in found)
    assert heard[0] == 8


def test_models_whose_cache_is_no_plain_one(tiny: Loaded, tmp_path: Any) -> None:
    """Sliding windows keep transformers' own cache; rows are repeated and leave there too."""
    from transformers import MistralConfig, MistralForCausalLM

    config = MistralConfig(
        vocab_size=384, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, sliding_window=8, initializer_range=0.2, eos_token_id=2, pad_token_id=0, bos_token_id=1,
    )  # fmt: skip
    torch.manual_seed(0)
    model, tokenizer = MistralForCausalLM(config).eval(), tiny[1]
    prompts, rows, numbers = encode(tokenizer), [0, 1, 1, 2, 3, 3], uniforms(6, 12)
    together = draw((model, tokenizer), prompts, rows, numbers, stop=(" the", "ea"))
    separate = [draw((model, tokenizer), [prompts[p]], [0], numbers[i : i + 1], stop=(" the", "ea"))[0]
                for i, p in enumerate(rows)]  # fmt: skip
    assert together == separate


# ------------------------------------------------------------------------------------------- where responses end


def test_eos_is_kept_as_the_last_token_and_nowhere_else(talkative: Loaded) -> None:
    eos = talkative[1].eos_token_id
    found = draw(talkative, encode(talkative[1]), [i % 4 for i in range(40)], uniforms(40, 12))
    assert {one.finish_reason for one in found} == {"eos", "length"}
    for one in found:
        assert eos not in one.tokens[:-1]
        assert (one.tokens[-1] == eos) == (one.finish_reason == "eos")
        if one.finish_reason == "length":
            assert len(one.tokens) == 12


@pytest.mark.parametrize("min_tokens", [0, 1, 5])
def test_eos_can_not_come_before_min_tokens(talkative: Loaded, min_tokens: int) -> None:
    found = draw(talkative, encode(talkative[1]), [i % 4 for i in range(60)], uniforms(60, 10), min_tokens=min_tokens)
    # EOS after exactly min_tokens others is allowed, and comes up here.
    assert min(len(one.tokens) for one in found) == min_tokens + 1
    assert max(len(one.tokens) for one in found) <= 10


def test_one_token_at_most(talkative: Loaded) -> None:
    found = draw(talkative, encode(talkative[1]), [0, 1, 2, 3], uniforms(4, 1), min_tokens=1)
    assert [(len(one.tokens), one.finish_reason) for one in found] == [(1, "length")] * 4


def scripted(tokenizer: Any, text: str) -> Loaded:
    """A model that answers with exactly this text, whatever it is asked."""
    ids = [*tokenizer(text).input_ids, tokenizer.eos_token_id]

    class Script(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embedding, self.step = torch.nn.Embedding(len(tokenizer), 1), 0

        def get_input_embeddings(self) -> torch.nn.Module:
            return self.embedding

        def forward(self, input_ids: torch.Tensor, **kwargs: Any) -> Any:
            from types import SimpleNamespace

            from transformers.cache_utils import DynamicCache

            logits = torch.full((len(input_ids), 1, len(tokenizer)), -10.0)
            logits[..., ids[min(self.step, len(ids) - 1)]] = 10.0
            self.step += 1
            cache = kwargs.get("past_key_values") or DynamicCache()
            states = torch.zeros(len(input_ids), 1, input_ids.shape[1], 1)
            cache.update(states, states, 0)
            return SimpleNamespace(logits=logits, past_key_values=cache)

    return Script(), tokenizer


@pytest.mark.parametrize(
    ("text", "stop", "expected"),
    [
        ("good day###Human: more", ["###Human"], "good day"),  # over many tokens
        ("good day ##Human ###Hum", ["###Human"], None),  # only nearly
        ("one. two. three.", ["."], "one"),  # one character, at once
        ("say \u4f60\u597d and go", ["\u4f60\u597d"], "say"),  # characters of several byte tokens
        ("so \U0001f642\U0001f642\U0001f642\U0001f642\U0001f642\U0001f642 on", ["\U0001f642" * 5], "so"),
        ("a\n\nb", ["\n\n"], "a"),
        ("x stop y", ["y", " stop"], "x"),  # whichever comes first
        ("END", ["END"], ""),
    ],
)
def test_stop_strings(tiny: Loaded, text: str, stop: list[str], expected: str | None) -> None:
    tokenizer = tiny[1]
    ids = tokenizer(text).input_ids
    loaded = scripted(tokenizer, text)
    (one,) = draw(loaded, [[5, 6]], [0], uniforms(1, 60), temperature=0.0, stop=tuple(stop))
    sampling = Sampling(stop=tuple(stop))
    if expected is None:
        assert one.finish_reason == "eos"
        assert one.tokens == [*ids, tokenizer.eos_token_id]
        assert response_text(one, sampling, tokenizer) == text
        return
    assert one.finish_reason == "stop"
    # As sampled: up to the token that completed the stop string, and no further.
    assert one.tokens == ids[: len(one.tokens)]
    assert any(string in tokenizer.decode(one.tokens) for string in stop)
    assert not any(string in tokenizer.decode(one.tokens[:-1]) for string in stop)
    assert response_text(one, sampling, tokenizer) == expected


def test_a_stop_string_that_the_whole_text_does_not_show(tiny: Loaded) -> None:
    """Some decoders write a token otherwise where others stand before it, as WordPiece its ##."""
    found = response_text(Generated(tiny[1]("so on").input_ids, "stop"), Sampling(stop=("##",)), tiny[1])
    assert found == "so on"


def test_a_stop_string_ends_its_own_row_alone(tiny: Loaded) -> None:
    _model, tokenizer = tiny
    prompts, rows, numbers = encode(tokenizer), [i % 4 for i in range(16)], uniforms(16, 20)
    free = draw(tiny, prompts, rows, numbers)
    stopped = draw(tiny, prompts, rows, numbers, stop=("e",))
    reasons = {one.finish_reason for one in stopped}
    assert reasons >= {"stop", "length"}
    for one, other in zip(stopped, free, strict=True):
        assert one.tokens == other.tokens[: len(one.tokens)]
        hits = [i for i in range(len(other.tokens)) 
                if "e" in tokenizer.decode(other.tokens[: i + 1], skip_special_tokens=True)]  # fmt: skip
        assert len(one.tokens) == (hits[0] + 1 if hits else len(other.tokens))
        assert (one.finish_reason == "stop") == bool(hits)


def test_response_text_leaves_out_special_tokens_and_outer_space(tiny: Loaded) -> None:
    tokenizer = tiny[1]
    ids = tokenizer(" Hello there \n<|im_end|>").input_ids
    assert response_text(Generated(ids, "eos"), Sampling(), tokenizer) == "Hello there"
    # What a stop string would have cut stays where the response did not end by one.
    ids = tokenizer("a###Human").input_ids
    assert response_text(Generated(ids, "length"), Sampling(stop=("###Human",)), tokenizer) == "a###Human"
    assert response_text(Generated([tokenizer.eos_token_id], "eos"), Sampling(), tokenizer) == ""


# ------------------------------------------------------------------------------------------- step by step


def test_each_steps_tokens_are_told_as_they_are_drawn(talkative: Loaded) -> None:
    model, tokenizer = talkative
    steps: list[list[int]] = []
    found = generate(
        model,
        encode(tokenizer),
        [0, 1, 2, 3, 0],
        uniforms(5, 24),
        Sampling(max_tokens=24),
        tokenizer,
        on_step=lambda tokens: steps.append(tokens.tolist()),
    )
    told = [[token for token in column if token != sampler.NOTHING] for column in zip(*steps, strict=True)]
    assert told == [response.tokens for response in found]
    assert len({len(tokens) for tokens in told}) > 1  # some left the batch before others


# ------------------------------------------------------------------------------------------- logits without a token


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize(("at", "every"), [(0, 1), (2, 1), (2, 8), (3, 8)])
def test_logits_that_are_not_finite_end_it_in_one_sentence(
    tiny: Loaded, at: int, every: int, temperature: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whenever the host looks, as on CUDA: before the model is given an id that it has no embedding for."""
    monkeypatch.setattr(sampler, "CHECKED_EVERY", {False: every})
    prompts, forward, steps = [[5, 6, 7]] * 2, tiny[0].forward, iter(range(9))

    def diverging(**options: Any) -> Any:
        output = forward(**options)
        output.logits[:2, -1, 3] = float("nan") if next(steps) == at else 0.0
        return output

    monkeypatch.setattr(tiny[0], "forward", diverging)
    with pytest.raises(UserError, match=r"^the policy's logits are not finite \(NaN or infinity\)"):
        draw(tiny, prompts, [0, 1], uniforms(2, 4), temperature=temperature, min_tokens=4)
