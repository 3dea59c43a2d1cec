"""What the documentation says is there: files, anchors, commands, flags, modules, functions, formats."""

from __future__ import annotations

import ast
import importlib
import json
import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import pytest

from raft.arguments import help_text, parse
from raft.cli import COMMANDS, planned
from raft.data.formats import parse_row
from raft.elsewhere import OURS
from raft.rewards.contract import RewardContract

ROOT = Path(__file__).parents[1]
PLACES = ("*.md", "docs/**/*.md", "data/**/*.md", "benchmarks/**/*.md", "output_models/*.md")
PAGES = sorted({path for place in PLACES for path in ROOT.glob(place)})
SCRIPTS = sorted((ROOT / "scripts").glob("*.sh"))

_LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
_FENCE = re.compile(r"^```([^\n]*)\n(.*?)^```$", re.M | re.S)
_FLAG = re.compile(r"--([a-z]\w*)")
# Of the scripts, or of launchers around them.
_NOT_OURS = {"nproc", "help", "config", "version"}


@dataclass(frozen=True)
class CommandLine:
    """``raft NAME ARGUMENTS``, directly or through a script, as a page prints it."""

    where: str
    name: str
    arguments: tuple[str, ...]


def name_of(path: Path) -> str:
    return str(path.relative_to(ROOT))


def without_code(text: str) -> str:
    return _FENCE.sub("", text)


def anchors(path: Path) -> set[str]:
    """The fragments that GitHub makes of a page's headings."""
    headings = re.findall(r"^#+ (.+)$", without_code(path.read_text(encoding="utf-8")), re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def logical_lines(block: str) -> Iterator[str]:
    yield from re.sub(r"\\\n\s*", " ", block).splitlines()


def command_of(script: str) -> str | None:
    """The raft command that a script launches; None where it launches none."""
    text = (ROOT / "scripts" / script).read_text(encoding="utf-8")
    found = re.search(r"^launch (\w+)", text, re.M)
    return found[1] if found else None


def command_lines(where: str, block: str) -> Iterator[CommandLine]:
    for line in logical_lines(block):
        words = shlex.split(line, comments=True)
        for i, word in enumerate(words):
            if script := re.fullmatch(r"scripts/(\w+\.sh)", word):
                assert (ROOT / word).is_file(), f"{where} names {word}, which is not there"
                name = command_of(script[1])
                if name:
                    yield CommandLine(where, name, tuple(words[i + 1 :]))
                break
            if word == "raft" and (i == 0 or words[i - 1] in ("-m", "--module")):
                yield CommandLine(where, words[i + 1], tuple(words[i + 2 :]))
                break


def printed_command_lines() -> list[CommandLine]:
    """Of the pages' shell blocks and the scripts' headers."""
    found: list[CommandLine] = []
    for page in PAGES:
        for language, block in _FENCE.findall(page.read_text(encoding="utf-8")):
            if language.strip() in ("bash", "sh", "shell", "console"):
                found += command_lines(name_of(page), block)
    for script in SCRIPTS:
        header = re.findall(r"^#     ( *(?:bash|--|NUM|RAFT).*)$", script.read_text(encoding="utf-8"), re.M)
        found += command_lines(name_of(script), "\n".join(header) + "\n")
    return found


def config_class(name: str) -> Any:
    command = COMMANDS[name]
    return getattr(importlib.import_module(command.flags or command.module), command.config_class_name)


def flags_of(name: str) -> set[str]:
    """Every flag of a command, by all of its names."""
    text = help_text(config_class(name), prog=f"raft {name}")
    switches = set(re.findall(r"--\[no_\](\w+)", text))
    return set(_FLAG.findall(text)) | switches | {f"no_{switch}" for switch in switches}


def understand(line: CommandLine) -> None:
    """Parse a command line as raft would; raises UserError for what it does not know."""
    rest = list(line.arguments)
    while "--nproc" in rest:
        at = rest.index("--nproc")
        del rest[at : at + 2]
    if rest == ["..."]:  # "and your own flags"
        return
    if rest != ["--help"]:
        name, *rest = planned([line.name, *rest])
        chosen, rest = COMMANDS[name].load(rest)
        parse(chosen, rest, prog=f"raft {line.name}")


def tables(text: str, heading: str) -> Iterator[list[str]]:
    """The cells of every table row below a heading, up to the next one of its level; header rows left out."""
    level = heading.partition(" ")[0]
    section = re.split(rf"^{level} ", text.partition(f"{heading}\n")[2], maxsplit=1, flags=re.M)[0]
    lines = section.splitlines()
    for i, line in enumerate(lines):
        following = lines[i + 1] if i + 1 < len(lines) else ""
        if line.startswith("|") and not line.startswith("|--") and not following.startswith("|--"):
            yield [cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]]


# ---------------------------------------------------------------- links


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_every_relative_link_leads_somewhere(page: Path) -> None:
    for target in _LINK.findall(without_code(page.read_text(encoding="utf-8"))):
        if re.match(r"[a-z]+:", target):
            continue
        path, _, fragment = target.partition("#")
        file = (page.parent / path).resolve() if path else page
        assert file.exists(), f"{name_of(page)} links to {target}, which is not there"
        if fragment:
            assert fragment in anchors(file), f"{name_of(page)} links to {target}, which has no such heading"


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_every_file_of_the_repository_that_is_named_exists(page: Path) -> None:
    text = _LINK.sub("", page.read_text(encoding="utf-8"))
    for path in re.findall(r"(?<![\w/])(?:scripts|docs|tests|raft)/[\w/]+\.\w+", text):
        assert (ROOT / path).exists(), f"{name_of(page)} names {path}, which is not there"


def test_pages_name_no_place_of_one_machine() -> None:
    for page in PAGES:
        found = re.findall(r"(?<![\w.])/(?:home|root|tmp|work|Users)/\S*", page.read_text(encoding="utf-8"))
        assert not found, f"{name_of(page)}: {found}"


# ---------------------------------------------------------------- commands and flags


def test_there_are_commands_to_check() -> None:
    found = printed_command_lines()
    assert {line.name for line in found} >= {"sft", "reward", "align", "merge", "score", "plot"}
    assert {line.where for line in found} >= {"README.md", "docs/clusters.md", "scripts/run_finetune.sh"}


@pytest.mark.parametrize("line", printed_command_lines(), ids=lambda line: f"{line.where}: {line.name}")
def test_every_printed_command_is_one_that_is_understood(line: CommandLine) -> None:
    assert line.name in COMMANDS, f"{line.where} names raft {line.name}"
    understand(line)


@pytest.mark.parametrize("name", COMMANDS)
def test_every_example_in_help_is_one_that_is_understood(name: str) -> None:
    for example in getattr(config_class(name), "examples", ()):
        for line in command_lines(f"raft {name} --help", example.partition(" > ")[0]):
            understand(line)


@pytest.mark.parametrize("page", [page for page in PAGES if "benchmarks" not in page.parts], ids=name_of)
def test_every_flag_in_the_text_is_a_flag_of_some_command(page: Path) -> None:
    known = set().union(*(flags_of(name) for name in COMMANDS)) | _NOT_OURS
    text = without_code(page.read_text(encoding="utf-8"))
    if page.name == "README.md" and page.parent == ROOT:
        text = text.partition("## Coming from another tool")[0] + text.partition("\n## Limits")[2]
    for span in re.findall(r"`([^`\n]+)`", text):
        unknown = set(_FLAG.findall(span)) - known
        assert not unknown, f"{name_of(page)}: `{span}`"


def test_every_command_that_the_text_names_exists() -> None:
    for page in PAGES:
        for name in re.findall(r"`raft ([a-z][a-z-]*)", page.read_text(encoding="utf-8")):
            assert name in COMMANDS, f"{name_of(page)} names raft {name}"


def migration_rows() -> list[list[str]]:
    return list(tables((ROOT / "README.md").read_text(encoding="utf-8"), "## Coming from another tool"))


def test_the_migration_tables_have_rows_of_every_tool() -> None:
    left = " ".join(row[0] for row in migration_rows())
    for name in ("num_raft_iteration", "num_generations", "finetuning_type", "actor_model_name_or_path"):
        assert name in left


@pytest.mark.parametrize("row", migration_rows(), ids=lambda row: row[0])
def test_the_right_hand_side_of_the_migration_tables_exists(row: list[str]) -> None:
    assert len(row) == 3, row
    named = re.findall(r"`raft ([\w-]+)`", row[1])
    assert set(named) <= set(COMMANDS), row[1]
    known = set().union(*(flags_of(name) for name in named or ("align", "sft", "reward")))
    flags = set(_FLAG.findall(row[1]))
    assert flags <= known, f"{row[1]}: unknown are {flags - known}"
    assert flags or named or not row[1], f"{row[0]} leads to nothing"
    for path in re.findall(r"[\w/]+\.json\b", row[1]):
        assert (ROOT / path).is_file(), path


def test_the_migration_tables_and_the_hints_for_unknown_flags_say_the_same() -> None:
    known, told = set().union(*(flags_of(name) for name in ("align", "sft", "reward", "merge"))), set()
    for left, right, _ in migration_rows():
        for name in re.findall(r"`(?:--)?(\w+)(?:[: ][^`]*)?`", left):
            if name not in known and _FLAG.findall(right):
                assert OURS[name] in _FLAG.findall(right), name
                told.add(name)
    assert set(OURS) == told, "hints that no table has"


# ---------------------------------------------------------------- formats, modules, functions


def data_examples() -> list[tuple[str, str]]:
    blocks = _FENCE.findall((ROOT / "docs/data.md").read_text(encoding="utf-8"))
    return [
        (language.split()[1], line)
        for language, block in blocks
        if language.startswith("jsonl ")
        for line in block.splitlines()
    ]


def test_every_kind_of_row_has_examples() -> None:
    assert {kind for kind, _ in data_examples()} == {"conversation", "text", "preference", "prompt"}


@pytest.mark.parametrize(("kind", "line"), data_examples())
def test_every_example_row_is_read_as_the_kind_it_stands_under(kind: str, line: str) -> None:
    (row,) = parse_row(json.loads(line), "docs/data.md")
    assert row.kind == kind
    if kind == "preference":
        assert (row.chosen, row.rejected) in {("Hello.", "What?"), ("Fine.", "Why?"), ("4", "5")}


def modules() -> set[str]:
    names = (path.relative_to(ROOT / "raft").with_suffix("") for path in (ROOT / "raft").rglob("*.py"))
    return {".".join(name.parts) for name in names if name.name not in ("__init__", "__main__")}


def test_the_table_of_layers_has_every_module_and_no_other() -> None:
    named: set[str] = set()
    for _layer, cell, _what in tables((ROOT / "docs/architecture.md").read_text(encoding="utf-8"), "## Layers"):
        names = re.findall(r"`([\w.]+)`", cell)
        room = names[0].partition(".")[0]
        named |= {room + name if name.startswith(".") else name for name in names}
    assert named == modules()


def test_every_function_that_papers_md_names_exists() -> None:
    text = (ROOT / "docs/papers.md").read_text(encoding="utf-8")
    rooms = {name.partition(".")[0] for name in modules() if "." in name}
    found = [name for name in re.findall(r"`([a-z_]+(?:\.\w+)+)`", text) if name.partition(".")[0] in rooms]
    assert len(found) > 15
    for name in found:
        module = next(
            module for module in sorted(modules(), key=len, reverse=True) if f"{name}.".startswith(f"{module}.")
        )
        tree = ast.parse((ROOT / "raft" / f"{module.replace('.', '/')}.py").read_text(encoding="utf-8"))
        defined = {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.ClassDef)}
        assert set(name.removeprefix(module).split(".")[1:]) <= defined, name


def test_the_contract_of_reward_models_is_described_field_by_field() -> None:
    text = (ROOT / "docs/reward_model.md").read_text(encoding="utf-8")
    cells = " ".join(row[0] for row in tables(text, "## reward_model.json"))
    assert set(re.findall(r"`(\w+)`", cells)) == {field.name for field in fields(RewardContract)}


def test_every_test_that_keeps_a_promise_is_there() -> None:
    page = (ROOT / "docs/reliability.md").read_text(encoding="utf-8")
    named = set(re.findall(r"`(tests/[\w/]+\.py)(?:::(\w+))?`", page))
    assert len(named) > 40
    for file, test in sorted(named):
        text = (ROOT / file).read_text(encoding="utf-8")
        assert not test or f"def {test}(" in text, f"{file} has no {test}"
