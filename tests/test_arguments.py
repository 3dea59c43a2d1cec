from __future__ import annotations

import contextlib
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from raft.arguments import argument, from_dict, help_text, load_yaml, nearest, parse, to_dict, to_yaml
from raft.errors import UserError


@dataclass
class Model:
    """Model and adapter.

    More that --help does not show.
    """

    name: str = argument("gpt2", "Directory or hub name.", aliases=("model_path",), metavar="PATH")
    revision: str | None = argument(None, "Branch or commit.")
    zero_stage: Literal[0, 2, 3] = argument(0, "ZeRO stage.")
    modules: list[str] = argument(["q", "v"], "Modules to adapt.")


@dataclass
class Training:
    learning_rate: float = argument(1e-3, "Peak learning rate.")
    num_steps: int = argument(10, "Optimizer steps.")
    max_norm: float | None = argument(1.0, "Gradient norm.")
    packing: bool = argument(False, "Pack several texts into a row.")
    shuffle: bool = argument(True, "Draw in random order.")
    strategy: Literal["top", "local"] = argument("top", "Which samples are kept.")
    thresholds: list[float] = argument([], "Limits.")
    layers: list[int] | None = argument(None, "Layers to train.")
    patterns: list[str] = argument([], "Regular expressions.", commas=False)

    def __post_init__(self) -> None:
        if self.packing and self.num_steps == 13:
            raise UserError("--packing: not together with --num_steps 13")


@dataclass
class Config:
    """Supervised fine-tuning, full or LoRA."""

    examples: ClassVar[tuple[str, ...]] = ("raft sft --name gpt2 --num_steps 3",)
    model: Model = field(default_factory=Model)
    training: Training = field(default_factory=lambda: Training(learning_rate=2e-5))


@dataclass
class Inputs:
    path: str = argument("", "The file to read.", required=True)


@dataclass
class NeedsInput:
    inputs: Inputs = field(default_factory=Inputs)


def run(*argv: str) -> Config:
    return parse(Config, argv, prog="raft sft")


def training(*argv: str) -> Training:
    return run(*argv).training


def write(path: Path, text: str) -> str:
    path.write_text(text, encoding="utf-8")
    return str(path)


def refused(*argv: str) -> str:
    with pytest.raises(UserError) as caught:
        run(*argv)
    assert "\n" not in str(caught.value)
    return str(caught.value)


# ------------------------------------------------------------------ flags


def test_defaults_come_from_the_command_not_from_the_group() -> None:
    assert training().learning_rate == 2e-5
    assert training("--num_steps", "3").learning_rate == 2e-5
    assert Training().learning_rate == 1e-3


def test_parsed_configs_share_no_list() -> None:
    run().model.modules.append("k")
    assert run().model.modules == ["q", "v"]


@pytest.mark.parametrize(
    ("argv", "name", "value"),
    [
        (["--learning_rate", "1e-5"], "learning_rate", 1e-5),
        (["--learning-rate=1e-5"], "learning_rate", 1e-5),
        (["--learning_rate", "-2"], "learning_rate", -2.0),
        (["--learning_rate", "-1e-3"], "learning_rate", -1e-3),
        (["--num_steps", "-1"], "num_steps", -1),
        (["--num_steps=1e3"], "num_steps", 1000),
        (["--num_steps", "9007199254740993"], "num_steps", 9007199254740993),
        (["--num_steps", "1", "--num-steps", "2"], "num_steps", 2),
        (["--max_norm", "none"], "max_norm", None),
        (["--max_norm=Null"], "max_norm", None),
        (["--packing"], "packing", True),
        (["--packing", "true"], "packing", True),
        (["--packing=False"], "packing", False),
        (["--packing", "--num_steps", "2"], "packing", True),
        (["--no_shuffle"], "shuffle", False),
        (["--no-shuffle"], "shuffle", False),
        (["--no_shuffle", "--shuffle"], "shuffle", True),
        (["--shuffle", "--no_shuffle"], "shuffle", False),
        (["--strategy", "local"], "strategy", "local"),
        (["--thresholds", "1", "-2.5", "3e1"], "thresholds", [1.0, -2.5, 30.0]),
        (["--thresholds", "1,-2.5, 3e1"], "thresholds", [1.0, -2.5, 30.0]),
        (["--thresholds=-1,2", "--thresholds", "3"], "thresholds", [-1.0, 2.0, 3.0]),
        (["--layers", "0,1", "5"], "layers", [0, 1, 5]),
        (["--layers", "none"], "layers", None),
        (["--patterns", "#{2,}", "a,b"], "patterns", ["#{2,}", "a,b"]),
        (["--patterns=--x"], "patterns", ["--x"]),
    ],
)
def test_flags(argv: list[str], name: str, value: Any) -> None:
    found = getattr(training(*argv), name)
    assert found == value
    assert type(found) is type(value)


def test_flags_of_the_other_group() -> None:
    model = run("--model-path", "a=b c", "--zero_stage", "3", "--modules", "k").model
    assert model == Model(name="a=b c", zero_stage=3, modules=["k"])
    assert run("--modules", "").model.modules == []
    assert run("--name", "none").model.name == "none"  # only where None is allowed


@dataclass
class Trackers:
    report_to: list[Literal["tensorboard", "wandb"]] = argument(["tensorboard"], "Trackers.")


@dataclass
class Reporting:
    run: Trackers = field(default_factory=Trackers)


def test_none_of_several_choices(tmp_path: Path) -> None:
    def chosen(*argv: str) -> list[str]:
        return parse(Reporting, argv, prog="raft").run.report_to

    assert chosen("--report_to", "none") == []
    assert chosen("--report_to", "wandb,tensorboard") == ["wandb", "tensorboard"]
    (tmp_path / "x.yaml").write_text("report_to: none")
    assert chosen("--config", str(tmp_path / "x.yaml")) == []
    with pytest.raises(UserError, match='found "none", expected one of tensorboard, wandb'):
        chosen("--report_to", "none", "wandb")


def test_local_rank_of_the_launcher_is_ignored() -> None:
    assert run("--local_rank", "1", "--num_steps", "3") == run("--num_steps", "3", "--local-rank=0")


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--learning_rate", "abc"], '--learning_rate: found "abc", expected a number such as 1e-5'),
        (["--learning_rate", "nan"], '--learning_rate: found "nan", expected a number such as 1e-5'),
        (["--learning_rate", "-inf"], '--learning_rate: found "-inf", expected a number such as 1e-5'),
        (["--learning_rate", "1e999"], '--learning_rate: found "1e999", expected a number such as 1e-5'),
        (["--learning_rate", "none"], '--learning_rate: found "none", expected a number such as 1e-5'),
        (["--max_norm", "x"], '--max_norm: found "x", expected a number such as 1e-5 or none'),
        (["--num_steps", "1.5"], '--num_steps: found "1.5", expected a whole number such as 8'),
        (["--num_steps", "true"], '--num_steps: found "true", expected a whole number such as 8'),
        (["--packing", "maybe"], '--packing: found "maybe", expected true or false'),
        (["--strategy", "tap"], '--strategy: found "tap", expected one of top, local. Did you mean "top"?'),
        (["--zero_stage", "1"], '--zero_stage: found "1", expected one of 0, 2, 3'),
        (["--layers", "1,b"], '--layers: found "b", expected a whole number such as 8'),
        (["--num_steps"], "--num_steps: needs a value, a whole number such as 8"),
        (["--modules", "--packing"], "--modules: needs a value, text (in YAML, put it in quotes)"),
        (["--name", "a", "b"], '--name: takes one value, found "a" "b" (a value with spaces needs quotes)'),
        (["--no_packing", "true"], '--no_packing: takes no value, found "true"'),
        (["--config"], "--config: needs the path of a YAML file"),
        (["--lerning_rate", "1"], "unknown flag --lerning_rate. Did you mean --learning_rate?"),
        (["--learning", "1"], "unknown flag --learning. Did you mean --learning_rate?"),
        (["--no_packin"], "unknown flag --no_packin. Did you mean --no_packing?"),
        (["--no_name"], "unknown flag --no_name. Did you mean --name?"),
        (["--use_peft"], "unknown flag --use_peft. All flags: raft sft --help"),  # no --use_lora here
        (
            ["--neat-packing"],
            "unknown flag --neat_packing. Here it is --packing: see README.md, Coming from another tool",
        ),
        (["--qqq"], "unknown flag --qqq. All flags: raft sft --help"),
        (["file"], 'unexpected "file": values come after a flag such as --seed 1.'),
        (["--num_steps=1", "2"], 'unexpected "2": values come after a flag such as --seed 1.'),
        (["--packing", "--num_steps", "13"], "--packing: not together with --num_steps 13"),
    ],
)
def test_refused_flags(argv: list[str], message: str) -> None:
    assert refused(*argv) == message


def test_long_or_multi_line_values_are_shown_short_and_on_one_line() -> None:
    assert refused("--num_steps", "a\nb") == '--num_steps: found "a\\nb", expected a whole number such as 8'
    assert len(refused("--num_steps", "x" * 5000)) < 160


def test_required() -> None:
    with pytest.raises(UserError, match=r"^--path is required: The file to read\.$"):
        parse(NeedsInput, [], prog="raft score")
    with pytest.raises(UserError, match="--path is required"):
        from_dict(NeedsInput, {"path": ""})
    assert parse(NeedsInput, ["--path", "x"], prog="raft score").inputs.path == "x"
    assert "The file to read. (required)" in help_text(NeedsInput, prog="raft score")


# ------------------------------------------------------------------ YAML


def test_yaml_flat_and_grouped_later_files_win_flags_win_over_all(tmp_path: Path) -> None:
    first = write(tmp_path / "1.yaml", "training: {learning_rate: 1e-5, num_steps: 1, thresholds: [1]}\nname: a\n")
    second = write(tmp_path / "2.yaml", "# flat\nnum-steps: 1e3\nmax_norm: null\nmodel:\nmodel_path: b\n")
    expected = Training(learning_rate=1e-5, num_steps=1000, max_norm=None, thresholds=[2.0])
    for files in (["--config", first, second], ["--config", first, f"--config={second}"]):
        config = run("--thresholds", "2", *files)
        assert config == Config(Model(name="b"), expected)
    assert run("--config", second, first).training.num_steps == 1


@pytest.mark.parametrize(
    ("text", "name", "value"),
    [
        ("learning_rate: 1", "learning_rate", 1.0),
        ("learning_rate: 1e-5", "learning_rate", 1e-5),
        ("num_steps: 3.0", "num_steps", 3),
        ("num_steps: '4'", "num_steps", 4),
        ("packing: yes", "packing", True),
        ("shuffle: off", "shuffle", False),
        ("max_norm: none", "max_norm", None),
        ("layers: ~", "layers", None),
        ("layers: [1, 2]", "layers", [1, 2]),
        ("layers: 3", "layers", [3]),
        ("layers: 3, 4", "layers", [3, 4]),
        ("patterns: ['a,b', c]", "patterns", ["a,b", "c"]),
        ("base: &b {num_steps: 7}\n", "num_steps", None),
        ("{}", "num_steps", 10),
        ("", "num_steps", 10),
        ("\ufeffnum_steps: 2", "num_steps", 2),
        ('{"training": {"num_steps": 5}}', "num_steps", 5),
    ],
)
def test_yaml_values(tmp_path: Path, text: str, name: str, value: Any) -> None:
    file = write(tmp_path / "a.yaml", text)
    if text.startswith("base"):
        assert refused("--config", file).startswith(f'{file}, line 1: unknown key "base".')
        return
    found = getattr(training("--config", file), name)
    assert found == value
    assert type(found) is type(value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("\nlearning_rate: abc", ', line 2: learning_rate: found "abc", expected a number such as 1e-5'),
        ("learning_rate: .nan", ", line 1: learning_rate: found NaN, expected a number such as 1e-5"),
        ("learning_rate: null", ", line 1: learning_rate: found null, expected a number such as 1e-5"),
        ("num_steps: 2.5", ", line 1: num_steps: found 2.5, expected a whole number such as 8"),
        ("num_steps: true", ", line 1: num_steps: found true, expected a whole number such as 8"),
        ("num_steps: [1]", ", line 1: num_steps: found a list, expected a whole number such as 8"),
        ("packing: 2", ", line 1: packing: found 2, expected true or false"),
        ("name: 007", ", line 1: name: found 7, expected text (in YAML, put it in quotes)"),
        ("name: 2024-01-02", ', line 1: name: found "2024-01-02", expected text (in YAML, put it in quotes)'),
        (
            "strategy: locl",
            ', line 1: strategy: found "locl", expected one of top, local. Did you mean "local"?',
        ),
        (
            "training:\n  packing: no\n  lerning_rate: 1\n",
            ', line 3: unknown key "training.lerning_rate". Did you mean "learning_rate"?',
        ),
        ("lerning_rate: 1", ', line 1: unknown key "lerning_rate". Did you mean "learning_rate"?'),
        (
            "neat-packing: true",
            ', line 1: unknown key "neat-packing". Here it is "packing": see README.md, Coming from another tool',
        ),
        ("trainin: {num_steps: 1}", ', line 1: unknown key "trainin". Did you mean "training"?'),
        ("model: {num_steps: 1}", ', line 1: unknown key "model.num_steps". It belongs under "training"'),
        ("model: gpt2", ', line 1: "model" is a group of settings, expected lines of `name: value` under it'),
        ("3: 4", ', line 1: unknown key "3".'),
        ("num_steps: 1\nnum_steps: 2", ', line 2: key "num_steps" is already set on line 1'),
        ("training: {shuffle: 1, shuffle: 1}", ', line 1: key "shuffle" is already set on line 1'),
        ("training: {num_steps: 1}\nnum_steps: 2", ', line 2: "num_steps" sets num_steps a second time'),
        ("name: a\nmodel_path: b", ', line 2: "model_path" sets name a second time'),
        ("- 1", ": expected `key: value` lines at the top level, found a list"),
        ("gpt2", ": expected `key: value` lines at the top level, found a single value"),
        (
            "name: !!python/object/apply:os.system ['true']",
            ", line 1: tags such as 'tag:yaml.org,2002:python/object/apply:os.system' are not allowed, "
            "only plain values",
        ),
        ("name: 2024-13-45", ": month must be in 1..12"),
    ],
)
def test_refused_yaml(tmp_path: Path, text: str, message: str) -> None:
    file = write(tmp_path / "run.yaml", text)
    assert refused("--config", file) == file + message


@pytest.mark.parametrize("text", ["a: [1", "a: b: c", "a: 1\n\tb: 2", "a: 1\n---\nb: 2", "? [1]\n: 2", "a: \x00", "*x"])
def test_malformed_yaml_is_a_user_error(tmp_path: Path, text: str) -> None:
    file = write(tmp_path / "run.yaml", text)
    assert refused("--config", file).startswith(file)


def test_unreadable_files(tmp_path: Path) -> None:
    missing = str(tmp_path / "none.yaml")
    assert refused("--config", missing) == f"{missing}: cannot be read (No such file or directory)"
    assert refused("--config", str(tmp_path)) == f"{tmp_path}: cannot be read (Is a directory)"
    (tmp_path / "b.yaml").write_bytes(b"name: \xff")
    assert refused("--config", str(tmp_path / "b.yaml")).endswith("b.yaml: not UTF-8 text (byte 6)")
    deep = write(tmp_path / "c.yaml", "a: " + "[" * 5000)
    assert refused("--config", deep) == f"{deep}: nested too deeply for a configuration"


def test_yaml_aliases(tmp_path: Path) -> None:
    merged = "training: &t {num_steps: 4}\n"
    assert load_yaml(write(tmp_path / "a.yaml", merged + "b: {<<: *t, x: 1}")) == {
        "training": {"num_steps": 4},
        "b": {"num_steps": 4, "x": 1},
    }
    endless = write(tmp_path / "b.yaml", "training: &t\n  layers: [*t]\n")
    assert refused("--config", endless).endswith("training.layers: found a mapping, expected a whole number such as 8")


def test_yaml_that_unfolds_without_bound_is_refused_at_once(tmp_path: Path) -> None:
    levels = [f"{{x: &a{level} [{', '.join([f'*a{level - 1}'] * 10)}]}}" for level in range(1, 30)]
    file = write(tmp_path / "laughs.yaml", "layers: [&a0 [x], " + ", ".join(levels) + "]\n")
    assert refused("--config", file).endswith("layers: found a list, expected a whole number such as 8")


def test_no_text_holds_a_zero_byte(tmp_path: Path) -> None:
    """No file name can, and the system's own error would name neither file nor flag."""
    file = write(tmp_path / "a.yaml", 'model_path: "a\\0b"\n')
    assert refused("--config", file).startswith(f"{file}, line 1: model_path: found ")


# ------------------------------------------------------------------ mappings


def test_from_dict_takes_flat_and_grouped_and_refuses_like_parse() -> None:
    assert from_dict(Config, {"model": {"name": "x"}, "num_steps": 2}) == run("--name", "x", "--num_steps", "2")
    with pytest.raises(UserError, match=r'^training\.num_steps: found "a", expected a whole number such as 8$'):
        from_dict(Config, {"training": {"num_steps": "a"}})
    with pytest.raises(UserError, match=r'^unknown key "nam"\. Did you mean "name"\?$'):
        from_dict(Config, {"nam": 1})
    with pytest.raises(UserError, match=r"^learning_rate: found Infinity, expected"):
        from_dict(Config, {"learning_rate": math.inf})
    with pytest.raises(UserError, match="not together"):
        from_dict(Config, {"packing": True, "num_steps": 13})


def test_to_dict_is_plain_and_a_copy() -> None:
    config = run()
    mapping = to_dict(config)
    assert mapping["model"] == {"name": "gpt2", "revision": None, "zero_stage": 0, "modules": ["q", "v"]}
    assert list(mapping) == ["model", "training"]
    mapping["model"]["modules"].append("k")
    assert config == run()


# null and none always mean None where None is allowed, so no such text comes out of parse
TEXT = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=12)
TEXT_OR_NONE = st.none() | TEXT.filter(lambda text: text.lower() not in ("none", "null"))
FLOATS = st.floats(allow_nan=False, allow_infinity=False)
CONFIGS = st.builds(
    Config,
    st.builds(Model, TEXT, TEXT_OR_NONE, st.sampled_from([0, 2, 3]), st.lists(TEXT, max_size=3)),
    st.builds(
        Training,
        FLOATS,
        st.integers().filter(lambda steps: steps != 13),
        st.none() | FLOATS,
        st.booleans(),
        st.booleans(),
        st.sampled_from(["top", "local"]),
        st.lists(FLOATS, max_size=3),
        st.none() | st.lists(st.integers(), max_size=3),
        st.lists(TEXT, max_size=3),
    ),
)


@given(CONFIGS)
@example(Config(Model("\x85 \u2028 é")))
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_round_trip_through_yaml(tmp_path: Path, config: Config) -> None:
    file = write(tmp_path / "config.yaml", to_yaml(config))
    assert run("--config", file) == config
    assert from_dict(Config, to_dict(config)) == config


@given(st.lists(st.sampled_from(["--packing", "--layers", "--name=", "-1", "--", "1,2", "", "--config", "none", "="])))
@settings(max_examples=100, deadline=None)
def test_any_command_line_gives_a_config_or_a_user_error(argv: list[str]) -> None:
    with contextlib.suppress(UserError):
        assert isinstance(run(*argv), Config)


# ------------------------------------------------------------------ help, and mistakes of the programmer


EXPECTED_HELP = """\
Supervised fine-tuning, full or LoRA.

Usage: raft sft [--flag value ...] [--config file.yaml ...]

Examples:
  raft sft --name gpt2 --num_steps 3

Model and adapter:
  --name PATH             Directory or hub name. (default: gpt2)
                          (also --model_path)
  --revision TEXT         Branch or commit. (default: none)
  --zero_stage {0,2,3}    ZeRO stage. (default: 0)
  --modules TEXT ...      Modules to adapt. (default: q,v)

Training:
  --learning_rate X       Peak learning rate. (default: 2e-5)
  --num_steps N           Optimizer steps. (default: 10)
  --max_norm X            Gradient norm. (default: 1.0)
  --[no_]packing          Pack several texts into a row.
                          (default: false)
  --[no_]shuffle          Draw in random order. (default: true)
  --strategy {top,local}  Which samples are kept. (default: top)
  --thresholds X ...      Limits. (default: none)
  --layers N ...          Layers to train. (default: none)
  --patterns TEXT ...     Regular expressions. (default: none)

Always there:
  --config FILE ...       Read settings from YAML, flat or grouped
                          as above; later files win, and flags win
                          over files.
  --help                  Show this page.
"""


def test_help_page(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("COLUMNS", "68")
    with pytest.raises(SystemExit) as stop:
        run("--num_steps", "bad", "--help")  # whatever else is wrong
    assert stop.value.code == 0
    assert capsys.readouterr().out == EXPECTED_HELP


@pytest.mark.parametrize(("columns", "widest"), [(50, 50), (80, 80), (300, 100)])
def test_help_fits_the_terminal(monkeypatch: pytest.MonkeyPatch, columns: int, widest: int) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    monkeypatch.setattr(Config, "examples", ("raft sft --name 'a b' " + "--learning_rate 2e-5 " * 8,))
    page = help_text(Config, prog="raft sft")
    assert max(map(len, page.splitlines())) <= widest
    example = page.split("Examples:\n")[1].split("\n\n")[0]
    assert example.replace("\\\n", "").split() == Config.examples[0].split()
    assert all(line.lstrip().startswith(("raft", "--")) for line in example.splitlines())


@pytest.mark.parametrize(
    ("name", "choices", "hint"),
    [
        ("tpo", ["top", "local"], ' Did you mean "top"?'),
        ("LOCAL", ["top", "local"], ' Did you mean "local"?'),
        ("learn", ["batch", "learning_rate"], ' Did you mean "learning_rate"?'),
        ("zzz", ["top", "local"], ""),
        ("", ["top"], ""),
        ("x", [], ""),
    ],
)
def test_nearest(name: str, choices: list[str], hint: str) -> None:
    assert nearest(name, choices) == hint


@dataclass
class SameName:
    num_steps: int = argument(1, "The same name again.")


@dataclass
class Negation:
    no_packing: bool = argument(False, "What --packing has already.")


@dataclass
class Reserved:
    config: str = argument("", "Taken by --config.")


@dataclass
class Undeclared:
    size: int = 3


@dataclass
class Unsupported:
    table: dict[str, int] = argument(None, "No flag looks like this.")


@pytest.mark.parametrize(
    ("second", "message"),
    [
        (SameName, "flag --num_steps is taken already"),
        (Negation, "flag --no_packing is taken already"),
        (Reserved, "flag --config is taken already"),
        (Undeclared, r"Undeclared\.size is not declared with argument\(\)"),
        (Unsupported, r"Unsupported\.table: type .* is not supported"),
        (int, "needs a dataclass instance"),
    ],
)
def test_config_classes_that_cannot_work(second: type, message: str) -> None:
    @dataclass
    class Broken:
        training: Training = field(default_factory=Training)
        more: Any = field(default_factory=second)

    with pytest.raises(AssertionError, match=message):
        parse(Broken, [], prog="raft broken")


# ---------------------------------------------------------------- values in front of the flags


@dataclass
class Files:
    files: list[str] = argument([], "Files to read.", metavar="FILE", required=True, commas=False, positional=True)
    depth: int = argument(1, "How deep.")


@dataclass
class FilesConfig:
    """Reads files."""

    files: Files = field(default_factory=Files)


@dataclass
class OneFile:
    file: str = argument("", "File to read.", metavar="FILE", required=True, positional=True)


@dataclass
class OneFileConfig:
    """Reads a file."""

    one: OneFile = field(default_factory=OneFile)


@pytest.mark.parametrize(
    ("argv", "files"),
    [
        (["a"], ["a"]),
        (["a,1", "b"], ["a,1", "b"]),
        (["a", "b", "--depth", "2"], ["a", "b"]),
        (["--depth", "2", "--files", "a", "b"], ["a", "b"]),
        (["a", "--files", "b"], ["a", "b"]),
    ],
)
def test_values_in_front_of_all_flags(argv: list[str], files: list[str]) -> None:
    config = parse(FilesConfig, argv, prog="raft read")
    assert config.files.files == files
    assert config.files.depth == (2 if "--depth" in argv else 1)


def test_a_single_value_in_front_of_all_flags() -> None:
    assert parse(OneFileConfig, ["a"], prog="raft read").one.file == "a"
    with pytest.raises(UserError, match='--file: takes one value, found "a" "b"'):
        parse(OneFileConfig, ["a", "b"], prog="raft read")
    with pytest.raises(UserError, match="--file is required"):
        parse(OneFileConfig, [], prog="raft read")
    with pytest.raises(UserError, match='--depth: takes one value, found "2" "a"'):
        parse(FilesConfig, ["--depth", "2", "a"], prog="raft read")


def test_help_says_that_values_may_stand_in_front() -> None:
    page = help_text(FilesConfig, prog="raft read")
    assert "Usage: raft read FILE ... [--flag value ...]" in page
    assert "the flag's name may be left out in front of all other flags" in " ".join(page.split())
