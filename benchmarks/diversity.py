"""How long the diversity metrics of one iteration take, beside NLTK and the plain loops that GEM-metrics uses.

8,192 responses of 128 words by default, made up from a seeded Zipf distribution of words. Both sides do the same work
in this process, one after the other, and their numbers have to agree. Seconds are of the processor (user and system),
so that other work on the machine matters less; wall-clock seconds stand beside them.

    python benchmarks/diversity.py
    python benchmarks/diversity.py --num_responses 512 --self_bleu_texts 50
"""

from __future__ import annotations

import math
import re
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
if str(ROOT) not in sys.path:
    sys.path.insert(0, str(ROOT))

from benchmarks.iteration import machine_label, version  # noqa: E402
from raft.arguments import argument, parse  # noqa: E402
from raft.config import require  # noqa: E402
from raft.errors import UserError  # noqa: E402
from raft.functional import diversity  # noqa: E402
from raft.functional.self_bleu import self_bleu  # noqa: E402
from raft.functional.tokens import tokenize  # noqa: E402
from raft.run_directory import write_json  # noqa: E402

Texts = list[list[str]]


@dataclass
class Size:
    """Size"""

    num_responses: int = argument(8192, "Responses.")
    num_words: int = argument(128, "Words in each.")
    self_bleu_texts: int = argument(200, "Responses that self-BLEU is measured on; NLTK's time grows with the square.")
    seed: int = argument(0, "Seed of the responses and of self-BLEU's sample.")
    label: str | None = argument(None, "This machine's name in the result's file name. Default: its CPU and cores.")
    results_dir: str = argument("benchmarks/results", "Where the result is written.")

    def __post_init__(self) -> None:
        for name in ("num_responses", "num_words", "self_bleu_texts"):
            require(getattr(self, name) >= 2, f"--{name}: found {getattr(self, name)}, allowed are integers from 2.")


@dataclass
class BenchmarkConfig:
    """Measure the diversity metrics of one iteration beside NLTK and plain loops."""

    size: Size = field(default_factory=Size)

    examples: ClassVar[tuple[str, ...]] = ("python benchmarks/diversity.py",)


def make_responses(size: Size) -> list[str]:
    """Sentences of 5 to 15 words, too long for abbreviations; that of rank r has a share of 1/r, as in natural text."""
    generator = np.random.default_rng(size.seed)
    letters = np.array(list("etaoinshrdlu"))
    words = ["".join(generator.choice(letters, generator.integers(5, 12))) for _ in range(20_000)]
    shares = 1 / np.arange(1, len(words) + 1)
    drawn = generator.choice(len(words), (size.num_responses, size.num_words), p=shares / shares.sum())
    ends = generator.random(drawn.shape) < 0.1
    return [
        " ".join(words[word] + "." * bool(end) for word, end in zip(row, of_row, strict=True))
        for row, of_row in zip(drawn.tolist(), ends.tolist(), strict=True)
    ]


# ------------------------------------------------------------------------------------------- the plain way


def nltk_tokens(texts: Sequence[str]) -> Texts:
    """NLTK's word tokenizer, sentence by sentence, without the model that finds sentences."""
    from nltk.tokenize import NLTKWordTokenizer

    tokenizer = NLTKWordTokenizer()
    sentences = (re.split(r"(?<=\.) ", text) for text in texts)
    return [[token.lower() for part in parts for token in tokenizer.tokenize(part)] for parts in sentences]


def plain_ngrams(texts: Texts) -> dict[str, float]:
    """Dictionaries of tuples, as in GEM-metrics."""
    from nltk import ngrams

    report: dict[str, float] = {}
    before: dict[Any, int] = {}
    for n in (1, 2, 3):
        counts: dict[Any, int] = {}
        for text in texts:
            for gram in ngrams(text, n):
                counts[gram] = counts.get(gram, 0) + 1
        total = sum(counts.values())
        report[f"distinct-{n}"] = len(counts) / total
        report[f"vocab_size-{n}"] = len(counts)
        report[f"unique-{n}"] = sum(count == 1 for count in counts.values())
        report[f"entropy-{n}"] = -sum(c / total * np.log2(c / total) for c in counts.values())
        if n > 1:
            contexts = sum(before.values())
            report[f"cond_entropy-{n}"] = -sum(
                c / total * np.log2((c / total) / (before[gram[:-1]] / contexts))
                for gram, c in counts.items()
            )
        before = counts
    return report


def plain_msttr(texts: Texts) -> dict[str, float]:
    tokens = [token for text in texts for token in text]
    ratios = [len(set(tokens[i : i + 100])) / 100 for i in range(0, len(tokens) - 99, 100)]
    return {"msttr-100": sum(ratios) / len(ratios) if ratios else math.nan}


def plain_repetition(texts: Texts) -> dict[str, float]:
    shares = [1 - len({tuple(t[i : i + 4]) for i in range(len(t) - 3)}) / (len(t) - 3) for t in texts if len(t) > 3]
    return {"repetition-4": sum(shares) / len(shares) if shares else math.nan}


def plain_self_bleu(texts: Texts, size: Size) -> dict[str, float]:
    """NLTK's sentence BLEU of each text of the sample against all others of it."""
    from nltk.translate.bleu_score import SmoothingFunction, sentence_bleu

    num_texts = min(size.self_bleu_texts, len(texts))
    chosen = np.sort(np.random.default_rng(size.seed).choice(len(texts), num_texts, replace=False))
    sample = [texts[i] for i in chosen] if num_texts < len(texts) else texts
    method = SmoothingFunction().method1
    scores = [
        sentence_bleu(sample[:i] + sample[i + 1 :], text, smoothing_function=method) for i, text in enumerate(sample)
    ]
    return {"self_bleu-4": sum(scores) / len(scores)}


# ------------------------------------------------------------------------------------------- both


def timed(function: Callable[[], Any]) -> tuple[Any, dict[str, float]]:
    """The result, and the seconds of the processor and of the clock."""
    cpu, wall = time.process_time(), time.perf_counter()
    result = function()
    return result, {"cpu": time.process_time() - cpu, "wall": time.perf_counter() - wall}


def main(config: BenchmarkConfig) -> dict[str, Any]:
    """Measure, compare the numbers, print a table and write the result."""
    size = config.size
    responses = make_responses(size)
    seconds: dict[str, dict[str, dict[str, float]]] = {"raft": {}, "plain": {}}
    tokens, seconds["raft"]["tokens"] = timed(lambda: [tokenize(text) for text in responses])
    options: dict[str, Any] = {"num_texts": size.self_bleu_texts, "seed": size.seed}
    report, seconds["raft"]["all metrics"] = timed(
        lambda: diversity.token_report(tokens, self_bleu_texts=size.self_bleu_texts, seed=size.seed)
    )
    _, seconds["raft"]["self_bleu"] = timed(lambda: self_bleu(tokens, **options))
    theirs, seconds["plain"]["tokens"] = timed(lambda: nltk_tokens(responses))
    found: dict[str, float] = {}
    plain: dict[str, Callable[[], dict[str, float]]] = {
        "n-grams": lambda: plain_ngrams(tokens),
        "msttr": lambda: plain_msttr(tokens),
        "repetition": lambda: plain_repetition(tokens),
        "self_bleu": lambda: plain_self_bleu(tokens, size),
    }
    for name, function in plain.items():
        metrics, seconds["plain"][name] = timed(function)
        found |= metrics
    result = {
        "size": {key: value for key, value in asdict(size).items() if key not in ("label", "results_dir")},
        "num_tokens": sum(map(len, tokens)),
        "same_tokens": tokens == theirs,
        "largest_difference": max(abs(report[name] - value) for name, value in found.items()),
        "seconds": seconds,
        "total_cpu_seconds": {
            "raft": seconds["raft"]["tokens"]["cpu"] + seconds["raft"]["all metrics"]["cpu"],
            "plain": sum(one["cpu"] for one in seconds["plain"].values()),
        },
        "versions": {"python": sys.version.split()[0], "numpy": version("numpy"), "nltk": version("nltk")},
    }
    print(describe(result))
    write_json(Path(size.results_dir) / f"diversity-{size.label or machine_label()}.json", result)
    return result


def describe(result: dict[str, Any]) -> str:
    """The result as a table."""
    lines = [f"{result['num_tokens']:,} tokens; largest difference of a metric {result['largest_difference']:.1e}"]
    lines.append(f"{'':<24}{'CPU s':>8}{'wall s':>8}")
    for peer, parts in result["seconds"].items():
        lines += [f"{peer + ': ' + name:<24}{one['cpu']:>8.2f}{one['wall']:>8.2f}" for name, one in parts.items()]
    ours, plain = (result["total_cpu_seconds"][peer] for peer in ("raft", "plain"))
    lines.append(f"in all: raft {ours:.2f}, plain {plain:.2f} CPU seconds, ratio {plain / ours:.1f}")
    return "\n".join(lines)


if __name__ == "__main__":
    try:
        main(parse(BenchmarkConfig, sys.argv[1:], prog="python benchmarks/diversity.py"))
    except UserError as error:
        sys.exit(f"error: {error}")
