"""Answers of several models to the same prompts -> a side-by-side table in Markdown, HTML or JSON.

Text of prompts and models is untrusted: in Markdown and HTML it is shown and never acts.
"""

from __future__ import annotations

import html
import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from raft.data.dialogues import Message
from raft.functional.diversity import diversity_report
from raft.functional.statistics import paired_bootstrap_interval
from raft.run_directory import json_safe


@dataclass
class Response:
    """One model's answer to one prompt.

    Attributes:
        finish_reason: eos, stop or length.
        scores: what each source of reward said, by its name.
        reward: their weighted sum; None where there is none.
    """

    text: str
    num_tokens: int
    finish_reason: str
    scores: dict[str, float] = field(default_factory=dict)
    reward: float | None = None


@dataclass
class Comparison:
    """Prompts, and every model's responses to them in the same order.

    Attributes:
        prompt_ids, prompts: the prompts.
        responses: by the name of the model.
        settings: how the responses were drawn.
    """

    prompt_ids: Sequence[str]
    prompts: Sequence[Sequence[Message]]
    responses: Mapping[str, Sequence[Response]]
    settings: Mapping[str, Any]

    @property
    def names(self) -> list[str]:
        """The models, in the order in which they were named."""
        return list(self.responses)

    @property
    def has_rewards(self) -> bool:
        """Whether anything was scored."""
        return any(one.reward is not None for responses in self.responses.values() for one in responses)


def summarize_models(comparison: Comparison) -> dict[str, dict[str, Any]]:
    """For every model: mean reward, its change from the first model prompt by prompt, length, EOS share, distinct-2.

    ``wins`` is the share of prompts on which its reward is above the first model's; ``change`` the mean difference,
    with its 95% bootstrap interval over prompts. Prompts where either has no reward are left out of both.
    """
    first = comparison.responses[comparison.names[0]]
    found = {}
    for number, (name, responses) in enumerate(comparison.responses.items()):
        rewards = [one.reward for one in responses if one.reward is not None]
        summary: dict[str, Any] = {"reward": float(np.mean(rewards))} if rewards else {}
        if number and rewards:
            summary |= _change([one.reward for one in first], [one.reward for one in responses])
        summary["length"] = float(np.mean([one.num_tokens for one in responses]))
        summary["eos_share"] = float(np.mean([one.finish_reason == "eos" for one in responses]))
        summary["distinct-2"] = diversity_report([one.text for one in responses])["distinct-2"]
        found[name] = summary
    return found


def _change(first: Sequence[float | None], other: Sequence[float | None]) -> dict[str, Any]:
    pairs = [(a, b) for a, b in zip(first, other, strict=True) if a is not None and b is not None]
    if not pairs:
        return {}
    differences = [b - a for a, b in pairs]
    return {
        "change": float(np.mean(differences)),
        "change_ci95": list(paired_bootstrap_interval(differences)),
        "wins": float(np.mean([b > a for a, b in pairs])),
    }


def as_json(comparison: Comparison) -> str:
    """One object: ``settings``, ``models`` (the summary of each) and ``prompts`` with every model's response."""
    rows = [
        {
            "prompt_id": prompt_id,
            "prompt": list(prompt),
            "responses": {name: vars(responses[i]) for name, responses in comparison.responses.items()},
        }
        for i, (prompt_id, prompt) in enumerate(zip(comparison.prompt_ids, comparison.prompts, strict=True))
    ]
    document = {"settings": comparison.settings, "models": summarize_models(comparison), "prompts": rows}
    return json.dumps(json_safe(document), indent=2, ensure_ascii=False, allow_nan=False) + "\n"


# ---------------------------------------------------------------- tables

_COLUMNS: dict[str, tuple[str, Callable[[Mapping[str, Any]], str]]] = {
    "reward": ("mean reward", lambda found: f"{found['reward']:.3f}"),
    "change": (
        "change, 95% interval",
        lambda found: "{:+.3f}, {:+.3f} to {:+.3f}".format(found["change"], *found["change_ci95"]),
    ),
    "wins": ("better", lambda found: f"{found['wins']:.0%}"),
    "length": ("tokens", lambda found: f"{found['length']:.1f}"),
    "eos_share": ("ended by EOS", lambda found: f"{found['eos_share']:.0%}"),
    "distinct-2": ("distinct-2", lambda found: f"{found['distinct-2']:.3f}"),
}


def _summary_table(comparison: Comparison) -> list[list[str]]:
    """A row of titles, then one for each model."""
    summaries = summarize_models(comparison)
    keys = [key for key in _COLUMNS if any(key in found for found in summaries.values())]
    rows = [["model", *(_COLUMNS[key][0] for key in keys)]]
    for name, found in summaries.items():
        rows.append([name, *(_COLUMNS[key][1](found) if key in found else "" for key in keys)])
    return rows


def _note(response: Response) -> str:
    """What stands below a response: its reward, its scores where there are several, why it has no end."""
    parts = [] if response.reward is None else [f"reward {response.reward:.3f}"]
    if len(response.scores) > 1:
        parts += [f"{name} {score:.3f}" for name, score in response.scores.items()]
    parts += ["no reward"] if response.scores and response.reward is None else []
    return ", ".join([*parts, f"{response.num_tokens} tokens", *(["cut off"] * (response.finish_reason == "length"))])


def _prompt_text(messages: Sequence[Message]) -> str:
    """A lone user message as it is, else every message with its role."""
    if len(messages) == 1 and messages[0]["role"] == "user":
        return messages[0]["content"]
    return "\n\n".join(f"{message['role']}: {message['content']}" for message in messages)


def _settings(comparison: Comparison) -> str:
    return ", ".join(f"{name} {value}" for name, value in comparison.settings.items())


# ---------------------------------------------------------------- Markdown

_MARKUP = re.compile(r"[\\`*_\[\]!|~<>&@:]")


def as_markdown(comparison: Comparison) -> str:
    """The summary, then a table with a row for each prompt and a column for each model."""
    summary = [[_escape(cell) for cell in row] for row in _summary_table(comparison)]
    rows = [["prompt", *map(_escape, comparison.names)]]
    for i, prompt in enumerate(comparison.prompts):
        cells = [responses[i] for responses in comparison.responses.values()]
        rows.append([_cell(_prompt_text(prompt)), *(f"{_cell(one.text)}<br>*{_escape(_note(one))}*" for one in cells)])
    title = f"# {len(comparison.prompts)} prompts, {len(comparison.names)} models"
    return "\n\n".join([title, _cell(_settings(comparison)), _table(summary), _table(rows)]) + "\n"


def _table(rows: Sequence[Sequence[str]]) -> str:
    lines = ["| " + " | ".join(row) + " |" for row in rows]
    return "\n".join([lines[0], "|" + "---|" * len(rows[0]), *lines[1:]])


def _cell(text: str) -> str:
    return "<br>".join(_escape(line) for line in text.splitlines())


def _escape(text: str) -> str:
    """Text that Markdown shows as it is: what markup, links and pictures are made of becomes entities."""
    return _MARKUP.sub(lambda found: f"&#{ord(found[0])};", text)


# ---------------------------------------------------------------- HTML

_STYLE = """
:root { color-scheme: light dark; --line: #8886; --soft: #8882; }
body { font: 15px/1.5 system-ui, sans-serif; margin: 1.5rem; }
h1 { font-size: 1.3rem; } p, .note { opacity: .75; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; margin: 1rem 0; }
th, td { border: 1px solid var(--line); padding: .5rem .7rem; text-align: left; vertical-align: top; }
th { background: var(--soft); } table.answers thead th { position: sticky; top: 0; background: Canvas; }
table.answers { width: 100%; table-layout: fixed; min-width: calc(16rem * var(--columns)); }
td { white-space: pre-wrap; overflow-wrap: anywhere; }
td.best { box-shadow: inset 3px 0 #009E73; }
.note { display: block; margin-top: .5rem; font-size: .85em; }
"""


def as_html(comparison: Comparison) -> str:
    """One page without scripts or anything from the network; the best answer to a prompt has a bar at its side."""
    head, *body = _summary_table(comparison)
    title = f"{len(comparison.prompts)} prompts, {len(comparison.names)} models"
    rows = []
    for i, prompt in enumerate(comparison.prompts):
        cells = [responses[i] for responses in comparison.responses.values()]
        rewards = [one.reward for one in cells if one.reward is not None]
        top = max(rewards) if len(rewards) > 1 and max(rewards) > min(rewards) else None
        answers = (_answer(one, is_best=top is not None and one.reward == top) for one in cells)
        rows.append(f"<tr><td>{html.escape(_prompt_text(prompt))}</td>{''.join(answers)}</tr>")
    names = "".join(f"<th>{html.escape(name)}</th>" for name in ["prompt", *comparison.names])
    return "\n".join(
        [
            '<!doctype html>\n<html lang="en">\n<meta charset="utf-8">',
            "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'\">",
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            f"<title>{title}</title>\n<style>{_STYLE}</style>",
            f"<h1>{title}</h1>\n<p>{html.escape(_settings(comparison))}</p>",
            f'<div class="wide"><table><thead>{_row("th", head)}</thead>',
            f"<tbody>{''.join(_row('td', row) for row in body)}</tbody></table></div>",
            f'<div class="wide"><table class="answers" style="--columns: {len(comparison.names) + 1}">',
            f"<thead><tr>{names}</tr></thead>\n<tbody>",
            *rows,
            "</tbody></table></div>\n</html>\n",
        ]
    )


def _row(tag: str, cells: Sequence[str]) -> str:
    return "<tr>" + "".join(f"<{tag}>{html.escape(cell)}</{tag}>" for cell in cells) + "</tr>"


def _answer(response: Response, *, is_best: bool) -> str:
    note = f'<span class="note">{html.escape(_note(response))}</span>'
    opening = '<td class="best">' if is_best else "<td>"
    return f"{opening}{html.escape(response.text)}{note}</td>"
