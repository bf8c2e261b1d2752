"""The client for asyncio programs: as `blocking`, with `await`. One connection carries all tasks of a loop.

    async with AsyncClient("/run/muster-agent/agent.sock") as client:
        digits = await client.model("digits")
        answers = await asyncio.gather(*(digits.infer(image) for image in images))

What the tasks of one turn of the loop ask for leaves as one write. It has no shared memory: `blocking` has.
"""

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Iterable
from pathlib import Path
from types import TracebackType
from typing import cast

from muster_agent.client.dialogue import Answer, Dialogue, Handle, Inputs, PriorityName, Request, moved, request
from muster_agent.client.errors import ClientError, ProtocolBroken, TooLate, Unreachable
from muster_agent.client.frames import Frame
from muster_agent.client.schema import Release

TIMEOUT_S = 30.0
GRACE_S = 1.0
RECONNECT_S = 5.0


class _Lost(Exception):
    """The connection is gone; it never leaves this module."""


class _Connection(asyncio.Protocol):
    """One connection: futures of what is waited for, by sequence number."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.dialogue = Dialogue()
        self.gone = False
        self._loop = loop
        self._futures: dict[int, asyncio.Future[Answer | Frame]] = {}
        self._out: list[bytes] = []
        self._broken: ProtocolBroken | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)

    def connection_lost(self, exc: Exception | None) -> None:
        self.gone = True
        for future in self._futures.values():
            if not future.done():
                future.set_exception(self._broken or _Lost(str(exc or "the agent closed the connection")))
        self._futures.clear()

    def data_received(self, data: bytes) -> None:
        dialogue = self.dialogue
        try:
            dialogue.receive(data)
        except ProtocolBroken as error:
            self._broken = error
            self._transport.abort()
        for outcomes in (dialogue.outcomes, dialogue.replies):
            for sequence, outcome in outcomes.items():
                future = self._futures.pop(sequence, None)
                if future is None or future.done():
                    continue
                if isinstance(outcome, ClientError):
                    future.set_exception(outcome)
                else:
                    future.set_result(outcome)
            outcomes.clear()

    def ask(self, asked: Request) -> "asyncio.Future[Answer | Frame]":
        first = not self._out
        sequence = self.dialogue.ask(asked, self._out)
        if first:
            self._loop.call_soon(self._flush)
        return self._future(sequence)

    def converse(self, sequence: int, raw: bytes) -> "asyncio.Future[Answer | Frame]":
        if not self._out:
            self._loop.call_soon(self._flush)
        self._out.append(raw)
        return self._future(sequence)

    def forget(self, future: "asyncio.Future[Answer | Frame]") -> None:
        for sequence, waiting in list(self._futures.items()):
            if waiting is future:
                del self._futures[sequence]
                self.dialogue.abandon(sequence)

    def close(self) -> None:
        self._transport.close()

    def _future(self, sequence: int) -> "asyncio.Future[Answer | Frame]":
        future: asyncio.Future[Answer | Frame] = self._loop.create_future()
        if self.gone:
            future.set_exception(_Lost("the connection is closed"))
        else:
            self._futures[sequence] = future
        return future

    def _flush(self) -> None:
        out, self._out = self._out, []
        if not self._transport.is_closing():
            self._transport.write(b"".join(out))


class AsyncClient:
    """One connection to the agent of this device, for the tasks of one loop."""

    def __init__(
        self,
        path: str | Path,
        token: str | None = None,
        *,
        timeout_s: float = TIMEOUT_S,
        reconnect_s: float = RECONNECT_S,
    ) -> None:
        """See `Client`. It connects when it is entered, or first asked."""
        self.path = str(path)
        self.timeout_s = timeout_s
        self._token = token
        self._reconnect_s = reconnect_s
        self._connection: _Connection | None = None
        self._connecting = asyncio.Lock()
        self._handles: list[Handle] = []
        self._refused: dict[int, ClientError] = {}
        self._ever = False
        self._closed = False

    async def __aenter__(self) -> "AsyncClient":
        await self._connected()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the connection. Harmless twice."""
        self._closed = True
        if self._connection is not None:
            self._connection.close()

    async def model(self, name: str, version: str | None = None) -> "AsyncModel":
        """See `Client.model`."""
        handle = Handle(name, version)
        await self._attach(await self._connected(), handle)
        self._handles.append(handle)
        return AsyncModel(self, handle)

    async def ask(self, asked: Request, timeout_s: float | None) -> Answer:
        """Return the answer to a request; of this package."""
        allowed_s = (self.timeout_s if timeout_s is None else timeout_s) + GRACE_S
        release = asked.handle.release
        while True:
            connection = self._connection
            if connection is None or connection.gone:
                connection = await self._connected()
                problem = self._refused.get(id(asked.handle))
                if problem is not None:
                    raise problem
                now = asked.handle.release
                if (now.inputs, now.outputs) != (release.inputs, release.outputs):
                    raise moved(asked.handle)
            future = connection.ask(asked)
            try:
                answer = await asyncio.wait_for(future, allowed_s)
            except TimeoutError:
                connection.forget(future)
                raise TooLate(f"no answer within {allowed_s:g} s; the agent hangs", 504) from None
            except _Lost as error:
                if not asked.is_repeatable:
                    raise Unreachable(self.path, f"{error}, and this cannot be asked twice") from error
                asked.retried = True
                continue
            assert isinstance(answer, Answer), "an inference has an answer"
            return answer

    async def _connected(self) -> _Connection:
        """Return the connection, a new one when the old one is lost; the models of before are attached to it."""
        async with self._connecting:
            connection = self._connection
            if connection is not None and not connection.gone:
                return connection
            if self._closed:
                raise ClientError("the client is closed; make a new one")
            loop = asyncio.get_running_loop()
            until = loop.time() + (self._reconnect_s if self._ever else 0.0)
            pause_s = 0.01
            while True:
                try:
                    connection = await self._begin(loop)
                    break
                except (OSError, _Lost, TimeoutError) as error:
                    if loop.time() + pause_s >= until:
                        raise Unreachable(self.path, getattr(error, "strerror", None) or str(error)) from error
                await asyncio.sleep(pause_s)
                pause_s = min(0.25, pause_s * 2)
            self._ever = True
            self._connection = connection
            return connection

    async def _begin(self, loop: asyncio.AbstractEventLoop) -> _Connection:
        _, connection = await asyncio.wait_for(
            loop.create_unix_connection(lambda: _Connection(loop), self.path), self.timeout_s
        )
        try:
            await asyncio.wait_for(connection.converse(*connection.dialogue.greet(self._token)), self.timeout_s)
            self._refused.clear()
            for handle in self._handles:
                try:
                    await self._attach(connection, handle)
                except ClientError as error:
                    self._refused[id(handle)] = error
        except BaseException:
            connection.close()
            raise
        return connection

    async def _attach(self, connection: _Connection, handle: Handle) -> None:
        try:
            reply = await asyncio.wait_for(
                connection.converse(*connection.dialogue.attach(handle)), self.timeout_s + GRACE_S
            )
        except TimeoutError:
            raise TooLate("the agent does not answer an ATTACH; it hangs", 504) from None
        assert isinstance(reply, Frame), "an ATTACH has a frame for reply"
        connection.dialogue.attached(handle, reply)


class AsyncModel:
    """A model of the agent. Made by `AsyncClient.model`."""

    def __init__(self, client: AsyncClient, handle: Handle) -> None:
        self._client = client
        self._handle = handle

    @property
    def release(self) -> Release:
        """See `Model.release`."""
        return self._handle.release

    async def infer(
        self,
        inputs: Inputs,
        *,
        priority: PriorityName = "now",
        timeout_s: float | None = None,
        sequence: tuple[int, bool, bool] | None = None,
    ) -> Answer:
        """See `Model.infer`."""
        asked = request(self._handle, inputs, priority=priority, timeout_s=timeout_s, sequence=sequence)
        return await self._client.ask(asked, timeout_s)

    async def infer_many(
        self,
        inputs: Iterable[Inputs],
        *,
        window: int = 32,
        priority: PriorityName = "now",
        timeout_s: float | None = None,
    ) -> AsyncIterator[Answer]:
        """See `Model.infer_many`."""
        if window < 1:
            raise ValueError(f"window is {window}; at least one must be under way")
        under_way: deque[asyncio.Task[Answer]] = deque()
        try:
            for given in inputs:
                if len(under_way) == window:
                    yield await under_way.popleft()
                under_way.append(asyncio.ensure_future(self.infer(given, priority=priority, timeout_s=timeout_s)))
            while under_way:
                yield await under_way.popleft()
        finally:
            for task in under_way:
                task.cancel()
