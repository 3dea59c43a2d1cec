"""An evaluation of a reward, in words: tables for the screen, and a section of Markdown for a model card.

The section stands between two comments, so that a card can be brought up to date again and again.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from textwrap import fill

from raft.errors import UserError
from raft.rewards.evaluation import Evaluation, Length, ProbeResult, Share

BEGIN = "<!-- raft evaluate-reward: begin (written by the command; edits are lost) -->"
END = "<!-- raft evaluate-reward: end -->"
SCREEN = 100  # columns


@dataclass(frozen=True)
class Table:
    """A table with a heading above and remarks below; the first column is text, the others are numbers."""

    title: str
    header: tuple[str, ...]
    rows: list[tuple[str, ...]]
    remarks: list[str] = field(default_factory=list)


# ---------------------------------------------------------------- what is said


def tables(evaluation: Evaluation) -> list[Table]:
    """All numbers of an evaluation."""
    found = [accuracy_table(evaluation), calibration_table(evaluation), length_table(evaluation.length)]
    return [*found, probe_table(evaluation)] if evaluation.probes else found


def accuracy_table(evaluation: Evaluation) -> Table:
    """Accuracy on all pairs and on parts of them."""
    length = evaluation.length
    parts = [("all pairs", evaluation.accuracy)]
    parts += [
        (f"scores apart by {one.low:.2f} to {one.high:.2f}", one.accuracy) for one in evaluation.by_score_difference
    ]
    parts += [
        (f"margin of the data {one.low:g}" + (f" to {one.high:g}" if one.high > one.low else ""), one.accuracy)
        for one in evaluation.by_data_margin
    ]
    parts += [
        (f"lengths within {length.tolerance:.0%} of each other", length.matched),
        ("chosen response longer", length.chosen_longer),
        ("chosen response shorter", length.chosen_shorter),
    ]
    remarks = [f"A tie counts as wrong ({evaluation.num_ties} here)."]
    if evaluation.num_unscored:
        remarks.append(f"{evaluation.num_unscored} pairs have no score: wrong in the first row, absent elsewhere.")
    rows: list[tuple[str, ...]] = [(name, *_share(part), str(part.num)) for name, part in parts]
    return Table("Accuracy", ("pairs", "accuracy", "95% interval", "number"), rows, remarks)


def calibration_table(evaluation: Evaluation) -> Table:
    """Confidence, sigmoid(|difference|), against accuracy."""
    calibration = evaluation.calibration
    rows: list[tuple[str, ...]] = [
        (f"{one.low:.0%} to {one.high:.0%}", f"{one.confidence:.1%}", *_share(one.accuracy), str(one.accuracy.num))
        for one in calibration.curve
    ]
    mean, limit = calibration.by_chance
    remarks = [
        f"Expected calibration error {calibration.expected_calibration_error:.3f}; on as few pairs perfect calibration "
        f"shows {mean:.3f} on average, and less than {limit:.3f} in 95 of 100 cases.",
        f"Mean confidence {calibration.mean_confidence:.1%}, accuracy {calibration.accuracy:.1%} (a tie is half right "
        f"here); Bradley-Terry loss {calibration.loss:.3f} (a coin's toss: 0.693).",
    ]
    header = ("sigmoid of the difference", "mean confidence", "accuracy", "95% interval", "pairs")
    return Table("Calibration", header, rows, remarks)


def length_table(length: Length) -> Table:
    """Correlation of scores with length, across responses and within pairs."""
    rows: list[tuple[str, ...]] = [
        ("score and length, all responses", _signed(length.responses.pearson), _signed(length.responses.spearman)),
        ("differences of both, within pairs", _signed(length.pairs.pearson), _signed(length.pairs.spearman)),
    ]
    scores, people = length.longer_scores_higher, length.longer_is_chosen
    remark = (
        f"The longer response scores higher in {_with_interval(scores)} of {scores.num} pairs of different length; it "
        f"is the chosen one in {_with_interval(people)}."
    )
    return Table(f"Length, in {length.unit}", ("correlation", "Pearson", "Spearman"), rows, [remark])


def probe_table(evaluation: Evaluation) -> Table:
    """How the score of the chosen responses moves when they are padded or spoilt."""
    rows: list[tuple[str, ...]] = [
        (one.what, *_share(one.raised), _signed(one.mean_change), _range(one.mean_change_ci95), str(one.raised.num))
        for one in evaluation.probes
    ]
    header = ("chosen response, changed", "score goes up", "95% interval", "mean change", "95% interval", "cases")
    remark = f"The standard deviation of the scores of all responses is {evaluation.score_std:.2f}."
    return Table("Robustness", header, rows, [remark])


def weaknesses(evaluation: Evaluation) -> list[str]:
    """What a user should mind, in sentences; only what the intervals bear out."""
    findings = (_accuracy_findings(evaluation), _length_findings(evaluation.length), _probe_findings(evaluation.probes))
    return [sentence for some in findings for sentence in some]


def _accuracy_findings(evaluation: Evaluation) -> Iterator[str]:
    if evaluation.accuracy.ci95[0] <= 0.5:
        yield f"Not shown to be better than a coin's toss: accuracy {_with_interval(evaluation.accuracy)}."
    calibration = evaluation.calibration
    if calibration.expected_calibration_error > calibration.by_chance[1]:
        over = "over" if calibration.mean_confidence > calibration.accuracy else "under"
        yield (
            f"Scores are {over}confident: mean confidence {calibration.mean_confidence:.1%}, "
            f"accuracy {calibration.accuracy:.1%}."
        )


def _length_findings(length: Length) -> Iterator[str]:
    scores, people = length.longer_scores_higher, length.longer_is_chosen
    likes = "length" if scores.ci95[0] > people.ci95[1] else "brevity" if scores.ci95[1] < people.ci95[0] else ""
    if likes:
        yield (
            f"It likes {likes}: the longer response scores higher in {_with_interval(scores)}, "
            f"and is the chosen one in {_with_interval(people)}."
        )
    longer, shorter = length.chosen_longer, length.chosen_shorter
    if longer.ci95[0] > shorter.ci95[1] or shorter.ci95[0] > longer.ci95[1]:
        yield (
            f"Length decides part of it: accuracy {longer.share:.1%} where the chosen response is longer, "
            f"{shorter.share:.1%} where it is shorter."
        )


def _probe_findings(probes: Sequence[ProbeResult]) -> Iterator[str]:
    paid = [probe for probe in probes if probe.mean_change_ci95[0] > 0]
    unpunished = [
        probe for probe in probes if not probe.is_padding and probe not in paid and probe.mean_change_ci95[1] >= 0
    ]
    if paid:
        yield f"The score rises on average when the response is changed: {_listed(paid)}."
    if unpunished:
        yield f"The score does not clearly fall when the response is spoilt: {_listed(unpunished)}."


def _listed(probes: Sequence[ProbeResult]) -> str:
    return "; ".join(f"{one.what} ({_signed(one.mean_change)}, up in {one.raised.share:.0%})" for one in probes)


# ---------------------------------------------------------------- how it is said


def as_text(title: str, evaluation: Evaluation) -> str:
    """For the screen, in columns."""
    parts = [title]
    for table in tables(evaluation):
        cells = [table.header, *table.rows]
        widths = [max(len(row[i]) for row in cells) for i in range(len(table.header))]
        lines = ["  ".join(_padded(row, widths)).rstrip() for row in cells]
        parts.append("\n".join([table.title.upper(), *lines, *(fill(one, SCREEN) for one in table.remarks)]))
    minded = [fill(f"- {one}", SCREEN, subsequent_indent="  ") for one in weaknesses(evaluation)]
    return "\n\n".join([*parts, "\n".join(["TO MIND", *(minded or [_nothing()])])])


def as_markdown(title: str, evaluation: Evaluation, figure: str | None) -> str:
    """A section for a model card, between its two comments.

    Args:
        title: what was evaluated on what.
        figure: link to the picture; None for none.
    """
    parts = ["## Evaluation", f"`raft evaluate-reward`: {title}. Intervals: 95%, Wilson's; of means, bootstrap."]
    parts.append("\n".join(f"- {one}" for one in weaknesses(evaluation)) or _nothing())
    if figure:
        parts.append(f"![Calibration, accuracy by score difference, score and length, robustness probes]({figure})")
    for table in tables(evaluation):
        rule = ["---", *["---:"] * (len(table.header) - 1)]
        lines = ["| " + " | ".join(row) + " |" for row in (table.header, rule, *table.rows)]
        parts += [f"### {table.title}", "\n".join(lines), " ".join(table.remarks)]
    return "\n\n".join([BEGIN, *parts, END])


def with_section(card: str, section: str, *, source: str) -> str:
    """The text of a card with the section in place of its earlier one, or at its end.

    Raises:
        UserError: if one of the two comments is missing, doubled or before the other.
    """
    if BEGIN not in card and END not in card:
        return card.rstrip("\n") + f"\n\n{section}\n"
    begin, end = card.find(BEGIN), card.find(END)
    if card.count(BEGIN) != 1 or card.count(END) != 1 or end < begin:
        raise UserError(f'{source}: expected "{BEGIN}" and "{END}" once each, in this order, or neither.')
    return card[:begin] + section + card[end + len(END) :]


def _nothing() -> str:
    return "No weakness shows on this many pairs."


def _padded(row: Sequence[str], widths: Sequence[int]) -> list[str]:
    first, *others = zip(row, widths, strict=True)
    return [first[0].ljust(first[1]), *(cell.rjust(width) for cell, width in others)]


def _share(value: Share) -> tuple[str, str]:
    if not value.num:
        return "-", "-"
    low, high = value.ci95
    return f"{value.share:.1%}", f"{100 * low:.1f} to {100 * high:.1f}"


def _with_interval(value: Share) -> str:
    share, interval = _share(value)
    return f"{share} ({interval})"


def _signed(value: float) -> str:
    return f"{round(value, 2) + 0.0:+.2f}" if math.isfinite(value) else "-"  # + 0.0: never -0.00


def _range(interval: tuple[float, float]) -> str:
    return f"{_signed(interval[0])} to {_signed(interval[1])}" if math.isfinite(interval[0]) else "-"
