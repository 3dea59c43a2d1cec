"""Files of every kind, the real ones among them, and what is said about those that cannot be read."""

from __future__ import annotations

import csv
import gzip
import json
import shlex
import subprocess
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import pytest

from raft.data.loading import HELD_OUT, TEST, Dataset, load_rows, split_rows
from raft.errors import UserError

REAL = Path(__file__).parents[2].parent / "shared" / "data"
ROWS = [{"prompt": "é\u2028 one"}, {"prompt": "two"}, {"prompt": "three"}]
TEXTS = [row["prompt"] for row in ROWS]
LINES = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in ROWS).encode()


def write(path: Path, data: bytes | str) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    raw = data.encode() if isinstance(data, str) else data
    path.write_bytes(gzip.compress(raw) if path.suffix == ".gz" else raw)
    return str(path)


def prompts(path: str, **options: Any) -> list[str]:
    return [row.messages[-1]["content"] for row in load_rows(path, kinds={"prompt"}, **options).rows]


def real(path: str, kind: str) -> Dataset:
    if not (REAL / path).exists():
        pytest.skip(f"the real data file {path} is not beside the repository")
    return load_rows(str(REAL / path), kinds={kind})


def test_real_hh_pairs_are_parsed_or_counted() -> None:
    data = real("hh_rlhf/harmless-base.jsonl.gz", "preference")
    assert len(data.rows) == 2003
    assert data.skipped == {
        "chosen and rejected differ before the last turn": 5,
        "empty chosen or rejected reply": 4,
    }
    assert all(row.messages[-1]["role"] == "user" and row.chosen != row.rejected for row in data.rows)
    # Every dialogue can be put together again from what was parsed.
    with gzip.open(REAL / "hh_rlhf/harmless-base.jsonl.gz", "rt", encoding="utf-8") as stream:
        lines = stream.readlines()
    names = {"user": "Human", "assistant": "Assistant"}
    for row in data.rows:
        raw = json.loads(lines[int(row.source.rpartition(":")[2]) - 1])
        for key, reply in (("chosen", row.chosen), ("rejected", row.rejected)):
            assert reply is not None
            said = [*row.messages, {"role": "assistant", "content": reply}]
            joined = "".join(f"{names[turn['role']]}:{turn['content']}" for turn in said)
            assert "".join(joined.split()) == "".join(raw[key].split())


def test_real_files_of_other_tools() -> None:
    alpaca = real("formats/alpaca_en.json", "conversation")
    assert (len(alpaca.rows), alpaca.skipped) == (300, {})
    assert alpaca.rows[0].messages[0]["content"] == "Describe a process of making crepes."
    assert alpaca.rows[299].source.endswith("alpaca_en.json[299]")
    sharegpt = real("formats/sharegpt_preference_en.json", "preference")
    assert (len(sharegpt.rows), sharegpt.skipped) == (200, {})
    assert sum(row.messages[0]["role"] == "system" for row in sharegpt.rows) == 50
    texts = real("formats/text_c4.jsonl", "text")
    assert (len(texts.rows), texts.skipped) == (100, {})


@pytest.mark.parametrize(
    ("name", "data", "sources"),
    [
        ("a.jsonl", LINES, [":1", ":2", ":3"]),
        ("a.jsonl.gz", LINES, [":1", ":2", ":3"]),
        ("a.jsonl", b"\xef\xbb\xbf" + LINES.replace(b"\n", b"\r\n"), [":1", ":2", ":3"]),
        ("a.jsonl", b"\n" + LINES.replace(b"\n", b"\n \n").rstrip(), [":2", ":4", ":6"]),
        ("a.json", LINES, [":1", ":2", ":3"]),
        ("a.json", json.dumps(ROWS), ["[0]", "[1]", "[2]"]),
        ("a.json.gz", b"\xef\xbb\xbf" + json.dumps(ROWS, indent=2).encode(), ["[0]", "[1]", "[2]"]),
        ("a.jsonl", json.dumps(ROWS, indent=2), ["[0]", "[1]", "[2]"]),
        ("a.json", "\n".join(json.dumps(row, indent=1) for row in ROWS), [":1", ":4", ":7"]),
        ("a.json", json.dumps({"type": "text_only", "instances": ROWS}), ["[0]", "[1]", "[2]"]),
    ],
)
def test_json_files(tmp_path: Path, name: str, data: bytes | str, sources: list[str]) -> None:
    path = write(tmp_path / name, data)
    loaded = load_rows(path, kinds={"prompt"})
    assert [row.messages[0]["content"] for row in loaded.rows] == TEXTS
    assert [row.source for row in loaded.rows] == [path + place for place in sources]
    assert loaded.files == [path]


def test_json_file_with_one_object(tmp_path: Path) -> None:
    path = write(tmp_path / "a.json", json.dumps(ROWS[0], indent=2))
    assert load_rows(path, kinds={"prompt"}).rows[0].source == path


def test_parquet(tmp_path: Path) -> None:
    pytest.importorskip("pyarrow")
    import pyarrow as pa
    import pyarrow.parquet as pq

    path = str(tmp_path / "a.parquet")
    messages = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    table = pa.Table.from_pylist([{"prompt": "p", "messages": None}, {"prompt": None, "messages": messages}])
    pq.write_table(table, path)
    first, second = load_rows(path, kinds={"prompt", "conversation"}).rows
    assert (first.kind, first.source) == ("prompt", f"{path}[0]")
    assert (second.kind, second.messages, second.source) == ("conversation", tuple(messages), f"{path}[1]")
    write(tmp_path / "b.parquet", b"PAR1 not at all")
    with pytest.raises(UserError, match=r"b\.parquet: "):
        load_rows(str(tmp_path / "b.parquet"), kinds={"prompt"})


def test_directories_and_lists(tmp_path: Path) -> None:
    b = write(tmp_path / "b.jsonl", '{"prompt": "b"}')
    a = write(tmp_path / "sub" / "a.json", '[{"prompt": "a"}]')
    for ignored in ("README.json", ".hidden.jsonl", ".git/x.jsonl", "notes.txt", "dataset_info.json"):
        write(tmp_path / ignored, "no data")
    comma = write(tmp_path / "sub" / "c,d.jsonl", '{"prompt": "c"}')
    loaded = load_rows(str(tmp_path), kinds={"prompt"})
    assert loaded.files == [b, a, comma]
    assert prompts(str(tmp_path)) == ["b", "a", "c"]
    assert prompts(f"{a}, {b}") == ["a", "b"]
    assert prompts(comma) == ["c"]
    assert load_rows(str(tmp_path), kinds={"prompt"}, max_rows=1).files == [b]


def test_max_rows_stops_before_the_bad_row(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", '{"prompt": "a"}\n{"prompt": ""}\n{"prompt": "b"}\nnot json')
    assert prompts(path, max_rows=2) == ["a", "b"]
    with pytest.raises(UserError, match=r"a\.jsonl:4"):
        prompts(path, max_rows=3)
    with pytest.raises(UserError, match="found a limit of 0 rows"):
        prompts(path, max_rows=0)


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("d.jsonl", '{"prompt": "a"}\n{"prompt": }\n', ":2: column 12: found invalid JSON (Expecting value)"),
        ("d.jsonl", '{"prompt": "a"} x', ":1: column 17: found invalid JSON (Extra data)"),
        ("d.jsonl", '{"prompt": "a"\n{"prompt": "b"}\n', ":1: column 15: found invalid JSON (Expecting ',' delimiter)"),
        (
            "d.json",
            '[{"prompt": "a"},\n {"prompt" "b"}]',
            ":2: column 12: found invalid JSON (Expecting ':' delimiter)",
        ),
        (
            "d.json",
            '[{"prompt": "a"}\n {"prompt": "b"}]',
            ":2: column 2: found invalid JSON (Expecting ',' or ']')",
        ),
        ("d.json", '[{"prompt": "a"},]', ":1: column 18: found invalid JSON (Expecting value)"),
        ("d.json", '[{"prompt": "a"}', ":1: column 17: found invalid JSON (Expecting ',' or ']')"),
        ("d.json", '[{"prompt": "a"}]\n[', ":2: column 1: found invalid JSON (Extra data)"),
        (
            "d.jsonl",
            b'{"prompt": "a"}\n{"prompt": "\xe9"}',
            ":2: found the byte 0xe9, expected text in UTF-8",
        ),
        (
            "d.json",
            b'[{"prompt": "a"},\n{"prompt": "\xe9"}]',
            ":2: found the byte 0xe9, expected text in UTF-8",
        ),
        ("d.jsonl", b'{"prompt": "a"}\n\0\0', ":2: found a NUL byte, expected text in UTF-8"),
        (
            "d.jsonl",
            '{"prompt": "a", "prompt": "b"}',
            ':1: found the key "prompt" twice in one object, expected each key once',
        ),
        (
            "d.json",
            '[{"prompt": "a"},\n{"prompt": "a", "x": {"y": 1, "y": 2}}]',
            ':2: found the key "y" twice in one object, expected each key once',
        ),
        ("d.jsonl", '{"prompt": "a", "x": NaN}', ":1: found NaN, expected a JSON number or null"),
        ("d.jsonl", '{"prompt": "a", "x": -Infinity}', ":1: found -Infinity, expected a JSON number or null"),
        (
            "d.jsonl",
            '{"prompt": "a", "x": ' + "9" * 5000 + "}",
            ":1: found an integer of 5000 digits, expected a plain row",
        ),
        (
            "d.jsonl",
            '\n{"x": ' + "[" * 200_000 + "]" * 200_000 + "}",
            ":2: found JSON nested too deeply, expected a plain row",
        ),
        (
            "d.jsonl",
            '{"prompt": "a"}\n{"messages": [{"role": "user", "content": 5}]}',
            ':2: field "messages[0].content": found int, expected a string',
        ),
        ("d.json", '[{"prompt": 1}]', '[0]: field "prompt": found int, expected a string'),
    ],
)
def test_unreadable_data_is_told_by_file_and_line(tmp_path: Path, name: str, data: bytes | str, message: str) -> None:
    path = write(tmp_path / name, data)
    with pytest.raises(UserError) as caught:
        load_rows(path, kinds={"prompt"})
    assert str(caught.value) == path + message


def test_damaged_gzip(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl.gz"
    for data in (b"plain", gzip.compress(LINES)[:-9]):
        path.write_bytes(data)
        with pytest.raises(UserError, match=r"a\.jsonl\.gz: found a damaged gzip file"):
            load_rows(str(path), kinds={"prompt"})


def test_paths_that_are_not_there(tmp_path: Path) -> None:
    write(tmp_path / "prompts.jsonl", LINES)
    with pytest.raises(
        UserError, match=r"^--eval_path: .*promts\.jsonl does not exist \(did you mean .*/prompts\.jsonl\?\)"
    ):
        load_rows(str(tmp_path / "promts.jsonl"), kinds={"prompt"}, flag="--eval_path")
    with pytest.raises(UserError, match=r"does not exist \(there is no directory no/such\)"):
        load_rows("no/such/file.jsonl", kinds={"prompt"})
    with pytest.raises(UserError, match=r"expected a file that ends with one of \.json, "):
        load_rows(write(tmp_path / "a.txt", "text"), kinds={"prompt"})
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="found no data file in"):
        load_rows(str(tmp_path / "empty"), kinds={"prompt"})
    with pytest.raises(UserError, match="found an empty path"):
        load_rows("", kinds={"prompt"})


@pytest.mark.parametrize(
    ("files", "read"),
    [
        (["train.jsonl", "test.jsonl"], ["train.jsonl"]),
        (["data/train-00000-of-00002.jsonl", "data/train-00001-of-00002.jsonl", "data/validation-00000-of-00001.jsonl"],
         ["data/train-00000-of-00002.jsonl", "data/train-00001-of-00002.jsonl"]),
        (["training/a.jsonl", "training/b.jsonl", "eval/a.jsonl", "dev/a.jsonl"],
         ["training/a.jsonl", "training/b.jsonl"]),
        (["my_train.jsonl", "my_test.jsonl"], ["my_train.jsonl"]),
        (["test.jsonl", "validation.jsonl"], ["test.jsonl", "validation.jsonl"]),  # nothing to train on is meant
        (["train.jsonl", "more.jsonl"], ["more.jsonl", "train.jsonl"]),
        (["train.jsonl", "test.jsonl", "more.jsonl"], ["more.jsonl", "train.jsonl"]),
        (["train-test.jsonl", "other.jsonl"], ["other.jsonl", "train-test.jsonl"]),
        (["contest.jsonl", "trainer.jsonl"], ["contest.jsonl", "trainer.jsonl"]),
    ],
)  # fmt: skip
def test_a_directory_of_splits_is_read_without_what_is_held_out(
    files: list[str], read: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    place = tmp_path / "test" / "set"  # what is above says nothing
    for file in files:
        write(place / file, LINES)
    found = load_rows(str(place), kinds={"prompt"})
    assert [str(Path(path).relative_to(place)) for path in found.files] == read
    told = capsys.readouterr().out
    assert ("leaves out" in told) == (len(read) < len(files))
    if "validation" in files[-1] and told:
        assert told.startswith(f"{place}: reads its split train and leaves out validation (1 file); name files or")


@pytest.mark.parametrize(
    ("files", "splits", "read"),
    [
        (["train.jsonl", "val.jsonl", "test.jsonl", "more.jsonl"], HELD_OUT, ["val.jsonl"]),
        (["train.jsonl", "val.jsonl", "test.jsonl", "more.jsonl"], TEST, ["test.jsonl"]),
        (["train.jsonl", "val.jsonl"], TEST, ["val.jsonl"]),
        (["train.jsonl", "more.jsonl"], TEST, ["more.jsonl", "train.jsonl"]),
        (["train.jsonl", "test/a.jsonl", "test/b.jsonl"], HELD_OUT, ["test/a.jsonl", "test/b.jsonl"]),
    ],
)
def test_what_is_evaluated_on_is_the_held_out_split_of_a_directory(
    files: list[str], splits: tuple[str, ...], read: list[str], tmp_path: Path
) -> None:
    for file in files:
        write(tmp_path / file, LINES)
    found = load_rows(str(tmp_path), kinds={"prompt"}, splits=splits)
    assert [str(Path(path).relative_to(tmp_path)) for path in found.files] == read


QUOTED = [{"prompt": "a, b"}, {"prompt": 'said "c"\nd'}]


def as_csv(path: Path) -> Path:
    with (path / "x.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, ["prompt"])
        writer.writeheader()
        writer.writerows(QUOTED)
    return path / "x.csv"


def as_tsv(path: Path) -> Path:
    (path / "y.TSV").write_text("prompt\tnumber\n" + '"a, b"\t1\n"said ""c""\nd"\t2\n')
    return path / "y.TSV"


def as_arrow(path: Path) -> Path:
    datasets.Dataset.from_list(QUOTED).save_to_disk(str(path / "saved"))
    return next((path / "saved").glob("*.arrow"))


def as_saved(path: Path) -> Path:
    as_arrow(path)
    return path / "saved"


def as_splits(path: Path) -> Path:
    datasets.DatasetDict({"train": datasets.Dataset.from_list(QUOTED)}).save_to_disk(str(path / "splits"))
    return path / "splits"


@pytest.mark.parametrize("write_rows", [as_csv, as_tsv, as_arrow, as_saved, as_splits])
def test_what_datasets_reads_is_refused_with_a_command_that_makes_json_lines_of_it(
    write_rows: Callable[[Path], Path], tmp_path: Path
) -> None:
    path = write_rows(tmp_path)
    with pytest.raises(UserError, match="make one: python -c") as caught:
        load_rows(str(path), kinds={"prompt"})
    told = str(caught.value).partition("make one: python -c ")[2]
    exec(shlex.split(told)[0], {})
    made = load_rows(f"{path.with_suffix('')}.jsonl", kinds={"prompt"}).rows
    assert [row.messages[0]["content"] for row in made] == [row["prompt"] for row in QUOTED]


def test_a_slip_beside_a_local_directory_does_not_ask_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / "data" / "prompts" / "a.jsonl", LINES)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=r"data/prompst does not exist \(did you mean data/prompts\?\)"):
        load_rows("data/prompst", kinds={"prompt"})


def test_hub_data_sets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []

    def load_dataset(name: str, config: str | None, *, split: str) -> list[dict[str, str]]:
        calls.append((name, config, split))
        if name == "un/reachable":
            raise ConnectionError("no network\nand more")
        return ROWS

    def split_names(name: str, config: str | None) -> list[str]:
        return ["test", "train"] if name == "owner/name" else ["all"]

    hub = types.SimpleNamespace(load_dataset=load_dataset, get_dataset_split_names=split_names)
    monkeypatch.setitem(sys.modules, "datasets", hub)
    monkeypatch.chdir(tmp_path)
    data = load_rows("owner/name:main", kinds={"prompt"}, splits=HELD_OUT)
    assert [row.source for row in data.rows] == [f"owner/name:main[{i}]" for i in range(3)]
    assert prompts("owner/name") == TEXTS
    assert calls == [("owner/name", "main", "test"), ("owner/name", None, "train")]
    with pytest.raises(UserError, match=r"un/reachable is no local path, and .* the hub \(no network\);"):
        load_rows("un/reachable", kinds={"prompt"})


TEXT = '{"text": "t"}\n'
CONVERSATION = '{"prompt": "a", "response": "b"}\n'
PAIR = '{"prompt": "a", "chosen": "b", "rejected": "c"}\n'
PROMPT = '{"prompt": "a"}\n'


def test_any_kind_can_be_a_prompt(tmp_path: Path) -> None:
    assert prompts(write(tmp_path / "a.jsonl", TEXT + CONVERSATION + PAIR + PROMPT)) == ["t", "a", "a", "a"]


def test_prompts_are_left_out_where_a_response_is_needed(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", TEXT + PROMPT + CONVERSATION)
    data = load_rows(path, kinds={"text", "conversation"})
    assert [row.kind for row in data.rows] == ["text", "conversation"]
    assert data.skipped == {"prompt without a response": 1}


def test_conversations_are_trained_on_up_to_their_last_answer(tmp_path: Path) -> None:
    def conversation(*contents: str) -> str:
        said = [{"role": ("user", "assistant")[i % 2], "content": content} for i, content in enumerate(contents)]
        return json.dumps({"messages": said}) + "\n"

    lines = conversation("a", "b", "c") + conversation("a", "", "c", "d") + conversation("a", "", "c", "d", "e")
    path = write(tmp_path / "a.jsonl", lines + PROMPT)
    data = load_rows(path, kinds={"text", "conversation"})
    assert [[message["content"] for message in row.messages] for row in data.rows] == [["a", "b"]]
    assert data.skipped == {
        "end of a conversation without an answer": 1,
        "empty assistant turn within a conversation": 2,
        "prompt without a response": 1,
    }
    assert prompts(path) == ["c", "c", "e", "a"]
    assert len(load_rows(path, kinds={"conversation", "preference", "prompt"}).rows) == 4


@pytest.mark.parametrize(
    ("data", "kinds", "message"),
    [
        (
            PAIR,
            ["text", "conversation"],
            "a.jsonl:1: found a preference pair (chosen and rejected), expected a plain "
            "text or a conversation that ends with a response (raft reward trains on preference pairs)",
        ),
        (
            TEXT,
            ["preference"],
            "a.jsonl:1: found a plain text, expected a preference pair (chosen and rejected) "
            "(raft sft trains on plain texts)",
        ),
        (
            PAIR + PROMPT,
            ["preference"],
            "a.jsonl:2: found a prompt without a response, expected a preference pair "
            "(chosen and rejected) (raft align takes prompts)",
        ),
        (
            CONVERSATION,
            ["text"],
            "a.jsonl:1: found a conversation that ends with a response, expected a plain text "
            "(raft sft trains on conversations)",
        ),
        (
            PROMPT,
            ["conversation"],
            "--dataset_path a.jsonl: found only rows to leave out (1 x prompt without a "
            "response), expected a conversation that ends with a response; raft align takes prompts",
        ),
        ("", ["prompt"], "--dataset_path a.jsonl: found no rows, expected a prompt without a response"),
    ],
)
def test_rows_of_a_kind_the_stage_does_not_take(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, data: str, kinds: list[str], message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "a.jsonl", data)
    with pytest.raises(UserError) as caught:
        load_rows("a.jsonl", kinds=kinds)
    assert str(caught.value) == message


@pytest.mark.parametrize(
    ("count", "percentage", "held_out"),
    [
        (10, 0, 0),
        (10, 10, 1),
        (10, 11, 2),
        (10, 0.01, 1),
        (1000, 1.1, 11),
        (300, 7, 21),
        (2, 50, 1),
        (0, 10, 0),
    ],
)
def test_split_holds_out_the_last_rows(count: int, percentage: float, held_out: int) -> None:
    rows: list[Any] = list(range(count))
    train, validation = split_rows(rows, percentage)
    assert train + validation == rows
    assert len(validation) == held_out


def test_split_refuses_to_leave_nothing_to_train_on() -> None:
    rows: list[Any] = [1]
    with pytest.raises(UserError, match="holds out all 1 rows and leaves nothing to train on"):
        split_rows(rows, 5)
    for percentage in (-1, 100, float("nan")):
        with pytest.raises(UserError, match="--validation_split_percentage: found"):
            split_rows(rows, percentage)


def test_loading_json_imports_no_heavy_package(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", LINES)
    code = (
        f"import sys; from raft.data.loading import load_rows; load_rows({path!r}, kinds=['prompt']);"
        "print({'torch', 'transformers', 'datasets', 'pyarrow', 'numpy'} & set(sys.modules))"
    )
    repository = Path(__file__).parents[2]
    done = subprocess.run([sys.executable, "-c", code], cwd=repository, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
