from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from raft import cli
from raft.functional.diversity import diversity_report, token_report
from raft.functional.tokens import tokenize
from tests.conftest import run_raft

TEXTS = ["Bread needs flour, and time.", "", "Bread needs water. Bread needs salt.", "Bread needs flour, and time."]
GEM_NAMES = [
    *("total_length", "mean_pred_length", "std_pred_length", "median_pred_length", "min_pred_length"),
    *("max_pred_length", "distinct-1", "vocab_size-1", "unique-1", "entropy-1"),
    *("distinct-2", "vocab_size-2", "unique-2", "entropy-2", "cond_entropy-2"),
    *("distinct-3", "vocab_size-3", "unique-3", "entropy-3", "cond_entropy-3", "msttr-100"),
]


def rows_file(path: Path, rows: list[Any]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def json_of(capsys: pytest.CaptureFixture[str], *arguments: str) -> dict[str, Any]:
    assert cli.main(["diversity", *arguments, "--json"]) == 0
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    return found


def test_json_is_one_object_under_gems_names(tmp_path: Path) -> None:
    """As a user runs it."""
    done = run_raft("diversity", rows_file(tmp_path / "texts.jsonl", [{"text": text} for text in TEXTS]), "--json")
    found = json.loads(done.stdout)
    assert set(found) == {
        *GEM_NAMES, "repetition-4", "self_bleu-4", "self_bleu_texts", "num_responses", "num_empty",
    }  # fmt: skip
    expected = diversity_report(TEXTS)
    assert {name: found[name] for name in expected if name != "msttr-100"} == pytest.approx(
        {name: value for name, value in expected.items() if name != "msttr-100"}
    )
    assert found["msttr-100"] is None  # 20 words: no window of 100
    assert (found["num_responses"], found["num_empty"], found["total_length"]) == (4, 1, 7 + 8 + 7)
    assert found["self_bleu_texts"] == 3
    assert found["repetition-4"] == 0


def test_samples_of_a_run_are_reported_with_those_selected(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [
        {
            "response": text, "text": "not this", "response_tokens": [1] * (2 * i + 1), "selected": i % 2 == 0,
            "finish_reason": "eos" if i else "length",
        }
        for i, text in enumerate(TEXTS)
    ]  # fmt: skip
    path = rows_file(tmp_path / "samples.jsonl", rows)
    found = json_of(capsys, path)
    assert found["distinct-2"] == diversity_report(TEXTS)["distinct-2"]
    assert (found["mean_model_tokens"], found["std_model_tokens"]) == (4.0, pytest.approx(5**0.5))
    assert found["eos_share"] == 0.75
    chosen = found["selected"]
    assert chosen["distinct-2"] == diversity_report([TEXTS[0], TEXTS[2]])["distinct-2"]
    assert (chosen["num_responses"], chosen["eos_share"], chosen["mean_model_tokens"]) == (2, 0.5, 3.0)
    assert cli.main(["diversity", path]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[:2] == [f"[1] {path}", f"[2] {path}, selected"]
    (row,) = [line.split() for line in lines if line.startswith("distinct-2")]
    assert row[1:] == [f"{found['distinct-2']:.4f}", f"{chosen['distinct-2']:.4f}"]


def test_plain_lines_and_several_files(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plain = tmp_path / "responses.txt"
    plain.write_text("\n\n".join(text for text in TEXTS if text) + "\n", encoding="utf-8")
    packed = tmp_path / "responses.jsonl.gz"
    packed.write_bytes(gzip.compress("".join(json.dumps(text) + "\n" for text in TEXTS).encode()))
    assert cli.main(["diversity", str(plain), str(packed), "--json"]) == 0
    out, err = capsys.readouterr()
    found = json.loads(out)
    assert list(found) == [str(plain), str(packed)]
    assert err == f"{plain}: blank lines left out: 2\n"
    assert found[str(plain)]["num_responses"] == 3
    for name in ("distinct-1", "unique-3", "self_bleu-4"):  # the empty response changes none of these
        assert found[str(plain)][name] == found[str(packed)][name]
    assert found[str(plain)]["mean_pred_length"] != found[str(packed)]["mean_pred_length"]


def test_other_columns_and_no_punctuation(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = rows_file(tmp_path / "rows.jsonl", [{"said": text, "id": 3} for text in TEXTS])
    found = json_of(capsys, path, "--column", "said", "--nopunct")
    bare = token_report([tokenize(text, keep_punctuation=False) for text in TEXTS])
    assert found["distinct-1"] == diversity_report(TEXTS)["distinct-1"] != found["distinct-1-nopunct"]
    assert found["distinct-1-nopunct"] == bare["distinct-1"]
    assert cli.main(["diversity", path]) == 2
    assert f"{path}:1: found no response or text; --column names another one (columns with text: said)" in (
        capsys.readouterr().err
    )


def test_the_sample_of_self_bleu_has_a_seed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = rows_file(tmp_path / "rows.jsonl", [{"text": f"w{i % 3} w{i % 5} w{i % 7}"} for i in range(50)])
    one, again, other = (json_of(capsys, path, "--self_bleu_texts", "9", "--seed", seed) for seed in "112")
    assert one == again
    assert one["self_bleu-4"] != other["self_bleu-4"]
    assert one["self_bleu_texts"] == 9
    assert {k: v for k, v in one.items() if k != "self_bleu-4"} == {
        k: v for k, v in other.items() if k != "self_bleu-4"
    }


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("absent.jsonl", None, "found no such file"),
        ("empty.jsonl", b"", "found no response in it"),
        ("blank.txt", b"\n\n", "found no response in it"),
        ("binary.txt", b"\xff\xfe\xff", "cannot be read as UTF-8 text"),
        ("numbers.jsonl", b"[1]\n", "expected a JSON object or a string"),
    ],
)
def test_files_that_hold_no_responses(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str, content: bytes | None, message: str
) -> None:
    path = tmp_path / name
    if content is not None:
        path.write_bytes(content)
    assert cli.main(["diversity", str(path)]) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("raft diversity: error: ")
    assert message in error
    assert str(path) in error


def test_a_directory_and_no_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["diversity", str(tmp_path)]) == 2
    assert f"--files {tmp_path}: found a directory" in capsys.readouterr().err
    assert cli.main(["diversity", "--json"]) == 2
    assert "--files is required" in capsys.readouterr().err
