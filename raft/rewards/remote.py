"""A scorer behind HTTP: batches as JSON, a time limit, a few more tries, and no answer larger than expected.

It speaks to the address itself, with the standard library alone: no proxy, no redirect, so a token goes nowhere else.
"""

from __future__ import annotations

import http.client
import socket
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from urllib.parse import urlsplit

from raft.errors import UserError
from raft.rewards.batches import Scores, score_in_batches
from raft.rewards.protocol import decode_identity, decode_response, encode_request, token_of_environment
from raft.rewards.source import Candidate, Excluded

FIRST_PAUSE, LONGEST_PAUSE = 0.5, 30.0  # seconds before the second try; it doubles up to the longest
LARGEST_ANSWER = 1 << 20  # bytes, and per response LARGEST_ROW more
LARGEST_ROW = 1 << 12


@dataclass(frozen=True)
class RemoteSettings:
    """How patient a client is.

    Attributes:
        timeout: seconds for one request from connecting to the end of its answer.
        retries: further tries after a failure that may pass.
        batch_size: responses in a request.
        requests: requests under way at once, on each rank.
    """

    timeout: float = 60.0
    retries: int = 3
    batch_size: int = 32
    requests: int = 4


class _TryAgain(Exception):
    """A failure that may pass."""


class RemoteSource:
    """Asks a remote scorer (see ``raft.rewards.protocol``).

    Args:
        address: such as ``http://127.0.0.1:8000``; ``/score`` and ``/health`` are below it.
        flag: how to name it in an error.
    """

    def __init__(self, address: str, settings: RemoteSettings, *, flag: str) -> None:
        self.address, self.settings, self.flag = urlsplit(address), settings, flag
        self.identity: str | None = None  # of what it scores with, where it says so

    def check_health(self) -> None:
        """Make sure that it is there, and ask for its identity.

        Raises:
            UserError: if it does not answer.
        """
        self.identity = decode_identity(self._request("GET", "/health", None, LARGEST_ANSWER))

    def score(
        self, candidates: Sequence[Candidate], *, name: str, progress: str | None = "scoring"
    ) -> list[float | Excluded]:
        """Score candidates: see :class:`raft.rewards.source.RewardSource`."""
        settings = self.settings
        return score_in_batches(
            candidates,
            self.score_batch,
            name=name,
            batch_size=settings.batch_size,
            num_threads=settings.requests,
            progress=progress,
        )

    def score_batch(self, batch: Sequence[Candidate]) -> Scores:
        """Scores of one batch, in one request.

        Raises:
            UserError: if it can not be reached, refuses, or answers something else than scores.
        """
        limit = LARGEST_ANSWER + LARGEST_ROW * len(batch)
        body = self._request("POST", "/score", encode_request(batch), limit)
        try:
            return decode_response(body, len(batch))
        except UserError as error:
            raise UserError(f"{self.flag}: the answer is no scores: {error}.") from error

    def _request(self, method: str, path: str, body: bytes | None, limit: int) -> bytes:
        """The answer, after as many tries as are allowed."""
        pause = FIRST_PAUSE
        for attempt in range(self.settings.retries + 1):
            try:
                return self._try(method, path, body, limit)
            except _TryAgain as error:
                failure = error
            if attempt < self.settings.retries:
                time.sleep(pause)
                pause = min(2 * pause, LONGEST_PAUSE)
        tries = f"{self.settings.retries + 1} tries" if self.settings.retries else "one try"
        raise UserError(f"{self.flag}: no answer to {method} {path} after {tries}: {failure}.") from failure

    def _try(self, method: str, path: str, body: bytes | None, limit: int) -> bytes:
        deadline = time.monotonic() + self.settings.timeout
        connection = self._connection()
        headers = self._headers(body)
        try:
            connection.connect()
            sock = connection.sock  # the connection forgets it where the server means to close
            # A socket's own time limit is for each piece, and a slow sender of headers sends many.
            watch = threading.Timer(max(0.0, deadline - time.monotonic()), _hang_up, [sock])
            watch.daemon = True
            watch.start()
            try:
                connection.request(method, self.address.path + path, body, headers)
                with connection.getresponse() as response:
                    answer = self._read(response, sock, deadline, limit)
                if time.monotonic() >= deadline:  # hung up, which may look like the end of an answer
                    raise TimeoutError
            finally:
                watch.cancel()
        except TimeoutError as error:
            raise _TryAgain(f"it took more than {self.settings.timeout:g} s") from error
        except (OSError, http.client.HTTPException, _TryAgain) as error:
            if time.monotonic() >= deadline:
                raise _TryAgain(f"it took more than {self.settings.timeout:g} s") from error
            if isinstance(error, _TryAgain):
                raise
            raise _TryAgain(f"{type(error).__name__} ({error})" if str(error) else type(error).__name__) from error
        finally:
            connection.close()
        if response.status == 200:
            return answer
        said = f"status {response.status} {response.reason}: {answer[:200].decode('utf-8', 'replace')!r}"
        if response.status == 429 or response.status >= 500:
            raise _TryAgain(said)
        raise UserError(f"{self.flag}: it refused {method} {path} with {said}.")

    def _connection(self) -> http.client.HTTPConnection:
        host, timeout = self.address.hostname or "", self.settings.timeout
        if self.address.scheme == "https":
            return http.client.HTTPSConnection(host, self.address.port, timeout=timeout)
        return http.client.HTTPConnection(host, self.address.port, timeout=timeout)

    def _headers(self, body: bytes | None) -> dict[str, str]:
        headers = {"Accept": "application/json"} | ({"Content-Type": "application/json"} if body else {})
        token = token_of_environment()
        return headers | ({"Authorization": f"Bearer {token}"} if token else {})

    def _read(self, response: http.client.HTTPResponse, sock: socket.socket, deadline: float, limit: int) -> bytes:
        """The body; a socket's own time limit is for each piece, and a slow sender sends many."""
        pieces, size = [], 0
        while piece := response.read1(1 << 16):
            pieces.append(piece)
            size += len(piece)
            if size > limit:
                raise UserError(f"{self.flag}: the answer has more than {limit} bytes.")
            if response.isclosed():  # with the last byte, by newer versions of Python; then the socket may be too
                break
            if (left := deadline - time.monotonic()) <= 0:
                raise TimeoutError
            sock.settimeout(left)
        if response.length:  # fewer bytes came than were announced
            raise _TryAgain("the answer broke off")
        return b"".join(pieces)


def _hang_up(sock: socket.socket) -> None:
    """End a connection under the thread that waits for it."""
    with suppress(OSError):  # it has ended by itself
        sock.shutdown(socket.SHUT_RDWR)
