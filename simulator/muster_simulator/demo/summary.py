"""What the demo found, as values, as JSON and as tables. It computes nothing."""

from collections.abc import Sequence

import msgspec
from rich.console import Console
from rich.table import Table


class VerdictSummary(msgspec.Struct, frozen=True, kw_only=True):
    wave: int
    """From 1."""
    kind: str
    e: float
    reason: str


class RolloutReport(msgspec.Struct, frozen=True, kw_only=True):
    model: str
    version: str
    previous: str | None
    state: str
    reason: str
    seconds: float
    devices: int
    exposed: int
    """Devices that were ever assigned the release."""
    well: int
    badly: int
    bytes_fetched: int
    """By the exposed devices, of this release."""
    bytes_fetched_after_abort: int | None
    """By devices that came back; None when there was no abort."""
    verdicts: tuple[VerdictSummary, ...]


class VersionSeen(msgspec.Struct, frozen=True, kw_only=True):
    model: str
    version: str
    requests: int
    labelled: int
    accuracy: float | None
    """Share (0..1) that was right."""


class TrafficSummary(msgspec.Struct, frozen=True, kw_only=True):
    requests: int
    failed: int
    while_down: int
    asked_anew: int
    seconds: float
    real: tuple[VersionSeen, ...]
    """Real inferences on the five agents."""
    simulated: tuple[VersionSeen, ...]
    """Answers drawn from what the releases really know."""


class FaultSummary(msgspec.Struct, frozen=True, kw_only=True):
    device: str
    what: str
    seconds: float
    """Until it ran what it should."""


class RefusalSummary(msgspec.Struct, frozen=True, kw_only=True):
    """Somebody tried what they must not, and it came to nothing."""

    who: str
    tried: str
    answer: str


class Summary(msgspec.Struct, frozen=True, kw_only=True):
    ok: bool
    reason: str | None
    """Why not."""
    seconds: float
    steps: dict[str, float]
    url: str
    broker: str
    agents: int
    simulated: int
    bytes_sent: int
    """By the controller, of releases; one publish serves every device that waits."""
    bytes_fetched: int
    """By all devices together."""
    assignments: int
    events: int
    rollouts: tuple[RolloutReport, ...]
    traffic: TrafficSummary | None
    faults: tuple[FaultSummary, ...]
    refusals: tuple[RefusalSummary, ...]
    cut_off_s: float | None
    """From the order to revoke a device until it had no connection any more; None: the story ended before."""


def show(summary: Summary, console: Console) -> None:
    """Print the summary as tables."""
    console.print()
    if summary.rollouts:
        console.print(_rollouts(summary.rollouts))
    if summary.traffic is not None:
        console.print(_traffic(summary.traffic))
        console.print(_requests(summary.traffic))
    console.print(_steps(summary))
    if not summary.bytes_sent:
        return
    multiple = summary.bytes_fetched / summary.bytes_sent
    console.print(
        f"The controller sent {summary.bytes_sent / 1e6:.1f} MB of releases, devices received"
        f" {summary.bytes_fetched / 1e6:.1f} MB: each chunk served {multiple:.1f} devices. Broker: {summary.broker}."
    )
    for fault in summary.faults:
        console.print(f"{fault.device}: {fault.what}; it ran what it should {fault.seconds:.1f} s later.")
    for refusal in summary.refusals:
        console.print(f"{refusal.who}: {refusal.tried}: {refusal.answer}.", markup=False)


def _rollouts(rollouts: Sequence[RolloutReport]) -> Table:
    table = Table("release", "ended", "exposed", "well / badly", "MB", "s", "verdicts (wave: E)", title="Rollouts")
    for each in rollouts:
        verdicts = ", ".join(f"{verdict.kind} {verdict.wave}: {verdict.e:.2f}" for verdict in each.verdicts)
        back = (
            ""
            if each.bytes_fetched_after_abort is None
            else f", back on {each.previous} with {each.bytes_fetched_after_abort} bytes fetched"
        )
        table.add_row(
            f"{each.model} {each.version}",
            f"{each.state}{back}",
            f"{each.exposed} of {each.devices}",
            f"{each.well} / {each.badly}",
            f"{each.bytes_fetched / 1e6:.1f}",
            f"{each.seconds:.1f}",
            verdicts,
        )
    return table


def _traffic(traffic: TrafficSummary) -> Table:
    real = {(each.model, each.version): each for each in traffic.real}
    simulated = {(each.model, each.version): each for each in traffic.simulated}
    table = Table("model", "version", "requests", "right", "simulated", "right", title="What applications saw")
    for model, version in sorted(real.keys() | simulated.keys()):
        table.add_row(model, version, *_seen(real.get((model, version))), *_seen(simulated.get((model, version))))
    return table


def _seen(seen: VersionSeen | None) -> tuple[str, str]:
    return ("", "") if seen is None else (f"{seen.requests:,}", _share(seen.accuracy))


def _requests(traffic: TrafficSummary) -> str:
    said = f"{traffic.requests:,} requests of applications in {traffic.seconds:.0f} s, {traffic.failed} failed"
    if traffic.while_down:
        said += f", {traffic.while_down} went to an agent while it was killed"
    if traffic.asked_anew:
        said += f", {traffic.asked_anew} were encoded again because a new release takes another input"
    return f"{said}."


def _steps(summary: Summary) -> Table:
    table = Table("step", "s", title=f"{summary.seconds:.0f} s in all")
    for step, seconds in summary.steps.items():
        table.add_row(step, f"{seconds:.1f}")
    return table


def _share(accuracy: float | None) -> str:
    return "" if accuracy is None else f"{accuracy:.1%}"
