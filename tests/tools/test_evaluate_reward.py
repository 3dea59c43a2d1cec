"""`raft evaluate-reward`: a model end to end, a reward that is known to be bad, cards, one or two processes."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from raft.arguments import parse
from raft.cli import main as raft_main
from raft.errors import UserError
from raft.functional.probes import PROBES
from raft.reports.reward_evaluation import BEGIN, END
from raft.rewards.rewards import NamedSource, Rewards
from raft.rewards.source import Candidate, RewardSource
from raft.run_directory import read_jsonl
from raft.tools.evaluate_reward import changed_texts, main, score
from raft.tools.evaluate_reward_config import EvaluateRewardConfig
from tests.conftest import run_raft

HH_RLHF = Path(__file__).parents[3] / "shared" / "data" / "hh_rlhf" / "harmless-base.jsonl.gz"
FILES = ["evaluation.json", "evaluation.md", "evaluation.png", "pairs.jsonl"]


def evaluate(*flags: object) -> None:
    main(parse(EvaluateRewardConfig, [str(flag) for flag in flags], prog="raft evaluate-reward"))


@pytest.fixture
def evaluation(
    tiny_reward_model: str, preferences: str, tmp_path: Path
) -> Callable[..., tuple[dict[str, Any], list[dict[str, Any]]]]:
    """Evaluate the tiny reward model in fp32; gives evaluation.json and pairs.jsonl. Few tests need the picture."""

    def run(*flags: object, draws: bool = False) -> tuple[dict[str, Any], list[dict[str, Any]]]:
        folder = tmp_path / "evaluation"
        with pytest.MonkeyPatch.context() as patched:
            if not draws:
                patched.setattr("raft.reports.reward_figure.save_figure", lambda figure, path: None)
            evaluate(
                "--dataset_path", preferences, "--reward_model_or_path", tiny_reward_model, "--reward_dtype", "fp32",
                "--output_dir", folder, *flags,
            )  # fmt: skip
        return json.loads((folder / "evaluation.json").read_text()), read_jsonl(folder / "pairs.jsonl")

    return run


# ---------------------------------------------------------------- a model, end to end


def test_accuracy_and_scores_are_those_of_raft_score(
    evaluation: Callable[..., Any],
    tiny_reward_model: str,
    preferences: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    found, pairs = evaluation("--num_probed_pairs", 0)
    capsys.readouterr()
    target = tmp_path / "scores.jsonl"
    flags = ["--reward_model_or_path", tiny_reward_model, "--reward_dtype", "fp32", "--output_file", str(target)]
    assert raft_main(["score", "--dataset_path", preferences, *flags]) == 0
    accuracy = json.loads(capsys.readouterr().out)
    scored = read_jsonl(target)
    assert [row["source"] for row in pairs] == [row["source"] for row in scored]
    for side in ("chosen_score", "rejected_score"):
        assert [row[side] for row in pairs] == [pytest.approx(row[side], abs=1e-5) for row in scored]
    assert (found["accuracy"]["share"], found["num_pairs"]) == (accuracy["accuracy"], accuracy["num_pairs"])
    assert found["num_ties"] == accuracy["num_ties"]


@torch.no_grad()
def test_changed_responses_are_scored_after_the_same_prompt(
    evaluation: Callable[..., Any], tiny_reward_model: str, preferences: str
) -> None:
    """Against transformers alone: one text at a time, no padding."""
    model = AutoModelForSequenceClassification.from_pretrained(tiny_reward_model)
    tokenizer = AutoTokenizer.from_pretrained(tiny_reward_model)
    found, pairs = evaluation("--num_rows", 6)
    rows = read_jsonl(Path(preferences))[:6]
    for probe, result in zip(PROBES, found["probes"], strict=True):
        changes = []
        for i, row in enumerate(rows):
            text = probe.change(row["chosen"], rows[(i + 1) % 6]["chosen"])
            dialogue = f"<|im_start|>user\n{row['prompt']}<|im_end|>\n<|im_start|>assistant\n{text}<|im_end|>"
            expected = model(**tokenizer(dialogue, return_tensors="pt")).logits.item()
            assert pairs[i]["probes"][probe.name] == pytest.approx(expected, abs=1e-4), probe.name
            changes.append(expected - pairs[i]["chosen_score"])
        assert result["raised"]["share"] == sum(change > 0 for change in changes) / 6
        assert result["mean_change"] == pytest.approx(sum(changes) / 6, abs=1e-4)


def test_held_out_part_is_the_one_that_raft_reward_holds_out(evaluation: Callable[..., Any], preferences: str) -> None:
    found, pairs = evaluation("--validation_split_percentage", 10, "--num_probed_pairs", 0)
    assert [row["source"] for row in pairs] == [f"{preferences}:{line}" for line in (22, 23, 24)]
    assert found["num_pairs"] == 3
    assert found["what"] == "tiny-reward on the last 10% of preferences.jsonl (3 pairs)"
    found, pairs = evaluation("--validation_split_percentage", 50, "--num_rows", 4, "--num_probed_pairs", 0)
    assert [row["source"] for row in pairs] == [f"{preferences}:{line}" for line in (3, 4)]


def test_probed_pairs_are_spread_over_the_data(evaluation: Callable[..., Any]) -> None:
    found, pairs = evaluation("--num_probed_pairs", 3)
    probed = [i for i, row in enumerate(pairs) if row["probes"]["hash"] is not None]
    assert probed in ([0, 11, 23], [0, 12, 23])
    assert found["probes"][0]["raised"]["num"] == 3
    assert found["accuracy"]["num"] == 24


def test_files_and_screen(
    evaluation: Callable[..., Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found, pairs = evaluation(draws=True)
    assert sorted(path.name for path in (tmp_path / "evaluation").iterdir()) == FILES
    captured = capsys.readouterr()
    for heading in ("ACCURACY", "CALIBRATION", "LENGTH, IN CHARACTERS", "ROBUSTNESS", "TO MIND"):
        assert f"\n{heading}\n" in captured.out
    assert f"{found['accuracy']['share']:.1%}" in captured.out
    assert str(tmp_path / "evaluation") in captured.err
    assert list(pairs[0]["probes"]) == [probe.name for probe in PROBES]
    assert (tmp_path / "evaluation/evaluation.png").read_bytes().startswith(b"\x89PNG")
    assert "](evaluation.png)" in (tmp_path / "evaluation/evaluation.md").read_text()
    # A second evaluation takes the place of the first.
    evaluation("--num_probed_pairs", 0)
    assert sorted(path.name for path in (tmp_path / "evaluation").iterdir()) == FILES
    assert "ROBUSTNESS" not in capsys.readouterr().out


def test_two_processes_write_what_one_does(
    evaluation: Callable[..., Any], tiny_reward_model: str, preferences: str, tmp_path: Path
) -> None:
    found, pairs = evaluation("--reward_batch_size", 16)
    done = run_raft(
        "evaluate-reward", "--dataset_path", preferences, "--reward_model_or_path", tiny_reward_model, "--reward_dtype",
        "fp32", "--reward_batch_size", 16, "--output_dir", tmp_path / "two", num_processes=2,
    )  # fmt: skip
    assert json.loads((tmp_path / "two/evaluation.json").read_text()) == found
    assert read_jsonl(tmp_path / "two/pairs.jsonl") == pairs
    assert done.stdout.count("ACCURACY") == 1


# ---------------------------------------------------------------- rewards that are known


class Known:
    """A source that counts something in the response; NaN for what it can not score."""

    def __init__(self, value: Callable[[Candidate], float]) -> None:
        self.value = value
        self.seen: list[Candidate] = []

    def score(self, candidates: Sequence[Candidate], *, name: str, progress: str | None = "scoring") -> list[float]:
        self.seen += candidates
        return [self.value(candidate) for candidate in candidates]


def rewards_of(source: RewardSource) -> Rewards:
    return Rewards([NamedSource("known", source)])


@pytest.fixture
def known(evaluation: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    def run(value: Callable[[Candidate], float], *flags: object) -> Any:
        monkeypatch.setattr("raft.tools.evaluate_reward.load_rewards", lambda *_, **__: rewards_of(Known(value)))
        return evaluation(*flags)

    return run


def raised(found: dict[str, Any]) -> dict[str, float]:
    return {one["name"]: one["raised"]["share"] for one in found["probes"]}


def test_a_reward_that_counts_hashes_is_found_out(known: Callable[..., Any], tmp_path: Path) -> None:
    found, _ = known(lambda candidate: candidate.response.count("#"))
    assert {name for name, share in raised(found).items() if share == 1} == {"hash", "many_hashes"}
    assert {name: one["mean_change"] for name, one in zip(raised(found), found["probes"], strict=True)}[
        "many_hashes"
    ] == 20
    assert found["num_ties"] == 24
    assert found["accuracy"]["share"] == 0
    assert found["what"] == "known on preferences.jsonl (24 pairs)"
    text = (tmp_path / "evaluation/evaluation.md").read_text()
    assert "'#' appended (+1.00, up in 100%); '#' appended 20 times (+20.00, up in 100%)" in text


def test_a_reward_that_counts_characters_is_found_out(known: Callable[..., Any], tmp_path: Path) -> None:
    found, _ = known(lambda candidate: len(candidate.response))
    assert found["length"]["responses"] == {"pearson": pytest.approx(1), "spearman": pytest.approx(1)}
    assert found["length"]["longer_scores_higher"]["share"] == 1
    assert all(raised(found)[probe.name] == 1 for probe in PROBES if probe.is_padding)
    assert raised(found)["empty"] == raised(found)["truncated"] == 0


def test_a_reward_without_a_score_for_some(known: Callable[..., Any]) -> None:
    found, pairs = known(lambda candidate: math.nan if "fine" in candidate.response else len(candidate.response))
    without = [row for row in pairs if row["chosen_score"] is None or row["rejected_score"] is None]
    assert 0 < len(without) == found["num_unscored"] < 24
    assert found["accuracy"]["num"] == 24
    assert sum(one["accuracy"]["num"] for one in found["by_score_difference"]) == 24 - len(without)
    assert "NaN" not in json.dumps(found)


def test_a_reward_without_any_score(known: Callable[..., Any]) -> None:
    with pytest.raises(UserError, match=r"no score for any of \d+ responses: known gave no finite score"):
        known(lambda candidate: math.nan)


def test_margin_of_the_data(known: Callable[..., Any], tmp_path: Path) -> None:
    rows = [{"prompt": "a", "chosen": "b" * size, "rejected": "bb", "margin": size} for size in (1, 3, 3)]
    file = tmp_path / "margins.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    found, _ = known(lambda candidate: len(candidate.response), "--dataset_path", file)
    assert [(one["low"], one["accuracy"]["share"], one["accuracy"]["num"]) for one in found["by_data_margin"]] == [
        (1, 0, 1),
        (3, 1, 2),
    ]
    # The answer of the next pair is the same text here for the second: no case of that probe.
    (other,) = [one for one in found["probes"] if one["name"] == "other_answer"]
    assert (other["raised"]["num"], other["num_left_out"]) == (2, 1)


def test_candidates_carry_prompt_and_columns(preferences: str) -> None:
    from raft.data.formats import parse_row

    (row,) = parse_row({"prompt": "two plus two", "chosen": "4", "rejected": "5", "subject": "sums"}, "x")
    source = Known(lambda candidate: 0.0)
    score(rewards_of(source), [row], changed_texts([row]))
    assert {candidate.messages[0]["content"] for candidate in source.seen} == {"two plus two"}
    assert {candidate.extra["subject"] for candidate in source.seen} == {"sums"}
    # A single word can not be cut, and there is no other pair.
    assert len(source.seen) == 2 + len(PROBES) - 2


# ---------------------------------------------------------------- cards


def test_cards_get_the_result_and_a_picture_beside_the_first(evaluation: Callable[..., Any], tmp_path: Path) -> None:
    card, page = tmp_path / "model/README.md", tmp_path / "docs/model.md"
    for path in (card, page):
        path.parent.mkdir()
        path.write_text("# Title\n")
    evaluation("--num_rows", 5, "--update_card", card, page, draws=True)
    first = card.read_text()
    assert first.startswith(f"# Title\n\n{BEGIN}\n\n## Evaluation\n")
    assert first.endswith(f"{END}\n")
    assert "](evaluation.png)" in first
    assert "](../model/evaluation.png)" in page.read_text()
    assert (tmp_path / "model/evaluation.png").is_file()
    evaluation("--num_rows", 5, "--update_card", card)
    assert card.read_text() == first
    evaluation("--num_rows", 5, "--update_card", card, "--card_figure", tmp_path / "docs/images/a.png", draws=True)
    assert "](../docs/images/a.png)" in card.read_text()
    assert (tmp_path / "docs/images/a.png").is_file()


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--update_card", "{directory}/none.md"], "--update_card: there is no file"),
        (["--update_card", "{directory}/broken.md"], "--update_card .*broken.md: expected .* once each"),
        (["--output_dir", "{directory}/broken.md"], "--output_dir: .* is a file, expected a directory"),
        (["--num_probed_pairs", "-1"], "--num_probed_pairs: found -1"),
        (["--num_buckets", "0"], "--num_buckets: found 0"),
        (["--length_tolerance", "100"], "--length_tolerance: found 100"),
        (["--validation_split_percentage", "100"], "--validation_split_percentage: found 100"),
    ],
)
def test_refusals_come_before_the_work(
    flags: list[str], message: str, preferences: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "broken.md").write_text(f"# Card\n{BEGIN}\n")
    monkeypatch.setattr("raft.tools.evaluate_reward.load_rewards", lambda *_, **__: 1 / 0)
    with pytest.raises(UserError, match=message):
        evaluate("--dataset_path", preferences, *(flag.format(directory=tmp_path) for flag in flags))
    assert (tmp_path / "broken.md").read_text() == f"# Card\n{BEGIN}\n"


def test_rows_that_are_no_pairs(conversations: str) -> None:
    with pytest.raises(UserError, match="expected a preference pair"):
        evaluate("--dataset_path", conversations)


@pytest.mark.skipif(not HH_RLHF.is_file(), reason=f"needs {HH_RLHF.name} of the HH-RLHF data beside the repository")
def test_real_pairs(tiny_reward_model: str, tmp_path: Path) -> None:
    evaluate(
        "--dataset_path", HH_RLHF, "--num_rows", 8, "--reward_model_or_path", tiny_reward_model,
        "--reward_dtype", "fp32", "--output_dir", tmp_path,
    )  # fmt: skip
    found = json.loads((tmp_path / "evaluation.json").read_text())
    assert found["num_pairs"] == 8
    assert all(one["raised"]["num"] + one["num_left_out"] == 8 for one in found["probes"])
