"""The flags of ``raft plan``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, make_dataclass
from typing import Any, ClassVar

from raft.arguments import argument, nearest
from raft.config import require
from raft.errors import UserError
from raft.stages.align_config import AlignConfig
from raft.stages.reward_config import RewardModelingConfig
from raft.stages.sft_config import SFTConfig

STAGES = {"sft": SFTConfig, "reward": RewardModelingConfig, "align": AlignConfig}


@dataclass
class PlanOptions:
    """Plan"""

    probe: bool = argument(
        True, "Time each kind of work for some seconds, with random weights, to say how long the run will take."
    )
    probe_seconds: float = argument(20.0, "Seconds for that, beside the making of a model.")
    num_processes: int | None = argument(
        None, "Processes that the run will have; none is those of the launcher, or one."
    )
    device_memory: float | None = argument(
        None, "GiB that a process has, in place of what is found here, to plan for another machine.", metavar="GIB"
    )
    model_shape: list[str] = argument(
        [],
        "A Llama by numbers in place of --model_name_or_path, which need not exist: hidden_size=2048 "
        "num_hidden_layers=22 intermediate_size=5632 num_attention_heads=32 num_key_value_heads=4 vocab_size=32000.",
        metavar="NAME=VALUE",
    )
    json: bool = argument(False, "Print one JSON object, in bytes and seconds.")

    def __post_init__(self) -> None:
        processes, memory = self.num_processes, self.device_memory
        require(
            processes is None or processes >= 1, f"--num_processes: found {processes}, allowed are integers from 1."
        )
        require(memory is None or memory > 0, f"--device_memory: found {memory}, allowed is above 0.")
        require(self.probe_seconds > 0, f"--probe_seconds: found {self.probe_seconds}, allowed is above 0.")


@dataclass
class PlanConfig:
    """What a run will need and how long it will take, before anything is started.

    It takes the flags of the stage: raft plan align, raft plan sft, raft plan reward. raft align --dry_run is the same.
    """

    plan: PlanOptions = field(default_factory=PlanOptions)

    examples: ClassVar[tuple[str, ...]] = (
        "raft plan align --num_raft_iteration 20",
        "raft plan sft --dataset_path conversations.jsonl --use_lora --no_probe",
        "raft plan align --num_processes 8 --device_memory 80 --deepspeed scripts/deepspeed/zero2.json",
    )

    @staticmethod
    def choose(arguments: Sequence[str]) -> tuple[Any, list[str]]:
        """The config class of the stage that is named, with these options, and the arguments behind its name.

        Raises:
            UserError: if none is named, or another.
        """
        if "--help" in arguments[:1] or "-h" in arguments[:1]:
            return PlanConfig, list(arguments)
        name = arguments[0] if arguments else ""
        if name not in STAGES:
            hint = nearest(name, STAGES)
            raise UserError(f'found "{name}", expected the stage to plan first: {", ".join(STAGES)}.{hint}')
        return with_options(STAGES[name]), list(arguments[1:])


def with_options(config_class: Any) -> Any:
    """A stage's config class, with the options of this command beside its flags."""
    options = [("plan", PlanOptions, field(default_factory=PlanOptions))]
    made: Any = make_dataclass(f"Plan{config_class.__name__}", options, bases=(config_class,))
    made.__doc__ = f"Plan before running. {config_class.__doc__}"
    made.also, made.examples = (), ()
    return made
