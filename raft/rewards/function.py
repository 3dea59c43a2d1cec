"""A Python function as a source of reward: ``package.module:function`` or ``path/to/file.py:function``.

It is called with keyword arguments, those that it names or, with ``**columns``, all:

    def reward(prompts, responses, **columns) -> list[float]: ...

`prompts` are lists of messages, `responses` texts, then `finish_reasons`, `prompt_tails`, `response_tokens`, and every
other column of the prompts' rows by its name (None for a row that lacks it). A function written for TRL works as it
is: `completions` are the responses as lists of one assistant message, `completion_ids` are their tokens. It may be
async. For each response it returns a number, or None for one that it can not judge.
"""

from __future__ import annotations

import asyncio
import importlib
import importlib.util
import inspect
import math
import sys
import weakref
from collections.abc import Callable, Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any

from raft.arguments import nearest
from raft.errors import UserError
from raft.rewards.batches import Scores, score_in_batches
from raft.rewards.source import Candidate, Excluded

FAILURES = (Exception, SystemExit, asyncio.CancelledError)
"""What a function may raise: one that exits, or lets a cancelled task out, is to end its batch and not the run."""
WHOLE_BATCH = 8  # responses that have to fail before a batch alone shows that the function does not work


class FunctionSource:
    """Calls a function with batches of candidates.

    Args:
        function: see the module.
        flag: how to name it in an error.
        batch_size: responses in one call at most; neighbours, so that those to one prompt stand together.
    """

    def __init__(self, function: Callable[..., Any], *, flag: str, batch_size: int) -> None:
        self.function, self.flag, self.batch_size = function, flag, batch_size
        try:
            self.parameters = inspect.signature(function).parameters
        except ValueError:  # such as max: written in C
            raise UserError(f"{flag}: what it takes is not known, as of many builtins; call it from a def.") from None
        self._loop: asyncio.AbstractEventLoop | None = None

    def score(
        self, candidates: Sequence[Candidate], *, name: str, progress: str | None = "scoring"
    ) -> list[float | Excluded]:
        """Score candidates: see :class:`raft.rewards.source.RewardSource`."""
        return score_in_batches(
            candidates, self.score_batch, name=name, batch_size=self.batch_size, progress=progress
        )

    @property
    def loop(self) -> asyncio.AbstractEventLoop:
        """One event loop for all batches: a client that the function keeps belongs to the loop it was first used in."""
        if self._loop is None:
            self._loop = asyncio.new_event_loop()
            weakref.finalize(self, self._loop.close)
        return self._loop

    def score_batch(self, batch: Sequence[Candidate]) -> Scores:
        """Scores of one batch. Where the function raises, each response is tried alone, to exclude only its own.

        Raises:
            UserError: if the function raises for every response of a batch of some size, or returns what are no scores.
        """
        try:
            return self._call(batch)
        except UserError:
            raise
        except FAILURES as error:
            scores = [self._alone(candidate) for candidate in batch]
            if len(batch) >= WHOLE_BATCH and all(map(_raised, scores)):
                raise UserError(f"{self.flag}: raised {_shown(error)} for every response of a batch.") from error
            return scores

    def _alone(self, candidate: Candidate) -> float | Excluded:
        try:
            return self._call([candidate])[0]
        except UserError:
            raise
        except FAILURES as error:
            return Excluded(f"raised {type(error).__name__}", _text(error))

    def _call(self, batch: Sequence[Candidate]) -> Scores:
        found = self.function(**self._arguments(batch))
        if inspect.isawaitable(found):
            found = self.loop.run_until_complete(_await(found))
        return as_scores(found, len(batch), self.flag)

    def _arguments(self, batch: Sequence[Candidate]) -> dict[str, Any]:
        offered = arguments_of(batch)
        if any(parameter.kind is parameter.VAR_KEYWORD for parameter in self.parameters.values()):
            return offered
        lacking = [
            name
            for name, parameter in self.parameters.items()
            if parameter.default is parameter.empty and name not in offered
        ]
        if lacking:
            raise UserError(
                f"{self.flag}: takes an argument {lacking[0]}; what there is to give is {', '.join(offered)}."
            )
        return {name: value for name, value in offered.items() if name in self.parameters}


def arguments_of(batch: Sequence[Candidate]) -> dict[str, list[Any]]:
    """Everything that is known about a batch, by the name of the argument; ours go before a column of that name.

    All of it is copied: a function may change what it is given, and the run goes on with what it had.
    """
    columns = dict.fromkeys(key for candidate in batch for key in candidate.extra)
    return {column: [deepcopy(candidate.extra.get(column)) for candidate in batch] for column in columns} | {
        "prompts": [[dict(message) for message in candidate.messages] for candidate in batch],
        "responses": [candidate.response for candidate in batch],
        "completions": [[{"role": "assistant", "content": candidate.response}] for candidate in batch],
        "finish_reasons": [candidate.finish_reason for candidate in batch],
        "prompt_tails": [candidate.prompt_tail for candidate in batch],
        "response_tokens": [_copy(candidate.response_tokens) for candidate in batch],
        "completion_ids": [_copy(candidate.response_tokens) for candidate in batch],
    }


def _copy(tokens: Sequence[int] | None) -> list[int] | None:
    return None if tokens is None else list(tokens)


def as_scores(found: Any, count: int, flag: str) -> Scores:
    """What a function returned, checked: ``count`` numbers, None and NaN being responses without a score.

    Raises:
        UserError: if it is something else.
    """
    if hasattr(found, "tolist"):  # numpy, torch
        found = found.tolist()
    if not isinstance(found, list | tuple):
        raise UserError(f"{flag}: returned {type(found).__name__}, expected a list with a number for every response.")
    if len(found) != count:
        raise UserError(f"{flag}: returned {len(found)} scores for {count} responses.")
    return [as_score(value, flag) for value in found]


def as_score(value: Any, flag: str) -> float | Excluded:
    """One score as a float; None and what is not finite as Excluded."""
    if value is None:
        return Excluded("returned None")
    try:
        if isinstance(value, str | bytes):
            raise TypeError
        number = float(value)
    except (TypeError, ValueError, OverflowError):
        raise UserError(f"{flag}: returned {value!r:.60} as a score, expected a number or None.") from None
    return number if math.isfinite(number) else Excluded(f"returned {number}")


def load_function(target: str, flag: str) -> Callable[..., Any]:
    """Import ``package.module:function`` (the current directory is looked in first) or ``path/to/file.py:function``.

    Raises:
        UserError: if there is no such module or function, or importing it fails.
    """
    module_name, _, function_name = target.rpartition(":")
    try:
        module = _import(module_name)
    except (Exception, SystemExit) as error:
        raise UserError(f"{flag}: could not import {module_name}: {_shown(error)}.") from error
    function = getattr(module, function_name, None)
    if not callable(function):
        known = [name for name, value in vars(module).items() if inspect.isfunction(value)]
        found = "is no function" if function is not None else "does not exist"
        hint = nearest(function_name, known)
        raise UserError(f"{flag}: {function_name} {found} in {module_name}.{hint}")
    return function


def _import(module_name: str) -> Any:
    if module_name.endswith(".py"):
        path = Path(module_name)
        spec = importlib.util.spec_from_file_location(path.stem, path)
        if spec is None or spec.loader is None:
            raise ImportError(f"{path} can not be loaded as a module")
        module = importlib.util.module_from_spec(spec)
        sys.modules.setdefault(path.stem, module)  # dataclasses and pickle look their module up by name
        spec.loader.exec_module(module)
        return module
    here = str(Path.cwd())
    if here not in sys.path:  # an installed command has its own directory there instead
        sys.path.insert(0, here)
    return importlib.import_module(module_name)


def file_of(target: str) -> str | None:
    """The file of a function that :func:`load_function` has loaded; None where it is not from one."""
    module_name = target.rpartition(":")[0]
    return module_name if module_name.endswith(".py") else getattr(sys.modules[module_name], "__file__", None)


def _raised(score: float | Excluded) -> bool:
    return isinstance(score, Excluded) and score.reason.startswith("raised")


async def _await(awaitable: Any) -> Any:
    return await awaitable


def _shown(error: BaseException) -> str:
    """An exception in a sentence: its type, and what it says."""
    return type(error).__name__ + (f" ({_text(error)})" if str(error) else "")


def _text(error: BaseException) -> str:
    """The start of what an exception says, on one line."""
    return " ".join(str(error).split())[:200]
