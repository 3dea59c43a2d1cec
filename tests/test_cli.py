from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

import raft
from raft.arguments import argument
from raft.cli import COMMANDS, Command, main
from raft.errors import UserError


@dataclass
class Settings:
    """Settings"""

    outcome: str = argument("fine", "What the command does.")


@dataclass
class DemoConfig:
    """A command for these tests."""

    settings: Settings = field(default_factory=Settings)


ROOT = Path(raft.__file__).parents[1]
SEEN: list[DemoConfig] = []
KNOWN = ", ".join([*COMMANDS, "demo"])


def demo_main(config: DemoConfig) -> None:
    SEEN.append(config)
    if config.settings.outcome == "mistake":
        raise UserError('data.jsonl, line 3:\nfield "text" is missing')
    if config.settings.outcome == "interrupt":
        raise KeyboardInterrupt
    if config.settings.outcome == "bug":
        raise ValueError("a bug")


@pytest.fixture(autouse=True)
def demo(monkeypatch: pytest.MonkeyPatch) -> None:
    module: Any = ModuleType("demo_command")
    module.DemoConfig, module.main = DemoConfig, demo_main
    monkeypatch.setitem(sys.modules, "demo_command", module)
    monkeypatch.setitem(COMMANDS, "demo", Command("demo", "demo_command", "DemoConfig", "a demonstration"))
    monkeypatch.delenv("RANK", raising=False)
    SEEN.clear()


def test_the_deepspeed_launchers_local_rank_is_passed_over() -> None:
    assert main(["--local_rank=1", "demo", "--outcome", "other"]) == 0
    assert [DemoConfig(Settings("other"))] == SEEN


def test_a_command_gets_its_config() -> None:
    assert main(["demo", "--outcome", "other"]) == 0
    assert [DemoConfig(Settings("other"))] == SEEN


@pytest.mark.parametrize(
    ("argv", "line"),
    [
        (["demo", "--outcome", "mistake"], 'raft demo: error: data.jsonl, line 3: field "text" is missing'),
        (["demo", "--outcom", "x"], "raft demo: error: unknown flag --outcom. Did you mean --outcome?"),
        (
            ["algin"],
            f'raft: error: unknown command "algin", expected one of {KNOWN}. Did you mean "align"?',
        ),
        (
            ["--outcome"],
            f'raft: error: unknown command "--outcome", expected one of {KNOWN}',
        ),
    ],
)
def test_user_errors_are_one_line_and_exit_code_2(
    argv: list[str], line: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(argv) == 2
    captured = capsys.readouterr()
    assert captured.err == line + "\n"
    assert captured.out == ""


def test_only_rank_0_speaks(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("RANK", "1")
    assert main(["demo", "--outcome", "mistake"]) == 2
    assert capsys.readouterr().err == ""
    monkeypatch.setenv("RANK", "0")
    assert main(["demo", "--outcome", "mistake"]) == 2
    assert capsys.readouterr().err != ""


def test_interrupts_exit_with_130_and_bugs_keep_their_traceback(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["demo", "--outcome", "interrupt"]) == 130
    assert capsys.readouterr().err == "raft demo: interrupted\n"
    with pytest.raises(ValueError, match="a bug"):
        main(["demo", "--outcome", "bug"])


@pytest.mark.parametrize("argv", [[], ["--help"], ["-h"], ["help"]])
def test_overview_names_every_command(argv: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(argv) == 0
    page = capsys.readouterr().out
    assert page.startswith("Align a language model by reward-ranked fine-tuning")
    for command in COMMANDS.values():
        assert f"\n  {command.name} " in page
        assert command.summary in page


def test_help_of_a_command(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["demo", "--help"])
    assert stop.value.code == 0
    assert capsys.readouterr().out.startswith("A command for these tests.\n\nUsage: raft demo ")
    assert SEEN == []


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"raft {raft.__version__}\n"


def test_tokenizers_are_told_not_to_fork_unless_the_user_decided(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TOKENIZERS_PARALLELISM", "true")
    main(["demo"])
    assert os.environ["TOKENIZERS_PARALLELISM"] == "true"
    monkeypatch.delenv("TOKENIZERS_PARALLELISM")
    main(["demo"])
    assert os.environ["TOKENIZERS_PARALLELISM"] == "false"


ASKED_FOR_HELP = """
import sys
from raft.cli import main
try:
    main([*sys.argv[1:], "--help"])
except SystemExit:
    pass
print({"torch", "transformers", "deepspeed", "datasets", "yaml"} & set(sys.modules))
"""


@pytest.mark.parametrize("command", ["", *COMMANDS])
def test_help_imports_nothing_heavy(command: str) -> None:
    program = [sys.executable, "-c", ASKED_FOR_HELP, *command.split()]
    done = subprocess.run(program, capture_output=True, text=True, check=True, cwd=ROOT)
    assert "--help" in done.stdout
    assert done.stdout.splitlines()[-1] == "set()"


@pytest.mark.parametrize("command", [["--help"], ["align", "--help"], ["--version"]])
def test_output_that_nobody_reads_is_no_error(command: list[str]) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    program = [sys.executable, "-m", "raft", *command]
    done = subprocess.run(program, stdout=writing, stderr=subprocess.PIPE, text=True, check=False, cwd=ROOT)
    os.close(writing)
    assert (done.returncode, done.stderr) == (141, "")


def test_python_dash_m_raft() -> None:
    command = [sys.executable, "-m", "raft", "nonsense"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)
    assert done.returncode == 2
    assert done.stderr.startswith('raft: error: unknown command "nonsense"')
    assert "Traceback" not in done.stderr
