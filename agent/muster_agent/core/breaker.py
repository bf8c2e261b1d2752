"""A circuit breaker for one model: an engine that keeps failing is spared, and asked again a little later.

                 share of failures >= share_max of >= calls_min in the window
    ┌────────┐ ───────────────────────────────────────────────────> ┌──────┐
    │ closed │                                                       │ open │ everything is refused until `until_ns`
    └────────┘ <───┐                                 ┌─────────────> └──────┘
                   │ every probe succeeded           │ a probe failed   │ the time is over, somebody asks
                   │                                 │ (twice as long)  │
                   └──────────────── ┌───────────┐ ──┘                  │
                                     │ half-open │ <────────────────────┘
                                     └───────────┘ lets `probes` calls through

Pure: `advance` is the machine; `Breaker` keeps a state for a shell and makes the usual case cheap. Only what the engine
did counts (errors and timeouts), never what a caller did. An outcome of a call that began before the present state is
ignored: what was queued when the breaker opened says nothing about now.
"""

import math
from enum import Enum
from typing import NamedTuple, assert_never

import msgspec

from muster_shared.errors import MusterError

SLICES = 8  # The window moves by an eighth of itself.
_NS = 1_000_000_000


class BreakerSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """When to open, and for how long. `calls_min = 0`: never."""

    window_s: float = 30.0
    calls_min: int = 20
    """Fewer calls in the window prove nothing."""
    share_max: float = 0.5
    """Share of failures (above 0 to 1) at which it opens."""
    open_s: float = 1.0
    """The first time; then twice as long each time, up to `open_s_max`."""
    open_s_max: float = 60.0
    probes: int = 3
    """Calls that must succeed before it closes."""


class BreakerOpen(MusterError):
    """The model's engine failed too often of late; nothing was run."""

    def __init__(self, model: str, failed_share: float, retry_after_s: int) -> None:
        super().__init__(
            f"{model} failed in {failed_share:.0%} of its latest calls and is not asked for a while; "
            f"try again in {retry_after_s} s"
        )
        self.model = model
        self.failed_share = failed_share
        self.retry_after_s = retry_after_s


class Slice(NamedTuple):
    """What ended in one part of the window."""

    number: int
    calls: int
    failures: int


class Closed(msgspec.Struct, frozen=True):
    """The usual state."""

    since_ns: int = 0
    slices: tuple[Slice, ...] = ()
    """Of the window, oldest first."""
    trips: int = 0
    """How often it opened in a row; forgotten when it stays closed for `open_s_max`."""


class Open(msgspec.Struct, frozen=True):
    """Everything is refused."""

    since_ns: int
    until_ns: int
    trips: int
    failed_share: float
    """Of the window that opened it, 0..1."""


class HalfOpen(msgspec.Struct, frozen=True):
    """A few calls find out whether the engine is well again."""

    since_ns: int
    renew_ns: int
    """Probes that have not ended by then are lost, and others are let through."""
    trips: int
    failed_share: float
    left: int
    """Probes still to be let through."""
    passed: int = 0


State = Closed | Open | HalfOpen


class Asked(NamedTuple):
    """Somebody wants to call."""


class Succeeded(NamedTuple):
    began_ns: int
    """The time that it was asked with."""
    calls: int = 1


class Failed(NamedTuple):
    began_ns: int


class Abandoned(NamedTuple):
    """A call that was let through never ran: its caller went away, or it was refused for another reason."""

    began_ns: int


Event = Asked | Succeeded | Failed | Abandoned


class Ruling(Enum):
    """What an event was answered with."""

    ALLOWED = "allowed"
    REFUSED = "refused"
    NOTED = "noted"  # It was no question.


def advance(state: State, event: Event, now_ns: int, settings: BreakerSettings) -> tuple[State, Ruling]:
    """Return the state after `event`, and whether the call may run that was asked for."""
    if isinstance(event, Asked):
        return _asked(state, now_ns, settings)
    if event.began_ns >= state.since_ns:
        match state:
            case Closed():
                state = _closed(state, event, now_ns, settings)
            case HalfOpen():
                state = _probed(state, event, now_ns, settings)
            case Open():
                pass  # Nothing was let through since it opened.
            case _:
                assert_never(state)
    return state, Ruling.NOTED


def _asked(state: State, now_ns: int, settings: BreakerSettings) -> tuple[State, Ruling]:
    match state:
        case Closed():
            return state, Ruling.ALLOWED
        case Open(until_ns=until_ns) if now_ns < until_ns:
            return state, Ruling.REFUSED
        case HalfOpen(left=0, renew_ns=renew_ns) if now_ns < renew_ns:
            return state, Ruling.REFUSED
        case HalfOpen(left=left, renew_ns=renew_ns) if now_ns < renew_ns:
            return msgspec.structs.replace(state, left=left - 1), Ruling.ALLOWED
        case Open() | HalfOpen():
            renew_ns = now_ns + _open_ns(max(1, state.trips), settings)
            return HalfOpen(now_ns, renew_ns, state.trips, state.failed_share, settings.probes - 1), Ruling.ALLOWED
        case _:
            assert_never(state)


def _closed(state: Closed, event: Succeeded | Failed | Abandoned, now_ns: int, settings: BreakerSettings) -> State:
    if isinstance(event, Abandoned):
        return state
    failures = 1 if isinstance(event, Failed) else 0
    calls = event.calls if isinstance(event, Succeeded) else 1
    number = slice_number(now_ns, settings)
    slices = tuple(part for part in state.slices if part.number > number - SLICES)
    if slices and slices[-1].number >= number:
        last = slices[-1]
        slices = (*slices[:-1], Slice(last.number, last.calls + calls, last.failures + failures))
    else:
        slices = (*slices, Slice(number, calls, failures))
    all_calls, all_failures = sum(part.calls for part in slices), sum(part.failures for part in slices)
    # Only a failure opens it: a success must never be what brings the count of calls over the minimum.
    if failures and 0 < settings.calls_min <= all_calls and all_failures >= settings.share_max * all_calls:
        stayed_closed = now_ns - state.since_ns >= settings.open_s_max * _NS
        return _opened(now_ns, 0 if stayed_closed else state.trips, all_failures / all_calls, settings)
    return Closed(state.since_ns, slices, state.trips)


def _probed(state: HalfOpen, event: Succeeded | Failed | Abandoned, now_ns: int, settings: BreakerSettings) -> State:
    match event:
        case Succeeded():
            passed = state.passed + event.calls
            if passed >= settings.probes:
                return Closed(now_ns, (), state.trips)
            return msgspec.structs.replace(state, passed=passed)
        case Failed():
            return _opened(now_ns, state.trips, state.failed_share, settings)
        case Abandoned():
            return msgspec.structs.replace(state, left=min(settings.probes - state.passed, state.left + 1))
        case _:
            assert_never(event)


def _opened(now_ns: int, trips: int, failed_share: float, settings: BreakerSettings) -> Open:
    return Open(now_ns, now_ns + _open_ns(trips + 1, settings), trips + 1, failed_share)


def _open_ns(trips: int, settings: BreakerSettings) -> int:
    doubled = settings.open_s * 2 ** min(trips - 1, 62)
    return int(min(settings.open_s_max, doubled) * _NS)


def slice_number(now_ns: int, settings: BreakerSettings) -> int:
    return int(now_ns // slice_ns(settings))


def slice_ns(settings: BreakerSettings) -> int:
    return max(1, int(settings.window_s * _NS / SLICES))


class Breaker:
    """The state of one model. While it is closed, asking reads one attribute and a success adds one."""

    __slots__ = ("_closed_since_ns", "_slice_end_ns", "_state", "_succeeded", "model", "settings")

    def __init__(self, model: str, settings: BreakerSettings) -> None:
        self.model = model
        self.settings = settings
        self._state: State = Closed()
        self._succeeded = 0  # Successes of the present slice that are not in the state yet.
        self._slice_end_ns = 0
        self._closed_since_ns = 0  # -1 while it is not closed.

    def allows(self, now_ns: int) -> bool:
        """Whether a call may run. Who is allowed reports `succeeded`, `failed` or `abandoned`, with this `now_ns`."""
        if self._closed_since_ns >= 0:
            return True
        return self._advance(Asked(), now_ns) is Ruling.ALLOWED

    def succeeded(self, began_ns: int, now_ns: int) -> None:
        if now_ns < self._slice_end_ns and began_ns >= self._closed_since_ns >= 0:
            self._succeeded += 1
        else:
            self._advance(Succeeded(began_ns), now_ns)

    def failed(self, began_ns: int, now_ns: int) -> None:
        """The engine failed, or did not end in time."""
        self._advance(Failed(began_ns), now_ns)

    def abandoned(self, began_ns: int, now_ns: int) -> None:
        """A call that was allowed did not run after all."""
        if self._closed_since_ns < 0:
            self._advance(Abandoned(began_ns), now_ns)

    def refusal(self, now_ns: int) -> BreakerOpen:
        """Return the error for a call that is not allowed."""
        match self.state:
            case Open(until_ns=until_ns, failed_share=share):
                return BreakerOpen(self.model, share, max(1, math.ceil((until_ns - now_ns) / _NS)))
            case HalfOpen(failed_share=share):
                return BreakerOpen(self.model, share, 1)
            case Closed():
                return BreakerOpen(self.model, 0.0, 1)
            case other:
                assert_never(other)

    @property
    def state(self) -> State:
        """With everything that was reported."""
        if self._succeeded:
            # They ended in the slice before `_slice_end_ns`, whatever time it is now.
            began_ns, ended_ns = self._closed_since_ns, self._slice_end_ns - 1
            succeeded, self._succeeded = self._succeeded, 0
            self._state, _ = advance(self._state, Succeeded(began_ns, succeeded), ended_ns, self.settings)
        return self._state

    def _advance(self, event: Event, now_ns: int) -> Ruling:
        self._state, ruling = advance(self.state, event, now_ns, self.settings)
        if isinstance(self._state, Closed):
            self._closed_since_ns = self._state.since_ns
            self._slice_end_ns = (slice_number(now_ns, self.settings) + 1) * slice_ns(self.settings)
        else:
            self._closed_since_ns, self._slice_end_ns = -1, 0
        return ruling
