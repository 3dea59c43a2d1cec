"""A run is resumed with what it was made from: what has changed behind a flag that stayed the same is refused."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from raft import cli
from raft.inputs import digest_of_file
from raft.rewards.config import RewardConfig
from raft.rewards.loading import load_rewards
from tests.adapters import build_adapter
from tests.conftest import SENTENCES
from tests.rewards.sources import server

REWARD = "def reward(responses, **columns):\n    return [float(len(text)) for text in responses]\n"


def edit_weights(model: Path) -> None:
    """As if another model had been put there: one of the values that a fingerprint looks at."""
    weights = load_file(model / "model.safetensors")
    name = next(name for name in weights if "layers.0.mlp" in name)
    weights[name].view(-1)[0] += 1.0
    save_file(weights, model / "model.safetensors", metadata={"format": "pt"})


def edit_line(path: Path, number: int) -> None:
    lines = path.read_text().splitlines()
    row = json.loads(lines[number])
    name = "text" if "text" in row else "prompt"
    lines[number] = json.dumps(row | {name: row[name] + " then"})
    path.write_text("\n".join(lines))


def edit_contract(model: Path) -> None:
    (model / "reward_model.json").write_text(json.dumps({"max_length": 64, "template": "chat", "sign": -1}))


@pytest.fixture
def quiet(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("raft.reports.curves.draw_align_curves", lambda directory: None)
    monkeypatch.setattr("raft.reports.curves.draw_training_curves", lambda directory: None)
    monkeypatch.setattr("raft.reports.page.page.write_page", lambda runs: None)


def start(command: str, settings: dict[str, Any], *more: str) -> int:
    flags = [text for name, value in settings.items() for text in (f"--{name}", *map(str, _several(value)))]
    return cli.main([command, *flags, *more])


def _several(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


@pytest.fixture(scope="module")
def began(
    talkative_model: str, tiny_reward_model: str, prompts: str, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, dict[str, Any]]:
    """A run of RAFT with one of every kind of input, after its first iteration; and its settings."""
    place = tmp_path_factory.mktemp("began")
    shutil.copytree(talkative_model, place / "model")
    shutil.copytree(tiny_reward_model, place / "classifier")
    (place / "classifier/reward_model.json").write_text(json.dumps({"max_length": 64, "template": "chat"}))
    shutil.copy(prompts, place / "prompts.jsonl")
    rows = [{"prompt": text} for text in SENTENCES[:3]]
    (place / "held_out.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    (place / "texts.jsonl").write_text("".join(f'{{"text": "{text}"}}\n' for text in SENTENCES[:3]))
    (place / "reward.py").write_text(REWARD)
    settings = {
        "model_name_or_path": "model", "reward": ["classifier", "own=reward.py:reward"],
        "dataset_path": "prompts.jsonl",
        "eval_dataset_path": "held_out.jsonl", "perplexity_dataset_path": "texts.jsonl", "num_raft_iteration": 1,
        "raft_batch_size": 4, "num_samples_per_prompt": 2, "output_max_length": 6, "per_device_train_batch_size": 4,
        "dtype": "fp32", "reward_dtype": "fp32", "output_dir": "run", "resume": "auto", "reward_self_test": "false",
    }  # fmt: skip
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("raft.reports.curves.draw_align_curves", lambda directory: None)
        patched.setattr("raft.reports.page.page.write_page", lambda runs: None)
        patched.chdir(place)
        assert start("align", settings) == 0
    return place, settings | {"num_raft_iteration": 2}


@pytest.fixture
def again(
    began: tuple[Path, dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, quiet: None
) -> dict[str, Any]:
    """The run and its inputs in a directory of a test's own, the current one; gives its settings."""
    shutil.copytree(began[0], tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    return began[1]


@pytest.mark.parametrize(
    ("edit", "flag"),
    [
        (lambda: edit_line(Path("prompts.jsonl"), 5), "--dataset_path"),
        (lambda: edit_line(Path("held_out.jsonl"), 2), "--eval_dataset_path"),
        (lambda: edit_line(Path("texts.jsonl"), 0), "--perplexity_dataset_path"),
        (lambda: edit_weights(Path("model")), "--model_name_or_path"),
        (lambda: edit_weights(Path("classifier")), "--reward classifier"),
        (lambda: edit_contract(Path("classifier")), "--reward classifier"),
        (lambda: Path("reward.py").write_text(REWARD.replace("float(", "-float(")), "--reward own=reward.py:reward"),
    ],
)
def test_another_input_behind_the_same_flag_is_refused(
    again: dict[str, Any], edit: Callable[[], object], flag: str, capsys: pytest.CaptureFixture[str]
) -> None:
    edit()
    before = {path: path.read_bytes() for path in Path("run").rglob("*") if path.is_file()}
    capsys.readouterr()
    assert start("align", again) == 2
    told = [line for line in capsys.readouterr().err.splitlines() if "error:" in line]
    assert len(told) == 1
    assert f"error: {flag}: this is not what the run to be resumed was made from" in told[0]
    assert {path: path.read_bytes() for path in Path("run").rglob("*") if path.is_file()} == before


def test_what_changes_no_score_and_no_sample_may_change(again: dict[str, Any]) -> None:
    """Another layout of data and code, what a contract tells of its model; and runs of before digests were kept."""
    rows = [json.loads(line) for line in Path("prompts.jsonl").read_text().splitlines()]
    Path("prompts.jsonl").write_text("".join(f"{json.dumps(row, indent=None)}   \n" for row in rows))
    Path("reward.py").write_text(f"# as agreed on Monday\n{REWARD}")
    contract = json.loads(Path("classifier/reward_model.json").read_text())
    Path("classifier/reward_model.json").write_text(json.dumps(contract | {"accuracy": 0.5, "num_pairs": 10}))
    inputs = json.loads(Path("run/environment.json").read_text())["inputs"]
    assert start("align", again) == 0
    assert json.loads(Path("run/environment.json").read_text())["inputs"] == inputs
    assert sorted(inputs) == sorted(
        ["--dataset_path", "--eval_dataset_path", "--perplexity_dataset_path", "--model_name_or_path",
         "--reward classifier", "--reward own=reward.py:reward"]
    )  # fmt: skip

    environment = json.loads(Path("run/environment.json").read_text())
    del environment["inputs"]
    Path("run/environment.json").write_text(json.dumps(environment))
    Path("reward.py").write_text(REWARD.replace("float(", "-float("))
    assert start("align", again | {"num_raft_iteration": 3}) == 0


@pytest.mark.parametrize("command", ["sft", "reward"])
def test_rows_and_weights_of_the_other_stages(
    command: str,
    tiny_model: str,
    conversations: str,
    preferences: str,
    tmp_path: Path,
    quiet: None,
    capsys: pytest.CaptureFixture[str],
) -> None:
    data, model = tmp_path / "data.jsonl", tmp_path / "model"
    shutil.copy(conversations if command == "sft" else preferences, data)
    shutil.copytree(tiny_model, model)
    settings = {
        "model_name_or_path": model, "dataset_path": data, "output_dir": tmp_path / "run", "resume": "auto",
        "per_device_train_batch_size": 4, "save_steps": 1, "max_steps": 1, "dtype": "fp32",
    }  # fmt: skip
    assert start(command, settings) == 0
    settings |= {"max_steps": 2}
    lines = data.read_text().splitlines(keepends=True)
    data.write_text("".join([lines[1], lines[0], *lines[2:]]))  # another order of the same rows is another run
    assert start(command, settings) == 2
    assert "error: --dataset_path: this is not what the run" in capsys.readouterr().err
    data.write_text("".join(lines))
    weights = (model / "model.safetensors").read_bytes()
    edit_weights(model)
    assert start(command, settings) == 2
    assert "error: --model_name_or_path: this is not what the run" in capsys.readouterr().err
    (model / "model.safetensors").write_bytes(weights)
    assert start(command, settings) == 0


def identity_of(reward: str, **more: Any) -> str | None:
    (found,) = load_rewards(RewardConfig(reward=[reward], reward_self_test=False, **more)).sources
    return found.identity


def test_identities_of_sources(tiny_model: str, tmp_path: Path) -> None:
    adapter = tmp_path / "adapter"
    build_adapter(tiny_model, adapter, reward=True)
    first = identity_of(str(adapter))
    assert first == identity_of(str(adapter), reward_dtype="bf16")  # precision has a flag of its own
    weights = load_file(adapter / "adapter_model.safetensors")
    name = next(name for name in weights if "lora_B" in name)
    save_file(weights | {name: weights[name] + torch.tensor(0.5)}, adapter / "adapter_model.safetensors")
    assert first != identity_of(str(adapter))
    assert identity_of("rule:length,max=100") != identity_of("rule:length,max=200")


def test_what_a_remote_scorer_says_of_itself() -> None:
    def says(health: bytes) -> str | None:
        with server(lambda number, path, body: (200, health)) as (address, _):
            return identity_of(address)

    assert says(b'{"status": "ok", "identity": "3f0c"}') == "3f0c"
    assert says(b'{"status": "ok"}') is None
    assert says(b'{"status": "ok", "identity": 3}') is None
    assert says(b"fine") is None


def test_a_function_that_is_no_python_file_has_no_identity() -> None:
    assert identity_of("math:sqrt") is None


def test_an_adapter_to_train_from_is_known_by_its_file(
    tiny_model: str, conversations: str, tmp_path: Path, quiet: None, capsys: pytest.CaptureFixture[str]
) -> None:
    adapter = tmp_path / "adapter"
    build_adapter(tiny_model, adapter)
    settings = {
        "model_name_or_path": adapter, "dataset_path": conversations, "output_dir": tmp_path / "run", "resume": "auto",
        "per_device_train_batch_size": 8, "save_steps": 1, "max_steps": 1, "dtype": "fp32",
    }  # fmt: skip
    assert start("sft", settings) == 0
    inputs = json.loads((tmp_path / "run/environment.json").read_text())["inputs"]
    assert inputs["--model_name_or_path"] == digest_of_file(adapter / "adapter_model.safetensors")
    assert start("sft", settings | {"max_steps": 2}) == 0
    build_adapter(tiny_model, adapter, seed=1)
    assert start("sft", settings | {"max_steps": 3}) == 2
    assert "error: --model_name_or_path: this is not what the run" in capsys.readouterr().err
