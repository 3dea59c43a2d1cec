"""A run of RAFT that goes on with another number of processes: the same samples, the same training up to rounding."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from raft.arguments import load_yaml
from raft.run_directory import read_jsonl
from tests.conftest import run_ranks

SCRIPT = """
import json, signal, sys
from raft import cli, distributed
from raft.reports import curves
from raft.reports.page import page
from raft.rollout.backend import NativeBackend
from raft.run_directory import RunDirectory

curves.draw_align_curves, page.write_page = (lambda directory: None), (lambda runs: None)
log, draw, take, end = RunDirectory.log, NativeBackend.draw, distributed.take_chunks, distributed.end_chunks
number, num_draws, stop_at = 0, 0, None

def log_and_stop(self, metrics):
    log(self, metrics)
    if stop_at == ["step", metrics.get("step")]:
        signal.raise_signal(signal.SIGTERM)

def draw_and_stop(*arguments, **options):
    global num_draws
    num_draws += 1
    if stop_at == ["draw", num_draws]:
        signal.raise_signal(signal.SIGTERM)
    return draw(*arguments, **options)

RunDirectory.log, NativeBackend.draw = log_and_stop, draw_and_stop
# The counters of chunks are the process group's, which serves several runs here.
distributed.take_chunks = lambda name, total: take(f"{number}/{name}", total)
distributed.end_chunks = lambda name: end(f"{number}/{name}")
for number, (command, stop_at) in enumerate(json.loads(sys.argv[1])):
    assert cli.main(command) == (143 if stop_at else 0), command
"""


@pytest.fixture(scope="module")
def moved(
    tiny_model: str, tiny_reward_model: str, prompts: str, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Path]:
    """A run that nobody disturbed, one that went from two processes to one, and one that went from one to two.

    Two iterations of two steps of two rows, with moments and a schedule that span them. The second stops while the
    second iteration trains, the third while it samples.
    """
    root = tmp_path_factory.mktemp("moved")
    runs = {name: root / name for name in ("whole", "to_one", "to_two")}
    (root / "zero2.json").write_text('{"zero_optimization": {"stage": 2}}')

    def command(name: str, accumulation: int, **more: object) -> list[str]:
        flags = {
            "model_name_or_path": tiny_model, "reward_model_or_path": tiny_reward_model, "dataset_path": prompts,
            "eval_dataset_path": "none", "validation_split_percentage": 25, "num_raft_iteration": 2,
            "raft_batch_size": 4, "num_samples_per_prompt": 3, "output_max_length": 8,
            "inference_batch_size_per_device": 5, "per_device_train_batch_size": 1, "learning_rate": 1e-3,
            "gradient_accumulation_steps": accumulation, "eval_every_n_iterations": 0, "dtype": "fp32",
            "reward_dtype": "fp32", "resume": "auto", "num_train_epochs": 1, "output_dir": runs[name],
        }  # fmt: skip
        return ["align", *(str(text) for flag, value in (flags | more).items() for text in (f"--{flag}", value))]

    to_one, to_two = command("to_one", 1, deepspeed=root / "zero2.json"), command("to_two", 2)
    # Draws: of the held-out prompts, of the first iteration, the second chunk of the second one.
    run_ranks(SCRIPT, 1, json.dumps([(to_two, ("draw", 1 + 3 + 2))]))
    assert names(runs["to_two"] / "checkpoints") == ["000001"]
    assert [name.partition(".")[0] for name in names(runs["to_two"] / "journal")] == ["sampling_2_2"]
    said = run_ranks(SCRIPT, 2, json.dumps([(command("whole", 1), None), (to_one, ("step", 3)), (to_two, None)]))
    assert names(runs["to_one"] / "checkpoints") == ["000001", "000001-000003"]
    said += run_ranks(SCRIPT, 1, json.dumps([(to_one, None)]))
    (root / "said").write_text(said)
    return runs | {"said": root / "said"}


def names(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir())


def final_weights(run: Path) -> dict[str, torch.Tensor]:
    return load_file(run / "final/model.safetensors")


@pytest.mark.parametrize("name", ["to_one", "to_two"])
def test_samples_are_the_same_and_weights_up_to_rounding(moved: dict[str, Path], name: str) -> None:
    for iteration in (1, 2):
        file = f"iterations/000{iteration}/samples.jsonl"
        whole, other = read_jsonl(moved["whole"] / file), read_jsonl(moved[name] / file)
        assert len(whole) == 12
        for one, two in zip(whole, other, strict=True):
            for key in ("prompt_id", "response", "selected"):
                assert one[key] == two[key]
            assert two["reward"] == pytest.approx(one["reward"], abs=1e-5)
    one, two = final_weights(moved["whole"]), final_weights(moved[name])
    assert one.keys() == two.keys()
    assert max((one[key] - two[key]).abs().max().item() for key in one) < 1e-5


@pytest.mark.parametrize(("name", "processes", "settled"), [("to_one", 1, 2), ("to_two", 2, 1)])
def test_the_run_says_and_records_how_a_step_is_divided(
    moved: dict[str, Path], name: str, processes: int, settled: int
) -> None:
    """The command was the same both times: `--gradient_accumulation_steps` is settled to keep two rows a step."""
    before = 3 - processes
    assert (
        f"on {processes} process{'es' * (processes > 1)} (started on {before}) with --per_device_train_batch_size 1 "
        f"--gradient_accumulation_steps {settled}, which keeps 2 rows a step: the run goes on as if undisturbed, up to "
        "rounding and what dropout draws\n"
    ) in moved["said"].read_text()
    environment = json.loads((moved[name] / "environment.json").read_text())
    started = {"processes": before, "per_device_train_batch_size": 1, "gradient_accumulation_steps": 3 - settled}
    assert (environment["world_size"], environment["started_with"]) == (processes, started)
    assert load_yaml(moved[name] / "config.yaml")["training"]["gradient_accumulation_steps"] == settled
    assert names(moved[name] / "checkpoints") == ["000002"]
    assert not (moved[name] / "journal").exists()
