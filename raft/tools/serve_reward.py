"""`raft serve-reward`: any source of reward behind HTTP, for runs on this machine or others.

Needs the extra ``serve`` (Starlette and uvicorn). It prints its address, answers ``GET /health`` and ``POST /score``
(``raft.rewards.protocol``), scores requests that come in together in one batch, and ends on SIGINT or SIGTERM once the
requests under way are answered. With RAFT_REWARD_TOKEN set, clients have to show it.

    raft serve-reward --reward data/reward_model --port 8000
    raft align --reward http://127.0.0.1:8000
"""

from __future__ import annotations

import ipaddress
import signal
import socket
from collections.abc import Sequence
from typing import Any

from raft import distributed
from raft.errors import UserError
from raft.inputs import digest
from raft.models.loading import quiet_libraries
from raft.rewards.batches import Scores
from raft.rewards.loading import load_rewards
from raft.rewards.protocol import token_of_environment
from raft.rewards.server import build_app
from raft.rewards.source import Candidate, Excluded
from raft.rewards.spec import TOKEN_VARIABLE
from raft.tools.serve_reward_config import ServeRewardConfig

SECONDS_TO_FINISH = 30  # that requests under way have after SIGINT or SIGTERM
SECONDS_TO_ASK = 20.0  # that a client has from connecting to the end of its headers; of the body: raft.rewards.server
MOST_CONNECTIONS = 512  # more are told 503


def main(config: ServeRewardConfig) -> None:
    """Load the sources and serve them until a signal comes.

    Raises:
        UserError: if the extra is not installed, a source can not be loaded, or the port is taken.
    """
    uvicorn = _uvicorn()
    quiet_libraries()
    token = token_of_environment()
    refuse_open_door(config.server.host, token)
    if "batch" in config.reward.normalizations():
        raise UserError("--reward_normalization batch: a server has no batch of its own; normalise in raft align.")
    rewards = load_rewards(config.reward, trust_remote_code=config.code.trust_remote_code)

    def score(candidates: Sequence[Candidate]) -> Scores:
        found = rewards.score(candidates, name="serve", progress=None, strict=False)
        pairs = zip(found.rewards, found.excluded, strict=True)
        return [reward if reason is None else Excluded(reason) for reward, reason in pairs]

    names = [source.name for source in rewards.sources]
    max_bytes = round(config.server.max_request_mb * 1e6)
    identity = digest([one.name, one.identity, one.weight, one.scale] for one in rewards.sources)
    batch_size = config.reward.texts_at_once(on_gpu=distributed.device().type == "cuda")
    app = build_app(score, names=names, identity=identity, batch_size=batch_size, max_bytes=max_bytes, token=token)
    with listen(config.server.host, config.server.port) as sock:
        print(f"serving {', '.join(names)} at {address(sock)}", flush=True)
        # uvicorn raises a signal again once it has shut down; here that is the end of the command, and no failure.
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, lambda *_: None)
        settings = uvicorn.Config(
            app,
            http=impatient_protocol(),
            limit_concurrency=MOST_CONNECTIONS,
            log_level="warning",
            access_log=False,
            timeout_graceful_shutdown=SECONDS_TO_FINISH,
        )
        uvicorn.Server(settings).run(sockets=[sock])
    print("stopped", flush=True)


def _uvicorn() -> Any:
    try:
        import starlette  # noqa: F401
        import uvicorn
    except ImportError as error:
        raise UserError(f"raft serve-reward needs {error.name}: pip install 'raft-toolkit[serve]'.") from error
    return uvicorn


def impatient_protocol() -> Any:
    """uvicorn's HTTP, which by itself lets a client take forever over its headers."""
    from uvicorn.protocols.http.h11_impl import H11Protocol

    class ImpatientProtocol(H11Protocol):
        _patience: Any = None

        def connection_made(self, transport: Any) -> None:
            super().connection_made(transport)
            self._watch()

        def data_received(self, data: bytes) -> None:
            super().data_received(data)
            self._watch()

        def connection_lost(self, exc: Exception | None) -> None:
            self._stop_watching()
            super().connection_lost(exc)

        def _watch(self) -> None:
            if self.cycle is not None and not self.cycle.response_complete:  # the headers are there
                self._stop_watching()
            elif self._patience is None:
                self._patience = self.loop.call_later(SECONDS_TO_ASK, self.transport.close)

        def _stop_watching(self) -> None:
            if self._patience is not None:
                self._patience.cancel()
                self._patience = None

    return ImpatientProtocol


def refuse_open_door(host: str, token: str | None) -> None:
    """Refuse to serve other machines without a token.

    Raises:
        UserError: if ``host`` is not this machine alone and there is no token.
    """
    try:
        is_local = ipaddress.ip_address(host).is_loopback
    except ValueError:
        is_local = host == "localhost"
    if not is_local and token is None:
        raise UserError(f"--host {host}: other machines can reach it; set {TOKEN_VARIABLE} in the environment first.")


def listen(host: str, port: int) -> socket.socket:
    """A socket that accepts connections already.

    Raises:
        UserError: if the address can not be had.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family)
    except OSError as error:
        raise UserError(f"--host {host} --port {port}: {error.strerror or error}.") from error


def address(sock: socket.socket) -> str:
    """Where a socket listens, as ``--reward`` takes it."""
    host, port = sock.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
