"""The meters of all releases that serve: begun when a place opens, taken together, looked at now and then.

    ServingTable ── before_serving ──▶ a Meter for the release ──▶ Place.counted      take ──▶ tallies for `windows`
    look, each LOOK_ROWS ── folds, samples, shares processor time out      hour_over ──▶ the detectors

It counts nothing itself. A release that is unloaded to save memory keeps its meter: that nobody asked for it is not to
be told by its window being missing.
"""

import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Final

import structlog

from muster_agent.core.split import Mode
from muster_agent.metrics.cpu import CpuShares
from muster_agent.metrics.detectors import Detectors
from muster_agent.metrics.fold import Meter, meter
from muster_agent.metrics.port import DriftState, Tally
from muster_agent.metrics.samples import Keeper, Sampler
from muster_agent.serving.table import Place, Served, ServingTable
from muster_shared.ids import ModelName, Sha256

LOOK_ROWS: Final = 3072
"""A look costs 0.2 ms for few inferences and 0.4 ms for ROWS_A_LOOK: it waits until about so many have come."""
LOOK_S_MIN: Final = 1.0
LOOK_S_MAX: Final = 60.0
"""So long an alarm of drift may wait on a slow device: as long as a tally does."""

log = structlog.get_logger()


class AllMeters:
    """`port.Meters`. Made before anything serves. On the serving loop, but for `cpu_ms` and `drift`."""

    def __init__(
        self,
        table: ServingTable,
        *,
        counting: bool = True,
        tell_drift: bool = False,
        unloaded: Callable[[], frozenset[ModelName]] = frozenset,
        recall: Callable[[Sha256], bytes] = lambda bundle: b"",
        keeper: Keeper | None = None,
    ) -> None:
        """
        Args:
            counting: False: nothing is counted for windows; processor time still is.
            tell_drift: Whether `drift` says anything: the device's owner lets it say that by name.
            unloaded: Returns the models that come back when they are asked for.
            recall: Returns what `states` said of a release before the agent ended; empty: nothing.
            keeper: Who keeps odd inputs; None: nobody.
        """
        self._table = table
        self._counting = counting
        self._tell_drift = tell_drift
        self._unloaded = unloaded
        self._recall = recall
        self._keeper = keeper
        self._meters: dict[Sha256, Meter] = {}
        self._spent_ms: dict[Sha256, float] = {}
        """Processor time of releases whose meter is gone: they may serve again."""
        self._serving: dict[ModelName, Sha256] = {}
        """Which release of a model began to serve last."""
        self._lock = threading.Lock()
        self._cpu: CpuShares[Sha256] = CpuShares()
        self._engine_s: dict[Sha256, float] = {}
        self._process_s: float | None = None
        self._looked_at = 0.0
        self._pause_s = LOOK_S_MIN
        table.before_serving(self._begin)

    def take(self) -> list[Tally]:
        """See `port.Meters`."""
        if not self._counting:
            return []
        serving = self._kept()
        tallies = []
        for bundle, one in self._all():
            tallies.append(one.take())
            if bundle not in serving:
                with self._lock:
                    self._meters.pop(bundle, None)
                    self._spent_ms[bundle] = one.cpu_ms
        return tallies

    def look(self, process_s: float, now_s: float) -> float:
        """Fold what waits, and share out the processor time since the last look.

        Args:
            process_s: Processor time of this process, all threads, since it began.
            now_s: Of a clock that nobody can set.

        Returns:
            Seconds until the next look is due.
        """
        seconds = 0.0 if self._process_s is None else now_s - self._looked_at
        busiest = 0.0
        if self._counting:
            for _, one in self._all():
                one.look(inputs=False)
                if seconds > 0:
                    busiest = max(busiest, one.pace(seconds))
            self._tell_changes()
        engine_s = {place.served.manifest_sha256: _engine_s(place) for place in self._places()}
        if self._process_s is not None and seconds > 0:
            since = {bundle: max(0.0, at - self._engine_s.get(bundle, 0.0)) for bundle, at in engine_s.items()}
            shares = self._cpu.share(process_s - self._process_s, seconds, since)
            for bundle, seconds in shares.items():
                found = self._meters.get(bundle)
                if found is not None:
                    found.cpu_ms += 1e3 * seconds
        self._engine_s = engine_s
        self._process_s, self._looked_at = process_s, now_s
        # Who is asked a little may be asked much soon: pauses grow slowly, and shrink at once.
        self._pause_s = min(look_due_s(busiest), 2 * self._pause_s)
        return self._pause_s

    def hour_over(self) -> None:
        """Tell the detectors that an hour is over."""
        for _, one in self._all():
            if one.observer is not None:
                one.observer.hour_over()
        self._tell_changes()

    def states(self) -> Mapping[Sha256, bytes]:
        """Return what the detectors of each release are to remember when the agent starts again (`recall`)."""
        return {b: one.observer.to_state() for b, one in self._all() if isinstance(one.observer, Detectors)}

    def of(self, bundle: Sha256) -> Meter | None:
        """Return the meter of a release; None: it does not serve. From any thread, to read from it."""
        return self._meters.get(bundle)

    def cpu_ms(self, bundle: Sha256) -> float | None:
        """Return the processor time of a release since the agent started; None: unknown. From any thread."""
        one = self._meters.get(bundle)
        return None if one is None or self._process_s is None else round(one.cpu_ms, 1)

    def drift(self, bundle: Sha256) -> DriftState | None:
        """Return what the detectors say of a release, if the device may tell that by name. From any thread."""
        one = self._meters.get(bundle)
        return one.drift if self._tell_drift and self._counting and one is not None else None

    def _begin(self, place: Place) -> None:
        served = place.served
        bundle = served.manifest_sha256
        with self._lock:
            one = self._meters.get(bundle)
            if one is None:
                one = self._meters[bundle] = self._made(served)
            else:
                one.goes_on(served.stats)
            if served.slot == "active":
                self._serving[place.model] = bundle
        place.meter = one
        if self._counting:
            one.listen(place)

    def _made(self, served: Served) -> Meter:
        bundle, manifest = served.manifest_sha256, served.manifest
        sampler = Sampler(manifest, served.reference, self._keeper)
        observer = None if served.reference is None else Detectors(served.reference, self._recall(bundle))
        one = meter(manifest, bundle, served.stats, sampler, observer)
        one.cpu_ms = self._spent_ms.pop(bundle, 0.0)
        return one

    def _tell_changes(self) -> None:
        for _, one in self._all():
            for state, why in one.observer.take_changes() if isinstance(one.observer, Detectors) else ():
                log.warning(
                    "drift_changed", model=one.release.model, version=one.release.version, state=state.value, why=why
                )

    def _all(self) -> Sequence[tuple[Sha256, Meter]]:
        with self._lock:
            return sorted(self._meters.items())

    def _places(self) -> list[Place]:
        """Return what answers callers now."""
        canaries = [at.place for at in self._table.trials.values() if at.trial.split.mode is Mode.CANARY]
        return [*self._table.places().values(), *canaries]

    def _kept(self) -> set[Sha256]:
        unloaded = self._unloaded()
        waiting = {bundle for model, bundle in self._serving.items() if model in unloaded}
        return waiting | {place.served.manifest_sha256 for place in self._places()}


def look_due_s(rate: float) -> float:
    """Return after how long to look again, of LOOK_S_MIN..LOOK_S_MAX: when LOOK_ROWS more will have come.

    Args:
        rate: Inferences a second, of the release that has most. Where there are none the next are waited for with short
            looks, at which there is nothing to do: who begins to ask may ask much.
    """
    return min(LOOK_S_MAX, max(LOOK_S_MIN, LOOK_ROWS / rate)) if rate > 0 else LOOK_S_MIN


def _engine_s(place: Place) -> float:
    return place.served.stats.engine_us / 1e6 * place.served.session.achieved.threads
