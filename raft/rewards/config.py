"""The flags of every command that scores."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from raft.arguments import argument
from raft.config import require
from raft.precision import Dtype
from raft.rewards.spec import Spec, parse_specs

DEFAULT_MODEL = "data/reward_model"
TEXTS_AT_ONCE, TEXTS_AT_ONCE_ON_GPU = 32, 256


@dataclass
class RewardConfig:
    """Reward"""

    reward_model_or_path: str = argument(
        DEFAULT_MODEL,
        "Reward model: a sequence classifier (directory or hub name) or a LoRA adapter with score head (directory).",
        aliases=("reward_model_name_or_path",),
    )
    reward: list[str] = argument(
        [],
        "Sources of reward, in place of reward_model_or_path; repeat it for several, whose weighted sum ranks. "
        "[NAME=]PATH[,label=positive][,template=pair][,function_to_apply=softmax][,base=MODEL][,contract=FILE] is a "
        "classifier or adapter, package.module:function a Python function, http://host:port a remote scorer, "
        "rule:NAME[,option=value] a ready rule (docs/rewards.md).",
        metavar="SPEC",
        commas=False,
    )
    reward_weights: list[float] = argument([], "A weight for each --reward, in their order; none is 1 each.")
    reward_normalization: list[Literal["none", "batch", "contract"]] = argument(
        ["none"],
        "What scores are put through before they are weighted, once for all sources or once for each. batch: subtract "
        "the mean and divide by the deviation of the scores of this iteration. contract: the mean and deviation that "
        "the reward model recorded on its evaluation set.",
    )
    reward_base_model: str | None = argument(
        None, "Base model of a LoRA reward adapter; none is the one that the adapter names."
    )
    reward_batch_size: int | None = argument(
        None,
        "Texts that a rank scores at once, and that a function or server is given. Default: 32, and 256 for a reward "
        "model on a GPU.",
    )
    reward_dtype: Dtype = argument(
        "auto",
        "Compute precision of the reward model's body; auto is the policy's in raft align, elsewhere bf16 where the "
        "hardware multiplies it, else fp32. Its head is fp32.",
    )
    reward_self_test: bool = argument(
        True, "Test the reward model when it is loaded: a second or so, and one sentence if its scores are not sound."
    )
    reward_contract: str | None = argument(
        None, "Read the reward model by this reward_model.json instead of the one beside it.", metavar="FILE"
    )
    reward_timeout: float = argument(60.0, "Seconds that a remote scorer has to answer a request.")
    reward_retries: int = argument(3, "Further tries, after growing pauses, where a remote scorer does not answer.")
    reward_requests: int = argument(4, "Requests to a remote scorer at a time, from each rank.")

    def __post_init__(self) -> None:
        for name in ("reward_batch_size", "reward_requests"):
            value = getattr(self, name)
            require(value is None or value >= 1, f"--{name}: found {value}, allowed are integers from 1.")
        require(self.reward_timeout > 0, f"--reward_timeout: found {self.reward_timeout}, allowed is above 0.")
        require(self.reward_retries >= 0, f"--reward_retries: found {self.reward_retries}, allowed is 0 or more.")
        require(
            not self.reward or self.reward_model_or_path == DEFAULT_MODEL,
            f"--reward lists every source; give --reward {self.reward_model_or_path} in place of "
            "--reward_model_or_path.",
        )
        count = len(self.specs())
        weights, normalizations = len(self.reward_weights), len(self.reward_normalization)
        require(weights in (0, count), f"--reward_weights: found {weights} for {count} sources of reward.")
        require(
            normalizations in (0, 1, count),
            f"--reward_normalization: found {normalizations} for {count} sources of reward, expected one or {count}.",
        )

    def specs(self) -> list[Spec]:
        """The sources, in order; ``--reward_model_or_path`` alone is one by the name ``reward_model``."""
        if self.reward:
            return parse_specs(self.reward)
        path = self.reward_model_or_path
        return [Spec("reward_model", "model", path, flag="--reward_model_or_path")]

    def texts_at_once(self, *, on_gpu: bool) -> int:
        """Texts that a reward model scores at once; a GPU is not filled by as few as a CPU, a function or a server."""
        return self.reward_batch_size or (TEXTS_AT_ONCE_ON_GPU if on_gpu else TEXTS_AT_ONCE)

    def weights(self) -> list[float]:
        """The weight of each source."""
        return self.reward_weights or [1.0] * len(self.specs())

    def normalizations(self) -> list[Literal["none", "batch", "contract"]]:
        """The normalisation of each source."""
        given = self.reward_normalization or ["none"]
        return given if len(given) > 1 else given * len(self.specs())


@dataclass
class RemoteCodeConfig:
    """Code that comes with models"""

    trust_remote_code: bool = argument(False, "Run Python code that comes with the model. Read that code first.")
