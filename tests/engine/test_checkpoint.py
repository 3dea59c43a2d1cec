"""Resuming from a checkpoint is as if nothing had happened, bit for bit; a checkpoint is complete or not there."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from raft.engine import checkpoint, resharding
from raft.engine.checkpoint import complete_checkpoints, load_latest, refuse_losing, save_checkpoint
from raft.engine.resharding import piece_of
from raft.engine.state import _follow_schedule, another_seed
from raft.errors import UserError
from raft.run_directory import RunDirectory
from tests.engine.cases import NEVER_SAVED, ON_ONE, ON_TWO, SAVED, Found, on_both
from tests.engine.scenarios import Case, launch, run_directory


@pytest.fixture(scope="module")
def resumed(tiny_model: str, engine_directory: Path, found: Found) -> Found:
    """New processes that go on from the checkpoints, beside leftovers of later ones that were never completed."""
    results = {}
    for world_size, launched in ((1, ON_ONE), (2, ON_TWO)):
        cases = [case for case in SAVED if case in launched]
        for case in cases:
            checkpoints = run_directory(engine_directory, case.name, world_size) / "checkpoints"
            assert names(checkpoints) == ["000002"]
            (checkpoints / "000003").mkdir()
            (checkpoints / "000004.part").mkdir()
            (checkpoints / "000004.part" / checkpoint.STATE).write_text('{"num_steps": 4}')
        resuming = [replace(case, load=case.name, save_after=()) for case in cases]
        results[world_size] = launch(engine_directory, tiny_model, world_size, resuming)
    return results


@pytest.mark.parametrize(("world_size", "name"), on_both(SAVED))
def test_steps_after_resuming_are_those_of_a_run_without_interruption(
    found: Found, resumed: Found, world_size: int, name: str
) -> None:
    whole, half = found[world_size][name], resumed[world_size][name]
    assert half["resumed_at"] == 2
    assert len(whole["metrics"]) == 4
    assert half["metrics"] == whole["metrics"][2:]  # exactly: loss, gradient norm and learning rate
    assert half["weights"].keys() == whole["weights"].keys()
    for weight, value in whole["weights"].items():
        assert torch.equal(half["weights"][weight], value), weight


MOVED = [(1, case) for case in SAVED if case in ON_TWO]
MOVED_TO_TWO = ["fp32-zero0", "bf16-zero0", "fp32-zero1", "bf16-zero2-offload", "fp32-zero3", "bf16-zero3-lora"]
MOVED += [(2, case) for case in SAVED if case.name.removeprefix("saved-") in MOVED_TO_TWO]


@pytest.fixture(scope="module")
def moved(tiny_model: str, engine_directory: Path, resumed: Found) -> Found:
    """The same checkpoints, loaded on two ranks instead of one, and on one instead of two."""
    results = {}
    for world_size in (1, 2):
        cases = [
            replace(case, load=case.name, load_from=3 - world_size, save_after=())
            for to, case in MOVED
            if to == world_size
        ]
        cases += [replace(case, name="forgetful", forget=True) for case in cases if case.name == "saved-fp32-zero0"]
        results[world_size] = launch(engine_directory, tiny_model, world_size, cases)
    return results


def distance(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> float:
    """Largest difference of any weight."""
    return max((one[name] - other[name]).abs().max().item() for name in one)


@pytest.mark.parametrize(("world_size", "case"), MOVED, ids=lambda value: getattr(value, "name", value))
def test_on_another_number_of_ranks_the_optimizer_is_the_same(
    found: Found, resumed: Found, moved: Found, world_size: int, case: Case
) -> None:
    """Weights and moments bit for bit; the steps then taken, but for dropout, up to rounding."""
    stayed, gone = resumed[3 - world_size][case.name], moved[world_size][case.name]
    assert gone["state"] == stayed["state"]
    assert gone["resumed_at"] == 2
    for before, after in [
        (stayed["loaded"], gone["loaded"]),
        *((stayed["moments"][key], gone["moments"][key]) for key in ("exp_avg", "exp_avg_sq")),
    ]:
        assert before.keys() == after.keys()
        assert any(value.any() for value in before.values())
        assert distance(before, after) == 0


@pytest.mark.parametrize(
    ("world_size", "case"),
    [(to, case) for to, case in MOVED if case.dtype == "fp32" and not case.lora],
    ids=lambda value: getattr(value, "name", value),
)
def test_steps_on_another_number_of_ranks_are_those_of_the_first_up_to_rounding(
    found: Found, moved: Found, world_size: int, case: Case
) -> None:
    whole, gone = found[3 - world_size][case.name], moved[world_size][case.name]
    assert [step.keys() for step in gone["metrics"]] == [step.keys() for step in whole["metrics"][2:]]
    for before, after in zip(whole["metrics"][2:], gone["metrics"], strict=True):
        assert after == {name: pytest.approx(value, rel=1e-5) for name, value in before.items()}
        assert after["learning_rate"] == before["learning_rate"]
    assert distance(whole["weights"], gone["weights"]) < 1e-6


@pytest.mark.parametrize("world_size", [1, 2])
def test_without_the_moments_the_steps_would_be_others(found: Found, moved: Found, world_size: int) -> None:
    whole, forgetful = found[3 - world_size]["saved-fp32-zero0"], moved[world_size]["forgetful"]
    assert distance(whole["weights"], forgetful["weights"]) > 1e-3  # a thousand times what rounding makes of it


@given(sizes=st.lists(st.integers(1, 5), min_size=1, max_size=5), data=st.data())
def test_a_piece_of_tensors_that_lie_end_to_end(sizes: list[int], data: st.DataObject) -> None:
    total = sum(sizes)
    values = torch.arange(1.0, total + 1)
    start, length = data.draw(st.integers(0, total + 3)), data.draw(st.integers(0, total + 3))
    end = data.draw(st.integers(0, total))
    padded = torch.cat([torch.where(torch.arange(total) < end, values, 0.0), torch.zeros(2 * total + 6)])
    found = piece_of(values.split(sizes), start=start, length=length, end=end)
    assert torch.equal(found, padded[start : start + length])


def part(**changes: Any) -> dict[str, Any]:
    """What one of two ranks saved of five weights, with whatever is changed of it."""
    known = {"base_optimizer_state": {"state": {}}, "single_partition_of_fp32_groups": [torch.zeros(2)]}
    return known | {"fp32_flat_groups": [torch.zeros(3)], "optimizer_state_dict": {"state": {}}} | changes


def test_parts_in_a_layout_that_is_not_known_are_refused() -> None:
    """Stages 1 and 2 lay five weights in a row of 2 and 3; stage 3 cuts them into 3 and, with padding, 3."""
    weights = SimpleNamespace(numel=lambda: 5, ds_numel=5)
    layout = {"round_robin_gradients": False, "single_partition_of_fp32_groups": [torch.zeros(5)]}
    layout |= {"round_robin_bit16_groups": [[weights]], "round_robin_bit16_padding": [[0]], "fp16_groups": [[weights]]}
    optimizer, dealt = SimpleNamespace(**layout), SimpleNamespace(**layout | {"round_robin_gradients": True})
    last = part(single_partition_of_fp32_groups=[torch.zeros(3)])
    resharding._own_of_row(optimizer, [part(), last])
    for parts, cut, of, why in [
        ([part(), last], resharding._own_of_row, dealt, "weights are dealt out to the ranks"),
        ([part(base_optimizer_state=[]), last], resharding._own_of_row, optimizer, "saved with elastic_checkpoint"),
        ([part(), part()], resharding._own_of_row, optimizer, "do not add up to the weights"),
        ([part(), part(fp32_flat_groups=[torch.zeros(5)])], resharding._own_of_weights, optimizer, "do not add up"),
    ]:
        with pytest.raises(UserError, match=f"--resume: on another number of processes .*{why}.* the same number"):
            cut(of, parts)


def test_ranks_draw_from_different_seeds_that_follow_from_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    states = [torch.Generator().manual_seed(seed).get_state() for seed in (0, 1)]
    places = [(rank, of) for of in (1, 2, 3) for rank in range(of)]

    def seeds() -> list[int]:
        found = []
        for rank, of in places:
            monkeypatch.setattr("raft.distributed.rank", lambda rank=rank: rank)
            monkeypatch.setattr("raft.distributed.world_size", lambda of=of: of)
            found += [another_seed(state, step) for state in states for step in (2, 12)]
        return found

    assert len(set(seeds())) == 4 * len(places)
    assert seeds() == seeds()


@pytest.mark.parametrize(("world_size", "name"), on_both(SAVED))
def test_a_checkpoint_gives_back_the_state_of_the_stage(resumed: Found, world_size: int, name: str) -> None:
    assert resumed[world_size][name]["state"] == {"number": 2, "num_steps": 2, "log_length": 0, "cursor": [1, 2]}


@pytest.mark.parametrize("case", NEVER_SAVED, ids=lambda case: case.name)
def test_saving_does_not_disturb_the_run(found: Found, case: Case) -> None:
    saved, unsaved = found[1][case.name.removeprefix("never-")], found[1][case.name]
    assert saved["metrics"] == unsaved["metrics"]


def test_checkpoints_of_adapters_leave_the_frozen_weights_out(found: Found, engine_directory: Path) -> None:
    checkpoints = run_directory(engine_directory, "saved-fp32-zero0-lora", 1) / "checkpoints"
    file = checkpoints / "000002/engine/mp_rank_00_model_states.pt"
    saved = torch.load(file, weights_only=True)["module"]
    # DeepSpeed goes by the names of parameters, and misses the second name of weights that are tied.
    others = [name for name in saved if "lora_" not in name and "lm_head" not in name]
    assert len(saved) > 20
    assert others == []


class FakeEngine:
    """Saves a file instead of weights."""

    def __init__(self, num_steps: int = 0) -> None:
        self.num_steps = num_steps

    def save_state(self, directory: Path) -> None:
        (directory / "weights").write_text(str(self.num_steps))

    def load_state(self, directory: Path) -> None:
        self.num_steps = int((directory / "weights").read_text())


class FailingEngine(FakeEngine):
    """Dies while it saves."""

    def save_state(self, directory: Path) -> None:
        super().save_state(directory)
        raise OSError("no space left on device")


def names(checkpoints: Path) -> list[str]:
    """Everything in the directory."""
    return sorted(path.name for path in checkpoints.iterdir())


def save(checkpoints: Path, number: int, keep: int = 1, engine: type[FakeEngine] = FakeEngine) -> None:
    """Save a checkpoint of a fake engine."""
    save_checkpoint(engine(number), RunDirectory(checkpoints.parent), number, {}, keep=keep)  # type: ignore[arg-type]


@pytest.fixture
def checkpoints(tmp_path: Path) -> Path:
    return tmp_path / "checkpoints"


@pytest.mark.parametrize(("keep", "expected"), [(1, ["000006"]), (2, ["000004", "000006"])])
def test_the_newest_checkpoints_are_kept(checkpoints: Path, keep: int, expected: list[str]) -> None:
    for number in (2, 4, 6):
        save(checkpoints, number, keep)
    assert names(checkpoints) == expected
    assert json.loads((checkpoints / "000006/state.json").read_text())["number"] == 6


def test_the_old_checkpoint_goes_only_after_the_new_one_is_complete(
    checkpoints: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save(checkpoints, 2)
    seen = []

    def observe(path: Path) -> None:
        seen.append((path.name, [p.name for p in complete_checkpoints(checkpoints)]))
        shutil_rmtree(path)

    shutil_rmtree = checkpoint.shutil.rmtree
    monkeypatch.setattr(checkpoint.shutil, "rmtree", lambda path, **options: observe(path) if path.exists() else None)
    save(checkpoints, 4)
    assert seen == [("000002", ["000002", "000004"])]


@pytest.mark.parametrize("when", ["saving", "listing", "renaming"])
def test_after_a_crash_the_old_checkpoint_is_the_latest(
    checkpoints: Path, monkeypatch: pytest.MonkeyPatch, when: str
) -> None:
    run = RunDirectory(checkpoints.parent)
    save(checkpoints, 2)
    written = {"000002": (checkpoints / "000002/manifest.json").read_bytes()}

    def fail(old: Path, new: Path) -> None:
        name = {"listing": "manifest.json", "renaming": "000004"}[when]
        if new.name == name:
            raise OSError("killed")
        os_replace(old, new)

    os_replace = os.replace
    with monkeypatch.context() as patched:
        if when != "saving":
            patched.setattr(os, "replace", fail)
        with pytest.raises(OSError, match=r"killed|no space"):
            save(checkpoints, 4, engine=FailingEngine if when == "saving" else FakeEngine)
    assert names(checkpoints) == ["000002", "000004.part"]
    engine = FakeEngine()
    assert load_latest(engine, run)["number"] == 2  # type: ignore[arg-type]
    assert engine.num_steps == 2
    assert (checkpoints / "000002/manifest.json").read_bytes() == written["000002"]
    save(checkpoints, 4)  # over what the crash left behind
    assert names(checkpoints) == ["000004"]


def test_metrics_of_steps_that_will_be_taken_again_are_dropped(checkpoints: Path) -> None:
    run = RunDirectory(checkpoints.parent)
    for step in range(1, 6):
        run.log({"step": step, "train/loss": 1.0})
        if step == 3:
            save(checkpoints, 3)
    load_latest(FakeEngine(), run)  # type: ignore[arg-type]
    lines = (run.path / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == [1, 2, 3]


def test_without_a_checkpoint_a_run_begins_again(checkpoints: Path) -> None:
    run, engine = RunDirectory(checkpoints.parent), FakeEngine()
    run.log({"step": 1})
    (checkpoints / "000002.part").mkdir(parents=True)  # was being written when the run was killed
    assert load_latest(engine, run) == {}  # type: ignore[arg-type]
    assert engine.num_steps == 0
    assert (run.path / "metrics.jsonl").read_text() == ""


def damage(path: Path, how: str) -> None:
    """Spoil one file."""
    content = path.read_bytes()
    if how == "deleted":
        path.unlink()
    elif how == "cut off":
        path.write_bytes(content[: len(content) // 2])
    else:
        path.write_bytes(bytes([content[0] ^ 1, *content[1:]]))


@pytest.mark.parametrize("how", ["deleted", "cut off", "flipped"])
@pytest.mark.parametrize("file", ["weights", "state.json", "manifest.json"])
def test_a_damaged_checkpoint_is_named_and_the_one_before_it_used(
    checkpoints: Path, capsys: pytest.CaptureFixture[str], file: str, how: str
) -> None:
    for number in (2, 4):
        save(checkpoints, number, keep=2)
    damage(checkpoints / "000004" / file, how)
    engine = FakeEngine()
    assert load_latest(engine, RunDirectory(checkpoints.parent))["number"] == 2  # type: ignore[arg-type]
    assert engine.num_steps == 2
    assert f"000004 is damaged: {file}" in capsys.readouterr().err
    assert names(checkpoints) == ["000002", "000004.damaged"]
    save(checkpoints, 6)  # the damaged one does not count among those that are kept
    assert [path.name for path in complete_checkpoints(checkpoints)] == ["000006"]
    assert "000002" not in names(checkpoints)


def test_checkpoints_of_an_earlier_version_are_not_passed_over(checkpoints: Path) -> None:
    """They have no manifest. To begin again without a word would overwrite what the run has come to."""
    save(checkpoints, 2)
    (checkpoints / "000002/manifest.json").unlink()
    run = RunDirectory(checkpoints.parent)
    run.log({"step": 1})
    with pytest.raises(UserError, match=r"--resume: .*000002 is damaged: manifest\.json can not be read"):
        load_latest(FakeEngine(), run)  # type: ignore[arg-type]
    assert names(checkpoints) == ["000002"]
    assert '"step": 1' in (run.path / "metrics.jsonl").read_text()


def test_only_damaged_checkpoints_are_a_users_error(checkpoints: Path) -> None:
    save(checkpoints, 2)
    damage(checkpoints / "000002/weights", "cut off")
    told = r"--resume: .*000002 is damaged: weights has 0 bytes, expected 1, and there is no other\. Start again with"
    with pytest.raises(UserError, match=told):
        load_latest(FakeEngine(), RunDirectory(checkpoints.parent))  # type: ignore[arg-type]


def test_the_only_checkpoint_of_a_run_is_not_lost_by_a_changed_setting(checkpoints: Path) -> None:
    changed = ["num_raft_iteration"]
    (checkpoints / "000000-000002").mkdir(parents=True)
    refuse_losing(checkpoints.parent, changed)  # before it there is only the start
    (checkpoints / "000001-000006").mkdir()
    with pytest.raises(UserError, match=r"^--num_raft_iteration: the only checkpoint .*000001-000006, stands with"):
        refuse_losing(checkpoints.parent, changed)
    (checkpoints / "000001").mkdir()
    refuse_losing(checkpoints.parent, changed)


def test_a_run_that_is_made_longer_follows_the_longer_schedule_at_once() -> None:
    """Linear from 1 to 0: behind 2 of 2 steps the rate is 0, behind 2 of 4 it is a half."""
    parameter = torch.nn.Parameter(torch.zeros(1))
    state, rates = {}, []
    for total in (2, 4):
        optimizer = torch.optim.SGD([parameter], lr=1.0)
        scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step, total=total: 1 - step / total)
        if state:
            scheduler.load_state_dict(state)
            optimizer.param_groups[0]["lr"] = rates[-1]
        _follow_schedule(scheduler)
        for _ in range(2):
            rates.append(optimizer.param_groups[0]["lr"])
            optimizer.step()
            scheduler.step()
        state = scheduler.state_dict()
        rates.append(optimizer.param_groups[0]["lr"])
    assert rates == [1.0, 0.5, 0.0, 0.5, 0.25, 0.0]


def test_a_checkpoint_within_an_iteration_goes_with_the_next_and_never_takes_the_place_of_a_whole_one(
    checkpoints: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = RunDirectory(checkpoints.parent)
    needed = run.path / "journal/sampling.jsonl"
    needed.parent.mkdir()
    needed.write_text("samples")
    save(checkpoints, 3)
    for steps in (7, 8):
        save_checkpoint(FakeEngine(steps), run, 3, {}, keep=1, within=True, needs=[needed])  # type: ignore[arg-type]
        assert names(checkpoints) == ["000003", f"000003-{steps:06d}"]
    engine = FakeEngine()
    load_latest(engine, run)  # type: ignore[arg-type]
    assert engine.num_steps == 8
    needed.unlink()  # what it was trained on is gone: the whole one still is of use
    load_latest(engine, run)  # type: ignore[arg-type]
    assert engine.num_steps == 3
    assert "000003-000008 is damaged: sampling.jsonl: No such file" in capsys.readouterr().err
    save(checkpoints, 4)
    assert [path.name for path in complete_checkpoints(checkpoints)] == ["000004"]
