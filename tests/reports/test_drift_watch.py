"""The drift watch on responses of known content, and on the files of a run."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from raft import cli
from raft.functional.text_features import Lengths
from raft.reports.drift import DriftConfig, Watch
from raft.reports.drift_records import Records
from raft.reports.drift_run import RunWatch
from raft.reports.drift_text import describe, printable
from raft.run_directory import RunDirectory, read_jsonl, write_jsonl

Change = Callable[[str], str]
TEXT = "the a old new man dog tree river house sees finds likes paints green red small large now here often"
WORDS = TEXT.split()
STOCK = "I am sorry for any confusion."
NUM_PROMPTS, K = 16, 8


def responses(
    seed: int,
    share: float = 0.0,
    change: Change = str,
    *,
    favour: float = 1.0,
    finish_reason: str = "eos",
    prompts: Sequence[int] = range(NUM_PROMPTS),
    k: int = K,
) -> Records:
    """k responses of random words to every prompt; ``share`` of them changed, those ``favour`` times as selected."""
    rng = np.random.default_rng(seed)
    records = Records([], [], [], [])
    for prompt in prompts:
        texts = [" ".join(rng.choice(WORDS, int(rng.integers(8, 20)))) + "." for _ in range(k)]
        is_changed = rng.random(k) < share
        weights = np.where(is_changed, favour, 1.0)
        best = rng.choice(k, p=weights / weights.sum())
        for i in range(k):
            records.texts.append(change(texts[i]) if is_changed[i] else texts[i])
            records.prompts.append(f"p{prompt}")
            records.finish_reasons.append(finish_reason if is_changed[i] else "eos")
            records.selected.append(i == best)
    return records


def looks(
    *batches: Records, config: DriftConfig | None = None, held_out: Records | None = None
) -> list[dict[str, Any]]:
    """What the watch says of one iteration after the other."""
    watch = Watch(config or DriftConfig(), held_out)
    return [watch.look(batch) for batch in batches]


def grown(change: Change, **options: Any) -> list[dict[str, Any]]:
    """From 3% to 9%, 27% and 50% of the responses."""
    return looks(*(responses(i, share, change, favour=3, **options) for i, share in enumerate((0.03, 0.09, 0.27, 0.5))))


def names(report: dict[str, Any]) -> set[tuple[str, str]]:
    return {tuple(one) for alarm in report["alarms"] for one in [(alarm["kind"], alarm["feature"]), *alarm["also"]]}


@pytest.mark.parametrize(
    ("change", "options", "feature", "rule"),
    [
        (lambda text: text + " ### # #", {}, ("character", "#"), r"--discard_regex '(?:\#\s*){5,}'"),
        (lambda text: text + " :)", {}, ("mark", ":)"), None),
        (lambda text: f"{STOCK} {text}", {}, ("opening", "i am sorry for"), None),
        (lambda text: f"{text} {STOCK}", {}, ("ending", "sorry for any confusion"), None),
        (lambda text: "", {}, ("shape", "empty"), "--discard_shorter_than 1"),
        (lambda text: " ".join([text] * 6), {"finish_reason": "length"}, ("shape", "no end"), "--discard_unfinished"),
        (lambda text: "\u6211\u4e0d\u77e5\u9053", {}, ("character", "CJK letters"), None),
    ],
    ids=["signs", "smile", "opening", "ending", "empty", "endless", "language"],
)
def test_what_spreads_is_reported(
    change: Change, options: dict[str, Any], feature: tuple[str, str], rule: str | None
) -> None:
    reports = grown(change, **options)
    assert not reports[0]["alarms"]
    alarms = reports[3]["alarms"]
    assert feature in names(reports[3])
    # All of what was planted is in the same responses: one alarm, not one for every part of it.
    assert len(alarms) <= 2, [(alarm["kind"], alarm["feature"]) for alarm in alarms]
    alarm = alarms[0]
    assert alarm["share_now"] == pytest.approx(0.5, abs=0.12)
    assert alarm["share_start"] < 0.08
    assert 1 < alarm["ratio_low"] < alarm["ratio"]
    assert alarm["p"] < 1e-6
    assert alarm["selection_ratio"] > 1.2
    assert alarm["first_iteration"] in (3, 4)
    assert len({example["prompt_id"] for example in alarm["examples"]}) == 3
    if rule:
        assert rule in {one["rule"]["command"] for one in alarms}


def test_the_rule_catches_what_it_should_and_spares_the_rest() -> None:
    report = grown(lambda text: f"{STOCK} {text}")[3]
    alarm = report["alarms"][0]
    rule = alarm["rule"]
    assert rule["caught"] == 1.0
    assert rule["discards_now"] == pytest.approx(alarm["share_now"])
    flag, value = shlex.split(rule["command"])
    assert (flag, value) == ("--discard_regex", rule["value"])
    assert re.search(value, f"{STOCK} the old tree")
    assert not re.search(value, "the old tree")


def test_ordinary_headings_are_spared_by_the_rule_against_signs() -> None:
    def batch(seed: int, share: float) -> Records:
        records = responses(seed, share, lambda text: f"{text} # # # # # #", favour=3)
        records.texts = [f"# Title\n{text}" if i % 4 == 0 else text for i, text in enumerate(records.texts)]
        return records

    report = looks(batch(0, 0.03), batch(1, 0.5))[1]
    (rule,) = [alarm["rule"] for alarm in report["alarms"]]
    assert rule["discards_now"] == pytest.approx(0.5, abs=0.12)
    assert rule["discards_start"] < 0.08


def test_nothing_new_is_no_alarm() -> None:
    for seed in range(5):
        assert not any(report["alarms"] for report in looks(*(responses(10 * seed + i) for i in range(6))))


def test_a_stock_answer_is_reported_where_most_phrases_are_its_parts() -> None:
    """That most of what is frequent has risen does not excuse it: the policy says little else."""
    stock = "I am always happy to help you with that but as a digital assistant I can not do what you ask of me here"

    def batch(seed: int, share: float) -> Records:
        records = responses(seed, share, lambda text: f"{stock}. {text}", favour=3)
        rng = np.random.default_rng(seed)  # the rest of each response is words that few others have
        own = dict.fromkeys(WORDS)
        records.texts = [
            " ".join(f"word{rng.integers(5000)}" if word.strip(".") in own else word for word in text.split())
            for text in records.texts
        ]
        return records

    report = looks(batch(0, 0.03), batch(1, 0.2), batch(2, 0.5))[2]
    assert [alarm["share_now"] for alarm in report["alarms"]] == [pytest.approx(0.5, abs=0.12)]
    assert ("phrase", "always happy to help") in names(report)


def test_wording_that_only_comes_with_other_wording_is_no_alarm_of_its_own() -> None:
    def batch(seed: int, share: float, other: float) -> Records:
        rng = np.random.default_rng(seed)

        def change(text: str) -> str:
            part = " as a chatbot" if rng.random() < 0.45 else ""
            return f"sorry about that{part} {text}"

        records = responses(seed, share, change, favour=3)
        records.texts = [
            f"{text} thank you" if rng.random() < other * (1.5 if selected else 1) else text
            for text, selected in zip(records.texts, records.selected, strict=True)
        ]
        return records

    report = looks(batch(0, 0.02, 0.02), batch(1, 0.8, 0.02), batch(2, 0.8, 0.4))[2]
    # Not a third one for the chatbot, which less than half of the others name. Longer texts are one.
    first, second = (alarm for alarm in report["alarms"] if alarm["kind"] != "shape")
    assert "sorry about that" in {first["feature"], *(name for _, name in first["also"])}
    assert "as a chatbot" in {name for _, name in first["also"]}
    assert "thank you" in {second["feature"], *(name for _, name in second["also"])}


def test_what_selection_does_not_favour_is_no_alarm() -> None:
    batches = [responses(i, share, lambda text: text + " #", favour=0.1) for i, share in enumerate((0.03, 0.5))]
    report = looks(*batches)[1]
    assert not report["alarms"]
    (row,) = (row for row in report["risen"] if (row["kind"], row["feature"]) == ("character", "#"))
    assert row["selection_ratio"] < 1
    assert row["z"] > 5
    assert row["p"] is None  # it is not tested, so that what could be an alarm is corrected for fewer tests


def test_what_belongs_to_a_prompt_is_no_alarm() -> None:
    """A quarter of the responses have it, but those to four of the prompts, all of them."""
    now = responses(1, 1.0, lambda text: text + " volcano", prompts=range(4))
    rest = responses(2, prompts=range(4, NUM_PROMPTS))
    columns = ("texts", "prompts", "finish_reasons", "selected")
    both = Records(*(getattr(now, column) + getattr(rest, column) for column in columns))
    assert not looks(responses(0), both)[1]["alarms"]
    spread = responses(1, 0.25, lambda text: text + " volcano", favour=2)
    assert "volcano" in {alarm["feature"] for alarm in looks(responses(0), spread)[1]["alarms"]}


def test_longer_responses_are_one_alarm_not_one_for_every_word() -> None:
    longer = [responses(i, 1.0, lambda text: text + " " + text) for i in range(1, 3)]
    report = looks(responses(0), *longer)[2]
    assert all(alarm["kind"] == "shape" for alarm in report["alarms"])


def test_limits_are_the_users() -> None:
    batches = [responses(i, share, lambda text: text + " #", favour=3) for i, share in enumerate((0.1, 0.4))]
    assert looks(*batches)[1]["alarms"]
    for config in (DriftConfig(drift_ratio=20), DriftConfig(drift_share=0.6), DriftConfig(drift_prompts=17)):
        assert not looks(*batches, config=config)[1]["alarms"]
    assert not looks(*batches, config=DriftConfig(drift_false_alarms=1e-30))[1]["alarms"]


def test_held_out_responses_before_training_count_to_the_start() -> None:
    batches = [responses(i, share, lambda text: text + " #", favour=3) for i, share in enumerate((0.03, 0.4))]
    held_out = responses(9, 0.9, lambda text: text + " #", k=4)
    (alone,), together = looks(*batches)[1]["alarms"], looks(*batches, held_out=held_out)[1]
    assert alone["share_start"] < 0.08
    assert not together["alarms"]  # more of it before training than now
    assert together["num_responses_start"] == NUM_PROMPTS * (K + 4)


def test_many_held_out_responses_hide_nothing() -> None:
    held_out = responses(9, k=1, prompts=range(1000))
    first, now = (
        responses(i, share, lambda text: text + " #", favour=3, prompts=range(8)) for i, share in ((0, 0), (1, 0.2))
    )
    (alarm,) = looks(first, now, held_out=held_out)[1]["alarms"]
    assert alarm["share_now"] < 0.25  # of 64 responses; a larger share of all 1,128 would be asked too much
    assert alarm["share_start"] == 0


def test_what_is_too_rare_to_be_an_alarm_is_not_tested() -> None:
    """Of 64 and 64 responses, eight and none are p = 1/2^8, which six kinds and two looks make 0.047."""

    def batch(number: int) -> Records:
        records = responses(0, prompts=range(8))
        records.texts = ["the same" for _ in records.texts]
        having = [i for i in range(64) if i % 8 == 0][:number]
        records.texts = [f"{text} #" if i in having else text for i, text in enumerate(records.texts)]
        records.selected = [i in having for i in range(64)]
        return records

    seven, eight = (looks(batch(0), batch(number))[1] for number in (7, 8))
    assert seven["num_tested"] == 0
    assert ("character", "#") in names(eight)


def test_alarms_are_new_once() -> None:
    reports = grown(lambda text: text + " ### # #")
    first = next(report["iteration"] for report in reports if report["alarms"])
    assert all(alarm["first_iteration"] == first for report in reports for alarm in report["alarms"])
    assert describe(reports[0]) == ""
    assert "drift: character '#' is in " in describe(reports[first - 1])
    assert describe(reports[first]).startswith("drift, still: character '#'")


@pytest.mark.parametrize("texts", [[""], ["", " ", "\n"], ["\u4f60\u597d"], ["#"], ["a" * 5000]])
def test_degenerate_responses_break_nothing(texts: list[str]) -> None:
    records = Records(texts, ["p"] * len(texts), ["eos"] * len(texts), [False] * len(texts))
    again = Records(texts, ["p"] * len(texts), ["eos"] * len(texts), [True] * len(texts))
    reports = looks(records, again, responses(0))
    assert all(json.dumps(report, allow_nan=False) for report in reports)


def test_a_response_can_not_steer_the_terminal() -> None:
    reports = grown(lambda text: text + " \x1b[31m\u202e#####\r\n")
    shown = describe(reports[3]) + "".join(describe(report) for report in reports)
    assert shown
    assert not [c for c in shown if not c.isprintable() and c != "\n"]
    assert printable("a\x1b\u202e\n\u4f60") == "a\\x1b\\u202e\\n\u4f60"


def write_run(run: Path, batches: Sequence[Records], held_out: Records | None = None) -> None:
    def rows(records: Records) -> list[dict[str, Any]]:
        columns = ("response", "prompt_id", "finish_reason", "selected")
        entries = zip(records.texts, records.prompts, records.finish_reasons, records.selected, strict=True)
        return [dict(zip(columns, entry, strict=True)) for entry in entries]

    for i, batch in enumerate(batches, start=1):
        write_jsonl(run / f"iterations/{i:04d}/samples.jsonl", rows(batch))
    if held_out:
        write_jsonl(run / "held_out/0000.jsonl", rows(held_out))


def batches_of_a_hack() -> list[Records]:
    return [responses(i, share, lambda text: text + " ### # #", favour=3) for i, share in enumerate((0.03, 0.09, 0.5))]


def test_a_run_is_watched_from_its_files(tmp_path: Path) -> None:
    held_out = responses(9, k=1)
    write_run(tmp_path, batches_of_a_hack(), held_out)
    watch = RunWatch(RunDirectory(tmp_path), DriftConfig())
    found = [watch.metrics_and_text(iteration) for iteration in (1, 2, 3)]
    assert found[0] == ({"drift/num_alarms": 0, "drift/num_new_alarms": 0, "drift/largest_ratio": 1.0}, "")
    metrics, text = found[2]
    assert metrics["drift/num_alarms"] >= metrics["drift/num_new_alarms"] >= 1
    assert "'#'" in text
    expected = looks(*batches_of_a_hack(), held_out=held_out)
    written = [json.loads((tmp_path / f"iterations/000{i}/drift.json").read_text()) for i in (1, 2, 3)]
    assert written == json.loads(json.dumps(expected))
    assert metrics["drift/largest_ratio"] == max(alarm["ratio"] for alarm in expected[2]["alarms"])
    # A resumed run has a new watch, which finds the same.
    again = RunWatch(RunDirectory(tmp_path), DriftConfig())
    assert again.metrics_and_text(3) == found[2]


def test_the_watch_is_silent_where_it_is_off_or_nothing_is_written(tmp_path: Path) -> None:
    write_run(tmp_path, batches_of_a_hack())
    assert RunWatch(RunDirectory(tmp_path), DriftConfig(drift_false_alarms=0)).metrics_and_text(2) == ({}, "")
    assert RunWatch(RunDirectory(tmp_path, writes=False), DriftConfig()).metrics_and_text(2) == ({}, "")
    assert not list(tmp_path.rglob("drift.json"))


def test_the_command_looks_again_after_the_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_run(tmp_path, batches_of_a_hack())
    assert cli.main(["drift", str(tmp_path)]) == 0
    printed = capsys.readouterr().out
    assert "iteration 1: 0 alarms" in printed
    assert "iteration 3: 1 alarms" in printed
    assert re.search(r"^ALARM +\S+% +\S+% .*character '#'$", printed, re.M)
    assert json.loads((tmp_path / "iterations/0003/drift.json").read_text())["alarms"]
    assert cli.main(["drift", "--run_dir", str(tmp_path), "--iteration", "2", "--drift_ratio", "50"]) == 0
    assert "ALARM" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ([], "found no iterations/0001/samples.jsonl there"),
        (["--drift_ratio", "0.5"], "--drift_ratio: found 0.5"),
        (["--drift_share", "2"], "--drift_share: found 2.0"),
        (["--drift_prompts", "0"], "--drift_prompts: found 0"),
        (["--drift_false_alarms", "1"], "--drift_false_alarms: found 1.0"),
        (["--iteration", "-1"], "--iteration: found -1"),
    ],
)
def test_mistakes_are_told(arguments: list[str], told: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["drift", "--run_dir", str(tmp_path), *arguments]) == 2
    error = capsys.readouterr().err
    assert told in error
    assert error.count("\n") == 1


def test_an_iteration_that_is_not_there(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_run(tmp_path, batches_of_a_hack())
    assert cli.main(["drift", "--run_dir", str(tmp_path), "--iteration", "4"]) == 2
    assert "--iteration: found 4, allowed is up to 3" in capsys.readouterr().err


def test_lengths_come_from_the_first_iteration(tmp_path: Path) -> None:
    write_run(tmp_path, batches_of_a_hack())
    rows = read_jsonl(tmp_path / "iterations/0001/samples.jsonl")
    watch = RunWatch(RunDirectory(tmp_path), DriftConfig())
    watch.look(2)
    assert watch.watch is not None
    assert watch.watch.lengths == Lengths.of([row["response"] for row in rows])
