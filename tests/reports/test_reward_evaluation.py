"""An evaluation in words and as a picture: the numbers are the measured ones, and weaknesses are named."""

from __future__ import annotations

import numpy as np
import pytest

from raft.errors import UserError
from raft.functional.probes import PROBES
from raft.reports.reward_evaluation import BEGIN, END, as_markdown, as_text, tables, weaknesses, with_section
from raft.reports.reward_figure import evaluation_figure, save_figure
from raft.rewards.evaluation import Evaluation, ScoredPairs, evaluate, measure_probe

NUM = 100


def scored(*, chosen: float = 1.0, rejected: float = 0.0, right: float = 0.8, unscored: int = 0) -> ScoredPairs:
    """Pairs of which the share ``right`` is right; lengths have nothing to do with it."""
    is_right = np.arange(NUM) % 10 < 10 * right
    chosen_scores = np.where(is_right, chosen, rejected)
    chosen_scores[:unscored] = np.nan
    lengths = 50.0 + (np.arange(NUM) // 10) % 2
    return ScoredPairs(
        chosen_scores, np.where(is_right, rejected, chosen), lengths, 101 - lengths, np.full(NUM, np.nan)
    )


def probed(pairs: ScoredPairs, **changes: float) -> Evaluation:
    by_name = {probe.name: probe for probe in PROBES}
    results = [
        measure_probe(by_name[name], pairs.chosen, pairs.chosen + change + np.linspace(-0.1, 0.1, NUM))
        for name, change in changes.items()
    ]
    return evaluate(pairs, results)


def cells(evaluation: Evaluation) -> dict[str, tuple[str, ...]]:
    return {row[0]: row[1:] for table in tables(evaluation) for row in table.rows}


def test_tables_show_what_was_measured() -> None:
    pairs = scored()
    shown = cells(probed(pairs, hash=0.5))
    assert shown["all pairs"] == ("80.0%", "71.1 to 86.7", "100")  # Wilson, 80 of 100
    assert shown["scores apart by 1.00 to 1.00"] == ("80.0%", "71.1 to 86.7", "100")
    assert shown["lengths within 25% of each other"][2] == "100"
    assert shown["chosen response longer"][2] == "50"
    assert shown["70% to 80%"][:2] == ("73.1%", "80.0%")  # sigmoid(1)
    assert shown["score and length, all responses"] == ("+0.00", "+0.00")
    assert shown["'#' appended"][:3] == ("100.0%", "96.3 to 100.0", "+0.50")
    assert shown["'#' appended"][-1] == "100"


def test_nothing_to_count_is_a_dash() -> None:
    pairs = ScoredPairs(*(np.array([value]) for value in (1.0, 0.0, 10.0, 5.0, 2.0)))
    shown = cells(evaluate(pairs))
    assert shown["chosen response shorter"] == ("-", "-", "0")
    assert shown["differences of both, within pairs"] == ("-", "-")
    assert shown["margin of the data 2"] == ("100.0%", "20.7 to 100.0", "1")


def test_a_sound_reward_has_nothing_to_mind() -> None:
    evaluation = probed(scored(), hash=-0.5, other_answer=-1.0)
    assert weaknesses(evaluation) == []
    assert "No weakness shows" in as_text("x", evaluation)
    assert "No weakness shows" in as_markdown("x", evaluation, None)


def test_chance_is_said_to_be_chance() -> None:
    (found,) = [one for one in weaknesses(evaluate(scored(right=0.5, chosen=0.01))) if "coin" in one]
    assert found == "Not shown to be better than a coin's toss: accuracy 50.0% (40.4 to 59.6)."


@pytest.mark.parametrize(
    ("chosen", "word"), [(6.0, "overconfident: mean confidence 99.8%"), (0.1, "underconfident: mean confidence 52.5%")]
)
def test_confidence_that_is_not_borne_out(chosen: float, word: str) -> None:
    (found,) = weaknesses(evaluate(scored(chosen=chosen)))
    assert word in found
    assert "accuracy 80.0%" in found


@pytest.mark.parametrize(("sign", "word"), [(1, "likes length"), (-1, "likes brevity")])
def test_a_reward_that_goes_by_length(sign: int, word: str) -> None:
    """Scores are lengths; people chose the longer one half the time."""
    longer = np.where(np.arange(NUM) % 2, 60.0, 40.0)
    pairs = ScoredPairs(sign * longer / 100, sign * (100 - longer) / 100, longer, 100 - longer, np.full(NUM, np.nan))
    found = weaknesses(evaluate(pairs))
    assert any(word in one for one in found)
    assert any("Length decides part of it" in one for one in found)


def test_probes_that_pay_and_spoiling_that_costs_nothing() -> None:
    found = weaknesses(probed(scored(), hash=0.5, smiley=0.0, truncated=0.0, empty=-0.5))
    assert found == [
        "The score rises on average when the response is changed: '#' appended (+0.50, up in 100%).",
        "The score does not clearly fall when the response is spoilt: cut after half of its words (+0.00, up in 50%).",
    ]


def test_pairs_without_a_score_are_told() -> None:
    assert "3 pairs have no score: wrong in the first row" in as_text("x", evaluate(scored(unscored=3)))


# ---------------------------------------------------------------- cards


def test_markdown_is_a_section_with_tables_and_the_picture() -> None:
    text = as_markdown("a on b (100 pairs)", probed(scored(), hash=0.5), "../x.png")
    assert text.startswith(BEGIN + "\n\n## Evaluation\n\n`raft evaluate-reward`: a on b (100 pairs).")
    assert text.endswith("\n\n" + END)
    assert "](../x.png)" in text
    assert "| all pairs | 80.0% | 71.1 to 86.7 | 100 |" in text
    assert "\n- The score rises on average when the response is changed: '#' appended" in text
    for line in text.splitlines():
        if line.startswith("|"):
            assert line.count("|") in (4, 5, 6, 7), line


def test_a_card_is_brought_up_to_date_again_and_again() -> None:
    first = with_section("# Card\n\nabove\n", f"{BEGIN}\nold\n{END}", source="card")
    assert first == f"# Card\n\nabove\n\n{BEGIN}\nold\n{END}\n"
    second = with_section(first + "\nbelow\n", f"{BEGIN}\nnew\n{END}", source="card")
    assert second == f"# Card\n\nabove\n\n{BEGIN}\nnew\n{END}\n\nbelow\n"


@pytest.mark.parametrize("card", [BEGIN, END, f"{END}{BEGIN}", f"{BEGIN}{END}{BEGIN}{END}"])
def test_a_card_with_broken_comments_is_refused(card: str) -> None:
    with pytest.raises(UserError, match=r"^README.md: expected .* once each"):
        with_section(card, "", source="README.md")


# ---------------------------------------------------------------- picture


def test_picture_shows_the_numbers(tmp_path) -> None:  # type: ignore[no-untyped-def]
    pairs = scored()
    figure = evaluation_figure(pairs, probed(pairs, hash=0.5, smiley=-0.25))
    calibration, accuracy, length, probes = figure.axes
    assert [list(line.get_xydata()[0]) for line in calibration.lines[1:]] == [[pytest.approx(0.7311, abs=1e-4), 0.8]]
    assert list(accuracy.lines[-1].get_ydata()) == [0.8]
    rejected, chosen = length.collections
    assert chosen.get_offsets().tolist() == np.stack([pairs.chosen_length, pairs.chosen], axis=1).tolist()
    assert rejected.get_offsets().tolist() == np.stack([pairs.rejected_length, pairs.rejected], axis=1).tolist()
    assert [line.get_xdata()[0] for line in probes.lines[1:]] == [1.0, 0.0]
    assert [label.get_text() for label in probes.get_yticklabels()] == ["'#' appended", "':)' appended"]
    assert {text.get_text() for text in probes.texts} == {"+0.50", "\u22120.25", "mean\nchange"}
    save_figure(figure, tmp_path / "new" / "a.png")
    assert (tmp_path / "new" / "a.png").read_bytes().startswith(b"\x89PNG")
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["a.png"]


def test_picture_without_probes_and_with_pairs_lacking_a_score(tmp_path) -> None:  # type: ignore[no-untyped-def]
    pairs = scored(unscored=3)
    figure = evaluation_figure(pairs, evaluate(pairs))
    assert len(figure.axes) == 3
    save_figure(figure, tmp_path / "a.png")
