"""Classifiers from elsewhere: labels, signs, encoders; and what does not fit together, refused in a sentence."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers.processors import TemplateProcessing
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    BertConfig,
    BertForSequenceClassification,
    BertTokenizerFast,
    DebertaV2Config,
    DebertaV2ForSequenceClassification,
    LlamaForSequenceClassification,
    LlamaForTokenClassification,
    PreTrainedTokenizerFast,
)

from raft.arguments import parse
from raft.config import LoraConfig, ModelConfig
from raft.engine.export import save_pretrained
from raft.errors import UserError
from raft.models.loading import load_classifier, load_tokenizer
from raft.models.lora import attach
from raft.rewards.contract import RewardContract
from raft.rewards.loading import load_model
from raft.rewards.reward_model import RewardModel, load_reward_model
from raft.rewards.source import Candidate
from raft.tools.score_config import ScoreConfig
from tests.conftest import SENTENCES, build_model

USER = {"role": "user", "content": "Hello"}
CANDIDATES = [Candidate([USER], sentence) for sentence in SENTENCES]


def load(path: str | Path, **options: Any) -> RewardModel:
    return load_reward_model(str(path), base=None, dtype="fp32", batch_size=3, **options)


def from_flags(path: str, label: str, *flags: str) -> RewardModel:
    """A classifier as ``--reward PATH,label=...`` names it."""
    given = ["--dataset_path", "x", "--reward", f"{path},label={label}", "--reward_dtype", "fp32", *flags]
    config = parse(ScoreConfig, given, prog="raft score").reward
    (spec,) = config.specs()
    return load_model(spec, config)


def scores(model: RewardModel) -> list[float]:
    return model.score(CANDIDATES, name="test", progress=None)


@pytest.fixture
def path(tiny_reward_model: str, tmp_path: Path) -> Path:
    """A reward model of its own for a test to change."""
    return Path(shutil.copytree(tiny_reward_model, tmp_path / "model"))


def edit(path: Path, name: str, **values: Any) -> None:
    file = path / name
    file.write_text(json.dumps(json.loads(file.read_text()) | values))


# ---------------------------------------------------------------- labels and sign


def build_classifier(tiny_model: str, path: Path, *names: str) -> str:
    """A classifier with outputs of these names."""
    torch.manual_seed(3)
    model = AutoModelForSequenceClassification.from_pretrained(
        tiny_model, num_labels=len(names), id2label=dict(enumerate(names)), label2id={n: i for i, n in enumerate(names)}
    )
    torch.nn.init.normal_(model.score.weight.data)
    model.save_pretrained(path)
    AutoTokenizer.from_pretrained(tiny_model).save_pretrained(path)
    return str(path)


@pytest.fixture(scope="module")
def emotions(tiny_model: str, tmp_path_factory: pytest.TempPathFactory) -> str:
    """A classifier with three named outputs."""
    return build_classifier(
        tiny_model, tmp_path_factory.mktemp("models") / "emotions", "NEGATIVE", "neutral", "positive"
    )


@pytest.fixture(scope="module")
def stars(tiny_model: str, tmp_path_factory: pytest.TempPathFactory) -> str:
    """A classifier whose outputs have the names of each other's indices."""
    return build_classifier(tiny_model, tmp_path_factory.mktemp("models") / "stars", "1", "2", "3")


def logits(path: str) -> torch.Tensor:
    """(candidates, outputs) by transformers alone."""
    model, tokenizer = LlamaForSequenceClassification.from_pretrained(path).eval(), AutoTokenizer.from_pretrained(path)
    found = []
    for one in CANDIDATES:
        text = f"<|im_start|>user\nHello<|im_end|>\n<|im_start|>assistant\n{one.response}<|im_end|>"
        found.append(model(**tokenizer(text, return_tensors="pt")).logits[0].detach())
    return torch.stack(found)


@pytest.mark.parametrize(
    ("label", "index"), [("positive", 2), ("Positive", 2), ("negative", 0), (1, 1), ("1", 1), ("#1", 1)]
)
def test_the_score_is_the_output_of_that_name_or_index(emotions: str, label: int | str, index: int) -> None:
    assert scores(load(emotions, label=label)) == pytest.approx(logits(emotions)[:, index].tolist(), abs=1e-4)


@pytest.mark.parametrize("function", ["none", "softmax", "log_softmax", "sigmoid"])
def test_a_function_is_applied_to_all_outputs_before_one_is_read(emotions: str, tmp_path: Path, function: str) -> None:
    outputs = logits(emotions)
    raised = outputs.exp()
    expected = {
        "none": outputs,
        "softmax": raised / raised.sum(1, keepdim=True),
        "log_softmax": (raised / raised.sum(1, keepdim=True)).log(),
        "sigmoid": 1 / (1 + (-outputs).exp()),
    }[function][:, 2]
    by_flag = from_flags(f"{emotions},function_to_apply={function}", "positive")
    assert scores(by_flag) == pytest.approx(expected.tolist(), abs=1e-4)
    RewardContract(label=2, function_to_apply=function).save(tmp_path)
    by_contract = load(emotions, contract_file=str(tmp_path / "reward_model.json"))
    assert scores(by_contract) == pytest.approx(expected.tolist(), abs=1e-4)


def test_functions_that_say_nothing_or_are_unknown_are_refused(path: Path, emotions: str) -> None:
    with pytest.raises(UserError, match="softmax, which is the same for every text with one output; allowed are none"):
        load(path, said={"function_to_apply": "softmax"})
    with pytest.raises(UserError, match=r"^--reward .*function_to_apply: found \"tanh\", allowed are \"none\", "):
        from_flags(f"{emotions},function_to_apply=tanh", "positive")


@pytest.mark.parametrize("label", ["joy", 3, -1, "2.0"])
def test_an_unknown_label_is_refused_with_the_known_ones(emotions: str, label: int | str) -> None:
    with pytest.raises(UserError) as caught:
        load(emotions, label=label)
    assert str(caught.value) == (
        f"--reward_model_or_path: {emotions}: label is {label}, but there is no such output; there are 0 (NEGATIVE), "
        "1 (neutral), 2 (positive)."
    )


@pytest.mark.parametrize(("label", "index"), [(1, 1), (2, 2), (0, 0), ("1", 0), ("2", 1), ("3", 2)])
def test_a_contract_says_an_index_by_a_number_and_a_name_by_a_text(
    stars: str, tmp_path: Path, label: int | str, index: int
) -> None:
    file = tmp_path / "contract.json"
    file.write_text(json.dumps({"label": label}))
    assert load(stars, contract_file=str(file)).contract.label == index


@pytest.mark.parametrize("label", [3, "4", "0", "#1"])
def test_a_contract_does_not_take_one_for_the_other(stars: str, tmp_path: Path, label: int | str) -> None:
    file = tmp_path / "contract.json"
    file.write_text(json.dumps({"label": label}))
    with pytest.raises(
        UserError, match=rf"label of its contract is {json.dumps(label)}, but .* 0 \(1\), 1 \(2\), 2 \(3\)\."
    ):
        load(stars, contract_file=str(file))


@pytest.mark.parametrize(("label", "index"), [("0", 0), ("3", 2), ("#1", 1), ("#2", 2)])
def test_digits_on_the_command_line_that_mean_one_output(stars: str, label: str, index: int) -> None:
    assert from_flags(stars, label).contract.label == index


def test_digits_on_the_command_line_that_mean_two_outputs(stars: str) -> None:
    with pytest.raises(UserError) as caught:
        from_flags(stars, "1")
    assert str(caught.value) == (
        f"--reward {stars},label=1: label is 1, which is output 0 (1) by name and output 1 (2) by index; say label=#0 "
        "or label=#1."
    )


def test_several_outputs_need_a_label(emotions: str) -> None:
    with pytest.raises(UserError, match=r"several outputs: 0 \(NEGATIVE\), .* or by --reward .*,label=positive"):
        load(emotions)


def test_a_contract_without_a_label_does_not_guess(emotions: str, tmp_path: Path) -> None:
    file = tmp_path / "silent.json"
    file.write_text('{"max_length": 100}')
    with pytest.raises(UserError, match="several outputs"):
        load(emotions, contract_file=str(file))


def test_the_contract_names_label_and_sign_and_a_flag_goes_before(emotions: str, tmp_path: Path) -> None:
    file = tmp_path / "toxic.json"
    file.write_text('{"label": "neutral", "sign": -1}')
    expected = -logits(emotions)
    assert scores(load(emotions, contract_file=str(file))) == pytest.approx(expected[:, 1].tolist(), abs=1e-4)
    found = scores(load(emotions, contract_file=str(file), label="positive"))
    assert found == pytest.approx(expected[:, 2].tolist(), abs=1e-4)


def test_an_adapter_may_have_several_outputs(tiny_model: str, tmp_path: Path) -> None:
    config = ModelConfig(model_name_or_path=tiny_model)
    torch.manual_seed(0)
    model = attach(
        load_classifier(config, num_labels=3), LoraConfig(use_lora=True), task="SEQ_CLS", modules_to_save=["score"]
    )
    save_pretrained(model, load_tokenizer(config), tmp_path / "adapter", card="", base_model=tiny_model)
    model.get_base_model().save_pretrained(tmp_path / "unused")  # the head of three outputs, for the expectation
    head = load_file(tmp_path / "adapter/adapter_model.safetensors")["base_model.model.score.weight"]
    body = LlamaForSequenceClassification.from_pretrained(tiny_model, num_labels=3).eval()
    body.score.weight.data = head
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    text = f"<|im_start|>user\nHello<|im_end|>\n<|im_start|>assistant\n{SENTENCES[0]}<|im_end|>"
    expected = body(**tokenizer(text, return_tensors="pt")).logits[0, 2].item()
    assert scores(load(tmp_path / "adapter", label=2))[0] == pytest.approx(expected, abs=1e-4)


# ---------------------------------------------------------------- where the score is read


@pytest.mark.parametrize(("score_token", "end"), [("eos", "<|im_end|>"), ("last", ""), ("template", "<|im_end|>\n")])
def test_the_score_is_read_at_the_token_of_the_contract(path: Path, score_token: str, end: str) -> None:
    RewardContract(score_token=score_token).save(path)
    model, tokenizer = LlamaForSequenceClassification.from_pretrained(path).eval(), AutoTokenizer.from_pretrained(path)
    expected = []
    for one in CANDIDATES:
        text = f"<|im_start|>user\nHello<|im_end|>\n<|im_start|>assistant\n{one.response}{end}"
        expected.append(model(**tokenizer(text, return_tensors="pt")).logits[0, 0].item())
    assert scores(load(path)) == pytest.approx(expected, abs=1e-4)


@pytest.fixture
def encoder(tmp_path: Path) -> Path:
    """A tiny BERT of the Hub's text-classification kind: no EOS, no chat template, no contract."""
    path = tmp_path / "bert"
    path.mkdir()
    words = sorted({word.strip(".,?").lower() for sentence in SENTENCES for word in sentence.split()})
    marks = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "hi", ".", ",", "?"]
    (path / "vocab.txt").write_text("\n".join(marks + words))
    tokenizer = BertTokenizerFast(str(path / "vocab.txt"), model_max_length=40)
    tokenizer.save_pretrained(path)
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=64,
        max_position_embeddings=48,
        initializer_range=0.3,
        id2label={0: "negative", 1: "positive"},
        label2id={"negative": 0, "positive": 1},
    )
    BertForSequenceClassification(config).save_pretrained(path)
    return path


def test_an_encoder_scores_as_transformers_does(encoder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model, tokenizer = (
        BertForSequenceClassification.from_pretrained(encoder).eval(),
        BertTokenizerFast.from_pretrained(encoder),
    )
    expected = [
        model(**tokenizer("Hello" + one.response, return_tensors="pt")).logits[0, 1].item() for one in CANDIDATES
    ]
    assert max(expected) - min(expected) > 0.01, "otherwise this would show nothing"
    loaded = load(encoder, label="positive")
    assert scores(loaded) == pytest.approx(expected, abs=1e-4)
    assert "assumed: template raw, score pooled by the classifier, 40 tokens at most" in capsys.readouterr().err
    cut = loaded.reader.encode([USER], "bread " * 60)
    assert (len(cut), cut[0], cut[-1]) == (40, tokenizer.cls_token_id, tokenizer.sep_token_id)


@pytest.fixture
def pairs(encoder: Path) -> Path:
    """A tiny DeBERTa with one output, such as those that were trained on a prompt and an answer as two texts."""
    config = DebertaV2Config(
        vocab_size=len(BertTokenizerFast.from_pretrained(encoder)),
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=64,
        max_position_embeddings=48,
        type_vocab_size=0,
        relative_attention=True,
        pos_att_type=["p2c", "c2p"],
        initializer_range=0.3,
        num_labels=1,
    )
    torch.manual_seed(0)
    DebertaV2ForSequenceClassification(config).save_pretrained(encoder)
    return encoder


@pytest.mark.parametrize("kind", ["pairs", "encoder"])
def test_prompt_and_response_as_a_pair_score_as_transformers_does(kind: str, request: pytest.FixtureRequest) -> None:
    """Without token types (DeBERTa), and with them (BERT)."""
    pairs: Path = request.getfixturevalue(kind)
    model = AutoModelForSequenceClassification.from_pretrained(pairs).eval()
    tokenizer = BertTokenizerFast.from_pretrained(pairs)
    turns = [USER, {"role": "assistant", "content": "hi"}, {"role": "user", "content": SENTENCES[0]}]
    candidates = [Candidate(prompt, sentence) for prompt in ([USER], turns) for sentence in SENTENCES[1:6]]
    expected = []
    for one in candidates:
        prompt = "\n".join(message["content"] for message in one.messages)
        given = tokenizer(prompt, one.response, return_tensors="pt", return_token_type_ids=kind == "encoder")
        expected.append(model(**given).logits[0, 0].item())
    loaded = load(pairs, label=0, said={"template": "pair"})
    found = loaded.score(candidates, name="test", progress=None)
    assert found == pytest.approx(expected, abs=1e-4)
    as_one_text = load(pairs, label=0).score(candidates, name="test", progress=None)
    assert max(abs(a - b) for a, b in zip(found, as_one_text, strict=True)) > 0.01
    flags = ["--dataset_path", "x", "--reward", f"{pairs},template=pair,label=0"]
    config = parse(ScoreConfig, flags, prog="raft score").reward
    by_flag = load_model(*config.specs(), config).score(candidates, name="test", progress=None)
    assert by_flag == pytest.approx(found, abs=1e-4)


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize(("asked", "answered"), [(20, 30), (60, 4), (37, 4), (38, 60), (5, 60)])
def test_pairs_are_cut_where_their_contract_says(pairs: Path, side: str, asked: int, answered: int) -> None:
    """40 tokens: three special ones, and the last (or first) 37 of prompt and response."""
    RewardContract(template="pair", score_token="pooled", max_length=40, truncation_side=side).save(pairs)
    reader = load(pairs).reader
    tokenizer = reader.tokenizer
    prompt, response = [USER | {"content": "hi " * asked}], "? " * answered
    hi, mark = tokenizer.convert_tokens_to_ids(["hi", "?"])
    texts = [hi] * asked + [mark] * answered
    if side == "right" and asked >= 37:
        with pytest.raises(UserError, match=f"a prompt has {asked + 3} tokens, and the reward model reads the first 4"):
            reader.encode(prompt, response)
        return
    kept = texts[-37:] if side == "left" else texts[:37]
    cls, sep = tokenizer.cls_token_id, tokenizer.sep_token_id
    expected = [cls, *[token for token in kept if token == hi], sep, *[token for token in kept if token == mark], sep]
    assert reader.encode(prompt, response) == expected


@pytest.mark.parametrize("template", ["pair", "raw"])
def test_a_text_that_spells_special_tokens_has_none(encoder: Path, template: str) -> None:
    reader = load(encoder, label=1, said={"template": template}).reader
    marks = reader.tokenizer.all_special_ids
    ids = reader.encode([USER | {"content": "hi [SEP] hi"}], "? [SEP] [PAD] ?")
    assert [token for token in ids if token in marks and token != reader.tokenizer.unk_token_id] == [
        reader.tokenizer.cls_token_id, *[reader.tokenizer.sep_token_id] * (2 if template == "pair" else 1)
    ]  # fmt: skip


def test_a_pair_needs_an_encoder_and_token_types_that_its_separator_tells(encoder: Path, path: Path) -> None:
    tokenizer = load_tokenizer(ModelConfig(model_name_or_path=str(encoder)), needs_eos=False)
    marks = [(token, tokenizer.convert_tokens_to_ids(token)) for token in ("[CLS]", "[SEP]")]
    plain = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer.backend_tokenizer, pad_token="[PAD]", cls_token="[CLS]", sep_token="[SEP]"
    )
    plain.backend_tokenizer.post_processor = TemplateProcessing(
        single="[CLS]:0 $A:0 [SEP]:0", pair="[CLS]:0 $A:0 [SEP]:0 $B:1 [SEP]:2", special_tokens=marks
    )
    plain.save_pretrained(encoder)
    settings = json.loads((encoder / "tokenizer_config.json").read_text())
    settings["model_input_names"] = ["input_ids", "token_type_ids", "attention_mask"]
    (encoder / "tokenizer_config.json").write_text(json.dumps(settings))
    with pytest.raises(UserError, match=r"template is pair, but its tokenizer gives .* the types \[0, 0, 0, 1, 2\]"):
        load(encoder, label=1, said={"template": "pair"})
    load(encoder, label=1)
    with pytest.raises(UserError, match="template: pair is for encoders"):
        load(path, said={"template": "pair"})


def test_an_encoder_is_not_read_at_eos(encoder: Path) -> None:
    RewardContract(template="raw", label=1, max_length=40).save(encoder)
    with pytest.raises(UserError, match="its tokenizer has no EOS token, which score_token: eos needs"):
        load(encoder)


def test_a_decoder_does_not_pool(path: Path) -> None:
    RewardContract(score_token="pooled").save(path)
    with pytest.raises(UserError, match="score_token: pooled, but the classifier puts its head on one token"):
        load(path)


# ---------------------------------------------------------------- what is refused


def test_another_task_head(tiny_model: str, tmp_path: Path) -> None:
    path = shutil.copytree(tiny_model, tmp_path / "tagger")
    LlamaForTokenClassification.from_pretrained(tiny_model).save_pretrained(path)
    with pytest.raises(UserError, match=r"LlamaForTokenClassification, not a sequence classifier.*raft reward"):
        load(path)


def rename_head(weights: dict[str, torch.Tensor]) -> None:
    weights["v_head.summary.weight"] = weights.pop("score.weight")


def drop_layer(weights: dict[str, torch.Tensor]) -> None:
    del weights["model.layers.1.mlp.up_proj.weight"]


def widen_head(weights: dict[str, torch.Tensor]) -> None:
    weights["score.weight"] = torch.ones(2, 32)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (rename_head, r"lacks its score head \(score\.weight\).*Its file has v_head\.summary\.weight instead"),
        (drop_layer, r"lacks 1 of its weights \(model\.layers\.1\.mlp\.up_proj\.weight, \.\.\.\)"),
        (widen_head, r"score\.weight is \(2, 32\) in the file, the configuration asks for \(1, 32\)"),
    ],
)
def test_weights_that_would_be_newly_initialised(path: Path, change: Callable[[Any], None], message: str) -> None:
    weights = load_file(path / "model.safetensors")
    change(weights)
    save_file(weights, path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UserError, match=message):
        load(path)


def test_a_tokenizer_with_more_tokens_than_the_embedding(path: Path) -> None:
    tokenizer: Any = AutoTokenizer.from_pretrained(path)
    num_rows = len(tokenizer)
    tokenizer.add_tokens(["<|new|>"])
    tokenizer.save_pretrained(path)
    with pytest.raises(UserError, match=rf"token ids up to {num_rows}, its embedding {num_rows} rows; the tokenizer"):
        load(path)


def test_a_contract_that_reads_more_than_the_model_can(path: Path) -> None:
    RewardContract(max_length=513).save(path)
    with pytest.raises(UserError, match=r"513 tokens are read \(max_length\), but the model has 512 positions"):
        load(path)


def test_a_contract_with_a_label_that_is_not_there(path: Path) -> None:
    RewardContract(label=1).save(path)
    with pytest.raises(
        UserError, match=r"label of its contract is 1, but there is no such output; there are 0 \(LABEL_0\)\."
    ):
        load(path)


def test_a_contract_of_another_base(tiny_model: str, tmp_path: Path) -> None:
    from tests.adapters import build_adapter

    adapter = Path(build_adapter(tiny_model, tmp_path / "adapter", reward=True))
    (adapter / "raft_adapter.json").unlink()
    build_model(tmp_path / "other", seed=5)
    with pytest.raises(UserError, match=r"another base model.*Name the right one with --reward_base_model"):
        load_reward_model(str(adapter), base=str(tmp_path / "other"), dtype="fp32", batch_size=2)
    with pytest.raises(UserError, match=r"--reward_base_model: there is no directory .*gone"):
        load_reward_model(str(adapter), base=str(tmp_path / "gone"), dtype="fp32", batch_size=2)


def test_a_prompt_that_fills_the_context(path: Path) -> None:
    RewardContract(max_length=12, truncation_side="right").save(path)
    filled = [Candidate([{"role": "user", "content": SENTENCES[0]}], "Hi.")]
    message = r": a prompt has \d+ tokens, and the reward model reads the first 12"
    with pytest.raises(UserError, match="^--reward_model_or_path" + message):
        load(path, test=False).score(filled, name="test", progress=None)
    named = from_flags(str(path), "0", "--no_reward_self_test")
    with pytest.raises(UserError, match=rf"^--reward {path},label=0{message}"):
        named.score(filled, name="test", progress=None)


def test_a_prompt_that_fills_the_context_of_an_encoder(encoder: Path) -> None:
    """Its special tokens need room too."""
    RewardContract(template="raw", score_token="pooled", label=1, max_length=20, truncation_side="right").save(encoder)
    reader = load(encoder).reader
    fits, fills = ([{"role": "user", "content": "bread " * count}] for count in (17, 18))
    last = reader.tokenizer.convert_ids_to_tokens(reader.encode(fits, "flour salt"))[-3:]
    assert last == ["bread", "flour", "[SEP]"]
    with pytest.raises(UserError, match=r"a prompt has 20 tokens, and the reward model reads the first 20 of prompt"):
        reader.encode(fills, "flour salt")
    RewardContract(template="raw", score_token="pooled", label=1, max_length=20).save(encoder)
    assert (
        load(encoder).reader.tokenizer.decode(load(encoder).reader.encode(fills, "flour salt")).endswith("salt [SEP]")
    )


def test_texts_that_are_cut_are_told_once(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    RewardContract(max_length=40).save(path)
    model = load(path, test=False)
    long = [{"role": "user", "content": " ".join(SENTENCES)}]
    for _ in range(2):
        model.score([Candidate(long, "Hi."), Candidate([USER], "Hi.")], name="test", progress=None)
    told = capsys.readouterr().err
    assert told.count("1 of 2 texts have more than 40 tokens and lose the start of their prompt\n") == 1
    assert told.count("lose") == 1


def told_of(model: RewardModel, capsys: pytest.CaptureFixture[str]) -> str:
    """The line about a long prompt, and responses of which just all, not quite all and nearly nothing is read."""
    limit, tokenizer = model.contract.max_length, model.tokenizer
    closed = 0 if model.contract.score_token == "pooled" else 1
    special = tokenizer.num_special_tokens_to_add()
    filling = limit - special - closed
    texts = ["?" * filling, "?" * (filling + 1), "?" * 99, "?"]
    assert len(tokenizer(texts[0], add_special_tokens=False).input_ids) + special + closed == limit
    candidates = [Candidate([USER], text) for text in texts]
    candidates.append(Candidate([{"role": "user", "content": "?" * 99}], "?"))
    model.score(candidates, name="test", progress=None)
    return capsys.readouterr().err.splitlines()[-1]


def test_responses_that_are_cut_are_told_apart(path: Path, encoder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    expected = (
        "4 of 5 texts have more than {} tokens: 2 lose the start of their prompt, 2 lose all of it and the start of "
        "their response"
    )
    RewardContract(max_length=40).save(path)
    assert told_of(load(path, test=False), capsys) == expected.format(40)
    RewardContract(template="raw", score_token="pooled", label=1, max_length=20).save(encoder)
    assert told_of(load(encoder, test=False), capsys) == expected.format(20)
