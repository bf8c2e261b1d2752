"""The client for programs without an event loop: one connection, and what to do when it is lost.

    with Client("/run/muster-agent/agent.sock") as client:
        digits = client.model("digits")
        answer = digits.infer(image)                       # one
        for answer in digits.infer_many(images): ...       # many, pipelined

One thread at a time: give each thread a client of its own. When the agent restarts, what was under way is asked again,
once; requests of a sequence are not, for their state is gone.
"""

import os
import select
import socket
import struct
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from types import TracebackType
from typing import TypeVar

from muster_agent.client.dialogue import Answer, Dialogue, Handle, Request, moved
from muster_agent.client.errors import ClientError, ProtocolBroken, TooLate, Unreachable
from muster_agent.client.frames import Frame, Kind
from muster_agent.client.model import Model
from muster_agent.client.shared import SharedModel

TIMEOUT_S = 30.0
GRACE_S = 1.0  # The agent's own word on a timeout is better than ours: it is waited for this much longer.
RECONNECT_S = 5.0
RECEIVE_BYTES = 256 * 1024
SPIN_US = 200  # A virtual processor takes about 80 us to wake, twice a request; a tiny model runs for 10.
SPIN_REST, SPIN_REST_MAX = 64, 4096  # Waits without a spin after one that was in vain; twice as many after another.
_TIMEVAL = struct.Struct("@ll")

T = TypeVar("T")


class Client:
    """One connection to the agent of this device."""

    def __init__(
        self,
        path: str | Path,
        token: str | None = None,
        *,
        timeout_s: float = TIMEOUT_S,
        reconnect_s: float = RECONNECT_S,
        spin_us: int | None = None,
    ) -> None:
        """
        Args:
            path: Of the agent's Unix socket, `http.unix_socket` in its configuration.
            timeout_s: Of an inference that names none.
            reconnect_s: How long to wait for an agent that restarts.
            spin_us: How long to look for an answer before sleeping: being woken costs more than a small model. None:
                200 where there is more than one processor, else 0; it rests while answers take longer.
        Raises:
            Unreachable: nobody answers there.
            TokenRefused: the token is missing or wrong.
        """
        self.path = str(path)
        self.timeout_s = timeout_s
        self._token = token
        self._reconnect_s = reconnect_s
        if spin_us is None:
            spin_us = SPIN_US if len(os.sched_getaffinity(0)) > 1 else 0
        self._spin_ns = spin_us * 1000
        self._spin_rest = 0
        self._spin_rest_next = SPIN_REST
        self._socket_timeout_s = -1.0
        self._handles: list[Handle] = []
        self._shared: list[SharedModel] = []
        self._closed = False
        self._connect(time.monotonic())

    def __enter__(self) -> "Client":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the connection. Harmless twice."""
        self._closed = True
        self._socket.close()
        for shared in self._shared:
            shared.release_memory()
        self._shared.clear()

    def model(self, name: str, version: str | None = None) -> Model:
        """Return the model `name`.

        Args:
            version: Only this one; None: whatever release serves when an inference is asked for.
        Raises:
            ModelUnknown: it does not serve.
        """
        handle = Handle(name, version)
        self._again(lambda: self._attach(handle))
        self._handles.append(handle)
        return Model(self, handle)

    def ping(self) -> float:
        """Return how long the agent takes to answer at all, in seconds."""
        start = time.perf_counter()
        self._again(lambda: self._converse(*self._dialogue.control(Kind.PING)))
        return time.perf_counter() - start

    # Of this package.

    def ask(self, asked: Request) -> int:
        """Send one request and return its sequence number."""
        parts: list[bytes] = []
        sequence = self._dialogue.ask(asked, parts)
        self._send(parts)
        return sequence

    def ask_all(self, requests: Iterable[Request]) -> list[int]:
        """Send requests together and return their sequence numbers."""
        parts: list[bytes] = []
        sequences = [self._dialogue.ask(asked, parts) for asked in requests]
        self._send(parts)
        return sequences

    def wait(self, sequence: int, timeout_s: float | None) -> Answer:
        """Return the answer to a request, and forget it.

        Raises:
            ClientError: there is none.
        """
        outcomes = self._dialogue.outcomes
        if sequence not in outcomes:
            allowed_s = (self.timeout_s if timeout_s is None else timeout_s) + GRACE_S
            deadline = time.monotonic() + allowed_s
            while sequence not in self._dialogue.outcomes:
                if sequence not in self._dialogue.waiting:
                    raise ClientError("this request has been answered already; keep its answer")
                if time.monotonic() >= deadline:
                    self._dialogue.abandon(sequence)
                    raise TooLate(f"no answer within {allowed_s:g} s; the agent hangs", 504)
                self._pump(allowed_s)
            outcomes = self._dialogue.outcomes
        outcome = outcomes.pop(sequence)
        if isinstance(outcome, Answer):
            return outcome
        raise outcome

    def abandon(self, sequence: int) -> None:
        """Wait for the answer to a request no more."""
        self._dialogue.abandon(sequence)

    def share(self, shared: SharedModel) -> None:
        """Map the memory of `shared` at the agent."""
        self._again(lambda: self._share(shared))
        self._shared.append(shared)

    def unshare(self, shared: SharedModel) -> None:
        """Drop the memory of `shared` at the agent."""
        if shared in self._shared:
            self._shared.remove(shared)
            if not self._closed:
                self._send([self._dialogue.control(Kind.REGION_DROP, extra=shared.region)[1]])

    # The connection.

    def _connect(self, until: float, before: Dialogue | None = None) -> None:
        """Connect and greet, trying until `until` on the monotonic clock."""
        pause_s = 0.01
        while True:
            self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            self._socket_timeout_s = -1.0
            self._dialogue = Dialogue()
            if before is not None:
                self._dialogue.continue_from(before)
            try:
                self._set_timeout(self.timeout_s + GRACE_S)
                self._socket.connect(self.path)
                self._converse(*self._dialogue.greet(self._token))
                return
            except OSError as error:
                self._socket.close()
                if time.monotonic() + pause_s >= until:
                    raise Unreachable(self.path, error.strerror or str(error)) from error
            time.sleep(pause_s)
            pause_s = min(0.25, pause_s * 2)

    def _reconnect(self, error: OSError) -> None:
        """Connect anew after `error`, attach what was attached, and ask again what can be."""
        if self._closed:
            raise ClientError("the client is closed; make a new one") from error
        before = self._dialogue
        self._socket.close()
        lost = Unreachable(self.path, "the agent was restarted while it worked on this, and it cannot be asked twice")
        again = before.lost(lost)
        try:
            self._connect(time.monotonic() + self._reconnect_s, before)
            refused: dict[int, ClientError] = {}
            for handle in self._handles:
                try:
                    if not self._attach(handle):
                        refused[id(handle)] = moved(handle)
                except ClientError as problem:
                    refused[id(handle)] = problem
            for shared in self._shared:
                if id(shared.handle) not in refused:
                    self._share(shared)
        except ClientError as problem:
            for sequence, _ in again:
                self._dialogue.outcomes[sequence] = problem
            raise
        except OSError as problem:  # It fell again while it came up.
            unreachable = Unreachable(self.path, problem.strerror or str(problem))
            for sequence, _ in again:
                self._dialogue.outcomes[sequence] = unreachable
            raise unreachable from problem
        parts: list[bytes] = []
        for sequence, asked in again:
            asked.retried = True
            problem_of = refused.get(id(asked.handle))
            if problem_of is None:
                self._dialogue.ask(asked, parts, sequence)
            else:
                self._dialogue.outcomes[sequence] = problem_of
        self._send(parts)

    def _again(self, act: Callable[[], T]) -> T:
        """Run `act`, and once more after a new connection when the old one is lost."""
        try:
            return act()
        except OSError as error:
            self._reconnect(error)
            try:
                return act()
            except OSError as problem:
                raise Unreachable(self.path, problem.strerror or str(problem)) from problem

    def _attach(self, handle: Handle) -> bool:
        return self._dialogue.attached(handle, self._converse(*self._dialogue.attach(handle)))

    def _share(self, shared: SharedModel) -> None:
        ready, raw = self._dialogue.control(Kind.REGION, handle=shared.handle.number, extra=shared.slots)
        self._converse(ready, raw)
        # The reply to what the descriptor brings has the same number.
        self._dialogue.expect(ready)
        socket.send_fds(self._socket, [b"\0"], [shared.descriptor])
        shared.region = self._reply(ready).extra

    def _converse(self, sequence: int, raw: bytes) -> Frame:
        self._socket.sendall(raw)
        return self._reply(sequence)

    def _reply(self, sequence: int) -> Frame:
        replies = self._dialogue.replies
        while sequence not in replies:
            self._receive()
        reply = replies.pop(sequence)
        if isinstance(reply, ClientError):
            raise reply
        return reply

    def _send(self, parts: list[bytes]) -> None:
        """Send, and take answers meanwhile when the agent reads no further before they are taken."""
        try:
            view = memoryview(b"".join(parts))
            while view:
                try:
                    view = view[self._socket.send(view, socket.MSG_DONTWAIT) :]
                except BlockingIOError:
                    poll = select.poll()
                    poll.register(self._socket, select.POLLIN | select.POLLOUT)
                    events = poll.poll((self.timeout_s + GRACE_S) * 1000)
                    if not events:
                        raise TimeoutError("the agent takes no more requests") from None
                    if events[0][1] & select.POLLIN:
                        self._receive()
        except OSError as error:
            self._reconnect(error)  # Which sends again what is waited for.

    def _pump(self, timeout_s: float) -> None:
        """Take what the agent sends next."""
        try:
            if self._spin_ns and self._spin():
                return
            self._set_timeout(timeout_s)
            self._receive()
        except TimeoutError:
            return  # Whoever waits looks at the time.
        except OSError as error:
            self._reconnect(error)

    def _spin(self) -> bool:
        """Look for bytes for a short while. False when none came."""
        if self._spin_rest:
            self._spin_rest -= 1
            return False
        until = time.perf_counter_ns() + self._spin_ns
        while True:
            try:
                data = self._socket.recv(RECEIVE_BYTES, socket.MSG_DONTWAIT)
            except BlockingIOError:
                if time.perf_counter_ns() < until:
                    continue
                self._spin_rest = self._spin_rest_next
                self._spin_rest_next = min(SPIN_REST_MAX, self._spin_rest_next * 2)
                return False
            self._spin_rest_next = SPIN_REST
            self._take(data)
            return True

    def _receive(self) -> None:
        missing = self._dialogue.missing
        try:
            data = self._socket.recv(max(RECEIVE_BYTES, min(missing, 1 << 24)))
        except BlockingIOError as error:  # SO_RCVTIMEO says it this way.
            raise TimeoutError("the agent sends nothing") from error
        self._take(data)

    def _take(self, data: bytes) -> None:
        if not data:
            raise ConnectionResetError("the agent closed the connection")
        try:
            self._dialogue.receive(data)
        except ProtocolBroken:
            self._socket.close()
            raise

    def _set_timeout(self, timeout_s: float) -> None:
        # The kernel's own timeout: Python's would cost a poll before each call.
        if timeout_s != self._socket_timeout_s:
            whole = int(timeout_s)
            raw = _TIMEVAL.pack(whole, max(1, int((timeout_s - whole) * 1e6)))
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, raw)
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, raw)
            self._socket_timeout_s = timeout_s
