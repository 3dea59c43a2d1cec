from __future__ import annotations

import pytest

from raft.functional.penalties import outside_bounds, overlong_penalty, repeated_share


@pytest.mark.parametrize(
    ("text", "n", "share"),
    [
        ("a b a b", 2, 1 / 3),  # ab ba ab: two distinct of three
        ("a a a a", 1, 3 / 4),
        ("a a a a", 3, 1 / 2),
        ("a b c d", 2, 0.0),
        ("a b", 3, 0.0),  # no trigram
        ("", 1, 0.0),
    ],
)
def test_repeated_share(text: str, n: int, share: float) -> None:
    assert repeated_share(text.split(), n) == pytest.approx(share)


@pytest.mark.parametrize(
    ("length", "penalty"),
    # L_max 20, L_cache 4: 0 up to 16, then (16 - |y|) / 4, and -1 beyond 20.
    [(0, 0.0), (16, 0.0), (17, -0.25), (19, -0.75), (20, -1.0), (21, -1.0), (500, -1.0)],
)
def test_overlong_penalty_is_equation_13_of_dapo(length: int, penalty: float) -> None:
    assert overlong_penalty(length, max_length=20, cache=4) == penalty


def test_bounds_belong_to_what_they_bound() -> None:
    assert [outside_bounds(length, 2, 4) for length in range(1, 6)] == [-1, 0, 0, 0, -1]
    assert [outside_bounds(length, 2, None) for length in (1, 2, 10**6)] == [-1, 0, 0]
