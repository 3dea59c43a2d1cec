"""What ``fuzz.py`` feeds, first part: data files, settings and flags. The rest is in ``fuzz_targets.py``."""

from __future__ import annotations

import contextlib
import gzip
import importlib
import io
import itertools
import json
import re
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import Any
from unittest import mock

from hypothesis import strategies as st

from benchmarks.fuzz import Target
from benchmarks.fuzz_inputs import RAW, as_json, changed, changes, damaged
from raft.arguments import _schema, parse, to_dict
from raft.cli import COMMANDS
from raft.data.encoding import encode_pairs, encode_rows
from raft.data.loading import load_rows
from raft.data.templates import ConversationTemplate
from raft.errors import UserError
from raft.rewards.config import RewardConfig
from raft.rewards.ready_rules import load_rule
from raft.rewards.source import Candidate
from raft.rollout.prompts import encode_prompts
from raft.run_directory import write_jsonl

ROOT = Path(__file__).resolve().parents[1]
SHARED = ROOT.parent / "shared" / "data"
LINE = r"(:\d+|\[\d+\]|, line \d+|byte \d+)"
Attempt = Callable[[Any, Path], object]


class Refused(UserError):
    """What is no exception where it is told, such as a checkpoint with a fault."""


def naming(*patterns: str) -> Callable[[str, Path], bool]:
    """Whether a message holds one of some regular expressions."""
    return lambda message, directory: any(re.search(pattern, message) for pattern in patterns)


@contextlib.contextmanager
def quietly() -> Iterator[None]:
    """Without what commands print."""
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        yield


# ---------------------------------------------------------------- data


@cache
def sound_rows() -> tuple[tuple[Any, ...], ...]:
    """A few rows of every format; real files where they are there."""
    turns = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello."}]
    tokens = {"prompt_id": "p1", "response_tokens": [1, 2], "finish_reason": "eos", "scores": {"a": 1.0}}
    found: list[list[Any]] = [
        [{"messages": turns}, {"messages": [*turns, turns[0]], "system": "Be brief."}],
        [{"prompt": "Why?", "response": "Because.", **tokens}, {"prompt": turns[:1], "completion": turns[1:]}],
        [{"prompt": "Why?", "chosen": "a", "rejected": "b", "margin": 1.5}, {"chosen": turns, "rejected": turns[:1]}],
        [{"type": "text2text", "instances": [{"input": "a", "output": "b"}]}],
        [{"type": "paired_conversation", "instances": [{"chosen": {"messages": turns},
        "rejected": {"messages": turns}}]}],
        [{"question": "2 + 2?", "answer": "4", "prompt_id": 3}, {"prompt": "Bread?", "answer": "5", "level": [1, {}]}],
        [{"instruction": "Add", "input": "1, 2", "output": "3", "history": [["a", "b"]]}],
        [{"context": ["a", "b", "c"], "chosen": "x", "rejected": "y"}, {"positive": "good", "negative": "bad"}],
    ]  # fmt: skip
    files = [*(ROOT / "data").glob("*/*.jsonl"), *SHARED.glob("formats/*"), *SHARED.glob("hh_rlhf/*.gz")]
    for file in sorted(files):
        with gzip.open(file) if file.suffix == ".gz" else open(file, "rb") as stream:
            rows = json.load(stream) if file.suffix == ".json" else map(json.loads, itertools.islice(stream, 4))
            found.append(list(itertools.islice(rows, 4)))
    return tuple(map(tuple, found))


DATA_PLANS = st.tuples(
    st.integers(0, 40), st.sampled_from((".jsonl", ".json", ".jsonl.gz", ".json.gz")), changes(), st.booleans()
)


def write_rows(plan: Any, directory: Path) -> Path:
    """The file of a plan: JSON lines or an array, changed before and after it is compressed."""
    number, suffix, made, late = plan
    rows = changed(list(sound_rows()[number % len(sound_rows())]), made)
    rows = rows if isinstance(rows, list) else [rows]
    lines = [as_json(row) for row in rows]
    text = "\n".join(lines) + "\n" if "jsonl" in suffix or late else "[" + ",\n".join(lines) + "]"
    data = text.encode()
    if suffix.endswith(".gz"):
        data = damaged(gzip.compress(data, 1), made) if late else gzip.compress(damaged(data, made), 1)
    else:
        data = damaged(data, made)
    path = directory / f"rows{suffix}"
    path.write_bytes(data)
    return path


def data_targets(material: Path) -> list[Target]:
    """Data files, from reading to token rows and to what is written of them."""
    from tests.conftest import build_model

    build_model(material / "model")
    template = _template(material / "model")
    strict = _template(material / "model")
    strict.tokenizer.chat_template = ALTERNATING
    named = naming(rf"rows\.[a-z.]+{LINE}", r"rows\.[a-z.]+: (found|field|column|cannot)", r"--dataset_path .*rows\.",
                   r"--max_length", r"--validation_split", r"--prompt_max_length",
                   r"rows\.[a-z.]+:? .*(gzip)")  # fmt: skip

    def sft(plan: Any, directory: Path) -> None:
        data = load_rows(str(write_rows(plan, directory)), kinds={"conversation", "text"})
        encode_rows(data.rows, strict if plan[3] else template, max_length=64, packing=plan[3])

    def prompts(plan: Any, directory: Path) -> None:
        from raft.rewards.protocol import decode_request, encode_request

        data = load_rows(str(write_rows(plan, directory)), kinds={"prompt"})
        found, _ = encode_prompts(data.rows, strict if plan[3] else template, max_length=500, flag="--dataset_path")
        write_jsonl(directory / "samples.jsonl", [{"id": one.prompt_id, "extra": one.extra} for one in found])
        decode_request(encode_request([Candidate(list(one.messages), "x", extra=one.extra) for one in found]))

    def pairs(plan: Any, directory: Path) -> None:
        data = load_rows(str(write_rows(plan, directory)), kinds={"preference"})
        encode_pairs(data.rows, strict if plan[3] else template, max_length=64)

    def score(plan: Any, directory: Path) -> None:
        run("score", ["--dataset_path", str(write_rows(plan, directory)), "--reward", "rule:length,unit=words,max=3",
                      "--output_file", str(directory / "scores.jsonl")])  # fmt: skip
        assert (directory / "scores.jsonl").read_bytes().endswith(b"\n")

    def parquet(plan: Any, directory: Path) -> None:
        import pyarrow
        import pyarrow.parquet

        (directory / "rows.parquet").write_bytes(damaged(PARQUET or _parquet(pyarrow), plan[2]))
        load_rows(str(directory / "rows.parquet"), kinds={"prompt"})

    return [
        Target("sft data", DATA_PLANS, sft, named, 10),
        Target("prompts", DATA_PLANS, prompts, named, 10),
        Target("pairs", DATA_PLANS, pairs, named, 10),
        Target("raft score", DATA_PLANS, score, named, 4),
        Target("parquet", DATA_PLANS, parquet, named, 1),
        Target("before training", st.tuples(DATA_PLANS, st.sampled_from(("sft", "reward"))),
               lambda plan, directory: begin_training(plan, directory, material / "model"), named, 1),
    ]  # fmt: skip


ALTERNATING = (
    "{% for m in messages %}{% if (m['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Conversation roles must alternate user/assistant/...') }}{% endif %}"
    "[{{ m['role'] }}]{{ m['content'] }}{% endfor %}{% if add_generation_prompt %}[assistant]{% endif %}"
)
PARQUET = b""


def _parquet(pyarrow: Any) -> bytes:
    global PARQUET
    stream = io.BytesIO()
    rows = [{"prompt": f"Why {i}?", "answer": str(i), "when": None} for i in range(50)]
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), stream)
    PARQUET = stream.getvalue()
    return PARQUET


def _template(directory: Path) -> ConversationTemplate:
    from transformers import AutoTokenizer

    return ConversationTemplate(AutoTokenizer.from_pretrained(directory))


def run(command: str, arguments: Sequence[str]) -> None:
    """A command as ``raft`` runs it, its errors raised."""
    module = importlib.import_module(COMMANDS[command].module)
    with quietly():
        module.main(parse(config_class(command), arguments, prog=f"raft {command}"))


class _Started(Exception):
    """The data was taken: training would begin."""


def begin_training(plan: Any, directory: Path, model: Path) -> None:
    """A training command up to where its data is read; a refusal leaves no run directory."""
    data, command = plan
    module = importlib.import_module(COMMANDS[command].module)
    builder = "build_policy" if command == "sft" else "build"
    out = directory / "run"
    arguments = ["--model_name_or_path", str(model), "--dataset_path", str(write_rows(data, directory)), "--dtype",
                 "fp32", "--output_dir", str(out)]  # fmt: skip
    with mock.patch.object(module, builder, side_effect=_Started), contextlib.suppress(_Started):
        try:
            run(command, arguments)
        finally:
            assert not out.exists(), "a run directory, although nothing was run"


# ---------------------------------------------------------------- settings


def config_class(command: str) -> Any:
    """The configuration class of a command."""
    found = COMMANDS[command]
    return getattr(importlib.import_module(found.flags or found.module), found.config_class_name)


SNIPPETS = (
    "seed: 1", "seed: [1, 2]", "seed: {a: 1}", "seed: 1e400", "seed: 2024-13-45", "seed: 1:2:3", "seed: ~",
    "? [a, b]\n: c",
    "seeed: 3", "run: {seed: 1}", "run: seed", "run:\n  seed: 1\n  seed: 2", "run:\n\tseed: 1", "a: &a [*a]", "a: *b",
    "x: &x {<<: {a: 1}, b: 2}", "reward: [rule:eos]", "reward: rule:eos", "!!set {a, b}", "--- !!map\nseed: 1",
    "- seed: 1",
    "seed: !!int x", "seed: !!binary aGk=", "seed: !!python/name:os.system", "seed: !!timestamp x", "1: 2", "null: 1",
    "true: yes", "output_dir: \"\\0\"", "output_dir: \"a\\ud800b\"", "seed: |\n  many\n  lines", "seed: " + "9" * 5000,
    "a: " + "[" * 2000, "a: " + "{b: " * 300 + "1" + "}" * 300, "discard_regex: '('", "learning_rate: 1e-5",
    "learning_rate: .nan", "lr_scheduler_type: nope", "report_to: none", "report_to: [wandb, wandb]", "dtype: fp8",
    "l0: &l0 {a: 1}\n" + "".join(f"l{i}: &l{i} {{<<: [{', '.join([f'*l{i - 1}'] * 9)}]}}\n" for i in range(1, 12)),
    "b0: &b0 [x]\n" + "".join(f"b{i}: &b{i} [{', '.join([f'*b{i - 1}'] * 9)}]\n" for i in range(1, 12)),
)  # fmt: skip
VALUES_OF_FLAGS = (
    "", " ", "x", "0", "-1", "1", "1.5", "1e3", "1e400", "nan", "inf", "9" * 5000, "none", "null", "true", "FALSE",
    "a,b",
    ",", "1,2", "=", "a=b", "-", "--", "\x1b[31m", "\ud800", "\udce4", "../..", "/dev/null", "/", ".", "x" * 300, "fp8",
    "http://", "http://[::1", "http://h:99999", "http://u:pw@h:x", "rule:", "rule:regex,pattern=(",
    "rule:length,max=-1",
    "a.b:c", "(?P<", "cosine", "data/prompts/train.jsonl", "\u2028", "\N{FULLWIDTH DIGIT FIVE}", "1_000", "0x10",
)  # fmt: skip


@cache
def _flags(command: str) -> tuple[str, ...]:
    schema = _schema(config_class(command))
    return (*schema.flags, *schema.negations, "config", "seeed", "", "help_me", "local_rank")


def setting_targets() -> list[Target]:
    """YAML and flags of every command, sources of reward, DeepSpeed's JSON."""
    commands = st.sampled_from(tuple(COMMANDS))
    number = st.integers(0, 1 << 16)
    texts = st.one_of(st.sampled_from(VALUES_OF_FLAGS), st.text(max_size=12))

    def config(plan: Any, directory: Path) -> None:
        command, made, snippets, at = plan
        values = changed(to_dict(config_class(command)()), made)
        lines = as_json(values).replace("@", "") if at % 3 else _yaml(values)
        body = lines.splitlines()
        for snippet in snippets:
            body.insert(at % (len(body) + 1), snippet)
        path = directory / "settings.yaml"
        path.write_bytes(damaged("\n".join(body if at % 5 else snippets).encode("utf-8", "replace"), made))
        parse(config_class(command), ["--config", str(path)], prog=f"raft {command}")

    def flags(plan: Any, directory: Path) -> None:
        command, given = plan
        argv = []
        for which, value, style in given:
            flag = "--" + _flags(command)[which % len(_flags(command))].replace("_", "-_"[style % 2])
            argv += {0: [flag], 1: [f"{flag}={value}"], 2: [value, flag]}.get(style % 8, [flag, value])
        if "--help" not in argv and "-h" not in argv:
            parse(config_class(command), argv, prog=f"raft {command}")

    def rewards(plan: Any, directory: Path) -> None:
        texts, weights = plan
        for spec in RewardConfig(reward=texts, reward_weights=weights).specs():
            if spec.kind == "rule" and spec.target != "language":
                rule = load_rule(spec.target, spec.options, spec.flag)
                rule(Candidate([{"role": "user", "content": "x"}], "a b a b", "eos", response_tokens=[1, 2]))

    def deepspeed(plan: Any, directory: Path) -> None:
        from raft.config import TrainingConfig
        from raft.engine.settings import deepspeed_config

        path = directory / "zero.json"
        path.write_bytes(damaged(as_json(changed(_zero(plan[0]), plan[1])).encode(), plan[1]))
        deepspeed_config(TrainingConfig(deepspeed=str(path)), bf16=False)

    pieces = st.lists(st.sampled_from(SPEC_PIECES) | st.text(max_size=6), min_size=1, max_size=5).map("".join)
    return [
        Target("config files", st.tuples(commands, changes(), st.lists(st.sampled_from(SNIPPETS), max_size=3), number),
               config, naming(r"settings\.yaml, line \d+", r"settings\.yaml: .", r"--\w+"), 10),
        Target("flags", st.tuples(commands, st.lists(st.tuples(number, texts, number), max_size=6)), flags,
               naming(r"--\w*", r"unexpected \"", r": cannot be read"), 18),
        Target("reward specs", st.tuples(st.lists(pieces, min_size=1, max_size=3), st.lists(st.floats(), max_size=3)),
               rewards, naming(r"--reward"), 12),
        Target("DeepSpeed JSON", st.tuples(number, changes()), deepspeed, naming(r"--deepspeed.*zero\.json"), 6),
    ]  # fmt: skip


SPEC_PIECES = (
    "rule:", "length", "regex", "overlong", "repetition", "characters", "eos", ",", "=", "max=1", "min=0", "n=", "n=0",
    "n=2", "cache=1", "pattern=(", "pattern=[a-z]+", "unit=words", "unit=x", "http://", "https://", "h", ":80", ":x",
    "@",
    "u:pw@", "/p", "?q", "#f", "a=", "reward=", "data/reward_model", "..", "/", "a.b:c", "x.py:f", ",label=", "label=1",
    ",base=", ",contract=c.json", "[::1]", "[", "\ud800", "\0", " ", "9" * 400, "max=1e999", "max=nan",
)  # fmt: skip


def _yaml(values: Any) -> str:
    import yaml

    text = yaml.safe_dump(values, sort_keys=False, allow_unicode=False)
    for name, raw in RAW.items():
        text = text.replace(f"'{name}'", raw)
    return text


@cache
def _zero_files() -> tuple[Path, ...]:
    return tuple(sorted((ROOT / "scripts/deepspeed").glob("*.json")))


def _zero(number: int) -> Any:
    return json.loads(_zero_files()[number % len(_zero_files())].read_text())
