"""Kill runs at random instants, let them resume, and compare what they leave with runs that nobody disturbed.

Every run of a tiny model (CPU, one or two processes, ZeRO 0/2/3, full and LoRA; all three stages) is killed several
times: SIGKILL to all its processes at once, at a random instant of a random phase. Besides, it is asked to stop once
(SIGTERM to all, which has to end it with code 143 within a minute), and one of two processes is killed alone (the
other has to end within a minute). Then it is left to end. Each file has to be that of the undisturbed run, weights
and optimizer state to the last bit.

    python benchmarks/kill_test.py            # 60 kills; writes results/kill_test.json
    python benchmarks/kill_test.py --quick    # 6 kills
"""

from __future__ import annotations

import importlib
import json
import os
import platform
import random
import select
import shutil
import signal
import socket
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))
os.environ.update(CUDA_VISIBLE_DEVICES="", DS_ACCELERATOR="cpu", OMP_NUM_THREADS="1", TOKENIZERS_PARALLELISM="false")

from benchmarks.phases import announce_phases  # noqa: E402
from benchmarks.same_run import differences  # noqa: E402
from raft.arguments import argument, parse  # noqa: E402

TIMEOUT = 600.0  # seconds in which a run has to end; else it hangs
DYING = 60.0  # seconds in which a run has to end that was asked to stop, or that lost a process
STARTING = "starting"
KILL, STOP, LOSE_ONE = HOW = ("killed", "stopped", "lost_a_process")


@dataclass
class Settings:
    """Kill test"""

    quick: bool = argument(False, "Two runs and 6 kills, for the tests.")
    kills: int = argument(60, "Kills in all, at least one a run.")
    seed: int = argument(0, "Seed of the instants.")
    output: str = argument("benchmarks/results/kill_test.json", "Where the result is written.")


@dataclass
class KillTestConfig:
    """Kill runs at random instants, resume them, compare."""

    settings: Settings = field(default_factory=Settings)


@dataclass(frozen=True)
class Case:
    """A command with its flags, and how many processes run it."""

    name: str
    command: str
    flags: tuple[str, ...]
    num_processes: int


def main() -> int:
    """Run all cases, print a line for each, write the result; 0 if nothing differs."""
    settings = parse(KillTestConfig, sys.argv[1:], prog="kill_test.py").settings
    began, draw = time.monotonic(), random.Random(settings.seed)
    directory = Path(tempfile.mkdtemp(prefix="kill-test-"))
    cases = make_cases(directory, settings.quick)
    preload(quick=settings.quick)
    kills = 6 if settings.quick else settings.kills
    shares = [kills // len(cases) + (i < kills % len(cases)) for i in range(len(cases))]
    results = []
    for case, share in zip(cases, shares, strict=True):
        results.append(disturb(case, directory / case.name, share, draw))
        print(summary_line(results[-1]), flush=True)
    if not any(one["differences"] for one in results):
        shutil.rmtree(directory)
    result = {
        **{how: sum(len(one[how]) for one in results) for how in HOW},
        "killed_by_phase": dict(Counter(phase for one in results for phase in one[KILL])),
        "runs_that_differ": [one["name"] for one in results if one["differences"]],
        "runs": results,
        "minutes": round((time.monotonic() - began) / 60, 1),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}",
        "seed": settings.seed,
    }
    Path(settings.output).parent.mkdir(parents=True, exist_ok=True)
    Path(settings.output).write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    print(f"{result[KILL]} kills: {result['killed_by_phase']}; differing: {result['runs_that_differ'] or 'none'}")
    return 1 if result["runs_that_differ"] else 0


def summary_line(result: dict[str, Any]) -> str:
    """One case on the screen."""
    verdict = "DIFFERS: " + ", ".join(result["differences"][:5]) if result["differences"] else "the same"
    died_in = "; ".join(f"{how} in {', '.join(result[how])}" for how in HOW if result[how])
    return f"{result['name']}: {died_in}; {verdict}"


# ---------------------------------------------------------------- cases


def make_cases(directory: Path, quick: bool) -> list[Case]:
    """Models and data of the tests, and the runs with them."""
    from tests.conftest import SENTENCES, build_model

    build_model(directory / "model")
    build_model(directory / "reward", classifier=True, seed=1)
    words = SENTENCES[1].split() + SENTENCES[3].split()
    prompts = [{"prompt_id": f"p{i}", "prompt": " ".join(words[i : i + 2 + i % 3])} for i in range(11)]
    pairs = [{"prompt": " ".join(words[i : i + 3]), "chosen": words[i], "rejected": words[-i]} for i in range(1, 11)]
    chats = [{"messages": [{"role": "user", "content": words[i]}, {"role": "assistant", "content": words[-i]}]}
             for i in range(1, 11)]  # fmt: skip
    for name, rows in {"prompts": prompts, "pairs": pairs * 2, "chats": chats * 2}.items():
        (directory / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    zero = {0: (), **{n: ("--deepspeed", str(ROOT / f"scripts/deepspeed/zero{n}.json")) for n in (2, 3)}}
    kinds = {"full": ("--no_use_lora",), "lora": ("--use_lora", "--lora_dropout", "0.1")}
    common = ("--model_name_or_path", str(directory / "model"), "--dtype", "fp32", "--learning_rate", "3e-3")
    common += ("--per_device_train_batch_size", "2", "--lr_scheduler_type", "cosine", "--save_steps", "2")
    align = (
        *common, "--dataset_path", str(directory / "prompts.jsonl"), "--eval_dataset_path", "none",
        "--validation_split_percentage", "25", "--reward_model_or_path", str(directory / "reward"),
        "--reward_dtype", "fp32", "--reward_batch_size", "4", "--inference_batch_size_per_device", "4",
        "--num_raft_iteration", "2" if quick else "3", "--raft_batch_size", "6", "--num_samples_per_prompt", "3",
        "--output_max_length", "12", "--eval_every_n_iterations", "2", "--kl_coefficient", "0.05",
        "--num_train_epochs", "1",
    )  # fmt: skip
    train = ("--validation_split_percentage", "20", "--eval_steps", "3", "--num_train_epochs", "2")
    data = {"align": align, "sft": (*common, *train, "--dataset_path", str(directory / "chats.jsonl")),
            "reward": (*common, *train, "--dataset_path", str(directory / "pairs.jsonl"))}  # fmt: skip

    def case(command: str, kind: str, stage: int, num_processes: int) -> Case:
        name = f"{command}-{kind}-zero{stage}-{num_processes}p"
        return Case(name, command, (*data[command], *kinds[kind], *zero[stage]), num_processes)

    if quick:
        return [case("align", "lora", 0, 1), case("align", "full", 2, 2)]
    cases = [case("align", kind, stage, n) for stage in (0, 2, 3) for kind in kinds for n in (1, 2)]
    return cases + [case(command, kind, 2, n) for command in ("sft", "reward") for kind, n in
                    (("full", 1), ("lora", 2))]  # fmt: skip


# ---------------------------------------------------------------- one case


def disturb(case: Case, directory: Path, num_kills: int, draw: random.Random) -> dict[str, Any]:
    """Run a case in peace; again with kills; compare. Where a run ends before its kills are done, another follows."""
    undisturbed = Run(case, directory / "undisturbed" / "run")
    durations = undisturbed.to_the_end()
    planned = [KILL] * num_kills + [STOP] + [LOSE_ONE] * (case.num_processes > 1)
    draw.shuffle(planned)
    runs: list[Run] = [Run(case, directory / "killed-0" / "run")]
    kills: list[tuple[str, str]] = []
    while len(kills) < len(planned):
        if len(runs) > 5 * len(planned):
            raise RuntimeError(f"{case.name}: runs end before they are killed")
        phase = draw.choice(sorted(durations))
        # An instant at random in one and a half times the phase's longest duration.
        how = planned[len(kills)]
        died_in = runs[-1].disturb(how, phase, draw.randint(1, 2), draw.uniform(0, 1.5 * durations[phase]))
        if died_in:
            kills.append((how, died_in))
        else:
            runs.append(Run(case, directory / f"killed-{len(runs)}" / "run"))
    runs[-1].to_the_end()
    found = {str(run.directory): differences(undisturbed.directory, run.directory) for run in runs}
    differing = [f"{run}/{name}" for run, names in found.items() for name in names]
    died_in: dict[str, list[str]] = {how: [phase for one, phase in kills if one == how] for how in HOW}
    return {"name": case.name, **died_in, "differences": differing}


class Run:
    """A run directory and the processes that work on it, forked from this one, where everything is imported."""

    def __init__(self, case: Case, directory: Path) -> None:
        self.case, self.directory = case, directory
        directory.parent.mkdir(parents=True)

    def to_the_end(self) -> dict[str, float]:
        """Start the run, or resume it; gives the longest duration of every phase in seconds."""
        begins, _ = self._watch(lambda phase: None)
        durations: dict[str, float] = {}
        for (phase, begin), (_, end) in zip(begins, [*begins[1:], ("", time.monotonic())], strict=True):
            durations[phase] = max(durations.get(phase, 0.0), end - begin)
        return {phase: duration for phase, duration in durations.items() if phase != STARTING}

    def disturb(self, how: str, phase: str, turn: int, delay: float) -> str | None:
        """Start or resume, and disturb ``delay`` seconds after ``phase`` has begun for the ``turn``-th time.

        Returns:
            The phase the run died in; None if it came to its end before.
        """
        seen = Counter[str]()

        def instant(name: str) -> float | None:
            seen[name] += 1
            return delay if name == phase and seen[name] == turn else None

        begins, killed = self._watch(instant, how)
        return begins[-1][0] if killed else None

    def _watch(self, instant: Callable[[str], float | None], how: str = KILL) -> tuple[list[tuple[str, float]], bool]:
        """The phases with the time each began, and whether the run was ended: at ``instant(phase)`` seconds after."""
        reading, writing = os.pipe()
        group = self._fork(writing)
        os.close(writing)
        begins, pending = [(STARTING, time.monotonic())], b""
        deadline, kill_at = time.monotonic() + TIMEOUT, float("inf")
        while select.select([reading], [], [], max(0.0, min(deadline, kill_at) - time.monotonic()))[0]:
            received = os.read(reading, 4096)
            if not received:  # all ranks have ended
                break
            *names, pending = (pending + received).split(b"\n")
            for name in map(bytes.decode, names):
                begins.append((name, time.monotonic()))
                after = instant(name)
                kill_at = kill_at if after is None else min(kill_at, begins[-1][1] + after)
        else:
            if kill_at == float("inf"):
                self._fail(group, f"hangs in {begins[-1][0]}")
            phase = begins[-1][0]
            codes = self._end(group, reading, how)
            os.close(reading)
            # Not ended by the signal, where it had come to its end in that very moment.
            return [*begins, (phase, time.monotonic())], any(codes)
        os.close(reading)
        codes = [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in group]
        if any(codes):
            raise RuntimeError(f"{self.case.name} ended with {codes}: {self.log()}")
        return begins, False

    def _end(self, group: list[int], reading: int, how: str) -> list[int]:
        """Disturb the processes, see that they end as they should, and give their exit codes."""
        if how == LOSE_ONE:
            os.kill(group[-1], signal.SIGKILL)
        else:
            os.killpg(group[0], signal.SIGKILL if how == KILL else signal.SIGTERM)
        deadline = time.monotonic() + DYING
        while select.select([reading], [], [], max(0.0, deadline - time.monotonic()))[0]:
            if not os.read(reading, 4096):
                break
        else:
            self._fail(group, f"does not end: {how}")
        codes = [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in group]
        allowed = {KILL: {-9, 0}, STOP: {143, -15, 0}, LOSE_ONE: set(range(-64, 256))}[how]
        if not set(codes) <= allowed or (how == STOP and len(set(codes)) > 1):
            raise RuntimeError(f"{self.case.name}, {how}, ended with {codes}: {self.log()}")
        return codes

    def _fail(self, group: list[int], what: str) -> None:
        os.killpg(group[0], signal.SIGKILL)
        raise TimeoutError(f"{self.case.name} {what}: {self.log()}")

    def log(self) -> str:
        """The end of what the processes said."""
        return (self.directory.parent / "log").read_text(errors="replace")[-3000:]

    def _fork(self, writing: int) -> list[int]:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        group: list[int] = []
        for rank in range(self.case.num_processes):
            pid = os.fork()
            if pid == 0:
                os.setpgid(0, group[0] if group else 0)
                self._become_rank(rank, port, writing)
            os.setpgid(pid, group[0] if group else pid)
            group.append(pid)
        return group

    def _become_rank(self, rank: int, port: int, writing: int) -> None:
        code = 70
        try:
            log = os.open(self.directory.parent / "log", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
            os.dup2(log, 1)
            os.dup2(log, 2)
            os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(self.case.num_processes))
            os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
            if rank == 0:
                announce_phases(lambda phase: os.write(writing, f"{phase}\n".encode()))
            from tqdm import tqdm

            from raft import cli, distributed

            tqdm.set_lock(threading.RLock())  # its own is shared with the parent: whoever dies holding it blocks all
            flags = [*self.case.flags, "--output_dir", str(self.directory), "--resume", "auto"]
            code = cli.main([self.case.command, *flags])
            distributed.shutdown()
        except BaseException:
            import traceback

            traceback.print_exc()
        finally:
            sys.stderr.flush()
            os._exit(code)


def preload(*, quick: bool) -> None:
    """Import what the runs need, once, before they are forked. Nothing here starts a thread."""
    import torch

    torch.set_num_threads(1)
    for module in ("deepspeed", "peft", "raft.stages.align", "raft.stages.sft", "raft.stages.reward_modeling"):
        importlib.import_module(module)
    curves, page = (importlib.import_module(f"raft.reports.{name}") for name in ("curves", "page.page"))
    if quick:  # drawing takes longer than all else together
        for module, name in ((curves, "draw_align_curves"), (curves, "draw_training_curves"), (page, "write_page")):
            setattr(module, name, lambda directory: None)


if __name__ == "__main__":
    sys.exit(main())
