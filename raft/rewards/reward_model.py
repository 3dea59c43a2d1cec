"""A reward model for scoring: a sequence classifier or a LoRA adapter, read as its contract says."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from tqdm.auto import tqdm
from transformers import AutoModelForSequenceClassification

from raft import distributed
from raft.config import ModelConfig
from raft.data.batching import pad_right
from raft.data.encoding import encode_scored
from raft.data.templates import ConversationTemplate
from raft.errors import UserError
from raft.models.loading import DTYPES, Tokenizer, cast, is_adapter, load_classifier, load_config, load_tokenizer
from raft.models.lora import adapter_base, load_merged, refuse_headless_adapter
from raft.models.scoring import ScoringModel, use_float32_head
from raft.precision import Dtype, resolve_dtype
from raft.rewards.contract import RewardContract
from raft.rewards.source import Candidate


class RewardModel:
    """Scores responses in batches of similar length.

    Args:
        model: the classifier in eval mode.
        tokenizer: its tokenizer, which need not be the policy's: candidates come as messages.
        contract: how texts become scores.
        batch_size: texts scored at once.
    """

    def __init__(self, model: ScoringModel, tokenizer: Tokenizer, contract: RewardContract, batch_size: int) -> None:
        self.model, self.tokenizer, self.contract, self.batch_size = model, tokenizer, contract, batch_size
        self.template = ConversationTemplate(tokenizer, contract.template)  # type: ignore[arg-type]

    @torch.no_grad()
    def score(self, candidates: Sequence[Candidate], *, name: str, progress: str | None = "scoring") -> list[float]:
        """Score candidates on all ranks together: see :class:`raft.rewards.source.RewardSource`."""
        encoded = [
            encode_scored(self.template, candidate.messages, candidate.response, self.contract.max_length)
            for candidate in candidates
        ]
        order = sorted(range(len(encoded)), key=lambda i: (-len(encoded[i]), i))
        batches = [order[at : at + self.batch_size] for at in range(0, len(order), self.batch_size)]
        device = next(self.model.parameters()).device
        found: dict[int, float] = {}
        hidden = progress is None or not distributed.is_main()
        with tqdm(total=len(encoded), desc=progress, unit="text", leave=False, disable=hidden) as bar:
            for number in distributed.take_chunks(name, len(batches)):
                batch = batches[number]
                input_ids, mask = pad_right([encoded[i] for i in batch], self.tokenizer.pad_token_id)
                scores = self.model(input_ids=input_ids.to(device), attention_mask=mask.to(device))
                found.update(zip(batch, scores.tolist(), strict=True))
                bar.update(len(batch))
        gathered = {i: score for part in distributed.all_gather(found) for i, score in part.items()}
        return [gathered[i] for i in range(len(encoded))]


def load_reward_model(
    path: str, *, base: str | None, dtype: Dtype, batch_size: int, trust_remote_code: bool = False
) -> RewardModel:
    """Load a reward model onto this rank's device.

    Args:
        path: directory or hub name of a sequence classifier, or directory of a LoRA adapter.
        base: model below an adapter; None takes the one the adapter names.
        dtype: compute precision; the head computes in fp32 either way.

    Raises:
        UserError: if it can not be loaded, is no reward model, or its base or head is missing.
    """
    flag = "--reward_model_or_path"
    contract = RewardContract.load(path) or RewardContract()
    config = ModelConfig(model_name_or_path=path, trust_remote_code=trust_remote_code)
    if is_adapter(path):
        refuse_headless_adapter(path, flag=flag)
        base = adapter_base(path, base=base)
        has_tokenizer = (Path(path) / "tokenizer_config.json").is_file()
        tokenizer = load_tokenizer(ModelConfig(model_name_or_path=path if has_tokenizer else base), flag=flag)
        classifier = load_merged(
            config, AutoModelForSequenceClassification, base=base, dtype=torch.float32, num_labels=1
        )
    else:
        tokenizer = load_tokenizer(config, flag=flag)
        classifier = _load_whole(config)
    use_float32_head(classifier)
    head = getattr(classifier, "score", None)
    cast(classifier, DTYPES[resolve_dtype(dtype)])
    if head is not None:
        head.float()
    model = ScoringModel(classifier.eval().requires_grad_(False), contract.label)
    return RewardModel(model.to(distributed.device()), tokenizer, contract, batch_size)


def _load_whole(config: ModelConfig) -> Any:
    flag, name = "--reward_model_or_path", config.model_name_or_path
    architectures = load_config(name, flag=flag).architectures or ["a model without architecture"]
    if not any("SequenceClassification" in architecture for architecture in architectures):
        raise UserError(
            f"{flag}: {name} is {', '.join(architectures)}, not a sequence classifier; "
            "its score head would be newly initialised."
        )
    loaded: Any = load_classifier(config, output_loading_info=True)
    classifier, report = loaded
    if missing := [key for key in report["missing_keys"] if "score" in key or "classifier" in key]:
        raise UserError(f"{flag}: {name} lacks its score head ({missing[0]}).")
    return classifier
