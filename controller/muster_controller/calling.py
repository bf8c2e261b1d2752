"""Calls to devices: what is asked, signed for one device, and the answers that fit a question.

    API ─ ask ─▶ a row, a signed envelope ─▶ the fleet publishes it
    the fleet ─ answered ─▶ the row, if somebody asked for that and it is in time

What nobody asked for costs a look into a dictionary: a device may send as much as it likes.
"""

import secrets
import threading
from collections.abc import Callable
from typing import Final, Protocol

import structlog

from muster_controller.acting import acting
from muster_controller.db.call_store import AskedCall, CallStore
from muster_controller.errors import Conflict
from muster_shared.call import LIFETIME_S, LINES_MAX, Call, CallKind
from muster_shared.ids import DeviceId, FleetId
from muster_shared.messages import ANSWER_BYTES_MAX, Answer, encode

WAITING_MAX: Final = 4
"""Of one device: as many as it keeps itself."""
REFRESH_S: Final = 10.0

log = structlog.get_logger()


class CallSigner(Protocol):
    def sign_call(self, call: Call) -> bytes: ...


class CallDesk:
    """Safe from any thread."""

    def __init__(
        self,
        fleet: FleetId,
        store: CallStore,
        signer: CallSigner,
        clock: Callable[[], float],
        told: Callable[[DeviceId], None] = lambda device: None,
    ) -> None:
        """
        Args:
            told: called when a device has answered.
        """
        self.store = store
        self._fleet = fleet
        self._signer = signer
        self._clock = clock
        self._told = told
        self._mutex = threading.Lock()
        self._open: dict[str, tuple[DeviceId, float]] | None = None
        self._read_at = float("-inf")

    def ask(self, device: DeviceId, what: CallKind, lines: int = 0) -> tuple[AskedCall, bytes]:
        """Write down a call, and return it with the envelope that is to be published.

        Raises:
            Conflict: enough calls wait for this device already.
            KeyMissing, KeyUnreadable: nothing can be signed here.
        """
        now = self._clock()
        if self.store.waiting(device, now) >= WAITING_MAX:
            raise Conflict(f"{WAITING_MAX} calls wait for {device} already; wait for an answer, or until they expire")
        call = Call(
            fleet=self._fleet,
            device=device,
            id=secrets.token_hex(8),
            what=what,
            lines=min(lines, LINES_MAX),
            issued_at=now,
            expires_at=now + LIFETIME_S,
        )
        envelope = self._signer.sign_call(call)
        asked = AskedCall(call.id, device, what, acting().actor, now, call.expires_at)
        self.store.ask(asked)
        with self._mutex:
            if self._open is not None:
                self._open[call.id] = (device, call.expires_at)
        return asked, envelope

    def answered(self, answer: Answer) -> None:
        """Keep what a device says, if it was asked for that. Raises LedgerUnavailable."""
        now = self._clock()
        if self._waits(answer.id, now) != answer.device:
            return
        raw = encode(answer)
        if len(raw) > ANSWER_BYTES_MAX:
            return
        if self.store.answered(answer.id, answer.device, answer.ok, raw, now):
            log.info("call_answered", call=answer.id, device=answer.device, ok=answer.ok)
        with self._mutex:
            if self._open is not None:
                self._open.pop(answer.id, None)
        self._told(answer.device)

    def _waits(self, call: str, now: float) -> DeviceId | None:
        """Return whose answer to `call` is awaited. Others may have asked too: the rows are read now and then."""
        with self._mutex:
            known = self._open
            is_old = now >= self._read_at + REFRESH_S or now < self._read_at
        if known is None or (call not in known and is_old):
            known = self.store.open(now)
            with self._mutex:
                self._open, self._read_at = dict(known), now
        found = known.get(call)
        return None if found is None or found[1] <= now else found[0]
