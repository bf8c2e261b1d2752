"""The conductor's part of an activation: it asks the clock, the device's own rules and the trial, and tells the core.

    ReadClock ─▶ ClockRead      AskConsent ─▶ Consent … ConsentGiven | ConsentDeferred, later, through the conductor
    MeasureBefore ─▶ BeforeMeasured      BeginTrial, ReadTrial, EndTrial ─▶ Trials … TrialMeasured | TrialRefused

It decides nothing: `core.activation` and `core.trial` do. On the conductor's thread.
"""

from collections.abc import Callable
from datetime import UTC, datetime

from muster_agent.core import events
from muster_agent.ports import Consent, Lately, Trials
from muster_shared.assignment import Trial
from muster_shared.bundle import Manifest, Variant
from muster_shared.messages import ReleaseRef

Question = events.ReadClock | events.AskConsent | events.ReadTrial | events.EndTrial | events.MeasureBefore


class Activating:
    """Of one conductor."""

    def __init__(
        self,
        tell: Callable[[events.Event], None],
        clock: Callable[[], float],
        consent: Consent | None,
        trials: Trials | None,
        lately: Lately | None,
    ) -> None:
        """
        Args:
            tell: Lets the core decide about an event.
            clock: Unix seconds, for devices without `consent`, whose local time is UTC.
        """
        self._tell = tell
        self._clock = clock
        self._consent = consent
        self._trials = trials
        self._lately = lately

    def carry_out(self, effect: Question) -> None:
        match effect:
            case events.ReadClock(release):
                self._tell(events.ClockRead(release.bundle_sha256, *self._local()))
            case events.AskConsent(release, stage):
                if self._consent is None:
                    self._tell(events.ConsentGiven(release.bundle_sha256, stage))
                else:
                    self._consent.ask(release, stage)
            case events.ReadTrial(release):
                if self._trials is not None:
                    self._trials.read(release)
            case events.EndTrial(release):
                if self._trials is not None:
                    self._trials.end(release)
            case events.MeasureBefore(release, serving, seconds, requests_min):
                if self._lately is not None:
                    p95_ms = self._lately.latency_ms_p95(serving, seconds, requests_min)
                    self._tell(events.BeforeMeasured(release.bundle_sha256, p95_ms))

    def begin_trial(
        self, release: ReleaseRef, trial: Trial, parts: tuple[Manifest, tuple[Variant, ...]] | None
    ) -> None:
        """Put `release` beside what serves. `parts`: its manifest and the variants that fit; None: it cannot run."""
        if self._trials is None or parts is None:
            detail = "it cannot be run" if parts is None else "nothing can be tried on this device"
            self._tell(events.TrialRefused(release.bundle_sha256, detail))
        else:
            self._trials.begin(release, *parts, trial)

    def _local(self) -> tuple[int, int]:
        if self._consent is not None:
            return self._consent.local()
        there = datetime.fromtimestamp(self._clock(), UTC)
        return there.weekday(), there.hour * 60 + there.minute
