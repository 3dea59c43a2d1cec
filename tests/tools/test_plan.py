"""`raft plan`: what it says, that it starts nothing, and that its errors are the stage's own."""

from __future__ import annotations

import json
import shutil
from math import ceil
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file
from transformers import AutoTokenizer

from raft.arguments import parse
from raft.cli import main
from raft.engine.engine import Engine
from raft.planning import probe
from raft.planning.parts import Ground
from raft.run_directory import RunDirectory
from raft.stages.align_config import AlignConfig
from raft.stages.align_plan import plan_align
from tests.conftest import SENTENCES, run_raft

Capture = pytest.CaptureFixture[str]


def planned(capsys: Capture, *arguments: object) -> dict[str, Any]:
    assert main(["plan", *map(str, arguments), "--json"]) == 0
    found: dict[str, Any] = json.loads(capsys.readouterr().out.splitlines()[-1])
    return found


def sft(model: str, data: object, *more: object) -> list[object]:
    return ["sft", "--model_name_or_path", model, "--dataset_path", data, "--dtype", "fp32", "--no_probe", *more]


@pytest.fixture
def align(tiny_model: str, tiny_reward_model: str, prompts: str) -> list[object]:
    return [
        "align", "--model_name_or_path", tiny_model, "--reward_model_or_path", tiny_reward_model,
        "--dataset_path", prompts, "--eval_dataset_path", prompts, "--raft_batch_size", 2,
        "--num_samples_per_prompt", 2, "--dtype", "fp32", "--reward_dtype", "fp32", "--no_probe",
    ]  # fmt: skip


@pytest.fixture(autouse=True)
def nothing_starts(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    """In an empty directory, which stays so; no run directory is taken, no engine built."""

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("a plan started something")

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(RunDirectory, "start", refuse)
    monkeypatch.setattr(Engine, "__init__", refuse)
    yield
    assert list(tmp_path.iterdir()) == []


def test_sft_by_hand(tiny_model: str, conversations: str, capsys: Capture) -> None:
    found = planned(capsys, *sft(tiny_model, conversations))
    weights = sum(one.nbytes for one in load_file(Path(tiny_model) / "model.safetensors").values())
    assert found["parts"]["weights"] == weights
    assert found["parts"]["Adam's moments"] == 2 * weights
    assert found["parts"]["gradients"] == weights
    assert found["disk"]["final"] > weights
    # Eight rows are joined: their mean length, rounded up. Padded, all would be as long as the longest.
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    rows = [json.loads(line)["messages"] for line in Path(conversations).read_text().splitlines()]
    prompts = [tokenizer.apply_chat_template(row[:1], add_generation_prompt=True, tokenize=False) for row in rows]
    texts = [prompt + row[1]["content"] + tokenizer.eos_token for prompt, row in zip(prompts, rows, strict=True)]
    lengths = sorted((len(tokenizer(text).input_ids) for text in texts), reverse=True)[:8]
    assert ceil(sum(lengths) / 8) < lengths[0]
    said = f"24 training rows; the largest micro-batch has 8 rows of {ceil(sum(lengths) / 8)} tokens"
    assert found["facts"][0].startswith(said)
    assert found["verdict"] == "fits"


def test_the_page(align: list[object], capsys: Capture) -> None:
    assert main(["plan", *map(str, align)]) == 0
    page = capsys.readouterr().out
    for line in ("2 prompts, 4 responses, 2 kept", "key-value cache", "reward models", "sampling", "measuring", "disk"):
        assert line in page
    assert "fits: " in page
    assert "time: not probed" in page


def test_max_steps_ends_the_iterations(align: list[object], capsys: Capture) -> None:
    """Two kept responses, a row a step: two steps an iteration, so the third step is in the second one."""
    more = ["--per_device_train_batch_size", 1, "--num_train_epochs", 1, "--num_raft_iteration", 9]
    for limit, number in ((-1, 9), (3, 2), (4, 2), (5, 3), (99, 9)):
        facts = planned(capsys, *align, *more, "--max_steps", limit)["facts"]
        assert facts[0].startswith(f"{number} iterations: 2 prompts"), limit


def test_dry_run_is_the_same(align: list[object], capsys: Capture) -> None:
    pages = []
    for words in (["plan", *align], [align[0], "--dry_run", *align[1:]]):
        assert main(list(map(str, words))) == 0
        pages.append([line for line in capsys.readouterr().out.splitlines() if "fits" not in line])
    assert pages[0] == pages[1]


def test_what_does_not_fit_comes_with_flags_that_help(conversations: str, capsys: Capture) -> None:
    shape = [
        "hidden_size=64",
        "intermediate_size=256",
        "num_hidden_layers=3",
        "num_attention_heads=4",
        "vocab_size=384",
    ]
    command = sft("none", conversations, "--max_length", 512, "--model_shape", *shape, "--device_memory", 0.05)
    assert main(["plan", *map(str, command), "--probe"]) == 0
    page = capsys.readouterr().out
    assert "does not fit: " in page
    help = page.partition("these would save:\n")[2].splitlines()
    assert "--gradient_checkpointing" in help[0] + help[1]
    assert "--per_device_train_batch_size 4 --gradient_accumulation_steps 2" in help[0] + help[1]
    assert "time: not probed, for it would not fit" in page


def test_where_no_flag_helps_it_says_so(tiny_model: str, conversations: str, capsys: Capture) -> None:
    assert main(["plan", *map(str, sft(tiny_model, conversations, "--device_memory", 0.01))]) == 0
    assert "no flag alone would save more than 2% of that" in capsys.readouterr().out


def test_config_json_alone_is_enough(tiny_model: str, conversations: str, capsys: Capture, tmp_path: Path) -> None:
    shape = tmp_path.parent / f"{tmp_path.name}-shape"
    shape.mkdir()
    shutil.copy(Path(tiny_model) / "config.json", shape)
    found = planned(capsys, *sft(str(shape), conversations, "--max_length", 40))
    whole = planned(capsys, *sft(tiny_model, conversations))
    assert found["parts"]["weights"] == whole["parts"]["weights"]
    assert "8 rows of 40 tokens" in found["facts"][0]
    assert "without a tokenizer" in found["facts"][0]


def test_numbers_are_enough(conversations: str, capsys: Capture) -> None:
    shape = ["hidden_size=8", "intermediate_size=12", "num_hidden_layers=1", "num_attention_heads=2", "vocab_size=10"]
    found = planned(capsys, *sft("none", conversations, "--max_length", 9, "--model_shape", *shape))
    assert found["parts"]["weights"] == 4 * (2 * 10 * 8 + 4 * 8 * 8 + 3 * 8 * 12 + 3 * 8)


def test_a_micro_batch_of_joined_rows_has_their_mean_length(
    align: list[object], tiny_model: str, tmp_path_factory: pytest.TempPathFactory, capsys: Capture
) -> None:
    prompts = tmp_path_factory.mktemp("data") / "prompts.jsonl"
    texts = ["dog", "dog runs", "water, salt and time", SENTENCES[3]]
    prompts.write_text("".join(json.dumps({"prompt": text}) + "\n" for text in texts))
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    asked = [[{"role": "user", "content": text}] for text in texts]
    rendered = [tokenizer.apply_chat_template(one, add_generation_prompt=True, tokenize=False) for one in asked]
    longest, next_longest = sorted((len(tokenizer(text).input_ids) for text in rendered), reverse=True)[:2]
    assert longest > next_longest + 1, "otherwise this would show nothing"
    flags = [*align, "--dataset_path", prompts, "--eval_dataset_path", prompts, "--output_max_length", 8]
    for more, length in {(): ceil((longest + next_longest) / 2), ("--gradient_checkpointing",): longest}.items():
        facts = planned(capsys, *flags, *more)["facts"]
        assert f"a micro-batch has 2 rows of {length + 8}" in facts[1]


def test_a_held_out_evaluation_is_a_phase_with_a_chunk_of_its_own(align: list[object]) -> None:
    """One response to each of 12 prompts, against two to each of two."""

    def live(*flags: object) -> dict[str, int]:
        config = parse(AlignConfig, [str(flag) for flag in [*align[1:-1], *flags]], prog="raft align")
        return {phase.name: phase.usage.live for phase in plan_align(config, Ground()).phases}

    few, many = live("--num_eval_prompts", 1), live("--num_eval_prompts", 12)
    assert few["evaluating"] < few["sampling"] == many["sampling"] < many["evaluating"]
    in_turn = live("--num_eval_prompts", 12, "--inference_batch_size_per_device", 1)
    assert in_turn["evaluating"] < many["evaluating"]


@pytest.mark.parametrize(("gibibytes", "rows"), [(0.0005, 1), (0.0008, 2), (1, 4)])
def test_a_chunk_fits_the_memory_that_is_planned_for(
    align: list[object], capsys: Capture, gibibytes: float, rows: int
) -> None:
    # A row of 320 tokens: 2 layers x keys and values x 2 heads x 8 x 4 bytes a token, so 81,920; a quarter is for them.
    facts = planned(capsys, *align, "--device_memory", gibibytes)["facts"]
    assert f" {rows} responses are sampled at once" in facts[0]


def test_processes_share(tiny_model: str, conversations: str, capsys: Capture) -> None:
    zero2 = Path(__file__).parents[2] / "scripts/deepspeed/zero2.json"
    one, two = (
        planned(capsys, *sft(tiny_model, conversations, "--deepspeed", zero2, "--num_processes", n))["parts"]
        for n in (1, 2)
    )
    assert two["Adam's moments"] == one["Adam's moments"] // 2
    assert two["weights"] == one["weights"]


def test_reward(tiny_model: str, preferences: str, capsys: Capture) -> None:
    found = planned(
        capsys, "reward", "--model_name_or_path", tiny_model, "--dataset_path", preferences, "--dtype", "fp32",
        "--no_probe",
    )  # fmt: skip
    assert 0 < found["parts"]["gradients"] < found["parts"]["weights"]
    assert "21 training pairs" in found["facts"][0]


def test_the_default_length_is_no_more_than_the_model_has_positions(capsys: Capture, preferences: str) -> None:
    shape = ["hidden_size=8", "intermediate_size=12", "num_hidden_layers=1", "num_attention_heads=2", "vocab_size=10"]
    shape.append("max_position_embeddings=40")
    command = ["reward", "--model_name_or_path", "none", "--dataset_path", preferences, "--no_probe"]
    command += ["--dtype", "fp32", "--model_shape", *shape]
    assert "rows of 40 tokens" in planned(capsys, *command)["facts"][0]
    assert main(["plan", *command, "--max_length", "60"]) == 2
    assert "--max_length: found 60, allowed are 8 to 40, the positions of the model." in capsys.readouterr().err


def test_packed_texts_may_have_to_go_apart(
    tiny_model: str, capsys: Capture, tmp_path_factory: pytest.TempPathFactory
) -> None:
    texts = tmp_path_factory.mktemp("data") / "texts.jsonl"
    texts.write_text("".join(json.dumps({"text": sentence}) + "\n" for sentence in SENTENCES[:4]))
    packed, apart = (planned(capsys, *sft(tiny_model, texts, *more))["facts"] for more in ((), ("--no_packing",)))
    assert packed[1] == "texts are packed; a model that would let them see each other gets a row for each, 4"
    assert apart[0].startswith("4 training rows")
    assert not any("packed" in fact for fact in apart)


def test_an_adapter_upon_an_adapter_is_refused(
    tiny_model: str, conversations: str, capsys: Capture, tmp_path_factory: pytest.TempPathFactory
) -> None:
    adapter = tmp_path_factory.mktemp("adapter")
    settings = {"base_model_name_or_path": tiny_model, "peft_type": "LORA"}
    (adapter / "adapter_config.json").write_text(json.dumps(settings))
    flags = [*map(str, sft(str(adapter), conversations, "--use_lora"))]
    assert main(["plan", *flags]) == 2
    assert f"run `raft merge --adapter {adapter} --output_dir MERGED` first" in capsys.readouterr().err


@pytest.mark.parametrize(
    "wrong",
    [
        ["--num_raft_iteraton", "3"],
        ["--temperature", "0"],
        ["--top_reward_percentage", "0.125", "--num_samples_per_prompt", "4"],
        ["--learning_rate", "fast"],
    ],
)
def test_errors_are_the_stages_own(wrong: list[str], capsys: Capture) -> None:
    said = []
    for words in (["plan", "align"], ["align"]):
        assert main([*words, *wrong]) == 2
        said.append(capsys.readouterr().err.partition("error: ")[2])
    assert said[0] == said[1] != ""


@pytest.mark.parametrize(("words", "said"), [([], 'found ""'), (["algin"], 'Did you mean "align"?'), (["--x"], "sft")])
def test_a_stage_has_to_be_named(words: list[str], said: str, capsys: Capture) -> None:
    assert main(["plan", *words]) == 2
    error = capsys.readouterr().err
    assert said in error
    assert "sft, reward, align" in error


def test_a_reward_that_the_run_would_refuse_is_refused(
    align: list[object], tiny_model: str, tmp_path_factory: pytest.TempPathFactory, capsys: Capture
) -> None:
    cohere = tmp_path_factory.mktemp("cohere")
    (cohere / "config.json").write_text('{"model_type": "cohere", "architectures": ["SequenceClassification"]}')
    for reward, said in [
        (tiny_model, f"--reward r={tiny_model}: {tiny_model} is LlamaForCausalLM, not a sequence classifier"),
        (cohere, f"--reward r={cohere}: transformers has no SequenceClassification model for {cohere} (Cohere"),
    ]:
        at = align.index("--reward_model_or_path")
        flags = [*align[:at], *align[at + 2 :], "--reward", f"r={reward}"]
        assert main(["plan", *map(str, flags)]) == 2
        assert said in capsys.readouterr().err


def test_a_missing_model_is_refused(conversations: str, capsys: Capture) -> None:
    assert main(["plan", *map(str, sft("./nowhere", conversations))]) == 2
    assert "--model_name_or_path: there is no directory ./nowhere." in capsys.readouterr().err


def test_the_probe_times_every_kind_of_work(align: list[object]) -> None:
    done = run_raft("plan", *align, "--probe", "--probe_seconds", 5, "--json")
    seconds = json.loads(done.stdout.splitlines()[-1])["seconds"]
    assert {"loading", "chunk", "batch", "micro-batch", "step", "sampling", "training", "run"} <= set(seconds)
    assert all(value > 0 for value in seconds.values())
    assert seconds["run"] == pytest.approx(seconds["once"] + 6 * seconds["iteration"])


def test_a_unit_that_takes_too_long_is_done_with_fewer_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    now, sizes = [0.0], []

    def work(size: int) -> None:
        sizes.append(size)
        now[0] += size

    monkeypatch.setattr(probe.time, "perf_counter", lambda: now[0])
    found = probe.Probe(budget=10.0)
    found.at_size("chunk", work, 100)
    assert sizes == [1, 1, 4]
    assert found.seconds == {"chunk": 100.0}
    assert found.rough == ["chunk"]
    enough = probe.Probe(budget=100.0)
    enough.at_size("chunk", work, 8)
    assert sizes[3:] == [1, 1, 8]
    assert enough.seconds == {"chunk": 8.0}
    assert enough.rough == []
