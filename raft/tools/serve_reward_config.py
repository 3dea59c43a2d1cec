"""The flags of ``raft serve-reward``."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

from raft.arguments import argument
from raft.config import require
from raft.rewards.config import RemoteCodeConfig, RewardConfig
from raft.rewards.spec import TOKEN_VARIABLE


@dataclass
class ServeOptions:
    """Server"""

    host: str = argument(
        "127.0.0.1", f"Address to listen at; one that other machines reach needs {TOKEN_VARIABLE} in the environment."
    )
    port: int = argument(8000, "Port to listen at; 0 takes a free one.")
    max_request_mb: float = argument(16.0, "Largest request, in megabytes.")

    def __post_init__(self) -> None:
        require(0 <= self.port < 65536, f"--port: found {self.port}, allowed is 0 to 65535.")
        require(self.max_request_mb > 0, f"--max_request_mb: found {self.max_request_mb}, allowed is above 0.")


@dataclass
class ServeRewardConfig:
    """Serve reward models, functions or rules over HTTP."""

    server: ServeOptions = field(default_factory=ServeOptions)
    reward: RewardConfig = field(default_factory=RewardConfig)
    code: RemoteCodeConfig = field(default_factory=RemoteCodeConfig)

    examples: ClassVar[tuple[str, ...]] = (
        "raft serve-reward --reward data/reward_model",
        "raft serve-reward --reward my_rewards:correct --port 8001",
    )
