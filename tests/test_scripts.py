"""The shell scripts, run for real in a copy of the repository. A stand-in for Python and pip writes down what
it was asked to do: nothing is downloaded or installed here."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parents[1]
SCRIPTS = sorted(path.name for path in (ROOT / "scripts").glob("*.sh"))
MODEL = "output_models/SmolLM2-135M-Instruct"
COMMANDS = {
    "run_finetune.sh": ["sft"],
    "run_finetune_with_lora.sh": ["sft", "--use_lora", "true"],
    "run_reward_modeling.sh": ["reward"],
    "run_raft_align.sh": ["align"],
    "run_merge_lora.sh": ["merge"],
    "run_score.sh": ["score"],
    "run_diversity.sh": ["diversity"],
    "run_chat.sh": ["chat"],
}

# Plays the base interpreter and, copied there by `-m venv`, the one in the environment. $LOG gets a line for
# every call, $RECORD the exact arguments of `python -m raft ...`.
STAND_IN = """#!/usr/bin/env bash
case "$1 $2 $3" in
    *check_environment.py*) printf '%s' "${LACKING-nothing is here}"; [ -z "${LACKING-missing}" ]; exit ;;
    "-c "*) exit 0 ;;
    "-m venv "*)
        echo "venv ${*:3}" >>"$LOG"
        for directory in "$@"; do :; done
        [ "$3" != --clear ] || rm -rf "$directory"
        mkdir -p "$directory/bin" && touch "$directory/pyvenv.cfg" && cp "$0" "$directory/bin/python" ;;
    "-m pip install")
        echo "pip ${*:4}" >>"$LOG"
        sleep "${PIP_SECONDS:-0}"
        if [ -n "${PIP_FAILS:-}" ]; then echo "No matching distribution"; exit 1; fi ;;
    "-m raft prepare")
        echo "prepare ${*:4}" >>"$LOG"
        mkdir -p "$5" && touch "$5/raft_prepared.json" ;;
    "-m raft "*)
        printf '%s\\0' "${@:3}" >"$RECORD"
        echo "threads ${OMP_NUM_THREADS:-unset}" >>"$LOG" ;;
    "-m torch.distributed.run "*)
        echo "torchrun ${*:3}" >>"$LOG"
        echo "threads ${OMP_NUM_THREADS:-unset}" >>"$LOG" ;;
    *) echo "${*:2}" >>"$LOG"; [ "$2" != "${FAILING:-}" ] ;;
esac
"""

Run = subprocess.CompletedProcess[str]


class Repository:
    """A copy of what the scripts need of the repository, and a stand-in for Python."""

    def __init__(self, path: Path) -> None:
        self.root = path / "a repository"  # the scripts have to stand a space in their path
        self.root.mkdir()
        shutil.copytree(ROOT / "scripts", self.root / "scripts")
        for name in ("setup.py", "constraints.txt"):
            shutil.copy(ROOT / name, self.root)
        self.python = path / "stand-in" / "python"
        self.python.parent.mkdir()
        self.python.write_text(STAND_IN)
        self.python.chmod(0o755)
        self.log = path / "log"
        self.record = path / "record"
        self.venv = self.root / ".venv"
        outer = (
            "VIRTUAL_ENV",
            "CONDA_",
            "RAFT_",
            "RANK",
            "WORLD_SIZE",
            "NUM_PROCESSES",
            "OMP_",
            "DS_",
            "PIP_",
        )
        self.env = {name: value for name, value in os.environ.items() if not name.startswith(outer)}
        self.env |= {"LOG": str(self.log), "RECORD": str(self.record), "RAFT_PYTHON": str(self.python)}
        self.env["DS_ACCELERATOR"] = "cpu"

    def command(self, script: str, *arguments: str) -> list[str]:
        return ["bash", str(self.root / "scripts" / script), *arguments]

    def run(self, script: str, *arguments: str, cwd: Path | None = None, **env: str) -> Run:
        return subprocess.run(
            self.command(script, *arguments),
            capture_output=True,
            text=True,
            cwd=cwd or self.root,
            env=self.env | env,
            timeout=60,
            check=False,
        )

    def dry(self, script: str, *arguments: str, cwd: Path | None = None, **env: str) -> list[str]:
        """The command that a script would start, after `python -m`."""
        result = self.run(script, *arguments, cwd=cwd, RAFT_DRY_RUN="1", **env)
        assert result.returncode == 0, result.stderr
        words = shlex.split(result.stdout)
        assert words[:2] == ["python", "-m"]
        return words[2:]

    def done(self, word: str = "") -> list[str]:
        """What the stand-in wrote down of calls that start with ``word``, since it was last asked for all."""
        lines = self.log.read_text().splitlines() if self.log.exists() else []
        return [line for line in lines if line.startswith(word)]


@pytest.fixture
def repository(tmp_path: Path) -> Repository:
    return Repository(tmp_path)


@pytest.fixture
def ready(repository: Repository) -> Repository:
    """A repository whose interpreter has everything, as a user's active environment has."""
    repository.env["LACKING"] = ""
    return repository


# ---------------------------------------------------------------- every script


@pytest.mark.parametrize("path", [*(f"scripts/{name}" for name in SCRIPTS), ".ci/run"])
def test_syntax(path: str) -> None:
    subprocess.run(["bash", "-n", path], cwd=ROOT, check=True)
    assert path == "scripts/common.sh" or os.access(ROOT / path, os.X_OK), "not executable"


def test_every_script_is_covered_here() -> None:
    assert {*COMMANDS, "common.sh", "run_tests.sh"} == set(SCRIPTS)


@pytest.mark.parametrize(("script", "command"), COMMANDS.items())
def test_scripts_start_their_command_from_anywhere(
    repository: Repository, tmp_path: Path, script: str, command: list[str]
) -> None:
    assert repository.dry(script, "--max_steps", "3", cwd=tmp_path) == ["raft", *command, "--max_steps", "3"]
    assert repository.done() == []  # a dry run installs, prepares and runs nothing


@pytest.mark.parametrize("script", COMMANDS)
def test_headers_show_how_to_call(script: str) -> None:
    lines = (ROOT / "scripts" / script).read_text().splitlines()
    header = [line for line in lines[1:8] if line.startswith("# ")]
    assert any(f"bash scripts/{script}" in line for line in header)


def test_arguments_arrive_as_they_were(ready: Repository) -> None:
    arguments = [
        "--stop_strings",
        "###Human",
        "\n\n",
        "a b",
        "",
        "*",
        "$HOME",
        "--suffix=x\n",
        "--empty=",
        '"q"',
    ]
    result = ready.run("run_raft_align.sh", *arguments)
    assert result.returncode == 0, result.stderr
    assert ready.record.read_text().split("\0") == ["align", *arguments, ""]


def test_exit_code_is_that_of_the_command(ready: Repository) -> None:
    ready.python.write_text(STAND_IN.replace('printf \'%s\\0\' "${@:3}" >"$RECORD"', "exit 2"))
    assert ready.run("run_score.sh").returncode == 2


# ---------------------------------------------------------------- processes

TORCHRUN = ["torch.distributed.run", "--standalone", "--nproc_per_node"]


@pytest.mark.parametrize(
    ("arguments", "env", "expected"),
    [
        ([], {}, ["raft", "sft"]),
        (["--nproc", "1", "--seed", "3"], {}, ["raft", "sft", "--seed", "3"]),
        (["--nproc", "2", "--seed", "3"], {}, [*TORCHRUN, "2", "-m", "raft", "sft", "--seed", "3"]),
        (["--seed", "3", "--nproc=4"], {}, [*TORCHRUN, "4", "-m", "raft", "sft", "--seed", "3"]),
        (["--seed", "3"], {"NUM_PROCESSES": "2"}, [*TORCHRUN, "2", "-m", "raft", "sft", "--seed", "3"]),
        (["--nproc", "3"], {"NUM_PROCESSES": "2"}, [*TORCHRUN, "3", "-m", "raft", "sft"]),
        ([], {"NUM_PROCESSES": "2", "RANK": "0", "WORLD_SIZE": "2"}, ["raft", "sft"]),
        (["--nproc", "2"], {"RANK": "1", "WORLD_SIZE": "2"}, ["raft", "sft"]),
    ],
)
def test_number_of_processes(
    repository: Repository, arguments: list[str], env: dict[str, str], expected: list[str]
) -> None:
    assert repository.dry("run_finetune.sh", *arguments, **env) == expected


@pytest.mark.parametrize("number", ["0", "two", "-1", "", "1.5"])
def test_impossible_number_of_processes(ready: Repository, number: str) -> None:
    result = ready.run("run_finetune.sh", "--model_name_or_path", "m", "--nproc", number)
    assert result.returncode == 1
    assert f'found "{number}", expected a whole number from 1' in result.stderr
    assert ready.run("run_finetune.sh", "--nproc").returncode == 1


def test_processes_share_the_cores(ready: Repository) -> None:
    cores = os.sysconf("SC_NPROCESSORS_ONLN")
    ready.run("run_finetune.sh", "--nproc", "2")
    assert ready.done("threads") == [f"threads {max(1, cores // 2)}"]
    ready.run("run_finetune.sh", "--nproc", "2", OMP_NUM_THREADS="7")
    ready.run("run_finetune.sh")
    assert ready.done("threads")[1:] == ["threads 7", "threads unset"]


# ---------------------------------------------------------------- paths of the caller


def test_paths_of_the_caller(repository: Repository, tmp_path: Path) -> None:
    caller = tmp_path / "caller"
    caller.mkdir()
    (caller / "mine.jsonl").touch()
    (caller / "linear").touch()
    words = repository.dry(
        "run_finetune.sh",
        *("--dataset_path", "mine.jsonl", "--output-dir=runs/one", "--model_name_or_path", "hub/name"),
        *("--eval_dataset_path", str(caller / "mine.jsonl"), "--lr_scheduler_type", "linear"),
        *("--prompt_path", "data/prompts", "--output_path", "/elsewhere/scores.jsonl"),
        cwd=caller,
    )
    assert words[2:] == [
        *("--dataset_path", f"{caller}/mine.jsonl", f"--output-dir={caller}/runs/one"),
        *("--model_name_or_path", "hub/name", "--eval_dataset_path", f"{caller}/mine.jsonl"),
        *(
            "--lr_scheduler_type",
            "linear",
            "--prompt_path",
            "data/prompts",
            "--output_path",
            "/elsewhere/scores.jsonl",
        ),
    ]


def test_values_in_front_of_all_flags_are_paths_of_the_caller(repository: Repository, tmp_path: Path) -> None:
    caller = tmp_path / "caller"
    caller.mkdir()
    (caller / "mine.txt").touch()
    words = repository.dry("run_diversity.sh", "mine.txt", "data/theirs.txt", "--json", cwd=caller)
    assert words == ["raft", "diversity", f"{caller}/mine.txt", "data/theirs.txt", "--json"]


def test_in_the_repository_paths_stay(repository: Repository) -> None:
    arguments = ["--dataset_path", "setup.py", "--output_dir", "output_models/x"]
    assert repository.dry("run_finetune.sh", *arguments)[2:] == arguments


# ---------------------------------------------------------------- the embedded model


@pytest.mark.parametrize(
    ("script", "arguments", "prepares"),
    [
        ("run_raft_align.sh", [], True),
        ("run_raft_align.sh", ["--model_name_or_path", "mine"], True),  # the default reward model sits on it
        ("run_raft_align.sh", ["--model_name_or_path", "mine", "--reward_model_or_path", "mine"], False),
        ("run_raft_align.sh", ["--model-name-or-path=mine", "--reward-model-or-path=mine"], False),
        ("run_raft_align.sh", ["--config", "both.yaml"], False),
        ("run_raft_align.sh", ["--config", "policy.yaml"], True),
        ("run_raft_align.sh", ["--config", "policy.yaml", "reward.yaml", "--seed", "1"], False),
        ("run_raft_align.sh", ["--config=policy.yaml", "--reward_model_or_path", "mine"], False),
        ("run_raft_align.sh", ["--config", "absent.yaml"], True),
        ("run_raft_align.sh", ["--help"], False),
        ("run_finetune.sh", ["--model_name_or_path", "mine"], False),
        ("run_finetune.sh", [], True),
        ("run_score.sh", ["--reward_model_or_path", "mine"], False),
    ],
)
def test_model_is_prepared_where_it_is_needed(
    ready: Repository, script: str, arguments: list[str], prepares: bool
) -> None:
    (ready.root / "policy.yaml").write_text("model:\n  model_name_or_path: mine\n")
    (ready.root / "reward.yaml").write_text("reward_model_or_path: mine\n")
    (ready.root / "both.yaml").write_text("model_name_or_path: mine\nreward:\n  reward_model_or_path: mine\n")
    assert ready.run(script, *arguments).returncode == 0
    assert ready.done("prepare") == ([f"prepare --output_dir {MODEL}"] if prepares else [])
    ready.run(script, *arguments)
    assert len(ready.done("prepare")) == int(prepares)  # once and for all
    assert len(ready.done("threads")) == 2


# ---------------------------------------------------------------- the environment of the user


def activate(repository: Repository, name: str = "VIRTUAL_ENV") -> Path:
    """An active environment of the user's, with the stand-in as its Python."""
    del repository.env["RAFT_PYTHON"]
    prefix = repository.root.parent / "own"
    (prefix / "bin").mkdir(parents=True)
    shutil.copy(repository.python, prefix / "bin" / "python")
    repository.env[name] = str(prefix)
    # Where no environment is active, python3.11 would be found; let it be the stand-in too.
    shutil.copy(repository.python, repository.python.with_name("python3.11"))
    repository.env["PATH"] = f"{repository.python.parent}:{repository.env['PATH']}"
    return prefix


@pytest.mark.parametrize("name", ["VIRTUAL_ENV", "CONDA_PREFIX"])
def test_active_environment_is_used_as_it_is(repository: Repository, name: str) -> None:
    activate(repository, name)
    result = repository.run("run_finetune.sh", "--model_name_or_path", "m", LACKING="")
    assert result.returncode == 0, result.stderr
    assert repository.record.exists()
    assert repository.done("pip") == []
    assert not repository.venv.exists()


def test_nothing_is_installed_into_an_active_environment(repository: Repository) -> None:
    prefix = activate(repository)
    result = repository.run("run_tests.sh", LACKING="peft>=0.18\ntorch>=2.6 (found 1.13)")
    assert result.returncode == 1
    assert "           peft>=0.18\n           torch>=2.6 (found 1.13)\n" in result.stderr
    assert f"{prefix}/bin/python -m pip install" in result.stderr
    assert f"-c '{repository.root}/constraints.txt' -e '{repository.root}[dev]'" in result.stderr
    assert repository.done() == []
    assert not repository.venv.exists()


def test_base_environment_of_conda_is_nobodys_choice(repository: Repository) -> None:
    activate(repository, "CONDA_PREFIX")
    assert repository.run("run_finetune.sh", CONDA_DEFAULT_ENV="base", LACKING="x").returncode == 0
    assert repository.venv.exists()
    assert repository.run("run_finetune.sh", CONDA_DEFAULT_ENV="mine", LACKING="x").returncode == 1


def test_interpreter_that_has_everything_is_used(ready: Repository) -> None:
    assert ready.run("run_finetune.sh").returncode == 0
    assert not ready.venv.exists()


def test_interpreter_that_is_not_there(repository: Repository) -> None:
    result = repository.run("run_finetune.sh", RAFT_PYTHON="/no/python")
    assert result.returncode == 1
    assert "RAFT_PYTHON=/no/python" in result.stderr


# ---------------------------------------------------------------- the managed environment


def installs(repository: Repository) -> list[str]:
    """What was installed of this toolkit itself: one line for every set-up."""
    return [line for line in repository.done("pip") if " -e " in line]


def test_first_run_sets_up_and_the_second_starts_at_once(repository: Repository) -> None:
    first = repository.run("run_finetune.sh")
    assert first.returncode == 0, first.stderr
    torch = re.search(r"^torch==(\S+)$", (ROOT / "constraints.txt").read_text(), re.MULTILINE)
    assert torch is not None
    assert repository.done("pip") == [
        f"pip -c constraints.txt torch=={torch.group(1)}+cpu",
        f"pip -c constraints.txt -e {repository.root}",
    ]
    assert "the environment is ready" in first.stderr
    started = time.perf_counter()
    second = repository.run("run_finetune.sh")
    assert time.perf_counter() - started < 5
    assert second.stderr == ""
    assert len(installs(repository)) == 1


def test_with_an_accelerator_torch_is_the_one_of_pypi(repository: Repository) -> None:
    del repository.env["DS_ACCELERATOR"]
    shutil.copy(repository.python, repository.python.with_name("nvidia-smi"))
    path = f"{repository.python.parent}:{repository.env['PATH']}"
    assert repository.run("run_finetune.sh", PATH=path).returncode == 0
    assert repository.done("pip") == [f"pip -c constraints.txt -e {repository.root}"]


def test_changed_requirements_are_installed(repository: Repository) -> None:
    repository.run("run_finetune.sh")
    for number, name in enumerate(("constraints.txt", "setup.py"), start=2):
        with open(repository.root / name, "a") as file:
            file.write("# newer\n")
        repository.run("run_finetune.sh")
        assert len(installs(repository)) == number, name
    assert len(repository.done("venv")) == 1  # on top of what is there


def test_extras_add_up(repository: Repository) -> None:
    repository.run("run_finetune.sh")
    repository.run("run_tests.sh")
    repository.run("run_tests.sh")
    repository.run("run_finetune.sh")
    assert [line.endswith("[dev]") for line in installs(repository)] == [False, True]
    (repository.root / "setup.py").write_text("# newer\n")
    repository.run("run_finetune.sh")
    assert installs(repository)[-1].endswith("[dev]")  # what was there stays there


def test_interrupted_set_up_starts_afresh(repository: Repository) -> None:
    process = subprocess.Popen(
        repository.command("run_finetune.sh"),
        env=repository.env | {"PIP_SECONDS": "30"},
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    until(lambda: bool(repository.done("pip")))
    os.killpg(process.pid, 9)
    process.wait()
    (repository.venv / "half").touch()
    result = repository.run("run_finetune.sh")
    assert result.returncode == 0, result.stderr
    assert "interrupted" in result.stderr
    assert not (repository.venv / "half").exists()
    assert repository.run("run_finetune.sh").stderr == ""


def test_failed_pip_is_told_and_tried_again(repository: Repository) -> None:
    result = repository.run("run_finetune.sh", PIP_FAILS="1")
    assert result.returncode == 1
    assert "No matching distribution" in result.stderr
    assert "setup.log" in result.stderr
    assert "--extra-index-url" in repository.done("pip")[1]  # the CPU build of torch, from one place after the other
    assert "--extra-index-url" not in repository.done("pip")[2]
    assert not repository.record.exists()
    assert repository.run("run_finetune.sh").returncode == 0
    assert len(repository.done("venv")) == 1


def test_dead_interpreter_is_replaced(repository: Repository) -> None:
    repository.run("run_finetune.sh")
    (repository.venv / "bin" / "python").unlink()
    (repository.venv / "bin" / "python").symlink_to("/no/python")
    assert repository.run("run_finetune.sh").returncode == 0
    assert repository.done("venv")[1] == f"venv --clear {repository.venv}"


def test_directory_that_is_no_environment_is_left_alone(repository: Repository, tmp_path: Path) -> None:
    thesis = tmp_path / "thesis"
    thesis.mkdir()
    (thesis / "chapter").touch()
    result = repository.run("run_finetune.sh", RAFT_VENV=str(thesis))
    assert result.returncode == 1
    assert "is no virtual environment" in result.stderr
    assert [path.name for path in thesis.iterdir()] == ["chapter"]


@pytest.mark.skipif(shutil.which("flock") is None, reason="set-ups are serialised by flock, which is not here")
def test_two_set_ups_at_once_are_one(repository: Repository) -> None:
    both = [
        subprocess.Popen(
            repository.command("run_finetune.sh"),
            env=repository.env | {"PIP_SECONDS": "0.3"},
            stderr=subprocess.PIPE,
            text=True,
        )
        for _ in range(2)
    ]
    errors = [process.communicate(timeout=60)[1] for process in both]
    assert [process.returncode for process in both] == [0, 0], errors
    assert len(installs(repository)) == 1
    assert len(repository.done("prepare")) == 1
    assert any("waiting for another script" in text for text in errors)


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


# ---------------------------------------------------------------- the test command

PYTEST = f"pytest --numprocesses {min(4, os.sysconf('SC_NPROCESSORS_ONLN'))} --dist loadfile"


def test_run_tests_passes_arguments_to_pytest(ready: Repository) -> None:
    result = ready.run("run_tests.sh", "-k", "engine or data")
    assert result.returncode == 0, result.stderr
    ruff, *others = ready.done()[1:]
    assert ruff == "ruff check ."
    assert sorted(others) == ["mypy raft", f"{PYTEST} -k engine or data"], "side by side"
    assert re.findall(r"\[raft\] (\w+): passed in \d+ s", result.stderr) == ["ruff", "pytest", "mypy"]


@pytest.mark.parametrize("stage", ["ruff", "mypy", "pytest"])
def test_run_tests_fails_when_a_stage_does_and_runs_the_others(ready: Repository, stage: str) -> None:
    result = ready.run("run_tests.sh", FAILING=stage)
    assert result.returncode == 1
    assert f"{stage}: FAILED (exit code 1)" in result.stderr
    assert result.stderr.endswith(f"failed: {stage}\n")
    assert len(ready.done()) == 4


def test_ci_runs_the_test_command(repository: Repository, tmp_path: Path) -> None:
    shutil.copytree(ROOT / ".ci", repository.root / ".ci")
    command = ["bash", str(repository.root / ".ci" / "run")]
    env = repository.env | {"FAILING": "mypy"}
    result = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=env, check=False)
    assert result.returncode == 1
    assert sorted(repository.done()[-3:]) == ["mypy raft", PYTEST, "ruff check ."]


# ---------------------------------------------------------------- requirements and settings


@pytest.fixture
def checker() -> ModuleType:
    spec = importlib.util.spec_from_file_location("check_environment", ROOT / "scripts" / "check_environment.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_missing_requirements_are_named(checker: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    setup = tmp_path / "setup.py"
    setup.write_text(
        "REQUIREMENTS = ['pytest>=1', 'pytest<1', 'there-is-no-such-package>=2']\n"
        "EXTRAS = {'dev': ['nor-this-one'], 'other': ['unasked']}\n"
    )
    monkeypatch.setattr(checker, "SETUP", setup)
    assert checker.missing([]) == [f"pytest<1 (found {pytest.__version__})", "there-is-no-such-package>=2"]
    assert checker.missing(["dev"])[-1] == "nor-this-one"


def test_too_old_python_is_named(checker: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "version_info", (3, 9, 1))
    assert checker.missing([]) == ["python>=3.10 (found 3.9.1)"]


def test_tested_versions_are_allowed_ones(checker: ModuleType) -> None:
    from packaging.requirements import Requirement
    from packaging.utils import canonicalize_name

    lines = (ROOT / "constraints.txt").read_text().splitlines()
    tested = [Requirement(line) for line in lines if line and not line.startswith("#")]
    versions = {canonicalize_name(pin.name): next(iter(pin.specifier)).version for pin in tested}
    assert all([clause.operator for clause in pin.specifier] == ["=="] for pin in tested)
    assert len(versions) == len(tested)
    for text in checker.requirements(["dev", "language", "serve"]):
        requirement = Requirement(text)
        version = versions[canonicalize_name(requirement.name)]
        assert requirement.specifier.contains(version), f"{text}, tested with {version}"


@pytest.mark.parametrize("path", sorted((ROOT / "scripts" / "deepspeed").glob("*.json")), ids=lambda path: path.stem)
def test_zero_settings(path: Path) -> None:
    settings = json.loads(path.read_text())
    assert set(settings) == {"zero_optimization"}  # batch size, precision and clipping come from flags
    zero = settings["zero_optimization"]
    assert zero["stage"] == int(path.stem[4])
    assert ("offload_optimizer" in zero) == path.stem.endswith("_offload")
    assert ("offload_param" in zero) == (path.stem == "zero3_offload")
    config = pytest.importorskip("deepspeed.runtime.zero.config")
    assert config.DeepSpeedZeroConfig(**zero).stage == zero["stage"]
    with pytest.raises(ValueError, match="no_such_key"):
        config.DeepSpeedZeroConfig(**zero, no_such_key=1)  # so a misspelt key would have been refused above
