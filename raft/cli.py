"""The ``raft`` command: one table of subcommands, each a config class and a ``main`` that takes one.

Only the module of the command that runs is imported, so that ``raft --help`` answers at once.
"""

from __future__ import annotations

import errno
import importlib
import os
import signal
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from raft import __version__, signals
from raft.arguments import nearest, parse
from raft.errors import UserError
from raft.help_page import help_page
from raft.terminal import visible, without_passwords

ABOUT = """Align a language model by reward-ranked fine-tuning (arXiv 2304.06767).

Prompts become responses, responses get scores, the best are fine-tuned on for an epoch; again and again."""

EXAMPLES = (
    "raft align --output_dir output_models/first_run",
    "raft align --config run.yaml --num_raft_iteration 20",
    "raft align --help",
)


@dataclass(frozen=True)
class Command:
    """A subcommand. ``module`` has the config class and ``main(config) -> None``.

    ``flags`` is a module that has the config class as well and imports little, so that ``--help`` and mistakes are
    answered at once.
    """

    name: str
    module: str
    config_class_name: str
    summary: str
    flags: str | None = None

    def load(self, arguments: Sequence[str]) -> tuple[Any, list[str]]:
        """The config class for these arguments, and those that are left for it.

        A config class that takes other commands' flags (``raft plan align``) chooses the class by the first argument.
        """
        config_class = getattr(importlib.import_module(self.flags or self.module), self.config_class_name)
        if hasattr(config_class, "choose"):
            chosen: tuple[Any, list[str]] = config_class.choose(arguments)
            return chosen
        return config_class, list(arguments)


_TABLE = (
    ("sft", "raft.stages.sft", "SFTConfig", "supervised fine-tuning, full or LoRA", "raft.stages.sft_config"),
    ("reward", "raft.stages.reward_modeling", "RewardModelingConfig", "reward model from preference pairs",
     "raft.stages.reward_config"),
    ("align", "raft.stages.align", "AlignConfig", "RAFT: sample, score, keep the best, fine-tune, repeat",
     "raft.stages.align_config"),
    ("plan", "raft.tools.plan", "PlanConfig", "what a run will need, and how long it will take",
     "raft.tools.plan_config"),
    ("merge", "raft.tools.merge_lora", "MergeConfig", "merge a LoRA adapter into its base model",
     "raft.tools.merge_lora_config"),
    ("score", "raft.tools.score", "ScoreConfig", "score texts, responses or pairs with a reward model",
     "raft.tools.score_config"),
    ("evaluate-reward", "raft.tools.evaluate_reward", "EvaluateRewardConfig",
     "how far a reward can be trusted, measured on pairs", "raft.tools.evaluate_reward_config"),
    ("serve-reward", "raft.tools.serve_reward", "ServeRewardConfig", "serve reward models or functions over HTTP",
     "raft.tools.serve_reward_config"),
    ("prepare", "raft.tools.prepare_model", "PrepareConfig",
     "make the embedded model an ordinary model directory"),
    ("diversity", "raft.tools.diversity", "DiversityConfig", "how varied the responses in some files are"),
    ("drift", "raft.tools.drift", "DriftToolConfig", "what has spread in a run's responses"),
    ("chat", "raft.tools.chat", "ChatConfig", "talk to a model, or to several side by side", "raft.tools.chat_config"),
    ("compare", "raft.tools.compare", "CompareConfig", "answers of several models to the same prompts",
     "raft.tools.compare_config"),
    ("plot", "raft.tools.plot", "PlotConfig", "redraw the curves of a run"),
    ("report", "raft.tools.report", "ReportConfig", "one HTML page of one or several runs"),
)  # fmt: skip
LONGEST_MESSAGE = 4000  # characters
_DISK_ERRORS = (
    *(errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO, errno.ESTALE),
    *(errno.EACCES, errno.EPERM, errno.EISDIR, errno.ENOTDIR),
)
COMMANDS: dict[str, Command] = {row[0]: Command(*row) for row in _TABLE}


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command line (default: the process's own) and return its exit code.

    0 for success, 2 for a mistake of the user's or a disk that is full or gone (one line on stderr), 128 + n for a
    run that was stopped by signal n: 130 for Ctrl-C, 143 for SIGTERM, 141 where nobody reads the output. Any other
    exception is a bug and keeps its traceback.
    """
    try:
        code = _run(argv)
        sys.stdout.flush()
    except BrokenPipeError:  # raft align --help | head: whoever reads has enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # nothing is left to fail at the end
        return 128 + signal.SIGPIPE
    return code


def _run(argv: Sequence[str] | None) -> int:
    # Tokenizers warn, or deadlock, when a process that used them forks; it has to be set before they load.
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    arguments = list(sys.argv[1:] if argv is None else argv)
    if arguments and arguments[0].startswith("--local_rank="):
        arguments.pop(0)  # the deepspeed launcher puts it in front of everything; the environment has it too
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print(_overview())
        return 0
    if arguments[0] == "--version":
        print(f"raft {__version__}")
        return 0
    prog = "raft"
    try:
        command = _find(arguments[0])
        prog = f"raft {command.name}"
        arguments = planned(arguments)
        command = COMMANDS[arguments[0]]
        config_class, rest = command.load(arguments[1:])
        config = parse(config_class, rest, prog=prog)
        importlib.import_module(command.module).main(config)
    except UserError as error:
        _tell(f"{prog}: error: {error}")
        return 2
    except signals.Stopped as stop:
        _tell(f"{prog}: {stop}; the same command with --resume continues")
        return stop.code
    except OSError as error:
        if error.errno not in _DISK_ERRORS:
            raise
        where = f" ({error.filename})" if error.filename else ""
        _tell(f"{prog}: error: {error.strerror}{where}. A run continues with --resume once that is mended", rank=None)
        return 2
    except KeyboardInterrupt:
        _tell(f"{prog}: interrupted")
        return 130
    finally:
        signals.forget()
    return 0


def planned(arguments: list[str]) -> list[str]:
    """``raft align --dry_run ...`` as ``raft plan align ...``."""
    rest = [one for one in arguments if one not in ("--dry_run", "--dry-run")]
    is_stage = COMMANDS[arguments[0]].module.startswith("raft.stages.")
    return ["plan", *rest] if is_stage and len(rest) < len(arguments) else arguments


def _find(name: str) -> Command:
    if name not in COMMANDS:
        hint = nearest(name, COMMANDS)
        known = ", ".join(COMMANDS) + ("." if hint else "")
        raise UserError(f'unknown command "{name}", expected one of {known}{hint}')
    return COMMANDS[name]


def _tell(message: str, rank: str | None = "0") -> None:
    """One line on stderr, from one rank: all ranks make the same mistake at the same time. None is each of them."""
    if rank in (None, os.environ.get("RANK", "0")):
        # Messages quote files, servers and models.
        print(visible(without_passwords(" ".join(message.splitlines())))[:LONGEST_MESSAGE], file=sys.stderr)


def _overview() -> str:
    commands = [(command.name, command.summary) for command in COMMANDS.values()]
    others = [
        ("raft COMMAND --help", "all flags of a command, with their defaults"),
        ("raft --version", "the version"),
    ]
    sections = [("Commands", commands), ("More", others)]
    return help_page(ABOUT, "raft COMMAND [--flag value ...]", EXAMPLES, sections)


if __name__ == "__main__":
    sys.exit(main())
