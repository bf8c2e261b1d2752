"""Verifying in a process that does not stay: tuf and cryptography would cost the agent 10 MB for work of seconds a day.

    agent                                         python -P -m muster_agent.io.trust_process
    CheckProcess ── Question | Envelope ──▶ socket ──▶ trust_check.Checks ──▶ trust.json
                 ◀── Checked | Opened | OpenedCall ────┘
                 ── nothing for LINGER_S: the socket is closed, the process ends

Started at the first question, since the first of a burst is not the last. Every frame is bounded and every answer has a
deadline; a process that misses it is killed, and whatever else goes wrong there is `CheckFailed` here. It never decides
what an answer means.
"""

import contextlib
import fcntl
import logging
import os
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Protocol

import msgspec

from muster_agent.errors import CheckFailed
from muster_agent.io.trust_state import CallEnvelope, Checked, Checker, Envelope, Opened, OpenedCall, Question

ANSWER_S = 15.0  # The conductor waits so long at the most, twice for one message: its watchdog barks after 60.
LINGER_S = 3.0
FRAME_BYTES_MAX = 32 * 1024 * 1024  # What is trusted and all that may be offered, several times.
END_S = 2.0
CRASHED_S = 0.2  # One that has crashed is about to tell its exit code.
NICENESS = 5  # Inference comes first.

_COMMAND = (sys.executable, "-P", "-m", "muster_agent.io.trust_process")
_LENGTH = struct.Struct(">I")
Asked = Question | Envelope | CallEnvelope
Said = Checked | Opened | OpenedCall
_encoder = msgspec.msgpack.Encoder()
_question: msgspec.msgpack.Decoder[Asked] = msgspec.msgpack.Decoder(Asked)
_answer: msgspec.msgpack.Decoder[Said] = msgspec.msgpack.Decoder(Said)


class Checking(Checker, Protocol):
    """What the process does: `trust_check.Checks`."""

    def open_call(self, envelope: CallEnvelope) -> OpenedCall: ...


class CheckProcess:
    """`trust_state.Checker`, elsewhere. Any thread may ask; one is answered at a time."""

    def __init__(
        self, command: Sequence[str] = _COMMAND, *, answer_s: float = ANSWER_S, linger_s: float = LINGER_S
    ) -> None:
        """
        Args:
            command: What speaks `main`'s protocol on its standard input.
            answer_s: For one answer, the start of the process included, seconds.
            linger_s: How long the process waits for another question, seconds.
        """
        self._command = tuple(command)
        self._answer_s = answer_s
        self._linger_s = linger_s
        self._lock = threading.Lock()
        self._child: _Child | None = None
        self._timer: threading.Timer | None = None

    @property
    def pid(self) -> int | None:
        """Return the process that is running now, if any."""
        child = self._child
        return None if child is None else child.process.pid

    def check(self, question: Question) -> Checked:
        answer = self._ask(question)
        if not isinstance(answer, Checked):
            raise CheckFailed("the checking process answered another question; look for a mixed installation")
        return answer

    def open(self, envelope: Envelope) -> Opened:
        answer = self._ask(envelope)
        if not isinstance(answer, Opened):
            raise CheckFailed("the checking process answered another question; look for a mixed installation")
        return answer

    def open_call(self, envelope: CallEnvelope) -> OpenedCall:
        answer = self._ask(envelope)
        if not isinstance(answer, OpenedCall):
            raise CheckFailed("the checking process answered another question; look for a mixed installation")
        return answer

    def close(self) -> None:
        """End the process, if there is one, also while another thread waits for its answer. It may be asked again."""
        if not self._lock.acquire(timeout=END_S):
            child = self._child
            if child is not None:
                child.process.kill()  # Whoever waits is told that it ended.
            return
        try:
            if self._timer is not None:
                self._timer.cancel()
            self._end(END_S)
        finally:
            self._lock.release()

    def _ask(self, question: Asked) -> Said:
        deadline = time.monotonic() + self._answer_s
        with self._lock:
            if self._timer is not None:
                self._timer.cancel()
            try:
                if self._child is None:
                    self._child = _start(self._command)
                self._child.send(_encoder.encode(question), deadline)
                answer = _answer.decode(self._child.receive(deadline))
            except (OSError, EOFError, msgspec.MsgspecError) as error:
                code = self._end(CRASHED_S)
                raise CheckFailed(
                    f"trust metadata was not verified: {type(error).__name__} {error} (exit code {code}); "
                    "it is tried again, and what was verified before stays in force"
                ) from error
            except BaseException:
                self._end(0.0)  # A half-read answer would be taken for the next one.
                raise
            self._timer = threading.Timer(self._linger_s, self._linger)
            self._timer.daemon = True
            self._timer.start()
            return answer

    def _linger(self) -> None:
        with self._lock:
            if threading.current_thread() is self._timer:  # Else it was asked again just now.
                self._end(END_S)

    def _end(self, timeout_s: float) -> int | None:
        """Close, wait, kill. Return the exit code."""
        self._timer = None
        if self._child is None:
            return None
        process = self._child.process
        self._child.socket.close()
        try:
            return process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            process.kill()
            return process.wait()
        finally:
            self._child = None


class _Child:
    """One process and the socket that it has for its standard input."""

    def __init__(self, process: "subprocess.Popen[bytes]", connected: socket.socket) -> None:
        self.process = process
        self.socket = connected

    def send(self, frame: bytes, deadline: float) -> None:
        self.socket.settimeout(max(0.001, deadline - time.monotonic()))
        _send(self.socket, frame)

    def receive(self, deadline: float) -> bytes:
        return _receive(self.socket, lambda: self.socket.settimeout(max(0.001, deadline - time.monotonic())))


def _start(command: Sequence[str]) -> _Child:
    ours, theirs = socket.socketpair()
    try:
        # Its standard error is ours: a bug there leaves its traceback in the agent's log.
        process = subprocess.Popen(command, stdin=theirs.fileno(), stdout=subprocess.DEVNULL)
    except BaseException:
        ours.close()
        raise
    finally:
        theirs.close()
    return _Child(process, ours)


def _send(connected: socket.socket, frame: bytes) -> None:
    if len(frame) > FRAME_BYTES_MAX:
        raise OSError(f"a frame of {len(frame)} bytes; the limit is {FRAME_BYTES_MAX}")
    connected.sendall(_LENGTH.pack(len(frame)) + frame)


def _receive(connected: socket.socket, before_each: Callable[[], None]) -> bytes:
    """Return one frame. Raises EOFError when the other side is gone."""
    (length,) = _LENGTH.unpack(_exactly(connected, _LENGTH.size, before_each))
    if length > FRAME_BYTES_MAX:
        raise OSError(f"a frame of {length} bytes; the limit is {FRAME_BYTES_MAX}")
    return bytes(_exactly(connected, length, before_each))


def _exactly(connected: socket.socket, count: int, before_each: Callable[[], None]) -> bytearray:
    got = bytearray()
    while len(got) < count:
        before_each()
        part = connected.recv(min(count - len(got), 1 << 16))
        if not part:
            raise EOFError("the process ended")
        got += part
    return got


# -- the other side ----------------------------------------------------------------------------------------------------


def main() -> int:
    """Answer what comes in on the standard input, a socket, until it is closed."""
    from muster_agent.io.trust_check import Checks

    logging.disable()  # What ngclient would say is in the answer.
    with contextlib.suppress(OSError):
        os.nice(NICENESS)
    with socket.socket(fileno=os.dup(sys.stdin.fileno())) as connected:
        answer(connected, Checks())
    return 0


def answer(connected: socket.socket, checks: Checking) -> None:
    while True:
        try:
            asked = _question.decode(_receive(connected, lambda: None))
        except EOFError:
            return
        if isinstance(asked, Question):
            with _alone(Path(asked.folder)):
                reply: Said = checks.check(asked)
        elif isinstance(asked, CallEnvelope):
            reply = checks.open_call(asked)
        else:
            reply = checks.open(asked)
        _send(connected, _encoder.encode(reply))


@contextlib.contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Hold the folder: an agent that was killed may have left a process that still writes."""
    folder.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


if __name__ == "__main__":
    sys.exit(main())
