from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from raft.functional.sampling import draw_tokens

LAST_FLOAT_BELOW_1 = float(np.nextafter(np.float32(1), np.float32(0)))
INF = float("inf")


def allowed(logits: np.ndarray, top_p: float, top_k: int) -> np.ndarray:
    """Which tokens may be drawn, token by token from the definitions: ranks and the mass that ranks before."""
    keep = np.isfinite(logits)
    if top_k:
        keep &= np.array([(logits > value).sum() < top_k for value in logits])
    p = np.where(keep, np.exp(logits - logits[keep].max()), 0.0)
    p /= p.sum()
    for token in np.flatnonzero(keep):
        # Equal probabilities rank by id.
        before = sum(p[o] for o in range(len(p)) if p[o] > p[token] or (p[o] == p[token] and o < token))
        keep[token] = before < top_p
    return keep


def probabilities(logits: list[float], temperature: float = 1.0, top_p: float = 1.0, top_k: int = 0) -> np.ndarray:
    """Exact distribution of the draw in double precision."""
    scaled = np.array(logits, dtype=np.float64) / temperature
    p = np.where(allowed(scaled, top_p, top_k), np.exp(scaled - scaled.max()), 0.0)
    return p / p.sum()


def by_walking(p: np.ndarray, uniform: float) -> int:
    """Inverse transform by hand: walk along the tokens until their mass exceeds the number."""
    mass = 0.0
    for token, share in enumerate(p):
        mass += share
        if mass > uniform:
            return token
    return int(np.flatnonzero(p)[-1])


def draw(logits: list[float], uniforms: list[float], **options: float) -> list[int]:
    """Draw once a number from the same logits."""
    rows = torch.tensor(logits).expand(len(uniforms), -1)
    return draw_tokens(rows, torch.tensor(uniforms, dtype=torch.float32), **options).tolist()  # type: ignore[arg-type]


def evenly(count: int) -> list[float]:
    """Numbers that hit every interval of [0, 1) in proportion to its length, to within one count."""
    return [(i + 0.5) / count for i in range(count)]


def test_the_number_points_into_the_cumulative_distribution() -> None:
    # Probabilities 1/8, 1/2, 3/8: token 0 below 0.125, token 1 below 0.625, token 2 from there. All exact in fp32.
    logits = torch.log(torch.tensor([1.0, 4.0, 3.0])).tolist()
    assert draw(logits, [0.0, 0.12, 0.13, 0.62, 0.63, 0.99]) == [0, 0, 1, 1, 2, 2]


@pytest.mark.parametrize("temperature", [0.0, 1e-6])
def test_greedy_takes_the_most_likely_token_whatever_the_number(temperature: float) -> None:
    assert draw([0.5, 2.0, -1.0, 1.99], [0.0, 0.5, LAST_FLOAT_BELOW_1], temperature=temperature) == [1, 1, 1]


def test_greedy_takes_the_lowest_of_equals() -> None:
    assert draw([1.0, 3.0, 3.0, 3.0], [0.99], temperature=0.0) == [1]


@pytest.mark.parametrize(
    "options",
    [{}, {"temperature": 0.7}, {"top_p": 0.8}, {"top_k": 3}, {"temperature": 0.7, "top_p": 0.9, "top_k": 12}],
)
def test_draws_equal_a_walk_along_the_tokens(options: dict[str, float]) -> None:
    generator = np.random.default_rng(0)
    logits = generator.normal(scale=2.0, size=(300, 20)).astype(np.float32)
    logits[generator.random(logits.shape) < 0.2] = -np.inf
    uniforms = generator.random(300, dtype=np.float32)
    drawn = draw_tokens(torch.from_numpy(logits), torch.from_numpy(uniforms), **options)  # type: ignore[arg-type]
    expected = [
        by_walking(probabilities(row.tolist(), **options), float(u))  # type: ignore[arg-type]
        for row, u in zip(logits, uniforms, strict=True)
    ]
    assert drawn.tolist() == expected


@pytest.mark.parametrize(
    ("options", "support"),
    [
        ({}, 5),
        ({"temperature": 0.7}, 5),
        ({"temperature": 2.0}, 5),
        # At temperature 1: 0.6341, 0.2333, 0.0858, 0.0316, 0.0153. The first two hold 0.8674, so 0.9 needs three.
        ({"top_p": 0.9}, 3),
        ({"top_p": 0.6}, 1),
        ({"top_k": 2}, 2),
        ({"top_k": 50}, 5),
        # top_k comes first: of three tokens the first holds 0.6652 of the mass and the first two 0.9099.
        ({"top_k": 3, "top_p": 0.9}, 2),
    ],
)
def test_frequencies_equal_the_probabilities(options: dict[str, float], support: int) -> None:
    logits, count = [1.0, 2.0, -INF, 0.0, -1.0, -1.72], 4000
    drawn = np.bincount(draw(logits, evenly(count), **options), minlength=6) / count
    exact = probabilities(logits, **options)  # type: ignore[arg-type]
    assert np.count_nonzero(drawn) == np.count_nonzero(exact) == support
    # Each token owns one interval of the evenly spaced numbers, or none.
    np.testing.assert_allclose(drawn, exact, atol=1.01 / count)


def test_temperature_by_hand() -> None:
    # Logits 0 and ln 4 at temperature 0.5 are 0 and ln 16: probabilities 1/17 and 16/17 = 0.0588 and 0.9412.
    logits = torch.log(torch.tensor([1.0, 4.0])).tolist()
    assert draw(logits, [0.058, 0.059], temperature=0.5) == [0, 1]
    # At temperature 1 they are 1/5 and 4/5.
    assert draw(logits, [0.199, 0.201]) == [0, 1]


def test_top_p_keeps_the_token_that_reaches_it() -> None:
    logits = torch.log(torch.tensor([0.5, 0.25, 0.25])).tolist()
    assert set(draw(logits, evenly(100), top_p=0.5)) == {0}  # 0.5 alone holds 0.5
    assert set(draw(logits, evenly(100), top_p=0.51)) == {0, 1}  # of equals, the lower id
    assert set(draw(logits, evenly(100), top_p=0.76)) == {0, 1, 2}


@given(
    st.lists(st.sampled_from([-INF, -80.0, -3.0, 0.0, 0.5, 30.0]), min_size=1, max_size=12).filter(
        lambda row: max(row) > -INF
    ),
    st.sampled_from([0.0, 1e-45, 1e-8, 0.25, 0.5, 0.999999, LAST_FLOAT_BELOW_1]),
    st.sampled_from([0.0, 0.3, 1.0, 5.0]),
    st.sampled_from([1.0, 0.9, 1e-6]),
    st.sampled_from([0, 1, 2]),
)
def test_minus_infinity_is_never_drawn(
    row: list[float], uniform: float, temperature: float, top_p: float, top_k: int
) -> None:
    token = draw(row, [uniform], temperature=temperature, top_p=top_p, top_k=top_k)[0]
    assert 0 <= token < len(row)
    assert row[token] > -INF


def test_the_ends_of_the_interval_stay_inside_what_may_be_drawn() -> None:
    # Forbidden tokens at both ends: 0 must skip the first, the last float below 1 must not run into the last.
    logits = [-INF, 0.0, 0.0, 0.0, -INF]
    assert draw(logits, [0.0, LAST_FLOAT_BELOW_1]) == [1, 3]
    # A large vocabulary, whose cumulative sum does not end at exactly 1.
    wide = torch.zeros(1, 50_001)
    wide[:, -1] = -INF
    assert draw_tokens(wide, torch.tensor([LAST_FLOAT_BELOW_1])).item() == 49_999


@pytest.mark.parametrize("at_once", [2**20, 1100, 1])
def test_a_row_is_drawn_the_same_whatever_else_is_in_the_batch(at_once: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("raft.functional.sampling.VALUES_AT_ONCE", at_once)
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(64, 500, generator=generator) * 3
    uniforms = torch.rand(64, generator=generator)
    options: dict[str, float] = {"temperature": 0.8, "top_p": 0.95, "top_k": 100}
    together = draw_tokens(logits, uniforms, **options)  # type: ignore[arg-type]
    alone = [draw_tokens(logits[i : i + 1], uniforms[i : i + 1], **options).item() for i in range(64)]  # type: ignore[arg-type]
    assert together.tolist() == alone
    order = torch.randperm(64, generator=generator)
    assert draw_tokens(logits[order], uniforms[order], **options).tolist() == together[order].tolist()  # type: ignore[arg-type]


def test_bfloat16_logits_are_computed_in_fp32() -> None:
    # In bfloat16 a cumulative sum over 4096 equal shares would stand still long before its end.
    logits = torch.zeros(5, 4096, dtype=torch.bfloat16)
    uniforms = torch.tensor([0.0, 0.25, 0.5, 0.75, 0.9999])
    assert draw_tokens(logits, uniforms).tolist() == [0, 1024, 2048, 3072, 4095]


@pytest.mark.parametrize("options", [{}, {"top_p": 0.9}, {"top_k": 2}, {"temperature": 0.0}])
@pytest.mark.parametrize("value", [float("nan"), INF])
def test_logits_that_are_not_finite_give_no_token(
    options: dict[str, float], value: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the rows that have such logits alone, also where a CPU takes the rows in blocks."""
    monkeypatch.setattr("raft.functional.sampling.VALUES_AT_ONCE", 8)
    rows = [[0.0, 1.0, 9.0, -INF]] * 3
    rows[1] = [0.0, value, 9.0, -INF]
    assert draw_tokens(torch.tensor(rows), torch.full((3,), 0.5), **options).tolist() == [2, 4, 2]  # type: ignore[arg-type]
