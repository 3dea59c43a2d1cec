"""A model that answers conversations, one at a time, by the sampler that training uses."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoModelForCausalLM

from raft import distributed
from raft.config import ModelConfig
from raft.data.dialogues import Message
from raft.data.templates import ConversationTemplate
from raft.errors import UserError
from raft.models.loading import DTYPES, context_of, is_adapter, load_causal_lm, load_config, load_tokenizer
from raft.models.lora import adapter_base, adapter_task, load_merged
from raft.precision import resolve_dtype
from raft.rollout.answering_config import AnswerConfig, LoadingConfig
from raft.rollout.decoding import Graphs
from raft.rollout.fitting import refuse_unknown_tokens, refuse_without_cache
from raft.rollout.sampler import NOTHING, generate, response_text
from raft.rollout.sampling import Generated, Sampling
from raft.rollout.streaming import TextStream


def sampling_of(config: AnswerConfig) -> Sampling:
    """The flags as the sampler takes them."""
    return Sampling(
        temperature=config.temperature,
        top_p=config.top_p,
        top_k=config.top_k,
        max_tokens=config.max_new_tokens,
        stop=tuple(config.stop),
    )


@dataclass(frozen=True)
class Source:
    """Where a model comes from.

    Attributes:
        name: what it is called beside others.
        path: directory or hub name of a whole model, or directory of a LoRA adapter.
        base: directory or hub name of the model below an adapter; None where there is none.
        flag: that named it, for errors.
    """

    name: str
    path: str
    base: str | None
    flag: str

    def config(self, loading: LoadingConfig) -> ModelConfig:
        """What the loaders of ``raft.models`` take."""
        return ModelConfig(
            model_name_or_path=self.path,
            template=loading.template,
            attn_implementation=loading.attn_implementation,
            trust_remote_code=loading.trust_remote_code,
        )


def find_sources(paths: Sequence[tuple[str, str]], adapter: str | None = None) -> list[Source]:
    """The models that the flags name, each with a name of its own.

    Args:
        paths: (flag, value) for every model: a whole model, a LoRA adapter, or a run directory, whose ``final/`` it is.
        adapter: LoRA adapter to put on the first one.

    Raises:
        UserError: if a directory is a reward model, one is named twice, or ``adapter`` is none.
    """
    found = []
    for number, (flag, path) in enumerate(paths):
        path, base = _model_in(path), None
        if adapter and not number:
            if not is_adapter(_model_in(adapter)):
                raise UserError(f"--adapter: {adapter} has no adapter_config.json, expected a LoRA adapter.")
            flag, path, base = "--adapter", _model_in(adapter), path
        elif is_adapter(path):
            base = adapter_base(path)
        if is_adapter(path) and adapter_task(path) == "SEQ_CLS":
            raise UserError(f"{flag}: {path} is a reward model, which answers nothing; raft score takes it.")
        found.append(Source("", path, base, flag))
    names = short_names([one.path for one in found])
    return [replace(one, name=name) for one, name in zip(found, names, strict=True)]


def _model_in(path: str) -> str:
    """A run directory stands for its last policy."""
    directory = Path(path)
    whole = any((directory / name).is_file() for name in ("config.json", "adapter_config.json"))
    return str(directory / "final") if not whole and (directory / "final").is_dir() else path


def short_names(paths: Sequence[str]) -> list[str]:
    """The last parts of paths, as many as tell them apart; a run's ``final`` goes by the run's name.

    Raises:
        UserError: if two are the same.
    """
    parts = [Path(path).resolve().parts if Path(path).exists() else tuple(path.split("/")) for path in paths]
    for i, one in enumerate(parts):
        if one in parts[:i]:
            raise UserError(f"{paths[i]} is named twice; answers of one model need no comparison.")
    said = [_named_by_run(one) for one in parts]
    parts = said if len(set(said)) == len(said) else parts
    depth = next(n for n in range(1, 10**6) if len({one[-n:] for one in parts}) == len(parts))
    return ["/".join(one[-depth:]) for one in parts]


def _named_by_run(parts: tuple[str, ...]) -> tuple[str, ...]:
    """``(..., run, final)`` -> ``(..., run)``; ``(..., run, best)`` -> ``(..., run/best)``."""
    if len(parts) < 2 or parts[-1] not in ("final", "best"):
        return parts
    return parts[:-1] if parts[-1] == "final" else (*parts[:-2], "/".join(parts[-2:]))


@dataclass
class Answer:
    """What a model said: the text, the ids as drawn (EOS included) and why it ended."""

    text: str
    tokens: list[int]
    finish_reason: str


class Responder:
    """A model ready to answer.

    Args:
        name: what it is called beside others.
        model: a causal language model in eval mode.
        template: turns conversations into its tokens.
    """

    def __init__(self, name: str, model: Any, template: ConversationTemplate) -> None:
        self.name, self.model, self.template = name, model, template
        self._graphs = Graphs(model)

    @property
    def reads_system(self) -> bool:
        """Whether a system message reaches the model: some chat templates pass over it."""
        return self.template.system_messages != "dropped"

    def answer(
        self,
        messages: Sequence[Message],
        sampling: Sampling,
        seed: Sequence[int],
        on_text: Callable[[str], None] = lambda piece: None,
    ) -> Answer:
        """Answer a conversation that ends with a user's message.

        Args:
            seed: of the random numbers; the same one gives the same answer.
            on_text: given the answer piece by piece.

        Raises:
            UserError: if even the last message alone is longer than the model reads, or the template refuses it.
        """
        prompt = fit(messages, self.template, context_of(self.model.config), sampling.max_tokens)
        num_ids = len(self.model.get_input_embeddings().weight)
        refuse_unknown_tokens([prompt], num_ids, name=self.name, where="the message")
        uniforms = np.random.default_rng(list(seed)).random((1, sampling.max_tokens), dtype=np.float32)
        stream = TextStream(self.template.tokenizer, sampling.stop, on_text)

        def on_step(tokens: torch.Tensor) -> None:
            token = int(tokens[0])
            if token != NOTHING:
                stream.add(token)

        (found,) = generate(
            self.model,
            [prompt],
            [0],
            torch.from_numpy(uniforms),
            sampling,
            self.template.tokenizer,
            graphs=self._graphs,
            on_step=on_step,
        )
        return self._finish(found, sampling, stream)

    def _finish(self, found: Generated, sampling: Sampling, stream: TextStream) -> Answer:
        text = response_text(found, sampling, self.template.tokenizer)
        stream.finish(text)
        return Answer(text, found.tokens, found.finish_reason)


def fit(messages: Sequence[Message], template: ConversationTemplate, context: int, room: int) -> list[int]:
    """Token ids of a conversation, without its oldest turns where it would not fit; a system message stays.

    Args:
        context: tokens that the model reads at most.
        room: of these, the ones to keep for the answer.

    Raises:
        UserError: if the last message alone does not fit, or the template refuses the conversation.
    """
    first = 1 if messages and messages[0]["role"] == "system" else 0
    system, turns = list(messages[:first]), list(messages[first:])
    while True:
        tokens = template.encode_prompt([*system, *turns])
        if len(tokens) + room <= context:
            return tokens
        if len(turns) == 1:
            raise UserError(
                f"the message has {len(tokens)} tokens with its template; the model reads {context}, of which "
                f"--max_new_tokens keeps {room} for the answer."
            )
        turns = _without_oldest(turns)


def _without_oldest(turns: list[Message]) -> list[Message]:
    """What is left of several turns without the first one and the answers to it; the last one always is."""
    later = (i for i, turn in enumerate(turns) if i and turn["role"] == "user")
    return turns[next(later, len(turns) - 1) :]


def read_config(source: Source, loading: LoadingConfig) -> Any:
    """The transformers configuration of a model that is not loaded yet."""
    name = source.base or source.path
    return load_config(name, trust_remote_code=loading.trust_remote_code, flag=source.flag)


def load_template(source: Source, loading: LoadingConfig) -> ConversationTemplate:
    """The template of a model, with its tokenizer; an adapter without one takes its base's."""
    has_own = (Path(source.path) / "tokenizer_config.json").is_file()
    name = source.base if source.base is not None and not has_own else source.path
    config = replace(source.config(loading), model_name_or_path=name)
    return ConversationTemplate(load_tokenizer(config, flag=source.flag), loading.template)


def load_model(source: Source, loading: LoadingConfig) -> Any:
    """The model, in eval mode on this rank's device.

    Raises:
        UserError: if it can not be loaded, is no language model, or one that the sampler can not draw from.
    """
    config, dtype = source.config(loading), DTYPES[resolve_dtype(loading.dtype)]
    if source.base is not None:
        model = load_merged(config, AutoModelForCausalLM, base=source.base, dtype=dtype)
    else:
        kinds = load_config(source.path, trust_remote_code=loading.trust_remote_code, flag=source.flag).architectures
        if any("SequenceClassification" in kind for kind in kinds or []):
            raise UserError(f"{source.flag}: {source.path} is a reward model, which answers nothing.")
        model = load_causal_lm(config, dtype=dtype)
    model = model.eval().requires_grad_(False).to(distributed.device())
    refuse_without_cache(model, name=source.path, flag=source.flag)
    return model


def load_responder(source: Source, loading: LoadingConfig) -> Responder:
    """A model and its template, ready to answer."""
    return Responder(source.name, load_model(source, loading), load_template(source, loading))
