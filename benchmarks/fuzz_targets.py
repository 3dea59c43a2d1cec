"""What ``fuzz.py`` feeds: everything in the toolkit that reads what a user or a stranger wrote."""

from __future__ import annotations

import contextlib
import json
import re
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from unittest import mock

from hypothesis import strategies as st

from benchmarks.fuzz import Target
from benchmarks.fuzz_data import (
    ROOT,
    Attempt,
    Refused,
    config_class,
    data_targets,
    naming,
    quietly,
    run,
    setting_targets,
)
from benchmarks.fuzz_inputs import VALUES, Change, as_json, changed, changes, damaged
from raft import lock, manifest, resuming
from raft.arguments import load_yaml, to_dict
from raft.journal import Journal
from raft.rewards.contract import RewardContract
from raft.rewards.ready_rules import load_rule


def all_targets(material: Path) -> list[Target]:
    """Every target; ``material`` is a directory for the sound files."""
    return [*data_targets(material), *setting_targets(), *record_targets(material), *model_targets(material),
            *http_targets()]  # fmt: skip


# ---------------------------------------------------------------- a run's files


def record_targets(material: Path) -> list[Target]:
    """What reports and resumed runs read of a run directory."""
    from tests.reports.page_runs import write_align_run, write_drift

    sound = write_align_run(material / "run", num_iterations=3, num_prompts=2, num_samples=2, num_held_out=2)
    write_drift(sound, 3)
    names = sorted(str(path.relative_to(sound)) for path in sound.rglob("*") if path.is_file())
    plans = st.tuples(st.sampled_from(names), changes())
    named = naming(rf"{'|'.join(map(re.escape, names))}", r"--run_dir .*run", r"run (is not|holds)", r"--iteration")

    def with_run(*tools: tuple[str, ...]) -> Attempt:
        def attempt(plan: Any, directory: Path) -> None:
            shutil.copytree(sound, directory / "run")
            change_file(directory / "run" / plan[0], plan[1])
            for tool in tools:
                run(tool[0], [*tool[1:], str(directory / "run")])

        return attempt

    def plot(plan: Any, directory: Path) -> None:
        rendered = len(plan[1]) == 3 and plan[1][0][1] % 4 == 0  # pixels take most of the time
        drawn = contextlib.nullcontext() if rendered else mock.patch("raft.reports.curves.save")
        with drawn:
            with_run(("plot", "--run_dir"))(plan, directory)

    def diversity(plan: Any, directory: Path) -> None:
        shutil.copy(sound / "iterations/0001/samples.jsonl", directory / "samples.jsonl")
        change_file(directory / "samples.jsonl", plan[1])
        run("diversity", [str(directory / "samples.jsonl")])

    return [
        Target("raft report", plans, with_run(("report",)), named, 6),
        Target("raft drift", plans, with_run(("drift", "--run_dir")), named, 4),
        Target("raft plot", st.tuples(st.just("metrics.jsonl"), changes()), plot, named, 1),
        Target("raft diversity", plans, diversity, naming(r"samples\.jsonl"), 4),
        Target("a run's books", st.tuples(st.sampled_from(("manifest", "lock", "journal", "resume")), changes()), books,
               naming(r"--\w+", r"(manifest|state)\.json", r"case is damaged: .", r"config\.yaml",
               r"run\.lock", r"weights"), 6),
    ]  # fmt: skip


def change_file(path: Path, made: Sequence[Change]) -> None:
    """Change a JSON, JSON lines or YAML file in place."""
    text = path.read_text()
    lines = path.suffix == ".jsonl"
    value = changed([json.loads(line) for line in text.splitlines()] if lines else json.loads(text), made)
    if lines:
        text = "".join(as_json(row) + "\n" for row in (value if isinstance(value, list) else [value]))
    else:
        text = as_json(value)
    path.write_bytes(damaged(text.encode(), made))


def books(plan: Any, directory: Path) -> None:
    """Manifest of a checkpoint, lock, journal and recorded settings."""
    what, made = plan
    if what == "manifest":
        (directory / "weights").write_bytes(b"12345")
        manifest.write_manifest(directory)
        change_file(directory / "manifest.json", made)
        if fault := manifest.find_fault(directory):
            raise Refused(f"{directory} is damaged: {fault}")  # as a resumed run says it
    if what == "lock":
        (directory / lock.NAME).write_text('{"host": "here", "pid": 1, "since": "now"}\n')
        change_file(directory / lock.NAME, made)
        lock.refuse_occupied(directory)
        lock._holder(directory / lock.NAME)
        lock._seems_alive(lock._holder(directory / lock.NAME))
    if what == "journal":
        journal = Journal(directory)
        journal.write("x", 0, [1], {"a": [1.5]})
        journal.close()
        path = next(directory.glob("*.jsonl"))
        path.write_bytes(damaged(path.read_bytes(), made))
        assert journal.read("x", 1, lambda _: [1]) in ({}, {0: {"a": [1.5]}})
    if what == "resume":
        config = config_class("sft")()
        config.data.dataset_path = "x"
        (directory / "config.yaml").write_text(json.dumps(to_dict(config)))
        change_file(directory / "config.yaml", made)
        recorded = load_yaml(directory / "config.yaml")
        resuming.take_over(config, recorded)
        resuming.refuse_changes(config, recorded)
        resuming.settle_step(config.training, resuming.first_start(directory, recorded, 2), recorded, 2)


# ---------------------------------------------------------------- models


def model_targets(material: Path) -> list[Target]:
    """Contracts, adapters' records, model directories."""
    adapter, contract = (
        ROOT / "data/reward_model",
        json.loads((ROOT / "data/reward_model/reward_model.json").read_text()),
    )
    contract["examples"] = contract["examples"][:1]
    sound = {name: json.loads((adapter / name).read_text()) for name in ("adapter_config.json", "raft_adapter.json")}
    weights = tiny_adapter()
    model = material / "model"

    def read_contract(plan: Any, directory: Path) -> None:
        (directory / "reward_model.json").write_bytes(damaged(as_json(changed(contract, plan)).encode(), plan))
        found = RewardContract.load(str(directory))
        assert found is not None

    def read_adapter(plan: Any, directory: Path) -> None:
        from raft.models import lora

        name, made = plan
        for other, value in sound.items():
            (directory / other).write_text(json.dumps(value))
        (directory / lora.ADAPTER_WEIGHTS).write_bytes(
            damaged(weights, made) if name == lora.ADAPTER_WEIGHTS else weights
        )
        if name in sound:
            change_file(directory / name, made)
        lora.adapter_base(str(directory))
        lora.adapter_task(str(directory))
        lora.recorded_fingerprint(str(directory))
        lora.refuse_headless_adapter(str(directory), flag="--reward")
        lora.num_labels(str(directory))

    def load(plan: Any, directory: Path) -> None:
        from raft.config import ModelConfig
        from raft.models.loading import load_causal_lm, load_tokenizer, quiet_libraries

        name, made = plan
        shutil.copytree(model, directory / "model")
        path = directory / "model" / name
        if path.suffix == ".json":
            change_file(path, [change for change in made if change[0] in VALUES or change[2] % 4 == 0])
        else:
            path.write_bytes(damaged(path.read_bytes(), made))
        quiet_libraries()
        config = ModelConfig(model_name_or_path=str(directory / "model"))
        with quietly():
            load_tokenizer(config)
            load_causal_lm(config)

    files = ("config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json", "generation_config.json")
    adapter_files = ("adapter_config.json", "raft_adapter.json", "adapter_model.safetensors")
    return [
        Target("reward contract", changes(), read_contract, naming(r"reward_model\.json(: |, line)"), 10),
        Target("adapter", st.tuples(st.sampled_from(adapter_files), changes()), read_adapter,
               naming("|".join(map(re.escape, adapter_files))), 6),
        Target("model", st.tuples(st.sampled_from(files), changes()), load, naming(r"--model_name_or_path"), 2),
    ]  # fmt: skip


def tiny_adapter() -> bytes:
    """Weights of an adapter with a score head, as a file's bytes."""
    import torch
    from safetensors.torch import save

    body = {"base_model.model.layers.0.q_proj.lora_A.weight": torch.zeros(2, 4)}
    return save(body | {"base_model.model.score.weight": torch.zeros(1, 4)})


# ---------------------------------------------------------------- HTTP


REQUEST = {"candidates": [{"messages": [{"role": "user", "content": "Why?"}], "response": "Because.",
"finish_reason": "eos",
                           "prompt_tail": "x", "response_tokens": [1, 2],
                           "columns": {"answer": "42"}}] * 2}  # fmt: skip
ANSWER = {"scores": [0.5, None], "reasons": [None, "no"]}


def http_targets() -> list[Target]:
    """Bodies that a server is sent, and what a server answers."""
    from starlette.testclient import TestClient

    from raft.rewards.server import build_app

    options: dict[str, dict[str, str]] = {"length": {"min": "5"}, "repetition": {}, "eos": {}}
    rules = [load_rule(name, options[name], "") for name in options]
    app = build_app(
        lambda batch: [rules[len(one.response) % len(rules)](one) for one in batch],
        names=["rules"], identity="x", batch_size=4, max_bytes=1 << 20,
    )  # fmt: skip
    client: list[Any] = []

    def serve(plan: Any, directory: Path) -> None:
        if not client:
            client.append(TestClient(app).__enter__())  # ends with the process
        answer = client[0].post("/score", content=damaged(as_json(changed(REQUEST, plan)).encode(), plan))
        found = answer.json()
        if answer.status_code != 200:
            assert answer.status_code in (400, 413), answer.text
            raise Refused(found["error"])
        assert len(found["scores"]) == len(found["reasons"])

    def ask(plan: Any, directory: Path) -> None:
        from raft.rewards.protocol import decode_response

        for score in decode_response(damaged(as_json(changed(ANSWER, plan)).encode(), plan), 2):
            assert isinstance(score, float) or score.reason.isprintable()

    named = naming(r"candidates|expected JSON|has more than", r"scores|reasons|the answer")
    return [
        Target("reward server", changes(), serve, named, 6),
        Target("reward client", changes(), ask, named, 12),
    ]
