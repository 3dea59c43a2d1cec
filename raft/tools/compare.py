"""`raft compare`: the answers of several models to the same prompts, side by side.

Every prompt gets one answer of every model, drawn by the sampler of training with the same random numbers, those of
the held-out evaluations: a run's first and last policy give what is in its ``held_out/`` where the flags are the same.

    raft compare output_models/SmolLM2-135M-Instruct output_models/first_run --output_file comparison.html
"""

from __future__ import annotations

import gc
import math
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch

from raft import distributed
from raft.data.loading import load_rows
from raft.data.rows import Row
from raft.data.templates import ConversationTemplate
from raft.errors import UserError
from raft.models.loading import context_of, quiet_libraries, vocabulary_of
from raft.reports.comparison import Comparison, Response, as_html, as_json, as_markdown
from raft.rewards.config import RewardConfig
from raft.rewards.loading import load_rewards
from raft.rollout.backend import NativeBackend
from raft.rollout.fitting import refuse_other_tokenizer, refuse_recurrent, refuse_unknown_tokens, rope_warning
from raft.rollout.prompts import Prompt, prompt_tail
from raft.rollout.responder import (
    Source,
    find_sources,
    load_model,
    load_template,
    read_config,
    sampling_of,
)
from raft.rollout.rollout import default_rows, rollout
from raft.rollout.samples import Sample, make_samples
from raft.rollout.sampling import Sampling
from raft.run_directory import write_text
from raft.terminal import visible
from raft.tools.compare_config import SUFFIXES, CompareConfig

WRITERS: dict[str, Callable[[Comparison], str]] = dict(zip(SUFFIXES, (as_markdown, as_html, as_json), strict=True))


def main(config: CompareConfig) -> None:
    """Draw all answers on all ranks, one model after the other, score them and write the tables.

    Raises:
        UserError: if models, prompts or rewards can not be read, the sampler can not draw from a model, or no prompt is
            short enough.
    """
    quiet_libraries()
    if distributed.world_size() > 1:
        distributed.initialize()
    options, sampling = config.compare, sampling_of(config.answers)
    sources = find_sources([("--models", path) for path in options.models])
    templates = [load_template(source, config.loading) for source in sources]
    rows = load_rows(options.dataset_path, kinds={"prompt"}, max_rows=options.num_rows).rows
    shapes = [read_config(source, config.loading) for source in sources]
    asked = encode(
        rows, config.answers.system, templates, [context_of(shape) - sampling.max_tokens for shape in shapes]
    )
    for source, shape, template, prompts in zip(sources, shapes, templates, asked, strict=True):
        refuse_unfit(source, shape, template, prompts)
        tell_remarks(source, template, prompts)
    answers = {
        source.name: draw(config, source, template, prompts, sampling)
        for source, template, prompts in zip(sources, templates, asked, strict=True)
    }
    responses = {
        name: [Response(one.response, len(one.response_tokens), one.finish_reason) for one in samples]
        for name, samples in answers.items()
    }
    if options.score if options.score is not None else config.reward != RewardConfig():
        score(config, answers, responses)
    if distributed.is_main():
        ids, messages = [one.prompt_id for one in asked[0]], [one.messages for one in asked[0]]
        write(Comparison(ids, messages, responses, settings(config)), options.output_file)


def encode(
    rows: Sequence[Row], system: str | None, templates: Sequence[ConversationTemplate], limits: Sequence[int]
) -> list[list[Prompt]]:
    """The prompts within every model's limit, model by model as its template renders them.

    Raises:
        UserError: if there is none, or a template refuses one.
    """
    asked = [[_prompt(row, system, template) for row in rows] for template in templates]
    fits = [
        i
        for i in range(len(rows))
        if all(len(prompts[i].tokens) <= limit for prompts, limit in zip(asked, limits, strict=True))
    ]
    if not fits:
        raise UserError(
            f"--dataset_path: every prompt has more tokens than the {min(limits)} that a model reads beside its answer."
        )
    if len(fits) < len(rows) and distributed.is_main():
        print(f"{len(rows) - len(fits)} of {len(rows)} prompts are too long for a model and left out", file=sys.stderr)
    return [[prompts[i] for i in fits] for prompts in asked]


def _prompt(row: Row, system: str | None, template: ConversationTemplate) -> Prompt:
    """A row for a model, led by the system message of the flags where it has none of its own."""
    own = row.messages[0]["role"] == "system"
    messages = row.messages if own or not system else ({"role": "system", "content": system}, *row.messages)
    with row.named():
        tokens, tail = template.encode_prompt(messages), prompt_tail(template, messages)
    return Prompt(str(row.extra.get("prompt_id", row.source)), messages, tokens, dict(row.extra), tail)


def refuse_unfit(source: Source, shape: Any, template: ConversationTemplate, prompts: Sequence[Prompt]) -> None:
    """Refuse, before any model is loaded, what its configuration says that the sampler can not draw from."""
    refuse_recurrent(shape, name=source.path, flag=source.flag)
    num_ids = vocabulary_of(shape)
    refuse_other_tokenizer(template.tokenizer, num_ids, name=source.path, where=source.flag)
    refuse_unknown_tokens((prompt.tokens for prompt in prompts), num_ids, name=source.path, where=source.flag)


def tell_remarks(source: Source, template: ConversationTemplate, prompts: Sequence[Prompt]) -> None:
    """Say what a model's template does to the prompts that is not expected of it."""
    counts = Counter(remark for prompt in prompts for remark in template.remarks(prompt.messages))
    for remark, count in counts.items() if distributed.is_main() else ():
        print(f"{source.name}: {count} of {len(prompts)} prompts: {remark}", file=sys.stderr)


def draw(
    config: CompareConfig,
    source: Source,
    template: ConversationTemplate,
    prompts: Sequence[Prompt],
    sampling: Sampling,
) -> list[Sample]:
    """One answer to each prompt. The model is in memory for this long."""
    model = load_model(source, config.loading)
    tokens = [prompt.tokens for prompt in prompts]
    width = max(map(len, tokens)) + sampling.max_tokens
    warning = rope_warning(model.config, width, name=source.path, flags="--max_new_tokens")
    if warning and distributed.is_main():
        print(warning, file=sys.stderr)
    given = config.compare.inference_batch_size_per_device
    rows = default_rows(model.config, width, model.dtype, num_samples=len(prompts))
    backend = NativeBackend(template.tokenizer)
    with backend.drawing_from(nullcontext(model)):
        generated = rollout(
            backend,
            tokens,
            num_samples=1,
            sampling=sampling,
            rows_per_chunk=given or distributed.broadcast(rows),
            seed=config.answers.seed,
            iteration=0,
            purpose="held_out",
            attempt=source.name,
        )
    del model
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    return make_samples(prompts, generated, 1, sampling, template.tokenizer)


def score(config: CompareConfig, answers: dict[str, list[Sample]], responses: dict[str, list[Response]]) -> None:
    """Put scores and rewards into the responses: of all models at once, so that a normalisation is the same for all."""
    rewards = load_rewards(config.reward, trust_remote_code=config.loading.trust_remote_code)
    candidates = [sample.as_candidate() for samples in answers.values() for sample in samples]
    scored = rewards.score(candidates, name="compare")
    for i, one in enumerate(one for of_one_model in responses.values() for one in of_one_model):
        one.scores = scored.of(i)
        one.reward = None if scored.excluded[i] or not math.isfinite(scored.rewards[i]) else scored.rewards[i]
    if distributed.is_main() and (exclusions := scored.exclusions()):
        print(exclusions, file=sys.stderr)


def settings(config: CompareConfig) -> dict[str, object]:
    """How the answers were drawn, as the tables say it."""
    names = ("temperature", "top_p", "top_k", "max_new_tokens", "system", "seed")
    found = {name: getattr(config.answers, name) for name in names}
    return {
        "prompts": config.compare.dataset_path,
        **{name: value for name, value in found.items() if value is not None},
    }


def write(comparison: Comparison, files: Sequence[str]) -> None:
    """Write every file in the format that its name asks for; without any, Markdown to stdout."""
    if not files:
        text = as_markdown(comparison)
        print(visible(text) if sys.stdout.isatty() else text, end="")
    for file in files:
        write_text(Path(file), WRITERS[Path(file).suffix](comparison))
        print(f"wrote {file}", file=sys.stderr)
