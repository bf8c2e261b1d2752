"""The listener: which procedure is answered by whom, and how an answer or a refusal leaves. It decides nothing.

Procedures take and give bytes here, so that what does not parse is refused in our words. One rpc is one task of the
serving loop; when its caller goes, the task is cancelled, and with it the call.
"""

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence
from typing import NoReturn, Protocol
from urllib.parse import unquote

import grpc
import structlog

from muster_agent.serving.grpc import codec
from muster_agent.serving.grpc.inference import Asker, Begun, Inference
from muster_agent.serving.grpc.messages import CLASSES, METHODS, SERVICE, Message
from muster_agent.serving.grpc.procedures import Procedures
from muster_agent.serving.grpc.statuses import Status, status
from muster_shared.errors import MusterError

CALLS_MAX = 1024  # Rpcs under way at once, of all connections; each may hold a whole message.
CALLS_OF_CONNECTION_MAX = 128
KEEPALIVE_MS = 75_000  # A silent connection is asked whether it is still there.
OPEN = ("ServerLive", "ServerReady", "ModelReady")  # Health is for those without a token as well.
STREAM_CALLS_MAX = 32  # Requests of one stream that are under way at once; the next are not read yet.

log = structlog.get_logger(__name__)


class _Context(Protocol):
    """What an rpc's `grpc.aio.ServicerContext` is used for."""

    def invocation_metadata(self) -> Iterable[tuple[str, str]] | None: ...

    def peer(self) -> str: ...

    def time_remaining(self) -> float | None: ...

    async def write(self, message: bytes) -> None: ...

    async def abort(
        self, code: grpc.StatusCode, details: str, trailing_metadata: Sequence[tuple[str, str]]
    ) -> NoReturn: ...


_Unary = Callable[[bytes, _Context], Awaitable[bytes]]
_BUG = Status(grpc.StatusCode.INTERNAL, "internal error; see the agent's log")


class Server:
    """The running front, a `start.GrpcServer`."""

    def __init__(self, server: grpc.aio.Server, port: int, streams: "set[_Stream]") -> None:
        self._server = server
        self._port = port
        self._streams = streams

    @property
    def port(self) -> int:
        return self._port

    async def stop(self, timeout_s: float) -> None:
        """See `start.GrpcServer.stop`."""
        for stream in list(self._streams):  # They would stay open as long as their callers like.
            stream.end()
        await self._server.stop(timeout_s)


async def listen(inference: Inference, procedures: Procedures, host: str, port: int, message_bytes_max: int) -> Server:
    """Return the running server. Raises OSError: the address is taken or not allowed."""
    server = grpc.aio.server(
        options=[
            ("grpc.max_receive_message_length", message_bytes_max),
            ("grpc.max_send_message_length", -1),
            ("grpc.max_concurrent_streams", CALLS_OF_CONNECTION_MAX),
            ("grpc.keepalive_time_ms", KEEPALIVE_MS),
            ("grpc.so_reuseport", 0),  # Two agents on one port would each get some of the callers.
        ],
        maximum_concurrent_rpcs=CALLS_MAX,
    )
    handlers: dict[str, grpc.RpcMethodHandler[bytes, bytes]] = {
        name: grpc.unary_unary_rpc_method_handler(_short(name, procedures, inference))
        for name in METHODS
        if name not in ("ModelInfer", "ModelStreamInfer")
    }
    handlers["ModelInfer"] = grpc.unary_unary_rpc_method_handler(_infer(inference))
    streams: set[_Stream] = set()
    handlers["ModelStreamInfer"] = grpc.stream_stream_rpc_method_handler(_stream(inference, streams))
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, handlers),))
    try:
        bound = server.add_insecure_port(f"[{host}]:{port}" if ":" in host else f"{host}:{port}")
    except RuntimeError as error:
        raise OSError(f"gRPC cannot listen on {host}:{port}: {error}") from error
    await server.start()
    return Server(server, bound, streams)


def _short(name: str, procedures: Procedures, inference: Inference) -> _Unary:
    method = METHODS[name]

    async def answer(raw: bytes, context: _Context) -> bytes:
        try:
            if name not in OPEN:
                _asker(inference, context)
            body = await procedures.answer(name, codec.parse(method.request, raw))
            return _bytes(codec.filled(method.response, body))
        except MusterError as error:
            await _refuse(context, status(error))
        except Exception:
            log.exception("request_failed", procedure=name)
            await _refuse(context, _BUG)

    return answer


def _infer(inference: Inference) -> _Unary:
    async def answer(raw: bytes, context: _Context) -> bytes:
        try:
            request = codec.parse("ModelInferRequest", raw)
            begun = inference.begin(request, _asker(inference, context), context.time_remaining())
            return await begun.answer()
        except MusterError as error:
            await _refuse(context, status(error))
        except Exception:
            log.exception("request_failed", procedure="ModelInfer")
            await _refuse(context, _BUG)

    return answer


def _stream(
    inference: Inference, streams: "set[_Stream]"
) -> Callable[[AsyncIterator[bytes], _Context], Awaitable[None]]:
    async def answer(requests: AsyncIterator[bytes], context: _Context) -> None:
        try:
            stream = _Stream(inference, _asker(inference, context), context)
        except MusterError as error:
            await _refuse(context, status(error))
        streams.add(stream)
        try:
            await stream.run(requests)
        finally:
            streams.discard(stream)

    return answer


class _Stream:
    """One stream: requests are submitted as they come, and answered in their order."""

    def __init__(self, inference: Inference, asker: Asker, context: _Context) -> None:
        self._inference = inference
        self._asker = asker
        self._context = context
        self._turns: deque[Begun | bytes | None] = deque()
        """Calls under way, or refusals that are answers already; None is the end."""
        self._come = asyncio.Event()
        self._room = asyncio.Semaphore(STREAM_CALLS_MAX)
        self._reader: asyncio.Future[None] | None = None

    async def run(self, requests: AsyncIterator[bytes]) -> None:
        """Return when all that was asked is answered, and nothing more will be."""
        reader = self._reader = asyncio.ensure_future(self._read(requests))
        try:
            while (turn := await self._next()) is not None:
                await self._context.write(turn if isinstance(turn, bytes) else await self._answer(turn))
                self._room.release()
        finally:
            reader.cancel()
            for left in self._turns:
                if isinstance(left, Begun):
                    left.cancel()
            # However reading ended, grpc tells the caller; an exception that nobody looked at would be logged as a bug.
            await asyncio.gather(reader, return_exceptions=True)

    def end(self) -> None:
        """Read no more requests."""
        if self._reader is not None:
            self._reader.cancel()

    async def _read(self, requests: AsyncIterator[bytes]) -> None:
        try:
            async for raw in requests:
                await self._room.acquire()
                self._put(self._begin(raw))
        finally:
            self._put(None)

    def _put(self, turn: Begun | bytes | None) -> None:
        self._turns.append(turn)
        self._come.set()

    async def _next(self) -> Begun | bytes | None:
        while not self._turns:
            self._come.clear()
            await self._come.wait()
        return self._turns.popleft()

    def _begin(self, raw: bytes) -> Begun | bytes:
        request_id = ""
        try:
            request = codec.parse("ModelInferRequest", raw)
            request_id = request.id
            return self._inference.begin(request, self._asker, self._context.time_remaining())
        except MusterError as error:
            return _streamed(request_id, status(error))
        except Exception:
            log.exception("request_failed", procedure="ModelStreamInfer")
            return _streamed(request_id, _BUG)

    async def _answer(self, begun: Begun) -> bytes:
        try:
            return await begun.answer(streamed=True)
        except MusterError as error:
            return _streamed(begun.request_id, status(error))
        except Exception:
            log.exception("request_failed", procedure="ModelStreamInfer")
            return _streamed(begun.request_id, _BUG)


def _streamed(request_id: str, refused: Status) -> bytes:
    """Return a refusal of one request of a stream, which goes on."""
    response = CLASSES["ModelStreamInferResponse"](error_message=refused.detail)
    response.infer_response.id = request_id
    return _bytes(response)


async def _refuse(context: _Context, refused: Status) -> NoReturn:
    after_s = refused.retry_after_s
    trailing = () if after_s is None else (("retry-after", str(after_s)),)
    await context.abort(refused.code, refused.detail, trailing)


def _asker(inference: Inference, context: _Context) -> Asker:
    authorization: bytes | None = None
    priority = key = ""
    for name, value in context.invocation_metadata() or ():
        match name:
            case "authorization":
                authorization = value.encode()
            case "muster-priority":
                priority = value
            case "muster-request-key":
                key = value
    return inference.asker(authorization, priority, key, _host(context.peer()))


def _host(peer: str) -> str:
    """Return the address in `ipv4:127.0.0.1:4711` or `ipv6:%5B::1%5D:4711`, as HTTP's callers are known by."""
    kind, _, rest = peer.partition(":")
    return unquote(rest.rpartition(":")[0]).strip("[]") if kind in ("ipv4", "ipv6") else kind


def _bytes(message: Message) -> bytes:
    raw: bytes = message.SerializeToString()
    return raw
