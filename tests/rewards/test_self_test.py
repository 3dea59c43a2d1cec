"""The self-test at load: small real models, each broken in one way, and the sentence that says so."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import GPT2Config, GPT2ForSequenceClassification

from raft import cli
from raft.errors import UserError
from raft.models.scoring import ScoringModel
from raft.rewards.contract import RewardContract, ScoredPair
from raft.rewards.reading import Reader, with_rendering
from raft.rewards.reward_model import RewardModel, load_reward_model
from raft.rewards.self_test import PROBES, self_test
from raft.run_directory import read_jsonl
from tests.conftest import CHAT_TEMPLATE, build_model, build_tokenizer

HEAD = "score.weight"


@pytest.fixture
def path(tiny_reward_model: str, tmp_path: Path) -> Path:
    """A reward model of its own for a test to break."""
    return Path(shutil.copytree(tiny_reward_model, tmp_path / "model"))


def load(path: str | Path, **options: Any) -> RewardModel:
    return load_reward_model(str(path), base=None, dtype="fp32", batch_size=8, **options)


def change_weights(path: Path, change: Any) -> None:
    weights = load_file(path / "model.safetensors")
    change(weights)
    save_file(weights, path / "model.safetensors", metadata={"format": "pt"})


def failure(path: str | Path) -> str:
    """What the self-test says; loading without it has to work."""
    with pytest.raises(UserError) as caught:
        load(path)
    load(path, test=False)
    message = str(caught.value)
    begin = f"--reward_model_or_path: {path} fails its self-test: "
    assert message.startswith(begin)
    assert message.endswith("--no_reward_self_test loads it all the same.")
    assert "\n" not in message
    return message.removeprefix(begin)


def pairs(model: RewardModel) -> tuple[ScoredPair, ...]:
    """Two pairs with the model's own scores, the better one of each as the chosen."""
    scores = model.score_rows([model.reader.encode(*probe) for probe in PROBES])
    found = []
    for i in (0, 2):
        better, worse = (i, i + 1) if scores[i] > scores[i + 1] else (i + 1, i)
        found.append(ScoredPair(PROBES[i][0], PROBES[better][1], PROBES[worse][1], scores[better], scores[worse]))
    # Pairs share a prompt, so what was measured on two prompts is measured again on one.
    rows = [model.reader.encode(one.messages, text) for one in found for text in (one.chosen, one.rejected)]
    again = model.score_rows(rows)
    return tuple(
        replace(one, chosen_score=again[2 * i], rejected_score=again[2 * i + 1]) for i, one in enumerate(found)
    )


def with_examples(path: Path, **changes: Any) -> RewardContract:
    """Give a model a full contract."""
    model = load(path)
    contract = with_rendering(RewardContract(score_std=1.0, score_mean=0.0), model.tokenizer)
    contract = replace(contract, examples=pairs(model), **changes)
    contract.save(path)
    return contract


# ---------------------------------------------------------------- what passes


def test_a_sound_model_passes_with_and_without_examples(path: Path) -> None:
    load(path)
    contract = with_examples(path)
    assert load(path).contract == replace(contract, label=0)
    load_reward_model(str(path), base=None, dtype="bf16", batch_size=8)


def test_without_a_contract_one_line_says_what_is_assumed(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    load(path)
    (line,) = (line for line in capsys.readouterr().err.splitlines() if "reward_model.json" in line)
    assert line == (
        f"{path} has no reward_model.json; assumed: template chat, score read at the EOS after the response, 512 "
        "tokens at most (the start is cut), padding on the right, output 0, higher is better."
    )
    RewardContract().save(path)
    load(path)
    assert "assumed" not in capsys.readouterr().err


# ---------------------------------------------------------------- what texts become


def test_a_text_that_is_rendered_otherwise_than_in_training(path: Path) -> None:
    contract = with_examples(path)
    replace(contract, chat_template=CHAT_TEMPLATE.replace("<|im_start|>", "<|im_start|>the ")).save(path)
    message = failure(path)
    assert "now reads a dialogue as '<|im_start|>the user" in message
    assert "was trained to read '<|im_start|>user" in message


def test_a_template_with_todays_date_is_no_failure(path: Path) -> None:
    contract = with_examples(path)
    dated = CHAT_TEMPLATE + "{% if false %}{{ strftime_now('%d') }}{% endif %}"
    replace(contract, chat_template=dated, rendered_example="as it was yesterday").save(path)
    load(path)


WITH_DEFAULT = (
    "{% if messages[0]['role'] != 'system' %}<|im_start|>system\nBe good.<|im_end|>\n{% endif %}" + CHAT_TEMPLATE
)
DROPPING = "{% set messages = messages | rejectattr('role', 'equalto', 'system') | list %}" + CHAT_TEMPLATE


@pytest.mark.parametrize(
    ("chat_template", "said", "message"),
    [
        (None, {"system_message": "dropped"}, "system_message is 'dropped', but its template gives 'rendered'"),
        (DROPPING, {"system_message": "rendered"}, "system_message is 'rendered', but its template gives 'dropped'"),
        (
            None,
            {"default_system_prompt": "Be strict."},
            "default_system_prompt is 'Be strict.', but its template gives ''",
        ),
        (WITH_DEFAULT, {"default_system_prompt": ""}, "default_system_prompt is '', but its template gives 'Be good.'"),
    ],
)
def test_a_contract_that_is_wrong_about_system_messages(
    path: Path, chat_template: str | None, said: dict[str, Any], message: str
) -> None:
    RewardContract(chat_template=chat_template, **said).save(path)
    assert failure(path).startswith(
        f"{message}; correct its reward_model.json or use the tokenizer that it was saved with."
    )


@pytest.mark.parametrize(("chat_template", "default"), [(CHAT_TEMPLATE, ""), (WITH_DEFAULT, "Be good.")])
def test_a_contract_that_is_right_about_system_messages(path: Path, chat_template: str, default: str) -> None:
    RewardContract(chat_template=chat_template, system_message="rendered", default_system_prompt=default).save(path)
    load(path)


def test_a_default_system_prompt_with_todays_date_is_no_failure(path: Path) -> None:
    dated = WITH_DEFAULT + "{% if false %}{{ strftime_now('%d') }}{% endif %}"
    RewardContract(chat_template=dated, default_system_prompt="as it was yesterday").save(path)
    load(path)


def test_bos_twice(path: Path) -> None:
    RewardContract(chat_template="{{ bos_token }}" + CHAT_TEMPLATE).save(path)
    assert failure(path).startswith("its texts begin with BOS (<|im_start|>) twice: the chat template writes one")


def test_an_eos_that_the_tokenizer_does_not_know(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Reader, "encode_whole", lambda reader, messages, response: reader.tokenizer("text").input_ids)
    assert failure(path).startswith("the score should be read at EOS (<|im_end|>), but texts end with ")


# ---------------------------------------------------------------- scores that contradict each other


def test_a_head_of_zeros(path: Path) -> None:
    change_weights(path, lambda weights: weights[HEAD].zero_())
    assert failure(path).startswith("it scores every text alike (0); its score head is empty or was never trained.")


def test_scores_that_are_no_numbers(path: Path) -> None:
    change_weights(path, lambda weights: weights[HEAD].fill_(float("inf")))
    assert failure(path).startswith("its scores are not finite numbers")


def test_padding_that_moves_scores(tmp_path: Path) -> None:
    """Positions of GPT-2 count from the start of the row, padding included: padded on the left, texts shift."""
    path = tmp_path / "gpt2"
    tokenizer = build_tokenizer(path)
    torch.manual_seed(0)
    settings = GPT2Config(
        vocab_size=len(tokenizer), n_embd=32, n_layer=2, n_head=4, n_positions=512, num_labels=1, initializer_range=0.2
    )
    settings.pad_token_id = tokenizer.pad_token_id
    GPT2ForSequenceClassification(settings).save_pretrained(path)
    load(path)
    RewardContract(padding_side="left").save(path)
    message = failure(path)
    assert message.startswith("a text's score changes by ")
    assert "padding_side in reward_model.json" in message


def test_padding_that_is_confused_with_eos(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """transformers' own forward: where EOS pads, it takes the EOS of a response for padding, and reads before it."""
    settings = json.loads((path / "config.json").read_text())
    (path / "config.json").write_text(json.dumps(settings | {"pad_token_id": 2}))
    load(path)

    def forward(model: ScoringModel, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        return model.classifier(input_ids=input_ids, attention_mask=attention_mask).logits[:, 0]

    monkeypatch.setattr(ScoringModel, "forward", forward)
    assert failure(path).startswith("texts score the same with and without the EOS that closes them")


# ---------------------------------------------------------------- scores that are not those of the examples


def test_pairs_that_are_now_the_wrong_way_round(path: Path) -> None:
    with_examples(path)
    change_weights(path, lambda weights: weights[HEAD].neg_())
    assert "the wrong way round; weights, base model or tokenizer are not those it was saved with" in failure(path)


def test_scores_that_are_now_others(path: Path) -> None:
    contract = with_examples(path)
    change_weights(path, lambda weights: weights[HEAD].mul_(1.5))
    message = failure(path)
    first = contract.examples[0]
    assert f"where {first.chosen_score:.3f} and {first.rejected_score:.3f} are stored" in message
    assert f"scores {1.5 * first.chosen_score:.3f} (chosen) and {1.5 * first.rejected_score:.3f}" in message


def test_other_weights_than_those_it_was_saved_with(path: Path, tmp_path: Path) -> None:
    with_examples(path)
    build_model(tmp_path / "other", classifier=True, seed=9)
    shutil.copy(tmp_path / "other/model.safetensors", path)
    assert "example 1 of its contract scores" in failure(path)


def test_an_untrained_model_is_not_asked_to_rank(path: Path) -> None:
    """A pair that was stored the wrong way round is no news."""
    contract = with_examples(path)
    turned = [
        replace(one, chosen=one.rejected, rejected=one.chosen, chosen_score=one.rejected_score,
                rejected_score=one.chosen_score)
        for one in contract.examples
    ]  # fmt: skip
    replace(contract, examples=tuple(turned)).save(path)
    load(path)


def test_it_needs_few_forward_passes(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with_examples(path)
    model = load(path, test=False)
    passes: list[int] = []
    score_rows = model.score_rows
    monkeypatch.setattr(model, "score_rows", lambda rows: passes.append(len(rows)) or score_rows(rows))
    self_test(model, name="model", flag="--flag")
    assert passes == [4, 1, 1, 1, 1]


# ---------------------------------------------------------------- on the command line


def test_commands_run_it_and_a_flag_turns_it_off(
    path: Path, preferences: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    change_weights(path, lambda weights: weights[HEAD].zero_())
    flags = ["--dataset_path", preferences, "--reward_model_or_path", str(path), "--num_rows", "3"]
    flags += ["--output_file", str(tmp_path / "scores.jsonl")]
    assert cli.main(["score", *flags]) == 2
    assert capsys.readouterr().err.splitlines()[-1] == (
        f"raft score: error: --reward_model_or_path: {path} fails its self-test: it scores every text alike (0); its "
        "score head is empty or was never trained. --no_reward_self_test loads it all the same."
    )
    assert not (tmp_path / "scores.jsonl").exists()
    assert cli.main(["score", *flags, "--no_reward_self_test"]) == 0
    assert (tmp_path / "scores.jsonl").exists()


def test_a_contract_can_be_given_by_flag(path: Path, preferences: str, tmp_path: Path) -> None:
    flags = ["--dataset_path", preferences, "--reward_model_or_path", str(path), "--num_rows", "3"]
    flags += ["--reward_dtype", "fp32", "--output_file"]
    assert cli.main(["score", *flags, str(tmp_path / "as_it_is.jsonl")]) == 0
    (tmp_path / "turned.json").write_text('{"sign": -1}')
    turned = ["--reward_contract", str(tmp_path / "turned.json")]
    assert cli.main(["score", *flags, str(tmp_path / "turned.jsonl"), *turned]) == 0
    one, other = (read_jsonl(tmp_path / name) for name in ("as_it_is.jsonl", "turned.jsonl"))
    assert [row["chosen_score"] for row in one] == [-row["chosen_score"] for row in other]
