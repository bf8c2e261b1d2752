"""How the daemon starts the gRPC front. This alone is imported on a device without the extra `grpc`."""

from collections.abc import Callable
from typing import Protocol

from muster_agent.serving.admission import Admission
from muster_agent.serving.app import Repository
from muster_agent.serving.service import Service
from muster_agent.serving.shared_memory import Regions
from muster_shared.errors import MusterError

MESSAGE_BYTES_MAX = 16 * 1024 * 1024


class GrpcMissing(MusterError):
    """The gRPC front is wanted, but its packages are not installed."""

    def __init__(self, reason: str) -> None:
        super().__init__(f"gRPC cannot be served ({reason}); install muster-agent[grpc], or do not configure it")


class GrpcServer(Protocol):
    """The running front."""

    @property
    def port(self) -> int: ...

    async def stop(self, timeout_s: float) -> None:
        """Take no more callers, answer the requests that are here, and cancel what remains after `timeout_s`."""
        ...


async def serve_grpc(
    service: Service,
    admission: Admission,
    regions: Regions,
    *,
    host: str = "127.0.0.1",
    port: int = 8001,
    agent_version: str,
    ready: Callable[[], bool] | None = None,
    repository: Repository | None = None,
    message_bytes_max: int = MESSAGE_BYTES_MAX,
) -> GrpcServer:
    """Listen, on the serving loop that runs, and return the running server. Stop it before the table is closed.

    Args:
        host: Address of the listener. The transport is not encrypted: keep it on the loopback.
        port: 0 takes a free one, then in `GrpcServer.port`.
        ready: Whether every model that this device should serve is served; None: whether any is.
        repository: None: nothing can be loaded or unloaded by callers.
        message_bytes_max: Of a request.
    Raises:
        GrpcMissing: the extra `grpc` is not installed.
        OSError: the address is taken or not allowed.
    """
    try:
        from muster_agent.serving.grpc.inference import Inference
        from muster_agent.serving.grpc.procedures import Procedures
        from muster_agent.serving.grpc.server import listen
    except ImportError as error:
        raise GrpcMissing(str(error)) from error
    table = service.table
    procedures = Procedures(
        table,
        regions,
        agent_version=agent_version,
        ready=ready or (lambda: bool(table.places())),
        repository=repository,
    )
    return await listen(Inference(service, admission, regions), procedures, host, port, message_bytes_max)
