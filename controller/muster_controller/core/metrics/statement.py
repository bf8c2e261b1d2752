"""The privacy statement: what devices send, how noisy it is made and what that is worth, with the parameters in force.

Made of the constants that devices and controller are built with, of what each release allows, and of what the mixers
say of themselves; `markdown` is for people. It promises nothing that the code does not hold.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final

from muster_controller.core.metrics.sums import rho_of
from muster_shared.metrics import (
    COHORTS,
    CONFIDENCE_BINS,
    DELTA,
    DRIFT,
    INPUTS,
    K_MIN,
    LATENCY_BUCKETS,
    RELEASES_A_DAY,
    RHO_DAY,
    UNITS,
    WINDOW_BYTES,
    Kind,
    MixerState,
    eps,
    sigma,
)

WHAT: Final = {
    Kind.CLASSES: "how often each class was what an inference came out as",
    Kind.CONFIDENCE: f"how sure the model was of it, in {CONFIDENCE_BINS} equal steps",
    Kind.LATENCY: f"how long the engine took, in {LATENCY_BUCKETS} steps of a fourth of a doubling",
    Kind.INPUTS: f"what requests were like: {', '.join(name.replace('_', ' ') for name in INPUTS)}",
    Kind.DRIFT: f"what the device's own detectors say: {', '.join(DRIFT)}",
    Kind.FEEDBACK: "of inferences that somebody labelled: the true class, and whether the model was right",
}
OPERATIONAL: Final = (
    "requests, errors, requests slower than the release promises, inferences and processor time, of each model",
    "the host's processor, memory, disk, temperature, energy and network use",
    "the device's id, hardware, labels, time zone, versions, and the address at which it serves",
    "each step and outcome of an update, with the text of errors",
    "while a new release is on probation: how many labelled requests it had and how many of them were right, and how"
    " often a candidate answered otherwise than what serves",
)
NEVER_SENT: Final = (
    "inputs, outputs or labels of a single inference, or anything made of one",
    "in windows: the device's name, address and labels (but its region), and any time finer than the hour",
    "single outliers: where a device keeps them at all, they stay there, encrypted, for people on site",
)
LIMITS: Final = (
    "Who holds both the mixer's key and the controller could read windows, though not whose they are.",
    "The mixer sees how many windows came, not from whom; who takes part is known anyway.",
    "The guarantee is for all that one device tells of one day, not for a single inference: it is stronger for those.",
    "Days add up: if all of them are about the same thing, they are worth the eps of 30 days, not that of one.",
    "Who holds a device's certificate can send windows of his own; he can spoil sums, and learns nothing by it.",
)


@dataclass(frozen=True)
class KindTerms:
    """One kind: `sigma_units` of noise on every number, `sigma_devices` of a whole device's vote; `rho` an hour."""

    kind: Kind
    what: str
    sigma_units: float
    sigma_devices: float
    rho: float


@dataclass(frozen=True)
class ReleaseTerms:
    model: str
    version: str
    allow: tuple[Kind, ...]
    """Empty: nothing of this release leaves a device."""


@dataclass(frozen=True)
class MixerTerms:
    """What a mixer says of itself. `problems`: where that is less than what is promised here."""

    mixer: str
    seen_at: float
    key: str
    cohorts: tuple[int, ...]
    k_min: int
    delta: float
    eps_day: float
    eps_30_days: float
    suppressed: int
    out_of_budget: int
    problems: tuple[str, ...]


@dataclass(frozen=True)
class Statement:
    fleet: str
    made_at: float
    units: int
    window_bytes: int
    cohorts: int
    k_min: int
    rho_day: float
    releases_a_day: int
    delta: float
    eps_day: float
    eps_30_days: float
    kinds: tuple[KindTerms, ...]
    releases: tuple[ReleaseTerms, ...]
    mixers: tuple[MixerTerms, ...]
    operational: tuple[str, ...] = OPERATIONAL
    never_sent: tuple[str, ...] = NEVER_SENT
    limits: tuple[str, ...] = LIMITS


def statement(
    fleet: str, now: float, releases: Sequence[ReleaseTerms], mixers: Sequence[tuple[float, MixerState]]
) -> Statement:
    """Return the statement of a fleet.

    Args:
        mixers: when each was heard last, and what it said.
    """
    return Statement(
        fleet=fleet,
        made_at=now,
        units=UNITS,
        window_bytes=WINDOW_BYTES,
        cohorts=COHORTS,
        k_min=K_MIN,
        rho_day=RHO_DAY,
        releases_a_day=RELEASES_A_DAY,
        delta=DELTA,
        eps_day=eps(RHO_DAY),
        eps_30_days=eps(30 * RHO_DAY),
        kinds=tuple(KindTerms(kind, WHAT[kind], sigma(kind), sigma(kind) / UNITS, rho_of(kind)) for kind in Kind),
        releases=tuple(sorted(releases, key=lambda each: (each.model, each.version))),
        mixers=tuple(_mixer(seen_at, state) for seen_at, state in mixers),
    )


def _error(devices: int, share: float = 0.1, classes: int = 10) -> float:
    """Return the standard deviation of a class share in one hour, relative to the share; of noise alone."""
    noise = sigma(Kind.CLASSES) / UNITS / devices
    return noise * math.sqrt((1 - share) ** 2 + share**2 * (classes - 1)) / share


def _mixer(seen_at: float, state: MixerState) -> MixerTerms:
    problems = []
    if state.k_min < K_MIN:
        problems.append(f"it publishes sums over {state.k_min} devices already; {K_MIN} are promised")
    if state.delta > DELTA or state.eps_day > eps(RHO_DAY) * (1 + 1e-6):
        problems.append(f"it spends eps {state.eps_day:.3g} a day at delta {state.delta:g}; less is promised")
    for budget in state.budgets:
        if budget.rho_spent > budget.rho_budget * (1 + 1e-9):
            problems.append(f"it spent more than the budget of day {budget.day}")
    return MixerTerms(
        state.mixer,
        seen_at,
        state.key,
        state.cohorts,
        state.k_min,
        state.delta,
        state.eps_day,
        state.eps_30_days,
        state.suppressed,
        state.out_of_budget,
        tuple(problems),
    )


def markdown(found: Statement) -> str:
    """Return the statement for people."""
    made = datetime.fromtimestamp(found.made_at, UTC).strftime("%Y-%m-%d %H:%M UTC")
    kinds = "\n".join(f"| {each.kind.value} | {each.what} | {each.sigma_devices:.1f} devices |" for each in found.kinds)
    return "\n".join(
        [
            f"# Privacy statement of fleet {found.fleet}",
            "",
            f"Made {made} from the parameters in force.",
            "",
            "## What leaves a device of what models saw and said",
            "",
            "Only what a release's signed bundle allows, and only as one device's part of a sum:",
            "",
            *(_releases(found) or ["No release allows anything: nothing leaves any device."]),
            "",
            f"In each hour a device shares out {found.units} units of each kind among classes or steps, however much it"
            f" did. They are sealed to the mixer's key, {found.window_bytes} bytes whatever is in them, and sent at a"
            " random moment. Devices send as much when nothing was asked of them.",
            "",
            "| kind | what it tells | noise on every number (standard deviation) |",
            "|---|---|---|",
            kinds,
            "",
            f"So a class of 10 % is known to {_error(10_000):.1%} of itself in an hour of 10,000 devices (standard"
            f" deviation; {_error(1000):.0%} of 1,000), and over a day to a fifth of that. Fewer devices are shown as"
            " unknown where the interval says nothing.",
            "",
            "## What makes it anonymous",
            "",
            f"- The mixer alone can open a window. It adds up the windows of at least {found.k_min} devices; fewer are"
            " not published. It adds noise from a discrete Gaussian distribution, and keeps no window.",
            f"- What all devices' sums tell of one device in one day is limited to rho = {found.rho_day:g}"
            f" (zero-concentrated differential privacy), in {found.releases_a_day} releases: eps = {found.eps_day:.2f}"
            f" a day and {found.eps_30_days:.1f} over 30 days, at delta = {found.delta:g}. When it is spent, the mixer"
            " publishes nothing more of that day.",
            "- It rests on the mixer and the controller being run apart: by other people, or at least on other"
            " machines. The controller cannot read windows, and refuses sums of less noise than this.",
            "",
            *_mixers(found),
            "## What is not anonymous",
            "",
            "These are sent by each device under its own name. They are pseudonymous at best, and say nothing of"
            " what models saw:",
            "",
            *(f"- {each}" for each in found.operational),
            "- whether the device's inputs drift, only where its owner says so (`metrics.tell_drift`).",
            "",
            "## What never leaves a device",
            "",
            *(f"- {each}" for each in found.never_sent),
            "",
            "## Limits",
            "",
            *(f"- {each}" for each in found.limits),
            "",
        ]
    )


def _releases(found: Statement) -> list[str]:
    allowing = [each for each in found.releases if each.allow]
    others = len(found.releases) - len(allowing)
    lines = [f"- {each.model} {each.version}: {', '.join(kind.value for kind in each.allow)}" for each in allowing]
    return [*lines, f"- of {others} other releases: nothing"] if lines and others else lines


def _mixers(found: Statement) -> list[str]:
    if not found.mixers:
        return ["No mixer has reported: no sums are made, and windows stay on their devices.", ""]
    lines = []
    for each in found.mixers:
        seen = datetime.fromtimestamp(each.seen_at, UTC).strftime("%Y-%m-%d %H:%M UTC")
        lines.append(
            f"- Mixer {each.mixer} (key {each.key}, heard {seen}): at least {each.k_min} devices, eps"
            f" {each.eps_day:.2f} a day and {each.eps_30_days:.1f} over 30 days at delta {each.delta:g};"
            f" {each.suppressed} windows of small groups and {each.out_of_budget} sums beyond the budget were not"
            " published."
        )
        lines += [f"  - Not as promised: {problem}." for problem in each.problems]
    return [*lines, ""]
