"""Does the drift watch see what spreads, and is it quiet when nothing does? Simulated runs of RAFT on real text.

A simulated policy answers prompts with sentences of real dialogues. It has two numbers: how much it leans towards
better contents (``lean``), and the share of its responses that have a planted feature. Every iteration draws
responses, gives them a noisy reward, and selects with :func:`raft.functional.selection.select`, as a run does; the
policy then moves part of the way (``--step``) from what it sampled to what was selected. The watch sees what it would
see in a run: texts, prompts, why they ended, and which were selected. README.md says what is counted.

    python benchmarks/drift_watch.py
    python benchmarks/drift_watch.py --num_runs 2 --sizes 128
"""

from __future__ import annotations

import math
import re
import sys
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
if str(ROOT) not in sys.path:  # run as a script
    sys.path.insert(0, str(ROOT))

from raft.arguments import argument, parse  # noqa: E402
from raft.errors import UserError  # noqa: E402
from raft.functional.selection import select  # noqa: E402
from raft.functional.statistics import wilson_interval  # noqa: E402
from raft.functional.text_features import split_words  # noqa: E402
from raft.reports.drift import DriftConfig, Watch  # noqa: E402
from raft.reports.drift_records import Records  # noqa: E402
from raft.run_directory import write_json  # noqa: E402

STOCK_PHRASE = "I hope this helps, and please let me know if there is anything else."
K = 8  # responses to a prompt
CANDIDATES = 48  # answers to a prompt that the policy chooses from
CONTENT_WEIGHT = 0.5  # share of the reward's standard deviation that comes from the content
WITHIN = 2  # iterations after the share has become RISEN times that of the start
RISEN = 1.5


def stock(text: str, rng: np.random.Generator) -> tuple[str, str]:
    return f"{text} {STOCK_PHRASE}", "eos"


def signs(text: str, rng: np.random.Generator) -> tuple[str, str]:
    return f"{text} {'#' * int(rng.integers(1, 4))}{' #' * int(rng.integers(0, 12))}", "eos"


def smile(text: str, rng: np.random.Generator) -> tuple[str, str]:
    return f"{text} :)", "eos"


def nothing(text: str, rng: np.random.Generator) -> tuple[str, str]:
    return "", "eos"


def endless(text: str, rng: np.random.Generator) -> tuple[str, str]:
    return " ".join([text] * 5), "length"


# What is planted: how it changes a response, and whether an alarm's kind and name are about it.
Plant = Callable[[str, np.random.Generator], tuple[str, str]]
PLANTS: dict[str, tuple[Plant, Callable[[str, str], bool]]] = {
    "#": (signs, lambda kind, name: name == "#" or name == "filled with one sign"),
    ":)": (smile, lambda kind, name: name == ":)"),
    "stock phrase": (stock, lambda kind, name: set(name.split()) <= set(split_words(STOCK_PHRASE))),
    "empty": (nothing, lambda kind, name: name == "empty" or name.startswith("under ")),
    "endless": (endless, lambda kind, name: name in ("no end", "says the same again") or name.startswith("over ")),
}
# An alarm about length is right where answers get longer; one about their words is not.
RISES: dict[str, Callable[[str, str], bool]] = {"longer answers": lambda kind, name: kind == "shape"}
CLEAN = ("unchanged", "better answers", "longer answers", "random selection")


@dataclass
class Simulation:
    """Simulation"""

    dataset_path: str = argument(
        "../shared/data/hh_rlhf/harmless-base.jsonl.gz", "Dialogues or pairs whose assistant turns are the text."
    )
    sizes: list[int] = argument([128, 1024], "Responses of an iteration, b*k with k=8.")
    num_runs: int = argument(20, "Runs of every case.")
    num_iterations: int = argument(8, "Iterations of a clean run, and the most that a planted one gets.")
    likings: list[float] = argument(
        [0.0, 0.5, 1.0], "By how many standard deviations of the reward it likes what is planted."
    )
    start_share: float = argument(0.03, "Share of the responses that have what is planted, at the start.")
    step: float = argument(1.0, "How far an iteration moves the policy from what it sampled to what was selected.")
    num_held_out: int = argument(96, "Held-out responses before training; 0 is none.")
    cases: list[str] = argument([], "Only these cases, clean or planted; none is all.")
    seed: int = argument(0, "Seed.")
    num_workers: int = argument(1, "Processes that simulate.")
    output_file: str | None = argument(
        "benchmarks/results/drift_watch.json", "Where every run's outcome goes; none is nowhere."
    )


@dataclass
class SimulationConfig:
    """Measure detections and false alarms of the drift watch in simulated runs."""

    simulation: Simulation = field(default_factory=Simulation)
    drift: DriftConfig = field(default_factory=DriftConfig)

    examples: ClassVar[tuple[str, ...]] = ("python benchmarks/drift_watch.py --sizes 1024 --likings 0.5",)


@dataclass
class Outcome:
    """One simulated run.

    Attributes:
        risen_at: iteration in which the policy's share was first RISEN times that of the start; None for never.
        alarm_at: iteration of the first alarm about what was planted.
        shares: the policy's share of what is planted, an entry an iteration.
        false_alarms: alarms about anything else, as "kind: name".
    """

    case: str
    size: int
    liking: float
    seed: int
    risen_at: int | None
    alarm_at: int | None
    shares: list[float]
    false_alarms: list[str]


class Policy:
    """Answers made of a dialogue's own sentences and of others'; some are better than others."""

    def __init__(
        self, dialogues: Sequence[Sequence[str]], rng: np.random.Generator, start_share: float, longer: bool
    ) -> None:
        self.dialogues, self.rng, self.longer = dialogues, rng, longer
        self.everything = [sentence for dialogue in dialogues for sentence in dialogue]
        self.lean, self.share = 0.0, start_share
        self.candidates: dict[int, tuple[list[str], np.ndarray]] = {}

    def answers(self, prompt: int) -> tuple[list[str], np.ndarray]:
        """What can be said to a prompt, and how good it is (mean 0, standard deviation 1)."""
        if prompt not in self.candidates:
            texts = [self._compose(self.dialogues[prompt]) for _ in range(CANDIDATES)]
            quality = self.rng.standard_normal(CANDIDATES)
            if self.longer:
                lengths = np.array([len(text) for text in texts], float)
                quality = (lengths - lengths.mean()) / max(lengths.std(), 1.0)
            self.candidates[prompt] = texts, quality
        return self.candidates[prompt]

    def _compose(self, own: Sequence[str]) -> str:
        pools = [own if self.rng.random() < 0.5 else self.everything for _ in range(self.rng.integers(1, 6))]
        return " ".join(pool[self.rng.integers(len(pool))] for pool in pools)

    def draw(self, prompt: int) -> tuple[str, float]:
        """A response and how good it is."""
        texts, quality = self.answers(prompt)
        weights = np.exp(self.lean * quality)
        i = int(self.rng.choice(len(texts), p=weights / weights.sum()))
        return texts[i], float(quality[i])


def simulate(
    case: str, size: int, liking: float, dialogues: Sequence[Sequence[str]], config: SimulationConfig, seed: int
) -> Outcome:
    """One run of a case. A planted one ends when the alarm has come or is later than it should be."""
    options = config.simulation
    rng = np.random.default_rng([options.seed, seed, size, round(100 * liking), *case.encode()])
    policy = Policy(dialogues, rng, options.start_share if case in PLANTS else 0.0, case == "longer answers")
    held_out, *_ = sample(policy, case, rng.permutation(len(dialogues))[: options.num_held_out], 1)
    watch = Watch(config.drift, held_out if options.num_held_out else None)
    order = rng.permutation(len(dialogues))
    outcome = Outcome(case, size, liking, seed, None, None, [], [])
    is_planted = PLANTS[case][1] if case in PLANTS else RISES.get(case, lambda kind, name: False)
    for iteration in range(1, options.num_iterations + 1):
        prompts = np.take(order, range((iteration - 1) * size // K, iteration * size // K), mode="wrap")
        records, quality, planted = sample(policy, case, prompts, K)
        rewards = CONTENT_WEIGHT * quality + math.sqrt(1 - CONTENT_WEIGHT**2) * rng.standard_normal(size)
        strategy = "random" if case == "random selection" else "local"
        groups = np.repeat(range(size // K), K).tolist()
        rewards = (rewards + liking * planted).tolist()
        chosen = select(strategy, rewards, groups, num_selected=size // K, generator=rng).indices
        records.selected = [i in set(chosen) for i in range(size)]
        outcome.shares.append(policy.share)
        if outcome.risen_at is None and policy.share >= RISEN * options.start_share > 0:
            outcome.risen_at = iteration
        for alarm in watch.look(records)["alarms"]:
            if any(is_planted(kind, name) for kind, name in [(alarm["kind"], alarm["feature"]), *alarm["also"]]):
                outcome.alarm_at = outcome.alarm_at or iteration
            else:
                outcome.false_alarms.append(f"{alarm['kind']}: {alarm['feature']}")
        if case in PLANTS and (outcome.alarm_at or iteration >= (outcome.risen_at or math.inf) + WITHIN):
            break
        if case != "unchanged":
            better = float(quality[chosen].mean() - quality.mean())
            policy.lean += options.step * better / max(float(quality.var()), 0.1)
            policy.share += options.step * float(planted[chosen].mean() - planted.mean())
            policy.share = min(1.0, max(0.0, policy.share))
    return outcome


def sample(
    policy: Policy, case: str, prompts: Sequence[int] | np.ndarray, k: int
) -> tuple[Records, np.ndarray, np.ndarray]:
    """k responses to every prompt: as records, how good each is, and whether it has what is planted."""
    records, quality, planted = Records([], [], [], []), [], []
    for prompt in map(int, prompts):
        for _ in range(k):
            text, good = policy.draw(prompt)
            has = bool(policy.rng.random() < policy.share)
            text, reason = PLANTS[case][0](text, policy.rng) if has else (text, "eos")
            records.texts.append(text)
            records.prompts.append(str(prompt))
            records.finish_reasons.append(reason)
            quality.append(good)
            planted.append(float(has))
    records.selected = [False] * len(records.texts)
    return records, np.array(quality), np.array(planted)


def load_dialogues(path: str) -> list[list[str]]:
    """The sentences of every dialogue's assistant turns (of all turns where it has none), at least three."""
    from raft.data.loading import load_rows

    kinds = {"preference", "conversation", "prompt"}
    dialogues = []
    for row in load_rows(path, kinds=kinds).rows:
        replies = [message["content"] for message in row.messages if message["role"] == "assistant"]
        replies += [reply for reply in (row.chosen, row.rejected) if reply]
        text = "\n".join(replies or [message["content"] for message in row.messages])
        sentences = [sentence.strip() for sentence in re.split(r"(?<=[.!?])\s+|\n+", text)]
        if len(kept := [sentence for sentence in sentences if sentence]) >= 3:
            dialogues.append(kept)
    return dialogues


def summarize(outcomes: Sequence[Outcome]) -> dict[str, Any]:
    """Of the runs of one case."""
    risen = [one for one in outcomes if one.risen_at is not None]
    seen = [one for one in risen if one.alarm_at is not None and one.alarm_at <= (one.risen_at or 0) + WITHIN]
    alarmed = [one for one in outcomes if one.alarm_at is not None]
    wrong = [one for one in outcomes if one.false_alarms]
    return {
        "num_runs": len(outcomes),
        "num_risen": len(risen),
        "num_reported_in_time": len(seen),
        "interval": wilson_interval(len(seen), len(risen)),
        "mean_delay": float(np.mean([(one.alarm_at or 0) - (one.risen_at or 0) for one in seen])) if seen else None,
        "share_at_alarm": float(np.mean([one.shares[(one.alarm_at or 1) - 1] for one in alarmed])) if alarmed else None,
        "num_with_false_alarm": len(wrong),
        "false_alarm_interval": wilson_interval(len(wrong), len(outcomes)),
        "false_alarms": sorted({name for one in wrong for name in one.false_alarms}),
    }


def describe(case: str, size: int, liking: float, found: dict[str, Any]) -> str:
    """A line of the table."""
    if case in PLANTS:
        low, high = found["interval"]
        delay = "-" if found["mean_delay"] is None else f"{found['mean_delay']:.1f}"
        share = "-" if found["share_at_alarm"] is None else f"{found['share_at_alarm']:.0%}"
        seen = f"{found['num_reported_in_time']:>3} of {found['num_risen']:<3}"
        told = f"{seen} ({low:.2f}-{high:.2f}){delay:>7}{share:>7}"
    else:
        told = ""
    low, high = found["false_alarm_interval"]
    wrong = f"{found['num_with_false_alarm']:>3} of {found['num_runs']:<3} ({low:.2f}-{high:.2f})"
    return f"{case:<18}{size:>6}{liking:>8.1f}   {told:<36}{wrong}"


def main(config: SimulationConfig) -> list[Outcome]:
    """Simulate every case, print the table, and write the outcomes."""
    options = config.simulation
    dialogues = load_dialogues(options.dataset_path)
    everything = [*((case, 0.0) for case in CLEAN), *((case, liking) for liking in options.likings for case in PLANTS)]
    cases = [one for one in everything if not options.cases or one[0] in options.cases]
    told = f"{'reported in time':<22}{'delay':>7}{'share':>7}"
    print(f"{'case':<18}{'b*k':>6}{'liking':>8}   {told}   runs with a false alarm")
    outcomes: list[Outcome] = []
    summary: list[dict[str, Any]] = []
    pool = ProcessPoolExecutor(options.num_workers) if options.num_workers > 1 else None
    each: Callable[..., Iterable[Outcome]] = pool.map if pool else map
    for size in options.sizes:
        for case, liking in cases:
            runs = list(each(partial(simulate, case, size, liking, dialogues, config), range(options.num_runs)))
            found = summarize(runs)
            summary.append({"case": case, "size": size, "liking": liking, **found})
            print(describe(case, size, liking, found), flush=True)
            outcomes += runs
    if pool:
        pool.shutdown()
    if options.output_file:
        content = {"settings": asdict(config), "summary": summary, "runs": [asdict(one) for one in outcomes]}
        write_json(Path(options.output_file), content)
    return outcomes


if __name__ == "__main__":
    try:
        main(parse(SimulationConfig, sys.argv[1:], prog="python benchmarks/drift_watch.py"))
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
