"""Side-by-side tables: numbers derived by hand, and text that shows and never acts."""

from __future__ import annotations

import json
from html.parser import HTMLParser
from typing import Any

import pytest

from raft.functional.statistics import paired_bootstrap_interval
from raft.reports.comparison import Comparison, Response, as_html, as_json, as_markdown, summarize_models

EVIL = "<script>alert(1)</script> ![x](http://evil/x.png) `a|b`\n\n| c | **d** <img src=x onerror=y>"


def comparison(rewards: dict[str, list[float | None]] | None = None, text: str = "a b") -> Comparison:
    rewards = rewards or {"base": [0.0, 1.0, None], "tuned": [1.0, 0.5, 2.0]}
    responses = {
        name: [
            Response(text, 4 + i, "length" if i == 2 else "eos", {"reward_model": -1.0 if one is None else one}, one)
            for i, one in enumerate(values)
        ]
        for name, values in rewards.items()
    }
    prompts = [[{"role": "user", "content": f"question {i}"}] for i in range(3)]
    return Comparison(["p0", "p1", "p2"], prompts, responses, {"temperature": 0.5, "system": EVIL})


def test_models_are_compared_with_the_first_prompt_by_prompt() -> None:
    base, tuned = summarize_models(comparison()).values()
    assert base == {"reward": 0.5, "length": 5.0, "eos_share": pytest.approx(2 / 3), "distinct-2": pytest.approx(1 / 3)}
    assert tuned["reward"] == pytest.approx(3.5 / 3)
    assert tuned["change"] == 0.25  # +1 and -0.5; the third prompt has no reward of the first model
    assert tuned["change_ci95"] == list(paired_bootstrap_interval([1.0, -0.5]))
    assert tuned["wins"] == 0.5
    found = summarize_models(comparison({"base": [0.0, 0.0, 0.0], "tuned": [1.0, 1.0, 0.0]}))
    assert found["tuned"]["wins"] == pytest.approx(2 / 3)  # a tie is none


def test_without_rewards_there_is_nothing_about_rewards() -> None:
    found = comparison({"base": [None] * 3, "tuned": [None] * 3})
    for responses in found.responses.values():
        for one in responses:
            one.scores = {}
    assert list(summarize_models(found)["tuned"]) == ["length", "eos_share", "distinct-2"]
    for text in (as_markdown(found), as_html(found)):
        assert "reward" not in text


def test_json_has_everything() -> None:
    found = json.loads(as_json(comparison()))
    assert list(found) == ["settings", "models", "prompts"]
    assert found["models"]["tuned"]["change"] == 0.25
    assert found["prompts"][2] == {
        "prompt_id": "p2",
        "prompt": [{"role": "user", "content": "question 2"}],
        "responses": {
            "base": {
                "text": "a b", "num_tokens": 6, "finish_reason": "length", "scores": {"reward_model": -1.0},
                "reward": None,
            },
            "tuned": {
                "text": "a b", "num_tokens": 6, "finish_reason": "length", "scores": {"reward_model": 2.0},
                "reward": 2.0,
            },
        },
    }  # fmt: skip


# ------------------------------------------------------------------------------------------- Markdown


def rendered(text: str) -> list[Any]:
    """The tokens of a Markdown renderer with GitHub's tables."""
    markdown_it = pytest.importorskip("markdown_it")
    return markdown_it.MarkdownIt("commonmark").enable("table").parse(text)


def cells(text: str) -> list[str]:
    """What stands in every cell of the last table, as a reader sees it; <br> as a newline."""
    tokens = rendered(text)
    start = max(i for i, token in enumerate(tokens) if token.type == "table_open")
    inline = [token for token in tokens[start:] if token.type == "inline"]
    return [
        "".join("\n" if part.content == "<br>" else part.content for part in token.children or []) for token in inline
    ]


def test_markdown_is_a_row_a_prompt_and_a_column_a_model() -> None:
    text = as_markdown(comparison())
    assert text.startswith("# 3 prompts, 2 models\n")
    assert "| tuned | 1.167 | +0.250, -0.500 to +1.000 | 50% | 5.0 | 67% | 0.333 |" in text
    assert cells(text) == [
        "prompt", "base", "tuned",
        "question 0", "a b\nreward 0.000, 4 tokens", "a b\nreward 1.000, 4 tokens",
        "question 1", "a b\nreward 1.000, 5 tokens", "a b\nreward 0.500, 5 tokens",
        "question 2", "a b\nno reward, 6 tokens, cut off", "a b\nreward 2.000, 6 tokens, cut off",
    ]  # fmt: skip


def test_markup_of_a_model_is_text_in_markdown() -> None:
    text = as_markdown(comparison(text=EVIL))
    shown = cells(text)
    assert len(shown) == 12
    assert shown[4].startswith(EVIL)
    kinds = {part.type for token in rendered(text) for part in token.children or []}
    assert kinds <= {"text", "text_special", "html_inline", "em_open", "em_close"}
    inline = {part.content for token in rendered(text) for part in token.children or [] if part.type == "html_inline"}
    assert inline == {"<br>"}


# ------------------------------------------------------------------------------------------- HTML


class Page(HTMLParser):
    """Tags, attributes and the text of cells."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.attributes: set[str] = set()
        self.cells: list[str] = []
        self.best: list[int] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.attributes |= {name for name, _ in attrs}
        if tag in ("td", "th"):
            self.cells.append("")
            self.best += [len(self.cells) - 1] if ("class", "best") in attrs else []

    def handle_data(self, data: str) -> None:
        if self.cells:
            self.cells[-1] += data


def test_html_shows_text_and_runs_nothing() -> None:
    text = as_html(comparison(text=EVIL))
    page = Page(text)
    assert page.tags == {
        "html", "meta", "title", "style", "h1", "p", "div", "table", "thead", "tbody", "tr", "th", "td", "span",
    }  # fmt: skip
    assert page.attributes == {"lang", "charset", "http-equiv", "content", "name", "class", "style"}
    assert "default-src 'none'" in text
    assert "http://evil" in text
    assert "src=" not in text.replace("src=x onerror=y", "").replace("default-src", "")
    assert sum(cell.startswith(EVIL) for cell in page.cells) == 6


def test_html_marks_the_best_answer() -> None:
    page = Page(as_html(comparison()))
    answers = page.cells[-9:]
    assert [cell[:10] for cell in answers[::3]] == ["question 0", "question 1", "question 2"]
    first = len(page.cells) - 9
    assert [index - first for index in page.best] == [2, 4]  # of the third there is but one reward
