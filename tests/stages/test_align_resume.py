"""A run of RAFT that was stopped or that failed goes on as if nothing had been: files and weights, bit for bit."""

from __future__ import annotations

import itertools
import json
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from benchmarks.same_run import differences
from raft import cli
from raft.engine.checkpoint import complete_checkpoints
from raft.engine.engine import Engine
from raft.models.forward import next_token_loss
from raft.rewards import reward_model
from raft.rollout import backend
from raft.rollout.backend import NativeBackend
from raft.run_directory import read_jsonl
from raft.stages.align import Alignment
from raft.stages.stopping import judge
from tests.processes import run_forked

Run = Callable[..., int]


@pytest.fixture(scope="module")
def settings(talkative_model: str, tiny_reward_model: str, prompts: str) -> dict[str, Any]:
    """b=4, k=3, two iterations of four steps, three chunks and three batches; evaluated at start and end."""
    return {
        "model_name_or_path": talkative_model, "reward_model_or_path": tiny_reward_model, "dataset_path": prompts,
        "eval_dataset_path": "none", "validation_split_percentage": 25, "num_raft_iteration": 2, "raft_batch_size": 4,
        "num_samples_per_prompt": 3, "output_max_length": 8, "inference_batch_size_per_device": 5,
        "reward_batch_size": 5, "per_device_train_batch_size": 1, "num_train_epochs": 1, "learning_rate": 3e-3,
        "eval_every_n_iterations": 0, "dtype": "fp32", "reward_dtype": "fp32",
    }  # fmt: skip


@pytest.fixture(scope="module")
def start(settings: dict[str, Any]) -> Iterator[Callable[..., int]]:
    """``raft align`` in this process; gives the exit code."""

    def start(directory: Path, *more: str, **changes: Any) -> int:
        flags = [text for name, value in (settings | changes).items() for text in (f"--{name}", str(value))]
        return cli.main(["align", *flags, *more, "--output_dir", str(directory)])

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("raft.reports.curves.draw_align_curves", lambda directory: None)
        patched.setattr("raft.reports.page.page.write_page", lambda runs: None)
        yield start


@pytest.fixture(scope="module")
def whole(start: Callable[..., int], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What an undisturbed run leaves."""
    directory = tmp_path_factory.mktemp("whole") / "run"
    assert start(directory) == 0
    return directory


@pytest.fixture
def run(start: Callable[..., int], tmp_path: Path) -> Run:
    """The same run, always into the same directory."""
    return partial(start, tmp_path / "run")


def counted(monkeypatch: pytest.MonkeyPatch, owner: Any, name: str, at: int, act: Callable[[], object]) -> list[int]:
    """Count the calls of a function, and do something within the ``at``-th."""
    original, calls = getattr(owner, name), [0]

    def call(*arguments: Any, **options: Any) -> Any:
        calls[0] += 1
        if calls[0] == at:
            act()
        return original(*arguments, **options)

    monkeypatch.setattr(owner, name, call)
    return calls


DAY = 86400.0


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """What to add to the time of day: a day less or a year more, anew every seventh time that it is asked for."""
    shift, calls, now = [0.0], itertools.count(), time.time

    def asked() -> float:
        if next(calls) % 7 == 6:
            shift[0] = -DAY if shift[0] > 0 else 365 * DAY
        return now() + shift[0]

    monkeypatch.setattr(time, "time", asked)
    return shift


def test_stopped_in_every_phase_and_resumed(
    run: Run,
    whole: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    clock: list[float],
) -> None:
    """SIGTERM while the 2nd chunk is drawn, the 3rd batch scored, the 3rd step taken; no unit is done twice.

    All the while the clock jumps, by a day back and by a year ahead, and files are as old as it says.
    """
    directory = tmp_path / "run"

    def interrupt() -> None:
        signal.raise_signal(signal.SIGTERM)

    # Three held-out responses and one batch of scores come first.
    chunks = counted(monkeypatch, NativeBackend, "draw", 1 + 2, interrupt)
    batches = counted(monkeypatch, reward_model, "in_halves", 1 + 3, interrupt)  # which scores a batch
    steps = counted(monkeypatch, Engine, "train_step", 3, interrupt)
    assert run("--resume", "auto") == 143
    assert (chunks, batches, steps) == ([3], [1], [0])
    assert run("--resume", "auto") == 143
    assert (chunks, batches, steps) == ([4], [4], [0])
    assert run("--resume", "auto") == 143
    assert (chunks, batches, steps) == ([4], [4], [3])
    assert clock[0], "the clock has jumped"
    clock[0] = -DAY  # and the next start is before all others
    for number, path in enumerate(sorted(directory.rglob("*"))):
        os.utime(path, (time.time() + DAY * number, time.time() + DAY * number))
    assert [path.name for path in (directory / "checkpoints").iterdir()] == ["000000-000003"]
    assert "SIGTERM: stopping after" in capfd.readouterr().err
    assert run("--resume", "auto") == 0
    assert differences(whole, directory) == []
    # 1 of the start, 3 of each of two iterations, 1 of the end; 4 steps an iteration.
    assert (chunks, batches, steps) == ([8], [8], [8])
    assert not (directory / "journal").exists()
    assert not (directory / "run.lock").exists()
    summary = json.loads((directory / "summary.json").read_text())
    rows = read_jsonl(directory / "metrics.jsonl")
    seconds = [value for row in rows for key, value in row.items() if key.startswith("seconds/")]
    assert len(seconds) > 8
    assert all(0 <= value < DAY for value in [*seconds, *summary["seconds"].values()])


FULL = """
import ctypes, os, shutil, subprocess, sys
from pathlib import Path
import raft.reports.curves, raft.reports.page.page
from raft import cli

raft.reports.curves.draw_align_curves = raft.reports.page.page.write_page = lambda runs: None
disk, *flags = sys.argv[1:]
run = Path(disk) / "run"
maps = {"setgroups": "deny", "uid_map": f"0 {os.getuid()} 1", "gid_map": f"0 {os.getgid()} 1"}
assert ctypes.CDLL(None).unshare(0x10000000 | 0x00020000) == 0  # what OWN_MOUNTS does: a user and mounts of its own
for name, text in maps.items():
    Path("/proc/self", name).write_text(text)
subprocess.run(["mount", "--make-rprivate", "/"], check=True)
subprocess.run(["mount", "-t", "tmpfs", "-o", "size=800k", "tmpfs", disk], check=True)
assert cli.main(["align", *flags, "--output_dir", str(run)]) == 2
assert list(run.glob("checkpoints/*/manifest.json"))
subprocess.run(["mount", "-o", "remount,size=64m", disk], check=True)
assert cli.main(["align", *flags, "--output_dir", str(run), "--resume"]) == 0
shutil.copytree(run, Path(disk).parent / "copy")
"""
OWN_MOUNTS = ["unshare", "--map-root-user", "--mount"]


def test_a_full_disk_ends_the_run_in_one_line_and_loses_nothing(
    settings: dict[str, Any], whole: Path, tmp_path: Path
) -> None:
    """On a disk with room for one checkpoint, until it has more."""
    if not shutil.which("unshare") or subprocess.run([*OWN_MOUNTS, "true"], capture_output=True).returncode:
        pytest.skip("a small disk can not be mounted here (no user namespaces)")
    disk = tmp_path / "disk"
    disk.mkdir()
    flags = [text for name, value in settings.items() for text in (f"--{name}", str(value))]
    done = run_forked(("-c", FULL), disk, *flags)
    assert done.returncode == 0, done.stderr[-3000:]
    errors = [line for line in done.stderr.splitlines() if "error:" in line]
    assert len(errors) == 1
    assert errors[0].startswith("raft align: error: No space left on device (")
    assert errors[0].endswith("A run continues with --resume once that is mended")
    assert differences(whole, tmp_path / "copy") == []


def test_files_deleted_under_the_run(run: Run, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without journal and checkpoint the work is done again; with a damaged checkpoint, from the one before it."""
    directory = tmp_path / "run"

    steps = counted(monkeypatch, Engine, "train_step", 3, _die)
    assert run(save_steps=2, save_total_limit=2) == 130
    assert [path.name for path in (directory / "checkpoints").iterdir()] == ["000000-000002"]
    shutil.rmtree(directory / "journal")  # what the checkpoint was trained on is gone
    steps[0] = -4  # the next to die: the 3rd step of the second iteration
    assert run("--resume", save_steps=2, save_total_limit=2) == 130
    assert [path.name for path in complete_checkpoints(directory / "checkpoints")] == ["000001", "000001-000006"]
    os.truncate(directory / "checkpoints/000001-000006/state.json", 10)
    assert run("--resume", save_total_limit=1) == 0
    damaged = ["000000-000002.damaged", "000001-000006.damaged"]
    assert sorted(path.name for path in (directory / "checkpoints").iterdir()) == [*damaged, "000002"]
    for name in damaged:
        shutil.rmtree(directory / "checkpoints" / name)
    assert differences(whole, directory) == []


def test_a_finished_run_may_be_resumed_and_other_settings_are_refused(
    run: Run, whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(whole, tmp_path / "run")
    assert run("--resume", temperature=0.1) == 2
    told = "raft align: error: --temperature: the run to be resumed has 0.85, found 0.1."
    assert capsys.readouterr().err.startswith(told)
    assert run("--resume", logging_steps=2) == 0
    assert differences(whole, tmp_path / "run") == []


def test_a_resume_that_ends_where_nothing_was_evaluated_evaluates_there(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two iterations, of which the first is not evaluated; stopped as the second begins, and shortened to one."""
    directory = tmp_path / "run"
    counted(monkeypatch, NativeBackend, "draw", 1 + 3 + 1, lambda: signal.raise_signal(signal.SIGTERM))
    assert run() == 143
    assert run("--resume", num_raft_iteration=1) == 0
    summary = json.loads((directory / "summary.json").read_text())
    assert summary["num_iterations"] == 1
    rows = [row for row in read_jsonl(directory / "metrics.jsonl") if "held_out/reward_mean" in row]
    assert [row["iteration"] for row in rows] == [0, 1]
    assert summary["held_out_reward"]["final"] == rows[1]["held_out/reward_mean"]
    assert (directory / "before_after.md").exists()


def test_a_longer_run_never_loses_its_only_checkpoint_and_follows_the_longer_schedule(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Stopped halfway through the training of the second of two iterations, with no checkpoint behind the first."""
    directory, rare = tmp_path / "run", {"save_every_n_iterations": 0}
    counted(monkeypatch, Engine, "train_step", 6, lambda: signal.raise_signal(signal.SIGTERM))
    assert run(**rare) == 143
    named = [path.name for path in (directory / "checkpoints").iterdir()]
    assert named == ["000001-000006"]
    assert run("--resume", **rare, num_raft_iteration=3) == 2
    assert "--num_raft_iteration: the only checkpoint of the run to be resumed, " in capsys.readouterr().err
    assert [path.name for path in (directory / "checkpoints").iterdir()] == named
    assert run("--resume", "--save_every_n_iterations", "1") == 0
    assert run("--resume", num_raft_iteration=3) == 0
    rates = [row["train/learning_rate"] for row in read_jsonl(directory / "metrics.jsonl") if "step" in row]
    first = 3e-3  # linear, to 0 behind 8 steps; from then on, to 0 behind 12
    assert rates == pytest.approx([first * (1 - i / (8 if i < 8 else 12)) for i in range(12)])


def test_the_best_policy_is_kept_though_the_run_was_killed_before_it_was(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Behind the checkpoint of the first iteration, which is the best; what is left of a second one is forgotten."""
    directory, export = tmp_path / "run", Alignment.export
    monkeypatch.setattr("raft.stages.align_parts.judge", partial(first_is_best, judge))

    def killed(self: Alignment, name: str) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Alignment, "export", killed)
    assert run(eval_every_n_iterations=1) == 130
    assert [path.name for path in (directory / "checkpoints").iterdir()] == ["000001"]
    assert not (directory / "best").exists()
    shutil.copytree(directory / "iterations/0001", directory / "iterations/0002")
    shutil.copy(directory / "held_out/0001.jsonl", directory / "held_out/0002.jsonl")
    monkeypatch.setattr(Alignment, "export", export)
    assert run("--resume", eval_every_n_iterations=1, num_raft_iteration=1) == 0
    best, final = ((directory / name / "model.safetensors").read_bytes() for name in ("best", "final"))
    assert best == final
    assert [path.name for path in (directory / "iterations").iterdir()] == ["0001"]
    assert sorted(path.name for path in (directory / "held_out").iterdir()) == ["0000.jsonl", "0001.jsonl"]


def first_is_best(judge: Callable[..., Any], config: Any, evaluations: Any) -> Any:
    """As if the first iteration's policy had been the best."""
    return replace(judge(config, evaluations), best_iteration=min(1, evaluations[-1].iteration))


@pytest.mark.parametrize(("stopped", "done"), [("level", False), (None, True)])
def test_an_iteration_whose_training_has_begun_comes_to_its_end(stopped: str | None, done: bool) -> None:
    """Resumed within the second iteration, with a rule that ends the run or no step left; and the same behind it."""
    progress = SimpleNamespace(iteration=1, stopped=stopped, steps_taken=2)
    config = SimpleNamespace(raft=SimpleNamespace(num_raft_iteration=4))
    run: Any = SimpleNamespace(progress=progress, config=config, engine=SimpleNamespace(is_done=done))
    found = []
    for iteration in Alignment.iterations(run):
        found.append(iteration)
        progress.steps_taken = 0
    assert found == [2]


def test_another_discard_rule_holds_from_the_next_iteration_on(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Stopped halfway through the training of the second iteration, which is done again from its start."""
    directory = tmp_path / "run"
    steps = counted(monkeypatch, Engine, "train_step", 6, lambda: signal.raise_signal(signal.SIGTERM))
    assert run() == 143
    assert [path.name for path in complete_checkpoints(directory / "checkpoints")] == ["000001", "000001-000006"]
    first = (directory / "iterations/0001/samples.jsonl").read_bytes()
    assert run("--resume", discard_shorter_than=4) == 0
    assert "from the next iteration on with another discard_shorter_than" in capsys.readouterr().out
    assert (directory / "iterations/0001/samples.jsonl").read_bytes() == first
    before, after = (read_jsonl(directory / f"iterations/000{i}/samples.jsonl") for i in (1, 2))
    assert not any(row["discarded"] for row in before)
    assert 0 < sum(bool(row["discarded"]) for row in after) < 12
    assert steps[0] > 8  # two of the second iteration's were taken again
    assert [path.name for path in (directory / "checkpoints").iterdir()] == ["000002"]


def test_a_chunk_and_a_batch_that_do_not_fit_into_memory_are_done_in_halves(
    run: Run, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """The same samples. Scores are those of other batches, so they may differ in their last digits."""

    def exhaust_once(module: Any) -> None:
        original, calls = module.in_halves, itertools.count(1)

        def in_halves(work: Callable[[range], list[Any]], num_rows: int, *, what: str) -> list[Any]:
            pending = [True] if next(calls) == 1 + 2 else []  # one held-out unit comes first, of three responses

            def once(rows: range) -> list[Any]:
                if pending:
                    pending.pop()
                    raise torch.OutOfMemoryError("CUDA out of memory")
                return work(rows)

            return original(once, num_rows, what=what)

        monkeypatch.setattr(module, "in_halves", in_halves)

    exhaust_once(backend)
    exhaust_once(reward_model)
    assert run() == 0
    said = capfd.readouterr().err
    assert said.count("out of memory with 5 responses at once; going on with 3.") == 1
    assert said.count("out of memory with 5 texts at once; going on with 3.") == 1
    for name in ("iterations/0001/samples.jsonl", "iterations/0002/samples.jsonl", "held_out/0002.jsonl"):
        rows = zip(read_jsonl(whole / name), read_jsonl(tmp_path / "run" / name), strict=True)
        for expected, found in rows:
            assert found.pop("reward") == pytest.approx(expected.pop("reward"), abs=1e-5)
            assert found.pop("scores") == pytest.approx(expected.pop("scores"), abs=1e-5)
            assert found == expected


def poisoned(monkeypatch: pytest.MonkeyPatch, steps: Callable[[int], bool]) -> None:
    """Make the loss of some steps, numbered from 1, not a number."""

    def loss(model: Any, batch: Any) -> Any:
        found, others = next_token_loss(model, batch)
        return found * (float("nan") if steps(getattr(model, "global_steps", -1) + 1) else 1.0), others

    monkeypatch.setattr("raft.stages.align.next_token_loss", loss)


def test_a_loss_that_is_not_finite_stops_the_run_and_loses_nothing(
    run: Run, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    directory = tmp_path / "run"
    with monkeypatch.context() as patched:
        poisoned(patched, lambda step: step == 6)
        assert run(save_steps=1) == 2
    file = directory / "nonfinite/step-000006.json"
    (line,) = [line for line in capsys.readouterr().err.splitlines() if "error:" in line]
    told = "raft align: error: step 6: the loss is not finite (loss nan), so the step was not taken; its rows are in "
    assert line.startswith(told + str(file))
    assert [row["step"] for row in read_jsonl(directory / "metrics.jsonl") if "step" in row] == [1, 2, 3, 4, 5]
    written, selected = json.loads(file.read_text()), read_jsonl(directory / "iterations/0002/selected.jsonl")
    (row,) = written["rows"]
    sample = selected[row["row"]]
    assert row["tokens"][-len(sample["response_tokens"]) :] == sample["response_tokens"]
    assert row["tokens_text"].endswith(sample["response"] + "<|im_end|>" * (sample["finish_reason"] == "eos"))
    assert (written["loss"], row["rank"], sum(row["trained"])) == ("nan", 0, len(sample["response_tokens"]))
    assert 0 < row["loss"] < 20
    assert run("--resume", save_steps=0) == 0
    shutil.rmtree(directory / "nonfinite")
    assert differences(whole, directory) == []


def test_a_skipped_step_is_skipped_after_a_resume_as_well(
    start: Callable[..., int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The run is killed after the step that it has skipped, and takes it up from the checkpoint before it."""
    poisoned(monkeypatch, lambda step: step == 3)
    skipping = {"nonfinite_steps": "skip", "save_steps": 2}
    assert start(tmp_path / "whole/run", **skipping) == 0
    lines = {row["step"]: row for row in read_jsonl(tmp_path / "whole/run/metrics.jsonl") if "step" in row}
    assert lines[3]["train/loss"] is None
    assert [lines[step].get("train/skipped_steps") for step in range(1, 9)] == [None, None, *[1] * 6]
    counted(monkeypatch, Engine, "train_step", 4, _die)
    assert start(tmp_path / "run", **skipping) == 130
    assert start(tmp_path / "run", "--resume", **skipping) == 0
    assert differences(tmp_path / "whole/run", tmp_path / "run") == []
    assert (tmp_path / "run/nonfinite/step-000003.json").exists()


def test_steps_skipped_in_a_row_are_counted_over_a_resume(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    poisoned(monkeypatch, lambda step: step in (1, 3, 4, 5))
    counted(monkeypatch, Engine, "train_step", 5, _die)
    skipping = {"nonfinite_steps": "skip", "max_nonfinite_steps": 3, "save_steps": 1}
    assert run(**skipping) == 130
    assert run("--resume", **skipping) == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if "error:" in line]
    assert "step 5: the loss is not finite" in line
    assert "It was the last of as many in a row as are skipped (--max_nonfinite_steps 3)." in line


def _die() -> None:
    raise KeyboardInterrupt
