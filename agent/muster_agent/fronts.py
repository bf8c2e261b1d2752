"""The doors for local applications: HTTP with the Unix socket that also speaks frames, and gRPC where it is configured.

It opens and closes them; what they answer is in `serving`.
"""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import structlog

from muster_agent import __version__
from muster_agent.config import AgentConfig
from muster_agent.errors import ConfigInvalid
from muster_agent.serving.admission import Admission
from muster_agent.serving.app import Repository
from muster_agent.serving.frames import FrameConnection, FrameServer
from muster_agent.serving.grpc.start import GrpcMissing, serve_grpc
from muster_agent.serving.http import Handler, HttpServer, serve
from muster_agent.serving.service import Service
from muster_agent.serving.shared_memory import Regions

log = structlog.get_logger(__name__)


class Closable(Protocol):
    """A server that runs."""

    async def stop(self, timeout_s: float) -> None: ...


@dataclass(frozen=True)
class Fronts:
    """What listens."""

    http: HttpServer
    others: tuple[Closable, ...]

    async def stop(self, timeout_s: float) -> None:
        """Take no more callers, answer the requests that are here, then close."""
        await asyncio.gather(*(server.stop(timeout_s) for server in (self.http, *self.others)))


async def open_fronts(
    config: AgentConfig,
    service: Service,
    admission: Admission,
    handler: Handler,
    *,
    regions: Regions,
    ready: Callable[[], bool],
    repository: Repository,
) -> Fronts:
    """Listen where `config` says.

    Raises:
        ConfigInvalid: an address is taken or not allowed.
    """
    frames = FrameServer(service, admission)
    address = config.http.address
    host, port = address if address is not None else (None, 0)
    try:
        http = await serve(
            handler,
            host=host,
            port=port,
            unix_path=config.http.unix_socket,
            adopt=lambda: FrameConnection(frames),
        )
    except OSError as error:
        raise ConfigInvalid(f"http: the agent cannot listen there: {error}") from error
    others: list[Closable] = [frames]
    if config.grpc.address is not None:
        try:
            others.append(await _open_grpc(config.grpc.address, service, admission, regions, ready, repository))
        except (OSError, GrpcMissing) as error:
            await http.stop(0.0)
            raise ConfigInvalid(f"grpc: the agent cannot listen there: {error}") from error
    return Fronts(http, tuple(others))


async def _open_grpc(
    address: tuple[str, int],
    service: Service,
    admission: Admission,
    regions: Regions,
    ready: Callable[[], bool],
    repository: Repository,
) -> Closable:
    server = await serve_grpc(
        service,
        admission,
        regions,
        host=address[0],
        port=address[1],
        agent_version=__version__,
        ready=ready,
        repository=repository,
    )
    log.info("grpc_listening", host=address[0], port=server.port)
    return server
