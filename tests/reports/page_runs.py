"""Run directories for the tests of the page, written as the stages write them."""

from __future__ import annotations

import base64
import json
import random
import re
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from raft.run_directory import write_json, write_jsonl, write_text

COMMON = """
the a of to and in is that it for on with as was at by an be this have from or one had not but what all were when we
there can your which their said if do will each about how up out them then she many some so these would other into has
more two like him see time could no make than first been its who now people my made over did down only way find use may
water long little very after words called just where most know get through back
"""
WORDS = COMMON.split()
PHRASE = "I'm sorry for any confusion, but as a chatbot"

# What a model could write to break, fool or blow up a page that shows it.
HOSTILE = (
    "<script>document.title = 'hacked'</script>",
    "<img src=x onerror=\"document.title='hacked'\"><svg onload=\"document.title='hacked'\">",
    "</script></textarea></style><!--<script>document.title='hacked'</script>",
    '<a href="javascript:document.title=1">click</a><iframe srcdoc="<script>parent.document.title=1</script>">',
    "%%POLICY%% %%DATA%% ${document.title = 'hacked'} {{7*7}} \\u003cscript> &lt;script&gt; &amp;",
    "to the right \u202eand back to front\u202c, \u2067isolated\u2069, שלום مرحبا",
    "a null\u0000byte, a bell\u0007, an escape\u001b[31m, a line\u2028and a paragraph\u2029separator, \ufeff\ud800",
    "x" * 50_000,
    "one\n" * 3_000,
    "",
    "\u0301" * 2_000 + "Z\u0351\u0334" * 200,
    "'\"`;--",
)


def write_align_run(
    path: Path,
    *,
    num_iterations: int = 6,
    num_prompts: int = 4,
    num_samples: int = 4,
    num_held_out: int = 8,
    num_words: int = 12,
    texts: Sequence[str] = (),
    lift: float = 0.1,
    seed: int = 0,
    finished: bool = True,
) -> Path:
    """A run of raft align; ``texts`` are the first responses of every iteration and of the held-out prompts."""
    chance = random.Random(seed)
    ids = list(range(max(num_prompts, num_prompts * num_iterations // 2)))
    log: list[dict[str, Any]] = [held_out(path, 0, num_held_out, num_words, texts, lift, chance)]
    for iteration in range(1, num_iterations + 1):
        drawn = [ids[(num_prompts * (iteration - 1) + i) % len(ids)] for i in range(num_prompts)]
        rows = list(samples(drawn, iteration, num_samples, num_words, texts, lift, chance))
        folder = path / f"iterations/{iteration:04d}"
        write_rows(folder / "samples.jsonl", rows)
        log += [{"time": 60.0 * iteration, "step": iteration * 4 + i, "train/loss": 2 / iteration + chance.random() / 9,
                 "train/learning_rate": 1e-5 * (1 - iteration / 9)} for i in range(4)]  # fmt: skip
        metrics = iteration_metrics(rows, iteration, chance)
        log.append({"time": 60.0 * iteration + 30, "iteration": iteration, **metrics})
        write_json(folder / "metrics.json", metrics)
        log.append(held_out(path, iteration, num_held_out, num_words, texts, lift, chance))
    write_jsonl(path / "metrics.jsonl", log)
    write_config(path, {"raft": {"num_raft_iteration": num_iterations, "raft_batch_size": num_prompts,
                                 "num_samples_per_prompt": num_samples, "collection_strategy": "local"}})  # fmt: skip
    if finished:
        first, last = log[0]["held_out/reward_mean"], log[-1]["held_out/reward_mean"]
        reward = {"initial": first, "final": last, "difference": last - first, "ci95": [0.25, 0.75], "num_prompts": 8}
        write_json(path / "summary.json", {"num_iterations": num_iterations, "best_iteration": num_iterations,
                                           "held_out_reward": reward, "seconds": {"total": 3700.0}})  # fmt: skip
    return path


def write_config(path: Path, groups: dict[str, Any]) -> None:
    """config.yaml (JSON is YAML) and environment.json."""
    model = {"model_name_or_path": "models/tiny", "dtype": "bf16"}
    write_json(path / "config.yaml", {"model": model, "run": {"seed": 0}, **groups})
    versions = {"torch": "2.13.0", "transformers": "5.23.0", "deepspeed": None}
    write_json(path / "environment.json", {"raft": "0.1", "packages": versions, "cpu_count": 2, "gpus": [],
                                           "arguments": ["align"], "commit": "0123456789abcdef"})  # fmt: skip


def write_sft_run(path: Path, num_steps: int = 300) -> Path:
    """A run of raft sft: curves and an evaluation, no texts."""
    chance = random.Random(1)
    rows: list[dict[str, Any]] = [{"step": 0, "eval/loss": 2.5, "eval/perplexity": 12.2}]
    rows += [{"time": 10.0 * i, "step": i, "train/loss": 2.4 / i**0.2 + chance.random() / 4,
              "train/learning_rate": 1e-4 * (1 - i / num_steps)} for i in range(1, num_steps + 1)]  # fmt: skip
    rows.append({"step": num_steps, "eval/loss": 1.5, "eval/perplexity": 4.5})
    write_jsonl(path / "metrics.jsonl", rows)
    write_json(path / "config.yaml", {"model": {"model_name_or_path": "models/tiny"}, "run": {"seed": 3}})
    write_json(path / "environment.json", {"raft": "0.1", "arguments": ["sft", "--seed", "3"]})
    write_json(path / "summary.json", {"num_steps": num_steps, "loss": 1.5, "perplexity": 4.5})
    return path


def write_drift(path: Path, iteration: int, feature: str = PHRASE, kind: str = "phrase") -> None:
    """drift.json of an iteration with one alarm."""
    finding = {
        "kind": kind, "feature": feature, "share_start": 0.031, "share_now": 0.42, "selection_ratio": 1.4,
        "ratio": 13.1, "ratio_low": 6.0, "log_odds": 2.9, "z": 9.1, "p": 1e-9, "num_prompts": 14, "alarm": True,
        "also": [["phrase", "any confusion"]], "first_iteration": iteration,
        "examples": [{"prompt_id": "p1", "sample": 3, "selected": True, "excerpt": f"{feature} designed to assist"}],
        "rule": {"flag": "discard_regex", "value": "any confusion", "command": "--discard_regex 'any confusion'",
                 "caught": 0.95, "discards_now": 0.41, "discards_start": 0.03},
    }  # fmt: skip
    risen = {**finding, "feature": "personal advice", "alarm": False, "first_iteration": None, "p": 0.2}
    write_json(
        path / f"iterations/{iteration:04d}/drift.json",
        {"iteration": iteration, "alarms": [finding], "risen": [risen]},
    )


def data_of(page: str) -> dict[str, Any]:
    """The data in a page, unpacked as the page's script does."""
    packed = re.search(r'<script type="application/octet-stream" id="data">([^<]*)</script>', page)
    assert packed
    found: dict[str, Any] = json.loads(zlib.decompress(base64.b64decode(packed[1]), wbits=-15))
    return found


# ---------------------------------------------------------------- rows


def held_out(path: Path, iteration: int, num: int, words: int, texts: Sequence[str], lift: float,
             chance: random.Random) -> dict[str, Any]:  # fmt: skip
    """Write the held-out responses after an iteration; gives the line of metrics.jsonl."""
    rows = [
        row([f"held-out question {i}"], f"h{i}", i, texts[i] if i < len(texts) else sentence(chance, words),
            round(chance.gauss(1 + lift * iteration, 0.4), 4), None)
        for i in range(num)
    ]  # fmt: skip
    write_rows(path / f"held_out/{iteration:04d}.jsonl", rows)
    mean = sum(one["reward"] for one in rows) / num
    return {"time": 60.0 * iteration + 50, "iteration": iteration, "held_out/reward_mean": mean,
            "held_out/reward_ci95": [mean - 0.2, mean + 0.2], "held_out/length_mean": 50.0 + iteration,
            "held_out/kl": 0.02 * iteration, "held_out/distinct-2": 0.64 - 0.02 * iteration,
            "held_out/eos_share": 0.1}  # fmt: skip


def samples(prompts: Sequence[int], iteration: int, num_samples: int, words: int, texts: Sequence[str], lift: float,
            chance: random.Random) -> Iterator[dict[str, Any]]:  # fmt: skip
    """Rows of samples.jsonl: the best response of every prompt is selected, now and then one is discarded."""
    for draw, number in enumerate(prompts):
        rewards = [round(chance.gauss(1 + lift * iteration, 0.5), 4) for _ in range(num_samples)]
        for i, reward in enumerate(rewards):
            at = draw * num_samples + i
            text = texts[at] if at < len(texts) else sentence(chance, words)
            discarded = "matches a discard rule" if reward != max(rewards) and chance.random() < 0.05 else None
            yield row([f"question {number} of the training prompts"], f"p{number}", at, text,
                      None if discarded else reward, reward == max(rewards), discarded)  # fmt: skip


def row(turns: Sequence[str], prompt_id: str, sample_id: int, text: str, reward: float | None, selected: bool | None,
        discarded: str | None = None) -> dict[str, Any]:  # fmt: skip
    """One row, as ``Sample.as_json`` gives it."""
    prompt = [{"role": "user", "content": one} for one in turns]
    return {"prompt_id": prompt_id, "sample_id": sample_id, "prompt": prompt,
            "response": text, "response_tokens": list(range(len(text.split()))), "finish_reason": "length",
            "scores": {"reward_model": reward, "log_ratio": 0.5} if reward is not None else {}, "reward": reward,
            "discarded": discarded, "selected": selected}  # fmt: skip


def sentence(chance: random.Random, words: int) -> str:
    """Text that compresses about as well as English does: common words are common."""
    picked = [WORDS[min(len(WORDS) - 1, int(chance.paretovariate(0.7)) - 1)] for _ in range(words)]
    return " ".join(picked).capitalize() + "."


def iteration_metrics(rows: Sequence[dict[str, Any]], iteration: int, chance: random.Random) -> dict[str, Any]:
    """The metrics of an iteration that the page has a place for, and one that it has never heard of."""
    rewards = [one["reward"] for one in rows if one["reward"] is not None]
    chosen = [one["reward"] for one in rows if one["selected"]]
    return {
        "reward/all_mean": sum(rewards) / len(rewards), "reward/selected_mean": sum(chosen) / len(chosen),
        "samples/num": len(rows), "samples/num_selected": len(chosen),
        "response/length_mean": 50 + iteration, "response/eos_share": 0.2,
        "diversity/distinct-2": 0.66 - 0.02 * iteration, "diversity/selected_distinct-2": 0.7 - 0.02 * iteration,
        "novelty/of_something": chance.random(), "train/loss": 2 / iteration,
        "seconds/sampling": 12 + chance.random(), "seconds/scoring": 6.0, "seconds/training": 11.0,
    }  # fmt: skip


def write_rows(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    """As ``write_jsonl``, in ASCII: half of a surrogate pair has no UTF-8."""
    write_text(path, "".join(json.dumps(one) + "\n" for one in rows))
