"""What the loop is put together from, without a run."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from transformers import AutoTokenizer

from raft.arguments import parse
from raft.data.templates import ConversationTemplate
from raft.stages.align_config import AlignConfig
from raft.stages.align_parts import Progress, load_prompts


def test_seconds_are_told_once() -> None:
    progress = Progress()
    progress.seconds = {"loading": 9.0, "evaluation": 4.0}
    assert progress.new_seconds("evaluation") == {"seconds/evaluation": 4.0}
    progress.seconds |= {"sampling": 2.0, "checkpoints": 1.0}
    assert progress.new_seconds() == {"seconds/sampling": 2.0, "seconds/checkpoints": 1.0}
    assert progress.new_seconds() == {}
    progress.seconds |= {"sampling": 5.0, "evaluation": 6.0}
    assert progress.new_seconds("evaluation") == {"seconds/evaluation": 2.0}
    assert progress.new_seconds() == {"seconds/sampling": 3.0}


def test_prompts_that_the_template_does_not_render_whole_are_counted(
    tiny_model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    tokenizer.chat_template = "{% for m in messages if m['role'] != 'system' %}[{{ m['content'] }}]{% endfor %}"
    path = tmp_path / "prompts.jsonl"
    rows = [{"prompt": "Hi", "system": "Be kind."}, {"prompt": "Hello"}, {"prompt": "Bread " * 99}, {"prompt": "So?"}]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    flags = ["--dataset_path", str(path), "--prompt_max_length", "40", "--eval_dataset_path", str(path)]
    config = parse(AlignConfig, [*flags, "--raft_batch_size", "1"], prog="raft align")
    prompts, held_out = load_prompts(config, ConversationTemplate(tokenizer))
    assert (len(prompts), len(held_out)) == (3, 3)
    assert capsys.readouterr().out.splitlines() == [
        "3 prompts, 3 held out; 2 dropped: over 40 tokens",
        "2 of the prompts: system message passed over by the chat template",
        "warning: 3 of the 3 held-out prompts are among those that are trained on",
    ]
    config.held_out.eval_dataset_path = None
    config.held_out.validation_split_percentage = 50
    load_prompts(config, ConversationTemplate(tokenizer))
    assert capsys.readouterr().out.splitlines() == [
        "2 prompts, 1 held out; 1 dropped: over 40 tokens",
        "1 of the prompts: system message passed over by the chat template",
    ]
