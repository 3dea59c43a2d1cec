"""`raft merge`: a LoRA adapter and its base model become one model that needs no peft.

Works for adapters of language models and of reward models. Weights are merged in fp32, and the result has to prove
itself before it is put in place: on a few texts its logits (or scores) must be those of base and adapter, and so must
those of the files, read back.

    raft merge --adapter output_models/sft_lora/final --output_dir output_models/sft_merged
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from raft import distributed
from raft.config import ModelConfig
from raft.engine.export import stop_where_responses_end
from raft.errors import UserError
from raft.models.loading import (
    DTYPES,
    cast,
    is_adapter,
    load_causal_lm,
    load_classifier,
    load_tokenizer,
    quiet_libraries,
)
from raft.models.lora import adapter_base, adapter_task, load_adapter, num_labels, refuse_headless_adapter
from raft.models.scoring import ScoringModel
from raft.rewards.contract import RewardContract
from raft.rewards.fitting import resolve_label
from raft.rewards.reading import Reader
from raft.run_directory import written_whole
from raft.tools.merge_lora_config import MergeConfig

TOLERANCE = 1e-4
"""How far logits or scores may move, as a share of the largest of them (or of 1, where all are smaller)."""

# Dialogues of different lengths and kinds; what they say does not matter, only that they use many weights.
PROBES = (
    ("What is the capital of France?", "The capital of France is Paris."),
    ("Write a haiku about rain.", "Soft rain on the roof,\nthe night forgets its own name,\nmorning finds it green."),
    ("def add(a, b):", "    return a + b  # 1 + 1 == 2"),
    ("Как дела? 你好吗?", "Хорошо, спасибо. 很好, 谢谢!"),
)


@dataclass(frozen=True)
class Differences:
    """How far logits or scores moved: the largest difference, and the largest value it compares to."""

    merging: float
    rounding: float
    reading: float
    largest: float


def main(config: MergeConfig) -> None:
    """Merge, verify, write. One process does it; further ones have nothing to do.

    Raises:
        UserError: if the adapter is none, lacks its score head or belongs to another base model, the output directory
            is taken, or the merged model does not say what base and adapter say. Nothing is written then.
    """
    if not distributed.is_main():
        return
    quiet_libraries()
    adapter, output = config.adapter.adapter, Path(config.merged.output_dir)
    is_reward = find_task(adapter) == "SEQ_CLS"
    base = adapter_base(adapter, base=config.adapter.model_name_or_path)
    refuse_output(output, overwrite=config.merged.overwrite_output_dir, inputs=(adapter, base))
    contract = RewardContract.load(adapter) if is_reward else None
    found = merge(config, base, is_reward=is_reward, contract=contract, output=output)
    unit = "scores" if is_reward else "logits"
    print(f"largest difference of {unit} by merging {found.merging:.1e}, by reading back {found.reading:.1e}")
    if found.rounding:
        print(f"rounding the weights to {config.merged.dtype} moves {unit} by up to {found.rounding:.1e}")
    print(f"wrote {output}")


def find_task(adapter: str) -> str:
    """``"CAUSAL_LM"`` or ``"SEQ_CLS"``: what the adapter was trained for.

    Raises:
        UserError: if there is no adapter, it is for another task, or it is a reward adapter without its score head.
    """
    if not is_adapter(adapter):
        inside = [name for name in ("final", "best") if is_adapter(f"{adapter}/{name}")]
        hint = f" Did you mean {adapter}/{inside[0]}?" if inside else ""
        raise UserError(f"--adapter: {adapter} is no LoRA adapter (it has no adapter_config.json).{hint}")
    task = adapter_task(adapter)
    if task not in ("CAUSAL_LM", "SEQ_CLS"):
        raise UserError(f"--adapter: {adapter} is an adapter for {task}, allowed are CAUSAL_LM and SEQ_CLS.")
    if task == "SEQ_CLS":
        refuse_headless_adapter(adapter, flag="--adapter")
    return task


def refuse_output(output: Path, *, overwrite: bool, inputs: Sequence[str]) -> None:
    """Raise UserError if the output directory holds something that must stay."""
    for name in inputs:
        source = Path(name).resolve()
        if output.resolve() in (source, *source.parents) and source.exists():
            raise UserError(f"--output_dir: {output} holds {name}, which is to be merged; name another directory.")
    if not output.exists() or (output.is_dir() and not any(output.iterdir())):
        return
    if not overwrite:
        raise UserError(
            f"--output_dir: {output} is not empty. Replace the model in it with --overwrite_output_dir true, or name "
            "another directory."
        )
    if not (output / "config.json").is_file():
        raise UserError(f"--overwrite_output_dir: {output} holds no model (no config.json); not removed.")


def merge(
    config: MergeConfig, base: str, *, is_reward: bool, contract: RewardContract | None, output: Path
) -> Differences:
    """Merge in fp32, write and verify; gives what the verification found."""
    adapter, dtype = config.adapter.adapter, DTYPES[config.merged.dtype]
    tokenizer = load_tokenizer(_model(config, _tokenizer_source(adapter, base)))
    load: Callable[..., Any] = load_causal_lm
    if is_reward:
        load = partial(load_classifier, num_labels=num_labels(adapter))
    adapted = load_adapter(load(_model(config, base)), adapter).eval()
    rows = probe_rows(tokenizer, contract)
    label = None
    if is_reward:  # without a contract, whichever output: what is compared is whether merging moves it
        said = contract.label if contract else 0
        label = resolve_label(said, adapted.config, name=adapter, source="label of its contract")
    expected = outputs(adapted, rows, label)
    model = adapted.merge_and_unload()
    merged = outputs(model, rows, label)
    merging = compare(expected, merged, "the merged model differs from base and adapter")
    if is_reward:
        model.config.pad_token_id = tokenizer.pad_token_id
    stop_where_responses_end(model, tokenizer)
    with written_whole(output) as aside:
        cast(model, dtype).save_pretrained(aside)
        tokenizer.save_pretrained(aside)
        if contract is not None:
            replace(contract, base_model=None, base_model_fingerprint=None).save(aside)
        rounded = outputs(cast(model, torch.float32), rows, label)
        del model, adapted
        stored = outputs(load(_model(config, str(aside))).eval(), rows, label)
        found = Differences(
            merging=merging,
            rounding=float((rounded - merged).abs().max()),
            reading=compare(rounded, stored, "the model read back differs from the one written"),
            largest=float(expected.abs().max()),
        )
        (aside / "README.md").write_text(card(config, base, contract, found, is_reward), encoding="utf-8")
    return found


def _model(config: MergeConfig, name: str) -> ModelConfig:
    return ModelConfig(model_name_or_path=name, trust_remote_code=config.adapter.trust_remote_code)


def _tokenizer_source(adapter: str, base: str) -> str:
    return adapter if (Path(adapter) / "tokenizer_config.json").is_file() else base


def probe_rows(tokenizer: Any, contract: RewardContract | None) -> list[list[int]]:
    """Token ids of the probe dialogues, as the model reads dialogues."""
    reader = Reader(tokenizer, contract or RewardContract())
    return [reader.encode([{"role": "user", "content": prompt}], response) for prompt, response in PROBES]


@torch.no_grad()
def outputs(model: Any, rows: Sequence[Sequence[int]], label: int | None) -> torch.Tensor:
    """What a model says about rows of token ids, one row at a time, in fp32.

    Args:
        label: which output of a reward model is its score; None for a language model.

    Returns:
        Scores (number of rows,), or logits (number of tokens in all rows, vocabulary).
    """
    found = []
    for row in rows:
        ids = torch.tensor([list(row)])
        if label is None:
            found.append(model(input_ids=ids, use_cache=False).logits[0].float())
        else:
            found.append(ScoringModel(model, label)(input_ids=ids, attention_mask=torch.ones_like(ids)))
    return torch.cat(found)


def compare(expected: torch.Tensor, found: torch.Tensor, problem: str) -> float:
    """The largest difference.

    Raises:
        UserError: if it is over TOLERANCE, or not a number.
    """
    difference, largest = float((expected - found).abs().max()), float(expected.abs().max())
    if not difference <= TOLERANCE * max(1.0, largest):
        raise UserError(
            f"--adapter: {problem}: by {difference:.2e}, where values reach {largest:.2e}; allowed is a share of "
            f"{TOLERANCE:g}. Nothing was written."
        )
    return difference


def card(config: MergeConfig, base: str, contract: RewardContract | None, found: Differences, is_reward: bool) -> str:
    """README.md of the merged model: what it is made of, and how it was verified."""
    unit = "scores" if is_reward else "logits"
    dtype = config.merged.dtype
    lines = [
        f"LoRA adapter `{config.adapter.adapter}` merged into `{base}` in fp32 by `raft merge`, stored in {dtype}.",
        f"On {len(PROBES)} texts, {unit} of up to {found.largest:.3g} differ by {found.merging:.1e} from those of base "
        "and adapter.",
    ]
    if found.rounding:
        lines.append(f"Rounding the weights to {dtype} moves {unit} by up to {found.rounding:.1e}.")
    if is_reward:
        lines.append("Reward model: higher is better; the score is read at the EOS that closes the response.")
    if contract is not None and contract.accuracy is not None:
        lines.append(f"Held-out accuracy of the adapter: {contract.accuracy:.1%} of {contract.num_pairs} pairs.")
    tags = "[reward-model, raft]" if is_reward else "[raft]"
    head = f"---\nlibrary_name: transformers\nbase_model: {base}\ntags: {tags}\n---\n"
    return f"{head}# {Path(config.merged.output_dir).name}\n\n" + "\n\n".join(lines) + "\n"
