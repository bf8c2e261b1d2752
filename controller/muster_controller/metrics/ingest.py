"""Ingest: what mixers say, from the topic into the database; acknowledged after the commit.

    mixed/<mixer>        ─▶ checked (`believing`) ─▶ one transaction for a whole batch of messages ─▶ mixed/<mixer>/ack
    mixed/<mixer>/state  ─▶ checked ─▶ the mixer's row

What is refused is not acknowledged: the mixer keeps it, and its operator sees both sides' logs. Never inside of a
transaction of the ledger: this one writes by itself, and SQLite has one writer.
"""

from collections import defaultdict
from collections.abc import Callable, Sequence

import structlog

from muster_controller.core.metrics import believing
from muster_controller.core.metrics.rollup import MIXED_KEEP_S
from muster_controller.db.errors import LedgerRefused
from muster_controller.db.metrics_store import MetricsStore
from muster_controller.ports import Wire
from muster_shared.errors import WireError
from muster_shared.messages import decode, encode
from muster_shared.metrics import Mixed, MixedAck, MixerState
from muster_shared.topics import MixedChannel, MixedTopic

SAID_MAX = 20  # Refusals in the log for each mixer; the counter counts on.

log = structlog.get_logger()


class MixedIngest:
    """Of the fleet thread."""

    def __init__(self, store: MetricsStore, wire: Wire, clock: Callable[[], float]) -> None:
        self.taken = 0
        self.refused = 0
        self._store = store
        self._wire = wire
        self._clock = clock
        self._said: defaultdict[str, int] = defaultdict(int)

    def received(self, messages: Sequence[tuple[MixedTopic, bytes]]) -> None:
        """Take messages as they came; when this returns, what is believed of them is in the database.

        Raises:
            LedgerUnavailable: nothing was kept; give them again.
        """
        batches: dict[str, Mixed] = {}
        acks: defaultdict[str, list[str]] = defaultdict(list)
        states: dict[str, MixerState] = {}
        for topic, payload in messages:
            try:
                match topic.channel:
                    case MixedChannel.SUMS:
                        found = self._sums(topic.mixer, payload)
                        acks[topic.mixer].append(found.batch)
                        batches.setdefault(found.batch, found)
                    case MixedChannel.STATE:
                        states[topic.mixer] = self._state(topic.mixer, payload)
                    case MixedChannel.ACK:
                        raise WireError("an acknowledgement, which controllers send")
            except WireError as error:
                self._refuse(topic.mixer, str(error))
        self._keep([each for each in batches.values() if not self._is_too_old(each)], acks)
        for mixer, state in states.items():
            try:
                self._store.say_mixer(state, self._clock())
            except LedgerRefused as error:
                self._refuse(mixer, str(error))
        for mixer, named in acks.items():
            if named:
                ack = encode(MixedAck(batches=tuple(dict.fromkeys(named))))
                self._wire.publish(MixedTopic(mixer, MixedChannel.ACK), ack, qos=1)

    def _sums(self, mixer: str, payload: bytes) -> Mixed:
        mixed = decode(payload, Mixed)
        problem = next(believing.problems(mixed, mixer, self._clock()), None)
        if problem is not None:
            raise WireError(problem)
        return mixed

    def _state(self, mixer: str, payload: bytes) -> MixerState:
        state = decode(payload, MixerState)
        problem = next(believing.state_problems(state, mixer), None)
        if problem is not None:
            raise WireError(problem)
        return state

    def _is_too_old(self, mixed: Mixed) -> bool:
        """Return whether its time is over already; it is acknowledged all the same, or it would come for ever."""
        is_old = mixed.period_start < self._clock() - MIXED_KEEP_S[mixed.period_s]
        if is_old:
            log.warning("mixed_too_old", mixer=mixed.mixer, period_start=mixed.period_start, devices=mixed.devices)
        return is_old

    def _keep(self, batches: Sequence[Mixed], acks: dict[str, list[str]]) -> None:
        """Keep `batches`, and take those out of `acks` that the database refuses."""
        if not batches:
            return
        try:
            self.taken += self._store.add(batches)
        except LedgerRefused as error:
            if len(batches) > 1:  # Only one of them is to blame.
                for each in batches:
                    self._keep([each], acks)
                return
            for named in acks.values():
                named[:] = [name for name in named if name != batches[0].batch]
            self._refuse(batches[0].mixer, str(error))

    def _refuse(self, mixer: str, why: str) -> None:
        self.refused += 1
        if len(self._said) > 1000:
            self._said.clear()
        self._said[mixer] += 1
        if self._said[mixer] <= SAID_MAX:
            log.warning("mixed_refused", mixer=mixer, error=why)
