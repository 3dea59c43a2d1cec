"""Flags -> the sources of reward that they name."""

from __future__ import annotations

from pathlib import Path

from raft import distributed
from raft.errors import UserError
from raft.inputs import digest, digest_of_code, digest_of_file
from raft.models.loading import fingerprint, refuse_nowhere
from raft.models.lora import ADAPTER_WEIGHTS
from raft.models.shared_base import SharedBase
from raft.rewards.config import RewardConfig
from raft.rewards.function import FunctionSource, file_of, load_function
from raft.rewards.ready_rules import RuleSource, load_rule
from raft.rewards.remote import RemoteSettings, RemoteSource
from raft.rewards.reward_model import RewardModel, load_reward_model
from raft.rewards.rewards import NamedSource, Rewards, Scale
from raft.rewards.source import RewardSource
from raft.rewards.spec import Spec, meant_by

TELLING = ("examples", "accuracy", "num_pairs", "score_mean", "score_std", "base_model")
"""What a contract tells of its model and no score depends on; mean and deviation but for normalising by them."""


def load_rewards(
    config: RewardConfig, *, trust_remote_code: bool = False, shared: SharedBase | None = None
) -> Rewards:
    """Load every source that the flags name.

    Args:
        shared: base model in memory, on which fitting LoRA reward models are read.

    Raises:
        UserError: if one can not be loaded or reached.
    """
    refuse_absent(config)
    sources = []
    for spec, weight, normalization in zip(config.specs(), config.weights(), config.normalizations(), strict=True):
        source = load_source(spec, config, trust_remote_code=trust_remote_code, shared=shared)
        scale = contract_scale(source, spec) if normalization == "contract" else None
        identity = identify(source, spec, scale)
        sources.append(NamedSource(spec.name, source, weight, normalization, scale, spec.flag, identity))
    return Rewards(sources)


def refuse_absent(config: RewardConfig) -> None:
    """Raise UserError for a source that is not there: at once, and not when the policy has been loaded."""
    for spec in config.specs():
        if spec.kind == "rule":
            load_rule(spec.target, spec.options, spec.flag)
        elif spec.kind == "function" and (file := spec.target.rpartition(":")[0]).endswith(".py"):
            if not Path(file).is_file():
                raise UserError(f"{spec.flag}: there is no file {file}.")
        elif spec.kind == "model":
            if not Path(spec.target).exists() and (meant := meant_by(spec.target)):
                raise UserError(f"{spec.flag}: there is no directory {spec.target}; {meant}.")
            refuse_nowhere(spec.target, spec.flag)


def load_source(
    spec: Spec, config: RewardConfig, *, trust_remote_code: bool = False, shared: SharedBase | None = None
) -> RewardSource:
    """Load one source."""
    if spec.kind == "rule":
        return RuleSource(load_rule(spec.target, spec.options, spec.flag))
    if spec.kind == "function":
        function = load_function(spec.target, spec.flag)
        return FunctionSource(function, flag=spec.flag, batch_size=config.texts_at_once(on_gpu=False))
    if spec.kind == "remote":
        settings = RemoteSettings(
            timeout=config.reward_timeout,
            retries=config.reward_retries,
            batch_size=config.texts_at_once(on_gpu=False),
            requests=config.reward_requests,
        )
        remote = RemoteSource(spec.target, settings, flag=spec.flag)
        remote.check_health()
        return remote
    return load_model(spec, config, trust_remote_code=trust_remote_code, shared=shared)


def identify(source: RewardSource, spec: Spec, scale: Scale | None = None) -> str | None:
    """Digest of what a source scores with, the same wherever it is read; None where nobody can tell.

    Of a function, it is that of its file alone, and not of what the file imports.
    """
    if isinstance(source, RemoteSource):
        return source.identity
    if isinstance(source, RewardModel):
        contract = {key: value for key, value in vars(source.contract).items() if key not in TELLING}
        file = Path(spec.target) / ADAPTER_WEIGHTS  # the same whether its base is shared or not
        read = digest_of_file(file) if file.is_file() else fingerprint(source.model, whole=True)
        return digest([contract, read, scale])
    if spec.kind == "function":
        return digest_of_code(file_of(spec.target))
    return digest([spec.target, spec.options])


def load_model(
    spec: Spec, config: RewardConfig, *, trust_remote_code: bool = False, shared: SharedBase | None = None
) -> RewardModel:
    """A reward model, by the options of its own SPEC and those of the flags for what they leave open."""
    try:
        return load_reward_model(
            spec.target,
            base=spec.options.get("base", config.reward_base_model),
            dtype=config.reward_dtype,
            batch_size=config.texts_at_once(on_gpu=distributed.device().type == "cuda"),
            trust_remote_code=trust_remote_code,
            label=spec.options.get("label"),
            said={key: value for key, value in spec.options.items() if key in ("template", "function_to_apply")},
            contract_file=spec.options.get("contract", config.reward_contract),
            test=config.reward_self_test,
            shared=shared,
            flag=spec.flag,
        )
    except UserError as error:
        if spec.flag in str(error):
            raise
        shown = f"{spec.target}: " if " " in spec.flag else ""
        raise UserError(f"{spec.flag}: {str(error).removeprefix(shown)}") from error


def contract_scale(source: RewardSource, spec: Spec) -> Scale:
    """Mean and deviation of a reward model's scores on its evaluation set, by its contract.

    Raises:
        UserError: if there is none.
    """
    contract = source.contract if isinstance(source, RewardModel) else None
    if contract is None or contract.score_mean is None or not contract.score_std:
        raise UserError(
            f"--reward_normalization contract: {spec.name} ({spec.target}) has no score mean and deviation in a "
            "reward_model.json; use batch or none."
        )
    return contract.score_mean, contract.score_std
