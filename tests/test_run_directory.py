"""The run directory: files are whole or not there, and no run is overwritten by accident."""

from __future__ import annotations

import itertools
import json
import math
import os
import shutil
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from raft import run_directory
from raft.errors import UserError
from raft.run_directory import (
    RunDirectory,
    environment,
    json_safe,
    noticing_full_disk,
    read_jsonl,
    write_json,
    write_jsonl,
    write_text,
    written_whole,
)


@pytest.fixture(autouse=True)
def _no_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Starting a run asks for versions and the commit; most tests can do without."""
    monkeypatch.setattr(run_directory, "environment", lambda: {"raft": "0"})


def names(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir())


# ---------------------------------------------------------------- files


def test_text_is_written_with_its_folders(tmp_path: Path) -> None:
    write_text(tmp_path / "a" / "b.txt", "Grüße\n")
    assert (tmp_path / "a" / "b.txt").read_bytes() == "Grüße\n".encode()
    assert names(tmp_path / "a") == ["b.txt"]


def test_what_is_no_file_stays_what_it_is(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    reader = os.open(tmp_path / "pipe", os.O_RDONLY | os.O_NONBLOCK)
    write_text(tmp_path / "pipe", "text")
    assert os.read(reader, 9) == b"text"
    os.close(reader)
    assert (tmp_path / "pipe").is_fifo()


def test_a_directory_with_a_config_yaml_of_somebody_elses_is_not_removed(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("my: config")
    (tmp_path / "thesis.txt").write_text("mine")
    for text in (None, "", "{}", '{"name": "conda"}'):
        if text is not None:
            (tmp_path / "environment.json").write_text(text)
        with pytest.raises(UserError, match=r"--overwrite_output_dir: .* holds no run of this toolkit"):
            RunDirectory(tmp_path).start("", resume=False, overwrite=True)
    assert (tmp_path / "thesis.txt").read_text() == "mine"


def test_file_stays_as_it_was_when_writing_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "rows.jsonl"
    write_jsonl(path, [{"a": 1}])

    def fail(descriptor: int) -> None:
        raise OSError("no space left")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match="no space left"):
        write_jsonl(path, [{"a": 2}, {"a": 3}])
    assert read_jsonl(path) == [{"a": 1}]


def test_flushed_to_disk_before_it_has_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    events: list[str] = []
    fsync, replace = os.fsync, os.replace
    monkeypatch.setattr(os, "fsync", lambda descriptor: (events.append("fsync"), fsync(descriptor)))
    monkeypatch.setattr(os, "replace", lambda old, new: (events.append("replace"), replace(old, new)))
    write_text(tmp_path / "a.txt", "a")
    with written_whole(tmp_path / "model") as aside:
        (aside / "weights").write_text("1")
        (aside / "deeper").mkdir()
        (aside / "deeper" / "more").write_text("2")
    # The file, its name; then of the directory: two files, their names, its own name.
    assert events == ["fsync", "replace", "fsync", "fsync", "fsync", "fsync", "replace", "fsync"]


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (math.nan, None),
        (math.inf, None),
        (-math.inf, None),
        (1.5, 1.5),
        (np.float32(0.25), 0.25),
        (np.float64("nan"), None),
        (np.int64(3), 3),
        ({"a": [1, math.nan, {"b": (math.inf, "nan")}]}, {"a": [1, None, {"b": [None, "nan"]}]}),
        ({3: True}, {"3": True}),
        (None, None),
        ("infinity", "infinity"),
    ],
)
def test_json_has_no_word_for_nan(value: Any, expected: Any, tmp_path: Path) -> None:
    assert json_safe(value) == expected
    write_json(tmp_path / "value.json", value)

    def refuse(word: str) -> None:
        raise AssertionError(word)

    assert json.loads((tmp_path / "value.json").read_text(), parse_constant=refuse) == expected


def test_jsonl_keeps_line_breaks_inside_a_line(tmp_path: Path) -> None:
    rows = [{"text": "a\nb\u2028c", "score": math.nan}, {"text": "Grüße"}]
    write_jsonl(tmp_path / "rows.jsonl", rows)
    assert read_jsonl(tmp_path / "rows.jsonl") == [{"text": "a\nb\u2028c", "score": None}, {"text": "Grüße"}]
    assert "Grüße" in (tmp_path / "rows.jsonl").read_text(encoding="utf-8")


# ---------------------------------------------------------------- directories


def test_directory_is_replaced_as_a_whole(tmp_path: Path) -> None:
    for content in ("old", "new"):
        with written_whole(tmp_path / "model") as aside:
            assert list(aside.iterdir()) == []
            (aside / f"{content}.txt").write_text(content)
            assert names(tmp_path / "model") == ["old.txt"] if content == "new" else not (tmp_path / "model").exists()
    assert names(tmp_path / "model") == ["new.txt"]
    assert names(tmp_path) == ["model"]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_exception_leaves_the_old_directory_and_nothing_else(tmp_path: Path, error: type[BaseException]) -> None:
    with written_whole(tmp_path / "model") as aside:
        (aside / "weights").write_text("old")
    with pytest.raises(error), written_whole(tmp_path / "model") as aside:  # noqa: PT012
        (aside / "weights").write_text("half of the n")
        raise error
    assert (tmp_path / "model" / "weights").read_text() == "old"
    assert names(tmp_path) == ["model"]
    with pytest.raises(error), written_whole(tmp_path / "fresh") as aside:
        raise error
    assert names(tmp_path) == ["model"]


def test_leftovers_of_a_killed_process(tmp_path: Path) -> None:
    """Killed while writing, or between the two renames: the next writer clears up, and nothing whole is lost."""
    model, aside, old = (tmp_path / name for name in ("model", "model.part", "model.old"))
    for directory in (aside, old):
        directory.mkdir()
        (directory / "weights").write_text(directory.name)
    with pytest.raises(ValueError, match="again"), written_whole(model):
        raise ValueError("again")
    assert (model / "weights").read_text() == "model.old"  # the last whole one is back in its place
    assert names(tmp_path) == ["model"]
    old.mkdir()
    with written_whole(model) as aside:
        (aside / "weights").write_text("new")
    assert (model / "weights").read_text() == "new"
    assert names(tmp_path) == ["model"]


def test_a_full_disk_is_an_oserror_whichever_library_finds_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """/dev/full refuses every byte."""
    if not Path("/dev/full").is_char_device():
        pytest.skip("there is no /dev/full")
    import torch
    from safetensors import SafetensorError

    weights = {"weight": torch.zeros(100_000)}
    with pytest.raises(OSError, match="No space left on device"), noticing_full_disk(tmp_path):
        raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")
    with pytest.raises(RuntimeError, match="unexpected pos"), noticing_full_disk(tmp_path):
        torch.save(weights, "/dev/full")
    full = SimpleNamespace(free=4096)
    monkeypatch.setattr(run_directory.shutil, "disk_usage", lambda path: full)
    with pytest.raises(OSError, match=f"No space left on device: '{tmp_path}'"), noticing_full_disk(tmp_path):
        torch.save(weights, "/dev/full")
    with pytest.raises(FileNotFoundError), noticing_full_disk(tmp_path):  # has a name of its own
        (tmp_path / "a" / "b").read_text()


# ---------------------------------------------------------------- runs


def test_new_run(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path / "deep" / "run")
    run.start("seed: 1\n", resume=False, overwrite=False)
    assert names(run.path) == ["config.yaml", "environment.json", "run.lock"]
    assert (run.path / "config.yaml").read_text() == "seed: 1\n"
    run.close()
    assert names(run.path) == ["config.yaml", "environment.json"]


def test_empty_directory_is_as_good_as_none(tmp_path: Path) -> None:
    """So is what a start leaves that was killed at once."""
    for name in ("run.lock", "config.yaml.part"):
        (tmp_path / name).touch()
    run = RunDirectory(tmp_path)
    run.start("", resume=False, overwrite=False)
    run.close()
    assert names(tmp_path) == ["config.yaml", "environment.json"]


def test_other_run_is_kept_unless_told_otherwise(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path / "run")
    run.start("first", resume=False, overwrite=False)
    run.log({"step": 1})
    with pytest.raises(
        UserError, match=r"--output_dir: .* is not empty\. .*--resume true.*--overwrite_output_dir true"
    ):
        run.start("second", resume=False, overwrite=False)
    assert (run.path / "config.yaml").read_text() == "first"

    run.start("resumed", resume=True, overwrite=False)
    assert (run.path / "config.yaml").read_text() == "resumed"
    assert len(read_jsonl(run.path / "metrics.jsonl")) == 1

    (run.path / "final").mkdir()
    run.start("fresh", resume=False, overwrite=True)
    assert names(run.path) == ["config.yaml", "environment.json", "run.lock"]


def test_what_is_no_run_is_never_removed(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("years of work")
    run = RunDirectory(tmp_path)
    with pytest.raises(UserError, match="is not empty"):
        run.start("", resume=False, overwrite=False)
    with pytest.raises(UserError, match=r"--overwrite_output_dir: .* holds no run .*not removed"):
        run.start("", resume=False, overwrite=True)
    with pytest.raises(UserError, match="--resume: there is no run in"):
        run.start("", resume=True, overwrite=False)
    assert names(tmp_path) == ["thesis.tex"]


def test_overwriting_nothing_is_fine(tmp_path: Path) -> None:
    RunDirectory(tmp_path / "run").start("", resume=False, overwrite=True)
    assert (tmp_path / "run" / "config.yaml").is_file()


def test_log_and_truncate(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path)
    for step in range(5):
        run.log({"step": step, "loss": math.nan if step == 3 else step / 2})
    rows = read_jsonl(tmp_path / "metrics.jsonl")
    assert [row["loss"] for row in rows] == [0.0, 0.5, 1.0, None, 2.0]
    assert all(1.6e9 < row["time"] < 1e11 for row in rows)
    assert run.log_length() == (tmp_path / "metrics.jsonl").stat().st_size
    length = sum(map(len, (tmp_path / "metrics.jsonl").read_bytes().splitlines(keepends=True)[:3]))
    with open(tmp_path / "metrics.jsonl", "a") as file:
        file.write('{"step": 5, "lo')  # cut off by a full disk
    run.truncate_log(length)
    assert read_jsonl(tmp_path / "metrics.jsonl") == rows[:3]
    run.log({"step": 3})
    assert [row["step"] for row in read_jsonl(tmp_path / "metrics.jsonl")] == [0, 1, 2, 3]
    run.truncate_log(10**6)  # somebody has shortened the file: it is not filled up
    assert [row["step"] for row in read_jsonl(tmp_path / "metrics.jsonl")] == [0, 1, 2, 3]
    assert names(tmp_path) == ["metrics.jsonl"]


def test_truncating_no_log(tmp_path: Path) -> None:
    RunDirectory(tmp_path).truncate_log(0)
    assert RunDirectory(tmp_path).log_length() == 0
    assert names(tmp_path) == []


def test_one_rank_writes(tmp_path: Path) -> None:
    """The other ranks call the same functions; refusals are rank 0's too."""
    run = RunDirectory(tmp_path / "run", writes=False)
    run.start("", resume=True, overwrite=False)
    run.log({"step": 1})
    run.write_json("a.json", {})
    run.write_jsonl("a.jsonl", [{}])
    run.truncate_log(0)
    run.close()
    assert run.log_length() == 0
    assert not run.path.exists()


def test_files_below_the_run(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path)
    assert run.iteration(3) == "iterations/0003"
    run.write_json(f"{run.iteration(3)}/metrics.json", {"reward": 1.5})
    run.write_jsonl("held_out/0003.jsonl", [{"a": 1}])
    assert json.loads((tmp_path / "iterations/0003/metrics.json").read_text()) == {"reward": 1.5}
    assert read_jsonl(tmp_path / "held_out" / "0003.jsonl") == [{"a": 1}]


def test_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    monkeypatch.setattr(run_directory, "PACKAGES", ("torch", "no-such-package"))
    found = environment()
    assert found["packages"]["torch"].split("+")[0] == torch.__version__.split("+")[0]
    assert found["packages"]["no-such-package"] is None
    assert found["cpu_count"] == os.cpu_count()
    json.dumps(found)


def test_what_later_iterations_left_is_forgotten(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path)
    for number in (0, 1, 2, 10):
        run.write_jsonl(f"held_out/{number:04d}.jsonl", [{}])
        run.write_jsonl(f"{run.iteration(number)}/samples.jsonl", [{}])
    run.write_json("held_out/notes.json", {})
    run.forget_after(1)
    left = sorted(str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*.json*"))
    kept = [f"held_out/000{number}.jsonl" for number in (0, 1)] + ["held_out/notes.json"]
    assert left == kept + [f"iterations/000{number}/samples.jsonl" for number in (0, 1)]


@pytest.mark.parametrize("at", range(7))
def test_a_start_that_was_killed_is_made_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at: int) -> None:
    """At each of its removals and renames: the same command takes the directory, and nothing of before is left."""
    start = partial(RunDirectory(tmp_path).start, resume=False, overwrite=True)
    start("first")
    (tmp_path / "iterations/0001").mkdir(parents=True)
    (tmp_path / "metrics.jsonl").write_text("{}")
    calls = itertools.count()

    def killed(original: Any) -> Any:
        def call(*arguments: Any, **options: Any) -> Any:
            if next(calls) == at:
                raise KeyboardInterrupt
            return original(*arguments, **options)

        return call

    with monkeypatch.context() as patched:
        for owner, name in ((os, "replace"), (shutil, "rmtree"), (Path, "unlink")):
            patched.setattr(owner, name, killed(getattr(owner, name)))
        if at < 6:
            with pytest.raises(KeyboardInterrupt):
                start("second")
        else:  # that was all
            start("second")
    start("third")
    assert names(tmp_path) == ["config.yaml", "environment.json", "run.lock"]
    assert (tmp_path / "config.yaml").read_text() == "third"
