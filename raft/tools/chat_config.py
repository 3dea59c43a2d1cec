"""The flags of ``raft chat``."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

from raft.arguments import argument
from raft.rollout.answering_config import AnswerConfig, LoadingConfig


@dataclass
class ChatModels:
    """Models"""

    model_name_or_path: str = argument(
        "output_models/SmolLM2-135M-Instruct",
        "Whom to talk to: directory or hub name of a model, a LoRA adapter, or a run directory (its final/).",
        metavar="MODEL",
        positional=True,
    )
    adapter: str | None = argument(None, "LoRA adapter to put on that model.", metavar="DIRECTORY")
    compare: list[str] = argument([], "Further models, adapters or runs, that get the same messages.", metavar="MODEL")
    json: bool = argument(False, "Print one JSON object a message: the message and every model's answer.")


@dataclass
class ChatConfig:
    """Talk to a model, or to several side by side."""

    models: ChatModels = field(default_factory=ChatModels)
    answers: AnswerConfig = field(default_factory=AnswerConfig)
    loading: LoadingConfig = field(default_factory=LoadingConfig)

    examples: ClassVar[tuple[str, ...]] = (
        "raft chat output_models/first_run",
        "raft chat output_models/SmolLM2-135M-Instruct --compare output_models/first_run --temperature 0.5",
        'raft chat my-model --adapter my-adapter --system "Answer in one sentence."',
    )
