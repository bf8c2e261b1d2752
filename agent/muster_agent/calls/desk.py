"""The desk of the calls: takes them from the link, has their signatures verified, does them one at a time, answers.

    conductor ─ take ─▶ a queue of WAITING_MAX ─▶ the thread of the calls: verify ─▶ judging ─▶ checkup, ring ─▶ answer

What is too much is dropped: a call is short-lived, and whoever asked sees that no answer came.
"""

import os
import queue
import sys
import threading
from collections.abc import Callable, Collection
from contextlib import suppress
from typing import Final, Protocol

import msgspec
import structlog

from muster_agent.calls.judging import Answered, forbidden, refusal, take
from muster_agent.calls.ring import Ring
from muster_agent.io.trust_state import CallEnvelope, OpenedCall
from muster_shared.assignment import AssignmentKeys
from muster_shared.call import LINES_MAX, Call, CallKind
from muster_shared.errors import MusterError
from muster_shared.ids import DeviceId, FleetId
from muster_shared.messages import ANSWER_BYTES_MAX, Answer, ModelChecked, encode

WAITING_MAX: Final = 4
CALL_BYTES_MAX: Final = 8 * 1024
NICENESS: Final = 10  # Inference comes first.

log = structlog.get_logger()


class Opener(Protocol):
    """Verifies one signature: `trust_check.Checks`, or a process of its own that does."""

    def open_call(self, envelope: CallEnvelope) -> OpenedCall:
        """Raises CheckFailed: nobody could."""
        ...


class Looks(Protocol):
    """`checkup.Checkup`."""

    def self_test(self) -> tuple[ModelChecked, ...]: ...

    def benchmark(self) -> tuple[ModelChecked, ...]: ...


class CallDesk:
    """One for each agent. `take` is safe from any thread and never waits; `start` it, `stop` it."""

    def __init__(
        self,
        fleet: FleetId,
        device: DeviceId,
        *,
        allow: Collection[str],
        keys: Callable[[], AssignmentKeys | None],
        opener: Opener,
        looks: Looks,
        ring: Ring,
        answer: Callable[[bytes], None],
        clock: Callable[[], float],
    ) -> None:
        """
        Args:
            allow: Which kinds the device's owner allows.
            keys: Returns who may sign, by the last verified trust metadata; None: none was verified yet.
            answer: Publishes an answer.
            clock: Unix seconds.
        """
        self.dropped = 0
        """Calls that came while too many waited."""
        self.refused = 0
        self._fleet = fleet
        self._device = device
        self._allow = frozenset(allow)
        self._keys = keys
        self._opener = opener
        self._looks = looks
        self._ring = ring
        self._answer = answer
        self._clock = clock
        self._taken = Answered()
        self._waiting: queue.Queue[bytes | None] = queue.Queue(WAITING_MAX)
        self._thread: threading.Thread | None = None

    def take(self, raw: bytes) -> None:
        """Have a call looked at, soon."""
        if len(raw) > CALL_BYTES_MAX:
            self._refuse("it is too long")
            return
        try:
            self._waiting.put_nowait(raw)
        except queue.Full:
            self.dropped += 1

    def start(self) -> None:
        self._thread = threading.Thread(target=self._run, name="calls", daemon=True)
        self._thread.start()

    def stop(self, timeout_s: float) -> None:
        """End the thread after what it is doing, or leave it behind."""
        if self._thread is None:
            return
        try:
            self._waiting.put(None, timeout=timeout_s)
        except queue.Full:
            return
        self._thread.join(timeout_s)

    def obey(self, raw: bytes) -> bytes | None:
        """Return the answer to the call in `raw`; None: it is not answered."""
        keys = self._keys()
        if keys is None:
            self._refuse("no trust metadata was verified yet")
            return None
        try:
            opened = self._opener.open_call(CallEnvelope(raw=raw, keys=keys))
        except MusterError as error:
            self._refuse(str(error))
            return None
        call = opened.call
        if call is None:
            self._refuse("unsigned" if opened.failure is None else opened.failure.detail)
            return None
        now = self._clock()
        why = refusal(call, self._fleet, self._device, self._taken, now)
        if why is not None:
            self._refuse(why)
            return None
        self._taken = take(self._taken, call, now)
        log.info("call_taken", call=call.id, what=call.what.value)
        return _fitted(self._do(call, now))

    def _do(self, call: Call, began_at: float) -> Answer:
        said = forbidden(call, self._allow)
        models: tuple[ModelChecked, ...] = ()
        lines: tuple[str, ...] = ()
        if said is None:
            match call.what:
                case CallKind.SELF_TEST:
                    models = self._looks.self_test()
                case CallKind.BENCHMARK:
                    models = self._looks.benchmark()
                case CallKind.LOGS:
                    lines = self._ring.last(min(call.lines, LINES_MAX))
        nothing = call.what is not CallKind.LOGS and not models and said is None
        now = self._clock()
        return Answer(
            id=call.id,
            device=self._device,
            at=now,
            ok=said is None and not nothing and all(each.ok for each in models),
            detail=said or ("nothing serves on it" if nothing else ""),
            seconds=max(0.0, now - began_at),
            models=models,
            lines=lines,
        )

    def _refuse(self, why: str) -> None:
        self.refused += 1
        if self.refused <= 10 or not self.refused & (self.refused - 1):  # Whoever has the broker may send many.
            log.warning("call_refused", reason=why, refused=self.refused)

    def _run(self) -> None:
        if sys.platform == "linux":  # Where a thread has a niceness of its own.
            with suppress(OSError):
                os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), NICENESS)
        while (raw := self._waiting.get()) is not None:
            try:
                said = self.obey(raw)
                if said is not None:
                    self._answer(said)
            except Exception:  # A bug here must not leave the device without calls for ever.
                log.exception("call_failed")


def _fitted(answer: Answer) -> bytes:
    """Return the answer in at most ANSWER_BYTES_MAX: without its oldest lines, then without models, where it must."""
    raw = encode(answer)
    while len(raw) > ANSWER_BYTES_MAX and (answer.lines or answer.models):
        half = len(answer.lines) // 2
        answer = msgspec.structs.replace(
            answer,
            lines=answer.lines[half + 1 :],
            models=answer.models if answer.lines else answer.models[: len(answer.models) // 2],
            detail="cut to what an answer may have",
        )
        raw = encode(answer)
    return raw
