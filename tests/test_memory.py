from __future__ import annotations

import pytest
import torch

from raft.memory import in_halves, is_out_of_memory


def limited(limit: int, error: Exception, calls: list[range]) -> object:
    def work(rows: range) -> list[int]:
        calls.append(rows)
        if len(rows) > limit:
            raise error
        return [row * row for row in rows]

    return work


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory"),
        MemoryError(),
        RuntimeError("DefaultCPUAllocator: can't allocate memory"),
    ],
    ids=["cuda", "python", "cpu"],
)
def test_every_row_is_worked_on_once_and_in_order(error: Exception, capsys: pytest.CaptureFixture[str]) -> None:
    calls: list[range] = []
    assert in_halves(limited(3, error, calls), 10, what="responses") == [row * row for row in range(10)]  # type: ignore[arg-type]
    assert calls == [range(10), range(5), range(3), range(3, 5), range(5, 10), range(5, 8), range(8, 10)]
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 3
    assert said[0].startswith("out of memory with 10 responses at once; going on with 5.")


def test_what_fits_is_done_at_once_and_silently(capsys: pytest.CaptureFixture[str]) -> None:
    calls: list[range] = []
    assert in_halves(limited(4, MemoryError(), calls), 4, what="texts") == [0, 1, 4, 9]  # type: ignore[arg-type]
    assert calls == [range(4)]
    assert capsys.readouterr().err == ""


def test_one_row_that_does_not_fit_is_an_error() -> None:
    with pytest.raises(MemoryError):
        in_halves(limited(0, MemoryError(), []), 4, what="texts")  # type: ignore[arg-type]


def test_other_errors_are_not_taken_for_it() -> None:
    assert not is_out_of_memory(RuntimeError("shape mismatch"))
    with pytest.raises(RuntimeError, match="shape mismatch"):
        in_halves(limited(2, RuntimeError("shape mismatch"), []), 4, what="texts")  # type: ignore[arg-type]
