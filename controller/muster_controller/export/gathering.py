"""The controller's metric families, out of what it knows at one moment. Pure: whoever asks brings the facts.

Two tiers, as everywhere: counts of requests come from the twins, which name devices (pseudonymous at best; summed up
here by release and device class); shares of classes, inputs and drift come from mixers, with noise, and each with the
two ends of its interval beside it as metrics of their own.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from muster_controller.core.metrics.figures import Figure
from muster_controller.core.metrics.series import HOST
from muster_controller.db.metrics_store import MixerEntry
from muster_controller.export.counting import Counts, Key
from muster_controller.export.families import Family, Kind, family
from muster_controller.export.reading import Objective

SERIES_LABELS: Final = ("model", "version", "device_class")
CLASSES_SHOWN: Final = 20
"""Of each model's classes, the most frequent; all of them are in the API and in exports."""
LABEL_MAX: Final = 64  # Characters of a class's name.
DAYS_AHEAD: Final = (1, 7, 30)

Rows = Iterable[tuple[float | None, Mapping[str, str]]]
COUNTED: Final = (
    ("requests", "muster_requests_total", "Requests that models answered or failed, as devices report them", 1.0),
    ("errors", "muster_request_errors_total", "Of those, failed in the engine or past their deadline", 1.0),
    ("slow", "muster_slow_requests_total", "Of those, answered later than the release's objective", 1.0),
    ("inferences", "muster_inferences_total", "Inferences; a request for a batch of 8 is 8", 1.0),
    ("cpu_ms", "muster_inference_cpu_seconds_total", "Processor time that they took", 1e-3),
    (
        "energy_j",
        "muster_inference_energy_joules_total",
        "Energy, a model's part by its share of the processor's time; where a sensor tells",
        1.0,
    ),
)
HOSTS_COUNTED: Final = (
    ("energy_j", "muster_host_energy_joules_total", "Energy of whole hosts, where a sensor tells", 1.0),
    ("bytes_sent", "muster_device_sent_bytes_total", "Bytes that agents sent to the broker", 1.0),
    ("bytes_received", "muster_device_received_bytes_total", "Bytes that agents received from the broker", 1.0),
)
"""Of whole devices, by device class alone."""
MESSAGES: Final = ("received", "published", "dropped", "malformed", "events", "repeated_events", "assignments")


@dataclass(frozen=True)
class RolloutNow:
    """A rollout under way."""

    id: str
    model: str
    version: str
    state: str
    created_at: float
    evidence: float
    abort_at: float
    devices: Mapping[str, int]
    """By outcome; `waiting` are those that were not told yet."""


@dataclass(frozen=True)
class Busy:
    """How busy the hosts of a device class are by their newest word."""

    device_class: str
    cpu_percent_max: float | None
    cpu_percent_mean: float | None


@dataclass(frozen=True)
class Content:
    """What the newest hour of one release and device class said, over all regions."""

    model: str
    version: str
    device_class: str
    period_start: float
    devices: int
    classes: Sequence[tuple[str, Figure]] = ()
    inputs: Mapping[str, Figure] = field(default_factory=dict)
    drift: Mapping[str, Figure] = field(default_factory=dict)
    accuracy: Figure | None = None


@dataclass(frozen=True)
class Facts:
    """Everything that the page is made of."""

    now: float
    version: str
    fleet: str
    is_leading: bool
    is_broker_connected: bool
    counters: Mapping[str, int]
    devices: Mapping[tuple[str, str], int]
    """By device class and standing."""
    online: Mapping[str, int]
    """By device class."""
    releases: Mapping[tuple[str, str], int]
    """How many devices serve each model and version."""
    rollouts: Mapping[str, int]
    """By state, ended ones too."""
    running: Sequence[RolloutNow] = ()
    trust: Sequence[tuple[str, float]] = ()
    """Role, and when its metadata runs out."""
    totals: Mapping[Key, Counts] = field(default_factory=dict)
    """By the values of SERIES_LABELS."""
    busy: Sequence[Busy] = ()
    content: Sequence[Content] = ()
    mixers: Sequence[MixerEntry] = ()
    alerts: Mapping[tuple[str, str, str], int] = field(default_factory=dict)
    """By rule, severity and state."""
    objectives: Sequence[Objective] = ()
    certificates: Mapping[int, int] = field(default_factory=dict)
    """Of how many accepted devices the newest one runs out within so many days, or has: for each of DAYS_AHEAD."""
    process: Sequence[Family] = ()
    is_partial: bool = False
    """The asker may see some devices alone: sums over the whole fleet are left out."""


def gather(facts: Facts) -> list[Family]:
    """Return all families, always in one order."""
    found = [*_controller(facts), *_fleet(facts)]
    if not facts.is_partial:
        found += [*_operational(facts), *_content(facts), *_privacy(facts), *_alerts(facts)]
    found += facts.process
    left_out = [(float(each.left_out), {"family": each.name}) for each in found if each.left_out]
    text = "Samples beyond what a family may hold: they are missing above"
    return [*found, _gauge("muster_exposition_left_out_samples", text, left_out)]


def _gauge(name: str, text: str, rows: Rows) -> Family:
    return family(name, Kind.GAUGE, text, rows)


def _counter(name: str, text: str, rows: Rows) -> Family:
    return family(name, Kind.COUNTER, text, rows)


def _controller(facts: Facts) -> Iterator[Family]:
    labels = {"version": facts.version, "fleet": facts.fleet}
    yield _gauge("muster_build_info", "The controller, always 1", [(1.0, labels)])
    yield _gauge(
        "muster_leading", "1 for the controller that leads, 0 for one that stands by", [(facts.is_leading, {})]
    )
    yield _gauge("muster_broker_connected", "1 while the link to the broker stands", [(facts.is_broker_connected, {})])
    counters = facts.counters
    messages = [(float(counters[kind]), {"kind": kind}) for kind in MESSAGES if kind in counters]
    yield _counter(
        "muster_messages_total", "Messages of this controller and its broker, by what came of them", messages
    )
    sent: Rows = [(float(counters.get("bytes_sent", 0)), {})]
    yield _counter("muster_release_sent_bytes_total", "Bytes of releases that were published in chunks", sent)
    trust = [(at, {"role": role}) for role, at in facts.trust]
    yield _gauge("muster_trust_expires_timestamp_seconds", "When the trust metadata of a role runs out", trust)


def _fleet(facts: Facts) -> Iterator[Family]:
    devices = [(float(n), {"device_class": key[0], "state": key[1]}) for key, n in sorted(facts.devices.items())]
    yield _gauge("muster_devices", "Devices, by how they stand against what they should run", devices)
    desired = sum(count for (_, state), count in facts.devices.items() if state == "current")
    yield _gauge("muster_devices_on_desired", "Devices that run what they should", [(float(desired), {})])
    online = [(float(count), {"device_class": name}) for name, count in sorted(facts.online.items())]
    yield _gauge("muster_devices_online", "Devices that are connected to the broker", online)
    serving = [(float(n), {"model": key[0], "version": key[1]}) for key, n in sorted(facts.releases.items())]
    yield _gauge("muster_release_devices", "Devices that serve a release", serving)
    if not facts.is_partial:
        states = [(float(count), {"state": state}) for state, count in sorted(facts.rollouts.items())]
        yield _gauge("muster_rollouts", "Rollouts, by state", states)
    running = [(each, {"rollout": each.id, "model": each.model, "version": each.version}) for each in facts.running]
    yield _gauge(
        "muster_rollout_info",
        "A rollout that has not ended, always 1",
        [(1.0, {**labels, "state": each.state}) for each, labels in running],
    )
    yield _gauge(
        "muster_rollout_evidence",
        "E, the evidence that the release is worse; 1 at the beginning",
        [(each.evidence, labels) for each, labels in running],
    )
    yield _gauge(
        "muster_rollout_evidence_abort_threshold",
        "E at which it is aborted",
        [(each.abort_at, labels) for each, labels in running],
    )
    yield _gauge(
        "muster_rollout_created_timestamp_seconds",
        "When it was created",
        [(each.created_at, labels) for each, labels in running],
    )
    outcomes = [
        (float(count), {**labels, "outcome": outcome})
        for each, labels in running
        for outcome, count in sorted(each.devices.items())
    ]
    yield _gauge("muster_rollout_devices", "Devices of a rollout that has not ended, by outcome", outcomes)


def _operational(facts: Facts) -> Iterator[Family]:
    totals = sorted(facts.totals.items())
    for what, name, text, factor in COUNTED:
        rows: Rows = [
            (counts[what] * factor, dict(zip(SERIES_LABELS, key, strict=True)))
            for key, counts in totals
            if what in counts and key[0] != HOST
        ]
        yield _counter(name, text, rows)
    for what, name, text, factor in HOSTS_COUNTED:
        rows = [
            (counts[what] * factor, {"device_class": key[2]})
            for key, counts in totals
            if what in counts and key[0] == HOST
        ]
        yield _counter(name, text, rows)
    for name, text, pick in _BUSY:
        yield _gauge(name, text, [(pick(each), {"device_class": each.device_class}) for each in facts.busy])
    goals = [
        (
            each.target,
            {
                "objective": each.name,
                "model": each.model,
                "device_class": each.device_class,
                "indicator": each.indicator,
            },
        )
        for each in facts.objectives
    ]
    yield _gauge("muster_objective_target_ratio", "Share of requests that must be good over 28 days", goals)


def _share(percent: float | None) -> float | None:
    return None if percent is None else percent / 100.0


_BUSY: Final[tuple[tuple[str, str, Callable[[Busy], float | None]], ...]] = (
    (
        "muster_host_cpu_busiest_ratio",
        "Processor use of the busiest host of a device class, 0..1",
        lambda each: _share(each.cpu_percent_max),
    ),
    (
        "muster_host_cpu_mean_ratio",
        "Processor use of the hosts of a device class, mean, 0..1",
        lambda each: _share(each.cpu_percent_mean),
    ),
)


def _content(facts: Facts) -> Iterator[Family]:
    cells = [
        (each, {"model": each.model, "version": each.version, "device_class": each.device_class})
        for each in facts.content
    ]
    begun = [(each.period_start, labels) for each, labels in cells]
    yield _gauge("muster_content_period_timestamp_seconds", "Beginning of the hour that the next metrics are of", begun)
    yield _gauge("muster_content_devices", "Devices in it", [(float(each.devices), labels) for each, labels in cells])
    classes = [
        (figure, {**labels, "class": name[:LABEL_MAX]})
        for each, labels in cells
        for name, figure in sorted(each.classes, key=lambda pair: -(pair[1].value or 0.0))[:CLASSES_SHOWN]
    ]
    yield from _estimates("muster_class_share", f"Share of a class, 0..1; of the {CLASSES_SHOWN} largest", classes)
    accuracy = [(each.accuracy, labels) for each, labels in cells if each.accuracy is not None]
    yield from _estimates("muster_accuracy_ratio", "Share of labelled inferences that were right, 0..1", accuracy)
    inputs = [(figure, {**labels, "input": name}) for each, labels in cells for name, figure in each.inputs.items()]
    yield from _estimates("muster_input_share", "Share of requests of a sort, 0..1", inputs)
    drift = [(figure, {**labels, "drift": name}) for each, labels in cells for name, figure in each.drift.items()]
    yield from _estimates("muster_drift_share", "Share of devices whose detectors say this, 0..1", drift)


def _estimates(name: str, text: str, rows: Sequence[tuple[Figure, Mapping[str, str]]]) -> Iterator[Family]:
    yield _gauge(name, text, [(each.value, labels) for each, labels in rows])
    yield _gauge(
        f"{name}_low", f"{text}: lower end of its 95 % interval", [(each.low, labels) for each, labels in rows]
    )
    yield _gauge(f"{name}_high", f"{text}: upper end of its 95 % interval", [(e.high, labels) for e, labels in rows])


def _privacy(facts: Facts) -> Iterator[Family]:
    seen = [(each.seen_at, {"mixer": each.id}) for each in facts.mixers]
    yield _gauge("muster_mixer_seen_timestamp_seconds", "When a mixer was heard of last", seen)
    age = [(max(0.0, facts.now - each.seen_at), {"mixer": each.id}) for each in facts.mixers]
    yield _gauge("muster_mixer_age_seconds", "How long ago that was", age)
    states = [(each.state, {"mixer": each.id}) for each in facts.mixers if each.state is not None]
    # Of the newest day; what was spent on days before is in the API.
    days = [(max(state.budgets, key=lambda one: one.day), labels) for state, labels in states if state.budgets]
    yield _gauge(
        "muster_privacy_rho_spent",
        "Privacy budget of a device and day that was spent on the newest day, rho of zCDP",
        [(day.rho_spent, labels) for day, labels in days],
    )
    yield _gauge(
        "muster_privacy_rho_budget", "What may be spent on it", [(day.rho_budget, labels) for day, labels in days]
    )
    yield _gauge(
        "muster_privacy_epsilon_day",
        "Epsilon of a whole budget, at the mixer's delta",
        [(state.eps_day, labels) for state, labels in states],
    )
    windows = [
        (float(count), {**labels, "outcome": outcome})
        for state, labels in states
        for outcome, count in (
            ("taken", state.windows),
            ("refused", state.refused),
            ("repeated", state.repeated),
            ("too_late", state.too_late),
            ("suppressed", state.suppressed),
        )
    ]
    yield _counter("muster_mixer_windows_total", "Windows since the mixer's ledger was begun, by outcome", windows)
    refused = [(float(state.out_of_budget), labels) for state, labels in states]
    yield _counter(
        "muster_mixer_cells_over_budget_total", "Cells that were not published: the budget was spent", refused
    )


def _alerts(facts: Facts) -> Iterator[Family]:
    alerts = [
        (float(count), {"rule": rule, "severity": severity, "state": state})
        for (rule, severity, state), count in sorted(facts.alerts.items())
    ]
    yield _gauge("muster_alerts", "Alerts of the controller that are not over", alerts)
    soon = [(float(facts.certificates.get(days, 0)), {"within": f"{days}d"}) for days in DAYS_AHEAD]
    text = "Accepted devices whose newest certificate runs out within this time, or has"
    yield _gauge("muster_device_certificates_expiring", text, soon)
