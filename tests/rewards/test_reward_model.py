from __future__ import annotations

import json
import random
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer, LlamaModel

from raft.data.encoding import encode_scored
from raft.errors import UserError
from raft.models.scoring import ScoringModel
from raft.precision import Dtype
from raft.rewards.contract import RewardContract
from raft.rewards.reward_model import RewardModel, load_reward_model
from raft.rewards.source import Candidate
from tests.adapters import build_adapter
from tests.conftest import SENTENCES, build_model


def user(text: str) -> dict[str, str]:
    return {"role": "user", "content": text}


def answered(text: str) -> dict[str, str]:
    return {"role": "assistant", "content": text}


WORDS = " ".join(SENTENCES).split()
CANDIDATES = [
    Candidate([user(" ".join(WORDS[i : i + 1 + 3 * i % 11]))], " ".join(WORDS[2 * i :][: 7 * i % 10]))
    for i in range(14)
]
CANDIDATES += [
    Candidate(
        [{"role": "system", "content": "Be brief."}, user("Hello"), answered("Hi <3"), user("How are you?")], "Fine."
    ),
    Candidate([user("Hello")], ""),  # a response of nothing but EOS
    Candidate([user("Hello")], "two\nlines, \u4f60\u597d"),
]


def load(path: str | Path, *, dtype: Dtype = "fp32", batch_size: int = 8, base: str | None = None) -> RewardModel:
    return load_reward_model(str(path), base=base, dtype=dtype, batch_size=batch_size)


def scores(model: RewardModel, candidates: list[Candidate]) -> list[float]:
    return model.score(candidates, name="test", progress=None)


def chat_text(candidate: Candidate) -> str:
    """The text that the tiny models' template makes of a candidate, by hand: it ends with the response's EOS."""
    turns = "".join(f"<|im_start|>{m['role']}\n{m['content']}<|im_end|>\n" for m in candidate.messages)
    return f"{turns}<|im_start|>assistant\n{candidate.response}<|im_end|>"


def plain_score(model: Any, tokenizer: Any, text: str) -> float:
    """A score by transformers alone: one unpadded row, read where it ends."""
    ids = tokenizer(text, add_special_tokens=False, return_tensors="pt").input_ids
    with torch.no_grad():
        return float(model.score(model.model(input_ids=ids).last_hidden_state[:, -1])[0, 0])


@pytest.fixture(scope="module")
def plain(tiny_reward_model: str) -> list[float]:
    model = AutoModelForSequenceClassification.from_pretrained(tiny_reward_model, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(tiny_reward_model)
    return [plain_score(model, tokenizer, chat_text(candidate)) for candidate in CANDIDATES]


# ------------------------------------------------------------------------------------------- the right token


def test_scores_equal_plain_transformers_read_at_the_closing_eos(tiny_reward_model: str, plain: list[float]) -> None:
    found = scores(load(tiny_reward_model), CANDIDATES)
    assert found == pytest.approx(plain, abs=1e-4)
    assert len({round(score, 3) for score in found}) > 14, "otherwise this would show nothing"
    # transformers' own forward agrees where pad and EOS differ.
    model = AutoModelForSequenceClassification.from_pretrained(tiny_reward_model, dtype=torch.float32).eval()
    ids = AutoTokenizer.from_pretrained(tiny_reward_model)(chat_text(CANDIDATES[3]), return_tensors="pt").input_ids
    assert ids[0, -1] == 2
    assert float(model(input_ids=ids).logits.detach()[0, 0]) == pytest.approx(found[3], abs=1e-4)


def test_pad_may_be_eos(tiny_reward_model: str, plain: list[float], tmp_path: Path) -> None:
    path = shutil.copytree(tiny_reward_model, tmp_path / "pad-is-eos")
    tokenizer = AutoTokenizer.from_pretrained(path)
    tokenizer.pad_token = tokenizer.eos_token
    tokenizer.save_pretrained(path)
    config = json.loads((path / "config.json").read_text())
    config["pad_token_id"] = tokenizer.eos_token_id
    (path / "config.json").write_text(json.dumps(config))
    model = load(path)
    assert model.tokenizer.pad_token_id == model.tokenizer.eos_token_id
    assert scores(model, CANDIDATES) == pytest.approx(plain, abs=1e-4)


def test_a_tokenizer_without_pad_borrows_eos(tiny_reward_model: str, plain: list[float], tmp_path: Path) -> None:
    path = shutil.copytree(tiny_reward_model, tmp_path / "no-pad")
    settings = json.loads((path / "tokenizer_config.json").read_text())
    settings.pop("pad_token")
    (path / "tokenizer_config.json").write_text(json.dumps(settings))
    assert scores(load(path), CANDIDATES) == pytest.approx(plain, abs=1e-4)


def test_padding_on_either_side_gives_the_same_scores(tiny_reward_model: str) -> None:
    model = ScoringModel(AutoModelForSequenceClassification.from_pretrained(tiny_reward_model).eval())
    rows = [[5, 6, 7, 2], [9, 2], [3, 2, 2]]
    right = (
        torch.tensor([[5, 6, 7, 2], [9, 2, 0, 0], [3, 2, 2, 0]]),
        torch.tensor([[1] * 4, [1, 1, 0, 0], [1, 1, 1, 0]]),
    )
    left = torch.tensor([[5, 6, 7, 2], [0, 0, 9, 2], [0, 3, 2, 2]]), torch.tensor([[1] * 4, [0, 0, 1, 1], [0, 1, 1, 1]])
    with torch.no_grad():
        alone = [model(torch.tensor([row]), torch.ones(1, len(row), dtype=torch.long)).item() for row in rows]
        assert model(*right).tolist() == pytest.approx(alone, abs=1e-5)
        assert model(*left).tolist() == pytest.approx(alone, abs=1e-5)


def test_a_long_dialogue_loses_the_start_of_its_prompt(tiny_reward_model: str, tmp_path: Path) -> None:
    path = shutil.copytree(tiny_reward_model, tmp_path / "short")
    RewardContract(template="chat", max_length=20).save(path)
    model = load(path)
    plain_model = AutoModelForSequenceClassification.from_pretrained(path).eval()
    found = scores(model, CANDIDATES)
    for candidate, score in zip(CANDIDATES, found, strict=True):
        ids = model.tokenizer(chat_text(candidate)).input_ids[-20:]
        with torch.no_grad():
            hidden = plain_model.model(torch.tensor([ids])).last_hidden_state[0, -1]
        assert score == pytest.approx(float(plain_model.score(hidden).detach()[0]), abs=1e-4)


# ------------------------------------------------------------------------------------------- batches


def test_single_and_batched_scores_agree(tiny_reward_model: str) -> None:
    one, many = load(tiny_reward_model, batch_size=1), load(tiny_reward_model, batch_size=64)
    assert scores(one, CANDIDATES) == pytest.approx(scores(many, CANDIDATES), abs=1e-4)
    alone = [scores(many, [candidate])[0] for candidate in CANDIDATES]
    assert alone == pytest.approx(scores(many, CANDIDATES), abs=1e-4)


def test_single_and_batched_scores_agree_in_bfloat16(tiny_reward_model: str, plain: list[float]) -> None:
    # Measured: 0.006 at most between batch sizes, and 0.07 from fp32, at scores that span 3.5.
    one = scores(load(tiny_reward_model, dtype="bf16", batch_size=1), CANDIDATES)
    many = scores(load(tiny_reward_model, dtype="bf16", batch_size=64), CANDIDATES)
    assert one == pytest.approx(many, abs=0.02)
    assert many == pytest.approx(plain, abs=0.15)
    # The head computes in fp32: scores are not on bfloat16's grid.
    assert any(score != float(torch.tensor(score).bfloat16()) for score in many)


def test_scores_keep_the_order_of_the_candidates(tiny_reward_model: str) -> None:
    model = load(tiny_reward_model, batch_size=3)
    in_order = scores(model, CANDIDATES)
    order = list(range(len(CANDIDATES)))
    random.Random(0).shuffle(order)
    assert scores(model, [CANDIDATES[i] for i in order]) == pytest.approx([in_order[i] for i in order], abs=1e-4)


def test_a_prompt_is_read_once_for_its_responses(tiny_reward_model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Four responses each to three prompts: the same scores, from fewer positions."""
    candidates = [
        Candidate([user(" ".join(WORDS[i : i + 20]))], " ".join(WORDS[i + j :][: j + 1]))
        for j in range(4)
        for i in range(3)
    ]
    positions: list[int] = []
    body = LlamaModel.forward

    def counting(self: Any, input_ids: torch.Tensor, **options: Any) -> Any:
        positions.append(input_ids.numel())
        return body(self, input_ids=input_ids, **options)

    monkeypatch.setattr(LlamaModel, "forward", counting)
    model, alone = load(tiny_reward_model, batch_size=8), load(tiny_reward_model, batch_size=1)
    assert model.shares_prompts
    with monkeypatch.context() as patched:  # all ranks cut the same batches, so that one decides for all
        patched.setattr("raft.distributed.all_gather", lambda own: [own, False])
        assert not load(tiny_reward_model, batch_size=8).shares_prompts
    alone.shares_prompts = False
    expected = scores(alone, candidates)
    positions.clear()
    found = scores(model, candidates)
    assert found == pytest.approx(expected, abs=1e-5)
    assert len({round(score, 3) for score in found}) == 12
    rows = [len(row) for row in model._encode(candidates)]
    assert sum(positions) < sum(rows) / 2


# ------------------------------------------------------------------------------------------- adapters


@pytest.fixture(scope="module")
def adapter(tiny_model: str, tmp_path_factory: pytest.TempPathFactory) -> str:
    return build_adapter(tiny_model, tmp_path_factory.mktemp("reward") / "adapter", reward=True)


def test_an_adapter_scores_as_peft_does_and_as_when_merged(tiny_model: str, adapter: str, tmp_path: Path) -> None:
    import peft

    found = scores(load(adapter), CANDIDATES)
    base = AutoModelForSequenceClassification.from_pretrained(tiny_model, num_labels=1, dtype=torch.float32)
    bare = [plain_score(base.eval(), AutoTokenizer.from_pretrained(tiny_model), chat_text(d)) for d in CANDIDATES]
    adapted = peft.PeftModel.from_pretrained(base, adapter).eval()
    tokenizer = AutoTokenizer.from_pretrained(adapter)
    unmerged = [plain_score(adapted.get_base_model(), tokenizer, chat_text(d)) for d in CANDIDATES]
    assert found == pytest.approx(unmerged, abs=1e-4)
    assert max(abs(a - b) for a, b in zip(found, bare, strict=True)) > 0.1, "the adapter says something of its own"
    merged = tmp_path / "merged"
    adapted.merge_and_unload().save_pretrained(merged)
    tokenizer.save_pretrained(merged)
    shutil.copy(Path(adapter) / "reward_model.json", merged)
    assert scores(load(merged), CANDIDATES) == pytest.approx(found, abs=1e-4)


def test_the_base_can_be_named(tiny_model: str, adapter: str, tmp_path: Path) -> None:
    moved = shutil.copytree(tiny_model, tmp_path / "moved")
    assert scores(load(adapter, base=str(moved)), CANDIDATES) == scores(load(adapter), CANDIDATES)


def test_another_base_is_refused(adapter: str, tmp_path: Path) -> None:
    build_model(tmp_path / "other", seed=5)
    with pytest.raises(UserError, match=r"trained on another base model.*fingerprint"):
        load(adapter, base=str(tmp_path / "other"))


def test_an_adapter_without_head_is_refused(tiny_model: str, tmp_path: Path) -> None:
    path = build_adapter(tiny_model, tmp_path / "policy")
    with pytest.raises(UserError, match=r"--reward_model_or_path.*no score head.*modules_to_save"):
        load(path)


def test_an_adapter_without_weights_is_refused(adapter: str, tmp_path: Path) -> None:
    path = shutil.copytree(adapter, tmp_path / "empty")
    (path / "adapter_model.safetensors").unlink()
    with pytest.raises(UserError, match=r"has no adapter_model\.safetensors"):
        load(path)


# ------------------------------------------------------------------------------------------- what is no reward model


def test_a_language_model_is_refused(tiny_model: str) -> None:
    with pytest.raises(UserError, match=r"--reward_model_or_path.*LlamaForCausalLM.*newly initialised"):
        load(tiny_model)


def test_a_missing_path_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"--reward_model_or_path: there is no directory .*nowhere"):
        load(tmp_path / "nowhere")


def test_a_classifier_that_lost_its_head_is_refused(tiny_reward_model: str, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    path = shutil.copytree(tiny_reward_model, tmp_path / "headless")
    weights = load_file(path / "model.safetensors")
    del weights["score.weight"]
    save_file(weights, path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UserError, match=r"lacks its score head \(score\.weight\)"):
        load(path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "not JSON"),
        ('{"tempalte": "chat"}', 'unknown fields "tempalte"'),
        ("[]", "found list, expected a JSON object"),
    ],
)
def test_a_broken_contract_is_refused(tiny_reward_model: str, tmp_path: Path, text: str, message: str) -> None:
    path = shutil.copytree(tiny_reward_model, tmp_path / "broken")
    (path / "reward_model.json").write_text(text)
    with pytest.raises(UserError, match=rf"reward_model\.json: {message}"):
        load(path)


def test_the_label_says_which_output_is_the_score(tiny_model: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = AutoModelForSequenceClassification.from_pretrained(tiny_model, num_labels=3)
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    RewardContract(label=2).save(tmp_path)
    ids = tokenizer(chat_text(CANDIDATES[0]), return_tensors="pt").input_ids
    expected = model.eval()(input_ids=ids).logits.detach()[0, 2].item()
    assert scores(load(tmp_path), CANDIDATES[:1]) == pytest.approx([expected], abs=1e-4)


# ------------------------------------------------------------------------------------------- texts


def test_one_bos_at_most(tiny_reward_model: str, tmp_path: Path) -> None:
    """Also where the tokenizer adds BOS by itself, and where the chat template writes it as well."""
    from tokenizers.processors import TemplateProcessing

    tokenizer: Any = AutoTokenizer.from_pretrained(tiny_reward_model)
    bos, bos_id = tokenizer.bos_token, tokenizer.bos_token_id
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single=f"{bos} $A", pair=f"{bos} $A {bos} $B", special_tokens=[(bos, bos_id)]
    )
    assert tokenizer("a").input_ids[0] == bos_id
    tokenizer.chat_template = (
        "{{ bos_token }}{% for m in messages %}[{{ m['role'] }}] {{ m['content'] }}{% endfor %}"
        "{% if add_generation_prompt %}[assistant] {% endif %}"
    )
    path = shutil.copytree(tiny_reward_model, tmp_path / "bos")
    tokenizer.save_pretrained(path)
    expected_texts = {
        "chat": "[user] Hello[assistant] dog<|im_end|>",
        "human_assistant": "###Human: Hello\n###Assistant: dog<|im_end|>",
        "raw": "Hellodog<|im_end|>",
    }
    plain_model = AutoModelForSequenceClassification.from_pretrained(path).eval()
    for template, text in expected_texts.items():
        RewardContract(template=template).save(path)
        model = load(path)
        tokens = encode_scored(model.template, [user("Hello")], "dog", 512)
        assert tokens.count(bos_id) == 1
        assert tokens[0] == bos_id
        assert tokens.count(tokenizer.eos_token_id) == 1
        assert tokens[-1] == tokenizer.eos_token_id
        assert model.tokenizer.decode(tokens[1:]) == text
        with torch.no_grad():
            hidden = plain_model.model(torch.tensor([tokens])).last_hidden_state[0, -1]
            expected = float(plain_model.score(hidden)[0])
        assert scores(model, [Candidate([user("Hello")], "dog")]) == pytest.approx([expected], abs=1e-4)


# ------------------------------------------------------------------------------------------- out of memory


def test_a_batch_that_does_not_fit_is_scored_in_halves(
    tiny_reward_model: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    model = load(tiny_reward_model, batch_size=9)
    expected = scores(model, CANDIDATES)
    whole = model.score_rows

    def small(rows: list[list[int]]) -> list[float]:
        if len(rows) > 4:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return whole(rows)

    monkeypatch.setattr(model, "score_rows", small)
    assert scores(model, CANDIDATES) == pytest.approx(expected, abs=1e-5)
    assert "out of memory with 9 texts at once; going on with 5" in capsys.readouterr().err
