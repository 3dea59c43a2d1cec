"""A source of reward behind HTTP, for ``raft.rewards.remote`` and whoever speaks ``raft.rewards.protocol``."""

from __future__ import annotations

import asyncio
import hmac
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

from raft.errors import UserError
from raft.rewards.batches import Scores
from raft.rewards.protocol import decode_request, encode_response
from raft.rewards.source import Candidate

if TYPE_CHECKING:
    from starlette.applications import Starlette
    from starlette.requests import Request
    from starlette.responses import Response

LONGEST_QUEUE = 256  # requests that may wait; more are asked to come again
SECONDS_TO_SEND = 60.0  # that a client has for the body of its request


class Batcher:
    """Scores the requests that have come in together, one batch at a time in a thread of its own.

    Args:
        score: scores of candidates; blocking.
        batch_size: candidates from which on no further request joins a batch.
    """

    def __init__(self, score: Callable[[Sequence[Candidate]], Scores], batch_size: int) -> None:
        self._score, self._batch_size = score, batch_size
        self._queue: asyncio.Queue[tuple[Sequence[Candidate], asyncio.Future[Scores]]] = asyncio.Queue(LONGEST_QUEUE)

    async def score(self, candidates: Sequence[Candidate]) -> Scores:
        """Scores of one request.

        Raises:
            asyncio.QueueFull: if too many are waiting.
            Exception: what scoring raised.
        """
        future: asyncio.Future[Scores] = asyncio.get_running_loop().create_future()
        self._queue.put_nowait((candidates, future))
        return await future

    async def run(self) -> None:
        """Work until cancelled."""
        while True:
            waiting = [await self._queue.get()]
            while not self._queue.empty() and sum(len(part) for part, _ in waiting) < self._batch_size:
                waiting.append(self._queue.get_nowait())
            await self._serve(waiting)

    @asynccontextmanager
    async def working(self, _: Starlette) -> AsyncIterator[None]:
        """Within this, requests are answered."""
        worker = asyncio.create_task(self.run())
        yield
        worker.cancel()

    async def _serve(self, waiting: list[tuple[Sequence[Candidate], asyncio.Future[Scores]]]) -> None:
        try:
            together = [candidate for part, _ in waiting for candidate in part]
            scores = iter(await asyncio.to_thread(self._score, together))
            answers: list[Scores | Exception] = [[next(scores) for _ in part] for part, _ in waiting]
        except Exception as error:
            if len(waiting) > 1:  # one request's mistake is not the others'
                for one in waiting:
                    await self._serve([one])
                return
            answers = [error]
        for (_, future), answer in zip(waiting, answers, strict=True):
            if future.done():  # its client has gone
                continue
            future.set_exception(answer) if isinstance(answer, Exception) else future.set_result(answer)


def build_app(
    score: Callable[[Sequence[Candidate]], Scores],
    *,
    names: Sequence[str],
    identity: str,
    batch_size: int,
    max_bytes: int,
    token: str | None = None,
) -> Starlette:
    """The web application.

    Args:
        score: scores of candidates; blocking, called from one thread at a time.
        names, identity: of the sources, for /health.
        batch_size: candidates that are scored at once.
        max_bytes: of a request's body.
        token: what clients have to show as ``Authorization: Bearer``; None lets everybody in.
    """
    from starlette.applications import Starlette
    from starlette.responses import JSONResponse, Response
    from starlette.routing import Route

    batcher = Batcher(score, batch_size)

    def refuse(status: int, message: str) -> Response:
        return JSONResponse({"error": message}, status)

    def is_welcome(request: Request) -> bool:
        shown = request.headers.get("authorization", "").encode()
        return token is None or hmac.compare_digest(shown, f"Bearer {token}".encode())

    async def health(request: Request) -> Response:
        if not is_welcome(request):
            return refuse(401, "the token is missing or wrong")
        return JSONResponse({"status": "ok", "sources": list(names), "identity": identity})

    async def answer(request: Request) -> Response:
        if not is_welcome(request):
            return refuse(401, "the token is missing or wrong")
        try:
            candidates = decode_request(await asyncio.wait_for(_read(request, max_bytes), SECONDS_TO_SEND))
        except asyncio.TimeoutError:
            return refuse(408, f"the request took more than {SECONDS_TO_SEND:g} s to come in")
        except _TooLargeError:
            return refuse(413, f"the request has more than {max_bytes} bytes")
        except UserError as error:
            return refuse(400, str(error))
        try:
            scores = await batcher.score(candidates) if candidates else []
        except asyncio.QueueFull:
            return refuse(503, f"{LONGEST_QUEUE} requests are waiting")
        except UserError as error:
            return refuse(500, str(error))
        return Response(encode_response(scores), media_type="application/json")

    routes: list[Any] = [Route("/health", health), Route("/score", answer, methods=["POST"])]
    return Starlette(routes=routes, lifespan=batcher.working)


class _TooLargeError(Exception):
    """A body over the limit."""


async def _read(request: Request, max_bytes: int) -> bytes:
    """The body, in pieces, so that one over the limit is never held whole."""
    pieces, size = [], 0
    async for piece in request.stream():
        size += len(piece)
        if size > max_bytes:
            raise _TooLargeError
        pieces.append(piece)
    return b"".join(pieces)
