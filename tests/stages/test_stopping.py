"""What a held-out evaluation means for a run: from samples to a verdict, and through a checkpoint."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from typing import Any

import pytest

from raft.arguments import parse
from raft.errors import UserError
from raft.functional.statistics import paired_bootstrap_interval
from raft.rollout.prompts import Prompt
from raft.rollout.samples import Sample
from raft.run_directory import json_safe
from raft.stages.align_config import AlignConfig
from raft.stages.align_parts import Progress
from raft.stages.stopping import Judgement, StoppingConfig, read_history

BOTH = StoppingConfig(early_stopping="both")


def held_out(*rewards: float | None) -> list[Sample]:
    prompt = Prompt("p", ({"role": "user", "content": "hi"},), [1], {})
    return [Sample(i, i, prompt, "a b", [1, 2], "eos", reward=reward) for i, reward in enumerate(rewards)]


def evaluate(
    progress: Progress, iteration: int, rewards: Sequence[float | None], config: StoppingConfig = BOTH, **metrics: Any
) -> Judgement:
    known = [reward for reward in rewards if reward is not None]
    mean = sum(known) / len(known) if known else math.nan
    progress.iteration = iteration
    found = {"held_out/reward_mean": mean} | {f"held_out/{name}": value for name, value in metrics.items()}
    return progress.evaluated(found, held_out(*rewards), config)


def over_fitted(**changes: Any) -> Progress:
    """A run whose 12 held-out prompts were at their best after iteration 2 and have all lost since."""
    progress = Progress()
    evaluate(progress, 0, [0.0] * 12)
    progress.training_reward = 1.0
    evaluate(progress, 2, [1.0 + i for i in range(12)])
    progress.training_reward = 1.5
    return progress


def test_a_fall_beyond_chance_ends_the_run_with_its_reason() -> None:
    progress = over_fitted()
    losses = [0.1 * i for i in range(12)]
    judgement = evaluate(progress, 4, [1.0 + i - loss for i, loss in enumerate(losses)])
    low, high = paired_bootstrap_interval([-loss for loss in losses])
    assert progress.evaluations[-1].change == pytest.approx((low, high))
    assert high < 0
    assert progress.stopped is not None
    assert progress.stopped["rule"] == "falling"
    assert f"{low:+.3f} to {high:+.3f}), training 1.000 -> 1.500" in progress.stopped["reason"]
    assert judgement.lines(4) == [f"iteration 4: {progress.stopped['reason']}; the run ends here"]
    assert judgement.metrics == {"stopping/best_iteration": 2, "stopping/falling": progress.stopped["reason"]}


def test_changes_count_from_the_best_and_not_from_the_last() -> None:
    progress = over_fitted()
    for iteration, loss in ((4, 0.5), (6, 0.25)):
        evaluate(progress, iteration, [1.0 + i - loss for i in range(12)])
        assert progress.evaluations[-1].change == pytest.approx((-loss, -loss))


def test_prompts_without_a_reward_are_left_out_and_few_prompts_are_no_proof() -> None:
    progress = over_fitted()
    evaluate(progress, 4, [None, None, *(0.5 + i for i in range(2, 12))])
    assert progress.evaluations[-1].change == (-0.5, -0.5)  # ten prompts, each half a point below
    progress = over_fitted()
    evaluate(progress, 4, [None, None, None, *(0.5 + i for i in range(3, 12))])
    assert progress.evaluations[-1].change is None
    assert progress.stopped is None


@pytest.mark.parametrize(
    ("rule", "stops"), [("none", None), ("level", None), ("falling", "falling"), ("both", "falling")]
)
def test_a_rule_that_is_not_asked_for_only_says_so(rule: Any, stops: str | None) -> None:
    progress, config = over_fitted(), StoppingConfig(early_stopping=rule)
    judgement = evaluate(progress, 4, [0.5 + i for i in range(12)], config)
    assert list(judgement.alarms) == ["falling"]
    assert judgement.stops == stops
    assert (progress.stopped is None) == (stops is None)
    ending = "the run ends here" if stops else "--early_stopping falling would end the run here"
    assert judgement.lines(4)[0].endswith(ending)


def test_after_a_checkpoint_the_verdict_is_the_same() -> None:
    progress = over_fitted()
    state = json.loads(json.dumps(json_safe(vars(progress)), allow_nan=False))
    resumed = Progress()
    resumed.restore(state, BOTH)
    assert [one[:3] for one in resumed.evaluations] == [one[:3] for one in progress.evaluations]
    assert resumed.best_rewards == progress.best_rewards
    for one in (progress, resumed):
        evaluate(one, 4, [0.5 + i for i in range(12)])
    assert resumed.stopped == progress.stopped is not None
    # What ends a run is decided by the flags of today.
    state = json.loads(json.dumps(json_safe(vars(progress)), allow_nan=False))
    again = Progress()
    again.restore(state, StoppingConfig(early_stopping="level"))
    assert again.stopped is None


def test_an_evaluation_in_which_few_responses_have_a_reward_is_not_the_best() -> None:
    progress = Progress()
    evaluate(progress, 0, [0.0] * 10)
    judgement = evaluate(progress, 2, [5.0] * 8 + [None] * 2)
    assert judgement.best_iteration == 0
    assert judgement.refused == "8 held-out responses have a reward, below 0.9 of the start's 10"
    assert evaluate(progress, 4, [1.0] * 9 + [None]).best_iteration == 4


def test_checkpoints_of_earlier_versions_have_shorter_evaluations() -> None:
    (found,) = read_history([[2, None, 1.0, 0.5, 9.0, None, [0.1, 0.2]]])
    assert (found.iteration, found.kl, found.num_scored) == (2, None, None)
    assert math.isnan(found.reward)


def test_every_second_is_told_once_also_after_a_checkpoint() -> None:
    progress = Progress()
    progress.seconds = {"loading": 9.0, "evaluation": 4.0, "saving": 1.0}
    assert progress.new_seconds("evaluation") == {"seconds/evaluation": 4.0}
    progress.seconds |= {"sampling": 2.0, "evaluation": 4.5}
    resumed = Progress()
    resumed.restore(json.loads(json.dumps(vars(progress))), BOTH)
    for one in (progress, resumed):
        assert one.new_seconds() == {"seconds/evaluation": 0.5, "seconds/saving": 1.0, "seconds/sampling": 2.0}
        assert one.new_seconds() == {}
    state = {name: value for name, value in vars(progress).items() if name != "seconds_told"}
    resumed.restore(state, BOTH)  # of an earlier version, which kept no account: not all of the run's in one row
    assert resumed.new_seconds() == {}


def test_kl_is_compared_with_its_limit() -> None:
    config, progress = StoppingConfig(best_max_kl=0.2), Progress()
    evaluate(progress, 0, [0.0], config, kl=0.0)
    judgement = evaluate(progress, 1, [1.0], config, kl=0.3)
    assert judgement.best_iteration == 0
    assert judgement.lines(1) == [
        "iteration 1: not kept in best/: the KL to the initial policy is 0.300 nats a token, above 0.2"
    ]
    assert evaluate(progress, 2, [0.5], config, kl=0.2).best_iteration == 2


def test_a_limit_on_a_kl_that_is_not_measured_is_refused() -> None:
    with pytest.raises(UserError, match=r"--best_max_kl needs the KL to be measured: --kl_num_responses above 0"):
        parse(AlignConfig, ["--best_max_kl", "0.1", "--kl_num_responses", "0"], prog="raft align")


@pytest.mark.parametrize(
    ("flag", "value"),
    [
        ("best_min_distinct_2", "1.1"),
        ("best_max_kl", "-0.1"),
        ("best_max_length_ratio", "0.9"),
        ("early_stopping_patience", "0"),
        ("early_stopping_min_gain", "-1"),
        ("early_stopping", "soon"),
    ],
)
def test_settings_that_make_no_sense_are_refused(flag: str, value: str) -> None:
    with pytest.raises(UserError, match=f"--{flag}: found"):
        parse(AlignConfig, [f"--{flag}={value}"], prog="raft align")
