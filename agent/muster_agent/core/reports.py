"""What the update machine tells the controller: steps, and the one bit with what it was judged from.

Values only. When something is told is decided in `update` and beside it.
"""

from msgspec.structs import replace

from muster_agent.core.events import Effect, Report
from muster_agent.core.state import ModelState, Settled, Update
from muster_shared.messages import OutcomeReported, Refusal, Step, StepReached, WindowReport


def step(
    update: Update,
    reached: Step,
    now: float,
    refusal: Refusal | None = None,
    detail: str = "",
    until: float | None = None,
) -> Report:
    return Report(
        StepReached(
            release=update.release,
            step=reached,
            rollout=None if update.watch is None else update.watch.rollout,
            bytes_fetched=update.bytes_fetched,
            seconds=max(0.0, now - update.began_at),
            refusal=refusal,
            detail=detail,
            until=until,
            attempt=1 if update.watch is None else update.watch.attempt,
        )
    )


def outcome(update: Update, good: bool, reason: str, window: WindowReport | None = None) -> list[Effect]:
    """Return the bit for the gate, if someone watches, with what the trial and the time before the window showed."""
    if update.watch is None:
        return []
    return [
        Report(
            OutcomeReported(
                release=update.release,
                rollout=update.watch.rollout,
                wave=update.watch.wave,
                good=good,
                reason=reason,
                window=_complete(update, window),
                attempt=update.watch.attempt,
            )
        )
    ]


def settled(model: ModelState, update: Update, *, good: bool) -> Settled | None:
    """Return the last judgement of `model` once `update` has ended; one that nobody watched leaves it as it was."""
    watch = update.watch
    if watch is None:
        return model.settled
    return Settled(update.release.bundle_sha256, watch.rollout, watch.wave, good, watch.attempt)


def _complete(update: Update, window: WindowReport | None) -> WindowReport | None:
    tried, before = update.tried, update.latency_ms_p95_before
    if tried is None and before is None:
        return window
    window = replace(window or WindowReport(seconds=0.0), latency_ms_p95_before=before)
    if tried is None:
        return window
    return replace(
        window, compared=tried.compared, disagreed=tried.disagreed, trial_latency_ms_p95=tried.latency_ms_p95
    )
